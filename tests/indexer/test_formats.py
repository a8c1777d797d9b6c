"""Formats beside NIfTI, DICOM and pictures, and that one is added in one place."""

from __future__ import annotations

import bz2
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
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


ORACLE = """
import sys
from pathlib import Path
import numpy as np
import SimpleITK as sitk

here, rng = Path(sys.argv[1]), np.random.default_rng(5)
turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]

def image(shape, kind=np.int16, vector=False, direction=None):
    made = sitk.GetImageFromArray((rng.random(shape) * 99).astype(kind), isVector=vector)
    n = made.GetDimension()
    made.SetSpacing([1.5, 2.0, 3.5, 7.0][:n])
    made.SetOrigin([-7.0, 5.5, 2.25, 1.0][:n])
    whole = np.eye(n)
    if direction is not None:
        whole[:3, :3] = direction
    made.SetDirection(whole.ravel().tolist())
    return made

for ending in ("mha", "mhd", "nrrd", "nhdr"):
    def write(name, made, packed=False):
        (here / name).mkdir(exist_ok=True)
        sitk.WriteImage(made, str(here / name / f"{name}.{ending}"), useCompression=packed)
    for kind in (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64):
        write(f"{np.dtype(kind).name}-{ending}", image((6, 5, 4), kind))
    write(f"oblique-{ending}", image((6, 5, 4), direction=turn))
    write(f"swapped-axes-{ending}", image((6, 5, 4), direction=np.eye(3)[[2, 0, 1]] * [1, -1, 1]))
    write(f"packed-{ending}", image((6, 5, 4)), packed=True)
    write(f"volumes-{ending}", image((3, 6, 5, 4)))
    write(f"flat-{ending}", image((5, 4)))
    write(f"components-{ending}", image((6, 5, 4, 2), vector=True))
for name, old, new in (
    ("int16-mha", b"ByteOrderMSB = False", b"ByteOrderMSB = True"),
    ("int16-nrrd", b"endian: little", b"endian: big"),
):
    plain = here / name / f"{name}.{name[6:]}"
    content = plain.read_bytes()
    size = 6 * 5 * 4 * 2
    assert old in content
    swapped = np.frombuffer(content[-size:], "<i2").astype(">i2").tobytes()
    (here / f"big-{name}").mkdir()
    (here / f"big-{name}" / f"big.{name[6:]}").write_bytes(content[:-size].replace(old, new) + swapped)
for space in ("right-anterior-superior", "left-anterior-superior"):
    content = (here / "oblique-nrrd" / "oblique-nrrd.nrrd").read_bytes()
    assert b"space: left-posterior-superior" in content
    (here / space).mkdir()
    (here / space / "a.nrrd").write_bytes(
        content.replace(b"space: left-posterior-superior", f"space: {space}".encode())
    )
for file in sorted(here.glob("*/*.*")):
    if file.suffix not in (".mha", ".mhd", ".nrrd", ".nhdr"):
        continue
    made = sitk.ReadImage(str(file))
    n = made.GetDimension()
    affine = np.eye(4)
    m = min(n, 3)
    affine[:m, :m] = np.array(made.GetDirection()).reshape(n, n)[:m, :m] * made.GetSpacing()[:m]
    affine[:m, 3] = made.GetOrigin()[:m]
    array = sitk.GetArrayFromImage(made)
    if made.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None]
    if n == 2:
        array = array[None]
    if n == 4:
        array = np.moveaxis(array[..., 0], 0, -1)
    affine = np.diag([-1, -1, 1, 1]) @ affine
    np.savez(file.parent / "truth.npz", voxels=array.transpose(2, 1, 0, 3), affine=affine)
"""
"""SimpleITK writes images, and says what it reads of them; in a process of its own, for FAISS's sake."""


@pytest.fixture(scope="module")
def by_simpleitk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("itk")
    subprocess.run([sys.executable, "-c", ORACLE, str(folder)], check=True)
    return folder


def truth_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (x, y, z, volumes) and affine in RAS+, as nibabel turns what SimpleITK read."""
    with np.load(folder / "truth.npz") as told:
        turned = nib.as_closest_canonical(nib.Nifti1Image(told["voxels"].astype(np.float64), told["affine"]))
    return np.asarray(turned.dataobj), turned.affine


def test_nrrd_and_metaimage_are_read_as_simpleitk_reads_them(by_simpleitk: Path) -> None:
    folders = sorted(path.parent for path in by_simpleitk.glob("*/truth.npz"))
    assert len(folders) == 4 * 14 + 4
    for folder in folders:
        voxels, affine = truth_of(folder)
        scans = read(discover(folder).sources[0])
        assert len(scans) == voxels.shape[3], folder.name
        for number, scan in enumerate(scans):
            expected = voxels[..., number].astype(np.float32)
            np.testing.assert_array_equal(scan.voxels, expected, err_msg=folder.name)
            assert scan.affine is not None
            np.testing.assert_allclose(scan.affine, affine, atol=1e-5, err_msg=folder.name)


def test_faiss_works_after_they_were_read(by_simpleitk: Path) -> None:
    code = """
