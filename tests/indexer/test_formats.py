"""Formats beside NIfTI, DICOM and pictures, and that one is added in one place."""

from __future__ import annotations

import bz2
from importlib.metadata import EntryPoint
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from backports import zstd

from indexer.discovery import discover, read
from indexer.errors import ReadError
from indexer.readers import installed_formats
from indexer.readers.formats import Format
from indexer.readers.source import Source
from indexer.scan import Scan

RNG = np.random.default_rng(3)
BLOCK = RNG.integers(0, 999, (4, 5, 6)).astype(np.int16)
AFFINE = np.array([[0, 0, 3, -7], [-2.0, 0, 0, 5], [0, 1.5, 0, 2], [0, 0, 0, 1]])


def canonical() -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.Nifti1Image(BLOCK, AFFINE))


def compare(path: Path) -> None:
    (scan,) = read(path)
    truth = canonical()
    np.testing.assert_array_equal(scan.voxels, np.asarray(truth.dataobj))
    assert scan.affine is not None
    np.testing.assert_allclose(scan.affine, truth.affine, atol=1e-5)


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh", "a.hdr", "a.img", "a.img.gz"])
def test_what_nibabel_writes_is_read(tmp_path: Path, name: str) -> None:
    kind = nib.MGHImage if "mg" in name else nib.Nifti1Pair
    nib.save(kind(BLOCK.astype(np.int16), AFFINE), tmp_path / name)
    compare(tmp_path / name.replace(".img", ".hdr") if "mg" not in name else tmp_path / name)
    assert len(discover(tmp_path).sources) == 1


@pytest.mark.parametrize(("name", "pack"), [("a.nii.bz2", bz2.compress), ("a.nii.zst", zstd.compress)])
def test_packed_nifti_is_read(tmp_path: Path, name: str, pack: object) -> None:
    content = nib.Nifti1Image(BLOCK, AFFINE).to_bytes()
    (tmp_path / name).write_bytes(pack(content))  # type: ignore[operator]
    compare(tmp_path / name)
    packed = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ReadError, match="damaged or truncated"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
def test_what_simpleitk_writes_is_read(tmp_path: Path, name: str) -> None:
    nib.save(nib.Nifti1Image(BLOCK, AFFINE), tmp_path / "x.nii")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "x.nii")), str(tmp_path / name))
    (tmp_path / "x.nii").unlink()
    compare(tmp_path / name)


def test_several_components_are_channels(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(RNG.integers(0, 99, (6, 5, 4, 2)).astype(np.int16), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    (tmp_path / "cbir.json").write_text('{"channels": ["t1", "flair"]}')
    scans = read(tmp_path / "a.nrrd")
    assert [scan.sequence for scan in scans] == ["t1", "flair"]
    pixels = sitk.GetArrayFromImage(image)
    # x and y of ITK run to the left and to the back
    np.testing.assert_array_equal(scans[1].voxels, pixels[..., 1].transpose(2, 1, 0)[::-1, ::-1])


def test_an_outline_of_the_same_format_is_attached(tmp_path: Path) -> None:
    for name, voxels in (("P1_t1.nrrd", BLOCK), ("P1_seg.seg.nrrd", (BLOCK > 950).astype(np.uint8))):
        sitk.WriteImage(sitk.GetImageFromArray(voxels.transpose(2, 1, 0)), str(tmp_path / name))
    (source,) = discover(tmp_path).sources
    (scan,) = read(source)
    assert scan.region is not None
    assert scan.region.sum() == (BLOCK > 950).sum()


@pytest.mark.parametrize("name", ["a.mgz", "a.nrrd", "a.mha", "a.mat"])
def test_what_is_no_image_whatever_its_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"MATLAB 7.3 MAT-file, and nothing else")
    with pytest.raises(ReadError, match=name.replace(".", r"\.")):
        read(tmp_path / name)


def slice_of(path: Path, patient: str, label: int) -> np.ndarray:
    image = RNG.integers(0, 4000, (7, 5)).astype(np.int16)
    mask = image > 3000
    with h5py.File(path, "w", userblock_size=512) as file:
        struct = file.create_group("cjdata")
        struct["image"], struct["tumorMask"] = image.T, mask.T.astype(np.uint8)
        struct["PID"] = np.array([[ord(letter)] for letter in patient], np.uint16)
        struct["label"] = np.array([[float(label)]])
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(124) + b"\x00\x02IM")
    return image


def test_figshare_slices_are_read_with_patient_outline_and_label(tmp_path: Path) -> None:
    images = [slice_of(tmp_path / f"{n}.mat", who, n) for n, who in ((1, "100360"), (2, "MR1"), (3, "MR1"))]
    found = discover(tmp_path)
    assert [(s.patient_id, s.sequence) for s in found.sources] == [
        ("100360", "t1ce"),
        ("MR1", "t1ce"),
        ("MR1", "t1ce"),
    ]
    assert found.labels["100360"] == {"label": "1", "tumour": "meningioma"}
    (scan,) = read(found.sources[0])
    np.testing.assert_array_equal(scan.slice(0).pixels, images[0])
    np.testing.assert_array_equal(scan.slice(0).region, images[0] > 3000)


def toy_format() -> Format:
    def toy_scans(source: Source) -> list[Scan]:
        values = np.loadtxt(source.files[0])
        return [Scan(values[..., np.newaxis].astype(np.float32), source.path, sequence=source.sequence)]

    return Format("toy", {"toy": "toy images"}, lambda file: file.suffix == ".toy", toy_scans)


def test_a_format_of_another_package_is_one_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("toy", f"{__name__}:TOY", "cbir.formats")
    monkeypatch.setattr(
        "indexer.readers.formats.entry_points", lambda group: [point] * (group == "cbir.formats")
    )
    installed_formats.cache_clear()
    try:
        np.savetxt(tmp_path / "P1_t1.toy", np.arange(12).reshape(3, 4))
        np.savetxt(tmp_path / "P1_flair.toy", np.arange(12).reshape(3, 4))
        found = discover(tmp_path)
        assert found.taken == {"toy images": 2}
        assert [(s.patient_id, s.sequence) for s in found.sources] == [("P1", "flair"), ("P1", "t1")]
        assert read(tmp_path / "P1_t1.toy")[0].voxels.shape == (3, 4, 1)
    finally:
        installed_formats.cache_clear()


TOY = toy_format()
