"""All of the catalog but the embeddings, as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from indexer.atlas import LOBES
from indexer.catalog.blocks import blocks
from indexer.catalog.schema import (
    cases,
    changed,
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
from indexer.measures import NAMES, Measures
from indexer.scan import ScanRef
from indexer.view import LENGTH

MOST = 2**62
"""Above whatever is counted."""
LARGEST = 2**24
"""Voxels along an axis, at most."""
ROWS = 20_000
"""Rows read at a time."""


@dataclass(frozen=True)
class Contents:
    """All of the catalog but the embeddings, as arrays: one consistent state.

    Attributes
    ----------
    revision : int
    case_rows : ndarray of int64
        Ids of the cases' rows, ascending.
    case_ids, patient_ids : list of str
        One entry a case.
    visits : list of str or None
        What the visit of each case is called; None for a patient's only one, without a name.
    labels : list of dict
        One entry a case: the patient's, overlaid by the visit's.
    in_sample : ndarray of bool
        For each case whether the encoder was trained on its patient.
    scan_ids : ndarray of int64
        Ascending.
    scan_case : ndarray of int64
        For each scan the position of its case in `case_ids`.
    scan_sequence : list of str or None
    scan_source : list of str
    scan_number : ndarray of int64
        For each scan its number among those of its source.
    scan_shape : list of tuple of int
        Of the voxels that were embedded.
    scan_strangeness : ndarray of float32
        NaN where it is unknown.
    scan_measures : ndarray of float32, shape (scans, measures)
        Of the lesion, in the order of :data:`indexer.measures.NAMES`; NaN where they are unknown.
    scan_views : ndarray of float16, shape (scans, numbers)
        From where each shows it (:mod:`indexer.view`); NaN where that is unknown.
    scan_lobes : ndarray of uint8, shape (scans,)
        Where it is, by its place in :data:`indexer.atlas.LOBES`.
    slice_ids : ndarray of int64
        Ascending.
    slice_scan : ndarray of int64
        For each slice the position of its scan.
    slice_position, slice_view, slice_weight : ndarray
    """

    revision: int
    case_rows: NDArray[np.int64]
    case_ids: list[str]
    patient_ids: list[str]
    visits: list[str | None]
    labels: list[dict[str, str]]
    in_sample: NDArray[np.bool_]
    scan_ids: NDArray[np.int64]
    scan_case: NDArray[np.int64]
    scan_sequence: list[str | None]
    scan_source: list[str]
    scan_number: NDArray[np.int64]
    scan_shape: list[tuple[int, ...]]
    scan_strangeness: NDArray[np.float32]
    scan_measures: NDArray[np.float32]
    scan_views: NDArray[np.float16]
    scan_lobes: NDArray[np.uint8]
    slice_ids: NDArray[np.int64]
    slice_scan: NDArray[np.int64]
    slice_position: NDArray[np.int64]
    slice_view: NDArray[np.uint8]
    slice_weight: NDArray[np.float32]

    def scan_ref(self, place: int) -> ScanRef:
        """Which scan the one at this place is."""
        return ScanRef(self.scan_source[place], int(self.scan_number[place]))

    def cases_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """For some slices the position of their case."""
        return self.scan_case[self.slice_scan[rows]]

    def rows_of(self, scans: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slices of some scans, by position; ascending."""
        if not self._filed_in_order:
            return np.flatnonzero(np.isin(self.slice_scan, scans))
        scans = np.unique(scans)
        first = np.searchsorted(self.slice_scan, scans)
        count = np.searchsorted(self.slice_scan, scans, "right") - first
        before = np.cumsum(count) - count
        return np.repeat(first - before, count) + np.arange(count.sum())

    def rows_of_cases(self, cases: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slices of some cases, by position; ascending."""
        wanted = np.zeros(len(self.case_ids), bool)
        wanted[cases] = True
        return self.rows_of(np.flatnonzero(wanted[self.scan_case]))

    def cases_with(self, scans: Sequence[int]) -> NDArray[np.int64]:
        """The positions of the cases of scans with these ids, shape (n,); −1 where there is no such scan."""
        wanted = np.array(scans, np.int64)
        if not len(self.scan_ids):
            return np.full(len(wanted), -1)
        place = np.searchsorted(self.scan_ids, wanted).clip(max=len(self.scan_ids) - 1)
        return np.where(self.scan_ids[place] == wanted, self.scan_case[place], -1)

    @cached_property
    def _filed_in_order(self) -> bool:
        """Whether slices lie by scan, as they are filed."""
        return bool((self.slice_scan[1:] >= self.slice_scan[:-1]).all())


def nothing() -> Contents:
    """Of an empty catalog."""
    ints = np.empty(0, np.int64)
    return Contents(
        revision=0,
        case_rows=ints,
        case_ids=[],
        patient_ids=[],
        visits=[],
        labels=[],
        in_sample=np.empty(0, bool),
        scan_ids=ints,
        scan_case=ints,
        scan_sequence=[],
        scan_source=[],
        scan_number=ints,
        scan_shape=[],
        scan_strangeness=np.empty(0, np.float32),
        scan_measures=np.empty((0, len(NAMES)), np.float32),
        scan_views=np.empty((0, LENGTH), np.float16),
        scan_lobes=np.empty(0, np.uint8),
        slice_ids=ints,
        slice_scan=ints,
        slice_position=ints,
        slice_view=np.empty(0, np.uint8),
        slice_weight=np.empty(0, np.float32),
    )


def people(connection: sa.Connection) -> Contents:
    """Cases with their labels alone: of scans and slices, which are many more, nothing is read."""
    known = _with_cases(nothing(), _cases(connection, None), None)
    return replace(known, revision=numbers(connection).get("revision", 0))


def numbers(connection: sa.Connection) -> dict[str, int]:
    """The numbers of the catalog as a whole.

    Raises
    ------
    ValueError
        If one of them is none that is counted.
    """
    held = {row.key: row.value for row in connection.execute(sa.select(meta))}
    for key, value in held.items():
        _require(type(value) is int and 0 <= value < MOST, f"{key} is {value!r:.40}")
    return held


def _require(true: bool | np.bool_, what: str) -> None:
    """Refuse what cbir does not write."""
    if not true:
        raise ValueError(what)


def read(connection: sa.Connection, since: Contents | None = None) -> Contents:
    """What is in the catalog now.

    Parameters
    ----------
    connection : sqlalchemy.Connection
        In a transaction that sees one state.
    since : Contents, optional
        An earlier state: only what has changed is read where the catalog can say what that is.
    """
    held = numbers(connection)
    now = held.get("revision", 0)
    if since is not None and since.revision == now:
        return since
    in_parts = held.get("counted") == now and since is not None and held["whole"] <= since.revision < now
    if since is None or not in_parts:
        new = _with_cases(nothing(), _cases(connection, None), None)
    else:
        later = changed.c.revision > since.revision
        touched = set(connection.scalars(sa.select(changed.c.patient_id).where(later)))
        went = connection.scalars(sa.select(removed.c.scan).where(removed.c.revision > since.revision))
        new = _without_scans(since, np.array(list(went), np.int64))
        new = _with_cases(new, _cases(connection, touched), touched)
    new = _with_scans(connection, new)
    return replace(_with_slices(connection, new), revision=now)


@dataclass(frozen=True)
class _Case:
    row: int
    case_id: str
    patient_id: str
    visit: str | None
    labels: dict[str, str]
    in_sample: bool


def _cases(connection: sa.Connection, patients: set[str] | None) -> list[_Case]:
    """Cases of these patients, or all, by ascending row."""

    def rows(what: sa.Select[Any], column: Any) -> Iterator[Any]:
        if patients is None:
            return iter(connection.execute(what))
        chosen = (what.where(column.in_(block)) for block in blocks(patients))
        return chain.from_iterable(connection.execute(one) for one in chosen)

    of_patient: dict[str, dict[str, str]] = {}
    for row in rows(sa.select(labels), labels.c.patient_id):
        of_patient.setdefault(row.patient_id, {})[row.name] = row.value
    of_visit: dict[int, dict[str, str]] = {}
    visits = sa.select(visit_labels).join(cases, cases.c.id == visit_labels.c.case)
    for row in rows(visits, cases.c.patient_id):
        of_visit.setdefault(row.case, {})[row.name] = row.value
    seen = {row.patient_id for row in rows(sa.select(trained_on), trained_on.c.patient_id)}
    found = [
        _Case(
            row.id,
            row.case_id,
            row.patient_id,
            row.visit,
            {**of_patient.get(row.patient_id, {}), **of_visit.get(row.id, {})},
            row.patient_id in seen,
        )
        for row in rows(sa.select(cases), cases.c.patient_id)
    ]
    for case in found:
        texts = [case.case_id, case.patient_id, case.visit or "", *case.labels, *case.labels.values()]
        _require(all(type(text) is str for text in texts), f"case {case.row} has a name that is no text")
    return sorted(found, key=lambda case: case.row)


def _with_cases(old: Contents, now: Sequence[_Case], patients: set[str] | None) -> Contents:
    """The cases of these patients are those given; of others they stay."""
    touched = [] if patients is None else [i for i, p in enumerate(old.patient_ids) if p in patients]
    by_row = {case.row: case for case in now}
    ids, whose = list(old.case_ids), list(old.patient_ids)
    visits, told, seen = list(old.visits), list(old.labels), old.in_sample.tolist()
    gone = []
    for place in touched:
        case = by_row.pop(int(old.case_rows[place]), None)
        if case is None:
            gone.append(place)
        else:
            visits[place], told[place], seen[place] = case.visit, case.labels, case.in_sample
    rows, scan_case = old.case_rows, old.scan_case
    if gone:
        stays = np.ones(len(ids), bool)
        stays[gone] = False
        for column in (ids, whose, visits, told, seen):
            for place in reversed(gone):
                del column[place]
        rows, scan_case = rows[stays], (np.cumsum(stays) - 1)[scan_case]
    new = list(by_row.values())
    return replace(
        old,
        case_rows=np.append(rows, np.array([case.row for case in new], np.int64)),
        case_ids=ids + [case.case_id for case in new],
        patient_ids=whose + [case.patient_id for case in new],
        visits=visits + [case.visit for case in new],
        labels=told + [case.labels for case in new],
        in_sample=np.array(seen + [case.in_sample for case in new], bool),
        scan_case=scan_case,
    )


def _without_scans(old: Contents, went: NDArray[np.int64]) -> Contents:
    """Less these scans, with their slices."""
    stays = ~np.isin(old.scan_ids, went)
    if stays.all():
        return old
    places = np.flatnonzero(stays).tolist()
    kept = stays[old.slice_scan]
    return replace(
        old,
        scan_ids=old.scan_ids[stays],
        scan_case=old.scan_case[stays],
        scan_sequence=[old.scan_sequence[i] for i in places],
        scan_source=[old.scan_source[i] for i in places],
        scan_number=old.scan_number[stays],
        scan_shape=[old.scan_shape[i] for i in places],
        scan_strangeness=old.scan_strangeness[stays],
        scan_measures=old.scan_measures[stays],
        scan_views=old.scan_views[stays],
        scan_lobes=old.scan_lobes[stays],
        slice_ids=old.slice_ids[kept],
        slice_scan=(np.cumsum(stays) - 1)[old.slice_scan[kept]],
        slice_position=old.slice_position[kept],
        slice_view=old.slice_view[kept],
        slice_weight=old.slice_weight[kept],
    )


def _with_scans(connection: sa.Connection, old: Contents) -> Contents:
    """More: the scans that came after the last one."""
    last = int(old.scan_ids[-1]) if len(old.scan_ids) else 0  # ids only grow
    columns = (scans.c.id, scans.c.case, scans.c.sequence, scans.c.channel, scans.c.shape)
    new = connection.execute(
        sa.select(*columns, sources.c.path, strangeness.c.value, measures.c.vector)
        .join(sources, sources.c.id == scans.c.source)
        .join(strangeness, strangeness.c.scan == scans.c.id, isouter=True)
        .join(measures, measures.c.scan == scans.c.id, isouter=True)
        .where(scans.c.id > last)
        .order_by(scans.c.id)
    ).all()
    rows = np.array([row.case for row in new], np.int64)
    _require(np.isin(rows, old.case_rows).all(), "a scan is of no case")
    for row in new:
        of_space = isinstance(row.shape, list) and 0 < len(row.shape) <= 4
        _require(
            of_space
            and all(type(n) is int and 0 < n <= LARGEST for n in row.shape)
            and type(row.path) is str
            and (row.sequence is None or type(row.sequence) is str)
            and type(row.channel) is int
            and 0 <= row.channel < LARGEST,
            f"scan {row.id} is described as none is",
        )
    measured = [_measured(row.vector) for row in new]
    return replace(
        old,
        scan_ids=np.append(old.scan_ids, np.array([row.id for row in new], np.int64)),
        scan_case=np.append(old.scan_case, np.searchsorted(old.case_rows, rows)),
        scan_sequence=old.scan_sequence + [row.sequence for row in new],
        scan_source=old.scan_source + [row.path for row in new],
        scan_number=np.append(old.scan_number, np.array([row.channel for row in new], np.int64)),
        scan_shape=old.scan_shape + [tuple(row.shape) for row in new],
        scan_strangeness=np.append(  # None becomes NaN
            old.scan_strangeness, np.array([row.value for row in new], np.float32)
        ),
        scan_measures=np.append(
            old.scan_measures,
            np.array([one.numbers for one in measured], np.float32).reshape(-1, len(NAMES)),
            0,
        ),
        scan_views=np.append(
            old.scan_views, np.array([one.view for one in measured], np.float16).reshape(-1, LENGTH), 0
        ),
        scan_lobes=np.append(old.scan_lobes, np.array([LOBES.index(one.lobe) for one in measured], np.uint8)),
    )


def _measured(vector: Any) -> Measures:
    """Measures as they were filed; unknown where they are none of ours, or of a version yet to come."""
    if not isinstance(vector, bytes) or len(vector) % 4:
        return Measures()
    try:
        return Measures.from_vector(np.frombuffer(vector, "<f4").astype(np.float32))
    except ValueError:
        return Measures()


def _with_slices(connection: sa.Connection, old: Contents) -> Contents:
    """More: the slices that came after the last one."""
    last = int(old.slice_ids[-1]) if len(old.slice_ids) else 0
    rows = connection.execute(
        sa.select(slices.c.id, slices.c.scan, slices.c.position, slices.c.view, slices.c.weight)
        .where(slices.c.id > last)
        .order_by(slices.c.id),
        execution_options={"yield_per": ROWS},
    )
    # a block at a time: as objects the rows of ten million slices take gigabytes
    found = [np.array(list(zip(*block, strict=True)), float) for block in rows.partitions()]
    columns = np.concatenate(found or [np.empty((5, 0))], axis=1)
    _require(np.isfinite(columns).all() and (columns >= 0).all(), "a slice has a number that none has")
    _require((columns[:4] < MOST).all() and (columns[2] < LARGEST).all(), "a slice has too large a number")
    _require(np.isin(columns[1].astype(np.int64), old.scan_ids).all(), "a slice is of no scan")
    return replace(
        old,
        slice_ids=np.append(old.slice_ids, columns[0].astype(np.int64)),
        slice_scan=np.append(old.slice_scan, np.searchsorted(old.scan_ids, columns[1].astype(np.int64))),
        slice_position=np.append(old.slice_position, columns[2].astype(np.int64)),
        slice_view=np.append(old.slice_view, columns[3].astype(np.uint8)),
        slice_weight=np.append(old.slice_weight, columns[4].astype(np.float32)),
    )
