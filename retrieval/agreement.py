"""How far a case's labels agree with the vote: what brings hits of the likely class before others.

A single similarity is noisier than the vote of the nearest fifteen: where these agree on a class, a case of
another one that happens to look alike is more often wrong than right. So in the order of hits a case that
agrees is taken to be nearer than it is, and one that does not to be farther (see
:class:`retrieval.ranking.Ranking`):

    distance(q, c) = (1 - score(q, c)) exp(-share * agreement(q, c))

Agreement is how much likelier the vote makes a case's labels than they are in the index: a label which
the neighbours tell nothing about moves nothing, and an undecided vote leaves the order to the scores.
Whatever is the same as the query stays first. Votes are not touched.

"Rank by predicted class", the baseline of many evaluations, is the same with an endless share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.answer import Evidence
from retrieval.evidence import RANKING, vote
from retrieval.items import Similarity, codes
from retrieval.ranking import Ranking

Lifts = Mapping[str, Mapping[str, float]]
"""For each label column what each value gains: its probability less its share of the index."""


def lifts(votes: Mapping[str, Evidence]) -> Lifts:
    """What the votes say of each value beyond what the index does; nothing where they abstain.

    Examples
    --------
    >>> said = vote(np.array([.9, .8, .7], np.float32), ["4", "4", "2"], {"2": .5, "4": .5})
    >>> {value: round(lift, 2) for value, lift in lifts({"who_grade": said})["who_grade"].items()}
    {'2': -0.3, '4': 0.3}
    """
    return {
        name: {value: p - said.prior.get(value, 0.0) for value, p in said.probabilities.items()}
        for name, said in votes.items()
        if not said.abstain
    }


def agreement(gains: Lifts, cases: Iterable[Mapping[str, str]]) -> NDArray[np.float32]:
    """Mean lift of each case's labels over the columns that were voted on; 0 for one that it lacks.

    Parameters
    ----------
    gains : mapping
        See :func:`lifts`.
    cases : iterable of mapping
        The labels of each case.

    Returns
    -------
    ndarray of float32, shape (cases,)
        −1 to 1.

    Examples
    --------
    >>> gains = {"who_grade": {"2": -0.25, "4": 0.25}, "sex": {"F": 0.0, "M": 0.0}}
    >>> agreement(gains, [{"who_grade": "4", "sex": "F"}, {"who_grade": "2"}, {}])
    array([ 0.125, -0.125,  0.   ], dtype=float32)
    """
    if not gains:
        return np.zeros(sum(1 for _ in cases), np.float32)
    found = [sum(of.get(row.get(name, ""), 0.0) for name, of in gains.items()) for row in cases]
    return np.array(found, np.float32) / np.float32(len(gains))


def gain(scores: NDArray[np.floating[Any]], agree: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """How much nearer than their scores cases are for what they agree in; negative where they do not.

    Examples
    --------
    >>> gain(np.array([1.0, 0.8, 0.8, 0.8]), np.array([0.5, 0.5, 0.0, -0.5], np.float32), 2.0).round(2)
    array([ 0.  ,  0.13,  0.  , -0.34], dtype=float32)
    """
    away = np.where(np.isfinite(scores), np.maximum(1 - scores, 0), 0)
    return np.asarray(away * (1 - np.exp(-share * agree)), np.float32)


def with_agreement(
    scores: Similarity,
    columns: Mapping[str, Sequence[str | None]],
    patients: Sequence[str],
    *,
    folds: Sequence[str | None] | None = None,
    ranking: Ranking = RANKING,
) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """Scores as agreement brings them nearer or farther, for an evaluation.

    Parameters
    ----------
    scores : Similarity
        By which the neighbours vote.
    columns : mapping of str to sequence of str or None
        Label columns that are voted on, one entry an item.
    patients, folds
        As in :func:`retrieval.evaluation.evaluate`: who may answer whom, and so who votes.
    ranking : Ranking

    Returns
    -------
    callable
        A :data:`~retrieval.items.Similarity`.
    """
    n = len(patients)
    whose, numbers = np.unique(np.array(patients, object), return_inverse=True)
    fold = np.full(n, -1) if folds is None else codes(folds)[1]
    known = np.ones(n, bool) if folds is None else fold >= 0
    values, coded = {}, {}
    for name, column in columns.items():
        values[name], coded[name] = codes(column)
    first = np.full(len(whose), n)
    np.minimum.at(first, numbers[known], np.flatnonzero(known))
    first = first[first < n]

    def counted(name: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        found = coded[name][rows]
        return np.bincount(found[found >= 0], minlength=len(values[name]))

    @cache
    def others(name: str, own: int) -> NDArray[np.int64]:
        """How many patients of other folds have each value."""
        return counted(name, first if folds is None else first[fold[first] != own])

    def gained(row: int, scored: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        allowed = known & (numbers != numbers[row]) & ((fold != fold[row]) | (folds is None))
        reach = np.flatnonzero(allowed & np.isfinite(scored))
        order = reach[np.argsort(-scored[reach], kind="stable")]
        voters = order[np.sort(np.unique(numbers[order], return_index=True)[1])]
        own = first[(numbers[first] == numbers[row]) & ((fold[first] != fold[row]) | (folds is None))]
        total, told = np.zeros(n, np.float32), 0
        for name, kinds in values.items():
            held = others(name, int(fold[row])) - counted(name, own)
            prior = {kinds[i]: held[i] / held.sum() for i in np.flatnonzero(held).tolist()}
            if len(prior) < 2:
                continue
            able = voters[coded[name][voters] >= 0][: ranking.neighbours + 1]
            labels = [kinds[i] for i in coded[name][able].tolist()]
            gains = lifts({name: vote(scored[able].astype(np.float32), labels, prior, ranking)})
            if name in gains:
                told += 1
                lift = np.array([*(gains[name].get(kind, 0.0) for kind in kinds), 0.0], np.float32)
                total += lift[coded[name]]
        return total / np.float32(max(1, told))

    def agreed(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        found = np.array(scores(rows) if callable(scores) else scores[rows], np.float32)
        for scored, row in zip(found, rows.tolist(), strict=True):
            scored += gain(scored, gained(row, scored), ranking.agreement)
        return found

    return agreed
