"""Stored values: against those that were written, `pixel_array` and DCMTK, whatever they are coded in."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from benchmarks import series
from indexer.errors import ReadError
from indexer.readers import dicom
from indexer.readers.dicom.headers import parse
from indexer.readers.dicom.pixels import frames
from tests.indexer.test_dicom import recode_with_gdcm

LOSSLESS = {
    "explicit": uid.ExplicitVRLittleEndian,
    "implicit": uid.ImplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "RLE": uid.RLELossless,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
    "JPEG lossless": uid.JPEGLosslessSV1,
}
BITS = [(8, 8), (16, 10), (16, 12), (16, 15), (16, 16)]


def values(bits: int, signed: bool, shape: tuple[int, ...] = (40, 36)) -> np.ndarray:
    """All of the range, both ends among it."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    picture = np.random.default_rng(bits + signed).integers(low, high + 1, shape)
    picture.flat[:2] = low, high
    return picture


def stored(picture: np.ndarray, allocated: int, bits: int, signed: bool, **tags: Any) -> Dataset:
    """A grey image of these values."""
    dataset = series.image(0, 1, size=picture.shape, bits=bits, signed=signed, **tags)
    dataset.BitsAllocated = allocated
    dataset.PixelData = picture.astype(f"<{'i' if signed else 'u'}{allocated // 8}").tobytes()
    return dataset


def written(dataset: Dataset, file: Path, syntax: uid.UID = uid.ExplicitVRLittleEndian) -> Path:
    """The dataset in a file of that transfer syntax."""
    if syntax in (uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless):
        dataset.compress(syntax, generate_instance_uid=False)
    elif syntax == uid.ExplicitVRBigEndian:
        data = np.frombuffer(dataset.PixelData, f"<u{dataset.BitsAllocated // 8}")
        dataset.PixelData = data.astype(data.dtype.newbyteorder(">")).tobytes()
        if dataset.BitsAllocated == 8:  # bytes of words (PS3.5 A.3)
            dataset.PixelData = data.view("<u2").astype(">u2").tobytes()
    if syntax not in (uid.JPEGLosslessSV1,):
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(file, enforce_file_format=True)
    if syntax == uid.JPEGLosslessSV1:
        recode_with_gdcm(file)
    assert pydicom.dcmread(file).file_meta.TransferSyntaxUID == syntax
    return file


def decoded(file: Path) -> np.ndarray:
    """All frames as the reader decodes them."""
    return np.stack([pixels for _, pixels in frames(parse(file))])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("allocated", "bits"), BITS)
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_grey_values(
    tmp_path: Path, syntax: str, allocated: int, bits: int, signed: bool, photometric: str
) -> None:
    truth = values(bits, signed)
    dataset = stored(truth, allocated, bits, signed, PhotometricInterpretation=photometric)
    file = written(dataset, tmp_path / "a.dcm", LOSSLESS[syntax])
    (found,) = decoded(file)
    np.testing.assert_array_equal(found, truth)
    np.testing.assert_array_equal(found, pydicom.dcmread(file).pixel_array)


@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", ["explicit", "big endian", "deflated", "RLE", "JPEG-LS"])
@settings(max_examples=20, deadline=None)
@given(bits=st.integers(2, 15), rest=st.integers(0, 2**16 - 1))
def test_what_else_is_in_the_cell_does_not_count(
    tmp_path_factory: pytest.TempPathFactory, syntax: str, signed: bool, bits: int, rest: int
) -> None:
    """An overlay or anything else in the unused bits, whatever a codec makes of them (PS3.5 8.1.1)."""
    truth = values(bits, signed, (16, 18))
    mask = 2**bits - 1
    cells = (truth & mask) | (rest & ~mask & 0xFFFF)
    dataset = stored(cells, 16, 16, False)
    file = tmp_path_factory.mktemp("cells") / "a.dcm"
    written(dataset, file, LOSSLESS[syntax])
    relabelled(file, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(decoded(file)[0], truth)


def relabelled(file: Path, **tags: int) -> None:
    dataset = pydicom.dcmread(file)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(file)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "high"), [(12, 15), (10, 12), (8, 15), (8, 8)])
