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
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from indexer.errors import CbirError, QueryError
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

Similarity = NDArray[Any] | Callable[[NDArray[np.int64]], NDArray[Any]]
"""An (n, n) array, or a function from query rows (b,) to their similarities (b, n); higher is nearer,
−inf stands for "cannot be compared" and is ranked last."""

AVERAGES = ("micro", "patient_mean", "macro")
"""Mean over queries; mean of the patients' means; mean of the classes' means."""

DEPTH = 10
"""Where nDCG is cut, and the least depth of the precision curve."""

NEIGHBOURS = 10
"""Votes of the baseline that ranks by predicted class."""

BLOCK = 1 << 21
"""Similarities held at once (a block of query rows)."""

RESAMPLES = 100
"""Bootstrap resamples weighed at once."""

UNKNOWN = ("", "n/a")
ROMAN = {"I": 1.0, "II": 2.0, "III": 3.0, "IV": 4.0}


@dataclass(frozen=True)
class Protocol:
    """What a figure depends on beside the similarities.

    Attributes
    ----------
    label : str
        The labels column.
    ks : tuple of int
        Cuts of P@k.
    folds : sequence of str, optional
        The folds in use; None where a query ranks all other patients.
    bootstrap : int
        Resamples of patients; 0 gives no intervals.
    seed : int
        Of the bootstrap.
    """

    label: str
    ks: tuple[int, ...] = (1, 5, 10)
    folds: Sequence[str] | None = None
    bootstrap: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """A mean metric, its 95 % interval, and what a random order scores.

    Attributes
    ----------
    value, chance : float
    low, high : float, optional
        2.5 % and 97.5 % percentiles of the bootstrap over patients; None without one, and where
        more than half of the resamples miss a class that the mean needs. The database stays as it
        is: the interval tells how far the figure moves with the patients who ask.
    """

    value: float
    chance: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        span = "" if self.low is None else f" ({self.low:.3f}–{self.high:.3f})"
        return f"{self.value:.3f}{span}"


