"""A source may hold several scans of one sequence: what is shown is the one that was found."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import generate_uid

from cbir import create_index
from indexer.scan import ScanRef
from tests.retrieval.test_explain import TinyExplainer
from tests.service.test_viewer import browser, page, picture, served, upload  # noqa: F401
from tests.support.images import write_dicom
from tests.support.service import sent, serving, zipped

SHAPE = (24, 28, 10)


def ramp(towards_right: bool) -> NDArray[np.float32]:
    """An ellipsoid whose brightness rises to one side of the patient."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = sum(g**2 for g in grid) < 0.9
    noise = np.random.default_rng(int(towards_right)).normal(0, 2, SHAPE)
    rising = 100 + (80 if towards_right else -80) * grid[0] + noise
    return np.where(inside, rising, 0).astype(np.float32)


@dataclass(frozen=True)
class Found:
    """An index with a source of two scans, and a query that equals the second of them."""

    index: Path
    query: Path
    voxels: tuple[NDArray[np.float32], NDArray[np.float32]]
    sequence: str | None

    @property
    def sent(self) -> dict[str, Any]:
        return zipped(self.query) if self.query.is_dir() else sent(self.query)


@pytest.fixture(params=["echoes", "volumes"])
def found(request: pytest.FixtureRequest, tmp_path: Path) -> Found:
    voxels = ramp(False), ramp(True)
    if request.param == "volumes":
        both = nib.Nifti1Image(np.stack(voxels, axis=3), np.diag([1, 1, 3, 1]))
        (tmp_path / "mri").mkdir()
        nib.save(both, tmp_path / "mri" / "P-01_dwi.nii.gz")
        query = tmp_path / "new" / "N-01_dwi.nii.gz"
        query.parent.mkdir()
        nib.save(nib.Nifti1Image(voxels[1], both.affine), query)
    else:
        uid, study = generate_uid(), generate_uid()
        for number, volume in enumerate(voxels, start=1):
            echo = {"EchoTime": 20.0 * number, "EchoNumbers": number, "PatientID": "P-01"}
            tags = {"SeriesInstanceUID": uid, "StudyInstanceUID": study, "FrameOfReferenceUID": uid}
            folder = write_dicom(tmp_path / f"echo-{number}", volume, SeriesDescription="t2", **echo, **tags)
            (tmp_path / "mri" / "series").mkdir(parents=True, exist_ok=True)
            for file in folder.iterdir():
                file.rename(tmp_path / "mri" / "series" / f"{number}-{file.name}")
        echo |= {"PatientID": "N-01"}
        query = write_dicom(tmp_path / "new", voxels[1], SeriesDescription="t2", **echo)
        voxels = tuple(volume.astype("<u2").astype(np.float32) for volume in voxels)
    with create_index(tmp_path / "index", encoder=TinyExplainer()) as index:
        report = index.add(tmp_path / "mri", calibrate=False)
        assert (report.indexed, index.contents.scan_ids.size) == (1, 2), report
        (sequence,) = set(index.contents.scan_sequence)
    return Found(tmp_path / "index", query, voxels, sequence)


def volume(client: Any, address: str) -> NDArray[Any]:
    reply = client.get(address)
    assert reply.status_code == 200, reply.text
    return np.asanyarray(nib.Nifti1Image.from_bytes(gzip.decompress(reply.content)).dataobj)


def test_all_pictures_of_a_hit_are_of_its_scan(found: Found) -> None:
    with serving(found.index, TinyExplainer()) as client:
        (hit,) = client.post("/query", files=found.sent).json()["hits"]
        ref = ScanRef.parse(hit["scan"])
        assert ref == ScanRef(hit["case_id"], 1), "the second scan of its case"
        np.testing.assert_array_equal(volume(client, hit["volume"]), found.voxels[1])
        np.testing.assert_array_equal(volume(client, hit["query_volume"]), found.voxels[1])
        thumbnails = [
            np.asarray(Image.open(io.BytesIO(client.get(hit[name]).content)).convert("L"), float)
            for name in ("thumbnail", "query_thumbnail")
        ]
        np.testing.assert_array_equal(*thumbnails)
        left, right = np.array_split(thumbnails[0], 2, axis=1)
        assert left.mean() > 1.3 * right.mean(), "the patient's right is at the left"
        for side in ("query", "hit"):
            assert volume(client, hit["explanation"][side]).max() == 1
        case = f"/cases/{hit['case_id']}"
        scans = client.get(case).json()["scans"]
        assert [scan["scan"] for scan in scans] == [0, 1]
        for scan, expected in zip(scans, found.voxels, strict=True):
            np.testing.assert_array_equal(volume(client, scan["volume"]), expected)
        guess = client.get(f"{case}/volume.nii.gz?sequence={found.sequence or ''}")
        assert (guess.status_code, "several scans of this sequence" in guess.json()["detail"]) == (422, True)
        page = client.post("/report", files=found.sent).text
        assert page.count("data:image/jpeg") == 2


@pytest.mark.browser
def test_the_viewer_shows_the_scan_that_was_found(found: Found, page: Any, tmp_path: Path) -> None:  # noqa: F811
    query = found.query
    if query.is_dir():
        query = tmp_path / "new.zip"
        query.write_bytes(found.sent["file"][1])
    with served(found.index, TinyExplainer()) as address:
        page.goto(address)
        upload(page, query)
        for side in ("query", "hit"):
            left, right = np.array_split(picture(page, side), 2, axis=1)
            assert left.mean() > 1.3 * right.mean(), side
