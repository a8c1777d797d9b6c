"""DICOM: volumes whose voxels say where they lie, and everything that must be refused."""

from __future__ import annotations

import pickle
import random
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gdcm
import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openjpeg.utils import encode_array
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from indexer.errors import ReadError
from indexer.readers import dicom
from indexer.readers.dicom import headers, pixels
from indexer.readers.source import Source
from indexer.scan import Scan
from tests.support.paths import REAL

AXIAL = (1, 0, 0, 0, 1, 0)
CORONAL = (1, 0, 0, 0, 0, -1)
SAGITTAL = (0, 1, 0, 0, 0, -1)
OBLIQUE = tuple(Rotation.from_euler("xyz", [20, -15, 30], degrees=True).as_matrix()[:, :2].T.ravel())
SLOPE, INTERCEPT = 0.25, -500.0


def field(ras: np.ndarray) -> np.ndarray:
    """A value for every point of the patient (RAS+ mm), so that a voxel tells where it lies."""
    return 100 + 2.0 * ras[..., 0] - 3.0 * ras[..., 1] + 5.0 * ras[..., 2]


def plane(
    position: Sequence[float], number: int, orientation: Sequence[float] = AXIAL, **tags: Any
) -> Dataset:
    """An MR image whose pixels are `field` at their places. Tags set to None are left out."""
    rows, columns, (between_rows, between_columns) = tags.pop("Rows", 9), tags.pop("Columns", 7), (1.5, 0.8)
    along_row, along_column = np.array(orientation, float).reshape(2, 3)
    r, c = np.mgrid[:rows, :columns][..., None].astype(float)
    lps = np.array(position) + c * between_columns * along_row + r * between_rows * along_column
    stored = np.round((field(lps * [-1, -1, 1]) - INTERCEPT) / SLOPE).astype("<i2")
    dataset = Dataset()
    values = {
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "FrameOfReferenceUID": "1.2.3.5",
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
        "PatientID": "P-7",
        "InstanceNumber": number,
        "ImagePositionPatient": [f"{x:.6f}" for x in position],
        "ImageOrientationPatient": [f"{x:.10f}" for x in orientation],
        "PixelSpacing": [between_rows, between_columns],
        "SliceThickness": 2,
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleSlope": SLOPE,
        "RescaleIntercept": INTERCEPT,
        "PixelData": stored.tobytes(),
    } | tags
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def stack(n: int = 6, gap: float = 2.0, orientation: Sequence[float] = AXIAL, **tags: Any) -> list[Dataset]:
    """A series of planes along their normal. A tag may be a tuple with a value for each plane."""
    normal = np.cross(orientation[:3], orientation[3:])
    origin = np.array([-20.0, 11.0, 35.0])
    each = [{k: v[i] if isinstance(v, tuple) else v for k, v in tags.items()} for i in range(n)]
    return [plane(origin + i * gap * normal, i + 1, orientation, **each[i]) for i in range(n)]


def save(
    datasets: Sequence[Dataset], folder: Path, name: str = "IM{:04d}.dcm", shuffle: bool = True
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = list(range(len(datasets)))
    if shuffle:
        random.Random(0).shuffle(numbers)
    files = [folder / name.format(number) for number in numbers]
    for file, dataset in zip(files, datasets, strict=True):
        dataset.save_as(file, enforce_file_format=True)
    return files


def only(folder: Path) -> Source:
    sources, failures = dicom.series([f for f in folder.rglob("*") if f.is_file()], folder)
    assert failures == []
    assert len(sources) == 1
    return sources[0]


def scans(datasets: Sequence[Dataset], folder: Path) -> list[Scan]:
    save(datasets, folder)
    return dicom.read(only(folder))


def refusal(datasets: Sequence[Dataset], folder: Path) -> str:
    """The one line for which a series is refused."""
    save(datasets, folder)
    with pytest.raises(ReadError) as caught:
        dicom.read(only(folder))
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_in_place(scan: Scan, atol: float = 0.15) -> None:
    """Every voxel has the field's value at the place where the affine puts it, and the axes are RAS+."""
    assert scan.affine is not None
    assert nibabel.aff2axcodes(scan.affine) == ("R", "A", "S")
    places = np.stack(np.indices(scan.voxels.shape), axis=-1) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    np.testing.assert_allclose(scan.voxels, field(places), atol=atol)
    np.testing.assert_allclose(scan.spacing, np.linalg.norm(scan.affine[:3, :3], axis=0))


def in_ras(volume: highdicom.Volume) -> nibabel.Nifti1Image:
    """highdicom's answer, canonical."""
    affine = np.diag([-1, -1, 1, 1]) @ volume.affine
    return nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.array, affine))


def legacy(datasets: Sequence[Dataset]) -> Dataset:
    """The same images as one multi-frame object."""
    for dataset in datasets:
        for keyword in (
            "PatientName",
            "PatientBirthDate",
            "PatientSex",
            "StudyDate",
            "StudyTime",
            "AccessionNumber",
        ):
            setattr(dataset, keyword, getattr(dataset, keyword, ""))
        dataset.StudyID, dataset.Manufacturer, dataset.BodyPartExamined = "1", "none", "HEAD"
        dataset.ReferringPhysicianName, dataset.PositionReferenceIndicator = "", ""
        dataset.PatientPosition, dataset.Laterality, dataset.SeriesNumber = "HFS", "", 1
        dataset.VolumetricProperties = "VOLUME"
    enhanced = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        datasets, datasets[0].SeriesInstanceUID, 1, generate_uid(), 1
    )
    return enhanced


