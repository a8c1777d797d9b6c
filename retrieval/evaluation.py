"""The evaluation protocol: how well similarities rank labelled items, patient by patient.

Items are cases or scans, whatever the similarities compare. Every item asks once and ranks the
others, with these rules everywhere:

- the patient is the unit: a query never ranks its own patient, in any sequence, visit or folder, and
  intervals come from a bootstrap over patients;
- with folds, a query ranks only items of other folds (what was fitted for its fold never saw it);
- queries without any relevant item in reach are left out and counted;
- equal similarities are settled by expectation (see :mod:`retrieval.metrics`), so the order in which
  items are stored cannot help;
- micro, patient and class means are given together, each beside what a random order would score.

Nothing here knows how an index is stored: an array or a function gives the similarities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from indexer.errors import QueryError
from retrieval.figures import AVERAGES, ClassFigures, Evaluation, Figure, Protocol
from retrieval.items import Items, Similarity, blocks
from retrieval.metrics import (
    average_precision,
    average_precision_at_r,
    chance_average_precision,
    chance_ndcg_at_k,
    chance_precision,
    grade_gains,
    ndcg_at_k,
    precision_curve,
    r_precision,
    ties,
)

DEPTH = 10
"""Where nDCG is cut, and the least depth of the precision curve."""

RESAMPLES = 100
"""Bootstrap resamples weighed at once."""

ROMAN = {"I": 1.0, "II": 2.0, "III": 3.0, "IV": 4.0}


def evaluate(
    similarity: Similarity,
    labels: Sequence[str | None],
    patients: Sequence[str],
    *,
    label: str = "label",
    ks: Sequence[int] = (1, 5, 10),
    folds: Sequence[str | None] | None = None,
    grades: Mapping[str, float] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    database: ArrayLike | None = None,
    queries: ArrayLike | None = None,
) -> Evaluation:
    """Ask every item for its likes among other patients, and average how well it was answered.

    Parameters
    ----------
    similarity : ndarray, shape (n, n), or callable
        See :data:`Similarity`. Row = query. The diagonal and other forbidden pairs may hold anything.
    labels : sequence of str, length n
        Items whose label is None, empty or ``n/a`` neither ask nor answer.
    patients : sequence of str, length n
        Whoever must not be split: participant ids, or a coarser grouping.
    label : str
        Name of the labels column, for the record.
    ks : sequence of int
        Cuts of P@k.
    folds : sequence of str, length n, optional
        Items whose fold is None, empty or ``n/a`` neither ask nor answer.
    grades : mapping of str to float, optional
        Place of each label on a scale, which nDCG@10 rewards nearness on. Default: the labels
        themselves where all are numbers or roman numerals, see :func:`numeric_grades`; else, and
        with an empty mapping, only the same label is rewarded.
    bootstrap : int
        Resamples of patients for the 95 % intervals; 0 for none.
    seed : int
        Of the resampling.
    database, queries : array_like of bool, shape (n,), optional
        Items that may be answers, and items that ask; default all.

    Returns
    -------
    Evaluation

    Raises
    ------
    QueryError
        If no query has an item of its own label within reach.
    ValueError
        If lengths differ, a labelled item has no patient, a label has no grade, a k is not positive,
        or a similarity is not a number.
    """
    cuts = tuple(sorted(set(ks)))
    if not cuts or cuts[0] < 1:
        raise ValueError(f"precision is cut at ranks from 1 on, not at {list(ks)}")
    items = Items.of(labels, patients, folds, database)
    asks = np.ones(len(items), dtype=bool) if queries is None else np.asarray(queries, dtype=bool)
    if len(asks) != len(items):
        raise ValueError("queries must have one entry an item")
    rows = np.flatnonzero(items.known & asks)
    scale = numeric_grades(items.classes) if grades is None else grades
    if scale and (missing := [c for c in items.classes if c not in scale]):
        raise ValueError(f"no grade is given for the labels {missing}")
    places = [scale[c] for c in items.classes] if scale else []
    graded = len(set(places)) > 1
    gains = grade_gains(places) if graded else np.eye(len(items.classes))

    depth = max(cuts[-1], DEPTH)
    names = ("R-precision", "mAP", "MAP@R", f"nDCG@{DEPTH}")
    asked, scored, chances = [rows[:0]], [np.empty((0, depth + len(names)))], []
    for block, scores in blocks(similarity, items, rows):
        done = _scored(items, block, scores, gains, depth)
        asked.append(done[0])
        scored.append(done[1])
        chances.append(done[2])
    asked_rows, values = np.concatenate(asked), np.concatenate(scored)
    if not len(asked_rows):
        raise QueryError(
            label,
            "no labelled item has one of the same label in another patient",
            "label or index more cases",
        )
    means = _Means(items, asked_rows)
    figures = _figures(means, values, np.concatenate(chances), bootstrap, seed)
    columns = {f"P@{k}": k - 1 for k in cuts} | {name: depth + i for i, name in enumerate(names)}
    return Evaluation(
        protocol=Protocol(label, cuts, items.fold_names, bootstrap, seed),
        gain="grade distance" if graded else "same label",
        items=int(items.database.sum()),
        patients=means.patients,
        figures={m: {a: figures[a][j] for a in AVERAGES} for m, j in columns.items()},
        classes={
            items.classes[c]: ClassFigures(
                items=int((items.database & (items.label == c)).sum()),
                queries=int((items.label[asked_rows] == c).sum()),
                patients=len(np.unique(items.patient[asked_rows[items.label[asked_rows] == c]])),
                figures={m: figures[c][j] for m, j in columns.items()},
            )
            for c in (sorted(means.classes, key=lambda c: places[c]) if graded else means.classes)
        },
        curve={a: figures[a][:depth] for a in ("micro", "macro")},
        excluded={**items.excluded, "queries without a relevant item": len(rows) - len(asked_rows)},
        split_patients=items.split_patients,
        queries=asked_rows,
        values={m: values[:, j] for m, j in columns.items()},
    )


def numeric_grades(labels: Sequence[str]) -> dict[str, float] | None:
    """Labels as numbers, where all of them are decimal or roman (I to IV) numbers; else None.

    Examples
    --------
    >>> numeric_grades(["2", "3", "4"])
    {'2': 2.0, '3': 3.0, '4': 4.0}
    >>> numeric_grades(["II", "III"])
    {'II': 2.0, 'III': 3.0}
    >>> numeric_grades(["HGG", "LGG"]) is None
    True
    """
    try:
        numbers = {label: ROMAN[label] if label in ROMAN else float(label) for label in labels}
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers.values())) else None


def _scored(
    items: Items,
    rows: NDArray[np.int64],
    scores: NDArray[np.floating[Any]],
    gains: NDArray[np.float64],
    depth: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The queries of a block that have a relevant item, their metrics, and chance for each.

    Columns: P@1 … P@depth, R-precision, AP, AP@R, nDCG@10.
    """
    size = (scores > -np.inf).sum(axis=1)
    order = np.argsort(-scores, axis=1)[:, : max(1, int(size.max()))]
    ranked = np.arange(order.shape[1]) < size[:, None]
    label = items.label[order]
    hits = (label == items.label[rows, None]) & ranked
    total = hits.sum(axis=1)
    asked = total > 0
    rows, order, ranked, label, hits = (a[asked] for a in (rows, order, ranked, label, hits))
    size, total = size[asked], total[asked]
    gain = np.where(ranked, gains[items.label[rows, None], label], 0.0)
    tied = ties(np.take_along_axis(scores[asked], order, axis=1))
    values = (
        precision_curve(hits, depth, size=size, ties=tied),
        r_precision(hits, ties=tied)[:, None],
        average_precision(hits, ties=tied)[:, None],
        average_precision_at_r(hits, ties=tied)[:, None],
        ndcg_at_k(gain, DEPTH, ties=tied)[:, None],
    )
    precision = chance_precision(total, size)[:, None]
    chance = (
        np.repeat(precision, depth + 1, axis=1),
        chance_average_precision(total, size)[:, None],
        chance_average_precision(total, size, total)[:, None],
        chance_ndcg_at_k(gain, DEPTH, size=size)[:, None],
    )
    return rows, np.concatenate(values, axis=1), np.concatenate(chance, axis=1)


