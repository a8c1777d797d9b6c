"""Brains without a skull, put into the heads of other patients.

BraTS has both grades from one preparation, and no skulls; the whole heads of TCGA are of one grade a
collection. A slice of BraTS in a head that is not its own teaches the grade where there is a skull, without a
collection to be learnt in its place: low and high grades get the same heads. What is kept of a head is its
skull and scalp; the patient whose they are is of the same fold as the patient whose brain it is, so that
nobody of a fold is seen by its network.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from benchmarks import results
from indexer import readers
from indexer.readers import Source
from indexer.scan import Scan, stacked

HEADS = results.DATA / "tcga-lgg"
CHANNELS = ("t1", "flair", "t1ce")
"""What the channels of its images are."""
LARGEST = 0.6
"""Heads are taken from slices that show at least so much of what the largest of the patient does."""
FRAME = 256
"""Side of a slice in a head, in pixels."""
ACROSS = 150
"""Length of a brain in it."""
SCALP = (0.08, 0.15)
"""How far a head reaches beyond the brain on each side, as a share of the brain's length."""
GAP = (2, 6)
"""Dark pixels between brain and head."""
CONTRAST = (0.7, 1.2)
"""Brightness of the brain as a multiple of that of the brain which was in the head."""
FILLED = (0.1, 0.7)
"""How much of a slice a head fills: another is taken where it is cut off, or where air is bright."""
DARK = 12
"""Greys up to here are air, of 255."""

Greys = NDArray[np.float32]


def in_another(source: Source) -> list[Scan]:
    """The slices of a scan without a skull, each in another patient's head; nothing of T2, which has none."""
    fold = _folds(results.DATA / "brats-slices").get(source.patient_id)
    if fold is None:
        return []
    found = []
    for scan in readers.read(source):
        if scan.sequence not in CHANNELS or scan.region is None:
            continue
        for plane in scan.slices():
            assert plane.region is not None
            name = f"{source.path.name} {scan.sequence} {plane.position}"
            dice = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:16], 16))
            head = _head(fold, CHANNELS.index(scan.sequence), dice)
            pixels, region = put(np.asarray(plane.pixels, np.float32), plane.region, head, dice)
            found.append(
                dataclasses.replace(
                    scan,
                    voxels=stacked(pixels[None]),
                    region=stacked(region[None]),
                    spacing=None,
                    affine=None,
                    window=None,
                )
            )
    return found


def put(
    brain: Greys, region: NDArray[np.bool_], head: Greys, dice: np.random.Generator
) -> tuple[Greys, NDArray[np.bool_]]:
    """A brain in a head.

    Parameters
    ----------
    brain : ndarray of float32, shape (rows, columns)
        0 outside.
    region : ndarray of bool, shape (rows, columns)
    head : ndarray of float32, shape (rows, columns)
        Another slice with its skull, 0 to 255.
    dice : numpy.random.Generator

    Returns
    -------
    pixels : ndarray of float32, shape (FRAME, FRAME)
        0 to 255.
    region : ndarray of bool, shape (FRAME, FRAME)
    """
    inside = largest(brain > np.percentile(brain, 99) * 0.02)
    rows, columns = _box(inside)
    cut = (slice(*rows), slice(*columns))
    scale = ACROSS / max(rows[1] - rows[0], columns[1] - columns[0])
    brain, inside, region = (
        _sized(part[cut].astype(np.float32), scale, scale) for part in (brain, inside, region)
    )
    inside, region = inside > 0.5, region > 0.5
    shell = largest(head > DARK)
    top, side = _box(shell)
    within = ndimage.binary_erosion(shell, iterations=max(2, (side[1] - side[0]) // 8))
    reach = 2 * dice.uniform(*SCALP) * max(inside.shape)
    tall, wide = (
        (n + reach) / (end - start) for n, (start, end) in zip(inside.shape, (top, side), strict=True)
    )
    before = float(np.median(head[within if within.any() else shell]))
    head = _sized((head * shell)[slice(*top), slice(*side)], tall, wide)
    pixels, there, outlined = (np.zeros((FRAME, FRAME), kind) for kind in (np.float32, bool, bool))
    pixels[_middle(head.shape)] = head
    there[_middle(inside.shape)] = inside
    outlined[_middle(region.shape)] = region & inside
    bright = before * dice.uniform(*CONTRAST) / max(float(np.median(brain[inside])), 1e-6)
    pixels[ndimage.binary_dilation(there, iterations=int(dice.integers(*GAP)))] = dice.uniform(0, before / 4)
    pixels[there] = np.clip(brain[inside] * bright, 0, 255)
    return pixels, outlined


def largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest part of a mask, its holes filled."""
    parts, n = ndimage.label(ndimage.binary_fill_holes(mask))
    return np.asarray(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])) if n else mask


def _sized(image: Greys, tall: float, wide: float) -> Greys:
    size = round(image.shape[1] * wide), round(image.shape[0] * tall)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _middle(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice((FRAME - n) // 2, (FRAME - n) // 2 + n) for n in shape)


def _box(mask: NDArray[Any]) -> list[tuple[int, int]]:
    found = []
    for axis in (1, 0):
        along = np.flatnonzero(mask.any(axis))
        found.append((int(along[0]), int(along[-1]) + 1))
    return found


def _head(fold: str, channel: int, dice: np.random.Generator) -> Greys:
    """A slice of a patient of a fold, from the larger part of the head."""
    patients = sorted(patient for patient, of in _folds(HEADS).items() if of == fold)
    while True:
        slices, areas = _slices(HEADS / dice.choice(patients))
        large = np.flatnonzero(areas >= LARGEST * areas.max())
        with Image.open(slices[dice.choice(large)]) as image:
            head = np.asarray(image, np.float32)[..., channel]
        if FILLED[0] < largest(head > DARK).mean() < FILLED[1]:
            return head


@functools.cache
def _slices(folder: Path) -> tuple[list[Path], NDArray[np.int64]]:
    paths = sorted(path for path in folder.glob("slice-*.jpg"))
    return paths, np.array([int((np.asarray(Image.open(path).convert("L")) > DARK).sum()) for path in paths])


@functools.cache
def _folds(folder: Path) -> dict[str, str]:
    with (folder / "participants.tsv").open(newline="", encoding="utf-8") as file:
        return {row["participant_id"]: row["fold"] for row in csv.DictReader(file, delimiter="\t")}
