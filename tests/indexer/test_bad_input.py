"""A folder full of trouble: each file a one-line reason, the rest indexed, nothing lost."""

from __future__ import annotations

import gzip
import os
import struct
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from indexer.case_index import CaseIndex
from indexer.errors import ReadError
from indexer.ingest import ingest
from tests.support.images import phantom, write_dicom, write_nifti


def text_as_nifti(folder):
    (folder / "text.nii.gz").write_text("dear diary")


def truncated_nifti(folder):
    path = write_nifti(folder / "short.nii", phantom(1))
    path.write_bytes(path.read_bytes()[:-1000])


def truncated_gzip(folder):
    path = write_nifti(folder / "short.nii.gz", phantom(1))
    path.write_bytes(path.read_bytes()[:-1000])


def truncated_dicom(folder):
    series = write_dicom(folder / "series", phantom(2))
    slice_ = series / "004"
    slice_.write_bytes(slice_.read_bytes()[:-300])


def enormous_nifti(folder):
    header = nib.Nifti1Header()
    header.set_data_shape((10000, 10000, 10000))
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["pixdim"][1:4] = 1
    (folder / "enormous.nii").write_bytes(header.binaryblock + b"\0" * 1000)
    (folder / "enormous.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\0" * 1000))


def not_a_number(folder):
    volume = phantom(3)
    volume[5, 5, 5] = np.nan
    write_nifti(folder / "nan.nii", volume)


def infinite(folder):
    volume = phantom(3)
    volume[5, 5, 5] = np.inf
    write_nifti(folder / "inf.nii", volume)


def constant(folder):
    write_nifti(folder / "constant.nii", np.full((8, 8, 8), 7, np.float32))
    Image.new("L", (40, 40), 90).save(folder / "constant.png")


def one_pixel(folder):
    Image.new("L", (1, 1), 90).save(folder / "one.png")


def broken_link(folder):
    (folder / "link.nii.gz").symlink_to(folder / "nowhere.nii.gz")


def bomb(folder):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 10_000_000, 9)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (folder / "bomb.png").write_bytes(png)


def truncated_jpeg(folder):
    path = folder / "short.jpg"
    Image.fromarray(phantom(1)[:, :, 5].clip(0, 255).astype(np.uint8)).resize((200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:-700])


TROUBLE = {
    text_as_nifti: 1,
    truncated_nifti: 1,
    truncated_gzip: 1,
    truncated_dicom: 1,
    enormous_nifti: 2,
    not_a_number: 1,
    infinite: 1,
    constant: 2,
    one_pixel: 1,
    broken_link: 1,
    bomb: 1,
    truncated_jpeg: 1,
}


def check(report, folder, trouble):
    assert len(report.failed) == trouble
    for failure in report.failed:
        assert failure["source"].startswith(str(folder))
        assert failure["reason"]
        assert "\n" not in failure["reason"]
        assert len(failure["reason"]) < 300


@pytest.mark.parametrize("make", TROUBLE, ids=lambda make: make.__name__)
def test_each_trouble_is_told_and_the_rest_is_indexed(make, tmp_path, tiny, cohort):
    root = cohort(2)
    make(root)
    with CaseIndex.create(tmp_path / "index", tiny) as index:
        report = ingest(index, [root], tiny)
        check(report, root, TROUBLE[make])
        assert report.indexed == 2
        assert index.catalog.failed() == sorted(report.failed, key=lambda f: f["source"])
        again = ingest(index, [root], tiny)
        assert (again.indexed, again.unchanged) == (0, 2)
        check(again, root, TROUBLE[make])
        assert index.verify() == []


def test_all_trouble_at_once(tmp_path, tiny, cohort):
    root = cohort(3)
    for make in TROUBLE:
        (root / make.__name__).mkdir()
        make(root / make.__name__)
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "empty").mkdir()
    with CaseIndex.create(tmp_path / "index", tiny) as index:
        report = ingest(index, [root], tiny)
        check(report, root, sum(TROUBLE.values()))
        assert report.indexed == 3
        assert index.verify() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything: simulated in the next test")
def test_an_unreadable_file(tmp_path, tiny, cohort):
    root = cohort(2)
    (root / "P-01" / "P-01_t1ce.nii.gz").chmod(0)
    with CaseIndex.create(tmp_path / "index", tiny) as index:
        report = ingest(index, [root], tiny)
    check(report, root, 1)


@pytest.mark.usefixtures("in_process")
def test_a_file_that_the_system_will_not_open(tmp_path, tiny, cohort, monkeypatch):
    from pathlib import Path

    root, opened = cohort(2), Path.open

    def refuse(self, *args, **kwargs):
        if self.name == "P-01_t1ce.nii.gz":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with CaseIndex.create(tmp_path / "index", tiny) as index:
        report = ingest(index, [root], tiny)
    check(report, root, 1)
    assert "Permission denied" in report.failed[0]["reason"]


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: (folder / "notes.txt").write_text("x")])
def test_nothing_to_index_is_told(make, tmp_path, tiny):
    (tmp_path / "mri").mkdir()
    make(tmp_path / "mri")
    with (
        CaseIndex.create(tmp_path / "index", tiny) as index,
        pytest.raises(ReadError, match=r"mri: (is empty|holds no image)"),
    ):
        ingest(index, [tmp_path / "mri"], tiny)
