"""What voxels say where names leave a doubt: an outline, a mask of brain or tissue, or an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ReadError

MOST_VALUES = 32
"""Different values that an outline has at most."""

MOST_FILLED = 0.5
"""Share of all voxels within an outline, at most."""

TISSUE = 0.25
"""Share of the image's foreground from which a mask is of the brain or its tissues: lesions are smaller."""

Load = Callable[[Path], tuple[NDArray[Any], NDArray[np.float64] | None]]
"""Voxels (x, y, z) and affine of a file."""


def looks(file: Path, images: Sequence[Path], load: Load) -> str | None:
    """Whether a file holds ``"image"``, ``"region"`` or ``"mask"`` (of brain or tissue).

    An outline has few whole values, is zero mostly, and lies on the grid of an image of its case.

    Parameters
    ----------
    file : Path
    images : sequence of Path
        Images of the same person and visit.
    load : callable

    Returns
    -------
    str or None
        None where it cannot be read.
    """
    try:
        voxels, affine = load(file)
    except ReadError:
        return None
    if not is_label_map(voxels):
        return "image"
    inside = voxels != 0
    for image in images:
        try:
            seen, grid = load(image)
        except ReadError:
            continue
        if seen.shape != voxels.shape:
            continue
        if affine is not None and grid is not None and not np.allclose(affine, grid, atol=1e-2):
            continue
        foreground = seen > _background(seen)
        return "mask" if inside.sum() > TISSUE * max(int(foreground.sum()), 1) else "region"
    return "mask" if inside.mean() > TISSUE else "region"


def is_label_map(voxels: NDArray[Any]) -> bool:
    """Whether the values are few whole numbers from zero on, and mostly zero."""
    values = np.unique(voxels)
    if len(values) > MOST_VALUES or values.min() != 0:
        return False
    whole = bool(np.isfinite(values).all() and (values == np.round(values)).all())
    return whole and bool((voxels != 0).mean() <= MOST_FILLED)


def _background(voxels: NDArray[Any]) -> float:
    """The commonest value at the corners, or a tenth of the range above the darkest."""
    ends = np.ix_(*([0, -1] for _ in voxels.shape))
    corners = voxels[ends]
    low, high = float(voxels.min()), float(voxels.max())
    return max(float(np.median(corners)), low) + 0.05 * (high - low)
