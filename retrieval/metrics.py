"""How good a ranked list is: pure functions with their formulas and a worked example each.

A ranked list is an array along the last axis, best match first; leading axes are queries. ``hits``
holds 1 where the item at a rank has the query's label and 0 where it has not. In the formulas

- rel(i) is the hit at rank i, counted from 1,
- N is the number of items ranked, R the number of them that are relevant,
- P(i) = (1/i) Σ_{j≤i} rel(j) is the precision at rank i.

Lists of unequal length are padded at their end with zeros, and their lengths given as `size`.

Items with equal scores have no order. Given the :class:`Ties`, every function returns its expected
value over all orders of the tied items, in closed form: the result is exact and does not depend on
the order in which the items are stored (McSherry and Najork, "Computing information retrieval
performance measures efficiently in the presence of tied scores", ECIR 2008).

A query without any relevant item has no R-precision, average precision or nDCG: the result is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ties:
    """Which ranks share one score.

    Attributes
    ----------
    first, last : ndarray of int, shape (..., n)
        For each rank, counted from 0, the first and the last rank of its group of equal scores.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]


def ties(scores: ArrayLike) -> Ties | None:
    """Groups of equal scores in ranked lists.

    Parameters
    ----------
    scores : array_like, shape (..., n)
        Similarities in rank order (not increasing); −inf pads a list and is never tied.

    Returns
    -------
    Ties or None
        None where no two scores are equal, so that nothing has to be averaged.

    Examples
    --------
    >>> ties([0.9, 0.5, 0.5, 0.1]).first, ties([0.9, 0.5, 0.5, 0.1]).last
    (array([0, 1, 1, 3]), array([0, 2, 2, 3]))
    >>> ties([0.9, 0.5, 0.1]) is None
    True
    """
    s = np.asarray(scores)
    same = (s[..., 1:] == s[..., :-1]) & (s[..., 1:] > -np.inf)
    if not same.any():
        return None
    ranks = np.arange(s.shape[-1])
    edge = np.zeros((*s.shape[:-1], 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, same], -1), 0, ranks), axis=-1)
    ends = np.where(np.concatenate([same, edge], -1), s.shape[-1], ranks)
    last = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]
    return Ties(first, last)


def precision_at_k(
    hits: ArrayLike, k: int, *, size: ArrayLike | None = None, ties: Ties | None = None
) -> Floats:
    """Share of relevant items among the first k.

    P@k = (1 / min(k, N)) Σ_{i≤k} rel(i). Where fewer than k items exist, the share is taken of
    those that do, so that a perfect list of a small database still reaches 1.

    Parameters
    ----------
    hits : array_like, shape (..., n)
    k : int
    size : array_like of int, shape (...), optional
        N, where lists are padded; default n.
    ties : Ties, optional

    Returns
    -------
    ndarray, shape (...)

    Raises
    ------
    ValueError
        If `k` is not positive.

    Examples
    --------
    >>> float(precision_at_k([1, 1, 0, 0, 1], 5))
    0.6
    """
    return precision_curve(hits, k, size=size, ties=ties)[..., -1]


def precision_curve(
    hits: ArrayLike, depth: int, *, size: ArrayLike | None = None, ties: Ties | None = None
) -> Floats:
    """P@1, P@2, … P@depth: see :func:`precision_at_k`.

    Returns
    -------
    ndarray, shape (..., depth)

    Raises
    ------
    ValueError
        If `depth` is not positive.

    Examples
    --------
    >>> [round(float(p), 3) for p in precision_curve([1, 0, 1], 4)]
    [1.0, 0.5, 0.667, 0.667]
    """
    _check_cut(depth)
    rel = np.asarray(hits, dtype=np.float64)
    lengths = np.asarray(rel.shape[-1] if size is None else size)
    found = np.cumsum(_expected(rel, ties, depth), axis=-1)
    ranks = np.arange(1, depth + 1)
    reached = found[..., np.minimum(ranks, found.shape[-1]) - 1]
    return np.asarray(_share(reached, np.minimum(ranks, lengths[..., None])))


def r_precision(hits: ArrayLike, *, total: ArrayLike | None = None, ties: Ties | None = None) -> Floats:
    """Precision at rank R, where R is the number of all relevant items.

    (1/R) Σ_{i≤R} rel(i).

    Parameters
    ----------
    hits : array_like, shape (..., n)
    total : array_like of int, shape (...), optional
        R, where the list does not hold all relevant items; default the hits in the list.
    ties : Ties, optional

    Returns
    -------
    ndarray, shape (...)

    Examples
    --------
    >>> round(float(r_precision([1, 1, 0, 0, 1])), 3)  # R = 3, two of them among the first three
    0.667
    """
    rel = np.asarray(hits, dtype=np.float64)
    relevant = _relevant(rel, total)
    return _share(_sum_to(_expected(rel, ties), relevant), relevant)