@pytest.mark.parametrize("syntax", ["explicit", "big endian", "RLE"])
def test_high_bit(tmp_path: Path, syntax: str, bits: int, high: int, signed: bool) -> None:
    truth = values(bits, signed)
    cells = ((truth & (2**bits - 1)) << (high + 1 - bits)) & 0xFFFF
    file = written(stored(cells, 16, 16, False), tmp_path / "a.dcm", LOSSLESS[syntax])
    relabelled(file, BitsStored=bits, HighBit=high, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(decoded(file)[0], truth)


def test_high_bit_of_a_codec_is_not_guessed(tmp_path: Path) -> None:
    file = written(stored(values(12, False) << 4, 16, 16, False), tmp_path / "a.dcm", uid.JPEGLSLossless)
    relabelled(file, BitsStored=12, HighBit=15)
    with pytest.raises(ReadError, match="its highest bit is 15 of 12 stored; store it uncompressed"):
        decoded(file)


@pytest.mark.parametrize("tags", [{"BitsStored": 17}, {"HighBit": 16}, {"BitsStored": 12, "HighBit": 8}])
def test_bits_that_contradict_one_another(tmp_path: Path, tags: dict[str, int]) -> None:
    file = written(stored(values(16, False), 16, 16, False), tmp_path / "a.dcm")
    relabelled(file, **tags)
    with pytest.raises(ReadError, match="contradicts itself"):
        decoded(file)


@pytest.mark.parametrize("precision", [10, 12, 16])
def test_signed_of_an_unsigned_codestream(tmp_path: Path, precision: int) -> None:
    """JPEG 2000 that says unsigned where the header says signed, and the other way round."""
    from openjpeg.utils import encode_array

    truth = values(precision, True, (64, 64))
    bits = (truth & (2**precision - 1)).astype(np.uint16)
    coded = encode_array(bits, bits_stored=precision, photometric_interpretation=2)
    dataset = series.image(0, 1, size=(64, 64), bits=precision, signed=True)
    dataset.PixelData = encapsulate([coded])
    dataset.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(decoded(tmp_path / "a.dcm")[0], truth)


COLOURS = [
    (syntax, photometric, planar, count)
    for syntax in ("explicit", "implicit", "big endian", "RLE", "JPEG-LS")
    for photometric in ("RGB", "YBR_FULL")
    for planar in (0, 1)
    for count in (1, 3)
]
COLOURS += [("JPEG 2000", "RGB", 0, 1)]  # it has colour transforms and an order of its own


@pytest.mark.parametrize(("syntax", "photometric", "planar", "count"), COLOURS)
def test_colour_is_what_pixel_array_is(
    tmp_path: Path, syntax: str, photometric: str, planar: int, count: int
) -> None:
    picture = values(8, False, (count, 40, 36, 3)).astype(np.uint8)
    dataset = series.image(0, 1, size=(40, 36), bits=8)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, photometric
    dataset.PlanarConfiguration, dataset.NumberOfFrames = planar, count
    dataset.PixelData = (picture.transpose(0, 3, 1, 2) if planar else picture).tobytes()
    file = written(dataset, tmp_path / "a.dcm", LOSSLESS[syntax])
    expected = pydicom.dcmread(file).pixel_array.reshape(count, 40, 36, 3)
    np.testing.assert_array_equal(decoded(file), expected)
    if photometric == "RGB" and syntax in ("explicit", "implicit", "big endian"):
        np.testing.assert_array_equal(decoded(file), picture)


@pytest.mark.parametrize("keyword", ["FloatPixelData", "DoubleFloatPixelData"])
def test_floating_point(tmp_path: Path, keyword: str) -> None:
    dtype = np.float32 if keyword == "FloatPixelData" else np.float64
    datasets = series.stack(4)
    for dataset in datasets:
        picture = np.frombuffer(dataset.PixelData, "<u2").astype(dtype) / 7
        del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
        dataset.BitsAllocated = 8 * picture.itemsize
        setattr(dataset, keyword, picture.tobytes())
    series.save(tmp_path, datasets)
    ((source,), _) = dicom.series(list(tmp_path.iterdir()), tmp_path)
    (scan,) = dicom.read(source)
    plain = np.stack([series.pixels(24, 20, i) for i in range(4)]) / 7
    np.testing.assert_allclose(scan.voxels, plain.transpose(2, 1, 0)[::-1, ::-1], rtol=1e-6)


# --- peers --------------------------------------------------------------------------------------------

DCMTK = {
    "JPEG-LS": (["dcmcjpls"], uid.JPEGLSLossless),
    "JPEG lossless": (["dcmcjpeg", "+e1"], uid.JPEGLosslessSV1),
    "JPEG lossless, 14": (["dcmcjpeg", "+el"], uid.JPEGLossless),
    "RLE": (["dcmcrle"], uid.RLELossless),
}


def with_dcmtk(command: list[str], file: Path) -> Path:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs Debian's dcmtk ({command[0]})")
    out = file.with_suffix(".coded.dcm")
    subprocess.run([*command, str(file), str(out)], check=True, capture_output=True)
    return out


@pytest.mark.parametrize("junk", [0, 0b1010])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("allocated", "bits"), [(8, 8), (16, 12), (16, 16)])
@pytest.mark.parametrize("syntax", DCMTK)
def test_what_dcmtk_compresses(
    tmp_path: Path, syntax: str, allocated: int, bits: int, signed: bool, junk: int
) -> None:
    """Whatever DCMTK does with unused bits, the values are those that were stored."""
    command, expected = DCMTK[syntax]
    truth = values(bits, signed)
    cells = (truth & (2**bits - 1)) | ((junk << bits) & (2**allocated - 1))
    dataset = stored(cells, allocated, bits, False)
    dataset.PixelRepresentation = int(signed)
    file = written(dataset, tmp_path / "a.dcm")
    coded = with_dcmtk(command, file)
    assert pydicom.dcmread(coded).file_meta.TransferSyntaxUID == expected
    np.testing.assert_array_equal(decoded(coded)[0], truth)


