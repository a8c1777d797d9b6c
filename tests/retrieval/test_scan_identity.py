"""A source may hold several scans of one sequence: a hit means one of them, and every picture shows it."""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import generate_uid
from typer.testing import CliRunner

import cbir
from cbir import Index, ScanRef
from indexer import discovery
from indexer.case_index import CaseIndex
from indexer.errors import QueryError, ReadError
from indexer.ingest import ingest
from indexer.preprocess import Preprocessing, prepared
from retrieval.cli.app import app
from retrieval.pictures import picture
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_dicom, write_nifti

SHAPE = (40, 48, 8)


class Explaining(TinyEncoder):
    """The thumbnail's cosine is a sum over its pixels as it is."""

    name = "explaining"

    def explain(
        self, batch: NDArray[np.uint8], towards: NDArray[np.float32], boxes: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        return (self.encode(batch) * towards).reshape(-1, 8, 8)


def write_echoes(folder: Path, *volumes: NDArray[np.float32]) -> Path:
    """A DICOM series of several echoes, as a scanner sends it: one folder, all files of one series."""
    series, study = generate_uid(), generate_uid()
    folder.mkdir(parents=True)
    for number, volume in enumerate(volumes, 1):
        told = {"SeriesInstanceUID": series, "StudyInstanceUID": study, "FrameOfReferenceUID": study}
        told |= {"EchoTime": 20 * number, "EchoNumbers": number, "SeriesDescription": "T2 dual echo"}
        part = write_dicom(folder.parent / f"echo{number}", volume, PatientID="E-01", **told)
        for file in part.iterdir():
            shutil.move(file, folder / f"{number}-{file.name}")
        part.rmdir()
    return folder


def volumes(count: int) -> list[NDArray[np.float32]]:
    """Heads whose lesions lie elsewhere, so that each is like itself alone."""
    return [phantom(seed, 4, SHAPE).round() for seed in range(count)]


def write_cohort(root: Path) -> dict[str, Path]:
    """A series of two echoes, a file of four volumes, and others."""
    first, second = volumes(2)
    found = {"echoes": write_echoes(root / "echoes", first, second)}
    found["volumes"] = write_nifti(root / "V-01_t2.nii.gz", np.stack(volumes(6)[2:], -1))
    for i in range(3):
        write_nifti(root / f"P-0{i}_t2.nii.gz", phantom(20 + i, 2, SHAPE))
    return found


@pytest.fixture
def cohort_of(tmp_path: Path) -> dict[str, Path]:
    return write_cohort(tmp_path / "mri")


@pytest.fixture
def index(tmp_path: Path, cohort_of: dict[str, Path]) -> Iterator[Index]:
    encoder = Explaining()
    made = CaseIndex.create(tmp_path / "index", encoder, keep_ids=True)
    report = ingest(made, [tmp_path / "mri"], encoder)
    assert report.failed == []
    with Index(made, encoder) as opened:
        yield opened


def jpegs(page: str) -> list[NDArray[np.uint8]]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [np.asarray(Image.open(BytesIO(b64decode(data)))) for data in found]


def drawn(index: Index, ref: ScanRef, position: int) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(picture(index.scan(ref), position).jpeg)))


@pytest.mark.parametrize("number", [0, 1])
def test_a_query_like_one_echo_is_shown_that_echo(
    index: Index, cohort_of: dict[str, Path], tmp_path: Path, number: int
) -> None:
    query = write_nifti(tmp_path / "new" / "new_t2.nii.gz", volumes(2)[number])
    answer = index.query(query, k=3)
    hit = answer.hits[0]
    assert hit.case_id.startswith("E-01")
    assert hit.scan == ScanRef(str(cohort_of["echoes"]), number)
    shown = index.scan(hit.scan)
    np.testing.assert_array_equal(shown.voxels, discovery.read(cohort_of["echoes"])[number].voxels)
    index.report(answer, tmp_path / "report.html")
    pictures = jpegs((tmp_path / "report.html").read_text())
    np.testing.assert_array_equal(pictures[1], drawn(index, hit.scan, hit.slice))
    other = drawn(index, ScanRef(hit.source, 1 - number), hit.slice)
    assert pictures[1].shape != other.shape or np.abs(pictures[1].astype(int) - other).mean() > 2


