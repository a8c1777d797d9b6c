"""What all formats of volumes have in common: channels are scans, an outline goes with its grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from indexer.errors import ReadError
from indexer.readers.limits import (
    SHEARED,
    is_sheared,
    refuse_affine,
    refuse_size,
    refuse_values,
    volumes_kept,
)
from indexer.readers.source import Source
from indexer.scan import Scan

nib: Any = nibabel  # only partly typed

Volumes = tuple[NDArray[Any], NDArray[np.float64]]
"""Voxels (x, y, z, volumes) in RAS+, and the affine of voxel indices to RAS+ millimetres."""

Load = Callable[[Path, Sequence[str]], Volumes]
"""``(file, channels) -> volumes``: all of them if there are as many as named channels."""


def read(source: Source, load: Load) -> list[Scan]:
    """One scan a volume.

    The first of the source's region files that lies on the image's own grid becomes the scans' region;
    one on another grid is left aside. A channel with the same value everywhere holds no image and is left
    out.

    Raises
    ------
    ReadError
        With the reason for which the file, or a region file, cannot be read.
    """
    file = source.files[0]
    voxels, affine = load(file, source.channels)
    refuse_values(file, voxels)
    count = voxels.shape[3]
    sequences = source.channels if len(source.channels) == count else (source.sequence,) * count
    region = _region(source.region_files, voxels.shape[:3], affine, load)
    x, y, z = map(float, nib.affines.voxel_sizes(affine))
    scans = [
        Scan(
            voxels=channel,
            source=source.path,
            spacing=(x, y, z),
            affine=affine,
            sequence=sequence,
            modality=source.modality,
            frame=source.frame,
            patient_id=source.patient_id,
            study_id=source.study_id,
            series_id=source.series_id,
            region=region,
        )
        for channel, sequence in zip(np.moveaxis(voxels, 3, 0), sequences, strict=True)
        if channel.min() < channel.max()
    ]
    if not scans:
        raise ReadError(file, "each of its volumes has the same value everywhere")
    return scans


def _region(
    files: Sequence[Path], shape: tuple[int, ...], affine: NDArray[np.float64], load: Load
) -> NDArray[np.bool_] | None:
    """Where the first mask on this grid is not zero; None where no mask lies on it, or all are empty."""
    for file in files:
        mask, grid = load(file, ())
        if mask.shape[:3] == shape and np.allclose(grid, affine, atol=1e-3):
            inside = np.asarray(np.nan_to_num(mask).any(axis=3), bool)
            return inside if inside.any() else None
    return None


def beside(header: Path, name: str) -> Path:
    """The file of voxels that a header names.

    Raises
    ------
    ReadError
        If it does not lie beside the header or below: a header must not read what else is on a disk.
    """
    file = (header.parent / name).resolve()
    if not file.is_relative_to(header.parent.resolve()):
        raise ReadError(header, "names voxels outside its own folder", "put both into one folder")
    if not file.is_file():
        raise ReadError(header, "names a file of voxels that is not there", "put it beside the header")
    return file


def kept(file: Path, shape: Sequence[int], channels: Sequence[str]) -> tuple[int, int, int, int]:
    """The part of a declared shape that is read, as (x, y, z, volumes).

    Raises
    ------
    ReadError
        If it is too large, too small, or has more than one axis beyond space.
    """
    declared = tuple(map(int, shape))
    if min(declared, default=1) < 1:
        refuse_size(file, declared)
    beyond = [n for n in declared[3:] if n != 1]
    if len(beyond) > 1:
        size = "×".join(map(str, declared))
        raise ReadError(
            file, f"has {size} voxels: more than one axis beyond space", "save one axis of volumes"
        )
    x, y, z = (*declared, 1, 1, 1)[:3]
    count = beyond[0] if beyond else 1
    if count != len(channels):
        count = volumes_kept(count)
    refuse_size(file, (x, y, z), count)
    return x, y, z, count


def turned(file: Path, voxels: NDArray[Any], affine: NDArray[np.float64]) -> Volumes:
    """Voxels (x, y, z, volumes) brought to RAS+ by permuting and flipping axes.

    Raises
    ------
    ReadError
        If the affine does not say where the voxels lie, or the values are no real numbers.
    """
    if voxels.dtype.kind not in "iuf":
        raise ReadError(file, f"holds {voxels.dtype.name} values", "save one real number a voxel")
    refuse_affine(file, affine, "mend its header")
    if is_sheared(affine, voxels.shape[:3]):
        raise ReadError(file, *SHEARED)
    if voxels.dtype.kind == "f" or voxels.dtype.itemsize > 2:
        voxels = voxels.astype(np.float32)
    orientation = nib.io_orientation(affine)
    canonical = affine @ nib.orientations.inv_ornt_aff(orientation, voxels.shape[:3])
    voxels = nib.apply_orientation(voxels.astype(voxels.dtype.newbyteorder("="), copy=False), orientation)
    return voxels, np.asarray(canonical, np.float64)
