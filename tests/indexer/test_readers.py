from __future__ import annotations

import gzip
import itertools
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from indexer.discovery import discover, read
from indexer.discovery.config import find_config
from indexer.discovery.layout import Item, layout
from indexer.discovery.people import Person
from indexer.discovery.roles import understood
from indexer.discovery.tokens import stem
from indexer.errors import LabelsError, ReadError
from indexer.labels import load_tables
from indexer.readers import limits
from indexer.readers.limits import MAX_VOLUMES
from tests.support.images import write_dicom

RNG = np.random.default_rng(0)
BLOCK = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)


def volume(path: Path, voxels: NDArray[Any] = BLOCK, affine: Any = None, **header: Any) -> Path:
    """A NIfTI file whose header fields are then set as given, right or wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 1, 1]) if affine is None else affine), path)
    if header:
        opened = gzip.open if path.name.endswith(".gz") else open
        with opened(path, "rb") as file:
            content = file.read()
        fields = nib.Nifti1Header(content[:348], check=False)
        for name, value in header.items():
            fields[name] = value
        with opened(path, "wb") as file:
            file.write(fields.binaryblock + content[348:])
    return path


def picture(path: Path, pixels: NDArray[Any] | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (5, 7), dtype=np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(path, **options)
    return path


def config(folder: Path, **settings: Any) -> None:
    (folder / "cbir.json").write_text(json.dumps(settings))


def reason(path: Path) -> str:
    with pytest.raises(ReadError) as refused:
        read(path)
    message = str(refused.value)
    assert "\n" not in message
    assert path.name in message
    return message


# Names


@pytest.mark.parametrize(
    ("name", "sequence", "rest"),
    [
        ("sub-01_ses-1_T1w.nii.gz", "t1", "sub-01"),
        ("sub-01_ce-gadolinium_T1w.nii", "t1ce", "sub-01"),
        ("sub-01_FLAIR.nii.gz", "flair", "sub-01"),
        ("BraTS20_Training_001_t1ce.nii", "t1ce", "BraTS20_Training_001"),
        ("BraTS-GLI-00000-000-t1n.nii.gz", "t1", "BraTS-GLI-00000-000"),
        ("BraTS-GLI-00000-000-t2f.nii.gz", "flair", "BraTS-GLI-00000-000"),
        ("a-t1c.png", "t1ce", "a"),
        ("T2W.NII.GZ", "t2", ""),
        ("x.1_t2.nii.gz", "t2", "x.1"),
        ("scant1.nii", None, "scant1"),
        ("t1_brain.nii", "t1", ""),
        ("", None, ""),
    ],
)
def test_a_name_says_sequence_and_person(name: str, sequence: str | None, rest: str) -> None:
    said = understood(stem(name))
    assert (said.sequence, said.id) == (sequence, rest)


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("ID_seg.nii.gz", "ID"),
        ("BraTS-GLI-00000-000-seg.nii.gz", "BraTS-GLI-00000-000"),
        ("sub-1_dseg.nii", "sub-1"),
        ("seg.nii.gz", ""),
        ("ID_SEG.nii", "ID"),
        ("myseg.nii.gz", None),
    ],
)
def test_a_name_says_that_it_outlines(name: str, owner: str | None) -> None:
    said = understood(stem(name))
    assert said.outline is (owner is not None)
    assert owner is None or said.id == owner


@pytest.mark.parametrize(
    ("path", "patient", "visit"),
    [
        ("/d/sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", "sub-01", "ses-2"),
        ("/d/sub-01/anat/scan.nii", "sub-01", ""),
        ("/d/BraTS-GLI-00001-002/BraTS-GLI-00001-002-t1c.nii.gz", "BraTS-GLI-00001", "002"),
        ("/d/BraTS20_Training_001/BraTS20_Training_001_t1.nii", "BraTS20_Training_001", ""),
        ("/d/Smith/t1.nii.gz", "Smith", ""),
        ("/d/Smith/ses-1_t1.nii.gz", "Smith", "ses-1"),
        ("/d/Smith/slice-003.png", "Smith", ""),
        ("/d/0001.jpg", "0001", ""),
    ],
)
def test_patient_and_visit_of_a_single_file(path: str, patient: str, visit: str) -> None:
    file = Path(path)
    above = [folder.name for folder in file.parents]
    item = Item((stem(file.name),), picture=file.suffix in (".png", ".jpg"))
    assert layout([item], above).decisions[0].person == Person(patient, visit)


def test_the_nearest_config_counts_whole(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    config(tmp_path, channels=["T1w", "flair"], stack=True)
    config(tmp_path / "a", stack=False)
    far, near = find_config(tmp_path), find_config(tmp_path / "a" / "b")
    assert far is not None
    assert (far.channels, far.stack) == (("t1", "flair"), True)
    assert near is not None
    assert (near.channels, near.stack) == ((), False)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "no JSON object"),
        ('{"chanels": ["t1"]}', "unknown setting 'chanels'"),
        ('{"channels": "t1"}', "not a list of names"),
        ('{"channels": [1]}', "not a list of names"),
        ('{"stack": "yes"}', "neither true nor false"),
        ("[" * 60_000, "cannot be read as JSON"),
    ],
)
def test_a_wrong_config_is_told_once_and_the_rest_goes_on(tmp_path: Path, text: str, what: str) -> None:
    for name in ("bad/x/1.png", "bad/y/2.png", "good/3.png"):
        picture(tmp_path / name)
    volume(tmp_path / "bad" / "z" / "4.nii")
    (tmp_path / "bad" / "cbir.json").write_text(text)
    found = discover(tmp_path)
    assert [source.path.name for source in found.sources] == ["3.png"]
    assert len(found.failures) == 1
    assert what in str(found.failures[0])


# NIfTI


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
def test_all_48_orientations_are_one_image(
    tmp_path: Path, order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    truth = nib.Nifti1Image(BLOCK, np.array([[2, 0, 0, -5], [0, 3, 0, 7], [0, 0, 4, 9], [0, 0, 0, 1.0]]))
    turned = truth.as_reoriented(np.array(list(zip(order, flips, strict=True))))
    path = tmp_path / "a.nii"
    nib.save(turned, path)
    (scan,) = read(path)
    np.testing.assert_array_equal(scan.voxels, BLOCK)
    assert scan.affine is not None
    np.testing.assert_allclose(scan.affine, truth.affine)
    assert scan.spacing == (2, 3, 4)


def test_an_oblique_image_is_turned_to_its_nearest_axes(tmp_path: Path) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.array([[0, -2 * s, 3 * c, 1], [-1.0, 0, 0, 2], [0, 2 * c, 3 * s, 3], [0, 0, 0, 1]])
    path = volume(tmp_path / "a.nii.gz", affine=affine)
    (scan,) = read(path)
    canonical = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(scan.voxels, canonical.get_fdata())
    np.testing.assert_allclose(scan.affine, canonical.affine, atol=1e-6)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_versions_and_byte_orders(tmp_path: Path, kind: Any, order: str, suffix: str) -> None:
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    nib.save(kind(BLOCK, np.eye(4), header), tmp_path / f"a{suffix}")
    (scan,) = read(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(scan.voxels, BLOCK)
    assert scan.voxels.dtype == np.int16
    assert scan.voxels.dtype.isnative


@pytest.mark.parametrize(
    ("stored", "kept"),
    [("u1", "u1"), ("i1", "i1"), ("u2", "u2"), ("i2", "i2"), ("i4", "f4"), ("f4", "f4"), ("f8", "f4")],
)
def test_types(tmp_path: Path, stored: str, kept: str) -> None:
    (scan,) = read(volume(tmp_path / "a.nii", BLOCK.astype(stored)))
    assert scan.voxels.dtype == np.dtype(kept)
    np.testing.assert_array_equal(scan.voxels, BLOCK)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    path = volume(tmp_path / "a.nii.gz", scl_slope=0.5, scl_inter=-3)
    (scan,) = read(path)
    assert scan.voxels.dtype == np.float32
    np.testing.assert_array_equal(scan.voxels, BLOCK / 2 - 3)


def test_channels_become_sequences(tmp_path: Path) -> None:
    voxels = RNG.normal(size=(4, 5, 6, 1, 3)).astype(np.float32)  # time has one point, vectors have three
    volume(tmp_path / "p_t2.nii.gz", voxels)
    with pytest.raises(ReadError, match="displacement field"):
        read(tmp_path / "p_t2.nii.gz")
    config(tmp_path, channels=["t1", "FLAIR", "perfusion"])
    scans = read(tmp_path / "p_t2.nii.gz")
    assert [scan.sequence for scan in scans] == ["t1", "flair", "perfusion"]
    for i, scan in enumerate(scans):
        np.testing.assert_array_equal(scan.voxels, voxels[..., 0, i])


def test_a_named_single_volume_keeps_its_own_sequence(tmp_path: Path) -> None:
    config(tmp_path, channels=["t1", "flair"])
    (scan,) = read(volume(tmp_path / "p_t2.nii"))
    assert scan.sequence == "t2"


def test_a_time_series_is_its_first_volume(tmp_path: Path) -> None:
    voxels = RNG.integers(0, 99, (4, 5, 6, MAX_VOLUMES + 1), dtype=np.int16)
    (scan,) = read(volume(tmp_path / "a_bold.nii.gz", voxels))
    np.testing.assert_array_equal(scan.voxels, voxels[..., 0])
    assert len(read(volume(tmp_path / "b.nii.gz", voxels[..., :-1]))) == MAX_VOLUMES


def test_an_empty_channel_is_left_out(tmp_path: Path) -> None:
    voxels = np.stack([BLOCK, np.zeros_like(BLOCK), BLOCK + 1], axis=3)
    config(tmp_path, channels=["t1", "t2", "flair"])
    assert [scan.sequence for scan in read(volume(tmp_path / "a.nii", voxels))] == ["t1", "flair"]
    voxels[..., 0], voxels[..., 2] = 1, 2
    assert "same value" in reason(volume(tmp_path / "b.nii", voxels))


def test_a_plane_is_a_scan_of_one_slice(tmp_path: Path) -> None:
    (scan,) = read(volume(tmp_path / "a.nii", BLOCK[:, :, 0], sform_code=0, qform_code=0))
    assert scan.voxels.shape == (2, 3, 1)
    assert len(scan) == 1


def test_regions_on_the_same_grid_are_attached(tmp_path: Path) -> None:
    inside = BLOCK > 20
    las = np.diag([-1, 1, 1, 1.0])
    for name in ("ID_t1", "ID_flair", "IDX_t1", "ID2_t1"):
        volume(tmp_path / f"{name}.nii.gz")
    volume(tmp_path / "ID_t2.nii.gz", affine=np.diag([1, 1, 2, 1.0]))
    volume(
        tmp_path / "ID_seg.nii.gz",
        inside[::-1].astype(np.uint8) * 4,
        las @ nib.affines.from_matvec(np.eye(3), [-1, 0, 0]),
    )
    volume(tmp_path / "ID_flair_mask.nii.gz", (BLOCK > 22).astype(np.uint8))
    volume(tmp_path / "ID2_seg.nii.gz", np.zeros_like(BLOCK))
    volume(tmp_path / "IDY" / "t1.nii.gz")
    volume(tmp_path / "IDY" / "seg.nii.gz", (BLOCK > 1).astype(np.uint8))
    found = discover(tmp_path)
    assert found.taken == {"NIfTI volumes": 6, "region files": 4}
    regions = {stem(source.path.name): read(source)[0].region for source in found.sources}
    np.testing.assert_array_equal(regions["ID_t1"], inside)
    np.testing.assert_array_equal(regions["ID_flair"], BLOCK > 22)
    assert regions["ID_t2"] is None  # on another grid
    assert regions["IDX_t1"] is None  # somebody else
    assert regions["ID2_t1"] is None  # nothing is outlined
    np.testing.assert_array_equal(regions["t1"], BLOCK > 1)
    (scan,) = read(tmp_path / "ID_t1.nii.gz")
    np.testing.assert_array_equal(scan.region, inside)


def test_a_region_is_no_scan(tmp_path: Path) -> None:
    volume(tmp_path / "ID_seg.nii.gz")
    assert "is a region" in reason(tmp_path / "ID_seg.nii.gz")
    assert "holds no image" in reason(tmp_path)


def test_a_damaged_region_is_told(tmp_path: Path) -> None:
    volume(tmp_path / "ID_t1.nii.gz")
    (tmp_path / "ID_seg.nii.gz").write_text("no mask")
    with pytest.raises(ReadError, match=r"ID_seg\.nii\.gz: is not a NIfTI file"):
        read(tmp_path / "ID_t1.nii.gz")


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ({"dim": [3, 10_000, 10_000, 10_000, 1, 1, 1, 1]}, "1,000,000,000,000 voxels"),
        ({"dim": [3, 2, 3, 5, 1, 1, 1, 1]}, "truncated"),
        ({"dim": [4, 2, 3, 4, 32_000, 1, 1, 1]}, "truncated"),
        ({"dim": [3, 2, 0, 4, 1, 1, 1, 1]}, "holds no image"),
        ({"dim": [1, 24, 1, 1, 1, 1, 1, 1]}, "too small"),
        ({"dim": [5, 2, 3, 1, 2, 2, 1, 1]}, "more than one axis beyond space"),
        ({"datatype": 999}, "damaged"),
        ({"datatype": 32, "dim": [3, 2, 3, 1, 1, 1, 1, 1]}, "complex64"),
        ({"datatype": 128, "dim": [3, 2, 3, 2, 1, 1, 1, 1]}, "RGB"),
        ({"vox_offset": 0}, "inside its header"),
        ({"vox_offset": np.inf}, "damaged"),
        ({"vox_offset": 1e30}, "truncated"),
        ({"magic": b"ni1"}, "pair"),
        ({"magic": b""}, "Analyze"),
        ({"srow_x": [0, 0, 0, 0]}, "singular"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "singular"),
        ({"srow_x": [0, 1, 0, 0]}, "singular"),
        ({"sform_code": 0, "pixdim": [1, 1, 0, 1, 1, 1, 1, 1]}, "no voxel size"),
        ({"sform_code": 0, "qform_code": 1, "pixdim": [1, 1, np.nan, 1, 1, 1, 1, 1]}, "no voxel size"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 5}, "damaged"),
        ({"scl_slope": 1, "scl_inter": np.inf}, "damaged"),
        ({"scl_slope": 1e38}, "NaN or infinite"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_false_headers_are_refused(tmp_path: Path, header: dict[str, Any], what: str, suffix: str) -> None:
    assert what in reason(volume(tmp_path / f"a{suffix}", **header))


def test_a_sform_needs_no_voxel_size(tmp_path: Path) -> None:
    (scan,) = read(volume(tmp_path / "a.nii", affine=np.diag([2, 2, 3, 1]), pixdim=[0] * 8))
    assert scan.spacing == (2, 2, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_non_finite_voxel_is_refused(tmp_path: Path, value: float) -> None:
    voxels = BLOCK.astype(np.float32)
    voxels[0, 1, 2] = value
    assert "1 of its 24 voxels are NaN or infinite" in reason(volume(tmp_path / "a.nii.gz", voxels))


def test_a_constant_image_is_refused(tmp_path: Path) -> None:
    assert "same value (7)" in reason(volume(tmp_path / "a.nii.gz", np.full_like(BLOCK, 7)))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_no_truncated_nifti_is_read(tmp_path: Path, suffix: str) -> None:
    voxels = RNG.integers(0, 999, (9, 9, 9), dtype=np.int16)
    content = volume(tmp_path / f"a{suffix}", voxels).read_bytes()
    for length in (0, 1, 3, 4, 100, 347, 350, 352, len(content) // 2, len(content) - 1):
        (tmp_path / f"a{suffix}").write_bytes(content[:length])
        reason(tmp_path / f"a{suffix}")


def test_a_short_stream_in_a_whole_gzip_is_truncated(tmp_path: Path) -> None:
    voxels = RNG.integers(0, 999, (4, 4, 4, MAX_VOLUMES + 1), dtype=np.int16)
    path = volume(tmp_path / "a.nii.gz", voxels)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-10]))
    assert "truncated" in reason(path)


def test_a_wrong_checksum_is_noticed(tmp_path: Path) -> None:
    path = volume(tmp_path / "a.nii.gz")
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    assert "CRC" in reason(path)


def test_names_are_not_believed(tmp_path: Path) -> None:
    (tmp_path / "text.nii.gz").write_text("participant_id\tgrade\n" * 50)
    assert "is not a NIfTI file" in reason(tmp_path / "text.nii.gz")
    zipped = volume(tmp_path / "a.nii.gz")
    (scan,) = read(zipped.rename(tmp_path / "a.nii"))
    np.testing.assert_array_equal(scan.voxels, BLOCK)


def test_the_limit_is_on_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_VOXELS", 24)
    assert len(read(volume(tmp_path / "a.nii"))) == 1
    assert "more than the limit of 24" in reason(volume(tmp_path / "b.nii", np.stack([BLOCK] * 2, axis=3)))
    assert len(read(volume(tmp_path / "c.nii", np.stack([BLOCK] * 9, axis=3)))) == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(volume(tmp_path / "a.nii").read_bytes())
    for place in data.draw(st.lists(st.integers(0, 351), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    (tmp_path / "a.nii").write_bytes(content)
    try:
        scans = read(tmp_path / "a.nii")
    except ReadError:
        return
    assert all(np.isfinite(scan.voxels).all() and min(scan.spacing or (0,)) > 0 for scan in scans)


# Rasters


def shown(path: Path) -> NDArray[Any]:
    (scan,) = read(path)
    (plane,) = scan.slices()
    return plane.pixels


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF", ".webp"])
def test_grey_images_are_shown_as_they_are(tmp_path: Path, suffix: str) -> None:
    pixels = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    path = picture(tmp_path / f"a{suffix}", pixels, **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(shown(path), pixels)


def test_jpeg_is_read(tmp_path: Path) -> None:
    pixels = np.tile(np.arange(0, 160, 10, dtype=np.uint8), (16, 1))
    path = picture(tmp_path / "a.jpg", pixels, quality=100)
    np.testing.assert_allclose(shown(path).astype(int), pixels, atol=3)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("order", "<>")
def test_16_bits_are_kept(tmp_path: Path, suffix: str, order: str) -> None:
    pixels = RNG.integers(0, 65536, (5, 7)).astype(f"{order}u2")
    values = shown(picture(tmp_path / f"a{suffix}", pixels))
    assert values.dtype == np.uint16
    np.testing.assert_array_equal(values, pixels)


def test_wide_tiff_is_float(tmp_path: Path) -> None:
    for dtype in (np.int32, np.float32):
        pixels = RNG.integers(-1000, 1000, (5, 7)).astype(dtype)
        values = shown(picture(tmp_path / "a.tif", pixels))
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, pixels)
    pixels[0, 0] = np.nan
    assert "NaN or infinite" in reason(picture(tmp_path / "a.tif", pixels))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_is_turned_round(tmp_path: Path, dtype: Any) -> None:
    """As the TIFF tag 262 says; Pillow turns 8 bits only, and writes no such file: the tag is patched."""
    pixels = np.arange(35, dtype=dtype).reshape(5, 7)
    path = picture(tmp_path / "a.tif", pixels)
    entry = struct.pack("<HHIH", 262, 3, 1, 1)
    content = path.read_bytes()
    assert content.count(entry) == 1
    path.write_bytes(content.replace(entry, struct.pack("<HHIH", 262, 3, 1, 0)))
    values = shown(path).astype(float)
    np.testing.assert_array_equal(values - values[0, 0], -(pixels.astype(float)))


def test_colour_is_luminance_or_channels(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = picture(tmp_path / "a.png", pixels)
    np.testing.assert_allclose(shown(path), pixels @ [0.299, 0.587, 0.114], atol=0.51)  # ITU-R BT.601
    config(tmp_path, channels=["t1", "flair", "t1ce"])
    scans = read(path)
    assert [scan.sequence for scan in scans] == ["t1", "flair", "t1ce"]
    for i, scan in enumerate(scans):
        np.testing.assert_array_equal(scan.slice(0).pixels, pixels[..., i])
    config(tmp_path, channels=["t1", "flair"])
    assert "3 channels, but cbir.json names 2" in reason(path)
    config(tmp_path, channels=["t1"])
    assert [scan.sequence for scan in read(path)] == ["t1"]


def test_an_empty_colour_channel_is_left_out(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    pixels[..., 1] = 9
    config(tmp_path, channels=["t1", "flair", "t1ce"])
    assert [scan.sequence for scan in read(picture(tmp_path / "a.png", pixels))] == ["t1", "t1ce"]


def test_palette_transparency_and_bits(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    image = Image.fromarray(255 - grey, "P")
    image.putpalette([255 - i for i in range(256) for _ in "rgb"])
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(shown(tmp_path / "p.png"), grey)
    alpha = np.where(grey > 128, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(
        shown(picture(tmp_path / "la.png", np.dstack([grey, alpha]))), grey * (alpha > 0)
    )
    rgba = np.dstack([grey, grey, grey, alpha])
    np.testing.assert_array_equal(shown(picture(tmp_path / "rgba.png", rgba)), grey * (alpha > 0))
    np.testing.assert_array_equal(shown(picture(tmp_path / "bits.png", grey > 128)), (grey > 128) * 255)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda p: p),
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (4, lambda p: p[::-1]),
        (5, lambda p: p.T),
        (6, lambda p: np.rot90(p, -1)),
        (7, lambda p: p[::-1, ::-1].T),
        (8, lambda p: np.rot90(p)),
    ],
)
def test_exif_orientation_is_applied_once(tmp_path: Path, suffix: str, orientation: int, turned: Any) -> None:
    pixels = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    path = picture(tmp_path / f"a{suffix}", pixels, exif=exif, **options)
    np.testing.assert_array_equal(shown(path), turned(pixels))


def test_pages_are_slices(tmp_path: Path) -> None:
    pages = RNG.integers(0, 65536, (4, 5, 7)).astype(np.uint16)
    rest = [Image.fromarray(page) for page in pages[1:]]
    path = picture(tmp_path / "a_t2.tif", pages[0], save_all=True, append_images=rest)
    (scan,) = read(path)
    assert (len(scan), scan.sequence) == (4, "t2")
    for page, plane in zip(pages, scan.slices(), strict=True):
        np.testing.assert_array_equal(plane.pixels, page)


def test_unequal_pages_and_animations_are_refused(tmp_path: Path) -> None:
    first, other = RNG.integers(0, 256, (2, 5, 7), dtype=np.uint8)
    path = picture(tmp_path / "a.tif", first, save_all=True, append_images=[Image.fromarray(other[1:])])
    assert "7×4 grey uint8, but the first slice is 7×5" in reason(path)
    for name in ("a.png", "a.webp"):
        path = picture(tmp_path / name, first, save_all=True, append_images=[Image.fromarray(other)])
        assert "animation of 2 frames" in reason(path)


def test_small_constant_and_false_images_are_refused(tmp_path: Path) -> None:
    assert "too small" in reason(picture(tmp_path / "a.png", np.zeros((1, 1), np.uint8)))
    assert "too small" in reason(picture(tmp_path / "b.png", np.arange(9, dtype=np.uint8)[None]))
    assert "same value (3)" in reason(picture(tmp_path / "c.png", np.full((4, 4), 3, np.uint8)))
    (tmp_path / "d.jpg").write_text("no image")
    assert "whatever its name says" in reason(tmp_path / "d.jpg")
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / "e.gif")
    assert "whatever its name says" in reason((tmp_path / "e.gif").rename(tmp_path / "e.png"))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_no_truncated_image_is_read(tmp_path: Path, suffix: str) -> None:
    path = picture(tmp_path / f"a{suffix}", RNG.integers(0, 256, (64, 64), dtype=np.uint8))
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) * 3 // 4):
        path.write_bytes(content[:length])
        reason(path)


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that declares a size; its pixels are never reached."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )
    return path


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpacked(*_: Any) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(Image.Image, "load", unpacked)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", unpacked)
    for side in (10_000, 30_000, 2**31 - 1):  # Pillow warns of the first and refuses the others
        assert "Pillow's limit" in reason(bomb(tmp_path / "a.png", side, side))
    monkeypatch.setattr(limits, "MAX_VOXELS", 99)
    assert "more than the limit of 99" in reason(bomb(tmp_path / "a.png", 10, 10))


def test_a_bomb_of_pages_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Image.fromarray(RNG.integers(0, 256, (5, 7), dtype=np.uint8))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page] * 9)
    monkeypatch.setattr(limits, "MAX_VOXELS", 349)
    assert "350 voxels" in reason(tmp_path / "a.tif")


def test_a_bomb_of_slices_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slices(tmp_path / "P1", *(f"slice-{i}.png" for i in range(10)))
    monkeypatch.setattr(limits, "MAX_VOXELS", 349)
    with pytest.raises(ReadError, match=r"slice-0\.png: .*350 voxels"):
        read(tmp_path / "P1")


def test_a_circle_of_pages_ends(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    path = picture(tmp_path / "a.tif", pixels)
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, start)
    struct.pack_into("<I", content, start + 2 + 12 * entries, start)  # the next page is this one
    path.write_bytes(content)
    np.testing.assert_array_equal(shown(path), pixels)


def test_masks_of_single_images(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    mask = np.zeros((5, 7), np.uint8)
    mask[1, 2] = 1
    picture(tmp_path / "a_mask.png", mask)
    (scan,) = read(tmp_path / "a.png")
    np.testing.assert_array_equal(scan.slice(0).region, mask > 0)
    picture(tmp_path / "b.png")
    picture(tmp_path / "b_seg.png", mask[1:])
    with pytest.raises(ReadError, match=r"b_seg\.png: has 7×4×1 pixels, unlike its image b\.png"):
        read(tmp_path / "b.png")


def test_a_jpeg_mask_is_what_is_bright(tmp_path: Path) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[3:20, 5:21] = 255
    picture(tmp_path / "a.png", RNG.integers(0, 256, (32, 32), dtype=np.uint8))
    picture(tmp_path / "a_mask.jpg", mask, quality=60)
    assert np.asarray(Image.open(tmp_path / "a_mask.jpg"))[mask == 0].max() > 0
    (scan,) = read(tmp_path / "a.png")
    np.testing.assert_array_equal(scan.slice(0).region, mask > 0)


# Stacks


def slices(folder: Path, *names: str) -> NDArray[np.uint8]:
    pixels = RNG.integers(0, 256, (len(names), 5, 7), dtype=np.uint8)
    for name, page in zip(names, pixels, strict=True):
        picture(folder / name, page)
    return pixels


def kinds(root: Path, labels: Path | None = None) -> dict[str, str]:
    found = discover(root, () if labels is None else load_tables(labels))
    assert not found.failures
    return {str(source.path.relative_to(root)): source.kind for source in found.sources}


def test_a_folder_of_slices_is_one_scan_in_natural_order(tmp_path: Path) -> None:
    pixels = slices(
        tmp_path / "P1",
        "slice-2.png",
        "Slice_10.png",
        "slice9.png",
        "slice-08.png",
        *(f"slice {i}.png" for i in range(3, 8)),
    )
    mask = np.zeros((5, 7), np.uint8)
    mask[0, 1] = 255
    picture(tmp_path / "P1" / "slice-08_mask.png", mask)
    assert kinds(tmp_path) == {"P1": "stack"}
    (scan,) = read(tmp_path / "P1")
    assert (len(scan), scan.patient_id, scan.source) == (9, "P1", tmp_path / "P1")
    for position, original in enumerate([0, 4, 5, 6, 7, 8, 3, 2, 1]):
        np.testing.assert_array_equal(scan.slice(position).pixels, pixels[original])
        region = scan.slice(position).region
        np.testing.assert_array_equal(region, mask > 0 if position == 6 else np.zeros((5, 7), bool))


def test_other_images_are_scans_on_their_own(tmp_path: Path) -> None:
    slices(tmp_path / "a", "1.png", "2.png")
    slices(tmp_path / "b", "slice-1.png", "slice-2.png", "cover.png")
    slices(tmp_path / "c", "slice-1.png")
    assert set(kinds(tmp_path).values()) == {"raster"}
    assert len(kinds(tmp_path)) == 6


def test_config_comes_before_labels_and_labels_before_names(tmp_path: Path) -> None:
    slices(tmp_path / "P1", "a_1.png", "a_2.png")
    slices(tmp_path / "P2", "slice-1.png", "slice-2.png")
    single = {"P1/a_1.png": "raster", "P1/a_2.png": "raster"}
    assert kinds(tmp_path) == {**single, "P2": "stack"}
    by_patient, by_file = tmp_path / "by_patient.csv", tmp_path / "by_file.csv"
    by_patient.write_text("participant_id\nP1\n")
    by_file.write_text("file,participant_id\nP2/slice-1.png,P2\nP2/slice-2.png,P2\n")
    assert kinds(tmp_path, by_patient) == {"P1": "stack", "P2": "stack"}
    assert set(kinds(tmp_path, by_file).values()) == {"raster"}
    config(tmp_path / "P1", stack=False)
    assert kinds(tmp_path, by_patient) == {**single, "P2": "stack"}
    config(tmp_path / "P1", stack=True)
    assert kinds(tmp_path) == {"P1": "stack", "P2": "stack"}


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["slice-1.png", "slice-2.png", "slice-4.png"], "slice 3 is missing"),
        (
            ["slice-1.png", "slice-01.png", "slice-2.png"],
            r"slice 1 comes 2 times \(slice-01.png and slice-1.png\)",
        ),
        (["slice-1.png", "slice-1.tif", "slice-2.png"], "slice 1 comes 2 times"),
    ],
)
def test_a_stack_with_gaps_or_doubles_is_refused_and_the_rest_goes_on(
    tmp_path: Path, names: list[str], what: str
) -> None:
    slices(tmp_path / "P1", *names)
    slices(tmp_path / "P2", "slice-7.png", "slice-8.png")
    found = discover(tmp_path)
    assert [source.path for source in found.sources] == [tmp_path / "P2"]
    with pytest.raises(ReadError, match=f"P1: {what}.*; .*cbir.json"):
        read(tmp_path / "P1")
    assert len(found.failures) == 1


def test_a_stack_without_numbers_is_refused(tmp_path: Path) -> None:
    slices(tmp_path / "P1", "1.png", "a.png")
    config(tmp_path, stack=True)
    assert "a.png has no number" in reason(tmp_path / "P1")


@pytest.mark.parametrize(
    ("pixels", "what"),
    [
        (np.eye(6, dtype=np.uint8), "6×6 grey uint8, but the first slice is 7×5 grey uint8"),
        (np.eye(5, 7).astype(np.uint16), "7×5 grey uint16"),
        (np.dstack([np.eye(5, 7).astype(np.uint8)] * 3), "7×5 colour uint8"),
    ],
)
def test_unequal_slices_are_refused(tmp_path: Path, pixels: NDArray[Any], what: str) -> None:
    slices(tmp_path / "P1", "slice-1.png", "slice-2.png")
    picture(tmp_path / "P1" / "slice-3.png", pixels)
    config(tmp_path, channels=["t1", "flair", "t1ce"])
    with pytest.raises(ReadError, match=f"slice-3.png: is {what}"):
        read(tmp_path / "P1")


def test_folders_of_slices_name_sequence_and_patient(tmp_path: Path) -> None:
    for folder in ("P1.2/t1", "P1.3/FLAIR", "P1.4_t2"):
        slices(tmp_path / folder, "slice-1.png", "slice-2.png")
    found = [(source.patient_id, source.sequence) for source in discover(tmp_path).sources]
    assert found == [("P1.2", "t1"), ("P1.3", "flair"), ("P1.4", "t2")]


def test_a_slice_asked_for_alone_is_one_image_of_its_patient(tmp_path: Path) -> None:
    slices(tmp_path / "P1", "slice-1.png", "slice-2.png")
    (scan,) = read(tmp_path / "P1" / "slice-2.png")
    assert (len(scan), scan.patient_id, scan.source.name) == (1, "P1", "slice-2.png")


# Discovery


def test_what_was_taken_as_what(tmp_path: Path) -> None:
    volume(tmp_path / "sub-1" / "sub-1_T1w.nii.gz")
    volume(tmp_path / "sub-1" / "sub-1_seg.nii.gz", (BLOCK > 22).astype(np.uint8))
    slices(tmp_path / "P1", "slice-1.png", "slice-2.png")
    slices(tmp_path / "P1" / "more", "x.png")
    slices(tmp_path / ".hidden", "y.png")
    for name in ("README", "DICOMDIR", "notes.txt", ".z.png", "participants.tsv", "labels.csv"):
        (tmp_path / name).write_text("file\nx\n")
    config(tmp_path, stack=True)
    found = discover(tmp_path, load_tables(tmp_path / "labels.csv"))
    assert found.taken == {
        "NIfTI volumes": 1,
        "folders of slices": 1,
        "single images": 1,
        "region files": 1,
        "ignored files": 2,
    }
    assert [source.path.relative_to(tmp_path).as_posix() for source in found.sources] == [
        "P1",
        "P1/more/x.png",
        "sub-1/sub-1_T1w.nii.gz",
    ]
    assert discover(tmp_path) == discover(tmp_path)


def test_formats_share_a_folder(tmp_path: Path) -> None:
    write_dicom(tmp_path / "P1", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    volume(tmp_path / "P1" / "x.nii")
    (tmp_path / "P1" / "000_seg").write_bytes((tmp_path / "P1" / "000").read_bytes())
    found = discover(tmp_path)
    assert found.taken == {"NIfTI volumes": 1, "DICOM series": 1, "ignored files": 1}
    assert [(source.kind, len(source.files)) for source in found.sources] == [("dicom", 4), ("nifti", 1)]
    slices(tmp_path / "P1", "slice-1.png", "slice-2.png")
    both = discover(tmp_path)
    assert both.sources == found.sources
    assert "folders of slices, but holds another format" in str(both.failures[0])


def test_an_empty_folder_and_nothing_at_all(tmp_path: Path) -> None:
    assert "is empty" in reason(tmp_path)
    (tmp_path / "a.txt").touch()
    assert "no image among its 1 files" in reason(tmp_path)
    assert "not an image of a known format" in reason(tmp_path / "a.txt")
    assert "does not exist" in reason(tmp_path / "b.nii")


def test_links_are_followed_once(tmp_path: Path) -> None:
    volume(tmp_path / "data" / "b" / "x.nii")
    volume(tmp_path / "outside" / "y.nii")
    root = tmp_path / "data"
    (root / "a").symlink_to(root / "b")
    (root / "z").symlink_to(root / "b")
    (root / "b" / "loop").symlink_to(root)
    (root / "b" / "other").symlink_to(tmp_path / "outside")
    (root / "c.nii").symlink_to(tmp_path / "outside" / "y.nii")
    (root / "itself").symlink_to(root / "itself")
    (root / "gone.nii").symlink_to(root / "nowhere")
    found = discover(root)
    names = [source.path.relative_to(root).as_posix() for source in found.sources]
    assert names == ["b/other/y.nii", "b/x.nii", "c.nii"]
    assert sorted(Path(failure.where).name for failure in found.failures) == ["gone.nii", "itself"]
    assert all("leads nowhere" in str(failure) for failure in found.failures)


def test_unreadable_files_and_folders_are_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the system's refusal is played."""
    volume(tmp_path / "a.nii")
    volume(tmp_path / "closed" / "b.nii")
    locked = volume(tmp_path / "c.nii")
    scandir, opened = os.scandir, Path.open

    def closed(folder: Any) -> Any:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    def refused(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == locked:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "scandir", closed)
    monkeypatch.setattr(Path, "open", refused)
    found = discover(tmp_path)
    assert [source.path.name for source in found.sources] == ["a.nii", "c.nii"]
    assert [str(failure) for failure in found.failures] == [
        f"{tmp_path / 'closed'}: cannot be opened (Permission denied); see what it is, and who may read it"
    ]
    assert len(read(found.sources[0])) == 1
    with pytest.raises(ReadError, match=r"c\.nii: cannot be read \(Permission denied\)"):
        read(found.sources[1])


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii")
    os.mkfifo(tmp_path / "b")
    assert "is empty" in reason(tmp_path)


