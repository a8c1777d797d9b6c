"""Fuzzy c-means partition of the embedding space: where a vector is filed, which lists a query probes.

The fit starts from k-means. Where the sample is small it is scikit-fuzzy's ``cmeans``; else, and for
everything past the fit, the same memberships are evaluated in blocks of float32, from logarithms.

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

**How a query finds its lists.** Many small lists scan least, but each is one more centroid to compare
with. So a graph (HNSW [4]_) over the centroids names the nearest, of which the memberships then choose.
With eight times √n lists that took 0.45 of the distance computations of the best tuned k-means inverted
file on real slices; memberships instead of a fixed number of probes add little (``python -m
benchmarks.index``).

**A second list** for a border vector is chosen as in SOAR [3]_: not the next nearest centroid, but one
whose residual is as orthogonal as can be to the residual of the first, since a query that misses the
vector in the first list is far along that one. Gated by membership, it pays on features that are hard to
cluster, and is left out where it saves too little (:meth:`Partition.calibrate` measures it).

References
----------
.. [1] J. Yu, Q. Cheng, H. Huang, "Analysis of the weighting exponent in the FCM", IEEE Transactions
       on Systems, Man, and Cybernetics, Part B 34(1), 2004, 634-639. doi:10.1109/TSMCB.2003.810951
.. [2] J. C. Bezdek, "Pattern Recognition with Fuzzy Objective Function Algorithms", Plenum, 1981
       (memberships, partition coefficient).
.. [3] P. Sun, D. Simcha, D. Dopson, R. Guo, S. Kumar, "SOAR: Improved Indexing for Approximate Nearest
       Neighbor Search", NeurIPS 2023. arXiv:2404.00774
.. [4] Y. A. Malkov, D. A. Yashunin, "Efficient and robust approximate nearest neighbor search using
       Hierarchical Navigable Small World graphs", IEEE TPAMI 42(4), 2020, 824-836.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from skfuzzy.cluster import cmeans

from indexer.errors import PartitionError

faiss: Any = _faiss  # the type stubs that come with it lack much of what is used here

LISTS_PER_ROOT = 8
"""Lists over the square root of the number of vectors."""
LISTS = (16, 4096)
"""Fewest and most lists that are chosen: the time of a fit grows with their square."""
FEWEST_IN_LIST = 16
"""Vectors a list has on average, at least."""
POINTS_PER_LIST = 40
"""Vectors a list that the fit looks at; with 64, queries on slices scanned about 4 % less."""
SMALL = 20_000 * 256
"""Vectors times lists up to which scikit-fuzzy fits (float64, several arrays of that size)."""
ITERATIONS = 10
"""From a k-means start the objective falls by less than 0.1 % an iteration after these."""
LOOK = 3
"""After so many iterations a fit that has collapsed is given up: centroids that coincide stay so."""
SHARES = (1 / 3, 1 / 6, 1 / 12)
"""How far m goes from 1 to the limit; the later ones are tried only if the first fit collapses."""
COINCIDE = 0.1
"""Centroids nearer to each other than this share of the mean radius of a cluster coincide."""
JUDGED = 20_000
"""Vectors outside the fit that list sizes and borders are measured on, at most."""
FILED_TWICE = (0.0, 0.2, 0.5)
"""Shares of vectors in a second list that the calibration compares."""
WORTH = 0.9
"""A second list must bring the distance computations of a query below this share."""
BORDER = 0.01
"""A second membership below this share of the first is no border, however few those are."""
NEAR = 8
"""Centroids that the second list is chosen from."""
RECALLS = (0.9, 0.95, 0.99)
"""Recalls that probing is calibrated for."""
RECALL = 0.99
"""The one in force. Over 0.95 it costs half as many distance computations again, which is microseconds."""
DEPTHS = (10, 100)
"""Numbers of neighbours that probing is calibrated for."""
REACHES = (16, 32, 64, 128, 256)
"""Lists that the graph is asked for; what it looks at grows with them."""
LINKS = 8
"""Links of a centroid in the graph, twice as many in its lowest layer."""
BLOCK = 8192
"""Rows worked on at a time."""
CELLS = 1 << 20
"""Distances worked on at a time in the fit: 4 MB, which a cache holds."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Progress = Callable[[int, int], None]
"""Called with the steps done and all steps."""


