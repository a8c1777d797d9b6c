"""How strange a slice is to an encoder: its distance from what the training showed.

The embedding cannot tell: it is trained to lead every image to one of the classes that it knows, a
photo as well. The statistics of the early feature maps can, since they still describe texture and
contrast. They are compared with the training's by the Mahalanobis distance (Lee et al., "A simple
unified framework for detecting out-of-distribution samples", NeurIPS 2018), cohort by cohort, and
the nearest cohort counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RIDGE = 0.05
"""Share of the mean variance that is added to each: few slices leave some directions without any."""

LIMIT = 1.7
"""A scan that is farther than this, on the average of its slices, is of another kind.

Tried with the network of one fold, which left fewer than one in a hundred slices of unseen patients
beyond it, and every photo, phantom, noise and CT; some ultrasound and MR of other parts stayed within.
"""


@dataclass(frozen=True)
class TrainingDistribution:
    """What the training showed: one normal distribution for each cohort.

    Attributes
    ----------
    means : ndarray of float32, shape (c, d)
    precisions : ndarray of float32, shape (c, d, d)
        Inverse covariances.
    """

    means: NDArray[np.float32]
    precisions: NDArray[np.float32]

    @classmethod
    def of(cls, statistics: NDArray[np.float32], cohort: NDArray[np.int64]) -> TrainingDistribution:
        """Learn from the training's slices.

        Parameters
        ----------
        statistics : ndarray of float32, shape (n, d)
        cohort : ndarray of int, shape (n,)
            Which cohort each is of.
        """
        means, precisions = [], []
        for which in np.unique(cohort):
            mine = statistics[cohort == which].astype(np.float64)
            deviation = mine.std(0) + 1e-3
            scaled = (mine - mine.mean(0)) / deviation
            covariance = scaled.T @ scaled / len(scaled)
            covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
            means.append(mine.mean(0))
            precisions.append(np.linalg.inv(covariance) / np.outer(deviation, deviation))
        return cls(np.array(means, np.float32), np.array(precisions, np.float32))

    def strangeness(self, statistics: NDArray[np.float32]) -> NDArray[np.float32]:
        """Distance from the nearest cohort: about 1 for a slice like those of the training.

        Parameters
        ----------
        statistics : ndarray of float32, shape (n, d)

        Returns
        -------
        ndarray of float32, shape (n,)
            √(Mahalanobis² / d).
        """
        squares = []
        for mean, precision in zip(self.means, self.precisions, strict=True):
            away = statistics - mean
            squares.append(np.einsum("nd,nd->n", away @ precision, away))
        return np.asarray(np.sqrt(np.maximum(np.min(squares, axis=0), 0) / statistics.shape[1]), np.float32)
