"""One change of the catalog: what is written within a transaction, and what has to be counted of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

import indexer.catalog.digests as digests
from indexer.catalog.blocks import blocks
from indexer.catalog.contents import numbers
from indexer.catalog.records import EmbeddedScan, Entry, ScanRow, SliceRow
from indexer.catalog.schema import (
    cases,
    changed,
    failures,
    labels,
    measures,
    meta,
    removed,
    scans,
    slices,
    sources,
    strangeness,
    trained_on,
    visit_labels,
)
from indexer.sequences import COMPOSITE

OWN = scans.c.sequence.is_distinct_from(COMPOSITE)
"""Composites are no scans of their own, but their slices are filed like others."""
COUNTS = ("cases", "scans", "slices", "sources", "patients")


class Change:
    """What one transaction writes; :meth:`commit` ends it, and nothing it has not seen is read.

    Parameters
    ----------
    connection : sqlalchemy.Connection
    """

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        held = {"counted": 0, **numbers(connection)}
        self._revision = held.get("revision", 0) + 1
        # an earlier version of cbir that is still running writes, and counts nothing
        self._uncounted = held["counted"] != self._revision - 1
        self._whole = self._uncounted
        self._counts: Counter[str] = Counter()
        self._patients: set[str] = set()
        self._went: set[int] = set()
        self._maybe_empty: set[int] = set()
        self._sources: set[int] = set()
        self._failures = False

    def commit(self) -> None:
        """Advance the revision, and say what has changed since the last one."""
        self._drop_empty_cases()
        execute = self._connection.execute
        if self._uncounted:
            keep(self._connection, counted(self._connection))
        else:
            for name, more in self._counts.items():
                if more:
                    execute(meta.update().where(meta.c.key == name).values(value=meta.c.value + more))
        if self._whole:
            for table in (removed, changed):
                went = execute(sa.select(table)).all()
                execute(table.delete())
                digests.advance(self._connection, table, (), went)
            keep(self._connection, {"whole": self._revision})
        else:
            if self._went:
                lost = [{"scan": scan, "revision": self._revision} for scan in sorted(self._went)]
                execute(removed.insert(), lost)
                digests.advance(self._connection, removed, (row.values() for row in lost), ())
            for block in blocks(sorted(self._patients)):
                held = changed.c.patient_id.in_(block)
                went = execute(sa.select(changed).where(held)).all()
                execute(changed.delete().where(held))
                rows = [{"patient_id": patient, "revision": self._revision} for patient in block]
                execute(changed.insert(), rows)
                digests.advance(self._connection, changed, (row.values() for row in rows), went)
        keep(self._connection, {"revision": self._revision, "counted": self._revision})
        if self._uncounted:
            digests.renew_all(self._connection)
        else:
            digests.renew(
                self._connection,
                sources=self._sources,
                patients=self._patients,
                tables=(meta.name, *([failures.name] if self._failures else [])),
            )

    def file(self, entries: Sequence[Entry]) -> None:
        """Insert sources with what they hold, in the place of those of the same names."""
        execute = self._connection.execute
        embedded = [scan for entry in entries for scan in entry.scans]
        paths = [entry.path for entry in entries]
        self.take_out(paths)
        for block in blocks(paths):
            known = failures.c.path.in_(block)
            if self._connection.scalar(sa.select(sa.exists().where(known))):
                execute(failures.delete().where(known))
                self._failures = True
        source_ids = self._inserted(
            sources,
            [{"path": e.path, "fingerprint": e.fingerprint, "record": dict(e.record)} for e in entries],
        )
        self._sources |= set(source_ids)
        case_ids = self._case_ids({scan.case_id: scan for scan in embedded})
        rows = [
            ScanRow.of(scan, source, case_ids[scan.case_id], number)
            for source, entry in zip(source_ids, entries, strict=True)
            for number, scan in enumerate(entry.scans)
        ]
        scan_ids = self._inserted(scans, [vars(row) for row in rows])
        filed = list(zip(scan_ids, embedded, strict=True))
        slice_rows = [vars(row) for scan_id, scan in filed for row in SliceRow.of(scan_id, scan)]
        if slice_rows:
            execute(slices.insert(), slice_rows)
        strange = [(i, scan.strangeness) for i, scan in filed if math.isfinite(scan.strangeness)]
        if strange:
            execute(strangeness.insert(), [{"scan": i, "value": float(value)} for i, value in strange])
        vectors = [(i, scan.measures) for i, scan in filed if scan.measures is not None]
        if vectors:
            told = [{"scan": i, "vector": vector.astype("<f4").tobytes()} for i, vector in vectors]
            execute(measures.insert(), told)
        own = [row for row in rows if row.sequence != COMPOSITE]
        self._counts["scans"] += len(own)
        self._counts["sources"] += len({row.source for row in own})
        self._counts["slices"] += len(slice_rows)
        self._set_trained_on({scan.patient_id: scan.in_sample for scan in embedded})

    def take_out(self, paths: Iterable[str]) -> int:
        """Take sources out, with their scans and slices; returns how many there were."""
        gone = 0
        for block in blocks(paths):
            chosen = sa.select(sources.c.id).where(sources.c.path.in_(block))
            ids = list(self._connection.scalars(chosen))
            self._sources |= set(ids)
            if ids:
                self._scans_go(scans.c.source.in_(ids))
                self._counts["sources"] -= self._own_sources(ids)
                self._connection.execute(sources.delete().where(sources.c.id.in_(ids)))
            gone += len(ids)
        return gone

    def remove_cases(self, case_ids: Iterable[str]) -> int:
        """Take cases out, with the sources that hold nothing else; returns how many there were."""
        gone = 0
        for block in blocks(case_ids):
            held = sa.select(cases.c.id).where(cases.c.case_id.in_(block))
            ids = list(self._connection.scalars(held))
            of = scans.c.case.in_(ids)
            own = list(self._connection.scalars(sa.select(scans.c.source).distinct().where(of)))
            self._sources |= set(own)
            self._scans_go(of)
            for some in blocks(own):
                self._counts["sources"] -= self._own_sources(some)
            self._connection.execute(scans.delete().where(of))
            for some in blocks(own):
                self._counts["sources"] += self._own_sources(some)
                unused = sources.c.id.in_(some), ~sa.exists().where(scans.c.source == sources.c.id)
                self._connection.execute(sources.delete().where(*unused))
            self._maybe_empty |= set(ids)
            gone += len(ids)
        return gone

    def rename(self, old: str, new: str) -> None:
        """A source lies elsewhere."""
        self.take_out([new])
        which = sources.c.path == old
        self._sources |= set(self._connection.scalars(sa.select(sources.c.id).where(which)))
        self._connection.execute(sources.update().where(which).values(path=new))
        self._whole = True

    def set_labels(self, table: Mapping[str, Mapping[str, str]]) -> bool:
        """Replace the labels of the given patients; whether any were others before."""
        held = self._held(labels, labels.c.patient_id, table)
        differ = {patient: new for patient, new in table.items() if held.get(patient, {}) != dict(new)}
        self._replace(labels, "patient_id", differ)
        self._patients |= differ.keys()
        return bool(differ)

    def set_visit_labels(self, table: Mapping[str, Mapping[str, str]]) -> bool:
        """Replace the labels of the visits of the given cases; whether any were others before."""
        found = self._cases_called(table)
        held = self._held(visit_labels, visit_labels.c.case, [row.id for row in found.values()])
        differ = {
            row.id: table[case_id]
            for case_id, row in found.items()
            if held.get(row.id, {}) != dict(table[case_id])
        }
        self._replace(visit_labels, "case", differ)
        self._patients |= {row.patient_id for row in found.values() if row.id in differ}
        return bool(differ)

    def set_visits(self, visits: Mapping[str, str | None]) -> bool:
        """What the visits of the given cases are called; whether any were called otherwise."""
        found = self._cases_called(visits)
        differ = {row.id: visits[name] for name, row in found.items() if row.visit != visits[name]}
        for case, visit in differ.items():
            self._connection.execute(cases.update().where(cases.c.id == case).values(visit=visit))
        self._patients |= {row.patient_id for row in found.values() if row.id in differ}
        return bool(differ)

    # ---- steps ---------------------------------------------------------------------------------

    def _inserted(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Insert rows; their new ids, in the same order."""
        if not rows:
            return []
        statement = table.insert().returning(table.c.id, sort_by_parameter_order=True)
        return list(self._connection.scalars(statement, list(rows)))

    def _cases_called(self, case_ids: Iterable[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for block in blocks(case_ids):
            rows = self._connection.execute(sa.select(cases).where(cases.c.case_id.in_(block)))
            found |= {row.case_id: row for row in rows}
        return found

    def _known(self, patients: Iterable[str]) -> set[str]:
        """Those of the patients who have a case."""
        found: set[str] = set()
        for block in blocks(patients):
            held = sa.select(cases.c.patient_id).where(cases.c.patient_id.in_(block))
            found |= set(self._connection.scalars(held))
        return found

    def _case_ids(self, wanted: Mapping[str, EmbeddedScan]) -> dict[str, int]:
        """Row ids of cases, each given with one of its scans; new ones are inserted."""
        found = {name: row.id for name, row in self._cases_called(wanted).items()}
        new = {name: scan for name, scan in wanted.items() if name not in found}
        rows = [
            {"case_id": name, "patient_id": scan.patient_id, "visit": scan.visit}
            for name, scan in new.items()
        ]
        patients = {scan.patient_id for scan in new.values()}
        self._counts["patients"] += len(patients - self._known(patients))
        self._counts["cases"] += len(rows)
        self.set_visits({name: scan.visit for name, scan in wanted.items() if name in found})
        self._patients |= {scan.patient_id for scan in wanted.values()}
        return found | dict(zip(new, self._inserted(cases, rows), strict=True))

    def _scans_go(self, condition: sa.ColumnElement[bool]) -> None:
        """Count scans that are about to be deleted."""
        rows = self._connection.execute(
            sa.select(scans.c.id, scans.c.case, OWN.label("own")).where(condition)
        )
        found = rows.all()
        counting = sa.select(sa.func.count()).select_from(slices)
        for block in blocks(row.id for row in found):
            self._counts["slices"] -= self._connection.scalar(counting.where(slices.c.scan.in_(block))) or 0
        self._counts["scans"] -= sum(bool(row.own) for row in found)
        self._went |= {row.id for row in found}
        self._maybe_empty |= {row.case for row in found}

    def _own_sources(self, ids: Sequence[int]) -> int:
        """How many of these sources hold a scan of their own."""
        counting = sa.select(sa.func.count(scans.c.source.distinct()))
        return self._connection.scalar(counting.where(scans.c.source.in_(ids), OWN)) or 0

    def _drop_empty_cases(self) -> None:
        empty, self._maybe_empty = self._maybe_empty, set()
        for block in blocks(sorted(empty)):
            unused = cases.c.id.in_(block), ~sa.exists().where(scans.c.case == cases.c.id)
            patients = list(self._connection.scalars(sa.select(cases.c.patient_id).where(*unused)))
            self._connection.execute(cases.delete().where(*unused))
            gone = set(patients) - self._known(set(patients))
            self._counts["cases"] -= len(patients)
            self._counts["patients"] -= len(gone)
            self._patients |= set(patients)
            for table in (labels, trained_on):
                self._connection.execute(table.delete().where(table.c.patient_id.in_(gone)))

    def _held(self, table: sa.Table, column: Any, keys: Iterable[Any]) -> dict[Any, dict[str, str]]:
        held: dict[Any, dict[str, str]] = {}
        for block in blocks(keys):
            chosen = sa.select(column, table.c.name, table.c.value).where(column.in_(block))
            for key, name, value in self._connection.execute(chosen):
                held.setdefault(key, {})[name] = value
        return held

    def _replace(self, table: sa.Table, key: str, values: Mapping[Any, Mapping[str, str]]) -> None:
        for block in blocks(values):
            self._connection.execute(table.delete().where(table.c[key].in_(block)))
        rows = [
            {key: of, "name": name, "value": value}
            for of, named in values.items()
            for name, value in named.items()
        ]
        if rows:
            self._connection.execute(table.insert(), rows)

    def _set_trained_on(self, patients: Mapping[str, bool]) -> None:
        for block in blocks(patients):
            self._connection.execute(trained_on.delete().where(trained_on.c.patient_id.in_(block)))
        if seen := [{"patient_id": patient} for patient, yes in patients.items() if yes]:
            self._connection.execute(trained_on.insert(), seen)


def keep(connection: sa.Connection, values: Mapping[str, int]) -> None:
    """Set numbers of the catalog as a whole."""
    for key, value in values.items():
        connection.execute(meta.delete().where(meta.c.key == key))
        connection.execute(meta.insert().values(key=key, value=value))


def counted(connection: sa.Connection) -> dict[str, int]:
    """How many there are of each of :data:`COUNTS`, by looking at all of them."""
    every = {
        "cases": sa.select(sa.func.count()).select_from(cases),
        "scans": sa.select(sa.func.count()).select_from(scans).where(OWN),
        "slices": sa.select(sa.func.count()).select_from(slices),
        "sources": sa.select(sa.func.count(sa.distinct(scans.c.source))).where(OWN),
        "patients": sa.select(sa.func.count(sa.distinct(cases.c.patient_id))),
    }
    return {name: int(connection.scalar(every[name]) or 0) for name in COUNTS}
