"""What is too large to be read, and what is no image although it can be read."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
