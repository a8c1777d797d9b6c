"""Sets of ids, or of places in an array, as ascending arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

NONE: Ids = np.empty(0, np.int64)


def among(ids: Ids, those: Ids) -> NDArray[np.bool_]:
    """For each of `ids` whether it is one of `those`, which ascend: cheap where these are many.

    Examples
    --------
    >>> among(np.array([5, 1, 9]), np.array([1, 2, 5])).tolist(), among(np.array([1]), NONE).tolist()
    ([True, True, False], [False])
    """
    if not len(those):
        return np.zeros(len(ids), bool)
    return np.asarray(those[np.searchsorted(those, ids).clip(max=len(those) - 1)] == ids)
