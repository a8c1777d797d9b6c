"""Fuzzy c-means from a k-means start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.errors import PartitionError
from indexer.partition.distances import Floats, Ints, faiss, squared_distances

SMALL = 20_000 * 256
"""Vectors times lists up to which scikit-fuzzy fits (float64, several arrays of that size)."""
ITERATIONS = 10
"""From a k-means start the objective falls by less than 0.1 % an iteration after these."""
LOOK = 3
"""After so many iterations a fit that has collapsed is given up: centroids that coincide stay so."""
COINCIDE = 0.1
"""Centroids nearer to each other than this share of the mean radius of a cluster coincide."""
CELLS = 1 << 20
"""Distances worked on at a time in the fit: 4 MB, which a cache holds."""

Progress = Callable[[int, int], None]
"""Called with the steps done and all steps."""


@dataclass(frozen=True)
class Fitted:
    """Centroids with what tells whether they have collapsed.

    Attributes: mean highest membership, partition coefficient, root mean square distance of the
    vectors to their own centroids.
    """

    centroids: NDArray[np.float64]
    highest: float
    coefficient: float
    radius: float

    def collapse(self) -> str | None:
        """Why the fit has collapsed, or None."""
        c = len(self.centroids)
        if not self.highest >= 2 / c:  # also true for NaN
            return f"mean highest membership {self.highest:.3g} of {c} lists"
        centroids = self.centroids.astype(np.float32)
        squared = faiss.knn(centroids, centroids, 2)[0][:, 1]
        coinciding = int((squared < (COINCIDE * self.radius) ** 2).sum())
        return f"{coinciding} of {c} centroids coincide" if coinciding else None


def k_means_start(x: Floats, c: int, seed: int) -> Ints:
    """Cluster of each vector by k-means."""
    k_means = faiss.Kmeans(
        x.shape[1], c, niter=10, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(x)
    )
    k_means.train(x)
    _, assigned = k_means.index.search(x, 1)
    return np.asarray(assigned[:, 0], np.int64)


def c_means(x: Floats, start: Ints, c: int, m: float, progress: Progress) -> Fitted:
    """Fuzzy c-means by scikit-fuzzy."""
    from skfuzzy.cluster import cmeans  # as long to import as half of NumPy, and a question needs no fit

    init = np.full((c, len(x)), 1e-3 / c)
    init[start, np.arange(len(x))] = 1
    centroids, u, _, distances, *_ = cmeans(
        x.T.astype(np.float64), c, m, error=1e-3, maxiter=ITERATIONS, init=init
    )
    progress(1, 1)
    return Fitted(
        centroids,
        float(u.max(axis=0).mean()),
        float((u**2).sum(axis=0).mean()),
        math.sqrt((u * distances**2).sum(axis=0).mean()),
    )


def blocked_c_means(x: Floats, start: Ints, c: int, m: float, progress: Progress) -> Fitted:
    """The same in blocks of float32, summed in float64.

    u^m needs no division: its logarithm is m times that of the softmax of -ln d² / (m-1).
    """
    from scipy import sparse  # as above

    own = sparse.csr_matrix((np.ones(len(x), np.float32), start, np.arange(len(x) + 1)), (len(x), c))
    counts = np.bincount(start, minlength=c)
    centroids = np.asarray(own.T @ x, np.float64) / np.maximum(counts, 1)[:, None]
    height = max(64, CELLS // c)
    n = len(x)
    for step in range(ITERATIONS):
        last = step == ITERATIONS - 1  # only the memberships in the last centroids
        narrow = centroids.astype(np.float32)
        lengths = (narrow**2).sum(axis=1)
        total, sums = np.zeros(c), np.zeros(centroids.shape)
        highest = squares = scatter = 0.0
        for begin in range(0, len(x), height):
            block = x[begin : begin + height]
            squared = squared_distances(block, narrow, lengths)
            logits = np.log(squared)
            logits /= np.float32(1 - m)
            logits -= logits.max(axis=1, keepdims=True)
            u = np.exp(logits)
            normal = u.sum(axis=1, keepdims=True)
            if last or step == LOOK:
                u /= normal
                highest += float(u.max(axis=1).sum(dtype=np.float64))
                squares += float((u**2).sum(dtype=np.float64))
                scatter += float((u * squared).sum(dtype=np.float64))
                if last:
                    continue
            logits -= np.log(normal)
            logits *= np.float32(m)
            weights = np.exp(logits, out=logits)
            total += weights.sum(axis=0)
            sums += weights.T @ block
        if step == LOOK:
            early = Fitted(centroids, highest / n, squares / n, math.sqrt(scatter / n))
            if early.collapse() is not None:
                return early
        if not last:
            centroids = sums / total[:, None]
        progress(step + 1, ITERATIONS)
    return Fitted(centroids, highest / n, squares / n, math.sqrt(scatter / n))


def silent(done: int, steps: int) -> None:
    """Tells nobody."""


def settled(
    x: Floats, start: Ints, c: int, fuzzifiers: Sequence[tuple[float, str]], progress: Progress
) -> tuple[Fitted, float, str]:
    """The fit with the first of some fuzzifiers that does not collapse, with that and the reason for it.

    Raises
    ------
    PartitionError
        If all of them collapse.
    """
    told, collapse = "", None
    fit = c_means if len(x) * c <= SMALL else blocked_c_means
    for m, why in fuzzifiers:
        found = fit(x, start, c, m, progress)
        collapse = found.collapse()
        if collapse is None:
            return found, m, why + told
        told = f"; nearer to it the fit collapsed ({collapse})"
    raise PartitionError(
        "partition", f"the fit collapsed ({collapse})", "take a smaller fuzzifier or fewer lists"
    )