# --- volumes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, OBLIQUE])
@pytest.mark.parametrize("gap", [2.0, -3.5])
def test_volume_is_in_place(tmp_path: Path, orientation: tuple[float, ...], gap: float) -> None:
    datasets = stack(gap=gap, orientation=orientation, SliceThickness=abs(gap))
    save(datasets, tmp_path, name="{}")
    (scan,) = dicom.read(only(tmp_path))
    assert_in_place(scan)
    assert sorted(scan.voxels.shape) == [6, 7, 9]
    assert sorted(scan.spacing) == pytest.approx([0.8, 1.5, abs(gap)])
    assert (scan.patient_id, scan.study_id, scan.series_id) == ("P-7", "1.2.3", "1.2.3.4")
    assert (scan.modality, scan.source, scan.voxels.dtype) == ("MR", tmp_path, np.float32)


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, OBLIQUE])
def test_same_as_highdicom_and_as_plain_stacking(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    datasets = stack(orientation=orientation)
    (scan,) = scans(datasets, tmp_path)
    theirs = in_ras(highdicom.get_volume_from_series(random.Random(1).sample(datasets, len(datasets))))
    first, row, column = datasets[0], *np.array(orientation).reshape(2, 3)
    step = np.subtract(datasets[1].ImagePositionPatient, first.ImagePositionPatient).astype(float)
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * 0.8, column * 1.5, step, np.array(first.ImagePositionPatient, float)])
    planes = np.stack([d.pixel_array * SLOPE + INTERCEPT for d in datasets], axis=-1).transpose(1, 0, 2)
    plain = nibabel.as_closest_canonical(nibabel.Nifti1Image(planes, np.diag([-1, -1, 1, 1]) @ affine))
    for other in (theirs, plain):
        np.testing.assert_allclose(scan.affine, other.affine, atol=1e-4)
        np.testing.assert_array_equal(scan.voxels, other.get_fdata())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.floats(0.5, 6))
def test_any_orientation(tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, gap: float) -> None:
    turned = Rotation.random(random_state=seed % 2**31).as_matrix()
    (scan,) = scans(
        stack(n, gap, tuple(turned[:, :2].T.ravel()), SliceThickness=gap), tmp_path_factory.mktemp("s")
    )
    assert_in_place(scan)


def test_slope_of_each_plane_counts(tmp_path: Path) -> None:
    datasets = stack()
    datasets[2].RescaleSlope = SLOPE / 2
    datasets[2].PixelData = (np.frombuffer(datasets[2].PixelData, "<i2") * 2).astype("<i2").tobytes()
    (scan,) = scans(datasets, tmp_path)
    assert_in_place(scan)


