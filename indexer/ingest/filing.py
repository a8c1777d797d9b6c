"""Sources on their way into the catalog: read ahead, embedded in groups, each committed whole."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer import reference
from indexer.case_index import CaseIndex
from indexer.catalog import EmbeddedScan, Entry
from indexer.encoder import Encoder
from indexer.errors import PoisonError, ReadError
from indexer.ingest.report import IngestReport, Progress, failure, untold
from indexer.ingest.workers import Embedding, Pick, Workers
from indexer.journal import Journal, journal
from indexer.preprocess import Preprocessing
from indexer.readers import Source
from indexer.reading import Read, ReadScan
from indexer.sequences import CHANNELS, COMPOSITE, is_composite
from indexer.studies import Belonging, belonging

GROUP = 256
"""Slices that are embedded and committed together, at least."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Fresh:
    """A source on its way to the network."""

    source: Source
    fingerprint: str
    read: Read

    @property
    def rows(self) -> int:
        return sum(len(one.views) for one in self.read.scans)


@dataclass(frozen=True)
class _Flying:
    """A group that is at the network."""

    group: list[_Fresh]
    known: dict[str, Any]  # found in the catalog
    fresh: list[str]  # digests that are being embedded, before the regions
    found: Future[Embedding]


def file(
    index: CaseIndex,
    sources: Sequence[Source],
    tables: Mapping[str, Mapping[str, str]],
    visits: Mapping[str, Mapping[str, str]],
    encoder: Encoder,
    workers: Workers,
    report: IngestReport,
    progress: Progress = untold,
    known: Mapping[str, Belonging] | None = None,
) -> None:
    """Read, embed and commit what is new or changed; `known` says whose sources without ids are."""
    told, how = known or {}, index.preprocessing(encoder)

    def whose(source: Source) -> Belonging:
        return told.get(source.name) or belonging(index, encoder, source)

    held = index.catalog.fingerprints_of(source.name for source in sources if source.name.isprintable())
    fresh: list[tuple[Source, str]] = []
    for source in sources:
        try:
            if not all(str(path).isprintable() for path in (source.path, *source.files)):
                raise ReadError(source.name, "its name holds control characters or is not UTF-8", "rename it")
            if not (source.patient_id + source.study_id).isprintable():
                raise ReadError(
                    source.name, "its patient or study id holds control characters", "mend its header"
                )
            fingerprint = _fingerprint(source, whose(source))
        except ReadError as error:
            report.failed.append(failure(error.where, error))
            continue
        if held.get(source.name) == fingerprint:
            report.unchanged += source.kind != COMPOSITE
        else:
            fresh.append((source, fingerprint))
    failed = len(report.failed)
    # who is known by a scan need not be known by a reference case, too
    reference.leave(index, {source.patient_id for source in sources})
    flying: deque[_Flying] = deque()
    done = 0

    def land() -> None:
        nonlocal done
        landing = flying.popleft()
        entries = _landed(index, landing, whose, report)
        embedded = [scan for entry in entries for scan in entry.scans]
        of_patients = {scan.patient_id: tables.get(scan.patient_id) for scan in embedded}
        of_visits = {scan.case_id: visits.get(scan.case_id) for scan in embedded}
        index.catalog.put(entries, _known(of_patients), _known(of_visits))
        report.indexed += sum(one.source.kind != COMPOSITE for one in landing.group)
        done += len(entries)
        progress(done + len(report.failed) - failed, len(fresh), report.embedded)

    with journal(index.folder) as begun:
        for group in _groups(_read_ahead(fresh, workers, how, report, begun)):
            flying.append(_sent(index, workers, group, {digest for each in flying for digest in each.fresh}))
            if len(flying) >= workers.groups:
                land()
        while flying:
            land()


def _known(rows: Mapping[str, Mapping[str, str] | None]) -> dict[str, Mapping[str, str]]:
    return {name: row for name, row in rows.items() if row is not None}


def _fingerprint(source: Source, whose: Belonging) -> str:
    """Changes with the files, and when a labels table gives them to another patient."""
    return hashlib.sha256(f"{source.fingerprint()}\0{whose.case_id}".encode()).hexdigest()


