"""What is too large to be read, and what is no image although it can be read."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer import watch
from indexer.errors import ReadError

MAX_VOXELS = 2**29
"""Most voxels (all channels together) that one source may hold in memory: 2 GiB as float32."""

MAX_PAGES = 2**13
"""Most pages of one file."""

MAX_RATIO = 1032
"""No deflate stream grows by more (zlib, "Technical Details"); what other codecs can do beyond that holds
nothing to see."""

SMALL = 2**24
"""Bytes of pixels that any file may declare, however small it is."""

MIN_SIDE = 2
"""An image has at least two sides of this many pixels."""

MAX_VOLUMES = 8
"""Volumes of one file, or of one kind of image in a series, that are still taken as separate scans."""

VOXELS = (1e-5, 1e4)
"""Millimetres that an edge of a voxel has, from microscopes to maps."""

SHEARED = ("its slices are not stacked at right angles (tilted gantry)", "resample it to a straight grid")
"""Why, and what helps, where slices do not lie one above the other."""


def volumes_kept(count: int) -> int:
    """How many of several volumes that nothing names are scans: the first ones.

    Up to `MAX_VOLUMES`, each may show something else. More are a time series or a diffusion series, whose
    volumes show the same anatomy: the first stands for all. It holds for a NIfTI file as for a DICOM series.

    Parameters
    ----------
    count : int
    """
    if count <= MAX_VOLUMES:
        return count
    watch.say(f"of its {count} volumes (a time series, or diffusion directions) the first is taken")
    return 1


def refuse_affine(where: str | os.PathLike[str], affine: NDArray[np.float64], remedy: str) -> None:
    """Refuse an affine that does not say where voxels lie, or none that anybody could have acquired.

    Parameters
    ----------
    where : path-like
        The file, for the message.
    affine : ndarray, shape (4, 4)
        Voxel indices to mm.
    remedy : str

    Raises
    ------
    ReadError
        If it is singular, or nearly: the volume of a voxel is a millionth of that of a box with its edges;
        or an edge is not between `VOXELS`.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * sizes.prod():
        raise ReadError(where, "its affine is singular: it does not say where the voxels lie", remedy)
    if sizes.min() < VOXELS[0] or sizes.max() > VOXELS[1]:
        said = "×".join(f"{size:.3g}" for size in sizes)
        raise ReadError(where, f"its voxels measure {said} mm, which no scanner makes", remedy)


def is_sheared(affine: NDArray[np.float64], shape: Sequence[int]) -> bool:
    """Whether axes of a grid are so far from right angles that a voxel lies half of one off its place.

    Parameters
    ----------
    affine : ndarray, shape (4, 4)
        Voxel indices to mm.
    shape : sequence of int
        Voxels along the three axes.
    """
    steps = affine[:3, :3].T
    sizes = np.linalg.norm(steps, axis=1)
    along = steps / sizes[:, None]
    extents = (np.array(shape) - 1) * sizes
    for pair in ((0, 1), (0, 2), (1, 2)):
        # slices lie along the coarser axis, and are off their place by parts of the finer one
        fine, coarse = sorted(pair, key=lambda axis: (round(float(sizes[axis]), 3), -extents[axis]))
        slant = abs(float(along[fine] @ along[coarse]))
        if slant > 1e-4 and extents[coarse] * slant > np.delete(sizes, coarse).min() / 2:
            return True
    return False


def refuse_size(where: str | os.PathLike[str], shape: Sequence[int], channels: int = 1) -> None:
    """Refuse a declared size before memory is taken for it.

    Parameters
    ----------
    where : path-like
        The file, for the message.
    shape : sequence of int
        Declared number of pixels along each axis of space.
    channels : int, optional
        Declared number of values a pixel.

    Raises
    ------
    ReadError
        If the shape holds nothing, more than `MAX_VOXELS`, or fewer than two sides of `MIN_SIDE`.
    """
    size = "×".join(map(str, shape))
    if min(shape) < 1:
        raise ReadError(where, f"declares a size of {size}, which holds no image")
    if (voxels := math.prod(shape) * channels) > MAX_VOXELS:
        reason = f"declares {size} = {voxels:,} voxels, more than the limit of {MAX_VOXELS:,}"
        raise ReadError(where, reason, "crop or split it")
    if sum(side >= MIN_SIDE for side in shape) < 2:
        raise ReadError(where, f"has a size of {size}, too small to be an image")


def refuse_ratio(where: str | os.PathLike[str], declared: float, there: int) -> None:
    """Refuse an image that declares more than its bytes can hold, before memory is taken for it.

    Parameters
    ----------
    where : path-like
        The file, for the message.
    declared : float
        Bytes of its pixels when they are decoded.
    there : int
        Bytes that they are to be decoded from.

    Raises
    ------
    ReadError
        If it declares more than `SMALL` bytes and `MAX_RATIO` times those that are there.
    """
    if declared > max(SMALL, MAX_RATIO * there):
        reason = f"declares {declared:,.0f} bytes of pixels in {there:,} bytes"
        raise ReadError(where, reason, "check the file, or save it uncompressed")


def refuse_values(where: str | os.PathLike[str], voxels: NDArray[Any]) -> None:
    """Refuse an image whose values mean nothing.

    A single NaN or infinite voxel is enough: what it stood for (background, a failed fit, an overflow)
    cannot be known here, and any replacement would change the intensities of the rest.

    Parameters
    ----------
    where : path-like
        The file, for the message.
    voxels : ndarray
        Real values of any shape.

    Raises
    ------
    ReadError
        If a value is not finite, or all values are the same.
    """
    low, high = voxels.min(), voxels.max()  # NaN passes through both
    if not (np.isfinite(low) and np.isfinite(high)):
        count = voxels.size - int(np.isfinite(voxels).sum())
        raise ReadError(
            where,
            f"{count:,} of its {voxels.size:,} voxels are NaN or infinite",
            "replace them by the background's value",
        )
    if low == high:
        raise ReadError(where, f"all its voxels have the same value ({low:g})")
