"""Hits of lesions, on maps made by hand."""

from __future__ import annotations

import numpy as np

from benchmarks import regions


def test_a_hit_is_a_highest_cell_that_is_outlined() -> None:
    maps = np.zeros((3, 2, 2), np.float32)
    maps[:, 0, 1] = 0.4
    maps[2, 1, 0] = 0.9
    outlined = np.zeros((3, 4, 4), np.float32)
    outlined[0, 0, 2] = 1  # a quarter of the cell
    outlined[1, 0, 2] = 0.9
    outlined[2, 2:, :2] = 1
    assert regions.hit(maps, outlined).tolist() == [True, False, True]
