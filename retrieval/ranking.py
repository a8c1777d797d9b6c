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

Another rule is a callable (:class:`Rule`) with an entry point in the group ``cbir.rankings``; an index
is asked by it with ``cbir.open_index(folder, ranking=cbir.Ranking("its name"))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.errors import QueryError
from indexer.sequences import is_composite
from retrieval.parsing import By

TYPICAL, KEPT = 500, 10_000
"""Cases that stand for all others, and how many of their slices are kept in memory."""
BLOCK = 1024
"""Single slices compared at once."""
APPEARANCE = 5.0
"""How many times the measures weigh where hits are ordered by appearance."""
WHOLES = "stacks"
"""The rule that compares a stack as a whole."""
GROUP = "cbir.rankings"
"""Entry points of rules by others."""


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
    """

    embeddings: NDArray[np.float32]
    weights: NDArray[np.float32]
    starts: NDArray[np.int64]

    @classmethod
    def one(cls, embeddings: NDArray[np.float32], weights: NDArray[np.float32]) -> Stacks:
        """A single group."""
        return cls(embeddings, weights, np.zeros(1, np.int64))

    @classmethod
    def of_means(cls, means: NDArray[np.float32]) -> Stacks:
        """What is compared of whole stacks, as groups of one slice."""
        return cls(means, np.ones(len(means), np.float32), np.arange(len(means)))

    @cached_property
    def means(self) -> NDArray[np.float32]:
        """The weighted mean of each group as a unit vector, shape (groups, dimension)."""
        if not len(self.starts):
            return self.embeddings[:0]
        sums = np.add.reduceat(self.weights[:, None] * self.embeddings, self.starts, axis=0)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return np.asarray(sums / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Slices of each group, shape (groups,)."""
        return np.diff(self.starts, append=len(self.embeddings))

    def chosen(self, groups: NDArray[np.int64]) -> Stacks:
        """Some of the groups."""
        ends = np.append(self.starts[1:], len(self.embeddings))
        rows = [np.arange(self.starts[g], ends[g]) for g in groups]
        flat = np.concatenate([np.empty(0, np.int64), *rows])
        starts = np.cumsum([0, *map(len, rows)])[:-1]
        return replace(self, embeddings=self.embeddings[flat], weights=self.weights[flat], starts=starts)


class Rule(Protocol):
    """How like each group of slices each of other groups is."""

    def __call__(self, queries: Stacks, cases: Stacks) -> NDArray[np.float32]:
        """Scores of one sequence, −1 to 1, shape (groups of `queries`, groups of `cases`)."""
        ...


def stacks(queries: Stacks, cases: Stacks) -> NDArray[np.float32]:
    """The rule of this module: a stack as a whole, a single slice with its like.

    Examples
    --------
    As a single slice, the second is as like the first case as it can be; as part of a stack it is not:

    >>> x = np.eye(3, dtype=np.float32)
    >>> cases = Stacks(x, np.array([3, 4, 1], np.float32), np.array([0, 2]))
    >>> stacks(Stacks.one(x[1:2], np.ones(1, np.float32)), cases)
    array([[1., 0.]], dtype=float32)
    >>> stacks(Stacks.one(x[1:], np.ones(2, np.float32)), cases).round(3)
    array([[0.566, 0.707]], dtype=float32)
    """
    scores: NDArray[np.float32] = queries.means @ cases.means.T
    single = np.flatnonzero(queries.lengths == 1)
    if len(cases.starts):
        for block in np.split(single, range(BLOCK, len(single), BLOCK)):
            similarity = queries.embeddings[queries.starts[block]] @ cases.embeddings.T
            scores[block] = np.maximum.reduceat(similarity, cases.starts, axis=1)
    return np.minimum(scores, np.float32(1))


def late_interaction(queries: Stacks, cases: Stacks) -> NDArray[np.float32]:
    """The rule that was tried first: the weighted mean of each query slice's best match ("MaxSim").

    Examples
    --------
    The first query slice counts three times:

    >>> unit = lambda x: np.stack([x, np.sqrt(1 - np.square(x))], axis=1).astype(np.float32)
    >>> query = Stacks.one(unit(np.array([1.0, 0.0])), np.array([3, 1], np.float32))
    >>> case = Stacks.one(unit(np.array([0.8])), np.ones(1, np.float32))
    >>> late_interaction(query, case).round(3)  # (3 · 0.8 + 0.6) / 4
    array([[0.75]], dtype=float32)
    """
    scores = np.empty((len(queries.starts), len(cases.starts)), np.float32)
    for row, start, length in zip(scores, queries.starts, queries.lengths, strict=True):
        own = slice(start, start + length)
        best = np.maximum.reduceat(queries.embeddings[own] @ cases.embeddings.T, cases.starts, axis=1)
        weights = queries.weights[own]
        row[:] = weights @ best / weights.sum()
    return np.minimum(scores, np.float32(1))


