"""A study as a scanner sends it, from the folder or the network to an answer of four sequences.

``as-the-scanner-sends`` gives each sequence a grid of its own; a localizer lies beside them. Whoever asks,
the composite of the four finds the patient's own volumes, which were filed on one grid.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra cbir[serve] is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # httpx or httpx2: either will do
    from starlette.testclient import TestClient

from cbir import create_index
from indexer import discovery
from indexer.case_index import CaseIndex
from indexer.encoder import load_encoder
from indexer.sequences import CHANNELS, COMPOSITE
from retrieval.cli import main
from retrieval.service.app import create_app
from retrieval.service.settings import Settings
from tests.support.images import phantom, write_dicom
from tests.support.paths import REAL, ROOT

pytestmark = [pytest.mark.real, pytest.mark.slow]

TOOL = ROOT.parent / "shared" / "tools" / "as-the-scanner-sends"
PATIENTS = ("TCGA-CS-4944", "TCGA-06-2570")
ASKING = PATIENTS[0]


def write_patient(folder: Path, patient: str) -> Path:
    """A patient's volumes on one grid, at half of their size: a doll's head is sooner read and looked at."""
    (folder / patient).mkdir(parents=True)
    for sequence in CHANNELS:
        name = f"{patient}/{patient}_{sequence}.nii.gz"
        image = nib.load(REAL / "volumes-2mm" / name)
        voxels = image.get_fdata(dtype=np.float32)
        voxels = voxels[tuple(slice(0, n // 2 * 2) for n in voxels.shape)]
        x, y, z = (n // 2 for n in voxels.shape)
        coarse = voxels.reshape(x, 2, y, 2, z, 2).mean((1, 3, 5))
        affine = np.diag([0.5, 0.5, 0.5, 1]) @ image.affine @ np.diag([2, 2, 2, 1])
        nib.save(nib.Nifti1Image(coarse, affine), folder / name)
    return folder


def write_sent(volumes: Path, folder: Path, patient: str) -> Path:
    """The same as a DICOM study, with a localizer."""
    subprocess.run([sys.executable, TOOL, volumes, folder, patient], check=True, capture_output=True)
    told = discovery.discover(folder / patient / "t1").sources[0]
    localizer = {"SeriesDescription": "3-plane localizer", "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]}
    ids = {"PatientID": patient, "StudyInstanceUID": told.study_id}
    write_dicom(folder / patient / "localizer", phantom(1, shape=(32, 32, 3)), **localizer, **ids)
    return folder / patient


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sent")
    return write_sent(write_patient(folder / "one", ASKING), folder / "dicom", ASKING)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients on one grid."""
    folder = tmp_path_factory.mktemp("held")
    for patient in PATIENTS:
        write_patient(folder / "mri", patient)
    with create_index(folder / "index", keep_ids=True) as held:
        report = held.add(folder / "mri")
    assert (report.failed, report.cases) == ([], 2)
    return folder / "index"


def cbir(*arguments: object) -> dict[str, Any]:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cbir", *map(str, arguments)])
        patch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


@pytest.fixture
def client(index: Path) -> Iterator[TestClient]:
    made = create_app(Settings(index=index), load_encoder("cbir"))
    with TestClient(made, base_url="http://127.0.0.1") as client:
        yield client


def zipped(folder: Path) -> dict[str, Any]:
    with io.BytesIO() as out:
        with zipfile.ZipFile(out, "w") as archive:
            for path in sorted(folder.rglob("*.*")) + sorted((folder / "localizer").iterdir()):
                archive.write(path, path.relative_to(folder.parent))
        return {"file": ("study.zip", out.getvalue())}


def composites(index: Path) -> list[str]:
    """Patients with a composite."""
    with CaseIndex.open(index) as opened:
        held = opened.catalog.contents()
        return [
            held.patient_ids[held.scan_case[scan]]
            for scan, sequence in enumerate(held.scan_sequence)
            if sequence == COMPOSITE
        ]


def test_the_command_line_answers_with_four_sequences(sent: Path, index: Path) -> None:
    answer = cbir("query", sent, "--index", index, "--json", "-k", 2)
    # the patient's own volumes are left out, as always
    assert [hit["patient_id"] for hit in answer["hits"]] == [PATIENTS[1]]
    assert set(answer["query"]["sequence"].split("+")) == set(CHANNELS)
    notes = " ".join(answer["notes"])
    assert "1 × a localizer" in notes
    assert "not seen together" not in notes


def test_over_http_a_study_finds_its_own_volumes_and_again(
    client: TestClient, sent: Path, index: Path
) -> None:
    first = client.post("/query", files=zipped(sent), data={"k": "2"}).json()
    assert [hit["patient_id"] for hit in first["hits"]] == list(PATIENTS)
    assert first["hits"][0]["score"] > 0.9 > first["hits"][1]["score"]
    assert set(first["query"]["sequence"].split("+")) == set(CHANNELS)
    again = client.post(f"/queries/{first['query']['id']}", data={"k": "2"}).json()
    assert [hit["score"] for hit in again["hits"]] == [hit["score"] for hit in first["hits"]]


def test_a_study_that_is_filed_is_one_case_with_its_composite(sent: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    report = cbir("index", sent, "--index", index, "--json", "--keep-ids")
    assert (report["indexed"], report["cases"], report["failed"]) == (4, 1, [])
    assert composites(index) == [ASKING]
    answer = cbir("query", sent, "--index", index, "--json")
    assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert any("the query itself is in the index" in note for note in answer["notes"])


def test_a_study_uploaded_to_be_filed_has_its_composite(sent: Path, tmp_path: Path) -> None:
    create_index(tmp_path / "index").close()
    made = create_app(Settings(index=tmp_path / "index"), load_encoder("cbir"))
    with TestClient(made, base_url="http://127.0.0.1") as client:
        reply = client.post("/index", files=zipped(sent))
        assert reply.status_code == 202, reply.text
        job = made.state.service.jobs.get(reply.json()["job"])
        assert job.wait(120)
        report = client.get(f"/jobs/{reply.json()['job']}").json()["report"]
        assert (report["indexed"], report["failed"], report["cases"]) == (4, [], 1)
    assert len(composites(tmp_path / "index")) == 1
