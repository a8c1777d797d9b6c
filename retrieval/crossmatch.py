"""Every case (or scan) of an index as a query against all others, exactly: what evaluation ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.case_index import Snapshot
from indexer.errors import QueryError
from indexer.sequences import is_composite
from retrieval.agreement import with_agreement
from retrieval.baselines import predicted_class_similarity
from retrieval.evaluation import evaluate
from retrieval.evidence import RANKING, Population
from retrieval.figures import Evaluation
from retrieval.items import Similarity
from retrieval.likeness import Lesions, less_views, turned
from retrieval.ranking import Ranking, Stacks, at_large, best_shown, grouped

SMALL = 5000
"""So many items' similarities are kept as a whole (100 MB)."""


@dataclass(frozen=True)
class _Sequence:
    """The slices of one sequence, grouped by item."""

    name: str | None
    items: NDArray[np.int64]  # that have the sequence, ascending
    stacks: Stacks
    views: NDArray[np.float16]  # of its scans, in the order of items
    starts: NDArray[np.int64]  # of each item's views

    def views_of(self, place: int) -> NDArray[np.float16]:
        """Those of the item at a place."""
        ends = np.append(self.starts[1:], len(self.views))
        return self.views[self.starts[place] : ends[place]]

    def turned(self, own: NDArray[np.float16]) -> NDArray[np.float32]:
        """How far the nearest view of each item is from the nearest of some others."""
        away = np.min([turned(view, self.views) for view in own.astype(np.float32)], axis=0)
        return np.asarray(np.minimum.reduceat(away, self.starts))

    def meets(self, other: _Sequence) -> bool:
        """Whether its scans are compared with another's: those of an unknown sequence with all single."""
        if is_composite(self.name) or is_composite(other.name):
            return self.name == other.name
        return self.name == other.name or None in (self.name, other.name)


