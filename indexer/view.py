"""From where a scan shows the patient: the plane, where its geometry says, and a gist of its pictures.

A flat image has no geometry, but an axial plane of a head looks like other axial planes, and a chest from the
front like others from the front. The gist says so: how strong edges of each direction are in each part of the
picture (histograms of oriented gradients, Dalal and Triggs 2005, https://doi.org/10.1109/CVPR.2005.177, on a
coarse grid). Nothing is learnt, and contrast hardly matters: most edges are where tissues meet.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indexer.preprocess import Prepared

CELLS, DIRECTIONS = 4, 8
"""Parts of a picture along each side, and directions of edges."""
SIDE = 64
"""Pixels along each side in which edges are looked for."""
SLICES = 16
"""Slices of a scan that are looked at, at most, evenly spaced."""
LENGTH = 1 + DIRECTIONS * CELLS**2
"""Numbers of a view."""
PACKED = 1 + DIRECTIONS * CELLS**2 // 4
"""The same, packed."""
AXES = ("sagittal", "coronal", "axial")
"""By the axis along which they lie."""

Floats = NDArray[np.float32]


def unknown() -> Floats:
    """A view of which nothing is known."""
    return np.full(LENGTH, np.nan, np.float32)


def view_of(ready: Prepared) -> Floats:
    """From where a scan's slices show the patient.

    Parameters
    ----------
    ready : Prepared
        A scan; of a composite nothing is known, for it is never shown.

    Returns
    -------
    ndarray of float32, shape (LENGTH,)
        The axis along which its planes lie (NaN where its geometry does not say), and the gist: a unit
        vector, NaN where the slices show no edges.
    """
    found = unknown()
    if ready.pixels.ndim != 3:
        return found
    if ready.frame.axis is not None:
        found[0] = ready.frame.axis
    whole = np.flatnonzero(ready.views == 0)
    some = whole[np.linspace(0, len(whole) - 1, min(SLICES, len(whole))).round().astype(int)]
    found[1:] = gist(ready.pixels[some])
    return found


def gist(images: NDArray[np.uint8]) -> Floats:
    """The gist of pictures of one view, shape (n, side, side): all numbers of a view but the axis."""
    small = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    down, across = np.gradient(np.stack([np.asarray(image, np.float32) for image in small]), axis=(1, 2))
    place = np.arctan2(down, across) % np.pi * (DIRECTIONS / np.pi)
    lower = np.floor(place).astype(int)
    upper_share = place - lower
    strength = np.hypot(across, down)
    histograms = np.empty((DIRECTIONS, CELLS, CELLS))
    for direction in range(DIRECTIONS):
        share = np.where(lower % DIRECTIONS == direction, 1 - upper_share, 0)
        share = np.where((lower + 1) % DIRECTIONS == direction, upper_share, share)
        parts = (strength * share).reshape(len(images), CELLS, SIDE // CELLS, CELLS, SIDE // CELLS)
        histograms[direction] = parts.sum((0, 2, 4))
    found = np.sqrt(histograms).ravel()
    found -= found.mean()
    length = np.linalg.norm(found)
    return np.asarray(found / length if length > 0 else np.full_like(found, np.nan), np.float32)


def packed(view: Floats) -> Floats:
    """A view as it is kept, shape (PACKED,): the axis, and the gist in signed bytes, four to a number."""
    gist_bytes = np.round(np.nan_to_num(view[1:]) * 127).astype(np.int8)
    return np.concatenate([view[:1], gist_bytes.view(np.float32)])


def unpacked(kept: Floats) -> Floats:
    """What :func:`packed` gave, to 1/254."""
    found = np.concatenate([kept[:1], np.ascontiguousarray(kept[1:]).view(np.int8) / np.float32(127)])
    if not found[1:].any():
        found[1:] = np.nan
    return found


def mirrored(views: Floats) -> Floats:
    """Views, shape (..., LENGTH), of the same pictures with left and right exchanged."""
    grid = views[..., 1:].reshape(*views.shape[:-1], DIRECTIONS, CELLS, CELLS)[..., ::-1]
    grid = grid[..., -np.arange(DIRECTIONS) % DIRECTIONS, :, :]
    return np.concatenate([views[..., :1], grid.reshape(*views.shape[:-1], -1)], axis=-1)
