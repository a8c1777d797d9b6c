"""The fuzzifier from which on fuzzy c-means collapses; see the notes of :mod:`indexer.partition`."""

from __future__ import annotations

import math

import numpy as np

from indexer.errors import PartitionError
from indexer.partition.distances import Floats, Ints

SHARES = (1 / 3, 1 / 6, 1 / 12)
"""How far m goes from 1 to the limit; the later ones are tried only if the first fit collapses."""


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


def local_limit(x: Floats, assigned: Ints) -> float:
    """The limit inside clusters of 8 or more vectors: its 10 % quantile over 500 of them at most."""
    by_cluster = np.argsort(assigned, kind="stable")
    ends = np.flatnonzero(np.diff(assigned[by_cluster])) + 1
    members = [own for own in np.split(by_cluster, ends) if len(own) >= 8]
    largest = [_top_eigenvalue(x[own]) for own in members[:: max(1, len(members) // 500)]]
    narrow = float(np.quantile(largest, 0.1)) if largest else 0.5
    return 1 / (1 - 2 * narrow) if narrow < 0.5 else math.inf


def to_try(fuzzifier: float | None, m_crit: float, m_local: float) -> list[tuple[float, str]]:
    """Fuzzifiers in the order in which they are tried, each with the reason.

    Raises
    ------
    PartitionError
        If the one asked for is not between 1 and the limit.
    """
    if fuzzifier is None:
        limit = min(m_crit, m_local, 3.0)  # 3: both may be infinite, and m = 1.67 is fuzzy enough
        where = "inside clusters" if m_local <= m_crit else "for the whole"
        return [
            (1 + share * (limit - 1), f"1 + {share:.3g} of the way to the limit {limit:.3g} {where}")
            for share in SHARES
        ]
    if 1 < fuzzifier < m_crit:
        return [(fuzzifier, "as asked for")]
    raise PartitionError(
        "partition",
        f"fuzzifier {fuzzifier:.4g} is not between 1 and {m_crit:.4g}, where the fit collapses",
        "leave the choice to the fit",
    )