def average_precision(hits: ArrayLike, *, total: ArrayLike | None = None, ties: Ties | None = None) -> Floats:
    """Average precision over the full ranking, divided by all relevant items.

    AP = (1/R) Σ_{i≤N} rel(i) P(i); its mean over queries is mAP. This is the definition of Cheng et
    al. 2016: a relevant item that the list does not reach counts as missed. Dividing by the hits
    found, or by min(R, k), gives other and higher figures under the same name.

    Parameters
    ----------
    hits : array_like, shape (..., n)
    total : array_like of int, shape (...), optional
        R, where the list does not hold all relevant items; default the hits in the list.
    ties : Ties, optional

    Returns
    -------
    ndarray, shape (...)

    Examples
    --------
    Hits at ranks 1, 2 and 5: precisions 1/1, 2/2 and 3/5, in sum 2.6.

    >>> round(float(average_precision([1, 1, 0, 0, 1, 0, 0, 0, 0, 0])), 3)
    0.867
    >>> round(float(average_precision([1, 1, 0, 0, 1, 0, 0, 0, 0, 0], total=50)), 3)
    0.052
    """
    rel = np.asarray(hits, dtype=np.float64)
    return _share(_precision_at_hits(rel, ties).sum(axis=-1), _relevant(rel, total))


def average_precision_at_r(
    hits: ArrayLike, *, total: ArrayLike | None = None, ties: Ties | None = None
) -> Floats:
    """Average precision over the first R ranks; its mean over queries is MAP@R.

    (1/R) Σ_{i≤R} rel(i) P(i): Musgrave, Belongie and Lim, "A metric learning reality check", ECCV
    2020. Unlike AP it rewards nothing that comes after the place where a perfect list would end.

    Parameters
    ----------
    hits : array_like, shape (..., n)
    total : array_like of int, shape (...), optional
        R, where the list does not hold all relevant items; default the hits in the list.
    ties : Ties, optional

    Returns
    -------
    ndarray, shape (...)

    Examples
    --------
    >>> round(float(average_precision_at_r([1, 1, 0, 0, 1])), 3)  # R = 3: (1/1 + 2/2) / 3
    0.667
    """
    rel = np.asarray(hits, dtype=np.float64)
    relevant = _relevant(rel, total)
    return _share(_sum_to(_precision_at_hits(rel, ties), relevant), relevant)


def ndcg_at_k(gains: ArrayLike, k: int, *, ties: Ties | None = None) -> Floats:
    """Normalised discounted cumulative gain of the first k, for relevance that has degrees.

    DCG@k = Σ_{i≤k} gain(i) / log2(i + 1), and nDCG@k = DCG@k / (DCG@k of the same items sorted by
    gain). The gain is linear (Järvelin and Kekäläinen, TOIS 2002).

    Parameters
    ----------
    gains : array_like, shape (..., n)
        Not negative, in rank order, of the whole list (the ideal list is drawn from it).
    k : int
    ties : Ties, optional

    Returns
    -------
    ndarray, shape (...)

    Raises
    ------
    ValueError
        If `k` is not positive.

    Examples
    --------
    Query of grade 4; the list holds grades 4, 2, 3, and the gain is 2 − |distance|: 2, 0, 1.
    DCG = 2/log2(2) + 1/log2(4) = 2.5; ideal 2/log2(2) + 1/log2(3) = 2.631.

    >>> round(float(ndcg_at_k([2, 0, 1], 10)), 3)
    0.95
    """
    _check_cut(k)
    g = np.asarray(gains, dtype=np.float64)
    return _share(_discounted(_expected(g, ties, k)), _discounted(_best(g, k)))


def grade_gains(grades: ArrayLike) -> Floats:
    """Gain of each grade for a query of each grade: the largest distance minus the distance.

    gain(a, b) = max |distance| − |a − b|, where the maximum is over the grades given.

    Parameters
    ----------
    grades : array_like, shape (c,)
        The classes as numbers.

    Returns
    -------
    ndarray, shape (c, c)

    Examples
    --------
    >>> grade_gains([2, 3, 4]).tolist()
    [[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]]
    """
    g = np.asarray(grades, dtype=np.float64)
    distance = np.abs(g[:, None] - g)
    return np.asarray(distance.max() - distance)


def chance_precision(total: ArrayLike, size: ArrayLike) -> Floats:
    """What a random order scores in P@k, for every k, and in R-precision: R / N.

    Parameters
    ----------
    total, size : array_like of int, shape (...)
        R and N: relevant items and all items that the query may rank.

    Examples
    --------
    >>> float(chance_precision(3, 12))
    0.25
    """
    return _share(np.asarray(total, dtype=np.float64), np.asarray(size))


