"""The training set: slices as the network takes them, with outlines and labels beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from indexer.errors import LabelsError
from indexer.learning.targets import balanced

EMPTY = 0.15
"""Share of the draws that goes to slices which an outline says are free of lesions."""

UNLABELLED = 0.1
"""Share of the draws that goes to outlined slices without any label."""


@dataclass(frozen=True)
class Samples:
    """Slices to train on.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (m, size, size), or (m, channels, size, size)
        Prepared whole slices, or composites.
    outlines : ndarray of uint8, shape (m, size / 4, size / 4)
        How far the outline covers each pixel, in 255ths; 0 where nothing is outlined. For composites of
        shape (m, 1 + tissues, size / 2, size / 2): how far a cell may be healthy, and of each tissue, as far
        as the outline tells it; 0 throughout where there is none.
    rows : ndarray of int, shape (n,)
        The images that are samples; the attributes below have one entry for each.
    boxes : ndarray of float32, shape (n, 4)
        x0, y0, x1, y1 of the outline as shares of the side; NaN without one.
    outlined : ndarray of bool, shape (n,)
        Whether the scan has outlines: a slice without a box is then free of lesions.
    patients : ndarray of str, shape (n,)
    targets : dict of str to ndarray of int64, shape (n,)
        For each head the class, −1 where it is unknown.
    classes : dict of str to tuple of str
        For each head the labels its classes stand for.
    labels : tuple of dict
        For each sample all labels of its patient.
    cohort : ndarray of int64, shape (n,)
        Which cohort it is of.
    importance : ndarray of float64, shape (n,)
        That of its cohort.
    failed : tuple of (str, str)
        Sources that could not be read, with the reason.
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    outlines: NDArray[np.uint8] = field(repr=False)
    rows: NDArray[np.int64] = field(repr=False)
    boxes: NDArray[np.float32] = field(repr=False)
    outlined: NDArray[np.bool_] = field(repr=False)
    patients: NDArray[np.str_] = field(repr=False)
    targets: dict[str, NDArray[np.int64]] = field(repr=False)
    classes: dict[str, tuple[str, ...]]
    labels: tuple[Mapping[str, str], ...] = field(repr=False)
    cohort: NDArray[np.int64] = field(repr=False)
    importance: NDArray[np.float64] = field(repr=False)
    failed: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def chosen(self, keep: NDArray[np.bool_]) -> Samples:
        """Those of the samples that a mask, shape (n,), keeps."""
        return replace(
            self,
            rows=self.rows[keep],
            boxes=self.boxes[keep],
            outlined=self.outlined[keep],
            patients=self.patients[keep],
            targets={head: target[keep] for head, target in self.targets.items()},
            labels=tuple(row for row, kept in zip(self.labels, keep, strict=True) if kept),
            cohort=self.cohort[keep],
            importance=self.importance[keep],
        )

    def without(self, column: str, value: str) -> Samples:
        """The samples of patients whose label in a column is another one, or unknown.

        Raises
        ------
        LabelsError
            If no sample has the value, or no other.
        """
        keep = np.array([row.get(column) != value for row in self.labels], bool)
        if keep.all() or not keep.any():
            known = sorted({row[column] for row in self.labels if column in row})
            raise LabelsError(
                f"{column}={value}",
                "no patient has this label" if keep.all() else "every patient has this label",
                f"its values are {', '.join(known)}" if known else "name a column of the labels table",
            )
        return self.chosen(keep)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Samples that have a label in any head and may show what it is about."""
        known = [target >= 0 for target in self.targets.values()]
        return self.shown & np.any(known, axis=0) if known else np.zeros(len(self), bool)

    @property
    def shown(self) -> NDArray[np.bool_]:
        """Slices that may show what the patient's label is about: all but those known to be free of it."""
        return np.isfinite(self.boxes[:, 0]) | ~self.outlined

    def shares(self, unlabelled: float = UNLABELLED) -> NDArray[np.float64]:
        """How often each sample should be drawn.

        In each head all classes weigh the same, and within a class a patient weighs as the square
        root of its slices: many slices of one patient say little more than a few. The importance of
        the cohorts then comes on top.

        Parameters
        ----------
        unlabelled : float
            Share of the draws that goes to outlined slices without any label.

        Returns
        -------
        ndarray of float64, shape (n,)
            Sums to 1.
        """
        _, patient = np.unique(self.patients, return_inverse=True)
        shown = self.shown
        labelled = np.zeros(len(self), bool)
        total = np.zeros(len(self))
        for target in self.targets.values():
            mine = shown & (target >= 0)
            labelled |= mine
            total[mine] += balanced(target[mine], _per_patient(patient, mine)[mine])
        if total.sum():
            total /= total.sum()
        for rows, part in ((~shown, EMPTY), (shown & ~labelled & self.outlined, unlabelled)):
            if rows.any():
                share = _per_patient(patient, rows)
                total = total * (1 - part) + part * share / share.sum()
        if not total.any():  # nothing is known of any of them
            total = _per_patient(patient, np.ones(len(self), bool))
        total *= self.importance
        return np.asarray(total / total.sum())


def _per_patient(patient: NDArray[np.int64], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1/√(slices of the patient) for some rows, 0 for the others."""
    count = np.bincount(patient[rows], minlength=patient.max() + 1)
    return np.asarray(np.where(rows, 1 / np.sqrt(np.maximum(count, 1))[patient], 0.0))