def test_labels_name_the_patient(tmp_path: Path) -> None:
    volume(tmp_path / "TCGA-02-0006_lesion-2.nii.gz")
    volume(tmp_path / "BraTS-GLI-00000-001-t1c.nii.gz")
    volume(tmp_path / "sub-01" / "ses-2" / "sub-01_ses-2_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\nTCGA-02-0006\n01\nBraTS-GLI-00000\n")
    labels = load_tables(tmp_path / "participants.tsv")
    ids = [(source.patient_id, source.study_id) for source in discover(tmp_path, labels).sources]
    assert ids == [
        ("BraTS-GLI-00000", "001"),
        ("TCGA-02-0006", ""),
        ("sub-01", "ses-2"),  # the row 01 is found, and a person keeps the id that files give
    ]
    assert read(tmp_path / "TCGA-02-0006_lesion-2.nii.gz")[0].patient_id == "TCGA-02-0006"


def test_a_row_that_fits_two_files_is_refused(tmp_path: Path) -> None:
    slices(tmp_path / "a", "1.png")
    slices(tmp_path / "b", "1.png")
    (tmp_path / "t.csv").write_text("file,tumour\n1.png,x\n")
    with pytest.raises(LabelsError, match=r"row 1\.png fits both .*a/1\.png and .*b/1\.png"):
        discover(tmp_path, load_tables(tmp_path / "t.csv"))


