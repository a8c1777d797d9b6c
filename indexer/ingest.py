"""Fill a case index: discover, read, preprocess, embed, file. What ``cbir index`` runs.

Reading and preprocessing go on in threads while the network works; sources are committed in groups,
each whole, so that an interrupted run loses at most one group and a second run resumes.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer import reference, remote, sandbox
from indexer.case_index import CaseIndex
from indexer.catalog import EmbeddedScan, Entry
from indexer.composite import beside
from indexer.discovery import summary
from indexer.encoder import Composer, Encoder, look
from indexer.errors import LabelsError, PoisonError, ReadError
from indexer.journal import Journal, journal
from indexer.labels import Joined, Labels, Table, listed, load_tables
from indexer.preprocess import Preprocessing
from indexer.readers import Source
from indexer.reading import Read, ReadScan
from indexer.roots import Root, around, recall, remember, takes_all
from indexer.sequences import COMPOSITE
from indexer.studies import Belonging, belonging, composites, remaining
from indexer.text import printable

GROUP = 256
"""Slices that are embedded and committed together, at least."""
UNFILED = 10_000
"""Slices that a store may lack: each question is compared with these one by one."""
READERS = 2
"""Sources that are read at a time."""


_log = logging.getLogger(__name__)


@dataclass
class IngestReport:
    """What a run did.

    Attributes
    ----------
    indexed, unchanged : int
        Sources.
    failed : list of {"source", "reason"}
    cases, slices : int
        In the index after the run.
    seconds, encoder_seconds : float
        Wall time of the run, and of the network within it.
    embedded : int
        Slices that the network saw.
    taken : dict
        What was taken as what, with counts.
    pruned : int
        Sources taken out because their files are gone.
    reference : int
        Reference cases in the index, if they were asked for.
    notes : list of str
        What the user should know: labels without data, data without labels, ….
    """

    indexed: int = 0
    unchanged: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    cases: int = 0
    slices: int = 0
    seconds: float = 0.0
    encoder_seconds: float = 0.0
    embedded: int = 0
    taken: dict[str, int] = field(default_factory=dict)
    pruned: int = 0
    reference: int = 0
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``cbir index --json`` (schema 1)."""
        return {"schema": 1, **vars(self)}


Pick = tuple[Any, int, int]
"""Images to embed: `Read.images`, which of its scans, and which view of it."""


@dataclass(frozen=True)
class Embedding:
    """What the network found in a list of picks.

    Attributes
    ----------
    parts : list of tuple of ndarray
        Embeddings, weights and strangeness (see :func:`indexer.encoder.look`), a tuple a pick.
    seconds : float
        That the network took.
    """

    parts: list[tuple[NDArray[np.float32], ...]]
    seconds: float


class Workers(Protocol):
    """Who reads and embeds, while this process writes.

    Attributes
    ----------
    ahead : int
        Sources that are read before they are asked for.
    groups : int
        Groups that are embedded at a time.
    """

    ahead: int
    groups: int

    def read(self, source: Source, preprocessing: Preprocessing) -> Future[Read]:
        """Read and prepare a source; the future raises `ReadError` if that cannot be."""
        ...

    def embed(self, picks: Sequence[Pick]) -> Future[Embedding]:
        """Take images to the network, all of them together."""
        ...


class Threads:
    """Threads that have child processes read; the network runs while the caller waits. A context manager."""

    ahead = 2 * READERS
    groups = 1

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, source: Source, preprocessing: Preprocessing) -> Future[Read]:
        """See :meth:`Workers.read`."""
        return self._pool.submit(sandbox.prepare, source, preprocessing)

    def embed(self, picks: Sequence[Pick]) -> Future[Embedding]:
        """See :meth:`Workers.embed`."""
        found: Future[Embedding] = Future()
        found.set_result(embed(self._encoder, picks))
        return found


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


