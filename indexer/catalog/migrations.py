"""Catalogs that earlier versions wrote: brought up to date by numbered steps, in one transaction.

Where a file may not be written, what has come since is laid over it in each connection's memory, and
it is read like any other.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping

import sqlalchemy as sa

import indexer.catalog.digests as digests
from indexer.catalog.change import COUNTS, counted, keep
from indexer.catalog.schema import FORMAT, meta, metadata
from indexer.errors import CaseIndexError

VISIT = """CASE
    WHEN substr(case_id, 1, 2) = 'c-'
        AND 1 < (SELECT count(*) FROM {cases} AS other WHERE other.patient_id = {cases}.patient_id)
        THEN 'v-' || substr(case_id, 3)
    WHEN substr(case_id, 1, length(patient_id) + 1) = patient_id || '/'
        THEN substr(case_id, length(patient_id) + 2)
END"""
"""The visit of a case as :meth:`indexer.case_index.CaseIndex.case` has put it into its id."""


def held_format(connection: sa.Connection, schema: str | None) -> int | None:
    """The format of the tables; None where there are none."""
    if not sa.inspect(connection).has_table("cases", schema=schema):
        return None
    held = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "format"))
    if held is not None and (type(held) is not int or held < 1):
        raise ValueError(f"its format is {held!r:.40}")
    return held or 1


def create(connection: sa.Connection) -> None:
    """Make the tables of an empty catalog."""
    metadata.create_all(connection)
    keep(connection, {"revision": 0, "counted": 0, "whole": 0, "format": FORMAT, **dict.fromkeys(COUNTS, 0)})
    digests.renew_all(connection)


def refuse_later(where: str, held: int) -> None:
    """Refuse a catalog that a later version has written.

    Raises
    ------
    CaseIndexError
    """
    if held > FORMAT:
        raise CaseIndexError(
            where, f"the catalog has format {held}, this cbir reads up to {FORMAT}", "install a later cbir"
        )


def migrate(connection: sa.Connection, schema: str | None) -> None:
    """Take all steps that are missing, within the caller's transaction."""
    if schema is None:
        connection.execute(meta.update().values(value=meta.c.value))  # waits for others who write
    else:
        connection.exec_driver_sql(f'LOCK TABLE "{schema}".meta IN ACCESS EXCLUSIVE MODE')
    while (held := held_format(connection, schema)) is not None and held < FORMAT:
        STEPS[held](connection, schema)
        keep(connection, {"format": held + 1})
        if held + 1 == FORMAT:
            digests.renew_all(connection)


def _visits_and_counts(connection: sa.Connection, schema: str | None) -> None:
    """From 1 to 2: visits have names and labels; what is counted, and what changed, is kept."""
    metadata.create_all(connection)
    place = '"cases"' if schema is None else f'"{schema}"."cases"'
    connection.exec_driver_sql(f"ALTER TABLE {place} ADD COLUMN visit VARCHAR")
    connection.exec_driver_sql(f"UPDATE {place} SET visit = {VISIT.format(cases=place)}")
    for table in metadata.tables.values():
        for index in table.indexes:
            index.create(connection, checkfirst=True)
    revision = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "revision")) or 0
    keep(connection, {"counted": revision, "whole": revision, **counted(connection)})


def _digests(connection: sa.Connection, schema: str | None) -> None:
    """From 2 to 3: rows have checksums."""
    metadata.create_all(connection)


def _measures(connection: sa.Connection, schema: str | None) -> None:
    """From 3 to 4: scans have measures."""
    metadata.create_all(connection)


STEPS: Mapping[int, Callable[[sa.Connection, str | None], None]] = {
    1: _visits_and_counts,
    2: _digests,
    3: _measures,
}
"""By the format that each leads on from."""


def lay_over(raw: sqlite3.Connection) -> None:
    """Show an earlier catalog that may not be written as one of this format, in memory."""
    held = {name for (name,) in raw.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")}
    if "meta" not in held:
        return
    (told,) = raw.execute("SELECT max(value) FROM main.meta WHERE key = 'format'").fetchone()
    if told is not None and told >= FORMAT:
        return
    raw.execute("PRAGMA temp_store=MEMORY")
    for table in metadata.tables.values():
        if table.name not in held:
            columns = ", ".join(f'"{column.name}"' for column in table.columns)
            raw.execute(f'CREATE TEMP TABLE "{table.name}" ({columns})')
    if told is None:
        visit = VISIT.format(cases="main.cases")
        raw.execute(f"CREATE TEMP VIEW cases AS SELECT *, {visit} AS visit FROM main.cases")
    others = "SELECT * FROM main.meta WHERE key != 'format'"
    raw.execute(f"CREATE TEMP TABLE meta AS {others} UNION SELECT 'format', {FORMAT}")