@dataclass(frozen=True)
class ClassFigures:
    """The figures of one label's queries.

    Attributes
    ----------
    items : int
        Items of the class that may be answers.
    queries, patients : int
        Queries counted, and the patients who ask them.
    figures : dict of str to Figure
        By metric.
    """

    items: int
    queries: int
    patients: int
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes
    ----------
    protocol : Protocol
    gain : str
        ``grade distance`` or ``same label``: what nDCG rewards.
    items : int
        Labelled items that may be answers.
    patients : int
        Patients who ask the counted queries.
    figures : dict of str to dict of str to Figure
        By metric (``P@1``, …, ``R-precision``, ``mAP``, ``MAP@R``, ``nDCG@10``), then by average
        (:data:`AVERAGES`).
    classes : dict of str to ClassFigures
        By label.
    curve : dict of str to list of Figure
        ``micro`` and ``macro`` P@k for k = 1, 2, …
    excluded : dict of str to int
        Items and queries left out, by reason.
    split_patients : int
        Patients whose items lie in several folds. They are kept from their own items all the same,
        but what was fitted without one of their folds may have seen another.
    queries : ndarray of int, shape (q,)
        The items that asked, for paired comparisons.
    values : dict of str to ndarray, shape (q,)
        Each query's metrics.
    """

    protocol: Protocol
    gain: str
    items: int
    patients: int
    figures: dict[str, dict[str, Figure]]
    classes: dict[str, ClassFigures]
    curve: dict[str, list[Figure]]
    excluded: dict[str, int]
    split_patients: int
    queries: NDArray[np.int64] = field(repr=False, compare=False)
    values: dict[str, NDArray[np.float64]] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single queries, as JSON can hold it."""
        return {
            "schema": 1,
            **asdict(self.protocol),
            "ks": list(self.protocol.ks),
            "folds": None if self.protocol.folds is None else list(self.protocol.folds),
            "interval": 0.95,
            "gain": self.gain,
            "items": self.items,
            "queries": len(self.queries),
            "patients": self.patients,
            "excluded": dict(self.excluded),
            "split_patients": self.split_patients,
            "metrics": {m: {a: asdict(f) for a, f in by.items()} for m, by in self.figures.items()},
            "classes": {name: asdict(c) for name, c in self.classes.items()},
            "curve": {a: [asdict(f) for f in figures] for a, figures in self.curve.items()},
        }

    def table(self) -> list[tuple[str, ...]]:
        """A header and one row a metric: each average with its interval, and its chance."""
        names = {"micro": "micro", "patient_mean": "by patient", "macro": "macro"}
        header = ("metric", *(cell for a in AVERAGES for cell in (f"{names[a]} (95 %)", "chance")))
        return [header] + [
            (metric, *(cell for a in AVERAGES for cell in (str(by[a]), f"{by[a].chance:.3f}")))
            for metric, by in self.figures.items()
        ]

    def class_table(self) -> list[tuple[str, ...]]:
        """A header and one row a class: counts, then each metric with its chance."""
        header = (self.protocol.label, "items", "queries", "patients", *self.figures)
        return [header] + [
            (
                name,
                *(str(n) for n in (c.items, c.queries, c.patients)),
                *(f"{f.value:.3f} (chance {f.chance:.3f})" for f in c.figures.values()),
            )
            for name, c in self.classes.items()
        ]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw precision@k, micro and macro, with intervals and chance.

        Parameters
        ----------
        path : path-like
            A ``.png`` or ``.svg`` file.

        Raises
        ------
        CbirError
            If the suffix is another, matplotlib is missing, or the file cannot be written.
        """
        target = Path(path)
        if target.suffix.lower() not in (".png", ".svg"):
            raise CbirError(target, "a plot is a PNG or an SVG", "end the name in .png or .svg")
        try:
            from matplotlib import rc_context
            from matplotlib.figure import Figure as Canvas
            from matplotlib.ticker import MaxNLocator
        except ModuleNotFoundError as e:
            raise CbirError(
                target, "drawing needs matplotlib", "install what this needs: pip install 'cbir[plot]'"
            ) from e
        canvas = Canvas(figsize=(6, 4), layout="constrained")
        axes = canvas.add_subplot()
        ks = range(1, len(self.curve["micro"]) + 1)
        named = {"micro": ("mean over queries", "tab:blue"), "macro": ("mean over classes", "tab:orange")}
        for average, (name, colour) in named.items():
            figures = self.curve[average]
            low = [math.nan if f.low is None else f.low for f in figures]
            high = [math.nan if f.high is None else f.high for f in figures]
            axes.fill_between(ks, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(ks, [f.value for f in figures], "o-", markersize=3, color=colour, label=name)
            chance = [f.chance for f in figures]
            axes.plot(ks, chance, ":", color=colour, label=f"chance, {name}")
        axes.set(xlabel="k", ylabel="precision@k", xlim=(0.5, len(ks) + 0.5), ylim=(0, 1.02))
        axes.set_title(
            f"{self.protocol.label}: {len(self.queries)} queries, {self.patients} patients", fontsize="medium"
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        # neither a date nor random ids inside: the same figures give the same file
        undated = {"Date": None} if target.suffix.lower() == ".svg" else {}
        try:
            with rc_context({"svg.hashsalt": "cbir"}):
                canvas.savefig(target, dpi=150, metadata=undated)
        except OSError as e:
            raise CbirError(target, f"cannot be written ({e.strerror})", "name another place") from e


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
    items = _Items.of(labels, patients, folds, database)
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
    for block, scores in _blocks(similarity, items, rows):
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


def comparison(
    evaluations: Mapping[str, Evaluation], average: str = "macro", metrics: Sequence[str] | None = None
) -> list[tuple[str, ...]]:
    """A header and one row an evaluation, chance last: a method beside its baselines.

    Parameters
    ----------
    evaluations : mapping of str to Evaluation
        By method, all of the same items; chance is taken from the first.
    average : str
        One of :data:`AVERAGES`.
    metrics : sequence of str, optional
        Default: all of the first evaluation.
    """
    first = next(iter(evaluations.values()))
    names = list(first.figures) if metrics is None else list(metrics)
    rows = [(name, *(str(e.figures[m][average]) for m in names)) for name, e in evaluations.items()]
    chance = ("chance", *(f"{first.figures[m][average].chance:.3f}" for m in names))
    return [(average, *names), *rows, chance]


def predicted_class_similarity(
    similarity: Similarity,
    labels: Sequence[str | None],
    patients: Sequence[str],
    *,
    folds: Sequence[str | None] | None = None,
    database: ArrayLike | None = None,
    neighbours: int = NEIGHBOURS,
) -> Similarity:
    """The baseline "rank by predicted class": the nearest items vote, and the likeliest class comes first.

    A query's allowed neighbours (as in :func:`evaluate`: other patients, other folds) vote with
    their labels; every item is then as similar to the query as its own label has votes. On few
    classes this beats most rankings in mAP, while its P@1 is no more than a classifier's accuracy.

    Parameters
    ----------
    similarity, labels, patients, folds, database
        As in :func:`evaluate`.
    neighbours : int
        Votes. Equally similar items at the last place share what is left.

    Returns
    -------
    callable
        A :data:`Similarity`.
    """
    items = _Items.of(labels, patients, folds, database)
    classes = (items.label[:, None] == np.arange(len(items.classes))) & items.known[:, None]
    votes = np.zeros((len(items), len(items.classes)))
    for rows, scores in _blocks(similarity, items, np.flatnonzero(items.known)):
        k = min(neighbours, scores.shape[1])
        border = -np.partition(-scores, k - 1, axis=1)[:, k - 1, None]
        above = scores > border
        level = (scores == border) & (scores > -np.inf)
        left = k - above.sum(axis=1, keepdims=True)
        votes[rows] = (above + level * (left / np.maximum(level.sum(axis=1, keepdims=True), 1))) @ classes
    return lambda rows: votes[rows][:, items.label]


def cosine_similarity(vectors: ArrayLike) -> Similarity:
    """Cosines between vectors, block by block; a zero vector is similar to nothing.

    Parameters
    ----------
    vectors : array_like, shape (n, d)

    Returns
    -------
    callable
        A :data:`Similarity`.
    """
    v = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(v, axis=1, keepdims=True)
    unit = v / np.where(norms > 0, norms, 1)
    return lambda rows: unit[rows] @ unit.T


def pixel_similarity(images: ArrayLike) -> Similarity:
    """The baseline "raw pixels": correlation of images of one size, blind to brightness and contrast.

    Parameters
    ----------
    images : array_like, shape (n, ...)

    Returns
    -------
    callable
        A :data:`Similarity`.
    """
    pixels = np.asarray(images, dtype=np.float32)
    pixels = pixels.reshape(len(pixels), -1)
    return cosine_similarity(pixels - pixels.mean(axis=1, keepdims=True))


def shuffled_labels(labels: Sequence[str | None], patients: Sequence[str], seed: int = 0) -> list[str | None]:
    """The canary: labels dealt anew among patients, so that nothing true is left to be found.

    Each patient receives the whole labels of one patient, drawn without replacement: a patient of
    one label has one label again. With these labels :func:`evaluate` must score chance; where it
    does not, a query reaches its own patient. Judge by P@k, whose expected value over the shuffles
    is chance exactly when each patient has one label; a single shuffle falls outside its 95 %
    interval now and then, the mean of several does not stray. The AP metrics come out a little
    above chance even so: chance is that of a random order of items, and the items of one patient,
    which share a label, stand close together.

    Parameters
    ----------
    labels, patients : sequence of str, length n
    seed : int

    Returns
    -------
    list of str, length n
    """
    owned: dict[str, list[int]] = {}
    for i, patient in enumerate(patients):
        owned.setdefault(patient, []).append(i)
    holders = list(owned.values())
    dealt: list[str | None] = [None] * len(labels)
    for taker, giver in enumerate(np.random.default_rng(seed).permutation(len(holders))):
        mine, theirs = holders[taker], holders[giver]
        for place, i in enumerate(mine):
            dealt[i] = labels[theirs[place * len(theirs) // len(mine)]]
    return dealt


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


@dataclass(frozen=True)
class _Items:
    """Items as codes, and who may answer whom.

    `known` items have a label and, where there are folds, a fold; `database` holds those of them
    that may be answers.
    """

    classes: list[str]
    label: NDArray[np.int64]
    patient: NDArray[np.int64]
    fold: NDArray[np.int64] | None
    fold_names: tuple[str, ...] | None
    known: NDArray[np.bool_]
    database: NDArray[np.bool_]
    excluded: dict[str, int]

    @classmethod
    def of(
        cls,
        labels: Sequence[str | None],
        patients: Sequence[str],
        folds: Sequence[str | None] | None,
        database: ArrayLike | None,
    ) -> _Items:
        n = len(labels)
        answers = np.ones(n, dtype=bool) if database is None else np.asarray(database, dtype=bool)
        if not n == len(patients) == len(answers) == len(labels if folds is None else folds):
            raise ValueError("labels, patients, folds and database must be of one length")
        classes, label = _codes(labels)
        known = label >= 0
        excluded = {"items without a label": int(n - known.sum())}
        fold_names = fold = None
        if folds is not None:
            names, fold = _codes(folds)
            fold_names = tuple(names)
            excluded["labelled items without a fold"] = int((known & (fold < 0)).sum())
            known &= fold >= 0
        _, patient = _codes(patients)
        if (patient[known] < 0).any():
            raise ValueError("a labelled item has no patient: give it an id of its own")
        return cls(classes, label, patient, fold, fold_names, known, answers & known, excluded)

    def __len__(self) -> int:
        return len(self.label)

    def allowed(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of n items may answer each query."""
        allowed: NDArray[np.bool_] = self.database & (self.patient != self.patient[rows, None])
        if self.fold is not None:
            allowed &= self.fold != self.fold[rows, None]
        return allowed

    @property
    def split_patients(self) -> int:
        if self.fold is None:
            return 0
        pairs = np.unique(np.stack([self.patient, self.fold])[:, self.known], axis=1)
        return int((np.bincount(pairs[0]) > 1).sum())