def chance_average_precision(total: ArrayLike, size: ArrayLike, depth: ArrayLike | None = None) -> Floats:
    """What a random order scores in average precision, cut after `depth` ranks.

    A relevant item at rank i has on average c (i − 1) relevant ones before it, with
    c = (R − 1) / (N − 1), hence E[rel(i) P(i)] = (R/N) (1 + c (i − 1)) / i, and the sum over the
    first D ranks, divided by R, is ((1 − c) H_D + c D) / N with the harmonic number
    H_D = 1 + 1/2 + … + 1/D. D = N gives AP, D = R gives AP@R.

    Parameters
    ----------
    total, size : array_like of int, shape (...)
        R and N.
    depth : array_like of int, shape (...), optional
        D; default N.

    Returns
    -------
    ndarray, shape (...)

    Examples
    --------
    One relevant item among two: rank 1 or 2, AP 1 or 1/2.

    >>> float(chance_average_precision(1, 2))
    0.75
    """
    n = np.asarray(size, dtype=np.int64)
    d = n if depth is None else np.asarray(depth, dtype=np.int64)
    relevant = np.asarray(total, dtype=np.float64)
    c = (relevant - 1) / np.maximum(n - 1, 1)
    steps = np.arange(1, int(d.max(initial=0)) + 1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / steps)])
    return _share((1 - c) * harmonic[d] + c * d, np.where(relevant == 0, 0, n))


def chance_ndcg_at_k(gains: ArrayLike, k: int, *, size: ArrayLike | None = None) -> Floats:
    """What a random order scores in nDCG@k: every rank has the mean gain.

    Parameters
    ----------
    gains : array_like, shape (..., n)
        Gains of the items in any order, padded with zeros.
    k : int
    size : array_like of int, shape (...), optional
        N, where lists are padded; default n.

    Returns
    -------
    ndarray, shape (...)

    Raises
    ------
    ValueError
        If `k` is not positive.

    Examples
    --------
    One relevant item among two: DCG is 1 or 1/log2(3) = 0.631, the ideal 1.

    >>> round(float(chance_ndcg_at_k([1, 0], 10)), 3)
    0.815
    """
    _check_cut(k)
    g = np.asarray(gains, dtype=np.float64)
    n = np.asarray(g.shape[-1] if size is None else size)[..., None]
    ranked = np.arange(min(k, g.shape[-1])) < n
    mean = _share(g.sum(axis=-1, keepdims=True), n)
    return _share(_discounted(np.where(ranked, mean, 0.0)), _discounted(_best(g, k)))


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15, weights: ArrayLike | None = None
) -> float:
    """How far stated confidence is from the share that is correct.

    ECE = Σ_b W_b |share correct in b − mean confidence in b|, over bins b of equal mass W_b in order of
    confidence (Guo et al. 2017, "On calibration of modern neural networks", with equal-mass bins after
    Nguyen and O'Connor 2015). It is never 0 on few predictions: compare it with what a perfectly
    calibrated one scores on as many (:func:`chance_calibration_error`). Predictions of equal confidence
    count with their mean, so that their order does not matter.

    Parameters
    ----------
    confidence : array_like, shape (n,)
        Probability that was given to the value thought most likely.
    correct : array_like, shape (n,)
        1 where that value was right.
    bins : int
    weights : array_like, shape (n,), optional

    Returns
    -------
    float

    Examples
    --------
    Two bins: said 0.6, right in half; said 0.9, right in all.

    >>> round(expected_calibration_error([0.6, 0.6, 0.9, 0.9], [0, 1, 1, 1], bins=2), 3)
    0.1
    """
    p, w = np.asarray(confidence, np.float64), np.ones(np.shape(confidence))
    w = w if weights is None else np.asarray(weights, np.float64)
    _, tied = np.unique(p, return_inverse=True)
    gap = p - (np.bincount(tied, w * np.asarray(correct)) / np.bincount(tied, w))[tied]
    order = np.argsort(p, kind="stable")
    middle = (np.cumsum(w[order]) - w[order] / 2) / w.sum()
    of_bin = np.minimum((middle * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(of_bin, (w * gap)[order], bins)).sum() / w.sum())