@dataclass(frozen=True)
class Probing:
    """How many lists a query probes.

    Of the `reach` nearest lists, those in order of membership until all but `uncovered` of it is
    covered: at least `floor`, at most `ceiling` of them. ``floor == ceiling`` is a fixed number.

    Attributes
    ----------
    uncovered : float
        1 - τ, kept as the small number because memberships near 1 leave no digits to τ.
    floor, ceiling : int
        Fewest and most lists.
    reach : int
        Lists that the graph names; 0 compares the query with all centroids.
    recall, depth : float, int
        What it is calibrated for: a recall of that many neighbours. NaN before calibration.
    reached : float
        Recall of the exact neighbours on the calibration queries.
    distances : float
        Mean number of vectors that a query is compared with, centroids included.
    fixed, fixed_distances : int, float
        The fixed number of probes that reaches the same recall, and what it costs.
    """

    uncovered: float
    floor: int
    ceiling: int
    reach: int = 0
    recall: float = math.nan
    depth: int = 0
    reached: float = math.nan
    distances: float = math.nan
    fixed: int = 0
    fixed_distances: float = math.nan


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
    reason : str
        Why this fuzzifier.
    border : float
        A vector is filed in a second list where its membership there is at least this share of its
        highest; infinite where none is.
    coefficient : float
        Bezdek's partition coefficient of the fit: mean over its sample of Σ u², from 1/c to 1.
    low, high : float
        Range of the components, for codes of 8 bits.
    sizes : ndarray of int64, shape (c,)
        Entries of each list when `judged` vectors are filed.
    judged : int
        How many; not those the centroids were fitted on, where there are others.
    probings : tuple of Probing
        Replaced by :meth:`calibrate`; cautious before.
    recall : float
        The recall in force, see :meth:`at`.
    """

    centroids: Floats
    fuzzifier: float
    m_crit: float
    m_local: float
    reason: str
    border: float
    coefficient: float
    low: float
    high: float
    sizes: Ints
    judged: int
    probings: tuple[Probing, ...]
    recall: float = RECALL

    @classmethod
    def fit(
        cls,
        x: Floats,
        *,
        lists: int | None = None,
        fuzzifier: float | None = None,
        seed: int = 0,
        of: int | None = None,
        progress: Progress | None = None,
    ) -> Partition:
        """Fit centroids and choose the fuzzifier on a sample of the vectors.

        Memory beyond `x` is that of the sample, :data:`POINTS_PER_LIST` vectors a list.

        Parameters
        ----------
        x : ndarray of float32, shape (n, d)
            Unit vectors.
        lists : int, optional
            Number of clusters c; by default as :func:`lists_for_count` says, and at most a quarter of
            the distinct vectors.
        fuzzifier : float, optional
            Exponent m; by default as the module notes say.
        seed : int
            Decides sample and k-means start; equal seeds give equal partitions.
        of : int, optional
            How many vectors there are, where `x` is a sample of them.
        progress : callable, optional

        Raises
        ------
        PartitionError
            If there are too few distinct vectors, some are not finite, `fuzzifier` is not above 1
            and below the collapse limit, or the fit collapses.
        """
        wanted = lists or lists_for_count(of or len(x))
        rng = np.random.default_rng(seed)
        size = POINTS_PER_LIST * wanted
        shuffled = rng.permutation(len(x))[: size + max(size, JUDGED)]
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
            where = "inside clusters" if m_local <= m_crit else "for the whole"
            tries = [
                (1 + share * (limit - 1), f"1 + {share:.3g} of the way to the limit {limit:.3g} {where}")
                for share in SHARES
            ]
        elif 1 < fuzzifier < m_crit:
            tries = [(fuzzifier, "as asked for")]
        else:
            raise PartitionError(
                "partition",
                f"fuzzifier {fuzzifier:.4g} is not between 1 and {m_crit:.4g}, where the fit collapses",
                "leave the choice to the fit",
            )
        told = ""
        for m, why in tries:
            reason = why + told
            found = (_c_means if len(sample) * c <= SMALL else _blocked_c_means)(
                sample, start, c, m, progress or _silent
            )
            collapse = found.collapse()
            if collapse is None:
                break
            told = f"; nearer to it the fit collapsed ({collapse})"
        else:
            raise PartitionError(
                "partition", f"the fit collapsed ({collapse})", "take a smaller fuzzifier or fewer lists"
            )

        # sizes are those of vectors that the fit has not drawn its centroids to
        unseen = np.asarray(x[np.sort(shuffled[size : size + JUDGED])], np.float32)
        judged = unseen if len(unseen) >= min(len(sample) // 4, JUDGED) else sample
        low, high = float(sample.min()), float(sample.max())
        margin = 0.05 * (high - low) + 1e-6
        partition = cls(
            centroids=found.centroids.astype(np.float32),
            fuzzifier=m,
            m_crit=m_crit,
            m_local=m_local,
            reason=reason,
            border=0.0,
            coefficient=found.coefficient,
            low=low - margin,
            high=high + margin,
            sizes=np.zeros(c, np.int64),
            judged=len(judged),
            probings=(Probing(uncovered=1e-3, floor=math.ceil(math.sqrt(c)), ceiling=c),),
        )
        partition.border = _border(partition._two_lists(judged)[1], FILED_TWICE[1])
        partition.sizes = _sizes(partition.lists_for(judged), c)
        return partition

    def at(self, recall: float) -> Partition:
        """The same partition, probed for another recall: the next that is calibrated, or all lists."""
        same = copy.copy(self)  # with the graph, if there is one
        same.recall = recall
        return same

    def probing(self, k: int | None = None) -> Probing:
        """The probing in force for k neighbours; by default for the most that are calibrated."""
        fit = [p for p in self.probings if not p.recall < self.recall]
        if not fit:
            return Probing(0.0, len(self.centroids), len(self.centroids))
        deepest = max(p.depth for p in fit)
        depth = deepest if k is None else min(k, deepest)
        return min((p for p in fit if p.depth >= depth), key=lambda p: (p.depth, p.recall))

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
        """Lists a vector is filed in: that of its highest membership, and at a border a second.

        Parameters
        ----------
        x : ndarray of float32, shape (n, d)

        Returns
        -------
        ndarray of int64, shape (n, 2)
            −1 in the second column where there is no second list.
        """
        if math.isinf(self.border):
            return np.stack([self._nearest(x, 1)[1][:, 0], np.full(len(x), -1)], axis=1)
        lists, second_to_first = self._two_lists(x)
        lists[second_to_first < self.border, 1] = -1
        return lists

    def probes_for(self, x: Floats, k: int | None = None) -> Ints:
        """Lists a query probes, in order of membership.

        Parameters
        ----------
        x : ndarray of float32, shape (n, d)
        k : int, optional
            Neighbours that are wanted; by default the most that probing is calibrated for. For more,
            it probes in proportion.

        Returns
        -------
        ndarray of int64, shape (n, p)
            −1 from where :meth:`probing` says that it is enough.
        """
        probing, c = self.probing(k), len(self.centroids)
        times = max(1, math.ceil((k or 0) / probing.depth)) if probing.depth else 1
        order, tail = self._order(x, probing.reach * times)
        counts = times * _counts(tail, probing.uncovered, probing.floor, probing.ceiling)
        width = int(counts.max(initial=1).clip(max=order.shape[1]))
        probes = order[:, :width].copy()
        probes[np.arange(width) >= counts[:, None]] = -1
        assert width <= c
        return probes

    def calibrate(
        self,
        queries: Floats,
        base: Floats,
        *,
        of: int | None = None,
        recalls: tuple[float, ...] = RECALLS,
        depths: tuple[int, ...] = DEPTHS,
    ) -> None:
        """Choose the filing and the cheapest probing that finds the exact neighbours of held-out queries.

        First the share of vectors that is filed twice, then for each recall and depth how many lists
        the graph names, then coverage, floor and ceiling together. The fixed number of probes is one
        of the candidates and wins where coverage costs no less. A probing qualifies if its recall less
        one standard error reaches the one asked for.

        Parameters
        ----------
        queries : ndarray of float32, shape (q, d)
            Vectors that are not in `base`, best from patients who are not in it, as real queries
            are; a thousand of them leave a standard error of about 0.004.
        base : ndarray of float32, shape (n, d)
            The collection, or a sample of it (whose neighbours lie further away: a cautious choice).
        of : int, optional
            How many vectors the collection has, where `base` is a sample.
        recalls, depths : tuple of float, tuple of int
            Recalls to reach against exact search, and for how many neighbours.
        """
        c = len(self.centroids)
        _, truth = faiss.knn(
            np.ascontiguousarray(queries, np.float32),
            np.ascontiguousarray(base, np.float32),
            min(max(depths), len(base)),
            metric=faiss.METRIC_INNER_PRODUCT,
        )
        orders = {}
        for reach in (*(r for r in REACHES if 4 * r <= c), 0):
            order, tail = self._order(queries, reach)
            orders[reach] = order, tail, self._looked_at(queries, reach)
        lists, second_to_first = self._two_lists(base)
        best: tuple[float, float, list[_Trial]] | None = None
        for share in FILED_TWICE:
            border = _border(second_to_first, share)
            filed = np.stack([lists[:, 0], np.where(second_to_first < border, -1, lists[:, 1])], axis=1)
            trials = [_Trial.of(reach, *o, filed, c, truth, of or len(base)) for reach, o in orders.items()]
            cost = min(trial.fixed(min(self.recall, max(recalls)), min(depths))[2] for trial in trials)
            if best is None or cost < WORTH * best[0]:
                best = cost, border, trials
        assert best is not None
        _, self.border, trials = best
        found = []
        for recall, depth in itertools.product(sorted(recalls), depths):
            # coverage looks further than a fixed number: the graph that serves it best may be another
            promising = sorted(trials, key=lambda trial: trial.fixed(recall, depth)[2])[:2]
            found.append(min((trial.best(recall, depth) for trial in promising), key=lambda p: p.distances))
        self.probings = tuple(found)
        # what is filed now, on the scale of the old sizes
        self.sizes = _sizes(self.lists_for(base), c)
        self.judged = len(base)

    def summary(self) -> dict[str, Any]:
        """What the partition is like, in numbers that JSON can hold (an infinite limit is None)."""
        probing = self.probing(min(DEPTHS))
        return {
            "lists": len(self.centroids),
            "fuzzifier": self.fuzzifier,
            "fuzzifier_reason": self.reason,
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
                "recall_asked": _finite(probing.recall),
                "recall": _finite(probing.reached),
                "named_by_graph": probing.reach,
                "covered": 1 - probing.uncovered,
                "floor": probing.floor,
                "ceiling": probing.ceiling,
                "distances": _finite(probing.distances),
                "fixed": probing.fixed,
                "fixed_distances": _finite(probing.fixed_distances),
            },
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all fields to an npz file without pickle; the name is taken as it is."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "probings"}
        table: dict[str, Any] = {
            PROBING + f.name: np.array([getattr(p, f.name) for p in self.probings]) for f in fields(Probing)
        }
        with Path(path).open("wb") as file:
            np.savez(file, **values, **table)

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
            table = [values.pop(PROBING + f.name).tolist() for f in fields(Probing)]
            return cls(**values, probings=tuple(Probing(*row) for row in zip(*table, strict=True)))
        except (ValueError, TypeError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise PartitionError(
                path, f"is not a partition ({error})", "run `cbir verify --repair`"
            ) from error

    def _checked(self, x: Floats) -> Floats:
        if x.shape[1] != self.centroids.shape[1]:
            raise PartitionError(
                "partition",
                f"vectors of {x.shape[1]} dimensions do not fit its {self.centroids.shape[1]}",
                "query with the encoder that made the index",
            )
        return np.ascontiguousarray(x, np.float32)

    def _distances(self, x: Floats) -> Iterator[tuple[slice, Floats]]:
        """Squared distances to all centroids, a block of rows at a time."""
        x, lengths = self._checked(x), (self.centroids**2).sum(axis=1)
        for begin in range(0, len(x), BLOCK):
            rows = slice(begin, begin + BLOCK)
            yield rows, _squared(x[rows], self.centroids, lengths)

    def _nearest(self, x: Floats, count: int) -> tuple[Floats, Ints]:
        """Squared distances and numbers of the nearest centroids."""
        squared, lists = faiss.knn(self._checked(x), self.centroids, count)
        return np.maximum(squared, TINY), lists

    def _two_lists(self, x: Floats) -> tuple[Ints, NDArray[np.float64]]:
        """The list of highest membership with the best second one, and their memberships' ratio.

        The second list minimises |r'|² + (r' · r / |r|)² over the next nearest, r and r' being the
        residuals of the first and of the second [3]_.
        """
        lists, ratio = np.empty((len(x), 2), np.int64), np.empty(len(x))
        for begin in range(0, len(x), BLOCK):
            rows = slice(begin, begin + BLOCK)
            block = self._checked(x[rows])
            squared, near = self._nearest(block, min(NEAR, len(self.centroids)))
            residual = block - self.centroids[near[:, 0]]
            residual /= np.sqrt(squared[:, :1])
            along = np.stack(
                [((block - self.centroids[own]) * residual).sum(axis=1) for own in near.T[1:]], axis=1
            )
            second = 1 + (squared[:, 1:] + along**2).argmin(axis=1)[:, None]
            lists[rows] = np.concatenate([near[:, :1], np.take_along_axis(near, second, axis=1)], axis=1)
            further = np.take_along_axis(squared, second, axis=1)[:, 0].astype(np.float64)
            ratio[rows] = (squared[:, 0] / further) ** (1 / (self.fuzzifier - 1))
        return lists, ratio

    @cached_property
    def _graph(self) -> Any:
        """The centroids in an HNSW graph; made by one thread, so that it is the same every time."""
        graph = faiss.IndexHNSWFlat(self.centroids.shape[1], LINKS)
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            graph.add(self.centroids)
        finally:
            faiss.omp_set_num_threads(threads)
        return graph

    def _order(self, x: Floats, reach: int) -> tuple[Ints, Floats]:
        """The nearest `reach` lists in order of membership, and the membership left after each.

        All lists for 0. The rest is summed from its small end: 1 - cumulative sum would round it away.
        """
        x, c = self._checked(x), len(self.centroids)
        width = reach if 0 < reach < c else c
        order, tail = np.empty((len(x), width), np.int64), np.empty((len(x), width), np.float32)
        if width < c:
            settings = faiss.SearchParametersHNSW(efSearch=width)
            squared, order = self._graph.search(x, width, params=settings)
            blocks = iter([(slice(None), np.maximum(squared, TINY))])
        else:
            blocks = self._distances(x)
        for rows, squared in blocks:
            if width == c:
                order[rows] = np.argsort(squared, axis=1, kind="stable")
                squared = np.take_along_axis(squared, order[rows], axis=1)
            u = _softmax(squared, self.fuzzifier)
            tail[rows, -1] = 0
            tail[rows, :-1] = u[:, :0:-1].cumsum(axis=1)[:, ::-1]
        return order, tail

    def _looked_at(self, x: Floats, reach: int) -> float:
        """Centroids that a query is compared with, on average."""
        if not 0 < reach < len(self.centroids):
            return float(len(self.centroids))
        statistics = faiss.cvar.hnsw_stats
        before = statistics.ndis
        self._order(x, reach)
        return float((statistics.ndis - before) / max(len(x), 1))


PROBING = "probing_"
"""Prefix of the arrays of :class:`Probing` in a partition's file."""
TINY = np.finfo(np.float32).eps ** 2
"""Rounding may leave a zero distance slightly off zero: this keeps its logarithm finite."""