import sys
from pathlib import Path
from indexer.readers import read
for name in ("packed-mha/packed-mha.mha", "packed-nrrd/packed-nrrd.nrrd", "int16-nhdr/int16-nhdr.nhdr"):
    read(Path(sys.argv[1]) / name)
import faiss, numpy
index = faiss.IndexFlatIP(4)
index.add(numpy.eye(4, dtype="f4"))
numbers = faiss.vector_to_array(index.codes).view("f4")
assert numbers.tolist() == numpy.eye(4).ravel().tolist()
ids = faiss.IndexIDMap(faiss.IndexFlatIP(4))
ids.add_with_ids(numpy.eye(4, dtype="f4"), numpy.array([7, 8, 9, 10]))
assert faiss.vector_to_array(ids.id_map).tolist() == [7, 8, 9, 10]
assert "SimpleITK" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(by_simpleitk)], check=True)


def test_a_header_and_its_voxels_are_one_source_and_change_together(tmp_path: Path) -> None:
    for name, header in (("a.mhd", DETACHED), ("b.nhdr", DETACHED_NRRD)):
        (tmp_path / name).write_text(header.replace("NAME", f"{name[0]}.raw"))
        (tmp_path / f"{name[0]}.raw").write_bytes(BLOCK.tobytes(order="F"))
    first, second = discover(tmp_path).sources
    assert [file.name for file in first.files] == ["a.mhd", "a.raw"]
    np.testing.assert_array_equal(read(first)[0].voxels, read(second)[0].voxels)
    np.testing.assert_array_equal(read(first)[0].voxels, BLOCK[::-1, ::-1])
    before = first.fingerprint()
    (tmp_path / "a.raw").write_bytes(bytes(10) + BLOCK.tobytes(order="F"))
    assert first.fingerprint() != before


DETACHED = """ObjectType = Image
NDims = 3
DimSize = 4 5 6
ElementType = MET_SHORT
ElementDataFile = NAME
"""
DETACHED_NRRD = """NRRD0004
type: short
dimension: 3
sizes: 4 5 6
endian: little
encoding: raw
data file: NAME

"""


