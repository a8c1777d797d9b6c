"""An index: asked, filled, cared for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from indexer import reference
from indexer.case_index import CaseIndex, Problem
from indexer.catalog import Contents
from indexer.encoder import DEFAULT, Encoder, Explainer, load_encoder
from indexer.errors import CaseIndexError, QueryError, StaleError
from indexer.ingest import IngestReport, Workers, ingest, ingest_sources
from indexer.labels import Labels, load_labels
from indexer.policy import SearchPolicy
from indexer.preprocess import Preprocessing
from indexer.readers import Source
from indexer.scan import Scan, ScanRef
from retrieval import images, learning, search
from retrieval.answer import Answer
from retrieval.calibration import POLICY, Calibration, due
from retrieval.crossmatch import CrossMatch, IndexEvaluation
from retrieval.evidence import RANKING
from retrieval.explain import Explanation
from retrieval.question import Box, Question
from retrieval.ranking import Ranking
from retrieval.report import report_page, write_report
from retrieval.state import WHOLE, State

FOLDER = "cbir-index"
"""The index where none is named, as on the command line; ``CBIR_INDEX`` in the environment goes first."""
Path_ = str | os.PathLike[str]


class Fields(TypedDict, total=False):
    """What a :class:`~retrieval.question.Question` has beside what asks and `k`."""

    where: Mapping[str, str] | None
    region: Box | None
    region_slice: int | None
    mask: Path_ | None
    exclude_patient: str | Sequence[str] | None
    all_cases: bool
    visit: str | None
    recall: float | None


class Index:
    """An index folder. Safe to share between threads for questions; a context manager.

    It answers from the state that was committed when it was opened or last refreshed. One writes at a
    time, also among processes: another one is refused (`WriterBusyError`).

    Parameters
    ----------
    case_index : CaseIndex
        Closed with this.
    encoder : Encoder, optional
        Instead of the installed one that the index names; it must be the same.
    recall : float, optional
        Of questions that say nothing else; see :class:`~retrieval.question.Question`.
    ranking : Ranking
        How cases are ranked and vote.
    policy : SearchPolicy
        How the index is searched.
    lazy : bool
        Read the state at the first question instead of now: for who fills or mends the index.
    """

    def __init__(
        self,
        case_index: CaseIndex,
        encoder: Encoder | None = None,
        recall: float | None = None,
        *,
        ranking: Ranking = RANKING,
        policy: SearchPolicy = POLICY,
        lazy: bool = False,
    ) -> None:
        self.case_index = case_index
        self.ranking, self.policy = ranking, policy
        self._encoder = encoder
        self._recall = recall
        self._state: State | None = None
        self._lock = Lock()
        if not lazy:
            self.refresh()

    def refresh(self) -> None:
        """Take up what has been committed since."""
        snapshot = self.case_index.snapshot()
        learnt = Calibration.read(self.case_index.folder)
        version = self.case_index.manifest.encoder_version
        stale = learnt.stale(version, self.ranking, self.policy) if learnt else None
        learnt = None if stale else learnt
        self._state = State(snapshot, self.ranking, self.policy, learnt, stale).at(self._recall)

    def close(self) -> None:
        """Release the files."""
        self.case_index.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def state(self) -> State:
        """The state that questions see now.

        Raises
        ------
        CaseIndexError
            If the vectors are damaged.
        """
        with self._lock:
            if self._state is None:
                self.refresh()
            assert self._state is not None
            return self._state

    @property
    def contents(self) -> Contents:
        """What is in the index, as questions see it now."""
        return self.state.contents

    @property
    def encoder(self) -> Encoder:
        """The encoder that made the index (loaded at the first use).

        Raises
        ------
        EncoderError
            If it is not installed, or not in the version that made the index.
        """
        if self._encoder is None:
            self._encoder = self.case_index.load_encoder()
        self.case_index.require(self._encoder)
        return self._encoder

    # ---- questions -----------------------------------------------------------------------------

    def query(self, question: Question | Path_, k: int | None = None, **fields: Unpack[Fields]) -> Answer:
        """The cases most similar to a scan, or whatever else a question asks with.

        Parameters
        ----------
        question : Question or path
            A path is a file or folder that cbir reads: one patient's scan, or several of its sequences.
        k, where, region, region_slice, mask, exclude_patient, all_cases, visit, recall
            As in :class:`~retrieval.question.Question`, and in its place where one is given, too.

        Returns
        -------
        Answer

        Raises
        ------
        ReadError
            If the query cannot be read.
        QueryError
            If it holds several patients, or the filter or region fits nothing.
        EncoderError
            If the index was made by another encoder.
        """
        if not isinstance(question, Question):
            question = Question(question)
        changed: dict[str, Any] = {**fields, **({} if k is None else {"k": k})}
        question = replace(question, **changed) if changed else question
        try:
            return search.answered(question, self.state, self.case_index, lambda: self.encoder)
        except StaleError:  # another process has changed the index meanwhile: once more, of the new state
            self.refresh()
            return search.answered(question, self.state, self.case_index, lambda: self.encoder)

    def like(self, case_ids: str | Sequence[str], k: int = 10, **fields: Unpack[Fields]) -> Answer:
        """The cases most similar to one or several in the index, other patients only.

        Several cases ask as the sequences of one scan do: the score is the mean over theirs.

        Raises
        ------
        QueryError
            If the index has no such case.
        """
        return self.query(Question(like=case_ids, k=k, **fields))

    def has_patient(self, patient: str) -> bool:
        """Whether a patient is in the index, by the id in the files or in the index."""
        return search.has_patient(self.case_index, self.state, patient)

    # ---- pictures ------------------------------------------------------------------------------

    def scans(self, source: Path_) -> list[Scan]:
        """The scans of a hit's or a query's source, in the order in which references count them.

        Raises
        ------
        ReadError
            If the files are gone, cannot be read, or are not those that were indexed.
        """
        return images.scans_of(self.case_index, self.state, os.fspath(source), self._side)

    def scan(self, ref: ScanRef | str) -> Scan:
        """The scan that a hit or a query means.

        Parameters
        ----------
        ref : ScanRef or str
            Such as ``hit.scan``; as str, as JSON writes it.

        Raises
        ------
        ReadError
            If the files are gone, cannot be read, or are not those that were indexed.
        """
        return images.scan_of(self.case_index, self.state, _ref(ref), self._side)

    def _side(self) -> int:
        return Preprocessing.of(self.encoder).composite_size

    def vector(
        self, ref: ScanRef | str, position: int, view: int = WHOLE
    ) -> tuple[NDArray[np.float32], int] | None:
        """The embedding of a filed slice; see :meth:`retrieval.state.State.vector`."""
        return self.state.vector(_ref(ref), position, view)

    def explain(self, answer: Answer) -> Explanation | None:
        """What shows where the similarity of an answer's pairs comes from; None if the encoder cannot."""
        encoder = self.encoder
        return Explanation(self.state, encoder, answer.query) if isinstance(encoder, Explainer) else None

    def report(
        self,
        answer: Answer,
        path: Path_,
        *,
        name: str | None = None,
        load: Callable[[str], Sequence[Scan]] | None = None,
    ) -> None:
        """Write an answer as one HTML file, with pictures and their explanation.

        Parameters
        ----------
        answer : Answer
        path : path
        name : str, optional
            What the report calls the index; its folder, if not given.
        load : callable, optional
            Gives the scans of a source instead of :meth:`scans`.

        Raises
        ------
        CbirError
            If the file cannot be written.
        """
        name = str(self.case_index.folder) if name is None else name
        why = self.explain(answer)
        write_report(answer, Path(path), load=load or self.scans, index=name, explain=why)

    def page(
        self, answer: Answer, *, name: str = "", load: Callable[[str], Sequence[Scan]] | None = None
    ) -> str:
        """The HTML that :meth:`report` writes."""
        return report_page(answer, load=load or self.scans, index=name, explain=self.explain(answer))

    # ---- filling -------------------------------------------------------------------------------

    def add(
        self,
        paths: Path_ | Sequence[Path_ | Source],
        *,
        labels: Path_ | Labels | Mapping[str, Mapping[str, str]] | None = None,
        prune: bool = False,
        with_reference: bool = False,
        calibrate: bool = True,
        workers: Workers | None = None,
        progress: Callable[[int, int, int], None] = lambda done, total, slices: None,
    ) -> IngestReport:
        """Read, embed and file images; then learn what the votes are worth, where that is due.

        Parameters
        ----------
        paths : path or sequence of path
            Files or folders of images, or addresses in a store (``s3://…``). Sources that a discovery has
            found are filed as they are.
        labels : path or Labels, optional
            A table; else the one that a path was indexed with before, or ``participants.tsv`` beside or
            above it. With sources, a mapping of patients to their labels.
        prune : bool
            Take out what lies below the paths no more.
        with_reference : bool
            Add the public graded cases that come with cbir.
        calibrate : bool
            Whether to call :meth:`calibrate` where :attr:`calibration_due`.
        workers : Workers, optional
            Who reads and embeds; threads of this process, if not given.
        progress : callable
            Called with sources done, sources in all, slices embedded.

        Returns
        -------
        IngestReport
            What was filed, and what could not be.

        Raises
        ------
        ReadError
            If a path is missing or holds nothing that cbir reads.
        CaseIndexError
            If another process writes to the index.
        EncoderError
            If the index was made by another encoder.
        """
        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        sources = [source for source in given if isinstance(source, Source)]
        if sources:
            rows = labels if isinstance(labels, Mapping) else None
            report = ingest_sources(self.case_index, sources, self.encoder, labels=rows)
        else:
            from indexer.remote import is_address

            roots = [str(p) if is_address(str(p)) else Path(str(p)).absolute() for p in given]
            table = load_labels(Path(labels)) if isinstance(labels, str | os.PathLike) else labels
            assert not isinstance(table, Mapping)
            report = ingest(
                self.case_index,
                roots,
                self.encoder,
                labels=table,
                prune=prune,
                with_reference=with_reference,
                workers=workers,
                progress=progress,
            )
        if calibrate and self.calibration_due:
            self.calibrate()
        self._state = None
        return report

    def remove(
        self, case_ids: Iterable[str] = (), *, patients: Iterable[str] = (), reference_cases: bool = False
    ) -> int:
        """Take cases out of the index; files stay where they are.

        Parameters
        ----------
        case_ids : iterable of str
        patients : iterable of str
            All cases of these, by the id in the files or in the index.
        reference_cases : bool
            All that came with cbir.

        Returns
        -------
        int
            How many there were.

        Raises
        ------
        QueryError
            If there is no such case or patient; then nothing is taken out.
        CaseIndexError
            If another process writes to the index.
        """
        index = self.case_index
        with index.writing("remove"):
            contents = index.catalog.contents()
            wanted = set([case_ids] if isinstance(case_ids, str) else case_ids)
            unknown = ", ".join(sorted(wanted - set(contents.case_ids)))
            if unknown:
                raise QueryError(unknown, "the index has no such case", "see `cbir info --cases`")
            for name in [patients] if isinstance(patients, str) else patients:
                ids = {name, index.patient(name)}
                found = {c for c, p in zip(contents.case_ids, contents.patient_ids, strict=True) if p in ids}
                if not found:
                    raise QueryError(name, "the index has no such patient", "see `cbir info --cases`")
                wanted |= found
            removed = index.catalog.remove_cases(wanted)
            if reference_cases:
                removed += reference.leave(index)
            index.file_vectors()
            index.catalog.log("remove", {"cases": removed})
        self._state = None
        return removed

    # ---- what its answers are worth ------------------------------------------------------------

    @property
    def calibration(self) -> Calibration | None:
        """What the index has learnt of its votes, as questions see it now."""
        return self.state.calibration

    @property
    def calibration_due(self) -> bool:
        """Whether it never learnt how such answers are to be read, or a tenth has changed since."""
        return due(self.case_index, ranking=self.ranking, policy=self.policy)

    def calibrate(self, *, seed: int = 0) -> Calibration | None:
        """Learn from the index's own patients how its votes are to be read, and keep it in the folder.

        Some hundred patients ask, so the time is bounded.

        Returns
        -------
        Calibration or None
            None where the patients are too few, or another process writes.
        """
        self.refresh()
        learnt = learning.calibrate(self.case_index, self.state, seed=seed)
        if learnt:
            self.refresh()
        return learnt

    def evaluate(
        self,
        label: str,
        *,
        by: str = "case",
        ks: Sequence[int] = (1, 5, 10),
        folds: str | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> IndexEvaluation:
        """How often hits share the query's label, each case asking for those of other patients.

        Parameters
        ----------
        label : str
            The label that hits should share.
        by : str
            Whether a ``case`` or a ``scan`` asks and is ranked.
        ks : sequence of int
            Cuts of P@k.
        folds : str, optional
            Label whose values are folds: each one's cases are ranked among the others' only.
        bootstrap : int
            Resamples of patients for the intervals.
        seed : int
            Of the resampling.

        Raises
        ------
        QueryError
            If a label is unknown, or no query has an item of its own label within reach.
        """
        items = CrossMatch.of(self.case_index.snapshot(), by, self.ranking)
        return items.evaluated(label, ks=ks, folds=folds, bootstrap=bootstrap, seed=seed)

    # ---- care ----------------------------------------------------------------------------------

    def info(self, *, check: bool = False) -> dict[str, Any]:
        """Counts and provenance; with `check` also the recall of the search and the partition's shape."""
        index = self.case_index
        return index.about() | (index.check() if check else {})

    def verify(self, *, repair: bool = False) -> list[Problem]:
        """Check every checksum, row and vector; with `repair` mend what can be mended."""
        if not repair:
            return self.case_index.verify()
        with self.case_index.writing("verify --repair"):
            problems = self.case_index.verify(repair=True)
        self._state = None
        return problems


def open_index(
    path: Path_ | None = None,
    encoder: Encoder | None = None,
    *,
    recall: float | None = None,
    ranking: Ranking = RANKING,
    policy: SearchPolicy = POLICY,
    lazy: bool = False,
) -> Index:
    """Open an index folder.

    Parameters
    ----------
    path : path, optional
        ``cbir-index``, or what the variable ``CBIR_INDEX`` says, if not given.
    encoder, recall, ranking, policy, lazy
        As in :class:`Index`.

    Raises
    ------
    CaseIndexError
        If there is no index, or it is damaged or of another format.

    Examples
    --------
    >>> with open_index("cbir-index") as index:               # doctest: +SKIP
    ...     answer = index.query("scan.nii", k=10, where={"who_grade": "4"})
    ...     answer.hits[0].labels
    {'who_grade': '4'}
    """
    folder = Path(path or os.environ.get("CBIR_INDEX") or FOLDER)
    return Index(CaseIndex.open(folder, policy), encoder, recall, ranking=ranking, policy=policy, lazy=lazy)


def create_index(
    path: Path_,
    *,
    encoder: Encoder | str | None = None,
    keep_ids: bool = False,
    ranking: Ranking = RANKING,
    policy: SearchPolicy = POLICY,
    **where: str | None,
) -> Index:
    """Make an empty index.

    Parameters
    ----------
    path : path
        A new or empty folder.
    encoder : Encoder or str, optional
        The one that comes with cbir, if not given; by its name, or a file of weights.
    keep_ids : bool
        Patients keep the ids that the files give them.
    ranking, policy
        As in :class:`Index`.
    **where
        Where it lies, if not in the folder: as in :meth:`indexer.case_index.CaseIndex.create`.

    Raises
    ------
    CaseIndexError
        If there is an index already, or the folder holds something else or cannot be written.
    EncoderError
        If there is no such encoder.
    """
    folder = Path(path)
    if (folder / "manifest.json").exists():
        raise CaseIndexError(folder, "there is an index already", "open it, or name another folder")
    chosen = load_encoder(encoder or DEFAULT) if encoder is None or isinstance(encoder, str) else encoder
    given: dict[str, Any] = {name: value for name, value in where.items() if value is not None}
    made = CaseIndex.create(folder, chosen, keep_ids=keep_ids, policy=policy, **given)
    return Index(made, chosen, ranking=ranking, policy=policy, lazy=True)


def reference_index(encoder: Encoder | None = None) -> Index:
    """Open the public graded cases that come with cbir (see :mod:`indexer.reference`), for questions only.

    Parameters
    ----------
    encoder : Encoder, optional
        Instead of the installed one that made them; it must be the same.

    Raises
    ------
    CaseIndexError
        If there are none, or they are damaged.
    EncoderError
        If the encoder that made them is not installed.
    """
    cases = reference.opened()
    encoder = encoder or cases.load_encoder()
    reference.require(encoder)
    return Index(cases, encoder)


def _ref(ref: ScanRef | str) -> ScanRef:
    return ref if isinstance(ref, ScanRef) else ScanRef.parse(ref)