@dataclass(frozen=True)
class _Trial:
    """What the calibration queries would find and cost with one filing and one reach.

    `needed` (q, depth) is how many lists it takes until a neighbour turns up, `scans` (q, p) how many
    vectors so many lists hold.
    """

    reach: int
    tail: Floats
    looked_at: float
    needed: Ints
    scans: NDArray[np.float64]

    @classmethod
    def of(
        cls, reach: int, order: Ints, tail: Floats, looked_at: float, filed: Ints, c: int, truth: Ints, n: int
    ) -> _Trial:
        rank = np.full((len(order), c + 1), c)
        np.put_along_axis(rank, np.where(order < 0, c, order), np.arange(order.shape[1])[None], axis=1)
        rank[:, c] = c  # of what is filed nowhere, or in a list that is not among the nearest
        needed = np.minimum(
            *(np.take_along_axis(rank, np.where(own < 0, c, own), axis=1) for own in filed.T[:, truth])
        )
        sizes = np.append(_sizes(filed, c), 0) * (n / len(filed))
        return cls(reach, tail, looked_at, needed, np.cumsum(sizes[order], axis=1))

    def judge(self, counts: Ints, depth: int) -> tuple[float, float, float]:
        """Recall, its standard error, and the distance computations of a query."""
        hits = (self.needed[:, :depth] < counts[:, None]).mean(axis=1)
        scanned = np.take_along_axis(self.scans, counts[:, None] - 1, axis=1).mean()
        return float(hits.mean()), float(hits.std() / math.sqrt(len(hits))), self.looked_at + float(scanned)

    def fixed(self, recall: float, depth: int) -> tuple[int, float, float]:
        """The fewest probes, the same for all queries: number, recall, cost (infinite: not reached)."""
        low, high = 1, self.tail.shape[1]
        while low < high:
            middle = (low + high) // 2
            reached, error, _ = self.judge(np.full(len(self.tail), middle), depth)
            low, high = (low, middle) if reached - error >= recall else (middle + 1, high)
        reached, error, cost = self.judge(np.full(len(self.tail), low), depth)
        return low, reached, cost if reached - error >= recall else math.inf

    def best(self, recall: float, depth: int) -> Probing:
        """The cheapest probing that qualifies."""
        fixed, reached, fixed_cost = self.fixed(recall, depth)
        asked = recall, depth
        best = Probing(1.0, fixed, fixed, self.reach, *asked, reached, fixed_cost, fixed, fixed_cost)
        most = self.tail.shape[1]
        levels = sorted({math.ceil(2 ** (i / 2)) for i in range(2 * most.bit_length())} | {most})
        floors = [n for n in levels if n <= fixed]
        ceilings = [n for n in levels if fixed <= n <= most and (n <= 8 * fixed or n == most)]
        for uncovered in np.logspace(-0.1, -12, 36):
            counts = _counts(self.tail, uncovered, 1, most)
            for floor, ceiling in itertools.product(floors, ceilings):
                reached, error, cost = self.judge(np.clip(counts, floor, ceiling), depth)
                if cost < best.distances and reached - error >= recall:
                    best = Probing(
                        float(uncovered), floor, ceiling, self.reach, *asked, reached, cost, fixed, fixed_cost
                    )
        return best


