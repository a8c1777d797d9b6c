"""Mutated files of every kind, through whole runs: each is read or refused, and the good ones are filed."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import scipy.io
from PIL import Image
from pydicom import uid

from indexer.case_index import CaseIndex
from indexer.errors import CbirError
from indexer.ingest import ingest
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_dicom, write_nifti

BATCH = 50
"""Mutated files in a folder, which one run takes."""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A good file of every kind, by its ending."""
    folder = tmp_path_factory.mktemp("seeds")
    volume = phantom(0, shape=(40, 44, 6))
    plane = (volume[:, :, 3] / 2).clip(0, 255).astype(np.uint8)
    found = {".nii": write_nifti(folder / "a.nii", volume).read_bytes()}
    found[".nii.gz"] = gzip.compress(found[".nii"])
    nib.save(nib.MGHImage(volume, np.eye(4)), folder / "a.mgz")
    found[".mgz"] = (folder / "a.mgz").read_bytes()
    for ending, options in ((".png", {}), (".jpg", {}), (".tif", {"compression": "tiff_lzw"}), (".webp", {})):
        stream = BytesIO()
        image = Image.fromarray(plane)
        image.save(stream, {".jpg": "JPEG", ".tif": "TIFF"}.get(ending, ending[1:].upper()), **options)
        found[ending] = stream.getvalue()
    dataset = pydicom.dcmread(write_dicom(folder / "series", volume) / "003")
    for name, syntax in (
        ("", None),
        ("-rle", uid.RLELossless),
        ("-jls", uid.JPEGLSLossless),
        ("-j2k", uid.JPEG2000Lossless),
    ):
        if syntax is not None:
            dataset = pydicom.dcmread(folder / "series" / "003")
            dataset.compress(syntax, generate_instance_uid=False)
        stream = BytesIO()
        pydicom.dcmwrite(stream, dataset)
        found[f"{name}.dcm"] = stream.getvalue()
    head = f"NRRD0004\ntype: float\ndimension: 3\nsizes: {' '.join(map(str, volume.shape))}\nencoding: raw\n"
    space = (
        "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,3)\nspace origin: (0,0,0)\n"
    )
    found[".nrrd"] = f"{head}{space}endian: little\n\n".encode() + volume.tobytes("F")
    sizes = " ".join(map(str, volume.shape))
    meta = (
        f"ObjectType = Image\nNDims = 3\nDimSize = {sizes}\nElementType = MET_FLOAT\nElementSpacing = 1 1 3\n"
    )
    found[".mha"] = f"{meta}ElementByteOrderMSB = False\nElementDataFile = LOCAL\n".encode() + volume.tobytes(
        "F"
    )
    stream = BytesIO()
    scipy.io.savemat(stream, {"cjdata": {"image": plane, "label": 1, "PID": "1", "tumorMask": plane > 90}})
    found[".mat"] = stream.getvalue()
    found[".tsv"] = b"participant_id\twho_grade\nP-good\t2\nP-0001\t3\nP-0002\t4\n"
    found[".json"] = json.dumps({"channels": ["t1", "t1ce"], "stack": False}).encode()
    return found


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
            found[place : place + 4] = dice.choice((b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0"))
        elif what == 2:
            found[place : place + dice.randrange(1, 64)] = b""
        elif what == 3:
            found[place:place] = found[place : place + dice.randrange(1, 64)]
        elif what == 4:
            del found[place:]
        else:
            found[place] = dice.randrange(256)
    return bytes(found)


def name(ending: str, number: int) -> str:
    """What a mutated file is called: settings and tables as they are obeyed."""
    if ending == ".tsv":
        return f"F-{number:05}/grades.tsv"  # a damaged participants.tsv is refused as such
    return f"F-{number:05}/cbir.json" if ending == ".json" else f"F-{number:05}/F-{number:05}_t1{ending}"


def test_mutated_files_end_no_run(
    request: pytest.FixtureRequest, seeds: dict[str, bytes], tmp_path: Path, tiny: TinyEncoder
) -> None:
    count = request.config.getoption("--fuzz")
    first = request.config.getoption("--fuzz-seed")
    endings = sorted(seeds)
    good = write_nifti(tmp_path / "good" / "P-good_t1.nii", phantom(1))
    with CaseIndex.create(tmp_path / "index", tiny, keep_ids=True) as index:
        for start in range(first, first + count, BATCH):
            root = tmp_path / f"batch-{start}"
            for number in range(start, min(start + BATCH, first + count)):
                dice = random.Random(number)
                ending = endings[number % len(endings)]
                path = root / name(ending, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(mutated(seeds[ending], dice))
                if ending in (".tsv", ".json"):  # beside an image that has to do with it
                    (path.parent / f"X-{number}_t1.nii").write_bytes(good.read_bytes())
            (root / "P-good_t1.nii").write_bytes(good.read_bytes())
            report = ingest(index, [root], tiny)
            held = index.catalog.fingerprints(str(root))
            assert str(root / "P-good_t1.nii") in held, (start, report.failed)
            for failure in report.failed:
                assert "\n" not in failure["reason"]


@pytest.mark.parametrize("ending", [".nii.gz", ".png", "-jls.dcm"])
def test_a_mutated_query_is_answered_or_refused(
    ending: str,
    seeds: dict[str, bytes],
    tmp_path: Path,
    tiny: TinyEncoder,
    cohort: Callable[..., Path],
) -> None:
    from cbir import open_index

    with CaseIndex.create(tmp_path / "index", tiny) as index:
        ingest(index, [cohort(3)], tiny)
    with open_index(tmp_path / "index", tiny) as asked:
        for number in range(8):
            path = tmp_path / f"q{number}{ending}"
            path.write_bytes(mutated(seeds[ending], random.Random(number)))
            with suppress(CbirError):
                assert asked.query(path).hits
