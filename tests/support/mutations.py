"""Good files of every kind that is read, and what bad luck or bad will makes of them, by seed."""

from __future__ import annotations

import bz2
import gzip
import json
import random
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pydicom
from backports import zstd
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid

from tests.support.images import phantom, write_dicom, write_nifti

EXTREMES = (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x80", b"\0\0\xc0\x7f", b"9999")


@dataclass(frozen=True)
class Seed:
    """A good file, and what lies beside it.

    Attributes
    ----------
    name : str
        What it is called after the number of its patient; ``=`` before it is its whole name.
    content : bytes
    beside : mapping
        Other files in its folder, named as it is.
    """

    name: str
    content: bytes
    beside: Mapping[str, bytes] = field(default_factory=dict)

    def files(self, number: int, content: bytes) -> dict[str, bytes]:
        """The files of a patient of that number, with another content."""
        return {_named(name, number): held for name, held in {**self.beside, self.name: content}.items()}


def _named(name: str, number: int) -> str:
    return name[1:] if name.startswith("=") else f"F-{number:05}_{name}"


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Some bytes flipped, replaced, cut out, doubled, or made extreme; mostly in the first kilobyte."""
    found = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        if not found:
            break
        place = dice.randrange(min(len(found), 1024) if dice.random() < 0.6 else len(found))
        what = dice.randrange(6)
        if what == 0:
            found[place] ^= 1 << dice.randrange(8)
        elif what == 1:
            found[place : place + 4] = dice.choice(EXTREMES)
        elif what == 2:
            found[place : place + dice.randrange(1, 64)] = b""
        elif what == 3:
            found[place:place] = found[place : place + dice.randrange(1, 64)]
        elif what == 4:
            del found[place:]
        else:
            found[place] = dice.randrange(256)
    return bytes(found)


def mutant(seeds: list[Seed], number: int) -> tuple[Seed, dict[str, bytes]]:
    """The mutated file of a number, and what lies beside it; what is packed may be changed inside."""
    dice = random.Random(number)
    seed = seeds[number % len(seeds)]
    for ending, (unpack, pack) in _PACKED.items():
        if seed.name.endswith(ending) and dice.random() < 0.5:
            return seed, seed.files(number, pack(mutated(unpack(seed.content), dice)))
    return seed, seed.files(number, mutated(seed.content, dice))


def zipped(files: Mapping[str, bytes]) -> bytes:
    """An archive of files."""
    with BytesIO() as out:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return out.getvalue()


def _sheet(content: bytes) -> bytes:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        return archive.read("xl/worksheets/sheet1.xml")


def _with_sheet(sheet: bytes) -> bytes:
    with zipfile.ZipFile(BytesIO(_workbook())) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    return zipped({**files, "xl/worksheets/sheet1.xml": sheet})


_PACKED: dict[str, Any] = {
    ".gz": (gzip.decompress, lambda content: gzip.compress(content, 1)),
    ".bz2": (bz2.decompress, lambda content: bz2.compress(content, 1)),
    ".zst": (zstd.decompress, zstd.compress),
    ".mgz": (gzip.decompress, lambda content: gzip.compress(content, 1)),
    ".xlsx": (_sheet, _with_sheet),
}


def seeds() -> list[Seed]:
    """A good file of every kind, small."""
    volume = phantom(0, shape=(40, 44, 6))
    plane = (volume[:, :, 3] / 2).clip(0, 255).astype(np.uint8)
    with TemporaryDirectory() as name:
        folder = Path(name)
        nifti = write_nifti(folder / "a.nii", volume).read_bytes()
        found = [Seed("t1.nii", nifti), Seed("t1.nii.gz", gzip.compress(nifti))]
        found += [Seed("t1.nii.bz2", bz2.compress(nifti)), Seed("t1.nii.zst", zstd.compress(nifti))]
        nib.save(nib.Nifti2Image(np.stack([volume] * 3, 3), np.eye(4)), folder / "b.nii")
        found.append(Seed("t1.nii", (folder / "b.nii").read_bytes()))
        nib.save(nib.MGHImage(volume, np.eye(4)), folder / "a.mgz")
        found.append(Seed("t1.mgz", (folder / "a.mgz").read_bytes()))
        for made in (nib.Nifti1Pair(volume, np.eye(4)), nib.AnalyzeImage(volume, np.eye(4))):
            nib.save(made, folder / "p.img")
            header, voxels = (folder / "p.hdr").read_bytes(), (folder / "p.img").read_bytes()
            found += [Seed("t1.hdr", header, {"t1.img": voxels}), Seed("t1.img", voxels, {"t1.hdr": header})]
        found += _rasters(plane)
        found += _dicoms(folder, volume)
    found += _texts(volume)
    found.append(Seed("1.mat", _matlab(plane)))
    image = {"t1.nii": nifti}
    found += [
        Seed("=grades.tsv", b"participant_id\twho_grade\nP-good\t2\nF-00001\t3\nF-00002\t4\n", image),
        Seed("=grades.csv", 'patient;grade;näme\nF-00001;3;x\n"F-00002";4;y\n'.encode("cp1252"), image),
        Seed("=grades.json", json.dumps([{"id": "F-00001", "who_grade": 3}]).encode(), image),
        Seed("=grades.xlsx", _workbook(), image),
        Seed("=cbir.json", b'{"channels": ["t1", "t1ce"], "stack": false, "pattern": "{patient}_*"}', image),
        Seed("=dataset.json", b'{"channel_names": {"0": "FLAIR", "1": "T1w"}, "labels": {}}', image),
        Seed("=dataset_description.json", b'{"Name": "x", "DatasetType": "derivative"}', image),
    ]
    return found


def _rasters(plane: NDArray[np.uint8]) -> list[Seed]:
    found = []
    kinds: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("png", "PNG", {}),
        ("jpg", "JPEG", {}),
        ("tif", "TIFF", {"compression": "tiff_lzw"}),
        ("tif", "TIFF", {"save_all": True, "append_images": [Image.fromarray(plane)] * 3}),
        ("webp", "WEBP", {}),
    )
    for ending, kind, options in kinds:
        stream = BytesIO()
        Image.fromarray(plane).save(stream, kind, **options)
        found.append(Seed(f"t1.{ending}", stream.getvalue()))
    return found


def _dicoms(folder: Path, volume: NDArray[np.float32]) -> list[Seed]:
    """A slice in each way of encoding it, and several frames in one object."""
    found = []
    write_dicom(folder / "series", volume, PatientName="Doe^Jane", StudyDate="20190817")
    for syntax in (None, uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, *_PLAIN):
        dataset = pydicom.dcmread(folder / "series" / "003")
        if syntax in _PLAIN:
            dataset.file_meta.TransferSyntaxUID = syntax
        elif syntax is not None:
            dataset.compress(syntax, generate_instance_uid=False)
        stream = BytesIO()
        pydicom.dcmwrite(stream, dataset)
        found.append(Seed("t1.dcm", stream.getvalue()))
    dataset = pydicom.dcmread(folder / "series" / "003")
    dataset.NumberOfFrames = 3
    dataset.PixelData = dataset.PixelData * 3
    stream = BytesIO()
    pydicom.dcmwrite(stream, dataset)
    found.append(Seed("t1.dcm", stream.getvalue()))
    return found


_PLAIN = (uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian)


def _texts(volume: NDArray[np.float32]) -> list[Seed]:
    """NRRD and MetaImage, with their voxels inside and beside."""
    sizes, raw = " ".join(map(str, volume.shape)), volume.tobytes("F")
    nrrd = (
        f"NRRD0004\ntype: float\ndimension: 3\nsizes: {sizes}\nendian: little\n"
        "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,3)\nspace origin: (0,0,0)\n"
    )
    meta = (
        f"ObjectType = Image\nNDims = 3\nDimSize = {sizes}\nElementType = MET_FLOAT\nElementSpacing = 1 1 3\n"
        "ElementByteOrderMSB = False\n"
    )
    return [
        Seed("t1.nrrd", f"{nrrd}encoding: raw\n\n".encode() + raw),
        Seed("t1.nrrd", f"{nrrd}encoding: gzip\n\n".encode() + gzip.compress(raw)),
        Seed("t1.nhdr", f"{nrrd}encoding: raw\ndata file: v.raw\n".encode(), {"=v.raw": raw}),
        Seed("t1.mha", f"{meta}ElementDataFile = LOCAL\n".encode() + raw),
        Seed("t1.mhd", f"{meta}ElementDataFile = v.raw\n".encode(), {"=v.raw": raw}),
    ]


def _matlab(plane: NDArray[np.uint8]) -> bytes:
    """A slice as figshare 1512427 has it."""
    out = BytesIO()
    with h5py.File(out, "w", userblock_size=512) as file:
        struct = file.create_group("cjdata")
        struct["image"], struct["tumorMask"] = plane.T, (plane > 90).T.astype(np.uint8)
        struct["PID"], struct["label"] = np.array([[49], [50]], np.uint16), np.array([[1.0]])
    head = b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(124) + b"\x00\x02IM"
    return head + out.getvalue()[len(head) :]


def _workbook() -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (("patient", "who_grade"), ("F-00001", 3), ("F-00002", 4)):
        book.active.append(row)
    with BytesIO() as out:
        book.save(out)
        return out.getvalue()
