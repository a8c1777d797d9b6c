"""What decides how an index is searched: one value, passed down and kept with what depends on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchPolicy:
    """When a search is exact, and how wide it is where it is not.

    Attributes
    ----------
    exact_below : int
        Up to so many slices are compared one by one, and no partition is made of them. Probing is quicker
        from 5000 on (two cores, d = 1280: at 24 000 a single query 0.3 instead of 5-10 ms, 150 of them 26
        instead of 50 ms), but what exactness costs up to here is a tenth of embedding the query.
    exact_share : float
        A filter that keeps a smaller share is searched exactly: its vectors lie thinly in the lists
        (recall@10 in the lists was 0.98, 0.95 and 0.87 for all, a tenth and a fiftieth).
    deep_share : float
        A ranking deeper than this share is exact: the lists probed for ten neighbours hold too few
        (recall@k was 0.98, 0.94 and 0.88 at 0.02 %, 0.4 % and 1 % of the collection).
    shortlist : int
        Cases that the approximate search proposes for exact ranking, at least.
    depth : int
        Slices that the approximate search fetches for each query slice.
    recall : float, optional
        Share of the nearest slices to find; None for the one that the partition was calibrated with.
    """

    exact_below: int = 20_000
    exact_share: float = 0.1
    deep_share: float = 0.005
    shortlist: int = 100
    depth: int = 64
    recall: float | None = None

    def exact(self, candidates: int, held: int, k: int) -> bool:
        """Whether so many candidates, of all that are held, are compared one by one for k neighbours."""
        return (
            candidates < self.exact_below
            or candidates < self.exact_share * held
            or k > self.deep_share * held
        )


ONLY_BY_LISTS = SearchPolicy(exact_below=1, exact_share=0, deep_share=float("inf"))
"""No exact search, whatever the size, the filter or the depth: to measure what the lists find."""
