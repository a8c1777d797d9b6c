"""A run: discover, read, preprocess, embed, file. What ``cbir index`` runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from indexer import reference, remote
from indexer.case_index import CaseIndex
from indexer.composite import beside
from indexer.encoder import Composer, Encoder
from indexer.ingest.filing import file
from indexer.ingest.report import IngestReport, Progress, untold
from indexer.ingest.survey import Surveyed, gone, labels_of, surveyed
from indexer.ingest.workers import Threads, Workers
from indexer.labels import Labels, Table, listed
from indexer.readers import Source
from indexer.roots import recall, remember
from indexer.sequences import COMPOSITE
from indexer.studies import composites, remaining
from indexer.text import printable

UNFILED = 10_000
"""Slices that a store may lack: each question is compared with these one by one."""

_log = logging.getLogger(__name__)


class Options(TypedDict, total=False):
    """How a run of :func:`ingest` goes.

    Attributes
    ----------
    prune : bool
        Take out of the index what lies below the roots no more.
    all_images : bool, optional
        Take maps, and copies in another preparation, as scans, too; as in the run before, if not given.
    with_reference : bool
        Add the public graded cases that come with cbir (see :mod:`indexer.reference`).
    workers : Workers, optional
        Who reads and embeds; threads of this process, if not given.
    progress : callable
        Called with sources done, sources in all, slices embedded.
    """

    prune: bool
    all_images: bool | None
    with_reference: bool
    workers: Workers | None
    progress: Progress


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
    progress: Progress = untold,
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
    prune, all_images, with_reference, workers, progress
        :class:`Options`.

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
    with index.writing("index"), remote.StandIns() as stand_ins:
        with stand_ins.renamed():
            found = surveyed(index, roots, labels, report, stand_ins, tolerant=prune, all_images=all_images)
        notes = dict.fromkeys(note for each in found for note in each.notes)
        report.notes += map(printable, map(stand_ins.named, notes))
        report.failed = [{k: stand_ins.named(v) for k, v in failure.items()} for failure in report.failed]
        sources = _sources(
            index, roots, encoder, [stand_ins.source(s) for each in found for s in each.sources]
        )
        persons, visits = labels_of(index, roots, found)
        _prune(index, gone(index, sources, roots, stand_ins), report, prune=prune)
        with nullcontext(workers) if workers else Threads(encoder) as able:
            file(index, list(sources.values()), persons, visits, encoder, able, report, progress)
        index.catalog.set_labels(persons)
        index.catalog.set_visit_labels(visits)
        of_case = {index.case(s.patient_id, s.study_id): s for s in sources.values()}
        index.catalog.set_visits(
            {case: index.visit(s.patient_id, s.study_id) for case, s in of_case.items() if case.isprintable()}
        )
        if with_reference:
            report.reference = reference.join(index)
        _remember(index, roots, found, labels, all_images)
        index.catalog.set_failures(
            [str(root) for root in roots], {f["source"]: f["reason"] for f in report.failed}
        )
        vectors = index.manifest.vectors
        if vectors is None or vectors.revision != index.catalog.revision:
            index.file_vectors()
        _finish(index, report, start)
    return report


def _sources(
    index: CaseIndex, roots: Sequence[Path | str], encoder: Encoder, found: Iterable[Source]
) -> dict[str, Source]:
    """What was found, by name, and with it the composites of sequences that lie side by side."""
    sources = {source.name: source for source in found}
    if isinstance(encoder, Composer) and encoder.composite_size:
        # whoever names some files of a folder does not say that there are no others
        named = {str(r if isinstance(r, str) else r.parent.resolve() / r.name) for r in roots}
        several = beside([source for source in sources.values() if source.name not in named], index.case)
        sources |= {source.name: source for source in several}
    return sources


def _prune(index: CaseIndex, names: Sequence[str], report: IngestReport, *, prune: bool) -> None:
    """Take out what is gone from the disk, or say that it is."""
    files = [name for name in names if (index.catalog.record(name) or {}).get("kind") != COMPOSITE]
    if prune:
        index.catalog.remove_sources(names)
        report.pruned = len(files)
    elif files:
        report.notes.append(
            f"{len(files)} that are in the index are gone from the disk: {listed(files)}; "
            "--prune takes them out"
        )


def _remember(
    index: CaseIndex,
    roots: Sequence[Path | str],
    found: Sequence[Surveyed],
    labels: Sequence[Table],
    all_images: bool | None,
) -> None:
    """Keep how each root was indexed, for the next run."""
    given = list(dict.fromkeys(table.named for table in labels))
    seen = {each.name: each.root for each in found}
    for root in roots:
        before = recall(index, root)
        tables = [*(name for name in before.labels if name not in given), *given]
        said = before.all_images if all_images is None else all_images
        remember(index, root, replace(seen.get(root, before), labels=tables, all_images=said))


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
            file(index, sources, persons, visits, encoder, able, report)
            if isinstance(encoder, Composer) and encoder.composite_size:
                together, stale = composites(index, sources)
                index.catalog.remove_sources(stale)
                file(index, together, persons, visits, encoder, able, report)
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
            file(index, together, {}, {}, encoder, able, IngestReport(), known=whose)
        gone = index.catalog.remove_sources(names)
        index.catalog.remove_sources(stale)
        _file_lagging(index)
    return gone


def _file_lagging(index: CaseIndex) -> None:
    """Bring the vectors file up to date, if it lags by more than opening the index should have to do."""
    if index.lag() > 0.05 or index.unfiled() > UNFILED:
        index.file_vectors()


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
