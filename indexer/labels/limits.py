"""How large a table may be: far beyond any cohort's, and read in seconds."""

from __future__ import annotations

MOST_BYTES = 32 * 2**20
"""Of a file, packed or not."""

MOST_UNPACKED = 256 * 2**20
"""Bytes in all parts of a workbook."""

MOST_COLUMNS = 16384
"""As many as Excel has."""

MOST_CELLS = 5_000_000