def test_what_cannot_be_decoded_is_told_how_to_store_otherwise(tmp_path: Path) -> None:
    """JPEG Extended with 12 bits, for which there is no decoder here."""
    file = written(stored(values(12, False), 16, 12, False), tmp_path / "a.dcm")
    coded = with_dcmtk(["dcmcjpeg", "+ee", "+bt"], file)
    assert pydicom.dcmread(coded).file_meta.TransferSyntaxUID == uid.JPEGExtended12Bit
    with pytest.raises(ReadError, match=r"JPEG Extended.*store it uncompressed, e\.g\. with dcmdjpeg"):
        decoded(coded)
    plain = tmp_path / "plain.dcm"
    subprocess.run(["dcmdjpeg", str(coded), str(plain)], check=True, capture_output=True)
    assert np.abs(decoded(plain)[0].astype(int) - values(12, False)).max() < 4096


STRIPPED = {"ExplVR_BigEndNoMeta.dcm"}
"""Begins with an element in the other byte order, which nothing tells from other files."""


def test_pydicoms_own_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that pydicom tests itself with has the values of `pixel_array`, or is refused by both."""
    monkeypatch.setattr(pydicom.config.settings, "_reading_validation_mode", pydicom.config.IGNORE)
    compared = 0
    for file in sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*.dcm")):
        try:
            truth = pydicom.dcmread(file, force=True).pixel_array
        except Exception:  # it has no pixels, or they cannot be decoded
            continue
        if not dicom.is_dicom(file) or file.name in STRIPPED:
            continue
        found = decoded(file)
        np.testing.assert_array_equal(found.reshape(truth.shape), truth, err_msg=str(file))
        compared += 1
    assert compared > 50