def test_ct_is_in_hounsfield_units(tmp_path: Path) -> None:
    stored = np.full((2, 2), 24, "<u2")
    stored[1] = 1064
    tags = {
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "Rows": 2,
        "Columns": 2,
        "PixelData": stored.tobytes(),
    }
    (scan,) = scans(
        stack(
            3,
            **tags,
            PixelRepresentation=0,
            RescaleSlope=1,
            RescaleIntercept=-1024,
            PhotometricInterpretation="MONOCHROME1",
        ),
        tmp_path,
    )
    assert (scan.modality, scan.sequence) == ("CT", None)
    # rows run to the back: the first one, air, is in front
    np.testing.assert_array_equal(scan.voxels[:, 1], -1000)
    np.testing.assert_array_equal(scan.voxels[:, 0], 40)


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
        JPEGLosslessSV1,
    ],
)
def test_transfer_syntaxes(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    datasets = stack(Rows=32, Columns=32)
    for dataset in datasets:
        if syntax == JPEG2000Lossless:
            coded = encode_array(dataset.pixel_array, photometric_interpretation=2)
            dataset.PixelData = encapsulate([coded])
        elif syntax in (RLELossless, JPEGLSLossless):
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = syntax if syntax != JPEGLosslessSV1 else ExplicitVRLittleEndian
    files = save(datasets, tmp_path)
    if syntax == JPEGLosslessSV1:
        for file in files:
            recode_with_gdcm(file)
    assert {pydicom.dcmread(file).file_meta.TransferSyntaxUID for file in files} == {syntax}
    (scan,) = dicom.read(only(tmp_path))
    assert_in_place(scan)


def recode_with_gdcm(file: Path) -> None:
    reader, writer = gdcm.ImageReader(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(file))
    assert writer.Write()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_without_preamble(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    for i, dataset in enumerate(stack()):
        del dataset.file_meta
        dataset.save_as(
            tmp_path / f"{i}",
            implicit_vr=syntax.is_implicit_VR,
            little_endian=True,
            enforce_file_format=False,
        )
    assert all(dicom.is_dicom(file) for file in tmp_path.iterdir())
    (scan,) = dicom.read(only(tmp_path))
    assert_in_place(scan)


# --- enhanced -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE])
def test_enhanced_is_the_same_as_classic(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    datasets = stack(orientation=orientation)
    (classic,) = scans(datasets, tmp_path / "classic")
    save([legacy(random.Random(3).sample(datasets, len(datasets)))], tmp_path / "enhanced")
    source = only(tmp_path / "enhanced")
    (scan,) = dicom.read(source)
    assert source.path == source.files[0]
    np.testing.assert_array_equal(scan.voxels, classic.voxels)
    np.testing.assert_allclose(scan.affine, classic.affine)
    theirs = in_ras(highdicom.imread(source.files[0]).get_volume())
    np.testing.assert_allclose(scan.affine, theirs.affine, atol=1e-4)
    np.testing.assert_array_equal(scan.voxels, theirs.get_fdata())


def enhanced(times: int = 2, n: int = 4) -> Dataset:
    """Enhanced MR with frames of several time points and echoes mixed; each adds 1000 × time + 100 × echo."""
    frames = [(t, e, i) for t in range(times) for e in range(2) for i in range(n)]
    random.Random(5).shuffle(frames)
    classic = stack(n)
    dataset = plane((0, 0, 0), 1, SOPClassUID=EnhancedMRImageStorage, NumberOfFrames=len(frames))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, keyword)
    del dataset.RescaleSlope, dataset.RescaleIntercept
    shared, measures, orientation, contrast = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [1.5, 0.8], 2, 2
    orientation.ImageOrientationPatient = list(AXIAL)
    contrast.RepetitionTime, contrast.EchoPulseSequence = 4000, "SPIN"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.MRTimingAndRelatedParametersSequence = [contrast]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for t, e, i in frames:
        place, content, echo, values = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = classic[i].ImagePositionPatient
        content.TemporalPositionIndex, content.StackID, content.InStackPositionNumber = t + 1, "1", i + 1
        echo.EffectiveEchoTime = 20.0 + 80.0 * e
        values.RescaleSlope, values.RescaleIntercept = SLOPE, INTERCEPT + 1000 * t + 100 * e
        group = Dataset()
        group.PlanePositionSequence, group.FrameContentSequence = [place], [content]
        group.MREchoSequence, group.PixelValueTransformationSequence = [echo], [values]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.PixelData = b"".join(classic[i].PixelData for _, _, i in frames)
    return dataset


def test_enhanced_with_echoes_and_times(tmp_path: Path) -> None:
    result = scans([enhanced()], tmp_path)
    added = []
    for scan in result:
        added.append(round(float(scan.voxels[0, 0, 0] - field(scan.affine[:3, 3]))))
        scan.voxels[...] -= added[-1]
        assert_in_place(scan)
    assert sorted(added) == [0, 100, 1000, 1100]
    assert [scan.sequence for scan, plus in zip(result, added, strict=True) if plus % 1000 == 0] == [
        "pd",
        "pd",
    ]
    assert [scan.sequence for scan, plus in zip(result, added, strict=True) if plus % 1000] == ["t2", "t2"]


@pytest.mark.parametrize("extended", [False, True])
def test_enhanced_compressed(tmp_path: Path, extended: bool) -> None:
    plain = scans([enhanced()], tmp_path / "plain")
    dataset = enhanced()
    dataset.compress(RLELossless, encapsulate_ext=extended)
    for one, other in zip(scans([dataset], tmp_path / "coded"), plain, strict=True):
        np.testing.assert_array_equal(one.voxels, other.voxels)


def test_concatenation(tmp_path: Path) -> None:
    """A multi-frame object in two files; one of them alone is refused."""
    datasets = stack()
    halves = [legacy(datasets[:2]), legacy(datasets[2:])]
    for number, half in enumerate(halves, start=1):
        half.ConcatenationUID, half.InConcatenationNumber, half.InConcatenationTotalNumber = "1.9", number, 2
    (scan,) = scans(halves, tmp_path / "whole")
    assert_in_place(scan)
    assert "holds 1 of the 2 images" in refusal(halves[1:], tmp_path / "half")


def test_enhanced_with_a_frame_too_few(tmp_path: Path) -> None:
    dataset = enhanced()
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[1:]
    assert "declares 16 frames and describes 15" in refusal([dataset], tmp_path / "described")
    dataset = enhanced()
    dataset.PixelData = dataset.PixelData[:-126]
    assert "pixel data" in refusal([dataset], tmp_path / "held")
    dataset = enhanced()
    dataset.compress(RLELossless)
    dataset.PixelData = encapsulate(list(generate_frames(dataset.PixelData, number_of_frames=16))[:-1])
    assert "holds 15 of the 16 frames" in refusal([dataset], tmp_path / "coded")


# --- refused ------------------------------------------------------------------------------------------


def without(*missing: int, **tags: Any) -> list[Dataset]:
    return [dataset for i, dataset in enumerate(stack(**tags)) if i not in missing]


def moved(index: int, by: Sequence[float]) -> list[Dataset]:
    datasets = stack()
    datasets[index].ImagePositionPatient = list(np.add(datasets[index].ImagePositionPatient, by))
    return datasets


def tilted(degrees: float) -> list[Dataset]:
    datasets = stack()
    for i, dataset in enumerate(datasets):
        shift = i * 2.0 * np.tan(np.radians(degrees))
        dataset.ImagePositionPatient = list(np.add(dataset.ImagePositionPatient, [0, shift, 0]))
    return datasets


BAD: dict[str, tuple[Callable[[], list[Dataset]], str]] = {
    "missing middle slice": (lambda: without(2), "2.00 to 4.00 mm apart"),
    "uneven gap": (lambda: moved(3, (0, 0, 0.4)), "1.60 to 2.40 mm apart"),
    "shifted in its plane": (lambda: moved(3, (3, 0, 0)), "right angles"),
    "tilted gantry": (lambda: tilted(12), "right angles"),
    "slightly tilted gantry": (lambda: tilted(2.3), "right angles"),
    "same place, other image": (
        lambda: [*stack(), *stack()[2:3]],
        "1 of its images lie where another one lies",
    ),
    "everything twice": (lambda: stack() + stack(), "6 of its images lie where another one lies"),
    "localizer": (lambda: [*stack(), *stack(1, orientation=SAGITTAL)], "several orientations"),
    "other size": (lambda: [*stack(5), *stack(Rows=8)[5:]], "differ in size"),
    "other spacing": (
        lambda: stack(PixelSpacing=([1.5, 0.8],) * 5 + ([1.5, 1.0],)),
        "differ in pixel spacing",
    ),
    "other frame of reference": (
        lambda: stack(FrameOfReferenceUID=("1.1",) * 3 + ("1.2",) * 3),
        "frames of reference",
    ),
    "half of two echoes each": (lambda: stack(EchoTime=(10, 80) * 3), "several echo times"),
    "two patients": (lambda: stack(PatientID=("a",) * 3 + ("b",) * 3), "several patients"),
    "two studies": (lambda: stack(StudyInstanceUID=("1.1",) * 3 + ("1.2",) * 3), "several studies"),
    "every second slice": (
        lambda: without(1, 3, 5, SpacingBetweenSlices=2),
        "4.00 mm apart, the headers say 2.00",
    ),
    "every second of 3-D": (
        lambda: without(1, 3, 5, MRAcquisitionType="3D"),
        "4.00 mm apart, the headers say 2.00",
    ),
    "last slices": (lambda: without(4, 5, ImagesInAcquisition=6), "holds 4 of the 6 images"),
    "first slice": (lambda: without(0, NumberOfSeriesRelatedInstances=6), "holds 5 of the 6 images"),
    "slices of a PET": (lambda: stack(Modality="PT", NumberOfSlices=8), "holds 6 of the 8 images"),
    "all but one": (lambda: stack(ImagesInAcquisition=6)[3:4], "holds 1 of the 6 images"),
    "no position": (lambda: stack(ImagePositionPatient=None), "position, orientation or pixel spacing"),
    "no orientation": (lambda: stack(ImageOrientationPatient=None), "position, orientation or pixel spacing"),
    "no pixel spacing": (lambda: stack(PixelSpacing=None), "position, orientation or pixel spacing"),
    "pixels of no size": (lambda: stack(PixelSpacing=[0, 0]), "position, orientation or pixel spacing"),
    "some without position": (lambda: [*stack(4), *stack(ImagePositionPatient=None)[4:]], "only some"),
    "skewed orientation": (lambda: stack(ImageOrientationPatient=[1, 0, 0, 0.5, 0.5, 0]), "perpendicular"),
    "no rows": (lambda: stack(Rows=0, PixelData=b"\0\0"), "holds no image"),
    "no pixel data": (lambda: stack(PixelData=None), "no pixel data"),
    "short pixel data": (lambda: stack(PixelData=b"\0\0" * 10), "pixel data"),
    "more pixel data than declared": (lambda: stack(PixelData=b"\0\1" * 126), "another size"),
    "too large": (lambda: [declaring(60000, 60000)], "limit"),
    "too large together": (lambda: [declaring(20000, 20000), declaring(20000, 20000)], "limit"),
    "slope of nothing": (lambda: stack(RescaleSlope=0), "slope is 0"),
    "all the same": (lambda: stack(PixelData=b"\0\0" * 63), "the same value"),
    "mosaic": (lambda: stack(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "mosaic"),
}


def declaring(rows: int, columns: int) -> Dataset:
    dataset = plane((0, 0, 0), 1)
    dataset.Rows, dataset.Columns = rows, columns
    return dataset


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("case", BAD)
def test_refused(tmp_path: Path, case: str) -> None:
    build, reason = BAD[case]
    assert reason in refusal(build(), tmp_path)


def test_words_for_numbers(tmp_path: Path) -> None:
    for file in save(stack(), tmp_path):
        file.write_bytes(file.read_bytes().replace(b"35.000000", b"thirtyfiv"))
    with pytest.raises(ReadError, match="header is damaged|headers are damaged") as caught:
        dicom.read(only(tmp_path))
    assert "thirty" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 100, 140, 300, 600, 750, -20])
def test_truncated(tmp_path: Path, kept: int) -> None:
    """A truncated file fails in one of the two steps, whatever was lost, and is named."""
    (file,) = save(stack(1), tmp_path)
    file.write_bytes(file.read_bytes()[:kept])
    sources, failures = dicom.series([file], tmp_path)
    if sources:
        with pytest.raises(ReadError) as caught:
            dicom.read(sources[0])
        failures = [caught.value]
    assert len(failures) == 1
    assert str(failures[0]).startswith(str(file))


def test_text_called_dcm(tmp_path: Path) -> None:
    file = tmp_path / "notes.dcm"
    file.write_text("the patient was seen in the morning and went home in the evening" * 9)
    assert dicom.is_dicom(file)
    sources, failures = dicom.series([file], tmp_path)
    assert sources == []
    assert [str(failure) for failure in failures] == [f"{file}: is not DICOM; rename or remove it"]
    text = tmp_path / "notes"
    text.write_bytes(file.read_bytes())
    assert not dicom.is_dicom(text)


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        dicom.is_dicom(tmp_path / "gone")
    (file,) = save(stack(1), tmp_path)
    source = only(tmp_path)
    file.unlink()
    with pytest.raises(ReadError, match="No such file"):
        dicom.read(source)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_bytes(tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]) -> None:
    """Whatever the bytes are, there is a scan of finite values or a ReadError."""
    folder = tmp_path_factory.mktemp("damaged")
    files = save(stack(3), folder)
    content = bytearray(files[1].read_bytes())
    for at, value in damage:
        content[at % len(content)] = value
    files[1].write_bytes(content)
    sources, _ = dicom.series([file for file in files if dicom.is_dicom(file)], folder)
    for source in sources:
        with suppress(ReadError):
            assert all(np.isfinite(scan.voxels).all() for scan in dicom.read(source))


