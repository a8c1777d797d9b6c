"""Labelled items as arrays: who asks, who may answer whom, and how alike they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Similarity = NDArray[Any] | Callable[[NDArray[np.int64]], NDArray[Any]]
"""An (n, n) array, or a function from query rows (b,) to their similarities (b, n); higher is nearer,
−inf stands for "cannot be compared" and is ranked last."""

BLOCK = 1 << 21
"""Similarities held at once (a block of query rows)."""

UNKNOWN = ("", "n/a")


@dataclass(frozen=True)
class Items:
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
    ) -> Items:
        """Items as :func:`retrieval.evaluation.evaluate` is given them.

        Raises
        ------
        ValueError
            If lengths differ, or a labelled item has no patient.
        """
        n = len(labels)
        answers = np.ones(n, dtype=bool) if database is None else np.asarray(database, dtype=bool)
        if not n == len(patients) == len(answers) == len(labels if folds is None else folds):
            raise ValueError("labels, patients, folds and database must be of one length")
        classes, label = codes(labels)
        known = label >= 0
        excluded = {"items without a label": int(n - known.sum())}
        fold_names = fold = None
        if folds is not None:
            names, fold = codes(folds)
            fold_names = tuple(names)
            excluded["labelled items without a fold"] = int((known & (fold < 0)).sum())
            known &= fold >= 0
        _, patient = codes(patients)
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
        """Patients whose items lie in several folds."""
        if self.fold is None:
            return 0
        pairs = np.unique(np.stack([self.patient, self.fold])[:, self.known], axis=1)
        return int((np.bincount(pairs[0]) > 1).sum())


def codes(names: Sequence[str | None]) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct names in order, and each name's place among them; −1 for an unknown one."""
    distinct = sorted({name for name in names if name is not None and name not in UNKNOWN})
    place = {name: i for i, name in enumerate(distinct)}
    return distinct, np.array([-1 if n is None else place.get(n, -1) for n in names], dtype=np.int64)


def blocks(
    similarity: Similarity, items: Items, rows: NDArray[np.int64]
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
