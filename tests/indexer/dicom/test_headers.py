"""Headers: the same elements as pydicom's, parsed once, kept small and without what identifies."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from benchmarks import series
from indexer.readers import dicom
from indexer.readers.dicom import headers, reading
from indexer.readers.dicom.headers import begins_like_dicom, parse
from indexer.readers.dicom.series import series as found_series
from tests.indexer.dicom.test_pixels import written
from tests.indexer.test_dicom import enhanced

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
TEXT = {"SpecificCharacterSet", "ImageType", "SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID"}
TEXT |= {"SeriesInstanceUID", "FrameOfReferenceUID", "PhotometricInterpretation", "ScanningSequence"}
NUMBERS = {"Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "InstanceNumber", "PixelSpacing"}
NUMBERS |= {"ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "EchoTime", "RescaleSlope"}


@pytest.mark.filterwarnings("ignore")
def test_elements_are_those_of_pydicom() -> None:
    """Over all files that pydicom tests itself with: syntaxes, byte orders, nestings, damage."""
    compared = 0
    for file in sorted(FILES.rglob("*.dcm")):
        if not begins_like_dicom(file.read_bytes()[:132]) or file.name == "badVR.dcm":
            continue
        theirs, ours = pydicom.dcmread(file, force=True), parse(file).elements
        for keyword in TEXT | NUMBERS:
            value = theirs.get(keyword)
            if value is None or value == "" or value == []:
                assert ours.get(keyword) is None, (file, keyword)
            elif keyword in NUMBERS:
                np.testing.assert_allclose(ours.numbers(keyword), np.atleast_1d(np.array(value, float)))
            else:
                texts = tuple(map(str, value)) if isinstance(value, MultiValue) else (str(value),)
                assert ours.texts(keyword) == tuple(text.strip(" \0") for text in texts), (file, keyword)
        compared += 1
    assert compared > 60


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [False, True])
def test_functional_groups(tmp_path: Path, syntax: uid.UID, undefined: bool) -> None:
    dataset = enhanced()
    for sequence in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        dataset[sequence].is_undefined_length = undefined
        for item in dataset[sequence].value:
            item.is_undefined_length_sequence_item = undefined
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    header = parse(tmp_path / "a.dcm")
    assert len(header.frames) == 16
    for ours, theirs in zip(header.frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        assert ours["EffectiveEchoTime"] == (theirs.MREchoSequence[0].EffectiveEchoTime,)
        assert ours["TemporalPositionIndex"] == (theirs.FrameContentSequence[0].TemporalPositionIndex,)
    assert float(header.shared["RepetitionTime"]) == 4000


def test_a_header_longer_than_what_is_looked_at_first(tmp_path: Path) -> None:
    for size in (headers._HEAD - 700, headers._HEAD, 20 * headers._HEAD):
        dataset = series.image(0, 1)
        dataset.private_block(0x09, "SOMEONE", create=True).add_new(0x01, "OB", bytes(size))
        file = written(dataset, tmp_path / f"{size}.dcm")
        header = parse(file)
        assert header.elements.text("Modality") == "MR"
        assert header.pixels is not None
        assert file.read_bytes()[header.pixels.start :] == dataset.PixelData


def test_sequences_of_vendors_are_passed_over(tmp_path: Path) -> None:
    """Of undefined length, nested, with an unknown VR: what is in them is not taken for the image's own."""
    inner, outer, dataset = Dataset(), Dataset(), series.image(0, 1)
    inner.Rows, inner.PixelData = 7, b"\0\0"
    inner["PixelData"].VR = "OW"
    outer.IconImageSequence = [inner]
    outer["IconImageSequence"].is_undefined_length = True
    block = dataset.private_block(0x09, "SOMEONE", create=True)
    block.add_new(0x01, "SQ", [outer, outer])
    dataset[block.get_tag(0x01)].is_undefined_length = True
    header = parse(written(dataset, tmp_path / "a.dcm"))
    assert header.elements.count("Rows") == 24
    assert header.pixels is not None
    assert header.pixels.length == len(dataset.PixelData)


def test_patient_in_another_script(tmp_path: Path) -> None:
    dataset = series.image(0, 1, SpecificCharacterSet="ISO_IR 192", PatientID="Grün-Ωμέγα")
    written(dataset, tmp_path / "a.dcm")
    ((source,), _) = dicom.series([tmp_path / "a.dcm"], tmp_path)
    assert source.patient_id == "Grün-Ωμέγα"


# --- parsed once --------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose headers are parsed from now on."""
    parsed: list[Path] = []

    def counting(file: Path) -> headers.Header:
        parsed.append(file)
        return parse(file)

    for module in (headers, reading):
        monkeypatch.setattr(module, "parse", counting)
    monkeypatch.setitem(found_series.__globals__, "parse", counting)
    return parsed


def test_each_header_is_parsed_once(tmp_path: Path, counted: list[Path]) -> None:
    series.save(tmp_path, series.stack())
    ((source,), _) = dicom.series(list(tmp_path.iterdir()), tmp_path)
    dicom.read(pickle.loads(pickle.dumps(source)))
    dicom.read(source)
    assert sorted(counted) == sorted(source.files)


def test_a_file_that_changed_is_parsed_again(tmp_path: Path, counted: list[Path]) -> None:
    series.save(tmp_path, series.stack())
    ((source,), _) = dicom.series(list(tmp_path.iterdir()), tmp_path)
    (before,) = dicom.read(source)
    changed = pydicom.dcmread(source.files[2])
    changed.PatientComments = "x" * 1001
    changed.RescaleSlope, changed.RescaleIntercept = 2, 0
    changed.save_as(source.files[2])
    os.utime(source.files[2], ns=(1, 1))
    counted.clear()
    (after,) = dicom.read(source)
    assert counted == [source.files[2]]
    planes = [float(after.voxels[..., n].sum() / before.voxels[..., n].sum()) for n in range(8)]
    assert sorted(planes) == pytest.approx([1] * 7 + [2])


def test_what_is_kept_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[Path]
) -> None:
    monkeypatch.setitem(found_series.__globals__, "KEPT", 12)
    for name in ("a", "b"):
        series.save(tmp_path / name, series.stack(SeriesInstanceUID=f"1.2.{ord(name)}"))
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    sources, _ = dicom.series(files, tmp_path)
    assert [len(source.parsed) for source in sources] == [8, 0]
    assert [len(dicom.read(source)) for source in sources] == [1, 1]
    assert len(counted) == 24


def test_what_is_no_image_is_told_apart(tmp_path: Path) -> None:
    report = series.image(0, 1, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33", Modality="SR")
    report.SeriesInstanceUID = "1.2.9"
    series.save(tmp_path / "a", series.stack())
    series.save(tmp_path / "b", [report])
    found = dicom.objects([file for file in tmp_path.rglob("*") if file.is_file()], tmp_path)
    assert [source.object for source in found.images] == ["MR Image Storage"]
    assert [source.object for source in found.others] == ["Comprehensive SR Storage"]