@dataclass(frozen=True)
class IndexEvaluation:
    """How well an index ranks its own items by one label.

    Attributes
    ----------
    ranking : Evaluation
    by_class : Evaluation
        The baseline that ranks by the class which the nearest neighbours predict.
    by : str
        What asked and was ranked: ``case`` or ``scan``.
    asked_in_sample : int
        Patients who asked and whom the encoder was trained on: then the figures say nothing about a new
        patient.
    in_sample : int
        Items of patients whom the encoder was trained on; they answer.
    notes : tuple of str
        Of the index: how patients were told apart.
    """

    ranking: Evaluation
    by_class: Evaluation
    by: str
    asked_in_sample: int
    in_sample: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``cbir eval --json`` (schema 1)."""
        return {
            **self.ranking.to_dict(),
            "by": self.by,
            "in_sample_patients": self.asked_in_sample,
            "rank_by_predicted_class": self.by_class.to_dict()["metrics"],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class CrossMatch:
    """Similarities among the items of an index.

    Attributes
    ----------
    names, patients : list of str
        One entry an item.
    labels : list of dict
    in_sample : ndarray of bool, shape (n,)
        Whether the encoder was trained on the item's patient.
    by : str
        What an item is: ``case`` or ``scan``.
    ranking : Ranking
    lesions : Lesions, optional
        Of the items' lesions; without them, or where nothing is known, they change no order.
    """

    names: list[str]
    patients: list[str]
    labels: list[dict[str, str]]
    in_sample: NDArray[np.bool_] = field(repr=False)
    sequences: Sequence[_Sequence] = field(repr=False)
    by: str = "case"
    ranking: Ranking = RANKING
    lesions: Lesions | None = field(default=None, repr=False)

    @classmethod
    def of(cls, snapshot: Snapshot, by: str = "case", ranking: Ranking = RANKING) -> CrossMatch:
        """Take the whole slices of a snapshot, grouped by ``case`` or by ``scan``."""
        contents, vectors = snapshot.contents, snapshot.vectors
        of_scan = contents.scan_case if by == "case" else np.arange(len(contents.scan_case))
        cases = np.arange(len(contents.case_ids)) if by == "case" else contents.scan_case
        names = contents.case_ids if by == "case" else contents.scan_source
        sequences = []
        for sequence in dict.fromkeys(contents.scan_sequence):
            same = np.array([s == sequence for s in contents.scan_sequence], bool)
            rows = np.flatnonzero(same[contents.slice_scan] & (contents.slice_view == 0))
            item = of_scan[contents.slice_scan[rows]]
            stored = vectors.gather(contents.slice_ids[rows])
            scans = np.unique(contents.slice_scan[rows])
            scans = scans[np.argsort(of_scan[scans], kind="stable")]
            starts = np.unique(of_scan[scans], return_index=True)[1]
            stacks = grouped(stored, contents.slice_weight[rows], item)
            sequences.append(_Sequence(sequence, *stacks, contents.scan_views[scans], starts))
        return cls(
            names=list(names),
            patients=[contents.patient_ids[c] for c in cases],
            labels=[contents.labels[c] for c in cases],
            in_sample=contents.in_sample[cases],
            sequences=sequences,
            by=by,
            ranking=ranking,
            lesions=Lesions.of(contents) if by == "case" else Lesions.of_scans(contents),
        )

    def column(self, name: str) -> list[str | None]:
        """One label of every item, None where it is unknown.

        Raises
        ------
        QueryError
            If no item has it.
        """
        values = [row.get(name) for row in self.labels]
        if not any(values):
            known = ", ".join(sorted({column for row in self.labels for column in row})) or "no labels"
            raise QueryError(name, "no case has this label", f"the index has: {known}")
        return values

    def evaluate(
        self,
        label: str,
        *,
        ks: Sequence[int] = (1, 5, 10),
        folds: str | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> tuple[Evaluation, Evaluation]:
        """The protocol on the index's own labelled items.

        Patients whom the encoder was trained on answer and do not ask, as long as there are others
        with the label; else the figures are in-sample, which :meth:`asked_in_sample` tells.

        Parameters
        ----------
        label, folds : str
            Label columns.
        ks, bootstrap, seed
            As in :func:`retrieval.evaluation.evaluate`.

        Returns
        -------
        ranking : Evaluation
        by_class : Evaluation
            The baseline that ranks by the class which the nearest neighbours predict.

        Raises
        ------
        QueryError
            If a column is unknown, or no query has an item of its own label within reach.
        """
        labels = self.column(label)
        fold = None if folds is None else self.column(folds)
        fresh = ~self.in_sample & [bool(value) for value in labels]
        asks = fresh if fresh.any() else None
        scores = self.unordered.similarities
        by_class = predicted_class_similarity(scores, labels, self.patients, folds=fold)
        agreed = with_agreement(scores, self.classes, self.patients, folds=fold, ranking=self.ranking)
        ordered = partial(self.similarity, agreed=agreed)
        ranking, baseline = (
            evaluate(
                similarity,
                labels,
                self.patients,
                label=label,
                ks=ks,
                folds=fold,
                bootstrap=bootstrap,
                seed=seed,
                queries=asks,
            )
            for similarity in (ordered, by_class)
        )
        return ranking, baseline

    def evaluated(
        self,
        label: str,
        *,
        ks: Sequence[int] = (1, 5, 10),
        folds: str | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> IndexEvaluation:
        """As :meth:`evaluate`, with what a reader has to know of the figures."""
        found, by_class = self.evaluate(label, ks=ks, folds=folds, bootstrap=bootstrap, seed=seed)
        return IndexEvaluation(
            ranking=found,
            by_class=by_class,
            by=self.by,
            asked_in_sample=self.asked_in_sample(found.queries),
            in_sample=int(self.in_sample.sum()),
        )

    @property
    def unordered(self) -> CrossMatch:
        """The same by similarity alone: the scores by which neighbours vote."""
        return replace(self, ranking=self.ranking.of_votes)

    @property
    def classes(self) -> dict[str, list[str | None]]:
        """The label columns that are voted on."""
        names = Population(dict(zip(self.patients, self.labels, strict=True))).classes()
        return {name: self.column(name) for name in names}

    def asked_in_sample(self, queries: NDArray[np.int64]) -> int:
        """How many patients of some items the encoder was trained on."""
        return len({self.patients[q] for q in queries if self.in_sample[q]})

    @cached_property
    def similarities(self) -> Similarity:
        """All similarities as one array where that is small, else :meth:`similarity`."""
        n = len(self.names)
        return self.similarity(np.arange(n)) if n <= SMALL else self.similarity

    def similarity(
        self,
        rows: NDArray[np.int64],
        agreed: Callable[[NDArray[np.int64]], NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        """Scores of all items for some of them as queries.

        Parameters
        ----------
        rows : ndarray of int64
        agreed : callable, optional
            The scores as agreement with the vote changes them, which depends on who may answer whom: see
            :func:`retrieval.agreement.with_agreement`.

        Returns
        -------
        ndarray of float32, shape (len(rows), n)
            The :meth:`~retrieval.ranking.Ranking.fused` scores, less what likeness takes; −inf where no
            sequence is shared.
        """
        shape = len(self.sequences), len(rows), len(self.names)
        table, away = np.full(shape, np.nan, np.float32), np.full(shape, np.inf, np.float32)
        typical = np.full((*shape[:2], 1), np.nan, np.float32)
        patients = np.array(self.patients)
        lesions = self.lesions if self.ranking.likeness else None
        for scores, far, large, sequence in zip(table, away, typical, self.sequences, strict=True):
            at = np.searchsorted(sequence.items, rows)
            has = (at < len(sequence.items)) & (
                sequence.items[np.minimum(at, len(sequence.items) - 1)] == rows
            )
            asking = sequence.stacks.chosen(at[has])
            for other in filter(sequence.meets, self.sequences):
                cells = np.ix_(np.flatnonzero(has), other.items)
                scores[cells] = np.fmax(scores[cells], self.ranking.scores(asking, other.stacks))
                if lesions is not None and has.any():
                    seen = [other.turned(sequence.views_of(place)) for place in at[has]]
                    far[cells] = np.minimum(far[cells], seen)
            met = np.unique(np.concatenate([one.items for one in self.sequences if sequence.meets(one)]))
            some = at_large(met)
            for row in np.flatnonzero(has):
                others = some[patients[some] != patients[rows[row]]]
                if len(others):
                    large[row] = scores[row, others].mean()
        away[np.isinf(away)] = 0
        names = [sequence.name for sequence in self.sequences]
        found = self.ranking.fused(table, names, typical) if agreed is None else agreed(rows)
        if lesions is not None:
            every = np.arange(len(self.names))
            unlike = np.array([lesions.distance(lesions.measures[row], every) for row in rows])
            views = np.take_along_axis(away, best_shown(table, names)[None], axis=0)[0]
            others = np.where(patients[rows, None] == patients, np.nan, found)
            best = np.fmax.reduce(others, axis=1, keepdims=True, initial=-np.inf)
            weight = self.ranking.likeness
            found = less_views(found, views, weight, best)
            found -= np.float32(weight) * unlike.reshape(found.shape)
        return np.where(np.isnan(found), np.float32(-np.inf), found)
