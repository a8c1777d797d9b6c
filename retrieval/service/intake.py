"""Folders of images that came over the network: read for a question, or filed in the index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cbir.index import Index
from indexer import sandbox
from indexer.discovery import Discovery
from indexer.errors import CbirError, ReadError
from indexer.ingest.filing import GROUP
from indexer.labels import Labels
from indexer.readers import Source
from indexer.scan import Scan
from retrieval.service.log import tell
from retrieval.service.reasons import told
from retrieval.service.spool import is_uid, spool, sweep, take_out


@dataclass
class Taken:
    """What became of the images of a folder.

    Attributes
    ----------
    indexed, unchanged : int
        Scans.
    embedded : int
        Slices that the network saw.
    failed : list of str
        Reasons.
    patients : set of str
        Pseudonyms.
    """

    indexed: int = 0
    unchanged: int = 0
    embedded: int = 0
    failed: list[str] = field(default_factory=list)
    patients: set[str] = field(default_factory=set)


def discovered(folder: Path) -> Discovery:
    """What there is in a folder, with what the labels tables in it say.

    Raises
    ------
    ReadError, LabelsError
    """
    members = list(folder.iterdir())
    if len(members) == 1 and members[0].is_file():
        return sandbox.discover(members[0])
    tables, _ = sandbox.find_tables(folder, folder.resolve())
    return sandbox.discover(folder, tables)


def read(folder: Path) -> tuple[list[Scan], list[str]]:
    """The scans of a folder that can be read.

    Returns
    -------
    scans : list of Scan
    notes : list of str
        Why others cannot be.

    Raises
    ------
    ReadError
        The first reason met, where none can be read.
    LabelsError
    """
    found = discovered(folder)
    scans: list[Scan] = []
    failures: list[CbirError] = list(found.failures)
    for source in found.sources:
        try:
            scans += sandbox.read(source)
        except ReadError as error:
            failures.append(error)
    if not scans:
        raise failures[0]
    return scans, [
        f"not asked with, since it cannot be read: {told(error.explanation)}" for error in failures
    ]


def take_in(
    index: Index,
    folder: Path,
    taken: Taken,
    *,
    labels: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None],
    committed: Callable[[], None],
) -> None:
    """File the images of a folder; what cannot be read is told, and the rest goes on.

    What was spooled and not filed, for whatever reason, is taken off the disk again.

    Parameters
    ----------
    index : Index
    folder : Path
    taken : Taken
        Told what became of them, also where an error ends it.
    labels : mapping, optional
        Labels of all patients; else those of the folder's table.
    progress : callable
        Called with sources done and sources in all.
    committed : callable
        Called after each commit.

    Raises
    ------
    ReadError, LabelsError
        If there is nothing to read.
    CaseIndexError
        If the index cannot be written, or (WriterBusyError) another process writes to it.
    """
    found = discovered(folder)
    table = found.joined.labels
    taken.failed += [error.explanation for error in found.failures]
    names: set[tuple[str, str, str]] = set()
    waiting: list[Source] = []
    slices = 0
    try:
        for done, source in enumerate(found.sources):
            progress(done, len(found.sources))
            scans = _told_apart(_readable(source, taken.failed), names, folder)
            waiting += spool(index.case_index, scans)
            slices += sum(map(len, scans))
            if slices >= GROUP:
                _file(index, waiting, labels, table, taken)
                committed()
                waiting, slices = [], 0
        if waiting:
            _file(index, waiting, labels, table, taken)
            committed()
    except BaseException:
        with suppress(CbirError), index.case_index.writing("sweep"):
            sweep(index.case_index)
        raise
    progress(len(found.sources), len(found.sources))


def _readable(source: Source, failed: list[str]) -> list[Scan]:
    try:
        return sandbox.read(source)
    except CbirError as error:
        failed.append(error.explanation)
    except Exception as error:  # one odd file must not end the job
        tell(error)
        failed.append(f"cannot be read ({type(error).__name__})")
    return []


def _told_apart(scans: Sequence[Scan], names: set[tuple[str, str, str]], folder: Path) -> list[Scan]:
    """Files of one name in several folders of an upload are several series."""
    if not scans or is_uid(scans[0].series_id):
        return list(scans)
    first = scans[0]
    name = (first.patient_id, first.study_id, first.series_id)
    if name in names:
        # by the path within the upload, so that the same upload names it the same
        path = str(first.source.relative_to(folder.resolve()))
        return [replace(scan, series_id=path) for scan in scans]
    names.add(name)
    return list(scans)


def _file(
    index: Index,
    sources: Sequence[Source],
    labels: Mapping[str, str] | None,
    table: Labels,
    taken: Taken,
) -> None:
    patients = {source.patient_id for source in sources}
    report = index.add(sources, labels=_said(patients, labels, table), calibrate=False)
    taken.indexed += report.indexed
    taken.unchanged += report.unchanged
    taken.embedded += report.embedded
    taken.failed += [failure["reason"] for failure in report.failed]
    taken.patients |= {index.case_index.pseudonym("patient", patient) for patient in patients}
    take_out(index.case_index, [Path(failure["source"]) for failure in report.failed], index.encoder)


def _said(patients: Iterable[str], labels: Mapping[str, str] | None, table: Labels) -> Labels:
    """Labels of the patients that are given any; the others keep theirs."""
    if labels is not None:
        return Labels(persons=dict.fromkeys(patients, labels) if labels else {})
    mine = set(patients)
    return Labels(
        table.columns,
        {patient: row for patient, row in table.persons.items() if patient in mine and row},
        {visit: row for visit, row in table.visits.items() if visit[0] in mine and row},
    )
