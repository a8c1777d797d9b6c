"""Fuzzy c-means partition of the embedding space: where a vector is filed, which lists a query probes.

The fit is scikit-fuzzy's ``cmeans`` on a bounded sample, started from k-means; everything past the
fit is a blocked float32 evaluation of the same memberships.

Notes
-----
**Which fuzzifier.** Fuzzy c-means has a fixed point where it has learnt nothing: every centroid in
the mean of the data, every membership 1/c. Let z be the vectors after centring, each scaled to
length 1, and λ the top eigenvalue of the mean of z zᵀ. Centroids moved off the mean by δ (with
u ∝ d^(-2/(m-1)) expanded to first order in δ) come back from one iteration as
2m/(m-1) · (mean of z zᵀ) δ. So the fixed point attracts exactly if 2mλ/(m-1) < 1, that is if

    m > 1 / (1 - 2λ),

and never if λ ≥ 1/2. This is the rule of [1]_; an m at or above it is refused.

It says when *all* centroids fall together. Two neighbouring centroids do so earlier: the same
argument holds inside a cluster, with z taken around the cluster's own mean. On 11 715 MRI slices
(frozen ImageNet features, d = 1280, c = 108) the rule gives 1.48 for the whole and 1.24 inside (10 %
quantile of the k-means clusters); at m = 1.12, 1.15, 1.20 and 1.25 there were 0, 13, 58 and 94
centroids that coincided with another. On many well separated clusters it is the other way round (1.03
and 1.2). Hence m = 1 + (limit - 1) / 3 with the lower of the two limits: on those slices and on Gaussian
mixtures a quarter to a half of the way scanned least at equal recall.

**What fuzziness buys.** Share of the collection scanned for recall@10 = 0.95, patients held out, by
covered membership against a fixed number of probes: 0.060-0.064 against 0.070-0.075 on those slices
(three seeds), 0.4 to 1 of the fixed cost on Gaussian mixtures. A softer exponent for probing than for
the fit gained nothing once a floor and a ceiling stand beside the coverage.

References
----------
.. [1] J. Yu, Q. Cheng, H. Huang, "Analysis of the weighting exponent in the FCM", IEEE Transactions
       on Systems, Man, and Cybernetics, Part B 34(1), 2004, 634-639. doi:10.1109/TSMCB.2003.810951
.. [2] J. C. Bezdek, "Pattern Recognition with Fuzzy Objective Function Algorithms", Plenum, 1981
       (memberships, partition coefficient).
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from skfuzzy.cluster import cmeans

from indexer.errors import PartitionError

LISTS = (16, 256)
"""Fewest and most lists chosen from the number of vectors (their square root)."""
POINTS_PER_LIST = 40
"""Vectors a list that the fit looks at; with 64, queries on slices scanned about 4 % less."""
ITERATIONS = 10
"""From a k-means start the objective falls by less than 0.1 % an iteration after these."""
SHARES = (1 / 3, 1 / 6, 1 / 12)
"""How far m goes from 1 to the limit; the later ones are tried only if the first fit collapses."""
COINCIDE = 0.1
"""Centroids nearer to each other than this share of the mean radius of a cluster coincide."""
FILED_TWICE = 0.2
"""Share of vectors filed in a second list: 1.2 × the memory of one list each."""
BORDER = 0.01
"""A second membership below this share of the first is no border, however few those are."""
BLOCK = 8192
"""Rows worked on at a time."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Probing:
    """How many lists a query probes.

    Lists are taken in order of membership until all but `uncovered` of it is covered: at least
    `floor`, at most `ceiling` of them. ``floor == ceiling`` is a fixed number of probes.

    Attributes
    ----------
    uncovered : float
        1 - τ, kept as the small number because memberships near 1 leave no digits to τ.
    floor, ceiling : int
        Fewest and most lists.
    recall : float
        Recall of the exact neighbours on the calibration queries; NaN before calibration.
    scanned : float
        Mean share of the collection that a calibration query was compared with.
    fixed, fixed_scanned : int, float
        The fixed number of probes that reaches the same recall, and what it scans.
    """

    uncovered: float
    floor: int
    ceiling: int
    recall: float = math.nan
    scanned: float = math.nan
    fixed: int = 0
    fixed_scanned: float = math.nan


