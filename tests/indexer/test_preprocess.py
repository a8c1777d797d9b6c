"""Preprocessing: what must not change the picture does not, and the geometry is as worked by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from indexer.errors import QueryError, ReadError
from indexer.preprocess import (
    Background,
    Preprocessing,
    background_of,
    crop_box,
    prepared,
    squared,
    with_region,
)
from indexer.scan import Scan, stacked

SMALL = Preprocessing(32)


def stack(*planes: NDArray[Any], **fields: Any) -> Scan:
    """A raster scan of planes as they are displayed."""
    return Scan(stacked(np.stack(planes)), Path("scan"), **fields)


def head(side: int = 40, radius: float = 15, seed: int = 0) -> NDArray[np.float32]:
    """A textured disc on zeros."""
    y, x = np.mgrid[:side, :side] - side // 2
    texture = np.random.default_rng(seed).uniform(50, 150, (side, side)) + 2 * x
    return np.where(x**2 + y**2 < radius**2, texture, 0).astype(np.float32)


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.abs(a.astype(int) - b).max())


# -- intensities ---------------------------------------------------------------------------------------


@given(gain=st.floats(1e-3, 1e3), offset=st.floats(-1e4, 1e4))
@settings(deadline=None)
def test_gain_and_offset_do_not_change_the_picture(gain: float, offset: float) -> None:
    before = prepared(stack(head()), SMALL).pixels
    after = prepared(stack(head() * np.float64(gain) + offset), SMALL).pixels
    assert difference(before, after) <= 2


def test_the_foreground_fills_the_greys_and_the_background_is_black() -> None:
    pixels = prepared(stack(head(200, 80)), Preprocessing(161)).pixels[0]  # not resized
    assert pixels[0, 0] == 0
    assert pixels[80, 80] > 0
    assert set(np.unique(pixels)) >= {0, 1, 255}


def test_one_hot_pixel_does_not_darken_the_rest() -> None:
    image = head(100, 40)
    hot = image.copy()
    hot[50, 50] = 1e6
    before, after = (prepared(stack(i), Preprocessing(81)).pixels[0].astype(int) for i in (image, hot))
    assert np.median(np.abs(before - after)) <= 2


def test_the_whole_scan_shares_one_scale_and_one_box() -> None:
    bright, dim = head(), head() / 2
    large, small = head(), head(radius=8)
    pixels = prepared(stack(bright, dim, large, small), SMALL).pixels.astype(int)
    assert pixels[1].sum() < 0.6 * pixels[0].sum()
    assert np.count_nonzero(pixels[3]) < 0.4 * np.count_nonzero(pixels[2])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2"])
def test_the_type_of_the_voxels_does_not_matter(dtype: Any) -> None:
    image = head().round()
    assert (
        difference(prepared(stack(image), SMALL).pixels, prepared(stack(image.astype(dtype)), SMALL).pixels)
        == 0
    )


def test_preparing_is_deterministic_and_leaves_the_scan_alone() -> None:
    scan = stack(head(seed=1), head(seed=2))
    voxels = scan.voxels.copy()
    np.testing.assert_array_equal(prepared(scan, SMALL).pixels, prepared(scan, SMALL).pixels)
    np.testing.assert_array_equal(scan.voxels, voxels)


# -- background ----------------------------------------------------------------------------------------


@given(
    before=st.tuples(*[st.integers(0, 9)] * 2),
    after=st.tuples(*[st.integers(0, 9)] * 2),
    level=st.sampled_from([0, -3, 90]),
)
@settings(deadline=None)
def test_more_background_changes_nothing(before: tuple[int, int], after: tuple[int, int], level: int) -> None:
    image = np.where(head() > 0, head(), level)
    padded = np.pad(image, list(zip(before, after, strict=True)), constant_values=level)
    a, b = prepared(stack(image), SMALL), prepared(stack(padded), SMALL)
    np.testing.assert_array_equal(a.pixels, b.pixels)


def test_noise_in_the_air_is_background() -> None:
    clean = head(128, 40)
    noisy = clean + np.abs(np.random.default_rng(3).normal(0, 2, clean.shape)).astype(np.float32)
    noisy[:20] = 0  # as scanners blank the margins: half of the edges are zero then, half are noise
    pixels = prepared(stack(noisy), Preprocessing(64)).pixels[0]
    assert pixels[0, 0] == pixels[-1, -1] == 0
    assert (pixels[32] > 0).sum() >= 62  # the disc fills the square


def test_bright_background_is_background() -> None:
    image = 255 - head() / 200 * 255
    pixels = prepared(stack(image), SMALL).pixels[0]
    assert pixels[0, 0] == 0
    assert pixels[16, 16] > 0


def test_zero_between_dark_and_bright_is_background_only_in_patches() -> None:
    rng = np.random.default_rng(0)
    tissue = rng.normal(0, 1, (40, 40)).astype(np.float32)
    tissue[20, 20] = 0  # as quantised values hit it by chance
    image = np.zeros((40, 40), np.float32)
    image[:, 10:] = tissue[:, 10:]
    background = background_of(stack(image))
    assert background == Background(0, 0)
    shown = background.foreground(image)
    assert not shown[:, :10].any()
    assert shown[:, 10:].all()


def test_a_thin_frame_of_zeros_is_background() -> None:
    image = np.pad(np.random.default_rng(0).normal(0, 1, (30, 30)), 1)
    np.testing.assert_array_equal(
        background_of(stack(image)).foreground(image), np.pad(np.ones((30, 30)), 1) > 0
    )


def test_a_photo_has_no_background() -> None:
    photo = np.random.default_rng(0).integers(60, 200, (48, 64)).astype(np.uint8)
    assert background_of(stack(photo)).foreground(photo).all()
    pixels = prepared(stack(photo), SMALL).pixels[0]
    assert (pixels[4:28] > 0).all()  # 64 × 48 becomes 32 × 24, centred
    assert not pixels[:4].any()
    assert not pixels[28:].any()


def test_ct_air_is_background_inside_and_outside_of_the_field_of_view() -> None:
    y, x = np.mgrid[:128, :128] - 64
    hu = np.full((128, 128), -3024, np.int16)
    hu[x**2 + y**2 < 63**2] = -1000
    hu[x**2 + y**2 < 30**2] = 900
    hu[x**2 + y**2 < 27**2] = 40
    scan = stack(hu, modality="CT")
    np.testing.assert_array_equal(background_of(scan).foreground(hu), hu >= 40)


@pytest.mark.parametrize("value", [0, 7, -1000.5])
@pytest.mark.parametrize("shape", [(1, 1, 1), (20, 20, 5)])
def test_a_constant_scan_is_refused(value: float, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ReadError, match=r"scan: it shows nothing: every voxel is"):
        prepared(Scan(np.full(shape, value), Path("scan")), SMALL)


def test_a_scan_that_shows_next_to_nothing_is_refused() -> None:
    with pytest.raises(ReadError, match="no voxels"):
        prepared(Scan(np.zeros((0, 4, 4)), Path("scan")), SMALL)
    dust = np.zeros((600, 600), np.uint8)
    dust[[5, 589], [591, 7]] = 9  # between the points of the grid that percentiles are taken from
    with pytest.raises(ReadError, match="almost nothing"):
        prepared(stack(dust), SMALL)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    image = head().astype(np.float64)
    image[3, 4] = value
    with pytest.raises(ReadError, match="infinite or not a number"):
        prepared(stack(image), SMALL)


@given(
    image=st.integers(1, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([0, 1, 5, 255]), min_size=n, max_size=n), min_size=1, max_size=6
        )
    )
)
@settings(deadline=None)
def test_any_tiny_image_is_prepared_or_refused(image: list[list[int]]) -> None:
    scan = stack(np.array(image, np.uint8))
    if len({value for row in image for value in row}) == 1:
        with pytest.raises(ReadError):
            prepared(scan, SMALL)
    else:
        pixels = prepared(scan, SMALL).pixels
        assert pixels.shape == (1, 32, 32)
        assert pixels.any()


# -- slices --------------------------------------------------------------------------------------------


def test_empty_slices_are_skipped_and_the_rest_weighed_by_their_foreground() -> None:
    full, half, speck, empty = head(), head(), np.zeros((40, 40), np.float32), np.zeros((40, 40), np.float32)
    half[:20] = 0
    speck[20, 20] = 100
    result = prepared(stack(empty, full, speck, half, empty), SMALL)
    assert result.positions.tolist() == [1, 3]
    assert result.weights[0] == 1
    assert result.weights[1] == pytest.approx((half > 0).sum() / (full > 0).sum())
    assert result.views.tolist() == [0, 0]
    assert result.pixels.shape == (2, 32, 32)
    assert (result.pixels.dtype, result.weights.dtype, result.views.dtype) == (np.uint8, np.float32, np.uint8)


def test_positions_run_along_the_slice_axis() -> None:
    volume = np.zeros((6, 40, 40), np.float32)
    volume[2:5] = head()
    scan = Scan(volume, Path("scan"), spacing=(5, 1, 1), affine=np.eye(4))
    assert prepared(scan, SMALL).positions.tolist() == [2, 3, 4]


# -- size ----------------------------------------------------------------------------------------------


def test_pixels_become_square_in_millimetres() -> None:
    volume = np.zeros((40, 40, 10), np.float32)
    volume[10:30, 10:20] = np.random.default_rng(0).uniform(50, 100, (20, 10, 10))
    # 20 × 10 voxels of 1 × 2 mm: square
    scan = Scan(volume, Path("scan"), spacing=(1, 2, 5), affine=np.eye(4))
    assert (prepared(scan, SMALL).pixels > 0).all()
    # 20 × 10 voxels of 1 × 1 mm: columns 32, rows 16 of 32, centred
    pixels = prepared(replace(scan, spacing=(1, 1, 5)), SMALL).pixels
    assert (pixels[:, 8:24] > 0).all()
    assert not pixels[:, :8].any()
    assert not pixels[:, 24:].any()


@given(rows=st.integers(1, 90), columns=st.integers(1, 90), rate=st.sampled_from([0.2, 1.0, 7.0]))
@settings(deadline=None)
def test_any_shape_becomes_a_square(rows: int, columns: int, rate: float) -> None:
    square = squared(np.full((rows, columns), 200, np.uint8), (rate, 1.0), 32)
    assert square.shape == (32, 32)
    assert set(np.unique(square)) <= {0, 200}
    assert (square.any(0).all()) or (square.any(1).all())  # the longer side fills it


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(squared(stripes, (1, 1), 32)[:, 2:-2]) < 20


# -- regions -------------------------------------------------------------------------------------------


def region(shape: tuple[int, int], rows: slice, columns: slice) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


@pytest.mark.parametrize(
    ("rows", "columns", "spacing", "expected"),
    [
        # 40 rows, 20 columns: side 1.6 × 40 = 64, around (100, 150)
        ((80, 120), (140, 160), (1, 1), ((68, 132), (118, 182))),
        # shifted into the plane at its corner
        ((0, 40), (180, 200), (1, 1), ((0, 64), (136, 200))),
        # tiny: at least 32 pixels
        ((100, 102), (100, 102), (1, 1), ((85, 117), (85, 117))),
        # larger than the plane: all of it
        ((10, 190), (20, 180), (1, 1), ((0, 200), (0, 200))),
        # rows 2 mm apart: 20 × 2 = 40 mm high, side 64 mm = 32 rows, 64 columns
        ((90, 110), (140, 160), (2, 1), ((84, 116), (118, 182))),
    ],
)
def test_the_crop_around_a_region(
    rows: tuple[int, int], columns: tuple[int, int], spacing: tuple[float, float], expected: Any
) -> None:
    box = crop_box(region((200, 200), slice(*rows), slice(*columns)), spacing)
    assert tuple((s.start, s.stop) for s in box) == expected


def test_regions_add_crops_after_the_whole_slices() -> None:
    planes = [head(100, 40, seed) for seed in range(4)]
    masks = np.zeros((4, 100, 100), bool)
    masks[1, 40:60, 40:60] = True  # 400 pixels
    masks[3, 40:50, 40:50] = True  # 100 pixels
    result = prepared(stack(*planes, region=stacked(masks)), SMALL)
    assert result.views.tolist() == [0, 0, 0, 0, 1, 1]
    assert result.positions.tolist() == [0, 1, 2, 3, 1, 3]
    assert result.weights[4:].tolist() == [1, 0.25]
    # 100 pixels: side 32, around (45, 45), not resized, scaled as the whole scan is
    values = planes[3][29:61, 29:61]
    shown = np.concatenate([p[p > background_of(stack(*planes)).high] for p in planes])
    low, high = np.percentile(shown, (1, 99.5))
    assert (
        difference(
            result.pixels[5], (np.clip((values - low) / (high - low), 0, 1) * 254 + 1).astype(np.uint8)
        )
        <= 2
    )


def test_the_box_of_a_region_is_in_shares_of_the_image() -> None:
    plane = np.zeros((100, 200))
    plane[10:90, 20:180] = np.random.default_rng(0).uniform(50, 60, (80, 160))  # 80 × 160 are shown
    region = np.zeros_like(plane, bool)
    region[30:50, 60:100] = True
    scan = stack(plane, region=stacked(region[None]))
    ready = prepared(scan, Preprocessing(320, crops=False))
    np.testing.assert_allclose(ready.boxes, [[np.nan] * 4, [0.25, 0.375, 0.5, 0.5]])
    np.testing.assert_array_equal(ready.pixels[0], ready.pixels[1])
    np.testing.assert_array_equal(ready.boxes, prepared(scan, Preprocessing(64)).boxes)


def test_a_box_of_the_user_becomes_the_region_of_the_middle_slice() -> None:
    empty = np.zeros((40, 60), np.float32)
    shown = np.pad(head(), ((0, 0), (0, 20)))
    scan = with_region(stack(empty, empty, empty, shown, shown, shown), (50, 10, 60, 30))
    marked = [s.position for s in scan.slices() if s.region is not None and s.region.any()]
    assert marked == [4]
    mask = scan.slice(4).region
    assert mask is not None
    np.testing.assert_array_equal(mask, region((40, 60), slice(10, 30), slice(50, 60)))


def test_a_box_on_a_volume_is_in_displayed_pixels() -> None:
    volume = np.random.default_rng(0).uniform(1, 2, (30, 50, 8))
    scan = with_region(Scan(volume, Path("scan"), spacing=(1, 1, 3), affine=np.eye(4)), (0, 0, 3, 5), 2)
    assert scan.region is not None
    # display runs from right and front, voxels to right and front
    np.testing.assert_array_equal(np.argwhere(scan.region).min(0), (27, 45, 2))
    np.testing.assert_array_equal(np.argwhere(scan.region).max(0), (29, 49, 2))


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 61, 5), (0, 0, 5, 41), (5, 0, 5, 5), (0, 6, 5, 5)])
def test_a_box_outside_of_the_image_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(QueryError, match=r"x1 <= 60 and 0 <= y0 < y1 <= 40"):
        with_region(stack(np.pad(head(), ((0, 0), (0, 20)))), box)


@pytest.mark.parametrize("position", [-1, 1])
def test_a_slice_that_is_not_there_is_refused(position: int) -> None:
    with pytest.raises(QueryError, match="no slice"):
        with_region(stack(head()), (0, 0, 5, 5), position)


def test_the_version_follows_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Preprocessing(192).version
    assert before == Preprocessing(192).version != Preprocessing(224).version
    monkeypatch.setattr("indexer.preprocess.EMPTY", 0.2)
    assert Preprocessing(192).version != before


# -- real data -----------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_heads_fill_the_picture(real: Path) -> None:
    for path in sorted((real / "figshare" / "images").glob("*.jpg"))[::300]:
        image = np.asarray(Image.open(path).convert("L"))
        shown = prepared(stack(image), Preprocessing(192)).pixels[0] > 0
        assert shown.any(0).mean() > 0.99 or shown.any(1).mean() > 0.99, path
        assert 0.3 < shown.mean() < 0.95, path


# -- planes that are near each other -------------------------------------------------------------------


@given(
    mm=st.sampled_from([0.5, 0.9, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0]),
    n=st.integers(1, 40),
    first=st.integers(0, 5),
)
def test_planes_are_taken_so_that_none_lies_far_from_the_next(mm: float, n: int, first: int) -> None:
    empty = np.zeros((12, 12), np.float32)
    planes = [*[empty] * first, *[head(12, 5, seed) for seed in range(n)], empty]
    scan = stack(*planes, spacing=(mm, mm, mm), affine=np.diag([mm, mm, mm, 1]))
    every = prepared(scan, SMALL)
    some = prepared(scan, replace(SMALL, apart=4.0))
    rows = np.searchsorted(every.positions, some.positions)
    np.testing.assert_array_equal(some.pixels, every.pixels[rows])
    np.testing.assert_array_equal(some.weights, every.weights[rows])
    steps = np.diff(some.positions)
    assert (steps * mm <= max(4.0, mm) + 1e-6).all()
    assert (mm > 2) or n < 9 or (steps > 1).all()
    ends = [some.positions[0] - every.positions[0], every.positions[-1] - some.positions[-1]]
    assert max(ends) * mm < max(4.0, mm)


def test_without_a_spacing_all_slices_are_taken() -> None:
    scan = stack(*[head(seed=seed) for seed in range(6)])
    assert len(prepared(scan, replace(SMALL, apart=4.0)).positions) == 6


def test_the_largest_outline_is_taken_and_others_around_it() -> None:
    scan = stack(*[head(seed=seed) for seed in range(12)], spacing=(1, 1, 1), affine=np.eye(4))
    region = np.zeros(scan.voxels.shape, bool)
    for plane, size in {3: 2, 4: 3, 5: 9, 6: 8, 7: 4, 8: 3, 9: 2}.items():
        region[15 : 15 + size, 15 : 15 + size, plane] = True
    ready = prepared(replace(scan, region=region), replace(SMALL, apart=4.0))
    assert ready.positions[ready.views == 1].tolist() == [5, 9]
    alone = prepared(with_region(scan, (15, 15, 20, 20), 7), replace(SMALL, apart=4.0))
    assert alone.positions[alone.views == 1].tolist() == [7]


def test_what_was_prepared_says_how_far_apart_planes_are() -> None:
    every, some = Preprocessing(32, composite_size=16), Preprocessing(32, composite_size=16, apart=2.5)
    assert every.version != some.version
    assert some.as_in(every.version) == every
    assert every.as_in(some.version) == some
    assert some.as_in("nothing that is known") == every