def ingest(
    index: CaseIndex,
    roots: Sequence[Path | str],
    encoder: Encoder,
    *,
    labels: Sequence[Table] = (),
    prune: bool = False,
    all_images: bool | None = None,
    with_reference: bool = False,
    workers: Workers | None = None,
    progress: Callable[[int, int, int], None] = lambda done, total, slices: None,
) -> IngestReport:
    """Bring the index up to date with the files below the given paths.

    Parameters
    ----------
    index : CaseIndex
    roots : sequence of Path or str
        Files or folders; as str, such in a store that fsspec knows (see :mod:`indexer.remote`).
    encoder : Encoder
    labels : sequence of Table
        Beside those that a root was indexed with before, and those that lie below or beside it (see
        :func:`indexer.labels.find_tables`).
    prune : bool
        Take sources below `roots` out of the index whose files are gone.
    all_images : bool, optional
        Take maps, and copies in another preparation, as scans, too; as in the run before, if not given.
    with_reference : bool
        Add the cases that come with cbir (see :mod:`indexer.reference`).
    workers : Workers, optional
        Who reads and embeds; threads of this process, if not given.
    progress : callable
        Called with sources done, sources in all, slices embedded.

    Returns
    -------
    IngestReport

    Raises
    ------
    ReadError
        If a root is missing or holds nothing that cbir reads.
    CaseIndexError
        If another process writes to the index.
    EncoderError
        If the index, or the reference cases, were made by another encoder.
    CbirError
        If a store cannot be listed.
    """
    index.require(encoder)
    if with_reference:
        reference.require(encoder)
    start = time.perf_counter()
    report = IngestReport()
    roots = [root.rstrip("/") if isinstance(root, str) else root for root in roots]
    inherent: dict[str, dict[str, str]] = {}
    seen: dict[Path | str, Root] = {}
    with index.writing("index"), remote.StandIns() as stand_ins:
        with stand_ins.renamed():
            found = list(
                _discovered(
                    index,
                    roots,
                    labels,
                    report,
                    stand_ins,
                    inherent,
                    seen,
                    tolerant=prune,
                    all_images=all_images,
                )
            )
        report.notes += map(
            printable, map(stand_ins.named, dict.fromkeys(n for _, _, notes in found for n in notes))
        )
        report.failed = [{k: stand_ins.named(v) for k, v in failure.items()} for failure in report.failed]
        discovered = (stand_ins.source(source) for sources, _, _ in found for source in sources)
        sources = {source.name: source for source in discovered}
        if isinstance(encoder, Composer) and encoder.composite_size:
            # whoever names some files of a folder does not say that there are no others
            named = {str(r if isinstance(r, str) else r.parent.resolve() / r.name) for r in roots}
            several = beside([source for source in sources.values() if source.name not in named], index.case)
            sources |= {source.name: source for source in several}
        labels_of = [joined.labels for _, joined, _ in found]
        persons = _united((index.patient(p), row) for each in labels_of for p, row in each.persons.items())
        visits = _united((index.case(*v), row) for each in labels_of for v, row in each.visits.items())
        own = {index.patient(patient): row for patient, row in inherent.items()}
        persons = own | {patient: own.get(patient, {}) | row for patient, row in persons.items()}
        _settle(index, roots, found, persons, visits)
        held = (path for root in roots for path in index.catalog.fingerprints(str(root)))
        gone = _gone(dict.fromkeys(held), sources, roots, stand_ins)
        files = [path for path in gone if (index.catalog.record(path) or {}).get("kind") != COMPOSITE]
        if prune:
            index.catalog.remove_sources(gone)
            report.pruned = len(files)
        elif files:
            report.notes.append(
                f"{len(files)} that are in the index are gone from the disk: {listed(files)}; "
                "--prune takes them out"
            )
        with nullcontext(workers) if workers else Threads(encoder) as able:
            _file(index, list(sources.values()), persons, visits, encoder, able, report, progress)
        index.catalog.set_labels(persons)
        index.catalog.set_visit_labels(visits)
        of_case = {index.case(s.patient_id, s.study_id): s for s in sources.values()}
        index.catalog.set_visits(
            {case: index.visit(s.patient_id, s.study_id) for case, s in of_case.items() if case.isprintable()}
        )
        if with_reference:
            report.reference = reference.join(index)
        given = list(dict.fromkeys(table.named for table in labels))
        for root in roots:
            before = recall(index, root)
            tables = [*(name for name in before.labels if name not in given), *given]
            said = before.all_images if all_images is None else all_images
            remember(index, root, replace(seen.get(root, before), labels=tables, all_images=said))
        index.catalog.set_failures(
            [str(root) for root in roots], {f["source"]: f["reason"] for f in report.failed}
        )
        vectors = index.manifest.vectors
        if vectors is None or vectors.revision != index.catalog.revision:
            index.file_vectors()
        _finish(index, report, start)
    return report