RULES: dict[str, Rule] = {WHOLES: stacks, "late-interaction": late_interaction}
"""Those that come with cbir."""


@cache
def rule(name: str) -> Rule:
    """A rule by its name: one of :data:`RULES`, or an entry point of a package.

    Raises
    ------
    QueryError
        If there is none.
    """
    if name in RULES:
        return RULES[name]
    for point in entry_points(group=GROUP, name=name):
        found: Rule = point.load()
        return found
    known = ", ".join([*RULES, *(point.name for point in entry_points(group=GROUP))])
    raise QueryError(name, "there is no such ranking", f"choose one of {known}, or install its package")


@dataclass(frozen=True)
class Ranking:
    """What decides an answer beside the index: one value, passed down and kept with a calibration.

    Attributes
    ----------
    rule : str
        Name of the :class:`Rule` that compares slices of one sequence.
    composite_weight : float
        Weight of a composite's score in the mean over sequences, where a sequence has 1.
    neighbours : int
        Patients that vote.
    prior_mass : float
        Votes that the prior has.
    set_mass : float
        Probability that the set of values holds, where the vote is not calibrated.
    likeness : float
        What a hit's similarity loses, in the order of hits, for each spread by which its lesion's measures
        differ from the query's (:mod:`retrieval.likeness`). It has no part in the vote.
    agreement : float
        How much nearer or farther cases are, in the same order, for labels that the vote makes likelier or
        less likely than they are in the index (:mod:`retrieval.agreement`).
    """

    rule: str = WHOLES
    composite_weight: float = 8.0
    neighbours: int = 15
    prior_mass: float = 1.0
    set_mass: float = 0.9
    likeness: float = 0.2
    agreement: float = 3.0

    @property
    def of_votes(self) -> Ranking:
        """What of it decides votes: the same whatever orders the hits."""
        return replace(self, likeness=0.0, agreement=0.0)

    def shares(self, by: By | None) -> tuple[float, float]:
        """Of likeness and of agreement in the order of hits, for who asks ``by`` something of it alone."""
        return {
            "class": (0.0, self.agreement),
            "appearance": (APPEARANCE * self.likeness, 0.0),
            "similarity": (0.0, 0.0),
        }.get(by or "", (self.likeness, self.agreement))

    def scores(self, queries: Stacks, cases: Stacks) -> NDArray[np.float32]:
        """How like each query each case is in one sequence, shape (queries, cases); see :class:`Rule`."""
        return rule(self.rule)(queries, cases)

    def fused(
        self,
        scores: NDArray[np.float32],
        sequences: Sequence[str | None],
        typical: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Mean of a case's scores over the query's sequences.

        One that a case lacks counts as it does in cases at large. Else whoever shares one sequence alone
        would come first by mere chance: one score strays farther than the mean of several.

        Parameters
        ----------
        scores : ndarray, shape (s, ...)
            NaN where a case lacks the sequence.
        sequences : sequence of str, length s
        typical : ndarray, shape (s, ...)
            Mean score of cases at large, broadcast to `scores`; NaN where no case has the sequence, which
            is then left out. None leaves out whatever a case lacks.

        Returns
        -------
        ndarray of float32, shape (...)
            NaN where no sequence is shared.

        Examples
        --------
        >>> scores, names = np.array([[.2, .5], [.4, np.nan]]), ["t1", "t2"]
        >>> Ranking().fused(scores, names, np.array([[0.3], [0.1]])).round(2)
        array([0.3, 0.3], dtype=float32)
        >>> Ranking().fused(scores, names).round(2)
        array([0.3, 0.5], dtype=float32)
        """
        weights = np.array([self.composite_weight if is_composite(name) else 1.0 for name in sequences])
        weights = weights.reshape(-1, *[1] * (scores.ndim - 1))
        shared = ~np.isnan(scores)
        full = scores if typical is None else np.where(shared, scores, typical)
        known = ~np.isnan(full)
        total = (weights * np.where(known, full, 0)).sum(axis=0)
        weight = (weights * known).sum(axis=0)
        return np.where(shared.any(axis=0), total / np.where(weight > 0, weight, 1), np.nan).astype(
            np.float32
        )

    def fuse(
        self,
        matches: Sequence[Matches],
        sequences: Sequence[str | None],
        typical: Sequence[float] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Rank cases by their :meth:`fused` scores.

        Parameters
        ----------
        matches : sequence of Matches
        sequences : sequence of str
            That each of them is of.
        typical : sequence of float, optional
            See :meth:`fused`.

        Returns
        -------
        cases : ndarray of int64, shape (c,)
            Best first; ties by case.
        scores : ndarray of float32, shape (c,)
        shown : ndarray of int64, shape (c,)
            For each case the place in `matches` of the sequence to show: its best, a composite where it
            shares nothing else.
        """
        nothing = np.empty(0, np.int64)
        cases = np.unique(np.concatenate([nothing, *(m.cases for m in matches)]))
        table = np.full((len(matches), len(cases)), np.nan, np.float32)
        for row, m in zip(table, matches, strict=True):
            row[np.searchsorted(cases, m.cases)] = m.scores
        if not len(cases):
            return nothing, np.empty(0, np.float32), nothing
        large = None if typical is None else np.array(typical, np.float32)[:, None]
        scores = self.fused(table, sequences, large)
        order = np.lexsort((cases, -scores))
        return cases[order], scores[order], best_shown(table, sequences)[order]


def best_shown(scores: NDArray[np.float32], sequences: Sequence[str | None]) -> NDArray[np.int64]:
    """Which sequence to show: its best, a composite where nothing else is shared.

    Parameters
    ----------
    scores : ndarray, shape (s, ...)
        NaN where a case lacks the sequence.
    sequences : sequence of str, length s

    Returns
    -------
    ndarray of int64, shape (...)
    """
    composites = np.array([is_composite(name) for name in sequences], bool)
    # any sequence before a composite: scores are within 1
    lowered = scores - np.where(composites, 4, 0).reshape(-1, *[1] * (scores.ndim - 1))
    return np.asarray(np.argmax(np.where(np.isnan(scores), -np.inf, lowered), axis=0), np.int64)


@dataclass(frozen=True)
class Matches:
    """What one sequence of the query found.

    Attributes
    ----------
    cases : ndarray of int64, shape (c,)
        Cases that hold the sequence, ascending.
    scores : ndarray of float32, shape (c,)
    nearness : ndarray of float32, shape (c,)
        Cosine of the query as a whole with each case as a whole (:func:`nearness`), whatever the rule.
    """

    cases: NDArray[np.int64]
    scores: NDArray[np.float32]
    nearness: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


def nearness(queries: Stacks, cases: Stacks) -> NDArray[np.float32]:
    """Cosines of the weighted mean embeddings, of single slices too, shape (queries, cases).

    It tells whether a query is of a kind that the cases have (:mod:`retrieval.open_set`). The best match of
    a slice cannot: in any case there is some slice that looks like a slice of another kind.
    """
    return np.asarray(queries.means @ cases.means.T)


def grouped(
    stored: NDArray[np.float32], weights: NDArray[np.float32], cases: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Stacks]:
    """Slices in any order, gathered by the case that each belongs to.

    Returns
    -------
    cases : ndarray of int64
        Ascending, each once.
    stacks : Stacks
        A group each.
    """
    if (cases[1:] < cases[:-1]).any():
        order = np.argsort(cases, kind="stable")
        stored, weights, cases = stored[order], weights[order], cases[order]
    found, starts = np.unique(cases, return_index=True)
    return found, Stacks(stored, weights, starts)


def at_large(cases: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some of many cases, evenly spaced, or all of few: those whose mean score is typical."""
    if len(cases) <= TYPICAL:
        return cases
    return cases[((np.arange(TYPICAL) + 0.5) * len(cases) / TYPICAL).astype(np.int64)]


def best_of_each(
    of: NDArray[np.int64], *scores: NDArray[np.float32]
) -> tuple[NDArray[np.int64], *tuple[NDArray[np.float32], ...]]:
    """Cases with the best scores of their parts.

    A case of several sequences is compared in each of them where the query's is unknown, and not as the
    mean of pictures that have nothing in common.

    Parameters
    ----------
    of : ndarray of int64, shape (p,)
        The case that each part is of; ascending.
    scores : ndarray of float32, shape (..., p)

    Returns
    -------
    cases : ndarray of int64, shape (c,)
    scores : ndarray of float32, shape (..., c), as many as were given

    Examples
    --------
    >>> best_of_each(np.array([4, 4, 7]), np.array([0.1, 0.3, 0.2], np.float32))
    (array([4, 7]), array([0.3, 0.2], dtype=float32))
    """
    cases, starts = np.unique(of, return_index=True)
    if len(cases) == len(of):
        return cases, *scores
    return cases, *(np.maximum.reduceat(one, starts, axis=-1) for one in scores)


def shown_pair(
    queries: NDArray[np.float32],
    weights: NDArray[np.float32],
    stored: NDArray[np.float32],
    less: NDArray[np.float32] | None = None,
) -> tuple[int, int]:
    """The pair of slices that speaks most for a case: largest weight times similarity.

    Parameters
    ----------
    queries : ndarray of float32, shape (q, dimension)
    weights : ndarray of float32, shape (q,)
    stored : ndarray of float32, shape (n, dimension)
        The case's slices.
    less : ndarray of float32, shape (n,), optional
        What the similarity of each is lessened by before.

    Returns
    -------
    (query row, stored row)
        The first of equal ones.
    """
    similarity = queries @ stored.T
    if less is not None:
        similarity = similarity - less
    query = int(np.argmax(weights * similarity.max(axis=1)))
    return query, int(np.argmax(similarity[query]))
