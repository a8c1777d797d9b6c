"""How much of what is nearest a search finds, and whether the partition still fits what is filed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import Catalog
from indexer.partition import Partition
from indexer.stores import VectorIndex

DRIFTED = 1.5
"""Growth of the share of the collection in the list of a vector that calls for another partition."""


def checked(vectors: VectorIndex, catalog: Catalog, queries: int, k: int) -> dict[str, Any]:
    """Recall against exact search over the catalog, and the shape of the partition.

    Parameters
    ----------
    vectors : VectorIndex
        With all slices of the catalog.
    catalog : Catalog
    queries : int
        Stored slices that ask, drawn with a fixed seed.
    k : int
        Neighbours compared.
    """
    ids = vectors.ids()
    if not len(ids):
        return {}
    asking = np.sort(np.random.default_rng(0).choice(ids, min(queries, len(ids)), replace=False))
    x = vectors.gather(asking)
    exact, best = _exact(x, catalog, k)
    scores, _ = vectors.search(x, k)
    # by score: which of two equally similar slices is found is no matter
    found = float(np.mean((scores >= exact[:, -1:] - 1e-6).sum(axis=1) / best))
    summary = {} if vectors.partition is None else vectors.partition.summary()
    sizes = vectors.list_sizes()
    summary["list_sizes"] = {
        "min": int(sizes.min()),
        "median": float(np.median(sizes)),
        "max": int(sizes.max()),
    }
    if vectors.partition is not None:
        summary["drift"] = drift(vectors.partition, sizes, found, len(asking), k) or "none"
    return {f"recall_at_{k}": round(found, 4), "queries": len(asking), **summary}


def drift(partition: Partition, sizes: NDArray[np.int64], found: float, queries: int, k: int) -> str | None:
    """Why another partition would serve better, or None.

    Parameters
    ----------
    partition : Partition
    sizes : ndarray of int64, shape (c,)
        Of its lists now.
    found : float
        Recall that so many queries had for k neighbours.
    queries, k : int
    """
    asked = partition.probing(k).recall
    if found < asked - 3 * math.sqrt(asked * (1 - asked) / queries):
        return f"recall {found:.3f} instead of {asked}: run `cbir compact`"
    fuller = _fullness(sizes) / _fullness(partition.sizes)
    return f"lists {fuller:.1f} times as full as at the fit: run `cbir compact`" if fuller > DRIFTED else None


def _exact(x: NDArray[np.float32], catalog: Catalog, k: int) -> tuple[NDArray[np.float32], int]:
    """Scores of the k nearest in the catalog, best first, and how many there are."""
    top = np.empty((len(x), 0), np.float32)
    for _, embeddings in catalog.embedding_blocks():
        top = -np.sort(-np.concatenate([top, x @ embeddings.T], axis=1), axis=1)[:, :k]
    return top, top.shape[1]


def _fullness(sizes: NDArray[np.int64]) -> float:
    """Share of all entries that the list of an entry holds, on average."""
    return float((sizes.astype(float) ** 2).sum() / max(1.0, float(sizes.sum())) ** 2)
