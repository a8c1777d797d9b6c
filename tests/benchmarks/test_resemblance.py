"""Likeness within a class against worked examples."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import crops, resemblance


def test_likeness_is_one_by_chance_and_small_for_the_truth() -> None:
    dice = np.random.default_rng(0)
    truth = dice.normal(size=(200, 2))
    classes = ["a" if i % 2 else "b" for i in range(200)]
    persons = [f"P-{i}" for i in range(200)]
    chance = resemblance.likeness(dice.normal(size=(200, 200)), truth, classes, persons)
    assert chance == pytest.approx([1, 1], abs=0.06)
    oracle = resemblance.likeness(-resemblance.distances(truth), truth, classes, persons)
    assert (oracle < 0.35).all()
    one = resemblance.likeness(-resemblance.distances(truth[:, :1]), truth, classes, persons)
    assert one[0] < 0.2
    assert one[1] == pytest.approx(1, abs=0.1)


def test_likeness_by_hand() -> None:
    """All of one class on a line: the ten first are counted, but neither the query nor its own person."""
    truth = np.arange(25.0)[:, None]
    persons = [f"P-{i}" for i in range(24)] + ["P-0"]
    similarity = np.full((25, 25), 0.0)
    similarity[:, 1:11] = 1
    near = far = 0.0
    for i in range(25):
        others = [j for j in range(25) if persons[j] != persons[i]]
        first = sorted(others, key=lambda j: (-similarity[i, j], j))[:10]
        near += np.mean([abs(i - j) for j in first])
        far += np.mean([abs(i - j) for j in others])
    found = resemblance.likeness(similarity, truth, ["a"] * 25, persons)
    assert found == pytest.approx([near / far])


def test_what_is_unknown_lies_in_the_middle() -> None:
    vectors = np.array([[0.0, 1.0], [2.0, np.nan], [4.0, 3.0]])
    table = resemblance.distances(vectors)
    z = np.array([[-1, -1], [0, 0], [1, 1]]) * [np.sqrt(1.5), 1.0]
    np.testing.assert_allclose(table, np.linalg.norm(z[:, None] - z[None], axis=-1), atol=1e-9)


def test_outlined_planes_tell_size_shares_and_brightness() -> None:
    voxels = np.zeros((4, 4, 3, 4))
    voxels[..., 3], voxels[..., 2] = 5.0, np.arange(3)
    one = np.zeros((4, 4), int)
    one[0, :2], one[1, :2] = 4, 2
    other = np.zeros((4, 4), int)
    other[0, 0] = 1
    found = resemblance.told(voxels, {"0": one.tolist(), "2": other.tolist()})
    size = 2 * np.sqrt(2.5 * crops.VOXEL**2 / np.pi)
    assert found == pytest.approx([size, 2 / 5, 1 / 5, 5.0, 2 / 5])