def test_codestream_larger_than_declared(tmp_path: Path) -> None:
    """A compressed image that would unfold to another size is not given to the decoder."""
    large = encode_array(np.zeros((512, 512), np.int16), photometric_interpretation=2)
    dataset = plane((0, 0, 0), 1, PixelData=encapsulate([large]))
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    assert "another size" in refusal([dataset], tmp_path / "j2k")
    dataset = plane((0, 0, 0), 1, PixelData=encapsulate([b"\x80\x00" * 2**17]))
    dataset.file_meta.TransferSyntaxUID = RLELossless
    assert "another size" in refusal([dataset], tmp_path / "rle")


def test_deflated_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = stack(1)[0]
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    files = save([dataset], tmp_path)
    assert len(dicom.series(files, tmp_path)[0]) == 1
    monkeypatch.setattr(headers, "MAX_VOXELS", 100_000)
    assert "deflated" in str(dicom.series(files, tmp_path)[1][0])


@pytest.mark.parametrize("marker", [0xC0, 0xC3, 0xF7])
def test_coded_shape_of_jpeg(marker: int) -> None:
    app = b"\xff\xe0\x00\x04ab"
    tables = b"\xff\xc4\x00\x03a"
    frame = bytes([0xFF, marker]) + b"\x00\x0b\x08\x01\x02\x03\x04\x01"
    assert pixels.coded_shape(b"\xff\xd8" + app + tables + b"\xff" + frame) == (0x0102, 0x0304)
    assert pixels.coded_shape(b"\xff\xd8" + app) is None


