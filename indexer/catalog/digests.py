"""Checksums of the catalog's rows, so that a flipped bit in any of them is noticed.

A source has one with its scans and slices (whose embeddings have their own), a patient one with its cases,
visits and labels; what belongs to neither has one a table, and the history one a row. A change writes those
of what it touches, so its cost does not depend on how much there is.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from indexer.catalog.blocks import blocks
from indexer.catalog.schema import (
    cases,
    changed,
    digests,
    failures,
    history,
    labels,
    measures,
    meta,
    removed,
    roots,
    scans,
    slices,
    sources,
    strangeness,
    trained_on,
    visit_labels,
)

SOURCE, PATIENT, TABLE, ROW, SCHEMA = "source", "patient", "table", "row", "schema"
NUMBERS = "meta"
"""The table of numbers of the catalog as a whole; on SQLite its counters of ids are taken with it."""


def renew(
    connection: sa.Connection,
    *,
    sources: Iterable[int] = (),
    patients: Iterable[str] = (),
    tables: Iterable[str] = (),
) -> None:
    """Take down what is there now of these sources, patients and tables; nothing of those that went."""
    for kind, keys, found in (
        (SOURCE, map(str, sources), of_sources),
        (PATIENT, patients, of_patients),
        (TABLE, tables, of_tables),
    ):
        for block in blocks(keys):
            _set(connection, kind, block, dict(found(connection, block)))


def renew_all(connection: sa.Connection) -> None:
    """Take down everything as it is now."""
    connection.execute(digests.delete())
    everything = _expected(connection)
    for block in blocks({"kind": k, "key": key, "digest": d} for (k, key), d in everything):
        connection.execute(digests.insert(), block)


def append(connection: sa.Connection, row: int) -> None:
    """Take down a new line of the history."""
    _set(connection, ROW, [str(row)], dict(of_history(connection, sa.and_(history.c.id == row))))


def wrong(connection: sa.Connection) -> Iterator[tuple[str, str]]:
    """What is not as it was written, or is there without having been: kind and key."""
    held = {(row.kind, row.key): row.digest for row in connection.execute(sa.select(digests))}
    if not held:  # of an earlier version
        return
    for place, digest in _expected(connection):
        if held.pop(place, None) != digest:
            yield place
    yield from held


def advance(connection: sa.Connection, table: sa.Table, came: Iterable[Any], went: Iterable[Any]) -> None:
    """Count rows in, and out, of the sum of a table whose rows come and go one by one."""
    held = connection.scalar(sa.select(digests.c.digest).where(*_is(TABLE, table.name)))
    total = int(held or "0", 16) + sum(map(_number, came)) - sum(map(_number, went))
    _set(connection, TABLE, [table.name], {table.name: _hex(total)})


def of_sources(connection: sa.Connection, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Digests of sources with their scans and slices."""
    ids = [int(key) for key in keys]
    held_scans = connection.execute(
        sa.select(scans).where(scans.c.source.in_(ids)).order_by(scans.c.id)
    ).all()
    of_source, of_scan = defaultdict(list), defaultdict(list)
    columns = (slices.c.scan, slices.c.id, slices.c.position, slices.c.view, slices.c.weight)
    for block in blocks(row.id for row in held_scans):
        for table, what in ((slices, columns), (strangeness, strangeness.c), (measures, measures.c)):
            rows = sa.select(*what).where(table.c.scan.in_(block)).order_by(*table.primary_key)
            for row in connection.execute(rows):
                of_scan[row.scan].append(list(row))
    for row in held_scans:
        of_source[row.source].append([*row, of_scan[row.id]])
    for row in connection.execute(sa.select(sources).where(sources.c.id.in_(ids))):
        yield str(row.id), _digest([*row, of_source[row.id]])


def of_patients(connection: sa.Connection, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Digests of patients with their cases and labels."""
    patients = list(keys)
    told: dict[str, list[Any]] = defaultdict(list)
    for row in connection.execute(
        sa.select(cases).where(cases.c.patient_id.in_(patients)).order_by(cases.c.id)
    ):
        told[row.patient_id].append(["case", *row])
    of_visits = sa.select(cases.c.patient_id, visit_labels).join(cases, cases.c.id == visit_labels.c.case)
    for row in connection.execute(of_visits.where(cases.c.patient_id.in_(patients))):
        told[row.patient_id].append(["visit", *row])
    for table in (labels, trained_on):
        for row in connection.execute(sa.select(table).where(table.c.patient_id.in_(patients))):
            told[row.patient_id].append([table.name, *row])
    for patient, rows in told.items():
        yield patient, _digest(sorted(map(_text, rows)))


def of_tables(connection: sa.Connection, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Digests of whole tables, which are small."""
    known = {table.name: table for table in (meta, roots, failures)}
    for name in keys:
        rows = [_text(list(row)) for row in connection.execute(sa.select(known[name]))]
        if name == NUMBERS and connection.dialect.name == "sqlite":
            counters = connection.exec_driver_sql("SELECT name, seq FROM sqlite_sequence")
            rows += [_text(["counter", *row]) for row in counters]
        yield name, _digest(sorted(rows))


def of_history(connection: sa.Connection, *which: sa.ColumnElement[bool]) -> Iterator[tuple[str, str]]:
    """Digests of lines of the history."""
    for row in connection.execute(sa.select(history).where(*which)):
        yield str(row.id), _digest(list(row))


def _expected(connection: sa.Connection) -> Iterator[tuple[tuple[str, str], str]]:
    """Everything by kind and key."""
    patients = {patient for table in (cases, labels, trained_on) for patient in _patients(connection, table)}
    of = {
        SOURCE: (of_sources, map(str, connection.scalars(sa.select(sources.c.id)).all())),
        PATIENT: (
            of_patients,
            sorted(patients),
        ),
        TABLE: (of_tables, (meta.name, roots.name, failures.name)),
    }
    for kind, (found, keys) in of.items():
        for block in blocks(keys):
            for key, digest in found(connection, block):
                yield (kind, key), digest
    for key, digest in of_history(connection):
        yield (ROW, key), digest
    for table in (removed, changed):
        yield (TABLE, table.name), _hex(sum(map(_number, connection.execute(sa.select(table)))))
    if connection.dialect.name == "sqlite":
        tables = connection.exec_driver_sql("SELECT type, name, tbl_name, sql FROM sqlite_master").all()
        yield (SCHEMA, ""), _digest(sorted(_text(list(row)) for row in tables))


def _patients(connection: sa.Connection, table: sa.Table) -> Iterable[str]:
    return connection.scalars(sa.select(table.c.patient_id).distinct())


def _set(connection: sa.Connection, kind: str, keys: list[str], found: dict[str, str]) -> None:
    connection.execute(digests.delete().where(digests.c.kind == kind, digests.c.key.in_(keys)))
    if found:
        rows = [{"kind": kind, "key": key, "digest": digest} for key, digest in found.items()]
        connection.execute(digests.insert(), rows)


def _is(kind: str, key: str) -> tuple[sa.ColumnElement[bool], ...]:
    return digests.c.kind == kind, digests.c.key == key


def _text(rows: Any) -> str:
    return json.dumps(rows, sort_keys=True, default=repr)


def _digest(rows: Any) -> str:
    return hashlib.sha256(_text(rows).encode(errors="surrogatepass")).hexdigest()


def _number(row: Any) -> int:
    return int(_digest(list(row)), 16)


def _hex(total: int) -> str:
    return f"{total % 2**256:064x}"