@pytest.mark.parametrize("number", range(4))
def test_the_vector_of_a_hit_is_that_of_its_volume(
    index: Index, cohort_of: dict[str, Path], tmp_path: Path, number: int
) -> None:
    volume = volumes(6)[2 + number]
    query = write_nifti(tmp_path / "new" / "new_t2.nii.gz", volume)
    # a case is ranked as a whole, here by the mean over its volumes, and shown by its best pair
    (hit,) = [hit for hit in index.query(query).hits if hit.source == str(cohort_of["volumes"])]
    assert hit.scan == ScanRef(hit.source, number)
    found = index.vector(hit.scan, hit.slice)
    assert found is not None
    (scan,) = discovery.read(query)
    ready = prepared(scan, Preprocessing(32))
    own = Explaining().encode(ready.pixels[ready.positions == hit.query_slice])[0]
    assert own @ found[0] >= 0.999
    others = [index.vector(ScanRef(hit.source, n), hit.slice) for n in range(4) if n != number]
    assert all(other is not None and own @ other[0] < 0.99 for other in others)


def test_the_explanation_is_of_the_very_scans(index: Index, tmp_path: Path) -> None:
    query = write_nifti(tmp_path / "new" / "new_t2.nii.gz", volumes(2)[1])
    answer = index.query(query, k=1)
    hit = answer.hits[0]
    why = index.explain(answer)
    assert why is not None
    of_query = why(hit, index.scan(hit.query_scan), True)
    of_hit = why(hit, index.scan(hit.scan), False)
    # both slices are the same image: what explains the one explains the other
    assert of_query is not None
    assert of_hit is not None
    np.testing.assert_allclose(of_query, of_hit, atol=1e-5)


def test_the_command_shows_the_echo_too(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CaseIndex, "load_encoder", lambda self: Explaining())
    query = write_nifti(tmp_path / "new" / "new_t2.nii.gz", volumes(2)[1])
    told = ["query", str(query), "--index", str(tmp_path / "index"), "-k", "1"]
    ran = CliRunner().invoke(app, [*told, "--json", "--report", str(tmp_path / "r.html")])
    assert ran.exit_code == 0, ran.output
    answer = json.loads(ran.stdout)
    (hit,) = answer["hits"]
    assert hit["scan"] == f"{hit['source']}#1"
    assert hit["query_scan"] == f"{query}#0"
    assert answer["query"]["scans"] == [f"{query}#0"]
    np.testing.assert_array_equal(
        jpegs((tmp_path / "r.html").read_text())[1],
        drawn(index, ScanRef.parse(hit["scan"]), hit["slice"]),
    )


def test_the_scans_of_a_query_are_told_apart_as_well(index: Index, tmp_path: Path) -> None:
    first, second = volumes(2)
    query = write_echoes(
        tmp_path / "new" / "echoes", np.zeros_like(first) + first.mean() * (first > 0), second
    )
    answer = index.query(query, k=1, exclude_patient="V-01")
    assert answer.query.scans == [ScanRef(str(query), 0), ScanRef(str(query), 1)]
    assert answer.hits[0].query_scan.number == answer.hits[0].scan.number == 1


def test_a_filed_case_asks_with_all_of_its_scans(index: Index, cohort_of: dict[str, Path]) -> None:
    (case,) = [name for name in index.contents.case_ids if name.startswith("V-01")]
    answer = index.like(case, k=1)
    assert answer.query.scans == [ScanRef(str(cohort_of["volumes"]), n) for n in range(4)]
    assert index.scan(str(answer.hits[0].query_scan)).voxels.shape == SHAPE


def test_a_scan_that_is_gone_or_changed_is_refused_with_the_remedy(
    index: Index, cohort_of: dict[str, Path]
) -> None:
    ref = ScanRef(str(cohort_of["volumes"]), 3)
    with pytest.raises(ReadError, match="has no scan 4 any more; index it again"):
        index.scan(ScanRef(ref.source, 4))
    write_nifti(cohort_of["volumes"], np.stack(volumes(2), -1))
    with pytest.raises(ReadError, match="has no scan 3 any more; index it again"):
        index.scan(ref)
    write_nifti(cohort_of["volumes"], np.stack(volumes(4), -1)[2:-2])
    with pytest.raises(ReadError, match="40×48×8 voxels, now 36×48×8.*index it again"):
        index.scan(ref)
    cohort_of["volumes"].unlink()
    with pytest.raises(ReadError, match=re.escape(cohort_of["volumes"].name)):
        index.scan(ref)


def test_references_are_read_as_they_are_written() -> None:
    assert cbir.ScanRef.parse("a#b#12") == ScanRef("a#b", 12)
    with pytest.raises(QueryError, match="source#number"):
        ScanRef.parse("a")
