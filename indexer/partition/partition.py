"""The partition itself: memberships, filing, probing, and how it is fitted, calibrated and kept."""

from __future__ import annotations

import copy
import itertools
import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import PartitionError
from indexer.partition.cmeans import Progress, k_means_start, settled, silent
from indexer.partition.distances import TINY, Floats, Ints, faiss, softmax, squared_distances
from indexer.partition.fuzzifier import fuzzifier_limit, local_limit, to_try
from indexer.partition.probing import Probing, Trial, counts_of, sizes_of

LISTS_PER_ROOT = 8
"""Lists over the square root of the number of vectors."""
LISTS = (16, 4096)
"""Fewest and most lists that are chosen: the time of a fit grows with their square."""
FEWEST_IN_LIST = 16
"""Vectors a list has on average, at least."""
POINTS_PER_LIST = 40
"""Vectors a list that the fit looks at; with 64, queries on slices scanned about 4 % less."""
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
ROWS = 8192
"""Rows worked on at a time."""
PROBING = "probing_"
"""Prefix of the arrays of :class:`Probing` in a partition's file."""


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

        start = k_means_start(sample, c, seed)
        m_crit = fuzzifier_limit(sample)
        m_local = local_limit(sample, start)
        tries = to_try(fuzzifier, m_crit, m_local)
        found, m, reason = settled(sample, start, c, tries, progress or silent)

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
        partition.sizes = sizes_of(partition.lists_for(judged), c)
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
            u[rows] = softmax(squared, self.fuzzifier)
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
        counts = times * counts_of(tail, probing.uncovered, probing.floor, probing.ceiling)
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
        best: tuple[float, float, list[Trial]] | None = None
        for share in FILED_TWICE:
            border = _border(second_to_first, share)
            filed = np.stack([lists[:, 0], np.where(second_to_first < border, -1, lists[:, 1])], axis=1)
            trials = [Trial.of(reach, *o, filed, c, truth, of or len(base)) for reach, o in orders.items()]
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
        self.sizes = sizes_of(self.lists_for(base), c)
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
            held = _arrays(Path(path)).items()
            values: dict[str, Any] = {name: array if array.ndim else array.item() for name, array in held}
            table = [values.pop(PROBING + f.name).tolist() for f in fields(Probing)]
            found = cls(**values, probings=tuple(Probing(*row) for row in zip(*table, strict=True)))
            found._require_sound()
        except (ValueError, TypeError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise PartitionError(
                path, f"is not a partition ({error})", "run `cbir verify --repair`"
            ) from error
        return found

    def _require_sound(self) -> None:
        """Refuse what no fit or calibration gives: whoever wrote it need not have been cbir."""
        c, d = self.centroids.shape
        whole = (self.judged, *(n for p in self.probings for n in (p.floor, p.ceiling, p.reach, p.depth)))
        _require(self.centroids.dtype == np.float32 and 0 < c < 2**20 and 0 < d < 2**16, "centroids")
        _require(np.isfinite(self.centroids).all(), "centroids")
        _require(all(type(n) is int and 0 <= n < 2**40 for n in whole) and self.judged > 0, "counts")
        numbers = (self.fuzzifier, self.border, self.coefficient, self.low, self.high, self.recall)
        _require(all(isinstance(n, float | int) for n in (*numbers, self.m_crit, self.m_local)), "numbers")
        _require(1 < self.fuzzifier < math.inf and self.border > 0, "fuzzifier")
        _require(-math.inf < self.low < self.high < math.inf, "range")
        _require(self.sizes.shape == (c,) and self.sizes.dtype == np.int64, "sizes")
        _require((self.sizes >= 0).all() and (self.sizes < 2**40).all(), "sizes")
        _require(isinstance(self.reason, str) and self.reason.isprintable(), "reason")
        _require(len(self.probings) < 1000, "probings")
        _require(0 <= self.recall <= 1, "recall")
        for p in self.probings:
            _require(p.floor <= c and p.ceiling <= c and p.reach <= c and 0 <= p.uncovered <= 1, "probings")
            _require(all(math.isnan(n) or 0 <= n <= 1 for n in (p.recall, p.reached)), "probings")

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
        for begin in range(0, len(x), ROWS):
            rows = slice(begin, begin + ROWS)
            yield rows, squared_distances(x[rows], self.centroids, lengths)

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
        for begin in range(0, len(x), ROWS):
            rows = slice(begin, begin + ROWS)
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
            u = softmax(squared, self.fuzzifier)
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


def _require(true: bool | np.bool_, what: str) -> None:
    if not true:
        raise ValueError(f"its {what} cannot be")


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file, of which no more is believed than there are bytes."""
    found = {}
    with path.open("rb") as file, zipfile.ZipFile(file) as held:
        for member in held.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > path.stat().st_size:
                raise ValueError(f"{member.filename!r:.40} is packed")
            with held.open(member) as stream:
                if np.lib.format.read_magic(stream) != (1, 0):
                    raise ValueError("arrays of another version")
                shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
                if by_columns or dtype.kind not in "biufU" or not all(0 <= n < 2**40 for n in shape):
                    raise ValueError(f"arrays of {dtype}")
                content = stream.read()
            if len(content) != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{member.filename!r:.40} is cut short")
            found[member.filename.removesuffix(".npy")] = np.frombuffer(content, dtype).reshape(shape)
    return found


def lists_for_count(n: int) -> int:
    """How many lists n vectors are filed in: 8 √n within limits, each of 16 vectors at least."""
    return int(np.clip(min(round(LISTS_PER_ROOT * math.sqrt(n)), n // FEWEST_IN_LIST), *LISTS))


def _border(second_to_first: NDArray[np.float64], share: float) -> float:
    """The ratio of memberships above which that share of the vectors lies."""
    return max(BORDER, float(np.quantile(second_to_first, 1 - share))) if share else math.inf


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