# --- accepted -----------------------------------------------------------------------------------------

GOOD: dict[str, Callable[[], list[Dataset]]] = {
    "instance numbers that go on from elsewhere": lambda: stack(InstanceNumber=tuple(range(40, 46))),
    "instance numbers with holes": lambda: stack(InstanceNumber=tuple(range(0, 12, 2))),
    "no instance numbers": lambda: stack(InstanceNumber=None),
    "more images than announced": lambda: stack(ImagesInAcquisition=3),
    "count copied into derived images": lambda: stack(
        ImagesInAcquisition=40, ImageType=["DERIVED", "PRIMARY", "MPR"]
    ),
    "gaps in a 2-D acquisition": lambda: stack(gap=5, SliceThickness=2, SpacingBetweenSlices=5),
    "empty space in SpacingBetweenSlices": lambda: stack(gap=5, SliceThickness=4, SpacingBetweenSlices=1),
    "1 in SpacingBetweenSlices, whatever it is": lambda: stack(SpacingBetweenSlices=1),
    "overlapping slices": lambda: stack(SliceThickness=4, SpacingBetweenSlices=2, MRAcquisitionType="3D"),
    "acquisition number of each slice": lambda: stack(AcquisitionNumber=(1, 2, 3, 4, 5, 6)),
    "two interleaved acquisitions": lambda: stack(AcquisitionNumber=(1, 2) * 3),
    "echo times that vary a little": lambda: stack(EchoTime=(2.23, 2.24, 2.26) * 2),
    "no frame of reference": lambda: stack(FrameOfReferenceUID=None),
    "no image type": lambda: stack(ImageType=None),
    "one image type": lambda: stack(ImageType="ORIGINAL"),
    "no rescale": lambda: [unscaled(dataset) for dataset in stack()],
    "slightly rounded orientation": lambda: stack(
        ImageOrientationPatient=([1, 0, 0, 0, 1, 0], [0.99999, 0.0001, 0, -0.0001, 0.99999, 0]) * 3
    ),
}


def unscaled(dataset: Dataset) -> Dataset:
    real = np.frombuffer(dataset.PixelData, "<i2") * SLOPE + INTERCEPT
    dataset.PixelData = np.round(real).astype("<i2").tobytes()
    del dataset.RescaleSlope, dataset.RescaleIntercept
    return dataset


