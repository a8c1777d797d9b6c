"""An index: asked, filled, cared for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from cbir import care, filling
from cbir.filling import AnyPath, Plan, Rows, Tables
from indexer import roots
from indexer.case_index import CaseIndex, Problem
from indexer.catalog import Contents
from indexer.encoder import Encoder, Explainer
from indexer.errors import StaleError
from indexer.ingest import IngestReport, Options
from indexer.preprocess import Preprocessing
from indexer.readers import Source
from indexer.scan import Scan, ScanRef
from indexer.stores import LOCAL
from retrieval import images, learning, search
from retrieval.answer import Answer
from retrieval.calibration import Calibration, due
from retrieval.census import Census
from retrieval.crossmatch import CrossMatch, IndexEvaluation
from retrieval.evidence import RANKING
from retrieval.question import Fields, Question
from retrieval.ranking import Ranking
from retrieval.state import WHOLE, State

if TYPE_CHECKING:
    from retrieval.explain import Explanation


class Index:
    """An index folder. Safe to share between threads for questions; a context manager.

    It answers from the state that was committed when it was opened or last refreshed. One writes at a
    time, also among processes: another one is refused (`WriterBusyError`).

    Parameters
    ----------
    case_index : CaseIndex
        Closed with this; it says how the index is searched.
    encoder : Encoder, optional
        Instead of the installed one that the index names; it must be the same.
    recall : float, optional
        Of questions that say nothing else; see :class:`~retrieval.question.Question`.
    ranking : Ranking
        How cases are ranked and vote.
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
        lazy: bool = False,
    ) -> None:
        self.case_index = case_index
        self.ranking = ranking
        self._encoder = encoder
        self._recall = recall
        self._state: State | None = None
        self._census: Census | None = None
        self._lock = Lock()
        if not lazy:
            self.refresh()

    def refresh(self) -> None:
        """Take up what has been committed since."""
        snapshot = self.case_index.snapshot()
        learnt = Calibration.read(self.case_index.folder)
        stale = learnt.stale(self.case_index, self.ranking) if learnt else None
        learnt = None if stale else learnt
        policy = self.case_index.policy
        state = State(snapshot, self.ranking, policy, learnt, stale, self._census)
        self._census = state.census
        self._state = state.at(self._recall)

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

    def query(self, question: Question | AnyPath, k: int | None = None, **fields: Unpack[Fields]) -> Answer:
        """The cases most similar to a scan, or whatever else a question asks with.

        Parameters
        ----------
        question : Question or path
            A path is a file or folder that cbir reads: one patient's scan, or several of its sequences.
        k, where, region, region_slice, mask, exclude_patient, all_cases, visit, recall, by
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

    def scans(self, source: AnyPath) -> list[Scan]:
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
        from retrieval.explain import Explanation  # with SciPy, which the answer itself needs not

        encoder = self.encoder
        return Explanation(self.state, encoder, answer.query) if isinstance(encoder, Explainer) else None

    def report(
        self,
        answer: Answer,
        path: AnyPath,
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
        from retrieval.report import write_report

        name = str(self.case_index.folder) if name is None else name
        why = self.explain(answer)
        load, beside = load or self.scans, self.state.beside
        write_report(answer, Path(path), load=load, index=name, explain=why, beside=beside)

    def page(
        self, answer: Answer, *, name: str = "", load: Callable[[str], Sequence[Scan]] | None = None
    ) -> str:
        """The HTML that :meth:`report` writes."""
        from retrieval.report import report_page

        why, beside = self.explain(answer), self.state.beside
        return report_page(answer, load=load or self.scans, index=name, explain=why, beside=beside)

    # ---- filling -------------------------------------------------------------------------------

    def plan(
        self,
        paths: AnyPath | Iterable[AnyPath],
        labels: Tables = (),
        *,
        all_images: bool = False,
    ) -> Plan:
        """What :meth:`add` would take files and folders as; nothing is embedded. See :func:`cbir.plan`."""
        return filling.plan(paths, labels, all_images=all_images)

    def add(
        self,
        paths: AnyPath | Iterable[AnyPath | Source],
        *,
        labels: Tables | Rows = (),
        calibrate: bool = True,
        **options: Unpack[Options],
    ) -> IngestReport:
        """Read, embed and file images; then learn what the votes are worth, where that is due.

        Parameters
        ----------
        paths : path or sequence of path
            Files or folders of images, or addresses in a store (``s3://…``). Sources that a discovery has
            found are filed as they are.
        labels : path, or sequence of paths or tables, optional
            Beside the tables that a path was indexed with before, and those that lie below or beside it
            (see :func:`indexer.labels.find_tables`). With sources, a mapping of patients to their labels.
        calibrate : bool
            Whether to call :meth:`calibrate` where :attr:`calibration_due`.
        prune, all_images, with_reference, workers, progress
            How the run goes: :class:`~indexer.ingest.Options`.

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
        report = filling.add(self.case_index, self.encoder, paths, labels, **options)
        if calibrate and self.calibration_due:
            self.calibrate()
        self._changed()
        return report

    def remove(
        self,
        case_ids: str | Iterable[str] = (),
        *,
        patients: str | Iterable[str] = (),
        reference_cases: bool = False,
    ) -> int:
        """Take cases out of the index; files stay where they are.

        Parameters
        ----------
        case_ids : str or iterable of str
        patients : str or iterable of str
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
        removed = filling.remove(self.case_index, case_ids, patients, reference_cases=reference_cases)
        self._changed()
        return removed

    # ---- what its answers are worth ------------------------------------------------------------

    @property
    def calibration(self) -> Calibration | None:
        """What the index has learnt of its votes, as questions see it now."""
        return self.state.calibration

    @property
    def calibration_due(self) -> bool:
        """Whether it never learnt how such answers are to be read, or a tenth has changed since."""
        return due(self.case_index, ranking=self.ranking)

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
        found = items.evaluated(label, ks=ks, folds=folds, bootstrap=bootstrap, seed=seed)
        return replace(found, notes=tuple(roots.notes(self.case_index)))

    # ---- care ----------------------------------------------------------------------------------

    def info(self, *, check: bool = False, cases: bool = False, failures: bool = False) -> dict[str, Any]:
        """What is in the index: counts and provenance, as ``cbir info --json`` prints them.

        Parameters
        ----------
        check : bool
            Compare the search with exact search, and describe the partition.
        cases, failures : bool
            List the cases, and what could not be read.
        """
        return care.info(self.case_index, check=check, cases=cases, failures=failures)

    def verify(self, *, repair: bool = False) -> list[Problem]:
        """Check every checksum, row and vector; with `repair` mend what can be mended."""
        problems = care.verify(self.case_index, repair=repair)
        self._changed(repair)
        return problems

    def compact(self) -> tuple[int, int]:
        """Fit the partition anew and free unused space; the folder's bytes before and after."""
        sizes = care.compact(self.case_index)
        self._changed()
        return sizes

    def copy(self, to: AnyPath, *, store: str = LOCAL, catalog: str | None = None) -> dict[str, Any]:
        """Copy the index to another engine and verify it there: it is whole in the end, or not there.

        Parameters
        ----------
        to : path
            Folder of the copy; must not exist.
        store, catalog
            Where it is to lie, as :func:`cbir.create_index` takes it.

        Returns
        -------
        dict
            :meth:`info` of the copy.
        """
        return care.copy(self.case_index, Path(to), store, catalog)

    def _changed(self, changed: bool = True) -> None:
        """Let questions see what this process has committed."""
        if changed:
            with self._lock:
                self._state = None


def _ref(ref: ScanRef | str) -> ScanRef:
    return ref if isinstance(ref, ScanRef) else ScanRef.parse(ref)
