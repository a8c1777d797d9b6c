"""Connected parts, as SciPy tells them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy import ndimage

from indexer.components import components

Mask = NDArray[np.bool_]


@given(arrays(bool, array_shapes(min_dims=1, max_dims=4, max_side=9)))
def test_parts_are_those_of_scipy(mask: Mask) -> None:
    assert np.array_equal(components(mask), ndimage.label(mask)[0])


@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=9)), st.integers(1, 2))
def test_along_the_last_axes_each_plane_has_parts_of_its_own(mask: Mask, axes: int) -> None:
    near = np.zeros((3, 3, 3), bool)
    for axis in range(3 - axes, 3):
        near[tuple(slice(None) if a == axis else 1 for a in range(3))] = True
    assert np.array_equal(components(mask, axes), ndimage.label(mask, near)[0])


@pytest.mark.parametrize("shape", [(40, 40), (6, 30, 30)])
def test_long_winding_parts_are_one(shape: tuple[int, ...]) -> None:
    mask = np.ones(shape, bool)
    mask[..., 1::4, 1:] = mask[..., 3::4, :-1] = False
    assert components(mask).max() == ndimage.label(mask)[1]
    assert np.array_equal(components(mask), ndimage.label(mask)[0])


def test_nothing_has_no_parts() -> None:
    assert components(np.zeros((0, 3), bool)).shape == (0, 3)
    assert components(np.zeros((2, 3), bool)).max() == 0