@pytest.mark.parametrize(
    ("name", "header", "reason"),
    [
        ("a.mhd", DETACHED.replace("NAME", "../x.raw"), "outside its own folder"),
        ("a.nhdr", DETACHED_NRRD.replace("NAME", "../x.raw"), "outside its own folder"),
        ("a.mhd", DETACHED.replace("NAME", "gone.raw"), "not there"),
        ("a.nhdr", DETACHED_NRRD.replace("NAME", "gone.raw"), "not there"),
        ("a.mhd", DETACHED.replace("NAME", "LIST"), "several files"),
        ("a.mhd", DETACHED.replace("NAME", "a%03d.raw 1 6 1"), "several files"),
        ("a.mhd", "BinaryData = False\n" + DETACHED, "as text"),
        ("a.mhd", DETACHED.replace("Image", "Tube"), "no image"),
        ("a.mhd", DETACHED.replace("MET_SHORT", "MET_STRING"), "one real number"),
        ("a.mhd", DETACHED.replace("4 5 6", "4 5 7"), "truncated: 240 of 280"),
        ("a.nhdr", DETACHED_NRRD.replace("4 5 6", "4 5 7"), "damaged or truncated"),
        ("a.mhd", DETACHED.replace("4 5 6", "9000 9000 1"), "declares"),
        ("a.nhdr", DETACHED_NRRD.replace("4 5 6", "9000 9000 1"), "declares"),
        ("a.nhdr", DETACHED_NRRD.replace("type: short", "type: block\nblock size: 2"), "blocks"),
        ("a.nhdr", DETACHED_NRRD.replace("endian", "space: scanner-xyz\nendian"), "space scanner-xyz"),
        ("a.nhdr", DETACHED_NRRD.replace("endian", 'space units: "m" "m" "m"\nendian'), "measured in m"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, name: str, header: str, reason: str) -> None:
    (tmp_path / "x.raw").write_bytes(BLOCK.tobytes())
    folder = tmp_path / "below"
    folder.mkdir()
    (folder / name).write_text(header.replace("NAME", "a.raw"))
    (folder / "a.raw").write_bytes(BLOCK.tobytes(order="F"))
    with pytest.raises(ReadError, match=reason):
        read(Source(folder / name, "itk", (folder / name,)))


def test_several_components_are_channels(tmp_path: Path, by_simpleitk: Path) -> None:
    shutil.copytree(by_simpleitk / "components-nrrd", tmp_path / "x")
    (tmp_path / "x" / "cbir.json").write_text('{"channels": ["t1", "flair"]}')
    scans = read(discover(tmp_path / "x").sources[0])
    assert [scan.sequence for scan in scans] == ["t1", "flair"]
    np.testing.assert_array_equal(scans[1].voxels, truth_of(tmp_path / "x")[0][..., 1])


def test_an_outline_of_the_same_format_is_attached(tmp_path: Path) -> None:
    for name, voxels in (("P1_t1.nrrd", BLOCK), ("P1_seg.seg.nrrd", (BLOCK > 950).astype(np.int16))):
        header = DETACHED_NRRD.replace("data file: NAME\n", "").encode()
        (tmp_path / name).write_bytes(header + voxels.tobytes(order="F"))
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


def test_a_header_reads_no_file_but_one_beside_it(tmp_path: Path) -> None:
    """By no spelling of NRRD's, and through none of HDF5's links, external files and virtual datasets."""
    folder, secret = tmp_path / "in", tmp_path / "secret.raw"
    folder.mkdir()
    values = np.arange(8 * 9 * 10, dtype=np.float32)
    values.tofile(secret)
    values[::-1].tofile(folder / "v.raw")
    head = "NRRD0004\ntype: float\ndimension: 3\nsizes: 8 9 10\nencoding: raw\nendian: little\n"
    for number, fields in enumerate(
        (
            f"data file: {secret}",
            "datafile: ../secret.raw",
            f"data file: v.raw\ndatafile: {secret}",
            f"datafile: v.raw\ndata file: {secret}",
            "datafile: v.raw\nline skip: 9999999999",
        )
    ):
        (folder / f"{number}.nhdr").write_text(f"{head}{fields}\n")
        with pytest.raises(ReadError):
            read(folder / f"{number}.nhdr")
    (folder / "good.nhdr").write_text(f"{head}data file: v.raw\n")
    assert read(folder / "good.nhdr")[0].voxels.max() == values[-1]
    (folder / "t1.mhd").write_text(
        f"NDims = 3\nDimSize = 8 9 10\nElementType = MET_FLOAT\nElementDataFile = {secret}\n"
    )
    with pytest.raises(ReadError, match="outside its own folder"):
        read(folder / "t1.mhd")

    slice_of(tmp_path / "other.mat", "1", 1)
    for kind in ("external file", "link", "link of the group", "virtual"):
        path = folder / f"{kind}.mat"
        slice_of(path, "1", 1)
        with h5py.File(path, "r+") as file:
            del file["cjdata/image"]
            if kind == "external file":
                file["cjdata"].create_dataset("image", (8, 9), "f4", external=[(str(secret), 0, 288)])
            elif kind == "link":
                file["cjdata/image"] = h5py.ExternalLink(str(tmp_path / "other.mat"), "cjdata/image")
            elif kind == "link of the group":
                del file["cjdata"]
                file["cjdata"] = h5py.ExternalLink(str(tmp_path / "other.mat"), "cjdata")
            else:
                layout = h5py.VirtualLayout((7, 5), "i2")
                layout[:] = h5py.VirtualSource(str(tmp_path / "other.mat"), "cjdata/image", (7, 5))[:]
                file["cjdata"].create_virtual_dataset("image", layout)
        with pytest.raises(ReadError):
            read(path)


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


def test_a_slice_whose_label_is_lost_is_one_failure(tmp_path: Path) -> None:
    for name in ("1.mat", "2.mat", "3.mat"):
        slice_of(tmp_path / name, "100360", 1)
    with h5py.File(tmp_path / "2.mat", "r+") as file:
        del file["cjdata/label"]
    with h5py.File(tmp_path / "3.mat", "r+") as file:
        del file["cjdata/label"]
        file["cjdata/label"] = np.array([[np.nan]])
    found = discover(tmp_path)
    assert [source.path.name for source in found.sources] == ["1.mat", "3.mat"]
    (failure,) = found.failures
    assert "holds no cjdata/label" in str(failure)
