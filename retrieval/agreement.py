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

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.answer import Evidence
from retrieval.evidence import RANKING, vote
from retrieval.items import Items, Similarity
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
    found = [sum(gain.get(row.get(name, ""), 0.0) for name, gain in gains.items()) for row in cases]
    return np.array(found, np.float32) / np.float32(len(gains))


def brought(
    scores: NDArray[np.floating[Any]], agree: NDArray[np.float32], share: float
) -> NDArray[np.float32]:
    """How much nearer than their scores cases are for what they agree in; negative where they do not.

    Examples
    --------
    >>> brought(np.array([1.0, 0.8, 0.8, 0.8]), np.array([0.5, 0.5, 0.0, -0.5], np.float32), 2.0).round(2)
    array([ 0.  ,  0.13,  0.  , -0.34], dtype=float32)
    """
    away = np.where(np.isfinite(scores), np.maximum(1 - scores, 0), 0)
    return np.asarray(away * (1 - np.exp(-share * agree)), np.float32)


def agreeing(
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
    items = Items.of(["any"] * n, patients, folds, None)
    fold = np.zeros(n, np.int64) if items.fold is None else items.fold
    named = {name: np.array([value or "" for value in values], object) for name, values in columns.items()}
    first = np.unique(items.patient, return_index=True)[1]

    @cache
    def priors(patient: int, own: int) -> dict[str, dict[str, float]]:
        """The share of each value among the patients who answer."""
        others = first[items.patient[first] != patient]
        others = others if items.fold is None else others[fold[others] != own]
        counts = {name: Counter(filter(None, values[others])) for name, values in named.items()}
        return {
            name: {value: count / held.total() for value, count in sorted(held.items())}
            for name, held in counts.items()
        }

    def gained(
        row: int, scored: NDArray[np.floating[Any]], allowed: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        reach = np.flatnonzero(allowed & np.isfinite(scored))
        order = reach[np.argsort(-scored[reach], kind="stable")]
        voters = order[np.sort(np.unique(items.patient[order], return_index=True)[1])]
        total = np.zeros(n, np.float32)
        for name, prior in priors(int(items.patient[row]), int(fold[row])).items():
            values = named[name]
            able = voters[values[voters] != ""][: ranking.neighbours + 1]
            said = vote(scored[able].astype(np.float32), list(values[able]), prior, ranking)
            for value, lift in lifts({name: said}).get(name, {}).items():
                total[values == value] += lift
        return total / np.float32(max(1, len(named)))

    def agreed(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        found = np.array(scores(rows) if callable(scores) else scores[rows], np.float32)
        for scored, row, allowed in zip(found, rows.tolist(), items.allowed(rows), strict=True):
            scored += brought(scored, gained(row, scored, allowed), ranking.agreement)
        return found

    return agreed
