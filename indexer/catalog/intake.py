"""What of a file of strangers is looked at before SQLite is asked for anything: journals, and its schema.

A trigger, a view or a virtual table runs when others are read or written, a generated column or an index of
an expression computes, and a journal may name another file, which SQLite removes when it has played it back.
cbir makes none of these, so what has them is no catalog of its own.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from indexer.catalog.schema import FORMAT, meta, metadata
from indexer.errors import CaseIndexError
from indexer.files import opened

ABROAD = bytes.fromhex("d9d505f920a163d7")
"""End of a journal that names a further one (https://sqlite.org/fileformat.html#the_rollback_journal)."""
OWN = {"sqlite_sequence", "sqlite_stat1", "sqlite_stat4"}
"""Tables of SQLite itself."""
COMPUTING = re.compile(r"\b(check|generated|virtual|as|using|default|collate|where)\b")
"""Words of a table or an index that does more than hold what is put into it."""


def refuse_journal(path: Path) -> None:
    """Refuse a catalog beside which a journal lies that leads to another file.

    Raises
    ------
    CaseIndexError
    """
    journal = path.with_name(f"{path.name}-journal")
    try:
        handle = opened(journal)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CaseIndexError(journal, f"cannot be read ({error.strerror})", "move it away") from error
    with os.fdopen(handle, "rb") as file:
        begin = file.read(len(ABROAD))  # a journal's own beginning is the same
        file.seek(max(len(begin), os.fstat(handle).st_size - len(ABROAD)))
        if file.read() == ABROAD:
            raise CaseIndexError(journal, "leads to another file, as no journal of cbir does", "move it away")


def refuse_schema(raw: sqlite3.Connection, where: str) -> None:
    """Refuse a database in which there is what no catalog has, of this format or an earlier one.

    Raises
    ------
    CaseIndexError
        Naming it.
    sqlite3.Error
        If it is no database.
    """
    found = dict(_foreign(raw))
    if found and meta.name not in found:
        (later,) = raw.execute("SELECT max(value) FROM main.meta WHERE key = 'format'").fetchone()
        if isinstance(later, int) and later > FORMAT:
            return  # who opens it says so
    for what in found.values():
        raise CaseIndexError(where, f"has {what}, as no catalog has", "it is not from cbir: do not use it")


def _foreign(raw: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """What there is beside tables and indexes as they should be, by name."""
    indexes = {str(index.name) for table in metadata.tables.values() for index in table.indexes}
    rows = raw.execute("SELECT type, name, rootpage, sql FROM main.sqlite_master").fetchall()
    for kind, name, root, sql in rows:
        told = f"the {str(kind)[:20]} {str(name)[:60]!r}"
        automatic = kind == "index" and sql is None and str(name).startswith("sqlite_autoindex_")
        if automatic or (kind == "table" and name in OWN):
            continue
        if not root or name not in {"table": metadata.tables.keys(), "index": indexes}.get(kind, ()):
            yield name, told
        elif COMPUTING.search(re.sub(r'"[a-z_]+"', " ", str(sql).lower())):
            yield name, f"{told} that computes"
        elif kind == "table":
            for column in _columns(raw, metadata.tables[name]):
                yield name, f"{told} with a column {column!r:.60}"


def _columns(raw: sqlite3.Connection, table: sa.Table) -> Iterator[str]:
    """Columns that the table has in no format; in earlier ones there were fewer."""
    for _, column, _, _, default, _, hidden in raw.execute(f'PRAGMA main.table_xinfo("{table.name}")'):
        if hidden or default is not None or column not in table.c:
            yield column
