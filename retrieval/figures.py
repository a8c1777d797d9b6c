"""What an evaluation found: mean metrics with intervals and chance, as tables, JSON and a drawing."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import CbirError
from indexer.files import refuse_folder

AVERAGES = ("micro", "patient_mean", "macro")
"""Mean over queries; mean of the patients' means; mean of the classes' means."""


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
    """What :func:`retrieval.evaluation.evaluate` found.

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
        refuse_folder(target)
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
