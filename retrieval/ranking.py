"""From slices to ranked cases: one comparison within a sequence, then fusion over sequences.

A stack is compared with a case as a whole, by the cosine of their weighted mean embeddings; the
weight of a slice is how informative it is:

    score(q, c) = cos(sum_i w_i q_i, sum_j v_j c_j)

A single slice has no such whole: it is compared with the slice of the case that is most like it
("MaxSim", Khattab and Zaharia 2020, ColBERT, https://doi.org/10.1145/3397271.3401075):

    score(q, c) = max_j <q, c_j>

For stacks the mean over all slices' best matches ranks worse: among the slices of any case there is
one that looks like a slice of any other (docs/evaluation.md has the figures). The best match is
what is shown of a hit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from indexer.composite import COMPOSITE

BLOCK = 1024
"""Single slices compared at once."""

COMPOSITE_WEIGHT = 8.0
"""Weight of a composite's score in the mean over sequences."""


@dataclass(frozen=True)
class Matches:
    """What one sequence of the query found.

    Attributes
    ----------
    cases : ndarray of int64, shape (c,)
        Cases that hold the sequence, ascending.
    scores : ndarray of float32, shape (c,)
    query_rows, rows : ndarray of int64, shape (c,)
        The pair of slices that speaks most for each case: largest weight times similarity.
    """

    cases: NDArray[np.int64]
    scores: NDArray[np.float32]
    query_rows: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Stacks:
    """Slices of one sequence in groups: those of a scan, or of a case.

    Attributes
    ----------
    embeddings : ndarray of float32, shape (n, dimension)
        Unit vectors.
    weights : ndarray of float32, shape (n,)
        How informative each slice is, > 0.
    starts : ndarray of int64, shape (groups,)
        Where each group begins, ascending.

    Examples
    --------
    >>> x = np.eye(3, dtype=np.float32)
    >>> cases = Stacks(x, np.array([3, 4, 1], np.float32), np.array([0, 2]))
    >>> cases.means
    array([[0.6, 0.8, 0. ],
           [0. , 0. , 1. ]], dtype=float32)

    As a single slice, the second is as like the first case as it can be; as part of a stack it is not:

    >>> Stacks(x[1:2], np.ones(1, np.float32), np.array([0])).scores(cases)
    array([[1., 0.]], dtype=float32)
    >>> Stacks(x[1:], np.ones(2, np.float32), np.array([0])).scores(cases).round(3)
    array([[0.566, 0.707]], dtype=float32)
    """

    embeddings: NDArray[np.float32]
    weights: NDArray[np.float32]
    starts: NDArray[np.int64]

    @cached_property
    def means(self) -> NDArray[np.float32]:
        """The weighted mean of each group as a unit vector, shape (groups, dimension)."""
        if not len(self.starts):
            return self.embeddings[:0]
        sums = np.add.reduceat(self.weights[:, None] * self.embeddings, self.starts, axis=0)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return np.asarray(sums / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)

    def chosen(self, groups: NDArray[np.int64]) -> Stacks:
        """Some of the groups."""
        ends = np.append(self.starts[1:], len(self.embeddings))
        rows = [np.arange(self.starts[g], ends[g]) for g in groups]
        flat = np.concatenate([np.empty(0, np.int64), *rows])
        starts = np.cumsum([0, *map(len, rows)])[:-1]
        return replace(self, embeddings=self.embeddings[flat], weights=self.weights[flat], starts=starts)

    def scores(self, others: Stacks) -> NDArray[np.float32]:
        """How like each group each of the others is, shape (groups, other groups)."""
        scores: NDArray[np.float32] = self.means @ others.means.T
        lengths = np.diff(self.starts, append=len(self.embeddings))
        single = np.flatnonzero(lengths == 1)
        if len(others.starts):
            for block in np.split(single, range(BLOCK, len(single), BLOCK)):
                slices = self.embeddings[self.starts[block]] @ others.embeddings.T
                scores[block] = np.maximum.reduceat(slices, others.starts, axis=1)
        return np.minimum(scores, np.float32(1))


def compared(
    queries: NDArray[np.float32],
    weights: NDArray[np.float32],
    stored: NDArray[np.float32],
    stored_weights: NDArray[np.float32],
    cases: NDArray[np.int64],
) -> Matches:
    """Score cases for one group of slices, and find the pair of slices to show of each.

    Parameters
    ----------
    queries : ndarray of float32, shape (q, dimension)
    weights : ndarray of float32, shape (q,)
    stored : ndarray of float32, shape (n, dimension)
        In any order.
    stored_weights : ndarray of float32, shape (n,)
    cases : ndarray of int, shape (n,)
        The case each stored slice belongs to.
    """
    pairs = late_interaction(queries @ stored.T, weights, cases)
    order = np.argsort(cases, kind="stable")
    starts = np.searchsorted(cases[order], pairs.cases)
    query = Stacks(queries, weights, np.zeros(1, np.int64))
    return replace(pairs, scores=query.scores(Stacks(stored[order], stored_weights[order], starts))[0])