def chance_calibration_error(
    probabilities: ArrayLike,
    *,
    bins: int = 15,
    weights: ArrayLike | None = None,
    draws: int = 200,
    seed: int = 0,
) -> float:
    """The mean :func:`expected_calibration_error` if these probabilities were perfectly calibrated.

    Outcomes are drawn from them (Vaicenavicius et al. 2019, "Evaluating model calibration in
    classification", consistency resampling).

    Parameters
    ----------
    probabilities : array_like, shape (n, c)
    bins, weights
        As for the error.
    draws, seed : int

    Examples
    --------
    Who is always sure, and right to be, scores 0.

    >>> chance_calibration_error([[1.0, 0.0], [0.0, 1.0]], bins=1)
    0.0
    """
    p = np.asarray(probabilities, np.float64).max(axis=-1)
    rng = np.random.default_rng(seed)
    errors = [
        expected_calibration_error(p, rng.random(len(p)) < p, bins=bins, weights=weights)
        for _ in range(draws)
    ]
    return float(np.mean(errors))


def _check_cut(k: int) -> None:
    if k < 1:
        raise ValueError(f"a list is cut at rank 1 or later, not at {k}")


def _expected(values: Floats, ties: Ties | None, depth: int | None = None) -> Floats:
    """Mean value of each rank's tie group, for the first `depth` ranks."""
    if ties is None:
        return values[..., :depth]
    _, among = _around(values, ties, depth)
    return np.asarray(among / (ties.last - ties.first + 1)[..., :depth])


def _around(values: Floats, ties: Ties, depth: int | None = None) -> tuple[Floats, Floats]:
    """Sum of the values before each rank's tie group, and inside it."""
    sums = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
    before = np.take_along_axis(sums, ties.first[..., :depth], axis=-1)
    return before, np.take_along_axis(sums, ties.last[..., :depth] + 1, axis=-1) - before


def _precision_at_hits(rel: Floats, ties: Ties | None) -> Floats:
    """E[rel(i) P(i)] at each rank i."""
    ranks = np.arange(1, rel.shape[-1] + 1)
    if ties is None:
        return np.asarray(rel * np.cumsum(rel, axis=-1) / ranks)
    before, among = _around(rel, ties)
    width = ties.last - ties.first + 1
    # a relevant item that has j tied ones before it: each is relevant with chance (among−1)/(width−1)
    inside = (ranks - 1 - ties.first) * (among - 1) / np.maximum(width - 1, 1)
    return np.asarray(among / width * (before + 1 + inside) / ranks)


def _relevant(rel: Floats, total: ArrayLike | None) -> NDArray[np.int64]:
    return np.asarray(rel.sum(axis=-1) if total is None else total).astype(np.int64)


def _sum_to(values: Floats, depth: NDArray[np.int64]) -> Floats:
    """Sum over the first `depth` ranks, which may differ between lists."""
    return np.asarray(np.where(np.arange(values.shape[-1]) < depth[..., None], values, 0.0).sum(axis=-1))


def _best(gains: Floats, k: int) -> Floats:
    """The k largest gains, largest first."""
    if k < gains.shape[-1]:
        gains = -np.partition(-gains, k - 1, axis=-1)[..., :k]
    return np.asarray(-np.sort(-gains, axis=-1))


def _discounted(gains: Floats) -> Floats:
    return np.asarray(gains @ (1 / np.log2(np.arange(2, gains.shape[-1] + 2))))


def _share(part: Floats, whole: NDArray[Any]) -> Floats:
    """part / whole, and NaN where whole is 0."""
    return np.asarray(np.divide(part, np.where(whole == 0, np.nan, whole)), dtype=np.float64)


def likeness(ranked: ArrayLike, asked: ArrayLike, k: int = 10) -> tuple[Floats, Floats]:
    """How far the first k of a class differ from a query, and how far all of it does.

    Over many queries the sum of the first over the sum of the second is 1 where the order within a class is
    random, and small where hits look like the query. NaN counts for nothing.

    Parameters
    ----------
    ranked : array_like, shape (n, m)
        Measures of the ranked items that have the query's label, best match first.
    asked : array_like, shape (m,)
        Those of the query.
    k : int

    Returns
    -------
    first, all : ndarray, shape (m,)
        Mean absolute differences; NaN for a measure that is unknown of the query or of all items.

    Examples
    --------
    >>> likeness([[1.0], [4.0], [7.0]], [2.0], k=2)  # (1 + 2) / 2 and (1 + 2 + 5) / 3
    (array([1.5]), array([2.66666667]))
    """
    away = np.abs(np.asarray(ranked, np.float64) - np.asarray(asked, np.float64))
    known = np.isfinite(away)
    away = np.where(known, away, 0)
    with np.errstate(invalid="ignore"):
        first, every = (away[part].sum(axis=0) / known[part].sum(axis=0) for part in (slice(k), slice(None)))
    return np.where(np.isfinite(first), first, np.nan), np.where(np.isfinite(every), every, np.nan)