class _Means:
    """Means over queries, patients and classes from the sums of each patient's queries of each class.

    Parameters
    ----------
    items : Items
    rows : ndarray of int, shape (q,)
        The items that asked.
    """

    def __init__(self, items: Items, rows: NDArray[np.int64]) -> None:
        pairs = np.stack([items.patient[rows], items.label[rows]])
        groups, self.group, self.count = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
        self.group = self.group.reshape(-1)
        patients, self.patient = np.unique(groups[0], return_inverse=True)
        self.patients = len(patients)
        self.label = groups[1]
        self.classes = [int(c) for c in np.unique(groups[1])]

    def of(self, values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weighted means.

        Parameters
        ----------
        values : ndarray, shape (q, v)
            Metrics of the queries.
        weights : ndarray, shape (b, patients)
            How often each patient is drawn in each resample.

        Returns
        -------
        ndarray, shape (b, 3 + classes, v)
            Micro, patient mean, macro, then each class; NaN where a class is not drawn.
        """
        sums = np.zeros((len(self.count), values.shape[1]))
        np.add.at(sums, self.group, values)
        drawn = weights[:, self.patient]

        def mean(of: NDArray[np.bool_] | slice) -> NDArray[np.float64]:
            queries = drawn[:, of] @ self.count[of].astype(np.float64)
            return np.asarray(drawn[:, of] @ sums[of] / np.where(queries > 0, queries, np.nan)[:, None])

        own = np.zeros((self.patients, values.shape[1]))
        np.add.at(own, self.patient, sums)
        own /= np.bincount(self.patient, weights=self.count)[:, None]
        by_class = [mean(self.label == c) for c in self.classes]
        by_patient = weights @ own / weights.sum(axis=1, keepdims=True)
        return np.stack([mean(slice(None)), by_patient, np.mean(by_class, axis=0), *by_class], axis=1)


def _figures(
    means: _Means,
    values: NDArray[np.float64],
    chance: NDArray[np.float64],
    bootstrap: int,
    seed: int,
) -> dict[str | int, list[Figure]]:
    """Figures of every column, by average and by class code."""
    every = np.ones((1, means.patients))
    point, expected = means.of(values, every)[0], means.of(chance, every)[0]
    low = high = np.full_like(point, np.nan)
    if bootstrap:
        low, high = _interval(means, values, bootstrap, np.random.default_rng(seed))
    keys: list[str | int] = [*AVERAGES, *means.classes]
    return {
        key: [
            Figure(float(v), float(c), *(None if math.isnan(b) else float(b) for b in bounds))
            for v, c, *bounds in zip(point[a], expected[a], low[a], high[a], strict=True)
        ]
        for a, key in enumerate(keys)
    }


def _interval(
    means: _Means, values: NDArray[np.float64], bootstrap: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentiles 2.5 and 97.5 of every mean over resamples of patients.

    Resamples that miss a class say nothing about it or about macro; where they are more than half,
    there is no interval (NaN).
    """
    n, parts = means.patients, []
    for start in range(0, bootstrap, RESAMPLES):
        drawn = rng.integers(n, size=(min(RESAMPLES, bootstrap - start), n))
        weights = np.stack([np.bincount(d, minlength=n) for d in drawn]).astype(np.float64)
        parts.append(means.of(values, weights))
    resampled = np.concatenate(parts)
    missed = np.isnan(resampled).mean(axis=0) > 0.5
    resampled[:, missed] = 0
    low, high = np.nanpercentile(resampled, (2.5, 97.5), axis=0)
    return np.where(missed, np.nan, low), np.where(missed, np.nan, high)
