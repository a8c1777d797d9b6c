"""Questions whose answers are known: every known patient asks once, and all other patients answer.

The patient is the unit: one that asks with several scans has one vote in all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.conformal import Floats, shares
from retrieval.evidence import RANKING, vote
from retrieval.ranking import Ranking

NEAREST = 3
"""Patients whose mean similarity says how familiar a scan is."""


@dataclass(frozen=True)
class Gallery:
    """Items that answer.

    Attributes
    ----------
    patients : ndarray, shape (n,)
        Ids, or numbers that stand for them.
    labels : sequence of dict
        One entry an item; a patient's items have the same.
    """

    patients: NDArray[Any]
    labels: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class LeaveOneOut:
    """Questions whose answers are known, and how similar the items of the gallery are.

    Attributes
    ----------
    gallery : Gallery
    patients : ndarray, shape (q,)
        Who asks; whose items do not answer.
    labels : sequence of dict
    similarity : ndarray of float32, shape (q, n)
        −inf where an item cannot be compared.
    sequences : sequence of str
        Of each question's (first) scan, ``""`` where unknown.
    scans : ndarray of int, shape (q,)
        Its place in the contents of the index.
    ranking : Ranking
        That gave the similarities, and by which the others vote.
    nearness : ndarray of float32, shape (q, n), optional
        Of questions of one scan: see :func:`retrieval.ranking.nearness`; −inf as above.
    """

    gallery: Gallery
    patients: NDArray[Any]
    labels: Sequence[Mapping[str, str]]
    similarity: NDArray[np.float32]
    sequences: Sequence[str]
    scans: NDArray[np.int64]
    ranking: Ranking = RANKING
    nearness: NDArray[np.float32] | None = None

    @cached_property
    def rankings(self) -> list[NDArray[np.int64]]:
        """For each question the best item of each other patient, best first."""
        found = []
        for patient, row in zip(self.patients, self.similarity, strict=True):
            reach = np.flatnonzero(np.isfinite(row) & (self.gallery.patients != patient))
            order = reach[np.argsort(-row[reach], kind="stable")]
            found.append(order[np.sort(np.unique(self.gallery.patients[order], return_index=True)[1])])
        return found

    @property
    def nearest(self) -> Floats:
        """The :func:`familiarity` of each question, shape (q,)."""
        pairs = zip(self.similarity, self.rankings, strict=True)
        return np.array([familiarity(row[ranking]) for row, ranking in pairs])

    def among(self, known: NDArray[np.bool_]) -> LeaveOneOut:
        """The same questions where only some items of the gallery, of shape (n,), answer."""
        near = None if self.nearness is None else np.where(known, self.nearness, np.float32(-np.inf))
        return replace(self, similarity=np.where(known, self.similarity, np.float32(-np.inf)), nearness=near)

    def part(self, rows: NDArray[np.bool_], items: NDArray[np.bool_] | None = None) -> LeaveOneOut:
        """Some of the questions, asked of some of the items, or of all."""
        chosen = np.ones(len(self.gallery.patients), bool) if items is None else items
        places, cells = np.flatnonzero(rows).tolist(), np.ix_(rows, chosen)
        return replace(
            self,
            gallery=Gallery(
                self.gallery.patients[chosen],
                [self.gallery.labels[i] for i in np.flatnonzero(chosen).tolist()],
            ),
            patients=self.patients[rows],
            labels=[self.labels[i] for i in places],
            similarity=self.similarity[cells],
            sequences=[self.sequences[i] for i in places],
            scans=self.scans[rows],
            nearness=None if self.nearness is None else self.nearness[cells],
        )


def joined(parts: Sequence[LeaveOneOut]) -> LeaveOneOut:
    """Questions about the same gallery, put to each part's own encoder, as one."""
    near = [one.nearness for one in parts if one.nearness is not None]
    return replace(
        parts[0],
        nearness=np.concatenate(near) if near else None,
        patients=np.concatenate([one.patients for one in parts]),
        labels=[row for one in parts for row in one.labels],
        similarity=np.concatenate([one.similarity for one in parts]),
        sequences=[name for one in parts for name in one.sequences],
        scans=np.concatenate([one.scans for one in parts]),
    )


@dataclass(frozen=True)
class Votes:
    """What the neighbours say on one column, and what is true.

    Attributes
    ----------
    values : list of str
        Of the column, sorted.
    probabilities : ndarray, shape (n, c)
    truth : ndarray of int, shape (n,)
        Place in `values`; −1 where nobody known has it.
    weights : ndarray, shape (n,)
        One vote a patient.
    patients : ndarray, shape (n,)
        Who asks.
    scans : ndarray of int, shape (n,)
        Of each question, its place in the contents of the index.
    """

    values: list[str]
    probabilities: Floats
    truth: NDArray[np.int64]
    weights: Floats
    patients: NDArray[Any]
    scans: NDArray[np.int64]


def familiarity(scores: NDArray[np.floating[Any]]) -> float:
    """Mean of the :data:`NEAREST` highest of the patients' scores, best first; NaN if there is none.

    Examples
    --------
    >>> familiarity(np.array([0.75, 0.5, 0.25, 0.125]))
    0.5
    """
    return float(np.mean(scores[:NEAREST], dtype=np.float64)) if len(scores) else float("nan")


def votes(questions: LeaveOneOut, column: str) -> Votes:
    """The vote (see :func:`retrieval.evidence.vote`) on a column, of the questions that have it."""
    gallery = questions.gallery
    labels = np.array([row.get(column, "") for row in gallery.labels], object)
    by_patient = dict(zip(gallery.patients, labels, strict=True))
    counts = Counter(value for value in by_patient.values() if value)
    values = sorted(counts)
    rows = [place for place, row in enumerate(questions.labels) if row.get(column)]
    probabilities = np.empty((len(rows), len(values)))
    for said, row in zip(probabilities, rows, strict=True):
        own = by_patient.get(questions.patients[row])
        others = {value: n - (value == own) for value, n in counts.items()}
        prior = {value: n / max(1, sum(others.values())) for value, n in others.items()}
        ranked = questions.rankings[row]
        voters = ranked[labels[ranked] != ""][: questions.ranking.neighbours + 1]
        evidence = vote(questions.similarity[row][voters], list(labels[voters]), prior, questions.ranking)
        said[:] = [evidence.probabilities[value] for value in values]
    truth = [values.index(v) if (v := questions.labels[row][column]) in counts else -1 for row in rows]
    who = questions.patients[rows]
    return Votes(values, probabilities, np.array(truth, np.int64), shares(who), who, questions.scans[rows])