@pytest.mark.parametrize("case", GOOD)
def test_accepted(tmp_path: Path, case: str) -> None:
    (scan,) = scans(GOOD[case](), tmp_path)
    assert len(scan.voxels[0, 0]) == 6
    assert_in_place(scan, atol=0.65)


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL])
def test_series_of_one(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    (scan,) = scans(stack(1, orientation=orientation, SliceThickness=5), tmp_path)
    assert_in_place(scan)
    assert scan.spacing[scan.voxels.shape.index(1)] == 5
    assert len(scan) == 1


def test_one_without_thickness_is_a_picture(tmp_path: Path) -> None:
    (dataset,) = stack(1, SliceThickness=None)
    (scan,) = scans([dataset], tmp_path)
    assert (scan.spacing, scan.affine) == (None, None)
    np.testing.assert_array_equal(scan.slice(0).pixels, dataset.pixel_array * SLOPE + INTERCEPT)


def test_same_instance_twice_counts_once(tmp_path: Path) -> None:
    datasets = stack()
    save(datasets, tmp_path / "a")
    save(datasets[2:4], tmp_path / "b")
    source = only(tmp_path)
    assert len(source.files) == 8
    (scan,) = dicom.read(source)
    assert_in_place(scan)
    datasets[2].PixelData = bytes(len(datasets[2].PixelData))
    save(datasets[2:4], tmp_path / "b")
    with pytest.raises(ReadError, match="SOPInstanceUID of another file but other content"):
        dicom.read(only(tmp_path))


# --- several volumes in a series ----------------------------------------------------------------------

SEVERAL: dict[str, list[dict[str, Any]]] = {
    "echo numbers": [{"EchoNumbers": 1, "EchoTime": 20}, {"EchoNumbers": 2, "EchoTime": 90}],
    "echo times": [{"EchoTime": 20}, {"EchoTime": 90}],
    "time points": [{"TemporalPositionIdentifier": i} for i in (1, 2, 3)],
    "acquisitions": [{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}],
    "magnitude and phase": [{"ImageType": ["ORIGINAL", "PRIMARY", kind]} for kind in "MP"],
    "diffusion": [{"DiffusionBValue": 0}, {"DiffusionBValue": 1000}],
    "directions": [
        {"DiffusionBValue": b, "DiffusionGradientOrientation": d}
        for b, d in [(0, None), (1000, [1, 0, 0]), (1000, [0, 1, 0]), (2000, [1, 0, 0]), (2000, [0, 1, 0])]
    ],
    "echoes and time points": [
        {"EchoTime": e, "TemporalPositionIdentifier": t} for e in (20, 90) for t in (1, 2)
    ],
}


@pytest.mark.parametrize("case", SEVERAL)
def test_several_volumes(tmp_path: Path, case: str) -> None:
    """Each volume adds another 100 to the field; none may be mixed with another."""
    datasets = [
        dataset
        for i, tags in enumerate(SEVERAL[case])
        for dataset in stack(**tags, RescaleIntercept=INTERCEPT + 100 * i)
    ]
    result = scans(datasets, tmp_path)
    added = []
    for scan in result:
        added.append(round(float(scan.voxels[0, 0, 0] - field(scan.affine[:3, 3]))))
        scan.voxels[...] -= added[-1]
        assert_in_place(scan)
    assert sorted(added) == [100 * i for i in range(len(SEVERAL[case]))]
    assert dicom.read(only(tmp_path))[0].series_id == result[0].series_id  # and again, in the same order


def test_volumes_that_are_not_alike_are_not_told_apart(tmp_path: Path) -> None:
    datasets = stack(AcquisitionNumber=1) + stack(AcquisitionNumber=2)[:4]
    assert "4 of its images lie where another one lies" in refusal(datasets, tmp_path)


# --- finding series -----------------------------------------------------------------------------------


def test_series_patients_and_other_objects_in_one_folder(tmp_path: Path) -> None:
    uids = ["1.2.3.4", "1.2.3.40", "1.2.3.41"]
    files = []
    for i, uid in enumerate(uids):
        files += save(stack(SeriesInstanceUID=uid, PatientID=f"P{i}"), tmp_path, name=f"{i}" + "x{}")
    sr, capture = stack(2)
    sr.SOPClassUID, capture.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.7"
    files += save([sr, capture], tmp_path, name="other{}")
    random.Random(2).shuffle(files)
    sources, failures = dicom.series(files, tmp_path)
    assert failures == []
    assert {source.series_id: source.patient_id for source in sources} == dict(
        zip(uids, ["P0", "P1", "P2"], strict=True)
    )
    assert sorted(file for source in sources for file in source.files) == sorted(
        file for file in files if "other" not in file.name
    )
    assert len({source.path for source in sources}) == 3
    assert all(re.fullmatch(r"series-[0-9a-f]{8}", source.path.name) for source in sources)
    assert sources == sorted(sources, key=lambda source: source.path)
    assert sources == dicom.series(files[::-1], tmp_path)[0]
    for source in sources:
        (scan,) = dicom.read(source)
        assert (scan.source, scan.patient_id) == (source.path, source.patient_id)
        assert_in_place(scan)


def test_paths_of_series(tmp_path: Path) -> None:
    def of(uid: str) -> dict[str, Any]:
        return {"SeriesInstanceUID": uid}

    save(stack(**of("1.1")), tmp_path / "alone")
    save(stack(**of("1.2"))[:3], tmp_path / "parts" / "a")
    save(stack(**of("1.2"))[3:], tmp_path / "parts" / "b")
    save(stack(**of("1.3")), tmp_path / "shared")
    save(stack(1, **of("1.4")), tmp_path / "shared", name="single{}")
    save(stack(1, **of("1.5")), tmp_path / "alone" / "below", name="single{}")
    sources, _ = dicom.series([f for f in tmp_path.rglob("*") if f.is_file()], tmp_path)
    paths = {source.series_id: source.path.relative_to(tmp_path).as_posix() for source in sources}
    assert paths["1.2"] == "parts"
    assert paths["1.4"] == "shared/single0"
    assert paths["1.5"] == "alone/below/single0"
    # printf 1.3 | sha256sum; a folder that others share, or have files below, does not name a series
    assert paths["1.3"] == "shared/series-9c193c60"
    assert paths["1.1"].startswith("alone/series-")


def test_what_a_series_is_for_its_headers(tmp_path: Path) -> None:
    """Whoever decides what is an image to index need not open the file again."""
    save(stack(ImageType=["DERIVED", "SECONDARY", "MPR"], SeriesDescription="ADC map"), tmp_path)
    source = only(tmp_path)
    assert (source.object, source.modality) == ("MR Image Storage", "MR")
    assert (source.image_type, source.sequence) == (("DERIVED", "SECONDARY", "MPR"), "adc")


def test_patient_without_id(tmp_path: Path) -> None:
    save(stack(PatientID=""), tmp_path)
    assert only(tmp_path).patient_id == "1.2.3"


def test_without_series(tmp_path: Path) -> None:
    files = save(stack(1, SeriesInstanceUID=None), tmp_path)
    sources, failures = dicom.series(files, tmp_path)
    assert sources == []
    assert "names no series" in str(failures[0])


# --- pictures -----------------------------------------------------------------------------------------


def picture(**tags: Any) -> Dataset:
    geometry = dict.fromkeys(
        ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
    )
    sop_class = {"SOPClassUID": DigitalXRayImageStorageForPresentation, "Modality": "DX"}
    return plane((0, 0, 0), 1, **(geometry | sop_class | {"RescaleSlope": 1, "RescaleIntercept": 0} | tags))


def test_x_ray_is_a_picture(tmp_path: Path) -> None:
    """As displayed; MONOCHROME1 is turned to its negative, each image is a scan."""
    pixels = np.arange(6, dtype="<u2").reshape(2, 3)
    tags = {
        "Rows": 2,
        "Columns": 3,
        "PixelData": pixels.tobytes(),
        "PixelRepresentation": 0,
        "BitsStored": 12,
        "HighBit": 11,
    }
    bright, dark = picture(**tags), picture(**tags, PhotometricInterpretation="MONOCHROME1", InstanceNumber=2)
    result = scans([bright, dark], tmp_path)
    np.testing.assert_array_equal(result[0].slice(0).pixels, pixels)
    np.testing.assert_array_equal(result[1].slice(0).pixels, 4095 - pixels.astype(int))
    assert [(scan.modality, scan.spacing, scan.sequence) for scan in result] == [("DX", None, None)] * 2


def test_signed_negative(tmp_path: Path) -> None:
    (scan,) = scans(stack(PhotometricInterpretation="MONOCHROME1"), tmp_path)
    scan.voxels[...] = 2 * INTERCEPT - SLOPE - scan.voxels
    assert_in_place(scan)


def test_ultrasound_in_colour(tmp_path: Path) -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    frames = np.stack([colours, colours[::-1], colours])
    tags = {"SOPClassUID": UltrasoundMultiFrameImageStorage, "Modality": "US", "NumberOfFrames": 3}
    image = {"Rows": 2, "Columns": 2, "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    bits = {
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PlanarConfiguration": 0,
    }
    (scan,) = scans([picture(**tags, **image, **bits, PixelData=frames.tobytes())], tmp_path)
    assert len(scan) == 3
    grey = [[76.245, 149.685], [29.07, 255]]
    np.testing.assert_allclose(scan.slice(0).pixels, grey, rtol=1e-5)
    np.testing.assert_allclose(scan.slice(1).pixels, grey[::-1], rtol=1e-5)


def test_palette_and_modality_table(tmp_path: Path) -> None:
    image = {
        "Rows": 1,
        "Columns": 4,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
    }
    image |= {"Rows": 2, "PixelData": bytes([0, 1, 2, 3, 3, 2, 1, 0])}
    palette = picture(**image, PhotometricInterpretation="PALETTE COLOR")
    for colour, values in (("Red", [0, 255, 0, 0]), ("Green", [0, 0, 255, 0]), ("Blue", [0, 0, 0, 255])):
        setattr(palette, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, 8])
        setattr(palette, f"{colour}PaletteColorLookupTableData", bytes(values))
    (scan,) = scans([palette], tmp_path / "palette")
    np.testing.assert_allclose(scan.slice(0).pixels[0], [0, 76.245, 149.685, 29.07], rtol=1e-5)
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [4, 0, 16], [10, 20, 40, 80], "US"
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    looked_up = picture(**image, RescaleSlope=None, RescaleIntercept=None, ModalityLUTSequence=[table])
    (scan,) = scans([looked_up], tmp_path / "table")
    np.testing.assert_array_equal(scan.slice(0).pixels[0], [10, 20, 40, 80])


