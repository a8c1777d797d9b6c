"""A crop cut out of a plane is found again there, with what is outlined in it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks import crops


def brain(seed: int) -> NDArray[np.float32]:
    """Smooth tissue in a disc of 1 mm pixels, 0 around it."""
    dice = np.random.default_rng(seed)
    tissue = ndimage.gaussian_filter(dice.normal(0, 1, (160, 140)), 3)
    x, y = np.indices(tissue.shape)
    inside = ((x - 80) / 75) ** 2 + ((y - 70) / 65) ** 2 < 1
    return np.where(inside, 100 + 200 * tissue / tissue.std() * 0.2, 0).astype(np.float32)


def cut(plane: NDArray[np.float32], corner: tuple[float, float]) -> NDArray[np.float32]:
    middles = (np.arange(32) + 0.5) * crops.VOXEL - 0.5
    at = np.meshgrid(corner[0] + middles, corner[1] + middles, indexing="ij")
    return np.asarray(ndimage.map_coordinates(plane, at, order=1), np.float32)


@pytest.mark.parametrize("corner", [(40.0, 30.0), (71.0, 55.5)])
def test_a_crop_is_found_where_it_was_cut(corner: tuple[float, float]) -> None:
    planes = [brain(seed) for seed in range(3)]
    crop = np.stack([cut(plane, corner) for plane in planes], -1)
    shown = np.ones(crop.shape, bool)
    shown[:6] = False  # padded on one side, whatever lies there
    crop[:6] = 0
    # scaled otherwise, as a z-scored image is
    z, place, likeness = crops.matched(planes[1], (crop - 90) / 35, shown)
    assert z == 1
    assert place == pytest.approx(corner, abs=1.0)
    assert likeness > 0.95


def test_a_crop_of_another_brain_is_not_alike() -> None:
    crop = np.stack([cut(brain(seed), (40.0, 30.0)) for seed in (5, 6)], -1)
    assert crops.matched(brain(0), crop, np.ones(crop.shape, bool))[2] < crops.ALIKE


def test_labels_are_those_at_the_voxels_middles() -> None:
    labels = np.zeros((100, 90), np.uint8)
    labels[30:60, 20:50] = 2
    labels[40:50, 30:40] = 4
    corner = (25.0, 15.0)
    found = crops.taken(labels, corner)
    middles = (np.arange(32) + 0.5) * crops.VOXEL
    truth = labels[
        np.ix_(np.floor(corner[0] + middles).astype(int), np.floor(corner[1] + middles).astype(int))
    ]
    assert (found == truth).mean() > 0.97  # the commonest may be another than the middle's
    beyond = crops.taken(labels, (80.0, 70.0))
    assert not beyond[12:].any()
    assert not beyond[:, 12:].any()
