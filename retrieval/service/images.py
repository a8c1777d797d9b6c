"""Pixels for the network: volumes as NIfTI without a word about anybody, slices as PNG."""

from __future__ import annotations

import gzip
import secrets
from hashlib import blake2s
from io import BytesIO
from typing import IO, Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from indexer.scan import Scan
from retrieval.pictures import shown

nib: Any = nibabel  # only partly typed

_SALT = secrets.token_bytes(16)
"""Nobody can tell from a description which frame of reference it is."""


def write_voxels(scan: Scan, stream: IO[bytes], voxels: NDArray[Any] | None = None) -> None:
    """Write a scan as NIfTI-2 that reads back as it is: voxels with their type, affine in full precision.

    Parameters
    ----------
    scan : Scan
        A raster scan, which has no place in space, gets voxels of side 1 without a unit.
    stream : binary file
    voxels : ndarray, optional
        Instead of the scan's, on its grid.
    """
    _save(nib.Nifti2Image, scan, scan.voxels if voxels is None else voxels, stream)


def volume(scan: Scan) -> bytes:
    """A scan as gzipped NIfTI-1, for viewers: nothing but voxels, affine, and which scans share its frame.

    What lies in one frame of reference has one description, another one whenever the service was started.

    Whole numbers that fit are sent as 16 bits, which is exact and half of the way.
    """
    with BytesIO() as out:
        with gzip.GzipFile(filename="", mode="wb", fileobj=out, compresslevel=1, mtime=0) as stream:
            _save(nib.Nifti1Image, scan, _narrow(scan.voxels), stream)
        return out.getvalue()


def thumbnail(scan: Scan, position: int, size: int) -> bytes:
    """A slice as PNG, windowed, true to size.

    Parameters
    ----------
    scan : Scan
    position : int
    size : int
        Longer side in pixels.

    Raises
    ------
    IndexError
        If `position` is not in the scan.
    """
    with BytesIO() as out:
        shown(scan, position, size).save(out, "PNG")
        return out.getvalue()


def _save(kind: Any, scan: Scan, voxels: NDArray[Any], stream: Any) -> None:
    image = kind(voxels, np.eye(4) if scan.affine is None else scan.affine)
    if scan.frame and kind is nib.Nifti1Image:
        image.header["descrip"] = blake2s(scan.frame.encode(), key=_SALT, digest_size=8).hexdigest()
    image.header.set_dim_info(slice=scan.axis)  # the viewer cuts along it
    image.header.set_xyzt_units("unknown" if scan.affine is None else "mm")
    image.to_stream(stream)


def _narrow(voxels: NDArray[Any]) -> NDArray[Any]:
    if voxels.dtype.kind != "f":
        return voxels
    limits = np.iinfo(np.int16)
    if voxels.min() < limits.min or voxels.max() > limits.max:
        return voxels
    narrow = voxels.astype(np.int16)
    return narrow if np.array_equal(narrow, voxels) else voxels
