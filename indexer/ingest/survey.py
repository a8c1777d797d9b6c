"""What lies below the roots of a run, and what tables say of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from indexer import reference, remote, sandbox
from indexer.case_index import CaseIndex
from indexer.discovery import summary
from indexer.errors import LabelsError, ReadError
from indexer.ingest.report import IngestReport, failure
from indexer.labels import Joined, Table, listed
from indexer.readers import Source
from indexer.roots import Root, around, recall, takes_all


@dataclass(frozen=True)
class Surveyed:
    """What lies below one root.

    Attributes
    ----------
    name : Path or str
        The root.
    sources : list of Source
    joined : Joined
        What labels tables say of them.
    inherent : dict
        What class folders, and the files themselves, say of patients.
    notes : list of str
    root : Root
        What is to be remembered, but for what the user said.
    """

    name: Path | str
    sources: list[Source]
    joined: Joined
    inherent: dict[str, dict[str, str]]
    notes: list[str]
    root: Root


def surveyed(
    index: CaseIndex,
    roots: Sequence[Path | str],
    labels: Sequence[Table],
    report: IngestReport,
    stand_ins: remote.StandIns,
    *,
    tolerant: bool,
    all_images: bool | None,
) -> list[Surveyed]:
    """What lies below each root. One without images is a failure beside others; if `tolerant`, it is none.

    Raises
    ------
    ReadError
        If no root has an image.
    LabelsError
        If a table of `labels` fits none.
    CbirError
        If a store cannot be listed.
    """
    found: list[Surveyed] = []
    errors: list[ReadError] = []
    top: Path | None
    for name in roots:
        if isinstance(name, str):
            root, top, failures = stand_ins.place(name)
            report.failed += [failure(error.where, error) for error in failures]
        else:
            root, top = name, None
        given = [*_held(index, name, labels), *labels]
        tables, notes = sandbox.find_tables(root, top, given)
        try:
            discovery = sandbox.discover(
                root,
                tables,
                all_images=takes_all(index, name) if all_images is None else all_images,
                looked=recall(index, name).looked,
            )
        except ReadError as error:
            errors.append(error)
            continue
        for what, n in discovery.taken.items():
            report.taken[what] = report.taken.get(what, 0) + n
        report.failed += [failure(e.where, e) for e in discovery.failures]
        planned = discovery.planned()
        notes += (*discovery.notes, *discovery.joined.notes)
        notes += (*summary.left_out(planned), *summary.warnings(planned))
        remembered = Root(alone=discovery.alone, looked=discovery.looked)
        found.append(Surveyed(name, discovery.sources, discovery.joined, discovery.labels, notes, remembered))
    _fit(found, labels, roots)
    if errors and len(errors) == len(roots) and not tolerant:
        raise errors[0]
    if not tolerant:
        report.failed += [failure(error.where, error) for error in errors]
    return found


def _fit(found: Sequence[Surveyed], labels: Sequence[Table], roots: Sequence[Path | str]) -> None:
    """Refuse a table that the user gave and that fits nothing below any root."""
    unfit = [{table.path for table in each.joined.unfit} if each.sources else set() for each in found]
    if unfit and (nowhere := set.intersection(*unfit) & {table.path for table in labels}):
        raise LabelsError(
            min(nowhere),
            f"none of its rows fits an image in {listed(list(map(str, roots)))}",
            "check its ids or file names, or index without it",
        )


def remembered_tables(index: CaseIndex, path: Path) -> list[Table]:
    """The labels tables that a folder, or one above it, was indexed with, as far as they are still there."""
    names = (name for root in around(index, path.absolute()) for name in root.labels)
    tables: list[Table] = []
    for name in dict.fromkeys(names):
        with suppress(LabelsError):
            tables += sandbox.load_tables(Path(name))
    return tables


def _held(index: CaseIndex, root: Path | str, labels: Sequence[Table]) -> list[Table]:
    """The labels tables that a root, or what it lies in, was indexed with, but for those given again."""
    again = {table.path for table in labels}
    tables: list[Table] = []
    for name in dict.fromkeys(name for above in around(index, root) for name in above.labels):
        try:
            tables += (table for table in sandbox.load_tables(Path(name)) if table.path not in again)
        except LabelsError as error:
            if Path(error.where).is_file():
                raise
            raise LabelsError(
                error.where, f"labelled {root} before and is gone", "give the table with --labels"
            ) from error
    return tables


def labels_of(
    index: CaseIndex, roots: Sequence[Path | str], found: Sequence[Surveyed]
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Labels of patients and of cases, by the index's ids, as they are to be filed.

    What tables said of these patients before goes, and what others say of them stays.
    """
    tables = [each.joined.labels for each in found]
    persons = _united((index.patient(p), row) for each in tables for p, row in each.persons.items())
    visits = _united((index.case(*v), row) for each in tables for v, row in each.visits.items())
    own = {index.patient(p): row for each in found for p, row in each.inherent.items()}
    persons = own | {patient: own.get(patient, {}) | row for patient, row in persons.items()}
    joined = [source for each in found if each.joined.labels.columns for source in each.sources]
    patients = {index.patient(source.patient_id) for source in joined}
    # a reference case steps aside for its patient's own scans, with its labels
    elsewhere = index.catalog.labels_beyond(map(str, roots), patients | persons.keys(), reference.PREFIX)
    for patient in patients - elsewhere.keys():
        persons.setdefault(patient, {})
    for patient in persons.keys() & elsewhere.keys():
        persons[patient] = elsewhere[patient] | persons[patient]
    for source in joined:
        if index.patient(source.patient_id) not in elsewhere:
            visits.setdefault(index.case(source.patient_id, source.study_id), {})
    return persons, visits


def _united(rows: Iterable[tuple[str, Mapping[str, str]]]) -> dict[str, dict[str, str]]:
    """Labels of one thing, together."""
    united: dict[str, dict[str, str]] = {}
    for name, row in rows:
        if name.isprintable():  # else it is not filed
            united.setdefault(name, {}).update(row)
    return united


def gone(
    index: CaseIndex,
    sources: Mapping[str, Source],
    roots: Sequence[Path | str],
    stand_ins: remote.StandIns,
) -> list[str]:
    """Names in the index at or below the roots that discovery no longer finds and the disk no longer has."""
    held = dict.fromkeys(path for root in roots for path in index.catalog.fingerprints(str(root)))
    return [
        path
        for path in held
        if path not in sources
        and any(Path(path).is_relative_to(root) for root in roots)
        and not stand_ins.path(path).exists()
    ]
