"""Outlines for the lesion crops of BraTS, which have none of their own.

Of most patients some planes of the whole brain are outlined (`brats-slices`). A crop is found again in
such a plane by masked normalised cross-correlation (Padfield, IEEE TIP 2012): that tells which of its
planes it is, and what of the outline lies in it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from benchmarks import results
from indexer import readers
from indexer.readers import Source
from indexer.scan import Scan

CROPS, SLICES = results.DATA / "brats-lesions", results.DATA / "brats-slices"

VOXEL, STEP = 1.875, 2
"""Side of a crop's voxel in the plane, in mm, as it fits the volumes; pixels that it is compared in."""

ALIKE = 0.85
"""Correlation from which a plane is taken for the crop's."""

SHOWN, AREA = 60, 25
"""Voxels that a plane of a crop must show, and that an outline must cover there."""

FLAIR = 3
CODES = (1, 2, 4)

Floats = NDArray[np.float32]


def labelled(source: Source) -> list[Scan]:
    """The planes of a crop whose tissues are known, with BraTS's labels as their region."""
    planes = found().get(source.path.name, {})
    if not planes:
        return []
    keep = sorted(map(int, planes))
    labels = np.stack([np.array(planes[str(z)], np.uint8) for z in keep], -1)
    return [
        dataclasses.replace(scan, voxels=scan.voxels[:, :, keep], region=labels)
        for scan in readers.read(source)
    ]


@functools.cache
def found() -> dict[str, dict[str, list[list[int]]]]:
    """For each crop its outlined planes and their labels; computed once, in some minutes."""
    path = results.CACHE / "outlined-crops.json"
    if not path.exists():
        planes = {crop.name: dict(_outlined(crop)) for crop in sorted(CROPS.glob("*.nii.gz"))}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(planes))
    loaded: dict[str, dict[str, list[list[int]]]] = json.loads(path.read_text())
    return loaded


def _outlined(path: Path) -> Iterator[tuple[str, list[list[int]]]]:
    image = nib.load(path)
    voxels = np.asarray(image.dataobj, np.float32).reshape(32, 32, 32, 4)
    padded = (np.abs(voxels) <= image.dataobj.slope / 2).all(3)  # quantised, nought is not quite nought
    padded = ndimage.binary_opening(padded, np.ones((2, 2, 1)))
    for plane, labels in _planes(path.name.partition("_")[0]):
        z, place, likeness = matched(plane, voxels[..., FLAIR], ~padded)
        if likeness >= ALIKE:
            inside = taken(labels, place)
            if np.count_nonzero(inside) >= AREA:
                yield str(z), inside.tolist()


def _planes(patient: str) -> Iterator[tuple[Floats, NDArray[np.uint8]]]:
    """FLAIR and labels of a patient's outlined planes, as (x, y) of 1 mm."""
    picture = SLICES / f"{patient}_flair.png"
    if picture.exists():
        mask = Image.open(picture.with_name(f"{patient}_flair_mask.png"))
        yield np.asarray(Image.open(picture), np.float32).T, np.asarray(mask, np.uint8).T
    for path in sorted(SLICES.glob(f"{patient}_slice-???.nii.gz")):
        volume = np.asarray(nib.load(path).dataobj, np.float32)[:, :, 0, FLAIR]
        mask = nib.load(path.with_name(path.name.replace(".nii", "_seg.nii")))
        yield volume - volume[0, 0], np.asarray(mask.dataobj)[:, :, 0].astype(np.uint8)


def matched(plane: Floats, crop: Floats, shown: NDArray[np.bool_]) -> tuple[int, tuple[float, float], float]:
    """Where in a plane a crop lies.

    Parameters
    ----------
    plane : ndarray of float32, shape (width, height)
        Of 1 mm; 0 around the brain.
    crop : ndarray of float32, shape (n, n, planes)
    shown : ndarray of bool, shape (n, n, planes)
        What of the crop is no padding.

    Returns
    -------
    z : int
        The plane of the crop that it is.
    place : tuple of float
        Of the crop's corner, in mm.
    likeness : float
        The correlation there.
    """
    finer = ndimage.zoom(plane, STEP / VOXEL, order=1)
    least = 0.1 * finer[finer != 0].var()
    best = (0, (0.0, 0.0), -1.0)
    for z in np.flatnonzero(shown.sum((0, 1)) >= SHOWN):
        mask = ndimage.zoom(shown[:, :, z].astype(np.float32), STEP, order=0)
        part = ndimage.zoom(crop[:, :, z], STEP, order=1)
        correlation = _correlation(finer, part, mask, least)
        x, y = np.unravel_index(correlation.argmax(), correlation.shape)
        if correlation[x, y] > best[2]:
            corner = [(at - side + 1) * VOXEL / STEP for at, side in zip((x, y), part.shape, strict=True)]
            best = (int(z), (float(corner[0]), float(corner[1])), float(correlation[x, y]))
    return best


def _correlation(plane: Floats, part: Floats, mask: Floats, least: float) -> Floats:
    """Masked normalised cross-correlation at all shifts; 0 where either varies too little."""
    shape = [p + m - 1 for p, m in zip(plane.shape, part.shape, strict=True)]
    count = mask.sum()
    centred = (part - (part * mask).sum() / count) * mask
    spectra = [
        np.fft.rfft2(image, shape) for image in (plane, plane**2, centred[::-1, ::-1], mask[::-1, ::-1])
    ]
    product, total, squares = (
        np.fft.irfft2(spectra[i] * spectra[j], shape) for i, j in ((0, 2), (0, 3), (1, 3))
    )
    varied = squares - total**2 / count
    energy = (centred**2).sum()
    enough = (varied > least * count) & (energy > 0.02 * count)
    return np.where(enough, product / np.sqrt(np.maximum(varied, least * count) * max(energy, 1e-6)), 0)


def taken(labels: NDArray[np.uint8], place: tuple[float, float], side: int = 32) -> NDArray[np.uint8]:
    """The commonest label in each voxel of a crop.

    Parameters
    ----------
    labels : ndarray of uint8, shape (width, height)
        Of 1 mm.
    place : tuple of float
        The crop's corner, in mm; what lies beyond the plane is no lesion.
    side : int
        Of the crop, in voxels.
    """
    finer = 4
    middles = (np.arange(side * finer) + 0.5) / finer * VOXEL
    at = [np.floor(corner + middles).astype(int) for corner in place]
    padded = np.pad(labels, 1)
    x, y = (np.clip(index + 1, 0, length + 1) for index, length in zip(at, labels.shape, strict=True))
    fine = padded[np.ix_(x, y)].reshape(side, finer, side, finer)
    counts = np.stack([(fine == code).sum((1, 3)) for code in (0, *CODES)])
    return np.array((0, *CODES), np.uint8)[counts.argmax(0)]