def late_interaction(
    similarity: NDArray[np.float32], weights: NDArray[np.float32], cases: NDArray[np.int64]
) -> Matches:
    """Combine slice similarities into case scores: the weighted mean of the best matches.

    Parameters
    ----------
    similarity : ndarray, shape (q, n)
        Query slices by stored slices, cosine.
    weights : ndarray, shape (q,)
        How informative each query slice is, > 0.
    cases : ndarray of int, shape (n,)
        The case each stored slice belongs to.

    Examples
    --------
    Case 7 holds the first two slices, case 9 the third; the first query slice counts three times:

    >>> m = late_interaction(np.array([[.5, .9, .8], [.4, .1, .8]], np.float32),
    ...                      np.array([3, 1], np.float32), np.array([7, 7, 9]))
    >>> m.cases.tolist(), [f"{s:.3f}" for s in m.scores], m.query_rows.tolist(), m.rows.tolist()
    ([7, 9], ['0.775', '0.800'], [0, 0], [1, 2])
    """
    order = np.argsort(cases, kind="stable")
    found, starts = np.unique(cases[order], return_index=True)
    if not len(found):
        nothing = np.empty(0, np.int64)
        return Matches(nothing, np.empty(0, np.float32), nothing, nothing)
    grouped = similarity if (order[1:] > order[:-1]).all() else similarity[:, order]
    best = np.maximum.reduceat(grouped, starts, axis=1)  # MaxSim: (q, c)
    scores = weights @ best / weights.sum()
    query_rows = np.argmax(weights[:, None] * best, axis=0)
    ends = np.append(starts[1:], len(order))
    rows = np.array(
        [
            order[start + int(np.argmax(grouped[row, start:end]))]
            for row, start, end in zip(query_rows, starts, ends, strict=True)
        ],
        np.int64,
    )
    return Matches(found, np.minimum(scores, 1).astype(np.float32), query_rows, rows)


def fused(scores: NDArray[np.float32], sequences: Sequence[str | None]) -> NDArray[np.float32]:
    """Mean of a case's scores over the sequences that it shares with the query.

    What several sequences show together weighs :data:`COMPOSITE_WEIGHT` times as much as one of them.

    Parameters
    ----------
    scores : ndarray, shape (s, ...)
        NaN where a case lacks the sequence.
    sequences : sequence of str, length s

    Returns
    -------
    ndarray of float32, shape (...)
        NaN where no sequence is shared.

    Examples
    --------
    >>> fused(np.array([[.2, .5], [.4, np.nan]]), ["t1", "t2"]).round(2)
    array([0.3, 0.5], dtype=float32)
    """
    weights = np.array([COMPOSITE_WEIGHT if sequence == COMPOSITE else 1.0 for sequence in sequences])
    weights = weights.reshape(-1, *[1] * (scores.ndim - 1))
    shared = ~np.isnan(scores)
    total = (weights * np.where(shared, scores, 0)).sum(axis=0)
    weight = (weights * shared).sum(axis=0)
    return np.where(weight > 0, total / np.maximum(weight, 1), np.nan).astype(np.float32)


def fuse(
    matches: Sequence[Matches], sequences: Sequence[str | None]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Rank cases by their :func:`fused` scores.

    Parameters
    ----------
    matches : sequence of Matches
    sequences : sequence of str
        That each of them is of.

    Returns
    -------
    cases : ndarray of int64, shape (c,)
        Best first; ties by case.
    scores : ndarray of float32, shape (c,)
    best : ndarray of int64, shape (c,)
        For each case the place in `matches` of the sequence to show: its best, a composite where it
        shares nothing else.
    """
    cases = np.unique(np.concatenate([m.cases for m in matches])) if matches else np.empty(0, np.int64)
    table = np.full((len(matches), len(cases)), np.nan, np.float32)
    for row, m in enumerate(matches):
        table[row, np.searchsorted(cases, m.cases)] = m.scores
    if not len(cases):
        return cases, np.empty(0, np.float32), cases
    scores = fused(table, sequences)
    order = np.lexsort((cases, -scores))
    single = np.array([sequence != COMPOSITE for sequence in sequences])[:, None]
    shown = np.where(np.isnan(table), -np.inf, np.where(single, table + 2, table - 2))  # cosines: within 1
    return cases[order], scores[order], np.argmax(shown, axis=0)[order]