@dataclass(eq=False)
class Partition:
    """A fuzzy partition; made by :meth:`fit` or :meth:`load`.

    Attributes
    ----------
    centroids : ndarray of float32, shape (c, d)
    fuzzifier : float
        The exponent m, above 1.
    m_crit, m_local : float
        The limits of the module notes for the whole and inside clusters; may be infinite.
    border : float
        A vector is filed in a second list where its second membership is at least this share of
        its first.
    coefficient : float
        Bezdek's partition coefficient of the fit: mean over its sample of Σ u², from 1/c to 1.
    sizes : ndarray of int64, shape (c,)
        Entries of each list when `judged` vectors are filed.
    judged : int
        How many; not those the centroids were fitted on, where there are others.
    probing : Probing
        Replaced by :meth:`calibrate`; cautious before.
    """

    centroids: Floats
    fuzzifier: float
    m_crit: float
    m_local: float
    border: float
    coefficient: float
    sizes: Ints
    judged: int
    probing: Probing

    @classmethod
    def fit(
        cls, x: Floats, *, lists: int | None = None, fuzzifier: float | None = None, seed: int = 0
    ) -> Partition:
        """Fit centroids and choose the fuzzifier on a sample of the vectors.

        Parameters
        ----------
        x : ndarray of float32, shape (n, d)
            Unit vectors.
        lists : int, optional
            Number of clusters c; by default √n within :data:`LISTS`, and at most a quarter of the
            distinct vectors.
        fuzzifier : float, optional
            Exponent m; by default as the module notes say.
        seed : int
            Decides sample and k-means start; equal seeds give equal partitions.

        Raises
        ------
        PartitionError
            If there are too few distinct vectors, some are not finite, `fuzzifier` is not above 1
            and below the collapse limit, or the fit collapses.
        """
        wanted = lists or int(np.clip(round(math.sqrt(len(x))), *LISTS))
        rng = np.random.default_rng(seed)
        size = POINTS_PER_LIST * wanted
        shuffled = rng.permutation(len(x))[: 2 * size]
        sample = np.unique(np.asarray(x[np.sort(shuffled[:size])], np.float32), axis=0)
        if not np.isfinite(sample).all():
            raise PartitionError("partition", "some vectors hold NaN or infinity", "embed them again")
        c = wanted if lists else min(wanted, len(sample) // 4)
        if not 2 <= c <= len(sample):
            raise PartitionError(
                "partition", f"{len(sample)} distinct vectors are too few for it", "search exactly"
            )

        start = _k_means(sample, c, seed)
        m_crit = fuzzifier_limit(sample)
        m_local = _local_limit(sample, start)
        if fuzzifier is None:
            limit = min(m_crit, m_local, 3.0)  # 3: both may be infinite, and m = 1.67 is fuzzy enough
            tries = [1 + share * (limit - 1) for share in SHARES]
        elif 1 < fuzzifier < m_crit:
            tries = [fuzzifier]
        else:
            raise PartitionError(
                "partition",
                f"fuzzifier {fuzzifier:.4g} is not between 1 and {m_crit:.4g}, where the fit collapses",
                "leave the choice to the fit",
            )
        for m in tries:
            centroids, memberships, radius = _c_means(sample, start, c, m)
            collapse = _collapse(centroids, memberships, radius)
            if collapse is None:
                break
        else:
            raise PartitionError(
                "partition", f"the fit collapsed ({collapse})", "take a smaller fuzzifier or fewer lists"
            )

        # border and sizes are those of vectors that the fit has not drawn its centroids to
        unseen = np.asarray(x[np.sort(shuffled[size:])], np.float32)
        judged = unseen if len(unseen) >= len(sample) // 4 else sample
        partition = cls(
            centroids=centroids.astype(np.float32),
            fuzzifier=m,
            m_crit=m_crit,
            m_local=m_local,
            border=0.0,
            coefficient=float((memberships**2).sum(axis=0).mean()),
            sizes=np.zeros(c, np.int64),
            judged=len(judged),
            probing=Probing(uncovered=1e-3, floor=math.ceil(math.sqrt(c)), ceiling=c),
        )
        _, second_to_first = partition._two_nearest(judged)
        partition.border = max(BORDER, float(np.quantile(second_to_first, 1 - FILED_TWICE)))
        partition.sizes = _sizes(partition.lists_for(judged), c)
        return partition

    def memberships(self, x: Floats) -> Floats:
        """Membership of each vector in each list.

        u_i = d_i^(-2/(m-1)) / Σ_j d_j^(-2/(m-1)) [2]_, as a softmax of -ln d² / (m-1), which
        neither overflows at m near 1 nor fails at distance 0.

        Parameters
        ----------
        x : ndarray of float32, shape (n, d)

        Returns
        -------
        ndarray of float32, shape (n, c)
            Rows sum to 1.
        """
        u = np.empty((len(x), len(self.centroids)), np.float32)
        for rows, squared in self._distances(x):
            u[rows] = _softmax(squared, self.fuzzifier)
        return u

    def lists_for(self, x: Floats) -> Ints:
        """Lists a vector is filed in: that of its highest membership, and at a border the next.

        Parameters
        ----------
        x : ndarray of float32, shape (n, d)

        Returns
        -------
        ndarray of int64, shape (n, 2)
            −1 in the second column where there is no second list.
        """
        lists, second_to_first = self._two_nearest(x)
        lists[second_to_first < self.border, 1] = -1
        return lists

    def probes_for(self, x: Floats) -> Ints:
        """Lists a query probes, in order of membership.

        Parameters
        ----------
        x : ndarray of float32, shape (n, d)

        Returns
        -------
        ndarray of int64, shape (n, p)
            −1 from where `probing` says that it is enough.
        """
        order, tail = self._order(x)
        counts = _counts(tail, self.probing.uncovered, self.probing.floor, self.probing.ceiling)
        width = int(counts.max(initial=1))
        probes = order[:, :width]
        probes[np.arange(width) >= counts[:, None]] = -1
        return probes

    def calibrate(self, queries: Floats, base: Floats, recall: float = 0.95, k: int = 10) -> None:
        """Choose the cheapest probing that finds the exact neighbours of held-out queries.

        Coverage, floor and ceiling are searched together; the fixed number of probes that reaches
        the recall is one of the candidates and wins where coverage scans no less. A probing
        qualifies if its recall less one standard error reaches `recall`.

        Parameters
        ----------
        queries : ndarray of float32, shape (q, d)
            Vectors that are not in `base`, best from patients who are not in it, as real queries
            are; a thousand of them leave a standard error of about 0.004.
        base : ndarray of float32, shape (n, d)
            The collection, or a sample of it (whose neighbours lie further away: a cautious choice).
        recall : float
            Recall@k to reach, against exact search.
        k : int
            Neighbours asked for.
        """
        c = len(self.centroids)
        filed = self.lists_for(base)
        order, tail = self._order(queries)
        _, truth = faiss.knn(
            np.ascontiguousarray(queries, np.float32),
            np.ascontiguousarray(base, np.float32),
            min(k, len(base)),
            metric=faiss.METRIC_INNER_PRODUCT,
        )
        rank = np.argsort(order, axis=1)
        needed = np.full(truth.shape, c)  # how many lists until the neighbour turns up
        for column in filed.T:
            lists = column[truth]
            found = np.take_along_axis(rank, np.maximum(lists, 0), axis=1)
            needed = np.minimum(needed, np.where(lists >= 0, found, c))
        scans = np.cumsum(_sizes(filed, c)[order], axis=1) / len(base)

        def judge(counts: Ints) -> tuple[float, float, float]:
            hits = (needed < counts[:, None]).mean(axis=1)
            scanned = np.take_along_axis(scans, counts[:, None] - 1, axis=1).mean()
            return float(hits.mean()), float(hits.std() / math.sqrt(len(hits))), float(scanned)

        for fixed in range(1, c + 1):
            reached, error, fixed_scanned = judge(np.full(len(order), fixed))
            if reached - error >= recall:
                break
        best = Probing(1.0, fixed, fixed, reached, fixed_scanned, fixed, fixed_scanned)
        levels = sorted({min(c, math.ceil(2 ** (i / 2))) for i in range(2 * c.bit_length())})
        for uncovered in np.logspace(-0.1, -12, 48):
            counts = _counts(tail, uncovered, 1, c)
            for floor in (level for level in levels if level <= fixed):
                for ceiling in (level for level in levels if level >= fixed):
                    reached, error, scanned = judge(np.clip(counts, floor, ceiling))
                    if scanned < best.scanned and reached - error >= recall:
                        best = Probing(
                            float(uncovered), floor, ceiling, reached, scanned, fixed, fixed_scanned
                        )
        self.probing = best

    def summary(self) -> dict[str, Any]:
        """What the partition is like, in numbers that JSON can hold (an infinite limit is None)."""
        return {
            "lists": len(self.centroids),
            "fuzzifier": self.fuzzifier,
            "m_crit": _finite(self.m_crit),
            "m_local": _finite(self.m_local),
            "partition_coefficient": self.coefficient,
            "replicas": float(self.sizes.sum() / self.judged),
            "list_sizes": {
                "min": int(self.sizes.min()),
                "median": float(np.median(self.sizes)),
                "max": int(self.sizes.max()),
            },
            "probing": {
                "covered": 1 - self.probing.uncovered,
                "floor": self.probing.floor,
                "ceiling": self.probing.ceiling,
                "recall": _finite(self.probing.recall),
                "scanned": _finite(self.probing.scanned),
                "fixed": self.probing.fixed,
                "fixed_scanned": _finite(self.probing.fixed_scanned),
            },
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all fields to an npz file without pickle; the name is taken as it is."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "probing"}
        with Path(path).open("wb") as file:
            np.savez(file, **values, **asdict(self.probing))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Partition:
        """Read what :meth:`save` wrote.

        Raises
        ------
        PartitionError
            If the file holds no partition.
        FileNotFoundError
            If there is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as held:
                values = {name: held[name] if held[name].ndim else held[name].item() for name in held.files}
            probing = Probing(**{f.name: values.pop(f.name) for f in fields(Probing)})
            return cls(**values, probing=probing)
        except (ValueError, TypeError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise PartitionError(
                path, f"is not a partition ({error})", "run `cbir verify --repair`"
            ) from error

    def _distances(self, x: Floats) -> Iterator[tuple[slice, Floats]]:
        """Squared distances to all centroids, a block of rows at a time."""
        if x.shape[1] != self.centroids.shape[1]:
            raise PartitionError(
                "partition",
                f"vectors of {x.shape[1]} dimensions do not fit its {self.centroids.shape[1]}",
                "query with the encoder that made the index",
            )
        lengths = (self.centroids**2).sum(axis=1)
        for begin in range(0, len(x), BLOCK):
            rows = slice(begin, begin + BLOCK)
            block = np.asarray(x[rows], np.float32)
            squared = (block**2).sum(axis=1)[:, None] - 2 * block @ self.centroids.T + lengths
            # rounding may leave a zero distance slightly off zero: keep its logarithm finite
            yield rows, np.maximum(squared, np.finfo(np.float32).eps ** 2)

    def _two_nearest(self, x: Floats) -> tuple[Ints, NDArray[np.float64]]:
        """The two lists of highest membership, and the second membership over the first."""
        lists = np.empty((len(x), 2), np.int64)
        ratio = np.empty(len(x))
        for rows, squared in self._distances(x):
            lists[rows] = np.argpartition(squared, 1, axis=1)[:, :2]  # the nearest comes first
            near = np.log(np.take_along_axis(squared, lists[rows], axis=1), dtype=np.float64)
            ratio[rows] = np.exp((near[:, 0] - near[:, 1]) / (self.fuzzifier - 1))
        return lists, ratio

    def _order(self, x: Floats) -> tuple[Ints, Floats]:
        """Lists in order of membership, and the membership left after each of them.

        The rest is summed from its small end: 1 - cumulative sum would round it away.
        """
        order = np.empty((len(x), len(self.centroids)), np.int64)
        tail = np.empty(order.shape, np.float32)
        for rows, squared in self._distances(x):
            order[rows] = np.argsort(squared, axis=1, kind="stable")
            u = _softmax(np.take_along_axis(squared, order[rows], axis=1), self.fuzzifier)
            tail[rows, -1] = 0
            tail[rows, :-1] = u[:, :0:-1].cumsum(axis=1)[:, ::-1]
        return order, tail


def fuzzifier_limit(x: Floats) -> float:
    """m_crit = 1 / (1 - 2λ): from here on fuzzy c-means collapses into the mean (module notes).

    Parameters
    ----------
    x : ndarray, shape (n, d)

    Returns
    -------
    float
        Above 1; infinite where λ ≥ 1/2.
    """
    largest = _top_eigenvalue(x)
    return 1 / (1 - 2 * largest) if largest < 0.5 else math.inf


def _top_eigenvalue(x: Floats) -> float:
    """Largest eigenvalue of the mean of z zᵀ, z = centred vectors scaled to length 1."""
    z = x - x.mean(axis=0)
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    gram = z @ z.T if len(z) < z.shape[1] else z.T @ z  # either has the same top eigenvalue
    return float(np.linalg.eigvalsh(gram)[-1] / len(z))


def _local_limit(x: Floats, assigned: Ints) -> float:
    """The limit inside clusters of 8 or more vectors: its 10 % quantile over them."""
    members = [x[assigned == i] for i in range(int(assigned.max()) + 1)]
    largest = [_top_eigenvalue(own) for own in members if len(own) >= 8]
    narrow = float(np.quantile(largest, 0.1)) if largest else 0.5
    return 1 / (1 - 2 * narrow) if narrow < 0.5 else math.inf


def _k_means(x: Floats, c: int, seed: int) -> Ints:
    """Cluster of each vector by k-means."""
    k_means = faiss.Kmeans(
        x.shape[1], c, niter=10, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(x)
    )
    k_means.train(x)
    _, assigned = k_means.index.search(x, 1)
    return np.asarray(assigned[:, 0], np.int64)


def _c_means(
    x: Floats, start: Ints, c: int, m: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Centroids (c, d), memberships (c, n), and the root mean square distance to the own centroids."""
    init = np.full((c, len(x)), 1e-3 / c)
    init[start, np.arange(len(x))] = 1
    centroids, u, _, distances, *_ = cmeans(
        x.T.astype(np.float64), c, m, error=1e-3, maxiter=ITERATIONS, init=init
    )
    return centroids, u, math.sqrt((u * distances**2).sum(axis=0).mean())


def _collapse(centroids: NDArray[np.float64], u: NDArray[np.float64], radius: float) -> str | None:
    """Why a fit has collapsed, or None."""
    c = len(centroids)
    highest = float(u.max(axis=0).mean())
    if not highest >= 2 / c:  # also true for NaN
        return f"mean highest membership {highest:.3g} of {c} lists"
    lengths = (centroids**2).sum(axis=1)
    squared = lengths[:, None] + lengths - 2 * centroids @ centroids.T
    np.fill_diagonal(squared, np.inf)
    coinciding = int((squared.min(axis=1) < (COINCIDE * radius) ** 2).sum())
    return f"{coinciding} of {c} centroids coincide" if coinciding else None


def _softmax(squared: Floats, m: float) -> Floats:
    logits = np.log(squared) / np.float32(1 - m)
    logits -= logits.max(axis=1, keepdims=True)
    u: Floats = np.exp(logits)
    u /= u.sum(axis=1, keepdims=True)
    return u


def _counts(tail: Floats, uncovered: float, floor: int, ceiling: int) -> Ints:
    """How many lists each query probes."""
    counts: Ints = 1 + (tail > uncovered).sum(axis=1)
    return counts.clip(floor, ceiling)


def _sizes(filed: Ints, c: int) -> Ints:
    return np.bincount(filed[filed >= 0], minlength=c)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
