from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.errors import CbirError, ReadError
from indexer.scan import Scan, displayed, stacked


def scan(shape, spacing=None, **fields):
    return Scan(np.arange(np.prod(shape)).reshape(shape), Path("x"), spacing, **fields)


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((8, 8, 8), (1, 1, 1), 2),
        ((8, 8, 8), (1, 1, 3), 2),
        ((8, 8, 8), (5, 1, 1), 0),
        ((8, 8, 8), (1, 4, 1), 1),
        ((8, 8, 8), (1.4, 1, 1), 2),  # not coarse enough to stand out
        ((8, 8, 8), (1, 1.5, 1), 1),
        ((8, 8, 8), (2, 2, 1), 2),
        ((1, 64, 64), (1, 0.9, 0.9), 0),  # a single sagittal plane, whatever its spacing
        ((64, 64, 1), None, 2),
        ((1, 1, 64), (1, 1, 1), 2),
    ],
)
def test_slices_lie_along_the_axis_that_was_acquired_so(shape, spacing, axis):
    one = scan(shape, spacing)
    assert one.axis == axis
    assert len(one) == shape[axis]


def test_planes_are_shown_in_radiological_convention():
    """A voxel marked at the patient's right, front and head appears where a radiologist expects it."""
    voxels = np.zeros((4, 5, 6))
    voxels[3, 4, 5] = 1  # most right, most anterior, most superior
    for spacing, expected in (
        ((1, 1, 1), (0, 0)),  # axial: front at the top, right at the left
        ((1, 9, 1), (0, 0)),  # coronal: head at the top, right at the left
        ((9, 1, 1), (0, 0)),  # sagittal: head at the top, front at the left
    ):
        one = Scan(voxels, Path("x"), spacing)
        shown = [np.argwhere(s.pixels) for s in one.slices()]
        (position,) = [i for i, found in enumerate(shown) if len(found)]
        assert position == len(one) - 1
        assert tuple(shown[position][0]) == expected
    axial = Scan(voxels, Path("x"), (1, 1, 1)).slice(0).pixels
    assert axial.shape == (5, 4)  # rows run along anterior–posterior
    sagittal = Scan(voxels, Path("x"), (9, 1, 1)).slice(0).pixels
    assert sagittal.shape == (6, 5)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_stacked_images_are_shown_as_they_are(n, rows, columns):
    planes = np.arange(n * rows * columns).reshape(n, rows, columns)
    volume = stacked(planes)
    for i in range(n):
        np.testing.assert_array_equal(displayed(volume, 2, i), planes[i])


def test_a_slice_carries_its_part_of_the_region():
    region = np.zeros((4, 5, 6), bool)
    region[3, 4, 2] = True
    one = scan((4, 5, 6), region=region)
    assert one.slice(2).region[0, 0]
    assert one.slice(2).region.sum() == 1
    assert not one.slice(1).region.any()
    assert scan((4, 5, 6)).slice(2).region is None
    with pytest.raises(IndexError, match=r"0…5"):
        one.slice(6)


def test_errors_say_where_what_and_what_to_do_in_one_line():
    import pickle

    error = ReadError(Path("a/b.nii"), "is truncated", "copy it again")
    assert str(error) == "a/b.nii: is truncated; copy it again"
    assert error.explanation == "is truncated; copy it again"
    assert str(CbirError("x", "is odd")) == "x: is odd"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