@dataclass(frozen=True)
class _Fitted:
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


def lists_for_count(n: int) -> int:
    """How many lists n vectors are filed in: 8 √n within limits, each of 16 vectors at least."""
    return int(np.clip(min(round(LISTS_PER_ROOT * math.sqrt(n)), n // FEWEST_IN_LIST), *LISTS))


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
    """The limit inside clusters of 8 or more vectors: its 10 % quantile over 500 of them at most."""
    by_cluster = np.argsort(assigned, kind="stable")
    ends = np.flatnonzero(np.diff(assigned[by_cluster])) + 1
    members = [own for own in np.split(by_cluster, ends) if len(own) >= 8]
    largest = [_top_eigenvalue(x[own]) for own in members[:: max(1, len(members) // 500)]]
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


def _c_means(x: Floats, start: Ints, c: int, m: float, progress: Progress) -> _Fitted:
    """Fuzzy c-means by scikit-fuzzy."""
    init = np.full((c, len(x)), 1e-3 / c)
    init[start, np.arange(len(x))] = 1
    centroids, u, _, distances, *_ = cmeans(
        x.T.astype(np.float64), c, m, error=1e-3, maxiter=ITERATIONS, init=init
    )
    progress(1, 1)
    return _Fitted(
        centroids,
        float(u.max(axis=0).mean()),
        float((u**2).sum(axis=0).mean()),
        math.sqrt((u * distances**2).sum(axis=0).mean()),
    )


def _blocked_c_means(x: Floats, start: Ints, c: int, m: float, progress: Progress) -> _Fitted:
    """The same in blocks of float32, summed in float64.

    u^m needs no division: its logarithm is m times that of the softmax of -ln d² / (m-1).
    """
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
            squared = _squared(block, narrow, lengths)
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
            early = _Fitted(centroids, highest / n, squares / n, math.sqrt(scatter / n))
            if early.collapse() is not None:
                return early
        if not last:
            centroids = sums / total[:, None]
        progress(step + 1, ITERATIONS)
    return _Fitted(centroids, highest / n, squares / n, math.sqrt(scatter / n))


def _silent(done: int, steps: int) -> None:
    pass


def _squared(x: Floats, centroids: Floats, lengths: Floats) -> Floats:
    """Squared distances (n, c), a little above 0 at least."""
    squared: Floats = x @ centroids.T
    squared *= -2
    squared += lengths
    squared += np.einsum("ij,ij->i", x, x)[:, None]
    return np.maximum(squared, np.float32(TINY), out=squared)


def _softmax(squared: Floats, m: float) -> Floats:
    logits = np.log(squared) / np.float32(1 - m)
    logits -= logits.max(axis=1, keepdims=True)
    u: Floats = np.exp(logits)
    u /= u.sum(axis=1, keepdims=True)
    return u


def _border(second_to_first: NDArray[np.float64], share: float) -> float:
    """The ratio of memberships above which that share of the vectors lies."""
    return max(BORDER, float(np.quantile(second_to_first, 1 - share))) if share else math.inf


def _counts(tail: Floats, uncovered: float, floor: int, ceiling: int) -> Ints:
    """How many lists each query probes."""
    counts: Ints = 1 + (tail > uncovered).sum(axis=1)
    return counts.clip(floor, ceiling)


def _sizes(filed: Ints, c: int) -> Ints:
    return np.bincount(filed[filed >= 0], minlength=c)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
