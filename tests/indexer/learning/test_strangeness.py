"""Distance from what a training showed."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.learning.strangeness import RIDGE, TrainingDistribution


def test_the_distance_is_that_of_the_nearest_cohort() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (4000, 3)), rng.normal(100, 10, (4000, 3))
    known = TrainingDistribution.of(np.concatenate([a, b]).astype(np.float32), np.repeat([3, 7], 4000))
    assert known.means.shape == (2, 3)
    asked = np.array([[0, 0, 0], [3, 0, 0], [100, 100, 100], [100, 130, 100], [50, 50, 50]], np.float32)
    # by hand: 3 deviations on one of 3 axes are √(9 / 3); 50 is 5 deviations of b away on each axis
    expected = np.array([0, np.sqrt(3), 0, np.sqrt(3), 5]) / np.sqrt(1 + RIDGE)
    np.testing.assert_allclose(known.strangeness(asked), expected, atol=0.15)


def test_slices_of_the_training_are_about_one_away() -> None:
    rng = np.random.default_rng(1)
    mixed = rng.normal(size=(5000, 8)) @ rng.normal(size=(8, 8))  # correlated
    known = TrainingDistribution.of(mixed[:4000].astype(np.float32), np.zeros(4000, np.int64))
    assert np.sqrt(np.mean(known.strangeness(mixed[4000:].astype(np.float32)) ** 2)) == pytest.approx(
        1, abs=0.1
    )


def test_a_channel_that_never_varies_and_few_slices_are_no_trouble() -> None:
    flat = np.ones((5, 20), np.float32)
    flat[:, 0] = np.arange(5)
    known = TrainingDistribution.of(flat, np.zeros(5, np.int64))
    assert np.isfinite(known.strangeness(flat)).all()
    assert known.strangeness(flat + 1)[0] > 100 * known.strangeness(flat)[2]
