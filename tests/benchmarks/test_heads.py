"""Brains in other heads: what is kept of each."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.heads import FRAME, largest, put

SIDE = 120


def disc(row: float, column: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.asarray(np.hypot(rows - row, columns - column) < radius)


def test_a_brain_keeps_its_lesion_and_gets_a_skull() -> None:
    brain = np.where(disc(60, 60, 40), 300, 0).astype(np.float32)
    lesion = disc(50, 45, 10)
    brain[lesion] = 900
    head = np.where(disc(60, 60, 55), 60, 0).astype(np.float32)
    head[disc(60, 60, 55) & ~disc(60, 60, 48)] = 240  # the scalp
    pixels, region = put(brain, lesion, head, np.random.default_rng(0))
    assert pixels.shape == region.shape == (FRAME, FRAME)
    assert pixels.min() >= 0
    assert pixels.max() <= 255
    inside = pixels[region]
    around = pixels[FRAME // 2 + 20 : FRAME // 2 + 40, FRAME // 2 - 10 : FRAME // 2 + 10]  # brain below it
    assert np.median(inside) > 2 * np.median(around) > 0
    across = pixels[FRAME // 2]
    assert across[0] == across[-1] == 0  # air
    shown = np.flatnonzero(across > 100)
    assert shown[0] < FRAME // 2 - 75 - 2 < FRAME // 2 + 75 + 2 < shown[-1]  # scalp beyond the brain
    # the brain in its frame has the lesion where it had it: a quarter of its length up, and left
    middle = np.argwhere(region).mean(axis=0) - FRAME / 2
    np.testing.assert_allclose(middle, (np.array([50, 45]) - 60) * 150 / 80, atol=2)


def test_the_same_dice_give_the_same_picture() -> None:
    brain = np.where(disc(60, 60, 40), 300, 0).astype(np.float32)
    head = np.where(disc(60, 60, 55), 100, 0).astype(np.float32)
    first, again, other = (
        put(brain, disc(60, 60, 5), head, np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_largest_part_is_taken_whole() -> None:
    mask = disc(40, 40, 20) & ~disc(40, 40, 5) | disc(100, 100, 5)
    np.testing.assert_array_equal(largest(mask), disc(40, 40, 20))