def test_two_names_of_a_file_that_is_there_are_no_contradiction(tmp_path: Path) -> None:
    slices(tmp_path, "1.png")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").symlink_to(tmp_path / "1.png")
    (tmp_path / "t.csv").write_text("file,patient\n1.png,x\n")
    found = discover(tmp_path, load_tables(tmp_path / "t.csv"))
    assert [source.patient_id for source in found.sources] == ["x", "x"]


def test_a_fingerprint_changes_with_each_file_and_moves_with_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "here"
    slices(root / "P1", "slice-1.png", "slice-2.png")
    picture(root / "P1" / "slice-1_mask.png", np.ones((5, 7), np.uint8))
    config(root, channels=["t1", "t2", "flair"])

    def fingerprint() -> str:
        (source,) = discover(root).sources
        return source.fingerprint()

    prints = [fingerprint()]
    for name in ("P1/slice-2.png", "P1/slice-1_mask.png", "cbir.json"):
        os.utime(root / name, ns=(0, len(prints)))
        prints.append(fingerprint())
    (root / "P1" / "slice-1_mask.png").unlink()
    prints.append(fingerprint())
    slices(root / "P1", "slice-3.png")
    prints.append(fingerprint())
    assert len(set(prints)) == len(prints)
    root = root.rename(tmp_path / "there")
    assert fingerprint() == prints[-1]
    (source,) = discover(root).sources
    (root / "P1" / "slice-2.png").unlink()
    with pytest.raises(ReadError, match=r"slice-2\.png"):
        source.fingerprint()


