"""What decides how an index is searched: one value, passed down and kept with what depends on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchPolicy:
    """When a search is exact, and how wide it is where it is not.

    Attributes
    ----------
    exact_below : int
        Up to so many slices are compared one by one, and no partition is made of them.
    shortlist : int
        Cases that the approximate search proposes for exact ranking, at least.
    depth : int
        Slices that the approximate search fetches for each query slice.
    recall : float, optional
        Share of the nearest slices to find; None for the one that the partition was calibrated with.
    """

    exact_below: int = 20_000
    shortlist: int = 100
    depth: int = 64
    recall: float | None = None
