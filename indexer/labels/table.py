"""A table as it was read: a header and rows of text, before anyone knows whose they are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from indexer import watch
from indexer.errors import LabelsError, ReadError
from indexer.labels.delimited import Row, text_rows
from indexer.labels.limits import MOST_BYTES
from indexer.labels.records import json_rows
from indexer.labels.workbook import sheets
from indexer.text import printable

PARTICIPANTS = "participants.tsv"

Sheets = Sequence[tuple[str, Iterable[Row]]]

READERS: dict[str, Callable[[Path, bytes], Sheets]] = {
    ".xlsx": sheets,
    ".json": lambda path, content: [("", json_rows(path, content))],
}
"""By ending; everything else is text with cells parted by some character."""


@dataclass(frozen=True)
class Table:
    """A table, or one sheet of a workbook.

    Attributes
    ----------
    path : Path
    sheet : str
        Of a workbook with several sheets; else empty.
    header : tuple of str
        Names of its columns; a column without a name is no label.
    rows : tuple of (int, tuple of str)
        Line numbers and cells, as many as the header has.
    key : str, optional
        The column that names whom a row is about, where the user said it.
    given : bool
        Whether the user named the table, so that it has to fit.
    """

    path: Path
    sheet: str
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    key: str | None = None
    given: bool = False

    @property
    def named(self) -> str:
        """How the user named it."""
        return f"{self.path}:{self.key}" if self.key else str(self.path)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.path} (sheet {self.sheet})" if self.sheet else str(self.path)

    @cached_property
    def columns(self) -> tuple[tuple[str, ...], ...]:
        """The cells by column."""
        return tuple(zip(*(cells for _, cells in self.rows), strict=True))


def load_tables(path: Path) -> list[Table]:
    """Read a labels table, or the sheets of a workbook.

    Text is UTF-8 (with or without byte order mark), UTF-16 with one, or else taken for Latin-1. Its cells
    are parted by comma, semicolon, tab, bar or runs of spaces, whichever makes regular rows, and may be
    quoted. Rows above the header, such as a title, are passed over. JSON is a list of objects, or an
    object that holds one, or an object of objects.

    Parameters
    ----------
    path : Path
        May end in ``:COLUMN``, the column that names whom a row is about.

    Returns
    -------
    list of Table
        All `Table.given`.

    Raises
    ------
    LabelsError
        If it cannot be read, is no table, or is too large (see :mod:`indexer.labels.limits`).
    """
    key = None
    if ":" in path.name and not os.path.exists(path):  # noqa: PTH110 (however long its name is)
        name, _, key = path.name.rpartition(":")
        path = path.parent / name
    tables = [replace(table, given=True, key=key) for table in read_tables(path)]
    if key is not None and all(_column(table.header, key) is None for table in tables):
        columns = ", ".join(filter(None, tables[0].header))
        raise LabelsError(path, f"has no column called {key!r}", f"choose of: {columns}")
    return [table for table in tables if key is None or _column(table.header, key) is not None]


def read_tables(path: Path) -> list[Table]:
    """The tables in a file, as :func:`load_tables` without what the user says of them."""
    try:
        path = path.parent.resolve() / path.name
        watch.at(path)
        size = path.stat().st_size
        if size > MOST_BYTES:
            what = f"has {size / 2**20:.0f} MiB, of which a table may have {MOST_BYTES // 2**20}"
            raise LabelsError(path, what, "keep the columns and rows that are needed")
        if not path.is_file():
            raise LabelsError(path, "is not a file", "name a table")
        content = path.read_bytes()
    except ReadError as error:
        raise LabelsError(path, error.reason, error.remedy) from error
    except (OSError, ValueError, RuntimeError) as error:  # a name may hold a null, links lead in a circle
        reason = getattr(error, "strerror", None) or "no file has such a name"
        raise LabelsError(path, f"cannot be read ({reason})", "check the path") from error
    read = READERS.get(path.suffix.lower(), _text)
    parts = read(path, content)
    found = [table for sheet, rows in parts if (table := _table(path, sheet if len(parts) > 1 else "", rows))]
    if not found:
        raise LabelsError(path, "has no rows below its header", "fill it, or move it away")
    return found


def _text(path: Path, content: bytes) -> Sheets:
    return [("", text_rows(path, content))]


def _table(path: Path, sheet: str, rows: Iterable[Row]) -> Table | None:
    """The table with its header found, and every cell on one printable line; None if it has no rows."""
    cells = [(line, [printable(" ".join(cell.split())) for cell in row]) for line, row in rows]
    cells = [(line, row) for line, row in cells if any(row)]
    start = _header(cells)
    if len(cells) < start + 2:
        return None
    header = tuple(cells[start][1])
    named = Counter(name.casefold() for name in header if name)
    if named and named.most_common(1)[0][1] > 1:
        twice = named.most_common(1)[0][0]
        raise LabelsError(path, f"has two columns called {twice!r}", "rename or remove one")
    width = len(header)
    for line, row in cells[start + 1 :]:
        if any(row[width:]):
            what = f"line {line} has {len(row)} cells, its header {width}"
            raise LabelsError(path, what, "quote or complete it")
    body = tuple((line, tuple(row[:width] + [""] * (width - len(row)))) for line, row in cells[start + 1 :])
    return Table(path, sheet, header, body)


def _header(cells: Sequence[tuple[int, Sequence[str]]]) -> int:
    """Place of the header: the first row that has a cell in most of the columns that any row has."""
    filled = [sum(map(bool, row)) for _, row in cells]
    if not filled:
        return 0
    most = max(filled)
    return next((i for i, n in enumerate(filled[:50]) if n >= min(2, most) and 2 * n > most), 0)


def _column(header: Sequence[str], name: str) -> int | None:
    """Place of the column of this name, in any case."""
    return next((i for i, each in enumerate(header) if each.casefold() == name.casefold()), None)
