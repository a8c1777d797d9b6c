"""From a scan to the network's input: the one place where intensities and sizes change.

1. *Background.* The level of the image's edges is its median over the in-plane edges of all slices.
   Where it lies at the dark or bright end of the scan and most of the edge is near it (air with
   noise, JPEG artefacts, zeros outside a stripped skull), everything near it is background. Where it
   lies between (a z-scored image padded with zeros), exactly that value is background if most of the
   edge has it. Otherwise (a photo, a crop out of tissue) there is none.
2. *Crop.* All slices are cut to the scan's one foreground box, so that their sizes stay comparable.
3. *Scale.* The 1st to 99.5th percentile of the scan's foreground becomes 1…255, background 0.
4. *Size.* Pixels are made square in millimetres, the longer side of the box fills the input, and the
   shorter one is centred on background.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indexer.errors import QueryError, ReadError
from indexer.scan import Scan, displayed

SCHEME = 1
"""Counts changes of the method that the constants below do not show."""

NEAR = 0.08
"""What is still background: this share of the way from its level to the brightest foreground."""

PERCENTILES = (1.0, 99.5)
"""Of the foreground's intensities: what becomes the darkest and the brightest grey."""

SPECK = 0.01
"""Rows and columns with less foreground than this share of the fullest one are not part of the box."""

EMPTY = 0.1
"""A slice with less foreground than this share of the scan's fullest slice is skipped."""

CONTEXT = 1.6
"""Side of a region's crop over the longer side of the region (as in Cheng et al. 2016, a margin helps)."""

LEAST = 32
"""Least side of a region's crop, in pixels of the scan's finer in-plane axis."""

SAMPLE = 2**16
"""Percentiles are taken from a regular grid of about this many voxels."""

AIR = -1000.0
"""Hounsfield units of air; CT values below mark what the scanner did not see."""

Box = tuple[slice, slice]
"""Rows and columns of a displayed plane."""


@dataclass(frozen=True)
class Preprocessing:
    """How slices are prepared.

    Parameters
    ----------
    size : int
        Side of the prepared images, in pixels.
    """

    size: int

    @property
    def version(self) -> str:
        """Changes whenever the same scan would be prepared otherwise."""
        settings = (SCHEME, self.size, NEAR, *PERCENTILES, SPECK, EMPTY, CONTEXT, LEAST, SAMPLE)
        return "-".join(map(str, settings))


@dataclass(frozen=True)
class Prepared:
    """A scan as the encoder takes it: whole slices in order, then crops around regions in order.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (n, size, size)
        0 is background, foreground is 1…255.
    positions : ndarray of int64, shape (n,)
        Index of each image's slice in the scan.
    weights : ndarray of float32, shape (n,)
        How informative an image is, in (0, 1]: for a whole slice its foreground over that of the
        fullest slice, for a crop the area of its region over that of the largest one.
    views : ndarray of uint8, shape (n,)
        0 for a whole slice, 1 for a crop around its region.
    """

    pixels: NDArray[np.uint8]
    positions: NDArray[np.int64]
    weights: NDArray[np.float32]
    views: NDArray[np.uint8]


def prepared(scan: Scan, preprocessing: Preprocessing) -> Prepared:
    """Every informative slice of a scan, and the crop around every region.

    Raises
    ------
    ReadError
        If the scan shows nothing: it is constant, or has values that are not finite.
    """
    planes = _Planes.of(scan)
    counts, extent = planes.foreground()
    box = _box_of(extent >= 1) if extent is None else None
    raise NotImplementedError
