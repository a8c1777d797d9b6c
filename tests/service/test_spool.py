"""Images that came over the network: kept exactly, without identifiers, once a series."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from indexer import discovery, readers
from indexer.case_index import CaseIndex
from indexer.ingest import ingest_sources
from indexer.preprocess import Preprocessing, prepared
from indexer.readers import Source
from indexer.reading import input_hash
from indexer.scan import Scan, stacked
from retrieval.service import images
from retrieval.service.spool import spool, sweep, take_out, unspool
from tests.support.images import phantom, write_dicom


@pytest.fixture
def index(tmp_path, tiny):
    with CaseIndex.create(tmp_path / "index", tiny) as index:
        yield index


def kept(index: CaseIndex) -> list[str]:
    return sorted(path.name for path in (index.folder / "spool").iterdir())


def oblique(folder: Path, **tags: object) -> Scan:
    """A DICOM series whose axes are turned by odd angles and whose voxels have odd sizes."""
    turn = np.linalg.qr(np.array([[0.9, 0.31, -0.2], [-0.25, 0.93, 0.11], [0.2, 0.05, 0.97]]))[0]
    orientation = [*(-turn[:, 0]), *(-turn[:, 1])]
    path = write_dicom(
        folder, phantom(3), ImageOrientationPatient=orientation, PixelSpacing=[0.7, 0.93], **tags
    )
    for i, file in enumerate(sorted(path.iterdir())):
        dataset = pydicom.dcmread(file)
        dataset.ImagePositionPatient = list(np.cross(-turn[:, 0], -turn[:, 1]) * 1.05 * i)
        dataset.SliceThickness = 1.05
        dataset.save_as(file)
    (scan,) = discovery.read(path)
    return scan


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_what_is_kept_reads_back_as_the_same_network_input(index, tmp_path, modality):
    scan = oblique(tmp_path / "series", Modality=modality)
    (source,) = spool(index, [scan])
    (back,) = discovery.read(source)
    assert back.voxels.dtype == scan.voxels.dtype
    np.testing.assert_array_equal(back.voxels, scan.voxels)
    np.testing.assert_array_equal(back.affine, scan.affine)  # to the last bit
    np.testing.assert_allclose(back.spacing, scan.spacing, rtol=1e-12)
    assert (back.sequence, back.modality, back.axis) == (scan.sequence, modality, scan.axis)
    assert (back.patient_id, back.study_id, back.series_id) == (
        scan.patient_id,
        scan.study_id,
        scan.series_id,
    )
    assert input_hash(prepared(back, Preprocessing(32))) == input_hash(prepared(scan, Preprocessing(32)))
    # how it is read again from the catalog's record, without ids
    (again,) = discovery.read(readers.Source.from_record(source.path, source.record()))
    assert (again.modality, again.patient_id) == (modality, "")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_types_of_voxels_are_kept(index, dtype):
    voxels = (phantom(1) * 10).astype(dtype)
    scan = Scan(voxels, Path("a.nii"), (1, 1, 3), np.diag([1.0, 1, 3, 1]), series_id="1.2.3")
    (back,) = discovery.read(spool(index, [scan])[0])
    assert back.voxels.dtype == dtype
    np.testing.assert_array_equal(back.voxels, voxels)


def test_a_picture_keeps_its_pixels_and_says_that_its_unit_is_unknown(index):
    planes = np.random.default_rng(0).integers(0, 256, (1, 20, 30), dtype=np.uint8)
    scan = Scan(stacked(planes), Path("a.png"), patient_id="a", series_id="a")
    (source,) = spool(index, [scan])
    (back,) = discovery.read(source)
    np.testing.assert_array_equal(back.slice(0).pixels, planes[0])
    assert nib.load(source.path).header.get_xyzt_units()[0] == "unknown"
    assert input_hash(prepared(back, Preprocessing(32))) == input_hash(prepared(scan, Preprocessing(32)))


def test_regions_come_along(index):
    region = np.zeros((24, 28, 10), bool)
    region[5:9, 6:12, 4:6] = True
    scan = Scan(phantom(1), Path("a"), (1, 1, 3), np.diag([1.0, 1, 3, 1]), series_id="1.2.3", region=region)
    (source,) = spool(index, [scan])
    (back,) = discovery.read(source)
    np.testing.assert_array_equal(back.region, region)
    spool(index, [replace(scan, region=None)])
    assert kept(index) == [source.path.name]


def test_the_same_series_is_one_file_and_untouched_while_equal(index, tmp_path):
    scan = oblique(tmp_path / "series")
    (first,) = spool(index, [scan])
    before, fingerprint = first.path.stat(), first.fingerprint()  # tells size and time of change, too
    (second,) = spool(index, [replace(scan, source=Path("elsewhere"))])
    assert second.path == first.path
    assert second.path.stat().st_ino == before.st_ino  # not even replaced by its like
    assert second.fingerprint() == fingerprint
    (third,) = spool(index, [replace(scan, voxels=scan.voxels + 1)])
    assert third.path == first.path
    assert third.fingerprint() != fingerprint
    assert kept(index) == [first.path.name]


def test_file_names_are_no_series_ids(index):
    scan = Scan(phantom(1), Path("t1.nii"), (1, 1, 3), np.diag([1.0, 1, 3, 1]), series_id="t1")
    spool(index, [replace(scan, patient_id="A"), replace(scan, patient_id="B")])
    assert len(kept(index)) == 2


def test_nothing_but_pixels_is_in_the_file(index, tmp_path):
    scan = oblique(tmp_path / "s", PatientID="PID-4711-planted", PatientName="Plantedname^Jane")
    (source,) = spool(index, [scan])
    packed = source.path.read_bytes()
    assert packed[3] == 0  # gzip: no file name, no comment
    assert packed[4:8] == bytes(4)  # no time
    header = gzip.decompress(packed)[:544]
    for field in ("descrip", "aux_file", "intent_name"):
        assert not nib.Nifti2Header(header[:540])[field].item()
    assert "planted" not in str(source.path)
    assert "1.2." not in str(source.path)
    assert source.path.parent.stat().st_mode & 0o077 == 0


def test_fewer_scans_of_a_series_replace_more(index, tiny):
    scans = [
        Scan(phantom(n), Path("s"), (1, 1, 3), np.diag([1.0, 1, 3, 1]), patient_id="A", series_id="1.2.3")
        for n in range(3)
    ]
    sources = spool(index, scans)
    ingest_sources(index, sources, tiny)
    assert index.catalog.count()["scans"] == 3
    ingest_sources(index, spool(index, scans[:1]), tiny)
    assert index.catalog.count()["scans"] == 1
    assert kept(index) == [sources[0].path.name]


def test_a_series_is_taken_out_by_its_pseudonym_and_nothing_else_is(index, tiny):
    affine = np.diag([1.0, 1, 3, 1])
    scans = [
        Scan(phantom(n), Path("s"), (1, 1, 3), affine, patient_id=f"P{n}", series_id=uid)
        for n, uid in enumerate(("1.2.3", "1.2.3", "1.2.30"))
    ]
    sources = spool(index, scans)
    ingest_sources(index, sources, tiny)
    assert unspool(index, index.pseudonym("series", "1.2.3"), tiny) == 2
    assert kept(index) == [sources[2].path.name]
    assert index.catalog.count()["scans"] == 1
    assert unspool(index, index.pseudonym("series", "9.9"), tiny) == 0
    assert unspool(index, "", tiny) == 0
    assert kept(index) == [sources[2].path.name]
    take_out(index, [sources[2].path], tiny)
    assert kept(index) == []


def test_what_the_index_no_longer_holds_is_swept(index, tiny):
    affine = np.diag([1.0, 1, 3, 1])
    region = phantom(0) > 150
    scans = [
        Scan(
            phantom(n), Path("s"), (1, 1, 3), affine, patient_id=f"P{n}", series_id=f"1.2.{n}", region=region
        )
        for n in range(2)
    ]
    ingest_sources(index, spool(index, scans), tiny)
    index.catalog.remove_cases([index.case("P0", "")])
    sweep(index)
    stem = index.pseudonym("series", "1.2.1")
    assert kept(index) == [f"{stem}.nii.gz", f"{stem}.region.nii.gz"]


def test_viewers_get_exact_values_in_as_few_bits_as_hold_them():
    whole = Scan(phantom(1).round(), Path("a"), (1, 1, 3), np.diag([1.0, 1, 3, 1]))
    for scan, dtype in ((whole, np.int16), (replace(whole, voxels=whole.voxels + 0.5), np.float32)):
        image = nib.Nifti1Image.from_bytes(gzip.decompress(images.volume(scan)))
        assert image.get_data_dtype() == dtype
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), scan.voxels)
        np.testing.assert_array_equal(image.affine, scan.affine)
    large = replace(whole, voxels=whole.voxels * 1e6)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(images.volume(large)))
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), large.voxels)


def test_series_of_other_frames_of_reference_stay_so_without_their_names(index, tmp_path):
    frames = ("1.2.840.1", "1.2.840.1", "1.2.840.2")
    scans = [
        Scan(phantom(n), Path("s"), (1, 1, 3), np.diag([1.0, 1, 3, 1]), series_id=f"1.{n}", frame=frame)
        for n, frame in enumerate(frames)
    ]
    sources = spool(index, scans)
    again = [Source.from_record(source.path, source.record()) for source in sources]
    first, same, other = (discovery.read(source)[0].frame for source in again)
    assert first == same != other
    assert not any(frame in str(source.record()) for source in sources for frame in frames)
