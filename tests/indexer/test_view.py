"""Views of heads that are drawn: what tells their planes apart is their outline and what lies inside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.preprocess import Preprocessing, prepared, prepared_composite
from indexer.scan import Scan, stacked
from indexer.view import CELLS, DIRECTIONS, LENGTH, PACKED, mirrored, packed, unknown, unpacked, view_of
from retrieval.likeness import turned
from tests.support.images import head_plane

WHOLE = Preprocessing(160, crops=False)


def flat(image: NDArray[np.float64]) -> Scan:
    return Scan(stacked(image[None]), Path("a.png"))


def seen(image: NDArray[np.float64]) -> NDArray[np.float32]:
    return view_of(prepared(flat(image), WHOLE))


def test_flat_images_of_one_view_are_nearer_than_those_of_others() -> None:
    names = [name for name in ("axial", "coronal", "sagittal") for _ in range(6)]
    views = np.array([seen(head_plane(name, seed)) for seed, name in enumerate(names)])
    assert np.isnan(views[:, 0]).all()
    np.testing.assert_allclose(np.linalg.norm(views[:, 1:], axis=1), 1, rtol=1e-5)
    for name, view in zip(names, views, strict=True):
        first = np.argsort(turned(view, views))[:6]
        assert {names[place] for place in first} == {name}


@pytest.mark.parametrize("changed", ["darker inside", "mirrored", "brighter", "larger"])
def test_a_view_stays_what_it_is(changed: str) -> None:
    of = {name: seen(head_plane(name)) for name in ("axial", "coronal", "sagittal")}
    image = head_plane("sagittal", contrast=-1.0 if changed == "darker inside" else 1.0)
    image = {
        "mirrored": image[:, ::-1],
        "brighter": 3 * image + 7,
        "larger": np.kron(image, np.ones((2, 2))),
    }.get(changed, image)
    away = dict(zip(of, turned(seen(image), np.array(list(of.values()))).tolist(), strict=True))
    assert away["sagittal"] < min(away["axial"], away["coronal"])


def test_a_mirror_image_has_the_mirrored_view() -> None:
    ready = prepared(flat(head_plane("sagittal")), replace(WHOLE, size=128))
    turned_round = replace(ready, pixels=np.ascontiguousarray(ready.pixels[..., ::-1]))
    np.testing.assert_allclose(mirrored(view_of(ready)), view_of(turned_round), atol=1e-3)
    np.testing.assert_array_equal(mirrored(mirrored(view_of(ready))), view_of(ready))


def test_edges_are_where_they_are_and_point_where_they_point() -> None:
    image = np.full((1, 64, 64), 100, np.uint8)
    image[..., 8:] = 200  # one edge from top to bottom, in the first of four columns
    ready = replace(prepared(flat(head_plane("axial")), WHOLE), pixels=image)
    grid = view_of(ready)[1:].reshape(DIRECTIONS, CELLS, CELLS)
    assert (grid[0, :, 0] > 0.4).all()
    assert np.ptp(np.delete(grid.reshape(DIRECTIONS, -1), [0, 4, 8, 12], axis=1)) < 1e-6
    assert np.ptp(grid[1:]) < 1e-6
    assert np.isnan(view_of(replace(ready, pixels=np.full_like(image, 7)))).all()  # no edges


def test_geometry_says_the_axis_and_a_composite_none() -> None:
    volume = np.stack([head_plane("axial", seed) for seed in range(4)], axis=-1)
    scan = Scan(
        volume, Path("p.nii.gz"), spacing=(1.0, 1.0, 5.0), affine=np.diag([1, 1, 5, 1.0]), sequence="t1"
    )
    view = view_of(prepared(scan, WHOLE))
    assert view[0] == 2
    assert np.isfinite(view).all()
    assert np.isnan(view_of(prepared(replace(scan, affine=None), WHOLE))[0])
    assert np.isnan(view_of(prepared_composite([scan, None, None, None], 160))).all()


def test_a_view_is_kept_in_little_room() -> None:
    view = seen(head_plane("axial"))
    kept = packed(view)
    assert kept.nbytes == 4 * PACKED == 132
    np.testing.assert_allclose(unpacked(kept), view, atol=0.5 / 127 + 1e-6)
    assert turned(view, unpacked(kept)[None])[0] == 0
    np.testing.assert_array_equal(unpacked(packed(unknown())), unknown())


def test_what_is_known_of_both_is_compared() -> None:
    views = np.array([unknown()] * 5)
    views[[1, 2], 0] = 2, 0
    gists = np.zeros((2, LENGTH - 1))
    gists[0, 0], gists[1, 5] = 1, 1
    views[3:, 1:] = gists
    np.testing.assert_array_equal(turned(views[1], views[[1, 2]]), [0, 1])  # by geometry
    np.testing.assert_array_equal(turned(views[3], views[[3, 4]]), [0, 1])  # by gist
    both = views[1].copy()
    both[1:] = gists[0]
    np.testing.assert_array_equal(turned(both, views[[2, 3, 4]]), [1, 0, 1])
    unknown_ones = turned(both, views[[0, 0]])
    assert ((unknown_ones > 0) & (unknown_ones < 1)).all()
    np.testing.assert_array_equal(turned(views[0], views), 0)  # nothing is asked


def test_a_flat_image_lies_along_the_axis_of_those_that_look_the_same() -> None:
    gists = np.zeros((2, LENGTH - 1), np.float32)
    gists[0, 0], gists[1, 5] = 1, 1
    axial, crop = np.array([2, *gists[0]]), np.array([2, *gists[1]])
    coronal = np.array([1, *gists[1]])
    flat = np.array([np.nan, *gists[0]], np.float32)
    np.testing.assert_array_equal(
        turned(flat, np.array([axial, axial, axial, crop, coronal])), [0, 0, 0, 0, 1]
    )
    np.testing.assert_array_equal(turned(flat, np.array([axial, axial, crop, coronal])), [0, 0, 1, 1])  # few
    doubtful = np.array([1, *gists[0]])
    np.testing.assert_array_equal(
        turned(flat, np.array([axial, axial, axial, doubtful, crop])), [0, 0, 0, 0, 1]
    )
