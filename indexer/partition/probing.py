"""How many lists a query probes, and what it would find and cost with more or fewer."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.partition.distances import Floats, Ints


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


@dataclass(frozen=True)
class Trial:
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
    ) -> Trial:
        """With the lists in order, what is left of membership after each, and where the base is filed."""
        rank = np.full((len(order), c + 1), c)
        np.put_along_axis(rank, np.where(order < 0, c, order), np.arange(order.shape[1])[None], axis=1)
        rank[:, c] = c  # of what is filed nowhere, or in a list that is not among the nearest
        needed = np.minimum(
            *(np.take_along_axis(rank, np.where(own < 0, c, own), axis=1) for own in filed.T[:, truth])
        )
        sizes = np.append(sizes_of(filed, c), 0) * (n / len(filed))
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
            counts = counts_of(self.tail, uncovered, 1, most)
            for floor, ceiling in itertools.product(floors, ceilings):
                reached, error, cost = self.judge(np.clip(counts, floor, ceiling), depth)
                if cost < best.distances and reached - error >= recall:
                    best = Probing(
                        float(uncovered), floor, ceiling, self.reach, *asked, reached, cost, fixed, fixed_cost
                    )
        return best


def counts_of(tail: Floats, uncovered: float, floor: int, ceiling: int) -> Ints:
    """How many lists each query probes."""
    counts: Ints = 1 + (tail > uncovered).sum(axis=1)
    return counts.clip(floor, ceiling)


def sizes_of(filed: Ints, c: int) -> Ints:
    """Entries of each list."""
    return np.bincount(filed[filed >= 0], minlength=c)