def ingest_sources(
    index: CaseIndex,
    sources: Sequence[Source],
    encoder: Encoder,
    *,
    labels: Labels | Mapping[str, Mapping[str, str]] | None = None,
) -> IngestReport:
    """File single sources into a living index, such as series that arrive at a PACS.

    The composite of a visit is made of all that is filed of it, and made anew when a series comes later.

    The vectors file is left as it is until it lags by more than a twentieth: what it lacks is
    taken from the catalog when the index is opened, and rewriting it costs more than embedding
    one series.

    Parameters
    ----------
    index : CaseIndex
    sources : sequence of Source
        With the patient and study they belong to.
    encoder : Encoder
    labels : Labels or mapping, optional
        Of patients and visits; or by patient id, as the sources name it. Others keep theirs.

    Returns
    -------
    IngestReport

    Raises
    ------
    CaseIndexError
        If another process writes to the index.
    EncoderError
        If the index was made by another encoder.
    """
    index.require(encoder)
    start = time.perf_counter()
    report = IngestReport()
    with index.writing("index"):
        given = labels if isinstance(labels, Labels) else Labels(persons=labels or {})
        persons = {index.patient(p): row for p, row in given.persons.items()}
        visits = {index.case(*v): row for v, row in given.visits.items()}
        with Threads(encoder) as able:
            _file(index, sources, persons, visits, encoder, able, report)
            if isinstance(encoder, Composer) and encoder.composite_size:
                together, stale = composites(index, sources)
                index.catalog.remove_sources(stale)
                _file(index, together, persons, visits, encoder, able, report)
        index.catalog.set_labels(persons)
        index.catalog.set_visit_labels(visits)
        _file_lagging(index)
        _finish(index, report, start)
    return report


def remove_sources(index: CaseIndex, names: Collection[str], encoder: Encoder) -> int:
    """Take single sources out of a living index, such as series that are gone from a PACS.

    The composites of their visits are made anew of what stays, before anything is taken out: who is stopped
    in between begins again.

    Parameters
    ----------
    index : CaseIndex
    names : collection of str
    encoder : Encoder

    Returns
    -------
    int
        Sources there were.

    Raises
    ------
    CaseIndexError
        If another process writes to the index.
    EncoderError
        If the index was made by another encoder.
    """
    index.require(encoder)
    with index.writing("remove"):
        whose, together, stale = remaining(index, names)
        with Threads(encoder) as able:
            _file(index, together, {}, {}, encoder, able, IngestReport(), known=whose)
        gone = index.catalog.remove_sources(names)
        index.catalog.remove_sources(stale)
        _file_lagging(index)
    return gone


def _file_lagging(index: CaseIndex) -> None:
    """Bring the vectors file up to date, if it lags by more than opening the index should have to do."""
    if index.lag() > 0.05 or index.unfiled() > UNFILED:
        index.file_vectors()


def _file(
    index: CaseIndex,
    sources: Sequence[Source],
    tables: Mapping[str, Mapping[str, str]],
    visits: Mapping[str, Mapping[str, str]],
    encoder: Encoder,
    workers: Workers,
    report: IngestReport,
    progress: Callable[[int, int, int], None] = lambda done, total, slices: None,
    known: Mapping[str, Belonging] | None = None,
) -> None:
    """Read, embed and commit what is new or changed; `known` says whose sources without ids are."""
    known = known or {}

    def whose(source: Source) -> Belonging:
        return known.get(source.name) or belonging(index, encoder, source)

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
            report.failed.append(_failure(error.where, error))
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

    how = index.preprocessing(encoder)
    with journal(index.folder) as begun:
        for group in _groups(_read_ahead(fresh, workers, how, report, begun)):
            flying.append(_sent(index, workers, group, {digest for each in flying for digest in each.fresh}))
            if len(flying) >= workers.groups:
                land()
        while flying:
            land()