def _codes(names: Sequence[str | None]) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct names in order, and each name's place among them; −1 for an unknown one."""
    distinct = sorted({name for name in names if name is not None and name not in UNKNOWN})
    place = {name: i for i, name in enumerate(distinct)}
    return distinct, np.array([-1 if n is None else place.get(n, -1) for n in names], dtype=np.int64)


def _blocks(
    similarity: Similarity, items: _Items, rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.floating[Any]]]]:
    """Blocks of query rows and their similarities, −inf where an item may not answer."""
    n = len(items)
    step = max(1, BLOCK // max(n, 1))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        given = np.asarray(similarity(block) if callable(similarity) else similarity[block])
        if given.shape != (len(block), n):
            raise ValueError(f"similarities of {len(block)} queries to {n} items are {given.shape}")
        if not np.issubdtype(given.dtype, np.floating):
            given = given.astype(np.float64)
        # an allowed −inf becomes the lowest finite value: last, but still in the list
        scores = np.where(items.allowed(block), np.maximum(given, np.finfo(given.dtype).min), -np.inf)
        if np.isnan(scores).any():
            raise ValueError("a similarity is not a number")
        yield block, scores


def _scored(
    items: _Items,
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
    items : _Items
    rows : ndarray of int, shape (q,)
        The items that asked.
    """

    def __init__(self, items: _Items, rows: NDArray[np.int64]) -> None:
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
