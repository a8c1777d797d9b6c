"""From slice similarities to ranked cases: late interaction within a sequence, then fusion.

The score of a case for one sequence of the query is the weighted mean, over the query's slices, of
the similarity to the best matching slice of the case ("MaxSim", Khattab and Zaharia 2020, ColBERT,
https://doi.org/10.1145/3397271.3401075, here with weights):

    score(q, c) = sum_i w_i max_j <q_i, c_j> / sum_i w_i

Each query slice must find its like, so a case cannot win by one lucky slice, and a case with many
slices gains nothing from their number alone. The weight of a slice is how informative it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


def late_interaction(
    similarity: NDArray[np.float32], weights: NDArray[np.float32], cases: NDArray[np.int64]
) -> Matches:
    """Combine slice similarities into case scores.

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


def fuse(matches: Sequence[Matches]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Mean of a case's scores over the sequences it shares with the query.

    Returns
    -------
    cases : ndarray of int64, shape (c,)
        Best first; ties by case.
    scores : ndarray of float32, shape (c,)
    best : ndarray of int64, shape (c,)
        For each case the place in `matches` of its best sequence.
    """
    cases = np.unique(np.concatenate([m.cases for m in matches])) if matches else np.empty(0, np.int64)
    table = np.full((len(matches), len(cases)), np.nan, np.float32)
    for row, m in enumerate(matches):
        table[row, np.searchsorted(cases, m.cases)] = m.scores
    if not len(cases):
        return cases, np.empty(0, np.float32), cases
    scores = np.nanmean(table, axis=0)
    order = np.lexsort((cases, -scores))
    return cases[order], scores[order], np.nanargmax(table, axis=0)[order]