def _finish(index: CaseIndex, report: IngestReport, start: float) -> None:
    counts = index.catalog.count()
    report.cases, report.slices = counts["cases"], counts["slices"]
    report.seconds = round(time.perf_counter() - start, 3)
    report.encoder_seconds = round(report.encoder_seconds, 3)
    told = ("indexed", "unchanged", "pruned", "seconds")
    outcome = {name: getattr(report, name) for name in told}
    index.catalog.log("index", {**outcome, "failed": len(report.failed)})
    _log.info(
        "%d sources filed, %d unchanged, %d failed; %d slices embedded in %.1f s, the network's share %.1f s",
        *(report.indexed, report.unchanged, len(report.failed), report.embedded),
        *(report.seconds, report.encoder_seconds),
    )


def _discovered(
    index: CaseIndex,
    roots: Sequence[Path | str],
    labels: Sequence[Table],
    report: IngestReport,
    stand_ins: remote.StandIns,
    inherent: dict[str, dict[str, str]],
    seen: dict[Path | str, Root],
    *,
    tolerant: bool,
    all_images: bool | None,
) -> Iterator[tuple[list[Source], Joined, list[str]]]:
    """Sources of each root, what labels tables say of them, and notes on these.

    A root without images is a failure beside others.
    """
    errors: list[ReadError] = []
    unfit: list[set[Path]] = []
    top: Path | None
    for name in roots:
        if isinstance(name, str):
            root, top, failures = stand_ins.place(name)
            report.failed += [_failure(error.where, error) for error in failures]
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
        seen[name] = Root(alone=discovery.alone, looked=discovery.looked)
        for what, n in discovery.taken.items():
            report.taken[what] = report.taken.get(what, 0) + n
        report.failed += [_failure(e.where, e) for e in discovery.failures]
        planned = discovery.planned()
        notes += (*discovery.notes, *discovery.joined.notes)
        notes += (*summary.left_out(planned), *summary.warnings(planned))
        inherent |= discovery.labels
        unfit.append({table.path for table in discovery.joined.unfit} if discovery.sources else set())
        yield discovery.sources, discovery.joined, notes
    if unfit and (nowhere := set.intersection(*unfit) & {table.path for table in labels}):
        raise LabelsError(
            min(nowhere),
            f"none of its rows fits an image in {listed(list(map(str, roots)))}",
            "check its ids or file names, or index without it",
        )
    if errors and len(errors) == len(roots) and not tolerant:
        raise errors[0]
    if not tolerant:
        report.failed += [_failure(error.where, error) for error in errors]


def remembered_tables(index: CaseIndex, path: Path) -> list[Table]:
    """The labels tables that a folder, or one above it, was indexed with, as far as they are still there."""
    names = (name for root in around(index, path.absolute()) for name in root.labels)
    tables: list[Table] = []
    for name in dict.fromkeys(names):
        with suppress(LabelsError):
            tables += load_tables(Path(name))
    return tables


def _held(index: CaseIndex, root: Path | str, labels: Sequence[Table]) -> list[Table]:
    """The labels tables that a root, or what it lies in, was indexed with, but for those given again."""
    again = {table.path for table in labels}
    tables: list[Table] = []
    for name in dict.fromkeys(name for above in around(index, root) for name in above.labels):
        try:
            tables += (table for table in load_tables(Path(name)) if table.path not in again)
        except LabelsError as error:
            if Path(error.where).is_file():
                raise
            raise LabelsError(
                error.where, f"labelled {root} before and is gone", "give the table with --labels"
            ) from error
    return tables