def _read_ahead(
    fresh: Iterable[tuple[Source, str]],
    workers: Workers,
    preprocessing: Preprocessing,
    report: IngestReport,
    begun: Journal,
) -> Iterator[_Fresh]:
    """Have sources read, in order, a few of them ahead; what may have ended a run before, alone."""
    waiting: deque[tuple[Source, str, Future[Read]]] = deque()

    def result(source: Source, fingerprint: str, future: Future[Read]) -> Iterator[_Fresh]:
        try:
            read = future.result()
        except PoisonError as error:
            begun.condemn(source.name, fingerprint, error.reason)
            report.failed.append(failure(source.name, error))
        except ReadError as error:
            begun.end(source.name)
            report.failed.append(failure(source.name, error))
        else:
            begun.end(source.name)
            report.notes += [f"{source.name}: {note}" for note in read.notes]
            yield _Fresh(source, fingerprint, read)

    for source, fingerprint in fresh:
        if (reason := begun.reason(source.name, fingerprint)) is not None:
            known = ReadError(source.name, reason, "it is passed over until it changes")
            report.failed.append(failure(source.name, known))
            continue
        alone = begun.suspect(source.name)
        while waiting and (alone or len(waiting) > workers.ahead):
            yield from result(*waiting.popleft())
        begun.begin(source.name, fingerprint)
        waiting.append((source, fingerprint, workers.read(source, preprocessing)))
        if alone:
            yield from result(*waiting.popleft())
    while waiting:
        yield from result(*waiting.popleft())


def _groups(read: Iterable[_Fresh]) -> Iterator[list[_Fresh]]:
    group: list[_Fresh] = []
    rows = 0
    for one in read:
        group.append(one)
        rows += one.rows
        if rows >= GROUP:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _sent(index: CaseIndex, workers: Workers, group: list[_Fresh], pending: Collection[str]) -> _Flying:
    """Have embedded what is new in a group; equal inputs are embedded once."""
    counts: dict[str, int] = {}
    first: dict[str, Pick] = {}
    regions: list[Pick] = []
    for one in group:
        for number, scan in enumerate(one.read.scans):
            counts[scan.digest] = int(np.count_nonzero(scan.views == 0))
            several = CHANNELS if is_composite(scan.scan.sequence) else (scan.scan.sequence,)
            first.setdefault(scan.digest, (one.read.images, number, 0, several))
            regions.append((one.read.images, number, 1, several))
    known = index.catalog.embedded(list(counts))
    # of a reference case not all slices are filed
    known = {digest: held for digest, held in known.items() if len(held[0]) == counts[digest]}
    fresh = [digest for digest in first if digest not in known and digest not in pending]
    found = workers.embed([*(first[digest] for digest in fresh), *regions])
    return _Flying(group, known, fresh, found)


def _landed(
    index: CaseIndex, flying: _Flying, whose: Callable[[Source], Belonging], report: IngestReport
) -> list[Entry]:
    """The entries of a group, once the network has seen it."""
    found = flying.found.result()
    _log.debug("%d sources, %d scans embedded in %.2f s", len(flying.group), len(found.parts), found.seconds)
    report.encoder_seconds += found.seconds
    report.embedded += sum(len(part[0]) for part in found.parts)
    known = flying.known | dict(zip(flying.fresh, found.parts, strict=False))
    of_region = iter(zip(found.parts[len(flying.fresh) :], found.measures, strict=True))
    # what was at the network with an earlier group is in the catalog by now
    others = {scan.digest for one in flying.group for scan in one.read.scans} - known.keys()
    known |= index.catalog.embedded(list(others)) if others else {}
    return [
        Entry(
            path=one.source.name,
            fingerprint=one.fingerprint,
            record=one.source.record(),
            scans=[
                _filed(index, one.source, whose(one.source), scan, known[scan.digest], *next(of_region))
                for scan in one.read.scans
            ],
        )
        for one in flying.group
    ]


def _filed(
    index: CaseIndex,
    source: Source,
    whose: Belonging,
    read: ReadScan,
    whole: Sequence[NDArray[np.float32]],
    region: Sequence[NDArray[np.float32]],
    measures: NDArray[np.float32],
) -> EmbeddedScan:
    scan = read.scan
    embeddings, weights, _ = (np.concatenate(parts) for parts in zip(whole, region, strict=True))
    return EmbeddedScan(
        case_id=whose.case_id,
        patient_id=whose.patient_id,
        series_id=index.pseudonym("series", scan.series_id or source.name),
        sequence=scan.sequence,
        modality=scan.modality,
        shape=scan.voxels.shape,
        spacing=scan.spacing,
        input_hash=read.digest,
        positions=read.positions,
        views=read.views,
        weights=weights,
        embeddings=embeddings,
        in_sample=whose.in_sample,
        strangeness=float(np.average(whole[2], weights=whole[1])),
        visit=whose.visit,
        measures=measures,
    )
