"""Measures of lesions that are drawn, so that each is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.measures import NAMES, Measures, measure
from indexer.preprocess import Preprocessing, prepared, prepared_composite, with_region
from indexer.scan import Scan, displayed
from indexer.sequences import CHANNELS, STANDARD
from indexer.view import PACKED

SHAPE = (100, 120, 60)
MIDDLE = np.array([65.0, 45.0, 40.0])
RADIUS, CORE = 14.0, 9.0
WHOLE = Preprocessing(160, crops=False)


def ball(middle: NDArray[np.float64], radius: float) -> NDArray[np.bool_]:
    grid = np.indices(SHAPE).transpose(1, 2, 3, 0)
    found: NDArray[np.bool_] = ((grid - middle) ** 2).sum(-1) < radius**2
    return found


def head() -> NDArray[np.bool_]:
    inside = np.zeros(SHAPE, bool)
    inside[5:95, 5:115, 5:55] = True
    return inside


def study(*, affine: bool = True) -> list[Scan | None]:
    """A head with a ball of oedema and a core that enhances, in noise of a deviation of 10."""
    dice = np.random.default_rng(0)
    scans: list[Scan | None] = []
    for name, lesion, core in (("t1", 80, 80), ("t1ce", 80, 220), ("t2", 160, 160), ("flair", 170, 160)):
        voxels = dice.normal(100, 10, SHAPE)
        voxels[ball(MIDDLE, RADIUS)] += lesion - 100
        voxels[ball(MIDDLE, CORE)] += core - lesion
        scans.append(
            Scan(
                np.where(head(), voxels, 0),
                Path(f"p_{name}.nii.gz"),
                spacing=(1.0, 1.0, 1.0),
                affine=np.eye(4) if affine else None,
                sequence=name,
            )
        )
    return scans


def test_a_drawn_lesion_has_its_measures() -> None:
    found = measure(prepared_composite(study(), 160))
    assert found.size == pytest.approx(2 * RADIUS, rel=0.12)
    assert found.enhancing == pytest.approx((CORE / RADIUS) ** 3, abs=0.1)
    assert found.necrotic + found.oedema + found.enhancing == pytest.approx(1, abs=1e-6)
    assert found.t2 > 1.5
    assert found.flair > 1.5
    assert found.t1 < -0.5
    place = 2 * (MIDDLE - (5, 5, 5)) / (89, 109, 49) - 1
    assert found.place == pytest.approx((-place[0], place[1], place[2]), abs=0.08)


def test_brightness_is_in_deviations_of_the_brain() -> None:
    scans = study()
    flair = scans[3]
    assert flair is not None
    shown = flair.voxels[head()]
    found = measure(prepared_composite(scans, 160))
    inside = ball(MIDDLE, RADIUS - 1)  # what lies at its border is partly brain
    truth = (flair.voxels[inside].mean() - shown.mean()) / shown.std()
    assert found.flair == pytest.approx(truth, rel=0.15)


def test_an_image_that_was_standardised_is_taken_as_it_is() -> None:
    """A crop that is mostly lesion has no brain to compare with, but for what its author did."""
    dice = np.random.default_rng(1)
    voxels = dice.normal(2.0, 0.5, (32, 32, 32))
    voxels[:8] = dice.normal(-0.5, 0.5, (8, 32, 32))
    crop = Scan(voxels, Path("crop_flair.nii.gz"), (1.0, 1.0, 1.0), np.eye(4), "flair")
    found = measure(prepared(crop, WHOLE), ("flair",))
    assert found.flair == pytest.approx(2.0, abs=0.2)
    assert all(np.isnan(found.place))
    assert np.isnan(found.enhancing)
    assert np.isnan(found.t1ce)


def test_a_region_that_is_given_bounds_what_is_measured() -> None:
    scans = study()
    other = ball(np.array([25.0, 80.0, 40.0]), 9.0)
    for scan in scans:
        assert scan is not None
        scan.voxels[other] += 80
    marked = [None if s is None else replace(s, region=ball(MIDDLE, RADIUS + 1)) for s in scans]
    with_other, alone = (measure(prepared_composite(s, 160)) for s in (scans, marked))
    assert alone.size < with_other.size
    assert alone.size == pytest.approx(2 * RADIUS, rel=0.12)
    assert alone.place == pytest.approx(measure(prepared_composite(study(), 160)).place, abs=0.05)


def test_specks_are_not_counted_and_a_second_focus_is() -> None:
    with_speck, with_focus = study(), study()
    for scans, radius in ((with_speck, 4.0), (with_focus, 10.0)):
        other = ball(np.array([25.0, 85.0, 20.0]), radius)
        for scan in scans:
            assert scan is not None
            scan.voxels[other] += 80
    alone, speck, focus = (
        measure(prepared_composite(scans, 160)) for scans in (study(), with_speck, with_focus)
    )
    assert speck.size == pytest.approx(alone.size, rel=0.05)
    assert speck.place == pytest.approx(alone.place, abs=0.02)
    assert focus.size == pytest.approx((alone.size**3 + 20**3) ** (1 / 3), rel=0.08)


def test_a_region_on_one_plane_is_measured_there() -> None:
    box = with_region(study()[3], (25, 55, 60, 95), 40)  # type: ignore[arg-type]
    found = measure(prepared(box, WHOLE), ("flair",))
    assert found.size == pytest.approx(2 * RADIUS, rel=0.12)


def test_standardised_greys_are_deviations_of_the_brain() -> None:
    scans = study()
    ready = prepared_composite(scans, 160, standardised=True)
    flair = scans[3]
    assert flair is not None
    shown = flair.voxels[head()]
    step = (STANDARD[1] - STANDARD[0]) / 254
    np.testing.assert_allclose(ready.frame.levels, [[step, STANDARD[0] - step]] * 4, rtol=1e-5)
    plane = displayed(flair.voxels, 2, 40)[5:115, 5:95]
    truth = ((plane - shown.mean()) / shown.std()).clip(*STANDARD)
    image = ready.pixels[list(ready.positions).index(40), 3]
    grey = image[image > 0] * step + STANDARD[0] - step  # smoother than the plane, but of the same mean
    assert grey.mean() == pytest.approx(truth.mean(), abs=0.1)
    found, plain = (measure(prepared_composite(scans, 160, standardised=s)) for s in (True, False))
    assert found.flair == pytest.approx(plain.flair, abs=0.1)  # percentiles clip
    assert found.size == pytest.approx(plain.size, rel=0.05)


class Standardised:
    """A segmenter that notes what it is shown, and sees enhancement in all that is bright in FLAIR."""

    name, dimension, version, size, composite_size = "noting", 8, "1", 160, 160
    segments = standardised = True

    def __init__(self) -> None:
        self.shown: list[NDArray[np.uint8]] = []

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.zeros((len(batch), 8), np.float32)

    def segment(
        self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        self.shown.append(batch)
        bright = (batch[:, 3, ::2, ::2] > 127).astype(np.float32)
        return np.stack([0 * bright, 0 * bright, bright], 1)


def test_a_segmenter_sees_deviations_also_of_a_scan_alone() -> None:
    encoder, flair = Standardised(), study()[3]
    assert flair is not None
    found = measure(prepared(flair, WHOLE), ("flair",), encoder)
    alone = encoder.shown.pop()
    together = prepared_composite([None, None, None, flair], 160, standardised=True)
    assert measure(together, encoder=encoder).size == pytest.approx(found.size, rel=0.05)
    difference = alone.astype(int) - encoder.shown.pop()
    assert np.abs(difference).mean() < 2
    assert np.isnan(found.enhancing)  # without contrast agent nobody knows


def test_where_there_is_no_lesion_the_size_is_nought() -> None:
    brain = np.where(np.indices(SHAPE)[0] < 40, 50.0, 100.0) + np.random.default_rng(2).normal(0, 1, SHAPE)
    scan = Scan(np.where(head(), brain, 0), Path("p_flair.nii.gz"), (1.0, 1.0, 1.0), np.eye(4), "flair")
    found = measure(prepared_composite([None, None, None, scan], 160))
    assert found.size == 0
    assert np.isnan(found.numbers[1:]).all()


def test_an_unknown_sequence_says_nothing() -> None:
    scan = study()[0]
    assert scan is not None
    found = measure(prepared(scan, WHOLE), (None,))
    assert np.isnan(found.numbers).all()


@pytest.mark.parametrize("first", [20, 21, 22, 23])
def test_an_outline_is_measured_where_planes_are_left_out(first: int) -> None:
    flair = study()[3]
    assert flair is not None
    region = ball(MIDDLE, RADIUS)
    region[:, :, :first] = False  # so that the largest is another plane
    region[20:30, 20:30, first : first + 3] = True
    thinned = prepared(replace(flair, region=region), replace(WHOLE, apart=4.0))
    assert len(np.unique(np.diff(thinned.positions[thinned.views == 0]))) == 1
    found = measure(thinned, ("flair",))
    assert found.size == pytest.approx(2 * RADIUS, rel=0.2)
    assert found.flair > 1.5


LOW, HIGH = np.array([-91.5, -126.5, -72.5]), np.array([90.5, 91.5, 109.5])
"""Of MNI152, in mm."""


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("middle", "lobe"),
    [((-40, 35, 25), "left frontal"), ((50, -15, -25), "right temporal"), ((-12, -92, 2), "left occipital")],
)
def test_a_lesion_in_a_known_space_lies_in_a_lobe(axis: int, middle: tuple[int, ...], lobe: str) -> None:
    spacing = np.full(3, 2.0)
    spacing[axis] = 4.0
    shape = np.round((HIGH - LOW) / spacing).astype(int)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = LOW + spacing / 2
    at = np.moveaxis(np.indices(shape), 0, -1) * spacing + affine[:3, 3]
    brain = (((at - (0, -18, 10)) / (72, 92, 66)) ** 2).sum(-1) < 1
    voxels = np.random.default_rng(0).normal(100, 10, shape) + 80.0 * (((at - middle) ** 2).sum(-1) < 144)
    (x, y, z) = spacing.tolist()
    scan = Scan(np.where(brain, voxels, 0), Path("p.nii.gz"), (x, y, z), affine, "flair")
    assert scan.axis == axis
    found = measure(prepared(scan, WHOLE), ("flair",))
    assert found.lobe == lobe
    assert Measures.from_vector(found.as_vector()).lobe == lobe
    elsewhere = replace(scan, affine=affine + np.eye(4, k=3) * 30)
    assert measure(prepared(elsewhere, WHOLE), ("flair",)).lobe == ""


def test_vectors_keep_all_and_refuse_other_versions() -> None:
    found = measure(prepared_composite(study(), 160))
    vector = found.as_vector()
    assert vector.dtype == np.float32
    assert len(vector) == 2 + len(NAMES) + PACKED
    again = Measures.from_vector(vector)
    np.testing.assert_array_equal(again.numbers, found.numbers)
    np.testing.assert_array_equal(again.view, found.view)
    vector[0] += 1
    with pytest.raises(ValueError, match="version"):
        Measures.from_vector(vector)


def test_planes_of_unknown_orientation_have_no_place() -> None:
    assert all(np.isnan(measure(prepared_composite(study(affine=False), 160)).place))
    assert len(CHANNELS) == 4
