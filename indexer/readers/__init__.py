"""From files to scans. What files belong together, and whose they are, :mod:`indexer.discovery` finds out."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexer import watch
from indexer.errors import ReadError
from indexer.readers.source import Source
from indexer.scan import Scan

if TYPE_CHECKING:
    from indexer.readers.formats import Format, installed_formats

__all__ = ["Format", "Source", "installed_formats", "read", "read_mask"]

_HOMES = {
    "Format": "indexer.readers.formats",
    "discover": "indexer.discovery",  # other programs look for it beside `read`; it needs the readers
    "installed_formats": "indexer.readers.formats",
}
"""The libraries of the formats are only for the process that reads; whoever has it read knows `Source`."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def read(source: Source | Path) -> list[Scan]:
    """The scans of a source: one for each channel or sequence it holds; of a path, what discovery finds.

    Raises
    ------
    ReadError
        With the reason for which it cannot be read.
    """
    if isinstance(source, Path):
        return [scan for each in __getattr__("discover")(source).sources for scan in read(each)]
    from indexer.readers.formats import installed_formats

    format = next((format for format in installed_formats() if source.kind in format.kinds), None)
    if format is None:
        raise ReadError(source.path, f"is of the kind {source.kind}, which nothing here reads", "install it")
    watch.at(source.path)
    return format.read(source)


def read_mask(path: Path, scan: Scan) -> NDArray[np.bool_]:
    """Where a mask, whatever it is called, is not zero.

    Parameters
    ----------
    path : Path
        An image file on the grid of `scan`.
    scan : Scan

    Returns
    -------
    ndarray of bool, shape (x, y, z)

    Raises
    ------
    ReadError
        If it cannot be read, or lies on another grid.
    """
    if not os.path.isfile(path):  # noqa: PTH113 (however long its name is)
        raise ReadError(path, "is not a file", "give the mask's file")
    from indexer.readers.formats import installed_formats

    format = next((f for f in installed_formats() if f.claims(path)), None)
    if format is None:
        raise ReadError(path, "is not an image of a known format", "give the mask as NIfTI, PNG or TIFF")
    mask = format.read(Source(path, format.kind, format.files(path)))[0]
    placed = mask.affine is None or scan.affine is None or np.allclose(mask.affine, scan.affine, atol=1e-3)
    if mask.voxels.shape != scan.voxels.shape or not placed:
        raise ReadError(path, f"does not lie on the grid of {scan.source}", "resample it to the image")
    lossy = path.suffix.lower() in (".jpg", ".jpeg")
    return np.asarray(mask.voxels > (127 if lossy else 0), bool)
