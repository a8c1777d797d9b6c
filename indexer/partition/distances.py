"""Squared distances and the memberships that follow from them, without overflow or zero."""

from __future__ import annotations

from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

faiss: Any = _faiss  # the type stubs that come with it lack much of what is used here

TINY = np.finfo(np.float32).eps ** 2
"""Rounding may leave a zero distance slightly off zero: this keeps its logarithm finite."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def squared_distances(x: Floats, centroids: Floats, lengths: Floats) -> Floats:
    """Squared distances (n, c), a little above 0 at least."""
    squared: Floats = x @ centroids.T
    squared *= -2
    squared += lengths
    squared += np.einsum("ij,ij->i", x, x)[:, None]
    return np.maximum(squared, np.float32(TINY), out=squared)


def softmax(squared: Floats, m: float) -> Floats:
    """Memberships by squared distances, with the fuzzifier m."""
    logits = np.log(squared) / np.float32(1 - m)
    logits -= logits.max(axis=1, keepdims=True)
    u: Floats = np.exp(logits)
    u /= u.sum(axis=1, keepdims=True)
    return u
