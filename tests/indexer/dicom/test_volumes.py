"""Volumes of a series: told apart where places are held twice, joined where they are not, or refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from benchmarks import series
from benchmarks.series import image
from indexer import watch
from indexer.discovery import discover, read
from indexer.errors import ReadError
from indexer.readers import dicom, limits
from indexer.readers.dicom.volumes import clustered, is_sweep
from indexer.scan import Scan


def scans(folder: Path, datasets: list[Dataset]) -> list[Scan]:
    series.save(folder, datasets)
    found = discover(folder)
    assert found.failures == []
    return [scan for source in found.sources for scan in read(source)]


def refusal(folder: Path, datasets: list[Dataset]) -> str:
    with pytest.raises(ReadError) as caught:
        scans(folder, datasets)
    return str(caught.value)


def is_volume(scan: Scan, volume: int = 0, places: int = 6) -> bool:
    """Whether a scan has the values of one volume of `series.image`, all in their places."""
    planes = [series.pixels(24, 20, place, volume) for place in range(places)]
    return np.array_equal(scan.voxels, np.stack(planes).transpose(2, 1, 0)[::-1, ::-1])


def numbers(found: list[Scan], places: int = 6) -> list[int]:
    """Which volume each scan is; each has to be one."""
    return [next(v for v in range(200) if is_volume(scan, v, places)) for scan in found]


# --- told apart ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_place", [False, True])
@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("places", [2, 6])
def test_by_instance_numbers_alone(tmp_path: Path, by_place: bool, count: int, places: int) -> None:
    datasets = series.series(places, count, by_place=by_place)
    assert numbers(scans(tmp_path, datasets), places) == list(range(count))


def test_by_instance_numbers_with_holes(tmp_path: Path) -> None:
    datasets = series.series(6, 3)
    for dataset in datasets:
        dataset.InstanceNumber = 100 + 7 * dataset.InstanceNumber
    assert numbers(scans(tmp_path, datasets)) == [0, 1, 2]


def test_slices_acquired_in_turn(tmp_path: Path) -> None:
    """Instance numbers in the order of acquisition: odd slices, then even ones, in each volume."""
    order = [0, 2, 4, 1, 3, 5]
    datasets = [image(p, 6 * t + n + 1, volume=t) for t in range(3) for n, p in enumerate(order)]
    assert numbers(scans(tmp_path, datasets)) == [0, 1, 2]


@pytest.mark.parametrize(
    "keyword", ["TemporalPositionIdentifier", "TemporalPositionIndex", "AcquisitionNumber"]
)
def test_by_a_tag_whatever_the_instance_numbers(tmp_path: Path, keyword: str) -> None:
    places = [(p, t) for t in range(3) for p in range(6)]
    random.Random(1).shuffle(places)
    datasets = [image(p, n, volume=t, **{keyword: t + 1}) for n, (p, t) in enumerate(places, start=1)]
    assert sorted(numbers(scans(tmp_path, datasets))) == [0, 1, 2]


def test_numbers_in_no_order_are_refused(tmp_path: Path) -> None:
    places = [(p, t) for t in range(3) for p in range(6)]
    random.Random(1).shuffle(places)
    datasets = [image(p, n, volume=t) for n, (p, t) in enumerate(places, start=1)]
    assert "12 of its images lie where another one lies" in refusal(tmp_path, datasets)


def test_the_same_number_twice_is_refused(tmp_path: Path) -> None:
    datasets = series.series(6, 2)
    datasets[-1].InstanceNumber = 1
    assert "6 of its images lie where another one lies" in refusal(tmp_path, datasets)


INTERRUPTED: dict[str, Callable[[int], list[Dataset]]] = {
    "by numbers": lambda kept: series.series(6, 4)[: 18 + kept],
    "by time points": lambda kept: series.times(6, 4)[: 18 + kept],
    "announced": lambda kept: [
        d for d in series.series(6, 4, ImagesInAcquisition=24) if d.InstanceNumber <= 18 + kept
    ],
    "announced, ten volumes": lambda kept: series.series(6, 4, ImagesInAcquisition=60)[: 18 + kept],
}


@pytest.mark.parametrize("kept", [1, 5])
@pytest.mark.parametrize("case", INTERRUPTED)
def test_an_interrupted_last_volume_is_left_out(tmp_path: Path, case: str, kept: int) -> None:
    with watch.heard() as notes:
        assert numbers(scans(tmp_path, INTERRUPTED[case](kept))) == [0, 1, 2]
    assert notes == [f"its last volume, number 4, was interrupted ({kept} of 6 slices) and is left out"]


def test_slices_missing_of_two_echoes_are_no_interruption(tmp_path: Path) -> None:
    """The same ones of both: only the headers tell."""
    datasets = [d for d in series.echoes() if d.InstanceNumber <= 8]
    for dataset in datasets:
        dataset.ImagesInAcquisition = 12
    assert "holds 8 of the 12 images" in refusal(tmp_path, datasets)


def test_a_first_volume_is_not_left_out(tmp_path: Path) -> None:
    """Nor are volumes made of the end of one and the beginning of the next."""
    for missing in range(1, 6):
        datasets = series.series(6, 4)[missing:]
        assert "lie where another one lies" in refusal(tmp_path / f"{missing}", datasets)
        ended = datasets[: 18 - 6] + datasets[18 - 6 : 18]
        assert "lie where another one lies" in refusal(tmp_path / f"{missing} ended", ended)
        for number, dataset in enumerate(datasets, start=1):
            dataset.InstanceNumber = number
        assert "lie where another one lies" in refusal(tmp_path / f"{missing} renumbered", datasets)


@given(st.integers(2, 12), st.integers(1, 4), st.booleans(), st.integers(0, 11), st.randoms())
def test_sweeps(places: int, step: int, down: bool, turn: int, rng: random.Random) -> None:
    step = min(step, max(places // 2, 1))
    starts = list(range(step))
    rng.shuffle(starts)
    order = [rank for start in starts for rank in range(start, places, step)]
    if down:
        order = [places - 1 - rank for rank in order]
    assert is_sweep(order, places - 1)
    turned = order[turn % places :] + order[: turn % places]
    if step == 1 and turn % places and places > 2:
        assert not is_sweep(turned, places - 1)


# --- not told apart where nothing asks for it ---------------------------------------------------------

KINDS: dict[str, tuple[str, object, object]] = {
    "image type": ("ImageType", ["ORIGINAL", "PRIMARY", "M", "ND"], ["ORIGINAL", "PRIMARY", "M", "NORM"]),
    "echo number": ("EchoNumbers", 1, 2),
    "b-value": ("DiffusionBValue", 0, 1),
}


@pytest.mark.parametrize("halves", [lambda i: i < 3, lambda i: i % 2, lambda i: i == 4])
@pytest.mark.parametrize("kind", KINDS)
def test_one_even_volume_is_one(tmp_path: Path, kind: str, halves: Callable[[int], bool]) -> None:
    keyword, one, other = KINDS[kind]
    datasets = [image(i, i + 1, **{keyword: one if halves(i) else other}) for i in range(6)]
    assert numbers(scans(tmp_path, datasets)) == [0]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_volumes_are_no_volumes(tmp_path: Path, kind: str) -> None:
    """Two volumes, each with a break in its kind: told apart by their numbers, never cut in four."""
    keyword, one, other = KINDS[kind]
    datasets = [
        image(i, t * 6 + i + 1, volume=t, **{keyword: one if i < 3 else other})
        for t in range(2)
        for i in range(6)
    ]
    assert numbers(scans(tmp_path, datasets)) == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_slice_between_pieces_is_missed(tmp_path: Path, kind: str) -> None:
    keyword, one, other = KINDS[kind]
    datasets = [image(i, i + 1, **{keyword: one if i < 3 else other}) for i in (0, 1, 2, 4, 5, 6)]
    assert "3.00 to 6.00 mm apart" in refusal(tmp_path, datasets)


def test_stacks_of_two_kinds_that_lie_unevenly_together(tmp_path: Path) -> None:
    """An even stack and another one of its own, half a gap aside of every second slice."""
    first = [image(i, i + 1) for i in range(6)]
    derived = ["DERIVED", "PRIMARY", "M", "MEAN"]
    second = [image(i, 10 + i, volume=1, ImageType=derived) for i in range(3)]
    for i, dataset in enumerate(second):
        dataset.ImagePositionPatient[2] = 10.75 + 6.0 * i
        dataset.SpacingBetweenSlices = dataset.SliceThickness = 6
    found = scans(tmp_path, first + second)
    assert sorted(len(scan) for scan in found) == [3, 6]


def test_a_stack_of_some_of_the_places(tmp_path: Path) -> None:
    """A second kind of image at half of the places."""
    first = [image(i, i + 1) for i in range(6)]
    mean = ["DERIVED", "SECONDARY", "M", "MEAN"]
    found = scans(tmp_path, first + [image(i, 10 + i, volume=1, ImageType=mean) for i in (1, 2, 3)])
    assert is_volume(found[0])
    assert len(found[1]) == 3


def test_real_and_imaginary_parts_are_never_one(tmp_path: Path) -> None:
    datasets = [
        image(i, i + 1, ImageType=["ORIGINAL", "PRIMARY", "R" if i % 2 else "I", "ND"]) for i in range(6)
    ]
    assert "6.00 mm apart, the headers say 3.00" in refusal(tmp_path, datasets)


# --- places -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 8), st.integers(2, 20), st.integers(2, 4), st.integers(0, 2**31))
def test_places_are_clustered(gap: float, count: int, times: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    distances = (rng.normal() * 100 + gap * np.arange(count)).repeat(times)
    distances += rng.uniform(-1, 1, len(distances)) * 1e-4 * gap
    order = rng.permutation(len(distances))
    places = clustered(distances[order], 0.02 * gap)
    np.testing.assert_array_equal(places, np.arange(count).repeat(times)[order])


@pytest.mark.parametrize("offset", [0.005, 0.015, 0.01, 0.0149999])
def test_positions_across_a_step_of_rounding(tmp_path: Path, offset: float) -> None:
    datasets = series.series(6, 2)
    for n, dataset in enumerate(datasets):
        z = 10 + offset + 3.0 * (n % 6) + (1e-6 if n >= 6 else -1e-6)
        dataset.ImagePositionPatient = ["-40", "-35", f"{z:.7f}"]
    assert numbers(scans(tmp_path, datasets)) == [0, 1]


def test_microscopic_slices_are_not_one_place(tmp_path: Path) -> None:
    thin = {"SliceThickness": 0.005, "SpacingBetweenSlices": 0.005, "PixelSpacing": [0.005, 0.005]}
    (scan,) = scans(tmp_path, [image(i, i + 1, gap=0.005, **thin) for i in range(6)])
    assert scan.spacing == pytest.approx((0.005, 0.005, 0.005))


# --- a series for each slice --------------------------------------------------------------------------


def apart(datasets: list[Dataset]) -> list[Dataset]:
    for n, dataset in enumerate(datasets):
        dataset.SeriesInstanceUID = f"1.2.3.4.{n}"
    return datasets


def test_a_series_for_each_slice_is_one_volume(tmp_path: Path) -> None:
    series.save(tmp_path, apart(series.stack(6)))
    ((source,), failures) = dicom.series(list(tmp_path.iterdir()), tmp_path)
    assert (len(source.files), source.path, source.series_id, failures) == (6, tmp_path, "1.2.3.4.0", [])
    assert numbers(dicom.read(source)) == [0]


def test_a_series_for_each_slice_of_two_volumes(tmp_path: Path) -> None:
    assert numbers(scans(tmp_path, apart(series.series(6, 2)))) == [0, 1]


def test_a_series_for_each_slice_and_one_missing(tmp_path: Path) -> None:
    datasets = apart(series.stack(6))
    del datasets[2]
    assert "3.00 to 6.00 mm apart" in refusal(tmp_path, datasets)


@pytest.mark.parametrize(
    "differs",
    [
        {"SeriesNumber": 4},
        {"StudyInstanceUID": "1.9"},
        {"PatientID": "other"},
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        {"EchoTime": 90},
        {"FrameOfReferenceUID": "1.8"},
    ],
)
def test_single_images_that_are_no_slices_of_one_volume(tmp_path: Path, differs: dict[str, object]) -> None:
    one, other = apart(series.stack(2))
    for keyword, value in differs.items():
        setattr(other, keyword, value)
    assert [len(scan) for scan in scans(tmp_path, [one, other])] == [1, 1]


# --- many volumes -------------------------------------------------------------------------------------


def nifti(folder: Path, volumes: list[np.ndarray]) -> list[Scan]:
    import nibabel

    folder.mkdir()
    image = nibabel.Nifti1Image(np.stack(volumes, axis=3), np.diag([1.5, 1.25, 3, 1]))
    nibabel.save(image, folder / "x.nii")
    return [scan for source in discover(folder).sources for scan in read(source)]


@pytest.mark.parametrize("count", [2, limits.MAX_VOLUMES, limits.MAX_VOLUMES + 1, 13])
@pytest.mark.parametrize("shape", ["by numbers", "by time points", "diffusion", "enhanced"])
def test_the_same_scans_in_both_formats(tmp_path: Path, shape: str, count: int) -> None:
    datasets = {
        "by numbers": lambda: series.series(6, count),
        "by time points": lambda: series.times(6, count),
        "diffusion": lambda: [
            image(i, t * 6 + i + 1, volume=t, DiffusionBValue=1000.0 * (t > 0))
            for t in range(count)
            for i in range(6)
        ],
        "enhanced": lambda: series.enhanced(6, count),
    }[shape]()
    with watch.heard() as notes:
        found = scans(tmp_path / "dicom", datasets)
    expected = count if count <= limits.MAX_VOLUMES else 1
    assert numbers(found) == list(range(expected))
    assert len(notes) == (expected != count)
    other = nifti(
        tmp_path / "nifti", [np.array(scan.voxels) for scan in found for _ in range(count // len(found))]
    )
    assert len(other) == len(found)
    np.testing.assert_array_equal(other[0].voxels, found[0].voxels)


def test_many_volumes_of_each_echo(tmp_path: Path) -> None:
    """As two files of many volumes would be."""
    datasets = [
        image(i, 1 + i + 6 * (t + 10 * e), volume=t + 10 * e, EchoNumbers=e + 1, EchoTime=20 + 20 * e)
        for e in range(2)
        for t in range(10)
        for i in range(6)
    ]
    assert numbers(scans(tmp_path, datasets)) == [0, 10]


# --- mosaics ------------------------------------------------------------------------------------------


def mosaic(creator: str, block: int, element: int, vr: str, value: object, **tags: object) -> list[Dataset]:
    datasets = series.stack(3, **tags)
    for dataset in datasets:
        dataset.private_block(block, creator, create=True).add_new(element, vr, value)
    return datasets


WORD = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
MOSAICS: dict[str, Callable[[], list[Dataset]]] = {
    "the word": lambda: series.stack(3, ImageType=WORD),
    "Siemens' number": lambda: mosaic("SIEMENS MR HEADER", 0x19, 0x0A, "US", 36),
    "Siemens' number as text": lambda: mosaic("SIEMENS MR HEADER", 0x19, 0x0A, "IS", "36"),
    "both": lambda: mosaic("SIEMENS MR HEADER", 0x19, 0x0A, "US", 36, ImageType=WORD),
    "United Imaging's number": lambda: mosaic("Image Private Header", 0x65, 0x50, "DS", "24"),
    "United Imaging's grid": lambda: mosaic("Image Private Header", 0x65, 0x51, "SQ", [Dataset(), Dataset()]),
}
NO_MOSAICS: dict[str, Callable[[], list[Dataset]]] = {
    "one image in it": lambda: mosaic("SIEMENS MR HEADER", 0x19, 0x0A, "US", 1),
    "someone else's element": lambda: mosaic("GEMS_ACQU_01", 0x19, 0x0A, "US", 36),
    "taken apart into frames": lambda: [with_type(series.enhanced()[0])],
}


def with_type(dataset: Dataset) -> Dataset:
    dataset.ImageType = WORD
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.MRImageFrameTypeSequence[0].FrameType = WORD
    return dataset


@pytest.mark.parametrize("case", MOSAICS)
def test_mosaics_are_refused(tmp_path: Path, case: str) -> None:
    said = refusal(tmp_path, MOSAICS[case]())
    assert said.endswith("holds a volume as a mosaic of tiles; convert it to NIfTI with dcm2niix")


@pytest.mark.parametrize("case", NO_MOSAICS)
def test_what_is_no_mosaic_is_read(tmp_path: Path, case: str) -> None:
    (scan,) = scans(tmp_path, NO_MOSAICS[case]())
    assert is_volume(scan, places=len(scan))


# --- words --------------------------------------------------------------------------------------------


def test_a_decimal_comma_is_named(tmp_path: Path) -> None:
    series.save(tmp_path, series.stack(3))
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes().replace(b"1.25\\1.5", b"1,25\\1,5"))
    with pytest.raises(ReadError, match="its PixelSpacing is written with a decimal comma"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("keyword", "value"), [("ImagePositionPatient", "left"), ("EchoTime", "short"), ("RescaleSlope", "x")]
)
def test_what_is_no_number_is_named(tmp_path: Path, keyword: str, value: str) -> None:
    datasets = series.stack(3)
    for dataset in datasets:
        setattr(dataset, keyword, None)
        dataset[keyword].VR = "LO"
        dataset[keyword].value = value
    assert f"{keyword} is not a number" in refusal(tmp_path, datasets)


def test_numbers_as_another_kind_of_text(tmp_path: Path) -> None:
    datasets = series.stack(6)
    for dataset in datasets:
        dataset["PixelSpacing"].VR = "UT"
        dataset["PixelSpacing"].value = "1.25\\1.5"
    (scan,) = scans(tmp_path, datasets)
    assert scan.spacing == pytest.approx((1.5, 1.25, 3))