def _failure(where: str | Path, error: ReadError) -> dict[str, str]:
    """An error as the report and the catalog hold it, on one line and in valid Unicode."""
    return {"source": printable(str(where)), "reason": printable(error.explanation)}


def _settle(
    index: CaseIndex,
    roots: Sequence[Path | str],
    found: Sequence[tuple[Sequence[Source], Joined, object]],
    persons: dict[str, dict[str, str]],
    visits: dict[str, dict[str, str]],
) -> None:
    """Let what tables said of these patients before go, and what others say of them stay."""
    joined = [source for sources, joined, _ in found if joined.labels.columns for source in sources]
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


def _united(rows: Iterable[tuple[str, Mapping[str, str]]]) -> dict[str, dict[str, str]]:
    """Labels of one thing, together."""
    united: dict[str, dict[str, str]] = {}
    for name, row in rows:
        if name.isprintable():  # else it is not filed
            united.setdefault(name, {}).update(row)
    return united


def _known(rows: Mapping[str, Mapping[str, str] | None]) -> dict[str, Mapping[str, str]]:
    return {name: row for name, row in rows.items() if row is not None}


def _fingerprint(source: Source, whose: Belonging) -> str:
    """Changes with the files, and when a labels table gives them to another patient."""
    return hashlib.sha256(f"{source.fingerprint()}\0{whose.case_id}".encode()).hexdigest()


def _gone(
    held: Iterable[str],
    sources: Mapping[str, Source],
    roots: Sequence[Path | str],
    stand_ins: remote.StandIns,
) -> list[str]:
    """Names in the index at or below the roots that discovery no longer finds and the disk no longer has."""
    return [
        path
        for path in held
        if path not in sources
        and any(Path(path).is_relative_to(root) for root in roots)
        and not stand_ins.path(path).exists()
    ]


def embed(encoder: Encoder, picks: Sequence[Pick]) -> Embedding:
    """Take images to the network, all of them together, wherever that is done."""
    blocks = [(images[scan], images[scan].views == view) for images, scan, view in picks]
    kinds: dict[int, list[int]] = {}  # composites have a network of their own
    for place, (ready, _) in enumerate(blocks):
        kinds.setdefault(ready.pixels.ndim, []).append(place)
    parts: dict[int, tuple[NDArray[np.float32], ...]] = {}
    seconds = 0.0
    for places in kinds.values():
        pixels, boxes, weights = (
            np.concatenate([getattr(blocks[place][0], part)[blocks[place][1]] for place in places])
            for part in ("pixels", "boxes", "weights")
        )
        start = time.perf_counter()
        found = look(encoder, pixels, boxes, weights)
        seconds += time.perf_counter() - start
        ends = np.cumsum([np.count_nonzero(blocks[place][1]) for place in places])[:-1]
        parts |= zip(places, zip(*(np.split(part, ends) for part in found), strict=True), strict=True)
    return Embedding([parts[place] for place in range(len(blocks))], seconds)


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
            report.failed.append(_failure(source.name, error))
        except ReadError as error:
            begun.end(source.name)
            report.failed.append(_failure(source.name, error))
        else:
            begun.end(source.name)
            report.notes += [f"{source.name}: {note}" for note in read.notes]
            yield _Fresh(source, fingerprint, read)

    for source, fingerprint in fresh:
        if (reason := begun.reason(source.name, fingerprint)) is not None:
            known = ReadError(source.name, reason, "it is passed over until it changes")
            report.failed.append(_failure(source.name, known))
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
            first.setdefault(scan.digest, (one.read.images, number, 0))
            regions.append((one.read.images, number, 1))
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
    of_region = iter(found.parts[len(flying.fresh) :])
    # what was at the network with an earlier group is in the catalog by now
    others = {scan.digest for one in flying.group for scan in one.read.scans} - known.keys()
    known |= index.catalog.embedded(list(others)) if others else {}
    return [
        Entry(
            path=one.source.name,
            fingerprint=one.fingerprint,
            record=one.source.record(),
            scans=[
                _filed(index, one.source, whose(one.source), scan, known[scan.digest], next(of_region))
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
    )
