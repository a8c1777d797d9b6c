"""Sequences of one study on one grid: against what the head shows at the voxels of that grid."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexer import discovery, registration
from indexer.alignment import aligned, coarsened, mutual_information, resampled
from indexer.composite import groups
from indexer.errors import ReadError
from indexer.preprocess import Preprocessing, prepared, prepared_composite, window_of
from indexer.scan import Scan
from indexer.sequences import CHANNELS, LEADERS
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

needs_itk = pytest.mark.skipif(
    importlib.util.find_spec("SimpleITK") is None, reason="SimpleITK is missing: pip install 'cbir[register]'"
)
CONTRAST = {"t1": (100.0, 60.0), "t1ce": (100.0, 90.0), "t2": (160.0, -70.0), "flair": (120.0, 50.0)}


def head(points: NDArray[np.float64], sequence: str) -> NDArray[np.float32]:
    """A head of 150 × 180 × 140 mm with smooth structures, at RAS+ points, shape (..., 3)."""
    x, y, z = np.moveaxis(points, -1, 0)
    inside = (x / 75) ** 2 + (y / 90) ** 2 + (z / 70) ** 2 < 1
    level, contrast = CONTRAST[sequence]
    structure = np.sin(x / 7 + 1) * np.cos(y / 6) + np.sin(z / 8 + y / 40) + 0.02 * x
    lesion = np.exp(-((x - 25) ** 2 + (y + 20) ** 2 + (z - 10) ** 2) / (2 * 12**2))
    return np.where(inside, level + contrast * structure / 4 + 60 * lesion + 30, 0).astype(np.float32)


def grid(
    spacing: tuple[float, float, float], turn: float = 0.0, shift: tuple[float, float, float] = (0, 0, 0)
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of a box of 190 × 220 × 170 mm, turned about the left-right axis by degrees."""
    x, y, z = (round(n / mm) for n, mm in zip((190, 220, 170), spacing, strict=True))
    a = np.deg2rad(turn)
    rotation = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing)
    affine[:3, 3] = np.array(shift) - affine[:3, :3] @ ((np.array((x, y, z)) - 1) / 2)
    return (x, y, z), affine


