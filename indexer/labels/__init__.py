"""Labels tables as people keep them, and how their rows find the images.

``load_tables`` and ``find_tables`` read what there is, ``join`` brings it together with what discovery
found, and gives `Labels` of persons and of visits.
"""

from __future__ import annotations

from indexer.labels.columns import identifies
from indexer.labels.finding import find_tables, is_table
from indexer.labels.found import Discovered, renamed
from indexer.labels.join import Joined, Labels, Mentioned, join, listed, mentions
from indexer.labels.limits import MOST_BYTES
from indexer.labels.table import PARTICIPANTS, Table, load_tables
from indexer.labels.values import UNKNOWN, known

__all__ = [
    "MOST_BYTES",
    "PARTICIPANTS",
    "UNKNOWN",
    "Discovered",
    "Joined",
    "Labels",
    "Mentioned",
    "Table",
    "find_tables",
    "identifies",
    "is_table",
    "join",
    "known",
    "listed",
    "load_tables",
    "mentions",
    "renamed",
]