def test_no_image_with_a_telling_name_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume(tmp_path / "a_t1.nii.gz")
    slices(tmp_path, "b_flair.png")
    opened = []
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: opened.append(path))
    monkeypatch.setattr("builtins.open", lambda path, *_, **__: opened.append(path))
    assert len(discover(tmp_path).sources) == 2
    assert opened == []


# Real data


@pytest.mark.real
def test_real_volumes_are_what_nibabel_reads(real: Path) -> None:
    found = discover(real / "volumes")
    assert found.taken == {"NIfTI volumes": 24, "region files": 4}
    for source in found.sources:
        if source.patient_id not in ("TCGA-02-0006", "TCGA-FG-6692"):
            continue
        (scan,) = read(source)
        canonical = nib.as_closest_canonical(nib.load(source.path))
        assert nib.aff2axcodes(scan.affine) == ("R", "A", "S")
        np.testing.assert_array_equal(scan.voxels, np.asarray(canonical.dataobj))
        np.testing.assert_allclose(scan.affine, canonical.affine)
        assert scan.sequence == source.path.name.split("_")[1].removesuffix(".nii.gz")
        seg = source.path.with_name(f"{source.patient_id}_seg.nii.gz")
        if seg.exists():
            mask = nib.as_closest_canonical(nib.load(seg)).get_fdata() > 0
            np.testing.assert_array_equal(scan.region, mask)
        else:
            assert scan.region is None