def points_of(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.asarray(nib.affines.apply_affine(affine, places))


def scan_of(
    sequence: str,
    spacing: tuple[float, float, float] = (3, 3, 3),
    turn: float = 0.0,
    shift: tuple[float, float, float] = (0, 0, 0),
    motion: NDArray[np.float64] | None = None,
    **other: Any,
) -> Scan:
    """A scan of the head; after a motion of the patient, who is then not where the headers say."""
    shape, affine = grid(spacing, turn, shift)
    points = points_of(shape, affine)
    if motion is not None:
        points = np.asarray(nib.affines.apply_affine(np.linalg.inv(motion), points))
    told = {"sequence": sequence, "spacing": spacing, "affine": affine, "patient_id": "P", "study_id": "S"}
    return Scan(head(points, sequence), Path(sequence), **(told | other))


def moved_by(shift: tuple[float, float, float], turn: float) -> NDArray[np.float64]:
    a, motion = np.deg2rad(turn), np.eye(4)
    motion[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    motion[:3, 3] = shift
    return motion


def error(found: Scan, sequence: str) -> float:
    """Mean difference from the head at the voxels' places, over the head's own spread, away from its edge."""
    assert found.affine is not None
    points = points_of(found.voxels.shape, found.affine)
    deep = ((points / (75, 90, 70)) ** 2).sum(-1) < 0.75
    truth = head(points, sequence)[deep]
    return float(np.abs(found.voxels[deep] - truth).mean() / np.abs(truth - truth.mean()).mean())


def test_each_sequence_shows_what_the_head_shows_there() -> None:
    scans = [
        scan_of("t1", (1.8, 1.8, 5), 8, (3, -4, 1)),
        scan_of("t1ce", (2, 2, 2)),
        scan_of("t2", (1.2, 1.2, 4), 12, (-2, 5, 2)),
        scan_of("flair", (1.8, 1.8, 5), 10, (5, 2, -2)),
    ]
    found = aligned(scans, LEADERS, 96)
    assert found.left_out == {}
    assert set(found.scans) == set(CHANNELS)
    for sequence, scan in found.scans.items():
        assert scan.voxels.shape == found.scans["flair"].voxels.shape
        np.testing.assert_allclose(scan.affine, found.scans["flair"].affine)
        assert error(scan, sequence) < 0.06, sequence


@settings(max_examples=6)
@given(
    turn=st.floats(-20, 20),
    shift=st.tuples(*[st.floats(-10, 10)] * 3),
    spacing=st.sampled_from([(3.0, 3.0, 3.0), (2.0, 2.0, 4.0), (4.0, 2.0, 2.5)]),
)
def test_wherever_the_other_grid_lies(
    turn: float, shift: tuple[float, float, float], spacing: tuple[float, float, float]
) -> None:
    flair = scan_of("flair", (2, 2, 4))
    found = aligned([scan_of("t2", spacing, turn, shift), flair], LEADERS, 96)
    assert error(found.scans["t2"], "t2") < 0.08


def test_what_lies_on_the_grid_already_is_not_touched() -> None:
    flair, t1 = scan_of("flair"), scan_of("t1")
    found = aligned([t1, flair], LEADERS, 300)
    assert found.scans["flair"] is flair
    assert found.scans["t1"] is t1


def test_thick_slices_show_their_middle_of_a_finer_scan_and_wide_pixels_a_mean() -> None:
    shape, affine = grid((1, 2, 2))
    stripes = np.zeros(shape, np.float32)
    stripes[::2] = 100
    fine = Scan(stripes, Path("t1"), spacing=(1, 2, 2), affine=affine, sequence="t1")
    seen = resampled(fine, scan_of("flair", (6, 2, 6))).voxels
    assert np.abs(seen[8:20, 40:60, 8:20] - 50).max() < 12, "nothing is skipped in the plane"
    flair = scan_of("flair", (2, 2, 6))
    shape, affine = grid((2, 2, 1))
    sheet = np.zeros(shape, np.float32)
    assert flair.affine is not None
    place = np.linalg.inv(affine) @ flair.affine @ (0, 0, 14, 1)
    sheet[:, :, round(place[2]) - 1 : round(place[2]) + 2] = 100  # as thick as half of a slice
    thin = Scan(sheet, Path("t1"), spacing=(2, 2, 1), affine=affine, sequence="t1")
    middle = resampled(thin, flair).voxels[40:60, 40:60]
    assert middle[..., 14].min() > 95, "of a thick slice the middle is seen"
    assert middle[..., [13, 15]].max() < 5


def linear(scan: Scan, grid: Scan) -> NDArray[np.float32]:
    """A scan at the voxels of a grid, by lines."""
    image = nib.Nifti1Image(scan.voxels.astype(np.float32), scan.affine)
    found = nib.processing.resample_from_to(image, (grid.voxels.shape, grid.affine), order=1)
    return np.asarray(found.dataobj)


def test_splines_stay_within_the_intensities_and_leave_the_background_as_it_is() -> None:
    skull_stripped = scan_of("t1", (2, 2, 6))
    inside = skull_stripped.voxels > 0
    scores = np.where(inside, skull_stripped.voxels - 130, 0)  # as of z-scores: the background lies amid them
    grid = scan_of("flair", (2, 2, 5), 9)
    seen = resampled(replace(skull_stripped, voxels=scores.astype(np.float32)), grid).voxels
    assert scores.min() <= seen.min() < -30
    assert 20 < seen.max() <= scores.max()
    assert not seen[linear(replace(skull_stripped, voxels=inside), grid) == 0].any(), "no ripples in the air"
    noisy = skull_stripped.voxels + np.random.default_rng(0).uniform(0, 2, inside.shape).astype(np.float32)
    air = resampled(replace(skull_stripped, voxels=noisy), grid).voxels[2:6]
    assert 0 <= air.min() < 1 < air.max() < 3, "noise stays noise"


def test_a_pixel_that_is_averaged_shows_the_edge_of_the_head() -> None:
    fine, wide = scan_of("t1", (0.8, 2, 2)), scan_of("flair", (6.4, 6.4, 2))
    even = replace(fine, voxels=np.where(fine.voxels > 0, 100, 0).astype(np.float32))
    seen = resampled(even, wide)
    assert fine.affine is not None
    assert seen.affine is not None
    sums = [scan.voxels.sum() * abs(np.linalg.det(scan.affine[:3, :3])) for scan in (even, seen)]
    assert sums[1] == pytest.approx(sums[0], rel=0.004)


def test_between_thick_planes_splines_show_more_than_lines() -> None:
    thick, fine = scan_of("t1", (1.5, 1.5, 6)), scan_of("flair", (1.5, 1.5, 2))
    found = resampled(thick, fine)
    lines = replace(found, voxels=linear(thick, fine))
    assert error(found, "t1") < 0.6 * error(lines, "t1")


def test_pixels_are_no_finer_than_the_images_that_are_made_of_them() -> None:
    fine = scan_of("flair", (0.8, 0.8, 5))
    coarse = coarsened(fine, 64)
    assert coarse.voxels.shape[2] == fine.voxels.shape[2]
    assert max(coarse.voxels.shape[:2]) <= 2 * 64 + 1
    assert error(coarse, "flair") < 0.05
    assert coarsened(fine, 300) is fine


def test_axial_planes_lead_and_of_two_scans_of_a_sequence_the_finer_one_comes_along() -> None:
    sagittal = scan_of("flair", (5, 2, 2))
    axial, coarse, fine = scan_of("t2", (2, 2, 5)), scan_of("t1", (5, 5, 5)), scan_of("t1", (2.5, 2.5, 2.5))
    found = aligned([sagittal, coarse, axial, fine], LEADERS, 96)
    assert next(iter(found.scans)) == "t2"
    assert error(found.scans["t1"], "t1") < error(aligned([coarse, axial], LEADERS, 96).scans["t1"], "t1")


def test_another_part_of_the_body_is_left_out_and_says_so() -> None:
    below = scan_of("t2", (2, 2, 2), shift=(0, 0, -120))
    found = aligned([scan_of("flair", (2, 2, 4)), scan_of("t1"), below], LEADERS, 96)
    assert set(found.scans) == {"flair", "t1"}
    assert "% of what the flair shows" in found.left_out["t2"]


@needs_itk
@pytest.mark.parametrize(("shift", "turn"), [((6.0, -5.0, 4.0), 0.0), ((2.0, 3.0, 0.0), -9.0)])
def test_a_patient_who_moved_is_brought_back(shift: tuple[float, float, float], turn: float) -> None:
    moved = scan_of("t2", motion=moved_by(shift, turn))
    found = aligned([scan_of("flair", (2, 2, 4)), moved], LEADERS, 96)
    assert found.left_out == {}
    assert error(found.scans["t2"], "t2") < 0.12
    assert error(resampled(moved, found.scans["flair"]), "t2") > 0.2


@needs_itk
def test_a_motion_is_found_to_a_millimetre() -> None:
    motion = moved_by((6.0, -5.0, 4.0), 8.0)
    found = registration.rigid(scan_of("t1", motion=motion), scan_of("t1ce"))
    corners = np.array([[-60.0, -70, -50], [60, 70, 50], [0, 0, 0]])
    back = nib.affines.apply_affine(found @ motion, corners)
    assert np.abs(back - corners).max() < 1.0


def test_without_the_package_a_moved_scan_is_left_out_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    moved = scan_of("t2", motion=moved_by((8, 0, 0), 5))
    found = aligned([scan_of("flair", (3, 3, 4)), moved], LEADERS, 96)
    assert set(found.scans) == {"flair"}
    assert found.left_out["t2"] == "was taken after the patient moved"


def test_other_frames_need_a_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = scan_of("t2", frame="1.2.3"), scan_of("flair", (2, 2, 4), frame="1.2.4")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert aligned([here, there], LEADERS, 96).left_out == {"t2": "lies in another frame of reference"}
    unsaid = replace(there, frame="")
    assert aligned([here, unsaid], LEADERS, 96).left_out == {}


@pytest.mark.parametrize("frame", ["", "1.2.4"])
def test_a_registration_that_explains_no_more_is_not_taken(
    frame: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(registration, "rigid", lambda scan, onto: moved_by((0, 25, 10), 15))
    moved = scan_of("t2", motion=moved_by((7, 0, 0), 5), frame=frame)
    found = aligned([scan_of("flair", (3, 3, 4), frame="1.2.3"), moved], LEADERS, 96)
    assert set(found.scans) == {"flair"}
    assert found.left_out["t2"].endswith("no registration brings it back")


def test_mutual_information_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, 400), rng.integers(0, 4, 400)
    joint = np.zeros((4, 4))
    np.add.at(joint, (x, y), 1 / 400)

    def entropy(p: NDArray[Any]) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    expected = (entropy(joint.sum(0)) + entropy(joint.sum(1))) / entropy(joint)
    assert mutual_information(x, y) == pytest.approx(expected, abs=1e-5)


def test_visits_are_never_mixed() -> None:
    first, second = scan_of("t1", (2, 2, 5)), scan_of("flair", study_id="later")
    assert list(groups([first, second], 96)) == []


def test_a_complete_grid_is_not_resampled_for_a_second_one() -> None:
    lesions = [scan_of(s, shift=shift) for shift in ((0, 0, 0), (9, 0, 0)) for s in ("t1", "flair")]
    found = [group.scans for group in groups(lesions, 300)]
    assert [[s for s in scans if s is not None] for scans in found] == [lesions[:2], lesions[2:]]


def test_what_shows_nothing_takes_no_other_along() -> None:
    black = scan_of("flair", (2, 2, 4))
    black = replace(black, voxels=np.zeros_like(black.voxels))
    assert list(groups([black, scan_of("t1")], 96)) == []
    together = [scan_of("t1"), scan_of("t1ce"), black]
    (group,) = groups(together, 96)
    assert [s.sequence for s in group.scans if s is not None] == ["t1", "t1ce"]


def test_a_region_comes_along() -> None:
    t2 = scan_of("t2", (1.5, 1.5, 4), 10)
    assert t2.affine is not None
    centre = np.array([25, -20, 10])
    region = np.linalg.norm(points_of(t2.voxels.shape, t2.affine) - centre, axis=-1) < 15
    found = aligned([scan_of("flair", (2, 2, 4)), replace(t2, region=region)], LEADERS, 96)
    brought = found.scans["t2"]
    assert brought.region is not None
    assert brought.affine is not None
    places = points_of(brought.voxels.shape, brought.affine)[brought.region]
    np.testing.assert_allclose(places.mean(axis=0), centre, atol=1.5)


@pytest.mark.real
def test_a_study_as_the_scanner_sends_it_is_the_volumes_it_was_made_of(real: Path, tmp_path: Path) -> None:
    """DICOM series, each on a grid of its own; composites of both are compared picture by picture."""
    names = ("TCGA-HT-7473",)
    tool = ROOT.parent / "shared" / "tools" / "as-the-scanner-sends"
    subprocess.run(
        [sys.executable, tool, real / "volumes", tmp_path, *names], check=True, capture_output=True
    )
    for name in names:
        (sent,) = groups(discovery.read(tmp_path / name), 96)
        assert sent.left_out == {}
        leader = sent.scans[CHANNELS.index("flair")]
        assert leader is not None
        for scan in sent.scans:
            assert scan is not None
            whole = nib.load(real / "volumes" / name / f"{name}_{scan.sequence}.nii.gz")
            truth = nib.processing.resample_from_to(whole, (leader.voxels.shape, leader.affine), order=1)
            inside = truth.get_fdata() > 0
            assert np.corrcoef(scan.voxels[inside], truth.get_fdata()[inside])[0, 1] > 0.9, scan.sequence
        assert prepared_composite(sent.scans, 96).pixels.shape[1:] == (4, 96, 96)


def test_a_registration_that_fails_says_whose(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(-9, "registration")

    monkeypatch.setattr(subprocess, "run", killed)
    with pytest.raises(ReadError, match=r"^t1: cannot be registered"):
        registration.rigid(scan_of("t1"), scan_of("t2"))


def test_what_is_resampled_keeps_the_greys_that_it_had() -> None:
    """The brightest vessels of fine planes are lost in the mean over a thick one; the brain stays as dark."""
    fine = scan_of("t1", (2, 2, 2))
    bright = fine.voxels.copy()
    bright[::4, ::3, ::3] *= np.where(bright[::4, ::3, ::3] > 0, 4, 1)  # 3 % of the head
    vessels = replace(fine, voxels=bright)
    seen = resampled(vessels, scan_of("flair", (2, 2, 6)))
    assert seen.voxels.max() < 0.8 * bright.max()
    assert seen.window is not None
    np.testing.assert_allclose(seen.window, window_of(vessels))
    again = resampled(seen, scan_of("flair", (3, 3, 6)))
    assert again.window == seen.window
    shown = prepared_composite([seen, None, None, None], 96).pixels[:, 0]
    alone = prepared_composite([replace(seen, window=None), None, None, None], 96).pixels[:, 0]
    before = prepared(vessels, Preprocessing(96)).pixels
    middle = np.s_[:, 30:66, 30:66]
    greys = [
        np.median(images[len(images) // 3 : -len(images) // 3][middle]) for images in (before, shown, alone)
    ]
    assert abs(greys[1] - greys[0]) < 10 < greys[2] - greys[0]