# --- sequence -----------------------------------------------------------------------------------------

SEQUENCES = [
    ("AX T1", {}, "t1"),
    ("t1_mprage_sag_p2_iso", {}, "t1"),
    ("SAG MPRAGE", {}, "t1"),
    ("eT1W_3D_TFE", {}, "t1"),
    ("T1W_SE_pre", {}, "t1"),
    ("T1 W/O", {"ContrastBolusAgent": "Gadavist"}, "t1"),
    ("T1 without contrast", {}, "t1"),
    ("t1_tse_nativ", {}, "t1"),
    ("AX T1 FLAIR", {}, "t1"),
    ("AX T1", {"ContrastBolusAgent": "NONE"}, "t1"),
    ("AX T1 post op", {}, "t1"),
    ("AX T1", {"ContrastBolusAgent": "Gadavist"}, "t1ce"),
    ("AX T1", {"ProtocolName": "BRAIN W/O AND W CONTRAST"}, "t1"),
    ("T1 C-SPINE", {}, "t1"),
    ("T1 POST", {}, "t1ce"),
    ("T1C", {}, "t1ce"),
    ("AX T1 FSE +C", {}, "t1ce"),
    ("AX T1+C", {}, "t1ce"),
    ("t1_mpr_gd", {}, "t1ce"),
    ("T1CE", {}, "t1ce"),
    ("T1Gd", {}, "t1ce"),
    ("t1 tra km", {}, "t1ce"),
    ("MPRAGE post-contrast", {}, "t1ce"),
    ("T2 FLAIR", {}, "flair"),
    ("3D_FLAIR", {}, "flair"),
    ("t2_tirm_tra_dark-fluid", {}, "flair"),
    ("AX T2 FSE", {}, "t2"),
    ("T2W_TSE", {}, "t2"),
    ("AX T2* GRE", {}, "t2star"),
    ("ep2d_diff_3scan_trace", {}, "dwi"),
    ("AX DWI", {}, "dwi"),
    ("ep2d_diff", {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, "adc"),
    ("dADC_map", {}, "adc"),
    ("SWI_Images", {}, "swi"),
    ("PD FSE", {}, "pd"),
    ("ep2d_perf_T1", {}, "perf"),
    ("3-plane loc", {}, "localizer"),
    ("t1", {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, None),
    ("part1", {}, None),
    ("post2", {}, None),
    ("BRAIN", {"ProtocolName": "AX T2"}, "t2"),
    ("AX PD/T2", {"ScanningSequence": "SE", "RepetitionTime": 3000, "EchoTime": 15}, "pd"),
    ("AX PD/T2", {"ScanningSequence": "SE", "RepetitionTime": 3000, "EchoTime": 90}, "t2"),
    ("", {"ScanningSequence": "SE", "RepetitionTime": 500, "EchoTime": 12}, "t1"),
    (
        "",
        {"ScanningSequence": "SE", "RepetitionTime": 500, "EchoTime": 12, "ContrastBolusAgent": "Gd"},
        "t1ce",
    ),
    (
        "",
        {"ScanningSequence": ["SE", "IR"], "RepetitionTime": 9000, "EchoTime": 100, "InversionTime": 2500},
        "flair",
    ),
    (
        "",
        {"ScanningSequence": ["GR", "IR"], "RepetitionTime": 2000, "EchoTime": 3, "InversionTime": 900},
        "t1",
    ),
    ("", {"ScanningSequence": "GR", "RepetitionTime": 25, "EchoTime": 4}, None),
    ("", {"ScanningSequence": ["EP", "SE"], "RepetitionTime": 5000, "EchoTime": 90}, None),
    ("", {"ScanningSequence": "SE", "RepetitionTime": 1500, "EchoTime": 50}, None),
    ("", {}, None),
]


@pytest.mark.parametrize(("description", "tags", "sequence"), SEQUENCES)
def test_sequence(tmp_path: Path, description: str, tags: dict[str, Any], sequence: str | None) -> None:
    save([plane((0, 0, 0), 1, SeriesDescription=description, **tags)], tmp_path)
    source = only(tmp_path)
    assert source.sequence == sequence
    assert [scan.sequence for scan in dicom.read(source)] == [sequence]


# --- privacy ------------------------------------------------------------------------------------------


def test_identifiers_stay_in_the_file(tmp_path: Path) -> None:
    planted = {
        "PatientName": "Planted^Name",
        "PatientBirthDate": "19630411",
        "AccessionNumber": "PLANTED-ACC",
        "InstitutionName": "Planted Hospital",
        "SeriesDescription": "t1 of planted Jane",
        "ProtocolName": "planted protocol",
        "ContrastBolusAgent": "planted agent",
        "OtherPatientIDs": "PLANTED-OTHER",
    }
    datasets = stack(**planted)
    save(datasets, tmp_path)
    source = only(tmp_path)
    (scan,) = dicom.read(source)
    assert scan.sequence == "t1ce"
    values = [getattr(thing, f.name) for thing in (source, scan) for f in fields(thing)]
    everything = " ".join(map(str, [source, scan, *values])).replace(str(tmp_path), "")
    datasets[2].ImagePositionPatient[2] += 1
    everything += refusal(datasets, tmp_path).replace(str(tmp_path), "")
    assert "P-7" in everything
    for secret in planted.values():
        assert secret.lower() not in everything.lower()
    assert "planted" not in everything.lower()
    # not even in memory
    for kept in (source.parsed, [headers.parse(file) for file in source.files]):
        memory = pickle.dumps([replace(header, file=Path()) for header in kept]).lower()
        assert b"p-7" in memory
        assert b"planted" not in memory
        assert b"19630411" not in memory


# --- real data ----------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_series() -> None:
    root = REAL / "dicom-t1"
    if not root.is_dir():
        pytest.skip(f"no {root.name} beside the checkout (../shared/data)")
    files = [file for file in root.iterdir() if dicom.is_dicom(file)]
    (source,), failures = dicom.series(files, root)
    assert (source.path, len(source.files), failures) == (root, 384, [])
    (scan,) = dicom.read(source)
    assert (scan.sequence, scan.modality, scan.patient_id) == ("t1", "MR", "02")

    datasets = [pydicom.dcmread(file) for file in files]
    row, column = np.reshape(datasets[0].ImageOrientationPatient, (2, 3)).astype(float)
    datasets.sort(key=lambda d: float(np.dot(d.ImagePositionPatient, np.cross(row, column))))
    first, last = (np.array(d.ImagePositionPatient, float) for d in (datasets[0], datasets[-1]))
    between_rows, between_columns = map(float, datasets[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.column_stack(
        [row * between_columns, column * between_rows, (last - first) / (len(datasets) - 1), first]
    )
    voxels = np.stack([d.pixel_array.T for d in datasets], axis=-1)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, np.diag([-1, -1, 1, 1]) @ affine))
    np.testing.assert_array_equal(scan.voxels, np.asanyarray(image.dataobj))
    np.testing.assert_allclose(scan.affine, image.affine, atol=1e-2)


def test_reports_and_segmentations_are_counted_as_ignored(tmp_path: Path) -> None:
    from indexer.discovery import discover
    from tests.support.images import phantom, write_dicom

    folder = write_dicom(tmp_path / "study", phantom(1))
    report = pydicom.dcmread(next(folder.iterdir()))
    report.Modality, report.SOPClassUID = "SR", "1.2.840.10008.5.1.4.1.1.88.34"
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID
    report.SeriesInstanceUID, report.SOPInstanceUID = "1.2.3.4", "1.2.3.4.5"
    del report.PixelData
    report.save_as(folder / "report")
    assert discover(tmp_path).taken == {"DICOM series": 1, "ignored files": 1}