@pytest.mark.real
def test_real_stack_has_three_sequences(real: Path) -> None:
    folder = sorted(path for path in (real / "tcga-lgg").iterdir() if path.is_dir())[0]
    scans = read(folder)
    assert [(scan.sequence, scan.patient_id) for scan in scans] == [
        (sequence, folder.name) for sequence in ("t1", "flair", "t1ce")
    ]
    files = sorted(folder.glob("slice-*.jpg"))
    assert [len(scan) for scan in scans] == [len(files)] * 3
    for position, file in enumerate(files):
        pixels = np.asarray(Image.open(file))
        mask = file.with_name(f"{file.stem}_mask.png")
        inside = np.asarray(Image.open(mask)) > 0 if mask.exists() else np.zeros(pixels.shape[:2], bool)
        for channel, scan in enumerate(scans):
            np.testing.assert_array_equal(scan.slice(position).pixels, pixels[..., channel])
            np.testing.assert_array_equal(scan.slice(position).region, inside)


@pytest.mark.real
def test_real_image_and_real_lesion(real: Path) -> None:
    path = real / "figshare" / "images" / "0001.jpg"
    np.testing.assert_array_equal(shown(path), np.asarray(Image.open(path)))
    path = real / "brats-lesions" / "BraTS-001_lesion-1.nii.gz"
    scans = read(path)
    assert [scan.sequence for scan in scans] == ["t1", "t1ce", "t2", "flair"]
    voxels = np.asarray(nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32))
    for channel, scan in enumerate(scans):
        np.testing.assert_array_equal(scan.voxels, voxels[..., 0, channel])
