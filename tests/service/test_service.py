"""The service over HTTP: the same answers, access, limits, changes beside questions, and what stays out."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gzip
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.routing import APIRoute
from PIL import Image

from cbir import Index, create_index, open_index
from indexer import reference
from indexer.case_index import CaseIndex
from indexer.catalog import Catalog
from indexer.discovery import read
from indexer.encoder import load_encoder
from indexer.errors import CaseIndexError, CbirError
from indexer.ingest import ingest
from indexer.scan import Scan, displayed
from retrieval.cli import main
from retrieval.explain import ExplainedScan
from retrieval.report import report_page
from retrieval.service import app, core, intake, jobs, queries, questions, scratch
from retrieval.service.app import create_app
from retrieval.service.audit_message import message
from retrieval.service.routes import ROUTES
from retrieval.service.settings import Settings
from retrieval.service.tokens import Role, add_token
from tests.indexer.test_reference import filed
from tests.retrieval.test_explain import TinyExplainer
from tests.service.test_privacy import PLANTED, SECRETS
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_dicom, write_nifti
from tests.support.service import TestClient, done, sent, serving, zipped

PICTURES = ("volume", "thumbnail", "query_volume", "query_thumbnail")
ADDED = {*PICTURES, "explanation", "scan", "query_scan"}


# ---- a service and what is sent to it ------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def client(filled: Path) -> Iterator[TestClient]:
    with serving(filled) as client:
        yield client


@pytest.fixture
def explaining(filled: Path) -> Iterator[TestClient]:
    """The same index, with an encoder that explains."""
    with serving(filled, TinyExplainer()) as client:
        yield client


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A scan of a patient that is not in the index."""
    return write_nifti(tmp_path / "new" / "N-01_t1ce.nii.gz", phantom(77, 4))


def plain(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what may differ between the ways to ask: where the scan came from, addresses."""
    query = {k: v for k, v in answer["query"].items() if k not in ("source", "id", "scans")}
    hits = [
        {k: v for k, v in hit.items() if k not in {"source", "query_source"} | ADDED}
        for hit in answer["hits"]
    ]
    return {**answer, "query": query, "hits": hits}


# ---- the same answer everywhere ------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms embedded by the real encoder."""
    root = tmp_path_factory.mktemp("real")
    lines = ["participant_id\twho_grade"]
    for i in range(5):
        lines.append(f"P-{i:02}\t{2 + i % 3}")
        write_nifti(root / "mri" / f"P-{i:02}" / f"P-{i:02}_t1ce.nii.gz", phantom(i, 2 + i % 3))
    (root / "mri" / "participants.tsv").write_text("\n".join(lines) + "\n")
    write_dicom(root / "new", phantom(9, 4), SeriesDescription="t1 post contrast")
    write_nifti(root / "N-01_t1ce.nii.gz", phantom(9, 3))
    encoder = load_encoder()
    with CaseIndex.create(root / "index", encoder) as index:
        ingest(index, [root / "mri"], encoder)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ({"k": 3}, ["-k", "3"]),
        ({"where": {"who_grade": "3"}}, ["--where", "who_grade=3"]),
        ({"region": (4, 5, 16, 20), "region_slice": 5}, ["--region", "4,5,16,20@5"]),
        ({"exclude_patient": "P-01", "all_cases": True}, ["--exclude-patient", "P-01", "--all-cases"]),
        ({"by": "appearance"}, ["--by", "appearance"]),
    ],
)
@pytest.mark.parametrize("which", ["N-01_t1ce.nii.gz", "new", "mri/P-02/P-02_t1ce.nii.gz"])
def test_python_the_command_line_and_the_service_agree(real_index, monkeypatch, capsys, python, shell, which):
    path = real_index / which
    with open_index(real_index / "index") as index:
        by_python = index.query(path, **python).to_dict()
    monkeypatch.setattr(
        sys, "argv", ["cbir", "query", str(path), "--index", str(real_index / "index"), "--json", *shell]
    )
    with contextlib.suppress(SystemExit):
        main()
    by_shell = json.loads(capsys.readouterr().out)
    fields = {
        name.strip("-").replace("-", "_"): value for name, value in zip(shell[::2], shell[1::2], strict=False)
    }
    if "--all-cases" in shell:
        fields = {"exclude_patient": "P-01", "all_cases": "true"}
    with serving(real_index / "index", load_encoder()) as client:
        file = zipped(path) if path.is_dir() else sent(path)
        first = client.post("/query", files=file, data=fields)
        assert first.status_code == 200, first.text
        again = client.post(f"/queries/{first.json()['query']['id']}", data=fields)
    by_python = json.loads(json.dumps(by_python))
    assert by_python["hits"]
    assert plain(by_shell) == plain(by_python)
    assert plain(first.json()) == plain(by_python)
    assert plain(again.json()) == plain(by_python)


# ---- questions -----------------------------------------------------------------------------------


def test_health_and_info(client):
    assert client.get("/health").json() == {
        "status": "ok",
        "notice": "research use only, not a medical device",
    }
    info = client.get("/info").json()
    assert (info["cases"], info["patients"], info["encoder"]) == (6, 6, "tiny 1")
    assert info["labels"] == {"who_grade": ["2", "3", "4"]}
    assert info["pacs"] is False


def test_hits_come_with_their_pictures_and_no_paths(client, new, filled):
    answer = client.post("/query", files=sent(new), data={"k": "3"}).json()
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    assert "path" not in json.dumps(answer)
    assert str(filled.parent) not in json.dumps(answer)
    assert "N-01" not in json.dumps(answer)
    (scan,) = answer["query"]["scans"]
    assert (scan["shape"], scan["spacing"], scan["axis"], scan["slices"]) == ([24, 28, 10], [1, 1, 3], 2, 10)
    hit = answer["hits"][0]
    assert hit["source"] == hit["case_id"]
    for name in ("volume", "query_volume"):
        reply = client.get(hit[name])
        assert reply.headers["content-type"] == "application/gzip"
        image = nib.Nifti1Image.from_bytes(gzip.decompress(reply.content))
        assert image.shape == (24, 28, 10)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), nib.load(new).get_fdata(dtype=np.float32))
    for name in ("thumbnail", "query_thumbnail"):
        reply = client.get(hit[name] + "&size=100")
        assert reply.headers["content-type"] == "image/png"
        assert max(Image.open(io.BytesIO(reply.content)).size) == 100
    case = client.get(f"/cases/{hit['case_id']}").json()
    assert case["labels"] == hit["labels"]
    assert case["scans"][0]["volume"] == hit["volume"]


def test_a_sequence_that_a_case_has_twice_is_told_apart(tmp_path, tiny):
    for name, seed in (("a", 1), ("b", 2)):
        write_nifti(tmp_path / "mri" / "sub-1" / name / "sub-1_t1.nii.gz", phantom(seed))
    with CaseIndex.create(tmp_path / "index", tiny) as index:
        ingest(index, [tmp_path / "mri"], tiny)
    with serving(tmp_path / "index") as client:
        for name in ("a", "b"):
            path = tmp_path / "mri" / "sub-1" / name / "sub-1_t1.nii.gz"
            hit = client.post("/query", files=sent(path)).json()["hits"][0]
            image = nib.Nifti1Image.from_bytes(gzip.decompress(client.get(hit["volume"]).content))
            np.testing.assert_array_equal(np.asanyarray(image.dataobj), np.asanyarray(nib.load(path).dataobj))


def test_more_like_several_cases_is_the_mean_of_them(client):
    with open_index(client.app.state.service.settings.index, TinyEncoder()) as index:
        a, b, *others = index.contents.case_ids
        expected = {}
        for case in (a, b):
            for hit in index.like(case, 10).hits:
                expected.setdefault(hit.case_id, []).append(hit.score)
    answer = client.post("/query", data={"like": [a, b]}).json()
    assert {hit["case_id"] for hit in answer["hits"]} == set(others)
    for hit in answer["hits"]:
        assert hit["score"] == pytest.approx(np.mean(expected[hit["case_id"]]), abs=2e-6)
        assert hit["query_source"] in (a, b)
        assert client.get(hit["query_volume"]).status_code == 200
    assert client.post("/query", data={"like": [a, "c-unknown"]}).status_code == 404


def test_a_query_can_be_asked_again_by_its_asker_alone(filled, new, tmp_path):
    tokens = tmp_path / "tokens"
    mine, other = ({"Authorization": f"Bearer {add_token(tokens, name, 'read')}"} for name in "ab")
    with serving(filled, tokens=tokens) as client:
        query = client.post("/query", files=sent(new), headers=mine).json()["query"]
        again = client.post(f"/queries/{query['id']}", data={"region": "2,2,20,20@5", "k": "1"}, headers=mine)
        assert again.json()["query"]["region"] == [2, 2, 20, 20]
        assert len(again.json()["hits"]) == 1
        for method, path in (("POST", ""), ("GET", "/volume.nii.gz"), ("GET", "/thumbnail.png")):
            path = f"/queries/{query['id']}{path}"
            assert client.request(method, path, headers=mine).status_code == 200
            assert client.request(method, path, headers=other).status_code == 404


def test_queries_go_when_their_time_is_over_or_their_room_is_needed(tmp_path, monkeypatch):
    scan = Scan(phantom(1), Path("a"), (1, 1, 3), np.diag([1.0, 1, 3, 1]), sequence="t1")
    clock = [0.0]
    monkeypatch.setattr(queries.time, "monotonic", lambda: clock[0])
    folder = tmp_path / "kept"
    folder.mkdir()
    store = queries.Queries(folder, seconds=10)
    first = store.keep([scan], "a", "p-1")
    np.testing.assert_array_equal(first.scan(0).voxels, scan.voxels)
    clock[0] = 9
    assert store.get(first.id, "a") is first
    clock[0] = 18
    assert store.get(first.id, "a") is first  # used at 9, at 18
    clock[0] = 29
    store.sweep()
    assert store.get(first.id, "a") is None
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(queries, "MOST", 2.5 * first.size)
    kept = [store.keep([scan], "a", "p-1") for _ in range(3)]
    assert [store.get(each.id, "a") is not None for each in kept] == [False, True, True]
    assert len(list(folder.iterdir())) == 2


def test_the_report_is_a_page_of_its_own(client, new):
    reply = client.post("/report", files=sent(new), data={"k": "2"})
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert reply.text.count("data:image/jpeg") == 4
    assert "no picture" not in reply.text
    assert "N-01" not in reply.text
    assert client.post("/report", data={"like": _case(client)}).status_code == 200


def test_the_report_explains_like_that_of_the_command_line(explaining, filled, new):
    reply = explaining.post("/report", files=sent(new), data={"k": "2", "region": "4,5,16,20@5"})
    with open_index(filled, TinyExplainer()) as index:
        answer = index.query(new, 2, region=(4, 5, 16, 20), region_slice=5)
        page = report_page(answer, load=index.scans, explain=index.explain(answer))
    maps = re.findall('data:image/png;base64,[^"]+', reply.text)
    assert len(set(maps)) == 4
    assert maps == re.findall('data:image/png;base64,[^"]+', page)
    like = explaining.post("/report", data={"like": _case(explaining), "k": "2"})
    assert like.text.count("data:image/png") == 4


def _case(client: TestClient) -> str:
    return client.app.state.service.index.contents.case_ids[0]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"k": "0"}, "k is not a number from 1"),
        ({"k": "ten"}, "k is not a number from 1"),
        ({"k": "100000"}, "k is not a number from 1"),
        ({"where": "who_grade"}, "is not LABEL=VALUE"),
        ({"where": "who_grade=9"}, "no case has this value"),
        ({"region": "1,2,3"}, "is not X0,Y0,X1,Y1"),
        ({"region": "0,0,999,999"}, "is not inside its slices"),
        ({"all_cases": "perhaps"}, "neither true nor false"),
        ({"by": "name"}, "none of class, appearance, similarity"),
        ({"like": "c-1"}, "give one of the fields"),
        ({"series": "1.2.3"}, "give one of the fields"),
    ],
)
def test_questions_that_make_no_sense_are_told_why(standing, new, fields, told):
    reply = standing.post("/query", files=sent(new), data=fields)
    assert reply.status_code == 422
    assert told in reply.json()["detail"]
    assert list((standing.app.state.service.scratch.queries).iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("Doe_Jane.txt", b"hello", "is not an image of a known format"),
        ("Doe_Jane.nii.gz", b"\x1f\x8bnonsense", "damaged"),
        ("Doe_Jane.nii", b"x" * 400, "is not a NIfTI file"),
        ("Doe_Jane.png", b"\x89PNG\r\n\x1a\nxx", ""),
        ("Doe_Jane.dcm", b"x", "is not DICOM"),
        ("Doe_Jane.zip", b"PK\x03\x04nonsense", "the archive is damaged"),
        ("Doe_Jane_seg.nii", b"x" * 400, "is a region"),
        ("", b"", ""),
    ],
)
@pytest.mark.parametrize("address", ["/query", "/report", "/index"])
def test_what_is_no_image_is_refused_with_the_reason_and_without_its_name(
    standing, name, content, told, address
):
    reply = standing.post(address, files={"file": (name, content)})
    if address == "/index" and reply.status_code == 202:  # told by reading it
        job = done(standing, reply)
        assert job["state"] == "failed"
        reason = job["reason"]
    else:
        assert reply.status_code == 422, reply.text
        reason = reply.json()["detail"]
    assert told in reason
    assert "Doe" not in reason
    assert "/" not in reason.replace("PNG, JPEG", "")
    assert standing.get("/info").json()["cases"] == 6


def test_other_bodies_than_forms_are_refused(client):
    assert client.post("/query", json={"k": 3}).status_code == 415
    assert client.post("/query", content=b"x", headers={"content-type": "image/png"}).status_code == 415
    assert client.post("/query").status_code == 422
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post("/query", content=b"--y\r\nnonsense", headers=broken).status_code in (400, 422)
    two = [("file", ("a.nii", b"1")), ("file", ("b.nii", b"2"))]
    assert client.post("/query", files=two).status_code == 400
    many = {"where": [f"a{n}=1" for n in range(500)]}
    assert client.post("/query", files={"file": ("a.nii", b"1")}, data=many).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/cases/c-unknown",
        "/cases/c-unknown/volume.nii.gz",
        "/cases/c-unknown/thumbnail.png",
        "/cases/../../etc/passwd",
        "/cases/..%2f..%2fetc%2fpasswd/volume.nii.gz",
        "/cases/%2fetc%2fpasswd/volume.nii.gz",
        "/queries/unknown/volume.nii.gz",
        "/queries/..%2f..%2fx/thumbnail.png",
        "/jobs/unknown",
        "/unknown",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/%252e%252e/app.py",
        "/static//etc/passwd",
        "/static/unknown.js",
        "/.git/config",
    ],
)
def test_what_is_not_there_is_not_found(standing, path):
    reply = standing.get(path)
    assert reply.status_code == 404
    assert reply.json().keys() == {"detail"}
    assert "\n" not in reply.json()["detail"]


def test_unknown_scans_slices_and_sizes(client):
    case = f"/cases/{_case(client)}"
    assert client.get(f"{case}/volume.nii.gz?sequence=t2").status_code == 404
    for scan in (1, -1, 10**9):
        assert client.get(f"{case}/volume.nii.gz?scan={scan}").status_code == 404
    for position in (10, -1):
        assert client.get(f"{case}/thumbnail.png?slice={position}").status_code == 404
    for size in (1, 10**9, "x"):
        reply = client.get(f"{case}/thumbnail.png?size={size}")
        assert reply.status_code == 422
        assert isinstance(reply.json()["detail"], str)
    assert client.put("/query").status_code == 405


def test_a_case_whose_file_is_gone_is_told(tmp_path, cohort, tiny):
    with create_index(tmp_path / "index", encoder=tiny) as index:
        index.add(cohort(1), calibrate=False)
    shutil.rmtree(tmp_path / "mri")
    with serving(tmp_path / "index") as client:
        reply = client.get(f"/cases/{_case(client)}/volume.nii.gz")
        assert (reply.status_code, reply.json()["detail"]) == (404, "the images of this scan are gone")


# ---- explanations --------------------------------------------------------------------------------


def asked(client: TestClient, file: dict[str, Any], **fields: str) -> dict[str, Any]:
    """The first hit."""
    reply = client.post("/query", files=file, data={"k": "1", **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()["hits"][0]


def volume(client: TestClient, address: str) -> nib.Nifti1Image:
    reply = client.get(address)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/gzip"), reply.text
    assert reply.headers["cache-control"] == "no-store"
    return nib.Nifti1Image.from_bytes(gzip.decompress(reply.content))


def maps(client: TestClient, hit: dict[str, Any]) -> list[Any]:
    """The maps of both matched slices, of volumes that are 0 elsewhere."""
    found = []
    for side, of, position in (
        ("query", "query_volume", hit["query_slice"]),
        ("hit", "volume", hit["slice"]),
    ):
        image, shown = volume(client, hit["explanation"][side]), volume(client, hit[of])
        assert image.shape == shown.shape
        np.testing.assert_array_equal(image.affine, shown.affine)
        assert image.header.get_dim_info() == shown.header.get_dim_info()
        voxels, axis = np.asanyarray(image.dataobj), shown.header.get_dim_info()[2]
        assert (voxels.min(), voxels.max()) == (0, 1)
        assert set(np.nonzero(voxels)[axis]) == {position}
        found.append(displayed(voxels, axis, position))
    return found


@pytest.mark.parametrize("spacing", [(1, 1, 3), (5, 1, 1)])
def test_maps_are_those_of_the_engine_on_the_grids_of_the_volumes(explaining, filled, tmp_path, spacing):
    new = write_nifti(tmp_path / "new" / "N-01_t1ce.nii.gz", phantom(77, 4), spacing)
    hit = asked(explaining, sent(new))
    of_query, of_hit = maps(explaining, hit)
    with open_index(filled, TinyExplainer()) as index:
        (found,) = index.query(new, 1).hits
        towards, view = index.vector(found.scan, found.slice)
        query, case = (ExplainedScan(TinyExplainer(), read(path)[0]) for path in (new, Path(found.source)))
    assert (found.query_slice, found.slice, view) == (hit["query_slice"], hit["slice"], 0)
    np.testing.assert_array_equal(of_query, query.map(found.query_slice, towards))
    np.testing.assert_array_equal(of_hit, case.map(found.slice, query.embedding(found.query_slice)))


@pytest.mark.parametrize("outlined", [False, True])
def test_a_region_is_explained_as_in_the_report(tmp_path, outlined):
    shape = (100, 100, 6)
    outline = np.zeros(shape, np.float32)
    outline[44:54, 44:54, 3] = 1
    write_nifti(tmp_path / "mri" / "A_t1ce.nii.gz", phantom(1, shape=shape))
    if outlined:
        write_nifti(tmp_path / "mri" / "A_seg.nii.gz", outline)
    new = write_nifti(tmp_path / "new" / "N-01_t1ce.nii.gz", phantom(77, 4, shape))
    with CaseIndex.create(tmp_path / "index", TinyExplainer()) as made:
        ingest(made, [tmp_path / "mri"], TinyExplainer())
    box = (50, 40, 62, 60)
    with serving(tmp_path / "index", TinyExplainer()) as client:
        hit = asked(client, sent(new), region="50,40,62,60@2")
        of_query, of_hit = maps(client, hit)
        query = client.get(hit["explanation"]["query"].partition("region=")[0] + "region=50,40,62,60@1")
        assert query.status_code == 404, "the region is on another slice"
    with open_index(tmp_path / "index", TinyExplainer()) as index:
        answer = index.query(new, 1, region=box, region_slice=2)
        why = index.explain(answer)
        (scan,) = index.scans(answer.hits[0].source)
        np.testing.assert_array_equal(of_query, why(answer.hits[0], read(new)[0], True))
        np.testing.assert_array_equal(of_hit, why(answer.hits[0], scan, False))
    inside = np.zeros(of_query.shape, bool)
    inside[30:70, 36:76] = True
    assert not of_query[~inside].any()
    assert (np.count_nonzero(of_hit) <= 32**2) == outlined, "in the crop around the outline"


def test_scans_of_one_query_are_explained_each_on_its_own(tmp_path):
    for sequence, seed, shape in (("t1ce", 1, (24, 28, 10)), ("flair", 2, (30, 26, 12))):
        for patient, folder in (("P-01", "mri"), ("N-01", "new")):
            path = tmp_path / folder / patient / f"{patient}_{sequence}.nii.gz"
            write_nifti(path, phantom(seed if patient == "P-01" else seed + 50, 3, shape))
    with CaseIndex.create(tmp_path / "index", TinyExplainer()) as made:
        ingest(made, [tmp_path / "mri"], TinyExplainer())
    with serving(tmp_path / "index", TinyExplainer()) as client:
        answer = client.post("/query", files=zipped(tmp_path / "new" / "N-01")).json()
        case = client.get(f"/cases/{answer['hits'][0]['case_id']}").json()
        numbers = {scan["sequence"]: scan["scan"] for scan in case["scans"]}
        assert len(answer["query"]["scans"]) == len(numbers) == 2
        for scan in answer["query"]["scans"]:
            pair = (
                f"scan={scan['scan']}&slice=5&case={case['case_id']}"
                f"&case_scan={numbers[scan['sequence']]}&case_slice=6"
            )
            place = f"/queries/{answer['query']['id']}/explanation"
            for side in ("query", "hit"):
                assert volume(client, f"{place}/{side}.nii.gz?{pair}").shape == tuple(scan["shape"])
        hit = answer["hits"][0]
        assert hit["query_sequence"] == hit["sequence"]
        maps(client, hit)


@pytest.fixture(scope="module")
def pair(six: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, dict[str, str]]]:
    """A service that explains, and where the maps of a pair are."""
    root = tmp_path_factory.mktemp("pair")
    shutil.copytree(six / "index", root / "index")
    with serving(root / "index", TinyExplainer()) as client:
        yield client, asked(client, sent(write_nifti(root / "N_t1ce.nii.gz", phantom(77, 4))))["explanation"]


@pytest.mark.parametrize("side", ["query", "hit"])
@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        (("/queries/", "/queries/x"), 404, "no such query"),
        (("case=", "case=x"), 404, "no such case"),
        (("?scan=0", "?scan=1"), 404, "the query has no such scan"),
        (("?scan=0", "?scan=-1"), 404, "the query has no such scan"),
        (("case_scan=0", "case_scan=1"), 404, "the case has no such scan"),
        (("case_scan=0", "case_scan=-1"), 404, "the case has no such scan"),
        (("&slice=", "&slice=1000"), 404, "no embedding"),
        (("&slice=", "&slice=-"), 404, "no embedding"),
        (("case_slice=", "case_slice=1000"), 404, "no embedding"),
        (("case_slice=", "case_slice=-"), 404, "no embedding"),
        (("case_slice=", f"case_slice={10**30}"), 404, "no embedding"),
        (("case_slice=", "case_slice=x"), 422, "case_slice: "),
        (("&case_slice=", "#"), 422, "case_slice: field required"),
        (("case_slice=", "other="), 422, "there is no such parameter"),
        (("case_slice=", "slice=1&case_slice="), 422, "slice: it is given several times"),
        (("/explanation/", "/explanation/x"), 422, "side: "),
        (("case_slice=", "region=1,2,3&case_slice="), 422, "is not X0,Y0,X1,Y1"),
        (("case_slice=", "region=0,0,999,999&case_slice="), 422, "is not inside its slices"),
    ],
)
def test_pairs_that_are_none_have_no_maps(pair, side, change, status, told):
    client, addresses = pair
    address = addresses[side]
    assert client.get(address).status_code == 200
    assert change[0] in address
    reply = client.get(address.replace(*change))
    assert (reply.status_code, told in reply.json()["detail"]) == (status, True), reply.text


def test_maps_are_for_the_asker_alone_as_long_as_the_query_is_kept(filled, new, tmp_path):
    tokens = tmp_path / "tokens"
    mine, other = ({"Authorization": f"Bearer {add_token(tokens, name, 'read')}"} for name in "ab")
    with serving(filled, TinyExplainer(), tokens=tokens) as client:
        answer = client.post("/query", files=sent(new), headers=mine).json()
        addresses = answer["hits"][0]["explanation"].values()
        for headers, status in (({}, 401), (other, 404), (mine, 200)):
            assert {client.get(each, headers=headers).status_code for each in addresses} == {status}
        again = client.post(f"/queries/{answer['query']['id']}", headers=mine).json()
        assert again["hits"][0]["explanation"] == answer["hits"][0]["explanation"]
        queries = client.app.state.service.queries
        queries.drop(queries.get(answer["query"]["id"], "a"))
        assert {client.get(each, headers=mine).status_code for each in addresses} == {404}


def test_a_case_without_its_pictures_is_explained_on_the_query(tmp_path, cohort, new):
    with create_index(tmp_path / "index", encoder=TinyExplainer()) as index:
        index.add(cohort(2), calibrate=False)
    with serving(tmp_path / "index", TinyExplainer()) as client:
        hit = asked(client, sent(new))
        before = client.get(hit["explanation"]["query"]).content
        shutil.rmtree(tmp_path / "mri")
        assert client.get(hit["explanation"]["query"]).content == before
        reply = client.get(hit["explanation"]["hit"])
        assert (reply.status_code, reply.json()["detail"]) == (404, "the images of this scan are gone")


def test_a_reference_case_is_explained_on_the_query(tmp_path, cohort, monkeypatch, new):
    monkeypatch.setattr(reference, "FOLDER", tmp_path / "package" / "reference_index")
    filed(tmp_path, TinyExplainer())
    with CaseIndex.create(tmp_path / "index", TinyExplainer()) as made:
        ingest(made, [cohort(2)], TinyExplainer(), with_reference=True)
    with serving(tmp_path / "index", TinyExplainer()) as client:
        hits = client.post("/query", files=sent(new)).json()["hits"]
        public = [hit for hit in hits if "collection" in hit["labels"]]
        assert (len(hits), len(public)) == (6, 4)
        for hit in hits:
            sides = {"query"} if hit in public else {"query", "hit"}
            assert hit["explanation"].keys() == sides
        address = public[0]["explanation"]["query"]
        assert np.asanyarray(volume(client, address).dataobj).max() == 1
        reply = client.get(address.replace("query.nii", "hit.nii"))
        assert (reply.status_code, "a reference case" in reply.json()["detail"]) == (404, True)


def test_cases_that_ask_are_no_query_that_is_kept(explaining):
    hits = explaining.post("/query", data={"like": _case(explaining)}).json()["hits"]
    assert hits
    assert not any("explanation" in hit for hit in hits)


def test_an_encoder_that_explains_nothing_hands_over_no_maps(client, new):
    answer = client.post("/query", files=sent(new)).json()
    assert not any("explanation" in hit for hit in answer["hits"])
    case = answer["hits"][0]["case_id"]
    pair = f"scan=0&slice=5&case={case}&case_scan=0&case_slice=5"
    reply = client.get(f"/queries/{answer['query']['id']}/explanation/query.nii.gz?{pair}")
    assert (reply.status_code, "explains nothing" in reply.json()["detail"]) == (404, True)


# ---- changes -------------------------------------------------------------------------------------


def test_an_upload_is_indexed_once_and_found(client, new):
    first = done(client, client.post("/index", files=sent(new), data={"labels": '{"who_grade": 4}'}))
    assert (first["state"], first["progress"]) == ("done", {"done": 1, "total": 1})
    assert (first["report"]["indexed"], first["report"]["cases"]) == (1, 7)
    second = done(client, client.post("/index", files=sent(new)))
    assert (second["report"]["indexed"], second["report"]["unchanged"]) == (0, 1)
    answer = client.post("/query", files=sent(new)).json()
    assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert answer["hits"][0]["labels"] == {"who_grade": "4"}  # kept by the second
    assert "the query itself is in the index" in answer["notes"][0]
    listed = client.get("/jobs").json()["jobs"]
    assert [job["job"] for job in listed] == [second["job"], first["job"]]


def test_a_dicom_series_is_one_series_however_it_comes_and_grows(client, tmp_path):
    volume = phantom(50, 3)
    series = write_dicom(tmp_path / "in" / "series", volume, SeriesDescription="t1 post contrast")
    partial = tmp_path / "in" / "partial"
    partial.mkdir()
    for file in sorted(series.iterdir())[:6]:
        shutil.copy(file, partial)
    first = done(client, client.post("/index", files=zipped(partial)))
    assert (first["report"]["indexed"], first["report"]["cases"]) == (1, 7)
    whole = done(client, client.post("/index", files=zipped(series)))  # the late slices
    assert (whole["report"]["indexed"], whole["report"]["cases"]) == (1, 7)
    again = done(client, client.post("/index", files=zipped(series)))
    assert (again["report"]["unchanged"], again["report"]["embedded"]) == (1, 0)
    answer = client.post("/query", files=zipped(series)).json()
    assert answer["notes"] == [
        f"the query itself is in the index (case {answer['hits'][0]['case_id']}): "
        "that patient has no vote in the evidence"
    ]
    (scan,) = client.get(f"/cases/{answer['hits'][0]['case_id']}").json()["scans"]
    assert (scan["slices"], scan["modality"], scan["sequence"]) == (10, "MR", "t1ce")
    index = client.app.state.service.settings.index
    assert len(list((index / "spool").iterdir())) == 1


def test_a_study_of_several_series_with_its_table_of_labels(client, tmp_path):
    root = tmp_path / "study"
    for patient, seed in (("sub-A", 1), ("sub-B", 2)):
        for sequence in ("t1", "flair"):
            write_nifti(root / patient / f"{patient}_{sequence}.nii.gz", phantom(seed + 30))
    (root / "participants.tsv").write_text("participant_id\twho_grade\tname\nsub-A\t3\tJane\nsub-B\t4\tJim\n")
    (root / "broken_t1.nii.gz").write_bytes(b"\x1f\x8bnonsense")
    with io.BytesIO() as out:
        with zipfile.ZipFile(out, "w") as archive:
            for path in root.rglob("*"):
                archive.write(path, path.relative_to(root))
        job = done(client, client.post("/index", files={"file": ("x.zip", out.getvalue())}))
    assert job["state"] == "done"
    assert (job["report"]["indexed"], job["report"]["cases"]) == (4, 8)
    assert len(job["report"]["failed"]) == 1
    assert "broken" not in json.dumps(job)
    info = client.get("/info").json()
    assert "name" not in info["labels"]
    contents = client.app.state.service.index.contents
    assert {row.get("who_grade") for row in contents.labels[6:]} == {"3", "4"}


def test_files_of_one_name_in_one_upload_are_all_kept(client, tmp_path):
    for folder, seed in (("a", 1), ("b", 2), ("c", 3)):
        write_nifti(tmp_path / "study" / folder / "sub-1_t1.nii.gz", phantom(seed))
    for indexed in (3, 0):
        job = done(client, client.post("/index", files=zipped(tmp_path / "study")))
        # nobody knows whether a, b and c are people, or visits of one
        assert (job["report"]["indexed"], job["report"]["cases"]) == (indexed, 9)
    assert client.get("/info").json()["scans"] == 9


def test_a_file_whose_name_says_nothing_asks_but_is_not_indexed(client, tmp_path):
    """Its patient would be another one each time, and each would vote."""
    scan = write_nifti(tmp_path / "P-90" / "t1ce.nii.gz", phantom(77, 4))
    assert client.post("/query", files=sent(scan)).status_code == 200
    for upload in (sent(scan), sent(scan, "ses-1_t1ce.nii.gz")):
        reply = client.post("/index", files=upload)
        assert reply.status_code == 422
        assert "does not say whose scan it is; call it after patient and sequence" in reply.json()["detail"]
    for indexed in (1, 0):  # in an archive, the folder says it
        assert done(client, client.post("/index", files=zipped(scan.parent)))["report"]["indexed"] == indexed
    assert not uploads()


def test_the_last_file_that_fails_does_not_hide_the_others(client, tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "GROUP", 1)
    client.app.state.service._cost = 1000.0  # no renewal but the last
    write_nifti(tmp_path / "study" / "a_t1.nii.gz", phantom(1))
    (tmp_path / "study" / "z_t1.nii.gz").write_bytes(b"\x1f\x8bnonsense")
    job = done(client, client.post("/index", files=zipped(tmp_path / "study")))
    assert (job["report"]["indexed"], len(job["report"]["failed"])) == (1, 1)
    assert job["progress"] == {"done": 2, "total": 2}
    assert len(client.app.state.service.index.contents.case_ids) == 7


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ('{"a": {"b": 1}}', "not a JSON object"),
        (json.dumps({"a": "x" * 1000}), "short values"),
        ('{"patient_name": "Jane"}', "identifies people"),
        ('{"comment": "Jane"}', "identifies people"),
        (json.dumps({"tumour": "a\x1b[2J"}), "control characters"),
    ],
)
def test_labels_that_are_none_are_refused(standing, new, labels, told):
    reply = standing.post("/index", files=sent(new), data={"labels": labels})
    assert reply.status_code == 422
    assert told in reply.json()["detail"]
    assert "Jane" not in reply.text


def test_a_case_is_removed_with_its_images(client, new):
    done(client, client.post("/index", files=sent(new)))
    spool = client.app.state.service.settings.index / "spool"
    assert len(list(spool.iterdir())) == 1
    case = client.post("/query", files=sent(new)).json()["hits"][0]["case_id"]
    assert client.delete(f"/cases/{case}").json() == {"schema": 1, "removed": 1}
    assert list(spool.iterdir()) == []
    assert client.get(f"/cases/{case}").status_code == 404
    assert client.delete(f"/cases/{case}").status_code == 404
    hits = client.post("/query", files=sent(new)).json()["hits"]
    assert case not in {hit["case_id"] for hit in hits}
    other = _case(client)
    assert client.delete(f"/cases/{other}").status_code == 200
    assert client.get("/info").json()["cases"] == 5


def test_an_index_folder_that_was_moved_keeps_its_images(filled, new, tmp_path):
    with serving(filled) as client:
        done(client, client.post("/index", files=sent(new)))
    shutil.copytree(filled, tmp_path / "restored")
    shutil.rmtree(filled)
    with serving(tmp_path / "restored") as client:
        hit = client.post("/query", files=sent(new)).json()["hits"][0]
        assert client.get(hit["volume"]).status_code == 200
        again = done(client, client.post("/index", files=sent(new)))["report"]
        assert (again["cases"], again["embedded"]) == (7, 0)
        assert client.get("/info").json()["scans"] == 7


def test_case_ids_with_slashes(tmp_path, tiny):
    write_nifti(tmp_path / "mri" / "sub-1" / "ses-2" / "sub-1_ses-2_t1.nii.gz", phantom(1))
    with CaseIndex.create(tmp_path / "index", tiny, keep_ids=True) as index:
        ingest(index, [tmp_path / "mri"], tiny)
    with serving(tmp_path / "index") as client:
        case = _case(client)
        assert "/" in case
        assert client.get(f"/cases/{case}").json()["case_id"] == case
        assert client.get(f"/cases/{case.replace('/', '%2F')}").json()["case_id"] == case
        (scan,) = client.get(f"/cases/{case}").json()["scans"]
        assert client.get(scan["volume"]).status_code == 200
        assert client.get(scan["thumbnail"]).status_code == 200
        assert client.delete(f"/cases/{case}").status_code == 200
        trail = (tmp_path / "index" / "audit" / "audit.jsonl").read_text()
        assert "sub-1" not in trail  # hashed in the trail although the index keeps it


class Gated(TinyEncoder):
    """An encoder that stops in the threads it is told, until it is let go."""

    def __init__(self, *threads: str) -> None:
        self.threads = threads
        self.reached, self.go = threading.Event(), threading.Event()

    def encode(self, batch):
        if threading.current_thread().name.startswith(self.threads):
            self.reached.set()
            assert self.go.wait(60)
        return super().encode(batch)


def test_questions_go_on_while_the_writer_writes_and_see_committed_states_only(filled, new):
    encoder = Gated("writer")
    with serving(filled, encoder) as client:
        before = client.post("/query", files=sent(new)).json()
        started = client.post("/index", files=sent(new))
        assert encoder.reached.wait(60)
        assert client.get(f"/jobs/{started.json()['job']}").json()["state"] == "running"
        during = client.post("/query", files=sent(new))
        assert plain(during.json()) == plain(before)
        assert client.get("/info").json()["cases"] == 6
        encoder.go.set()
        assert done(client, started)["state"] == "done"
        after = client.post("/query", files=sent(new)).json()
        assert len(after["hits"]) == 7
        assert after["hits"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_a_question_keeps_the_state_it_began_with(filled, new, tiny):
    """Cases come and go while its slices are being embedded: the answer is the one of before."""
    with CaseIndex.open(filled) as writer, Index(CaseIndex.open(filled), tiny) as index:
        expected = index.query(new, k=10)

        class Meanwhile(TinyEncoder):
            def encode(self, batch):
                with writer.writing("test"):
                    writer.catalog.remove_cases(writer.catalog.contents().case_ids[:4])
                    writer.file_vectors()
                index.refresh()
                return super().encode(batch)

        index._encoder = Meanwhile()
        assert index.query(new, k=10) == expected
        index._encoder = tiny
        assert len(index.query(new, k=10).hits) == 2


def test_what_another_process_commits_is_taken_up(client, filled, new, tiny):
    with CaseIndex.open(filled) as other:
        ingest(other, [new], tiny)
    service = client.app.state.service
    service._cost = 0.0
    for _ in range(100):
        service._idle()
        if len(service.index.contents.case_ids) == 7:
            break
    assert client.post("/query", files=sent(new)).json()["hits"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_a_job_waits_while_another_process_writes(client, filled, new, monkeypatch):
    monkeypatch.setattr(jobs, "AGAIN", 0.01)
    with CaseIndex.open(filled) as other, other.writing("index"):
        reply = client.post("/index", files=sent(new))
        job = client.app.state.service.jobs.get(reply.json()["job"])
        assert not job.wait(0.2)
        assert job.state == "running"
    assert done(client, reply)["report"]["indexed"] == 1


def test_what_fails_in_one_job_does_not_touch_the_next(client, new, monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise RuntimeError("Plantedname^Jane")

    with monkeypatch.context() as patch:
        patch.setattr(intake, "spool", fail)
        job = done(client, client.post("/index", files=sent(new)))
    assert (job["state"], job["reason"]) == ("failed", "an error inside cbir (RuntimeError)")
    assert "Plantedname" not in caplog.text
    assert "RuntimeError" in caplog.text
    assert done(client, client.post("/index", files=sent(new)))["state"] == "done"


def test_a_scan_that_shows_nothing_leaves_nothing(client, tmp_path):
    volume = np.zeros((24, 28, 10), np.float32)
    volume[0, 0, 0] = np.float32(1)
    path = write_nifti(tmp_path / "empty_t1.nii.gz", volume)
    job = done(client, client.post("/index", files=sent(path)))
    service = client.app.state.service
    held = len(service.index.contents.case_ids)
    assert (job["state"], held) in (("failed", 6), ("done", 7))
    assert len(list((service.settings.index / "spool").iterdir())) == held - 6


# ---- limits --------------------------------------------------------------------------------------


def uploads() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"{scratch.BEGINNING}*/upload-*"))


def test_more_than_the_limit_is_refused_with_and_without_its_length(filled):
    with serving(filled, max_upload=100_000) as client:
        large = os.urandom(200_000)
        assert client.post("/query", files={"file": ("a.nii", large)}).status_code == 413

        def chunks() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'
            for _ in range(1000):
                yield os.urandom(1000)
            yield b"\r\n--x--\r\n"

        headers = {"content-type": "multipart/form-data; boundary=x"}
        reply = client.post("/query", content=chunks(), headers=headers)
        assert reply.status_code == 413
        assert "100,000 bytes" in reply.json()["detail"]
        assert client.post("/index", content=chunks(), headers=headers).status_code == 413
        plain = {"content-type": "application/x-www-form-urlencoded"}
        assert client.post("/query", content=b"k=" + b"1" * 2**21, headers=plain).status_code == 413
        assert client.get("/health").status_code == 200
        assert not uploads()


def test_a_bomb_is_refused(filled):
    with serving(filled, max_unpacked=2**20, max_files=10) as client, io.BytesIO() as out:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.nii", bytes(2**22))
        for address in ("/query", "/index", "/report"):
            reply = client.post(address, files={"file": ("x.zip", out.getvalue())})
            assert reply.status_code == 413
            assert "when unpacked" in reply.json()["detail"]
        assert not uploads()


def test_a_full_queue_sends_away_with_a_time_to_come_again(filled, new):
    encoder = Gated("asking")
    with serving(filled, encoder, workers=1, queue=1) as client:
        held: list[Any] = []
        threads = [
            threading.Thread(target=lambda: held.append(client.post("/query", files=sent(new))))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        assert encoder.reached.wait(60)
        pool = client.app.state.asking
        while pool.taken < 2:
            client.get("/health")
        refused = client.post("/query", files=sent(new))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        encoder.go.set()
        for thread in threads:
            thread.join()
        assert [reply.status_code for reply in held] == [200, 200]
        assert client.post("/query", files=sent(new)).status_code == 200


def test_too_many_jobs_are_sent_away(filled, new):
    encoder = Gated("writer")
    with serving(filled, encoder, queue=1) as client:
        first = client.post("/index", files=sent(new))
        assert encoder.reached.wait(60)
        second = client.post("/index", files=sent(new))
        third = client.post("/index", files=sent(new))
        assert [first.status_code, second.status_code, third.status_code] == [202, 202, 503]
        assert int(third.headers["retry-after"]) >= 1
        encoder.go.set()
        assert done(client, second)["state"] == "done"
        assert not uploads()


def test_a_question_that_takes_too_long_is_given_up(filled, new):
    encoder = Gated("asking")
    with serving(filled, encoder, workers=1, timeout=0.3) as client:
        reply = client.post("/query", files=sent(new))
        assert (reply.status_code, "retry-after" in reply.headers) == (503, True)
        waiting = client.post("/query", files=sent(new))  # the only thread is still busy
        assert waiting.status_code == 503
        encoder.go.set()
        client.app.state.asking.close()
        assert not uploads()


def test_an_upload_that_does_not_arrive_is_given_up(filled):
    with serving(filled, timeout=0.05) as client:
        sent_back: list[Any] = []

        async def call() -> None:
            async def receive() -> dict[str, Any]:
                await asyncio.Event().wait()
                raise AssertionError

            async def send(message: Any) -> None:
                sent_back.append(message)

            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": "POST",
                "scheme": "http",
                "path": "/query",
                "raw_path": b"/query",
                "root_path": "",
                "query_string": b"",
                "headers": [
                    (b"host", b"127.0.0.1"),
                    (b"content-type", b"multipart/form-data; boundary=x"),
                    (b"transfer-encoding", b"chunked"),
                ],
                "client": ("127.0.0.1", 1),
                "server": ("127.0.0.1", 80),
                "state": {},
            }
            await client.app(scope, receive, send)

        client.portal.call(call)
        assert sent_back[0]["status"] == 408
        assert client.app.state.asking.taken == 0


def test_two_services_do_not_share_an_index(client, filled):
    with pytest.raises(CaseIndexError, match="another service runs on this index"):
        core.Service(Settings(filled), TinyEncoder())


def test_what_a_killed_service_left_is_removed_and_a_running_one_is_left_alone(
    client, filled, tmp_path, tiny
):
    mine = scratch_folders()
    assert len(mine) == 1
    left = Path(tempfile.gettempdir()) / f"{scratch.BEGINNING}left"
    left.mkdir(mode=0o700)
    (left / scratch.LOCK).touch()
    (left / "queries").mkdir()
    with serving(tmp_path / "another"):
        assert not left.exists()
        assert mine < scratch_folders()
    assert scratch_folders() == mine


def scratch_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"{scratch.BEGINNING}*"))


def test_settings_files_above_an_upload_are_not_taken_for_its_own(client, tmp_path, monkeypatch):
    """A `cbir.json` in the temporary folder of the machine is somebody else's."""
    service = client.app.state.service
    from indexer.discovery.config import find_config

    with service.scratch.new_folder() as folder:
        config = find_config(folder)
    assert config is not None
    assert config.path.parent == service.scratch.folder
    assert (config.channels, config.stack) == ((), None)


# ---- access --------------------------------------------------------------------------------------

PUBLIC = {("GET", "/health"), ("GET", "/"), ("GET", "/viewer")}
ROLES = {
    ("GET", "/info"): "read",
    ("POST", "/query"): "read",
    ("POST", "/report"): "read",
    ("POST", "/queries/{query_id}"): "read",
    ("GET", "/queries/{query_id}/volume.nii.gz"): "read",
    ("GET", "/queries/{query_id}/thumbnail.png"): "read",
    ("GET", "/queries/{query_id}/explanation/{side}.nii.gz"): "read",
    ("GET", "/cases/{case_id:path}/volume.nii.gz"): "read",
    ("GET", "/cases/{case_id:path}/thumbnail.png"): "read",
    ("GET", "/cases/{case_id:path}"): "read",
    ("DELETE", "/cases/{case_id:path}"): "admin",
    ("POST", "/index"): "write",
    ("GET", "/jobs/{job_id}"): "read",
    ("GET", "/jobs"): "read",
    ("GET", "/pacs"): "read",
    ("POST", "/pacs/nudge"): "write",
    ("POST", "/sr"): "write",
}


def told(trail: Path) -> list[dict[str, Any]]:
    """The lines of a trail."""
    return [json.loads(line) for line in trail.read_text().splitlines()]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, dict[str, str], Path]]:
    """A service with a token of each role."""
    root = tmp_path_factory.mktemp("guarded")
    tokens = {role: add_token(root / "tokens", f"the-{role}er", role) for role in ("read", "write", "admin")}
    with serving(root / "index", tokens=root / "tokens", strangers=10_000) as client:
        yield client, tokens, root


def every_route() -> list[tuple[str, str]]:
    found = []
    for route in create_app(Settings(Path("unused"))).routes:
        if isinstance(route, APIRoute):
            found += [(method, route.path) for method in route.methods]
        else:
            assert route.path in ("/openapi.json", "/static"), route
    return found


@pytest.mark.parametrize(("method", "path"), every_route())
def test_every_route_asks_for_its_role(guarded, method, path):
    client, tokens, _ = guarded
    address = re.sub(r"\{.*?\}", "unknown", path)
    if (method, path) in PUBLIC:
        assert client.request(method, address).status_code in (200, 404)
        return
    needed = Role[ROLES[method, path].upper()]
    missing = client.request(method, address)
    assert missing.status_code == 401
    assert missing.headers["www-authenticate"] == "Bearer"
    for wrong in (
        "Bearer ",
        "Bearer wrong",
        f"Basic {tokens['admin']}",
        tokens["admin"],
        f"Bearer {tokens['read']}x",
    ):
        assert client.request(method, address, headers={"Authorization": wrong}).status_code == 401
    for role in Role:
        headers = {"Authorization": f"Bearer {tokens[role.name.lower()]}"}
        status = client.request(method, address, headers=headers).status_code
        assert (status in (401, 403)) == (role < needed), (role, status)
        if role < needed:
            assert status == 403


def test_the_table_of_roles_is_whole():
    assert {(route.method, route.path) for route in ROUTES} == PUBLIC | ROLES.keys()
    assert set(every_route()) == PUBLIC | ROLES.keys()


def test_the_body_of_a_stranger_is_not_read(guarded):
    client, _, _ = guarded
    read = []

    def chunks() -> Iterator[bytes]:
        for n in range(100):
            read.append(n)
            yield b"x" * 1000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    with pytest.MonkeyPatch.context() as patch:
        from starlette.requests import Request

        def refuse(self: Any, *_: Any, **__: Any) -> None:
            raise AssertionError("the form was read")

        patch.setattr(Request, "form", refuse)
        assert client.post("/query", content=chunks(), headers=headers).status_code == 401


def test_refused_access_is_written_down(filled, tmp_path):
    tokens = {"read": add_token(tmp_path / "tokens", "the-reader", "read")}
    with serving(filled, tokens=tmp_path / "tokens") as client:
        client.get("/info")
        client.delete("/cases/c-1", headers={"Authorization": f"Bearer {tokens['read']}"})
    lines = told(filled / "audit" / "refused.jsonl")
    first, second = lines[-2:]
    assert (first["event"], first["who"], first["status"], first["route"]) == ("refused", "", 401, "/info")
    assert (second["who"], second["status"], second["method"]) == ("the-reader", 403, "DELETE")
    assert second["route"] == "/cases/{case_id:path}"
    xml = (filled / "audit" / "dicom-refused.xml").read_text().splitlines()
    assert "Security Alert" in xml[-1]
    assert not any(token in text for token in tokens.values() for text in (*xml, json.dumps(lines)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "cbir.example.org", "", "127.0.0.1.nip.io"])
def test_nobody_listens_beyond_loopback_without_tokens(tmp_path, host):
    with pytest.raises(CbirError, match="loopback only; make tokens"):
        Settings(tmp_path, host=host)
    assert not Settings(tmp_path, host=host, tokens=tmp_path / "tokens").loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.5.5.5"])
def test_loopback_needs_none(tmp_path, host):
    assert Settings(tmp_path, host=host).loopback


def test_requests_for_another_host_are_refused(filled):
    with serving(filled, names=("Cbir.example.org",)) as client:
        for host in ("127.0.0.1", "127.0.0.1:8043", "localhost:8043", "[::1]:8043", "cbir.example.org"):
            assert client.get("/info", headers={"host": host}).status_code == 200
        for host in (
            "evil.example",
            "127.0.0.1.evil.example",
            "cbir.example.org.evil",
            "",
            "[",
            "169.254.1.1",
        ):
            assert client.get("/info", headers={"host": host}).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/query"), ("POST", "/index"), ("DELETE", "/cases/x")])
def test_other_sites_change_nothing(standing, new, headers, method, path):
    reply = standing.request(
        method, path, headers=headers, **({"files": sent(new)} if method == "POST" else {})
    )
    assert reply.status_code == 403
    assert "other sites" in reply.json()["detail"]


def test_our_own_pages_and_programs_may(client, new):
    for headers in (
        {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://127.0.0.1"},  # TLS ends in the proxy
        {},
    ):
        assert client.post("/query", files=sent(new), headers=headers).status_code == 200


def test_no_site_is_invited_and_browsers_are_told_to_be_careful(client, new):
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for reply in (
        client.get("/info"),
        client.get("/health", headers=asked),
        client.options("/query", headers=asked),
        client.post("/query", files=sent(new)),
        client.post("/query"),
        client.get("/unknown"),
        client.get("/info", headers={"host": "evil.example"}),
    ):
        assert not [name for name in reply.headers if name.startswith("access-control")]
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"


# ---- what stays out ------------------------------------------------------------------------------


def test_no_identifier_reaches_the_index_the_log_the_trail_or_a_reply(tmp_path, caplog, capfd):
    """Identifiers in headers, file names and folder names of uploads."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "httpx")  # of this test's own requests
    study = write_dicom(
        tmp_path / "in" / "Plantedname_Jane", phantom(1), PatientID="PID-4711-planted", **PLANTED
    )
    other = write_dicom(tmp_path / "in" / "b", phantom(2), PatientID="PID-4711-planted", **PLANTED)
    damaged = write_dicom(tmp_path / "in" / "Plantedref", phantom(3), PatientID="PID-4711-planted", **PLANTED)
    broken = next(damaged.iterdir())
    broken.write_bytes(broken.read_bytes()[:-500])
    image = nib.Nifti1Image(phantom(3), np.diag([1, 1, 3, 1]))
    image.header["descrip"] = b"Plantedname^Jane"
    image.header["db_name"] = b"Planted"
    nib.save(image, tmp_path / "in" / "Plantedname_t1.nii.gz")

    replies = []
    index = tmp_path / "index"
    with serving(index, TinyExplainer()) as client:
        for file in (
            zipped(study),
            zipped(other),
            sent(tmp_path / "in" / "Plantedname_t1.nii.gz"),
            zipped(damaged),
        ):
            reply = client.post("/index", files=file)
            replies.append(reply)
            if reply.status_code == 202:
                done(client, reply)
            for address in ("/query", "/report"):
                replies.append(client.post(address, files=file, data={"exclude_patient": "PID-4711-planted"}))
                replies.append(client.post(address, files=file, data={"where": "name=Plantedname"}))
            answer = client.post("/query", files=file)
            replies.append(answer)
            if answer.status_code == 200:
                hit = answer.json()["hits"][0]
                for address in (*map(hit.get, PICTURES), *hit["explanation"].values()):
                    replies.append(client.get(address))
                replies.append(client.get(f"/cases/{hit['case_id']}"))
        replies += [client.get(path) for path in ("/jobs", "/info", "/cases/Plantedname^Jane")]
        service = client.app.state.service
        waiting = {p: p.read_bytes() for p in service.scratch.folder.rglob("*") if p.is_file()}
    assert sum(reply.status_code == 200 for reply in replies) > 25
    printed = "".join(capfd.readouterr()) + caplog.text
    written = waiting | {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    names = {path.name for path in written}
    assert {"catalog.sqlite", "audit.jsonl", "dicom-audit.xml", "0.nii"} <= names
    written |= {p: gzip.decompress(b) for p, b in written.items() if p.suffix == ".gz"}
    for secret in SECRETS:
        small = secret.lower()
        assert small not in printed.lower(), secret
        for reply in replies:
            body = gzip.decompress(reply.content) if reply.content[:2] == b"\x1f\x8b" else reply.content
            assert small.encode() not in body.lower(), (secret, reply.request.url.path)
        for path, content in written.items():
            assert (
                small
                not in str(path.relative_to(tmp_path) if path.is_relative_to(index) else path.name).lower()
            )
            for encoding in ("utf-8", "utf-16-le"):
                assert small.encode(encoding) not in content.lower(), (secret, path)


def test_the_trail_tells_every_question_view_and_change(client, new):
    done(client, client.post("/index", files=sent(new)))
    hit = client.post("/query", files=sent(new), data={"k": "2", "where": "who_grade=2"}).json()["hits"][0]
    client.get(hit["volume"])
    client.get(hit["query_thumbnail"])
    client.get(f"/cases/{hit['case_id']}")
    client.post("/report", files=sent(new), data={"k": "1"})
    client.post("/query", files={"file": ("x.nii", b"x")})
    client.delete(f"/cases/{hit['case_id']}")
    folder = client.app.state.service.settings.index / "audit"
    lines = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    assert [(line["event"], line["outcome"]) for line in lines] == [
        ("index", "begun"),
        ("index", "success"),
        ("query", "success"),
        ("view", "success"),
        ("view", "success"),
        ("view", "success"),
        ("report", "success"),
        ("query", "failure"),
        ("remove", "begun"),
        ("remove", "success"),
    ]
    own = lines[1]["patients"]
    assert len(own) == 1
    assert lines[2]["patients"][0] == own[0]  # the patient asked about, then those shown
    assert lines[2]["patients"][1] == hit["patient_id"] == lines[3]["patients"][0]
    assert lines[4]["patients"] == own
    assert lines[5]["patients"] == [hit["patient_id"]] == lines[8]["patients"] == lines[9]["patients"]
    assert (lines[2]["k"], lines[2]["filters"], lines[2]["region"]) == (2, 1, False)
    assert (lines[0]["act"], lines[8]["act"]) == (lines[1]["act"], lines[9]["act"])
    assert {line["who"] for line in lines} == {"local"}
    messages = (folder / "dicom-audit.xml").read_text().splitlines()
    assert messages == [message(line) for line in lines]


def test_the_trail_tells_of_whom_an_explanation_is(explaining, new):
    hit = asked(explaining, sent(new))
    for address in hit["explanation"].values():
        explaining.get(address)
    explaining.get(hit["explanation"]["hit"].replace("case=", "case=x"))
    trail = explaining.app.state.service.settings.index / "audit" / "audit.jsonl"
    query, *views = [json.loads(line) for line in trail.read_text().splitlines()]
    told = [(line["event"], line["outcome"], line["patients"]) for line in views]
    assert query["patients"][1] == hit["patient_id"]
    assert told == [("view", "success", query["patients"])] * 2 + [("view", "failure", query["patients"][:1])]


def test_an_unforeseen_error_is_one_line_for_both_sides(client, new, monkeypatch, caplog):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Plantedname^Jane in /data/Jane.nii")

    monkeypatch.setattr(Index, "query", fail)
    reply = client.post("/query", files=sent(new))
    assert (reply.status_code, reply.json().keys()) == (500, {"detail"})
    assert "Plantedname" not in reply.text + caplog.text
    assert "RuntimeError in fail:" in caplog.text
    assert not uploads()


# ---- the PACS ------------------------------------------------------------------------------------


PACS = {
    "answers": True,
    "reason": None,
    "series": {"filed": 1, "failed": 1, "ignored": 0},
    "failed": [{"series": "s-1", "reason": "is damaged"}],
    "change": 4711,
}


class Drawer:
    """A PACS that holds one series."""

    def __init__(self, url: str, *, limits: object) -> None:
        self.url = url

    def __enter__(self) -> Drawer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def series(self, which: str, folder: Path) -> list[Path]:
        from retrieval.service.orthanc import NotInPacs

        if which != "1.2.3":
            raise NotInPacs("the PACS", "has no such series", "check its UID")
        return [Path(shutil.copy(file, folder)) for file in sorted(self.files.iterdir())]

    def store(self, dicom: bytes) -> str:
        self.stored.append(dicom)
        return "stored-1"


@pytest.fixture
def pacs(filled, tmp_path, monkeypatch):
    """A service whose PACS is a drawer; it follows nothing."""

    class Still:
        nudged = 0

        def __init__(self, settings: Settings, service: core.Service) -> None: ...
        def start(self) -> None: ...
        def stop(self) -> None: ...
        def status(self) -> dict[str, Any]:
            return PACS

        def nudge(self) -> None:
            Still.nudged += 1

    Drawer.files = write_dicom(tmp_path / "pacs", phantom(60, 3), SeriesDescription="t1 post contrast")
    Drawer.stored = []
    monkeypatch.setattr(questions, "Orthanc", Drawer)
    monkeypatch.setattr(app, "Follower", Still)
    with serving(filled, pacs="http://127.0.0.1:1") as client:
        yield client


def test_a_series_of_the_pacs_asks_and_is_indexed(pacs):
    uploaded = pacs.post("/query", files=zipped(Drawer.files)).json()
    assert plain(pacs.post("/query", data={"series": "1.2.3"}).json()) == plain(uploaded)
    assert pacs.post("/query", data={"series": "9"}).status_code == 404
    assert pacs.post("/index", data={"series": "9"}).status_code == 404
    job = done(pacs, pacs.post("/index", data={"series": "1.2.3", "labels": '{"who_grade": "3"}'}))
    assert job["report"]["indexed"] == 1
    assert pacs.get("/info").json()["pacs"] is True
    assert pacs.get("/pacs").json() == PACS
    assert pacs.post("/pacs/nudge").status_code == 202
    assert not uploads()


def test_a_structured_report_is_stored_on_request(pacs):
    import pydicom

    reply = pacs.post("/sr", data={"series": "1.2.3", "k": "3"})
    assert (reply.status_code, reply.json()["stored"]) == (201, "stored-1")
    (stored,) = Drawer.stored
    report = pydicom.dcmread(io.BytesIO(stored))
    assert (report.Modality, report.PatientID) == ("SR", "D-01")
    assert pacs.post("/sr").status_code == 422
    assert pacs.post("/sr", data={"series": "9"}).status_code == 404
    folder = pacs.app.state.service.settings.index / "audit"
    lines = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    assert [(line["event"], line["outcome"]) for line in lines] == [
        ("store", "begun"),
        ("store", "success"),
        ("store", "failure"),  # it says no series: nothing was begun
        ("store", "begun"),
        ("store", "failure"),
    ]
    assert [line.get("act") == lines[place]["act"] for place, line in ((1, lines[0]), (4, lines[3]))]
    assert len(lines[1]["patients"]) == 1, "nobody but the patient of the series"


def test_what_is_in_the_index_is_told_without_reading_all_of_it(pacs, monkeypatch):
    """The questions' state holds it already: not a row of the catalog is read for each request."""
    before = pacs.get("/info").json()
    done(pacs, pacs.post("/index", data={"series": "1.2.3"}))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole catalog was read")

    for name in ("contents", "fingerprints", "embeddings", "entries"):
        monkeypatch.setattr(Catalog, name, refuse)
    after = pacs.get("/info").json()
    assert (before["cases"], after["cases"]) == (6, 7)
    assert after["labels"] == before["labels"]
    assert pacs.post("/sr", data={"series": "1.2.3", "k": "3"}).status_code == 201


def test_a_structured_report_says_what_was_asked(pacs):
    asked = {"series": "1.2.3", "k": "2", "where": "who_grade=3", "region": "4,4,20,20@5"}
    assert pacs.post("/sr", data=asked).status_code == 201
    for parameter in (b"hits: 2", b"region: 4,4,20,20@5", b"hits only with: who_grade=3"):
        assert parameter in Drawer.stored[0]


def test_a_report_without_a_hit_is_not_stored(pacs, monkeypatch):
    ask = Index.query
    monkeypatch.setattr(Index, "query", lambda *a, **b: dataclasses.replace(ask(*a, **b), hits=[]))
    reply = pacs.post("/sr", data={"series": "1.2.3"})
    assert (reply.status_code, "nothing to report" in reply.json()["detail"]) == (422, True)
    assert not Drawer.stored


def test_the_patient_of_a_series_is_left_out_whoever_else_is(pacs):
    done(pacs, pacs.post("/index", data={"series": "1.2.3"}))
    with open_index(pacs.app.state.service.settings.index) as index:
        own = index.case_index.patient("D-01")
    others = {hit["patient_id"] for hit in pacs.post("/query", data={"series": "1.2.3"}).json()["hits"]}
    assert own not in others
    other = min(others)
    for path in ("/query", f"/queries/{_asked_once(pacs)}"):
        fields = {"series": "1.2.3"} if path == "/query" else {}
        answer = pacs.post(path, data={**fields, "exclude_patient": other}).json()
        assert {hit["patient_id"] for hit in answer["hits"]} == others - {other}


def _asked_once(pacs: TestClient) -> str:
    return str(pacs.post("/query", data={"series": "1.2.3"}).json()["query"]["id"])


def test_without_a_pacs_there_is_nothing_to_ask_of_it(client):
    assert client.post("/query", data={"series": "1.2.3"}).status_code == 422
    assert client.post("/sr", data={"series": "1.2.3"}).status_code == 422
    assert client.post("/pacs/nudge").status_code == 404
    assert client.get("/pacs").status_code == 404


# ---- the description and the server --------------------------------------------------------------


def test_the_description_is_valid_and_has_schemas(client):
    validator = pytest.importorskip("openapi_spec_validator")
    spec = client.get("/openapi.json").json()
    validator.validate(spec)
    described = {(method.upper(), path) for path, methods in spec["paths"].items() for method in methods}
    assert described == {(m, p.replace(":path", "")) for m, p in ROLES} | {("GET", "/health")}
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"]
            success = next(v for k, v in operation["responses"].items() if k.startswith("2"))
            ((media, content),) = success["content"].items()
            assert ("schema" in content) == (media == "application/json"), (method, path)
            if path != "/health":
                assert operation["security"] == [{"HTTPBearer": []}]
            if method == "post" and path != "/pacs/nudge":
                assert operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]


def test_replies_are_as_they_are_described(explaining, new):
    """Each by the schema of its route; and nothing is described that no reply has."""
    jsonschema = pytest.importorskip("jsonschema")
    client = explaining
    spec = client.get("/openapi.json").json()
    seen: dict[str, set[str]] = {}

    def check(method: str, path: str, reply: Any) -> Any:
        found = spec["paths"][path][method]["responses"][str(reply.status_code)]
        schema = found["content"]["application/json"]["schema"]
        told = reply.json()
        jsonschema.validate(told, {**schema, "components": spec["components"]})
        seen.setdefault(schema["$ref"].rpartition("/")[2], set()).update(told)
        return told

    answer = check("post", "/query", client.post("/query", files=sent(new)))
    seen["Asked"], seen["Hit"] = set(answer["query"]), set(answer["hits"][0])
    seen["Vote"], seen["Shown"] = set(answer["evidence"]["who_grade"]), set(answer["query"]["scans"][0])
    seen["Maps"] = set(answer["hits"][0]["explanation"])
    check("post", "/query", client.post("/query", data={"like": _case(client)}))
    again = client.post(f"/queries/{answer['query']['id']}")
    check("post", "/queries/{query_id}", again)
    filed = client.post("/index", files=sent(new))
    job = check("post", "/index", filed)["job"]
    seen["Indexed"] = set(done(client, filed)["report"])
    check("get", "/jobs/{job_id}", client.get(f"/jobs/{job}"))
    check("get", "/jobs", client.get("/jobs"))
    check("get", "/cases/{case_id}", client.get(f"/cases/{_case(client)}"))
    check("get", "/cases/{case_id}", client.get("/cases/unknown"))
    check("get", "/info", client.get("/info"))
    check("get", "/health", client.get("/health"))
    check("delete", "/cases/{case_id}", client.delete(f"/cases/{_case(client)}"))
    for name, fields in seen.items():
        described = spec["components"]["schemas"][name]["properties"].keys()
        assert fields == described, name


def test_the_viewer_is_served(client):
    for path in ("/", "/viewer"):
        reply = client.get(path)
        assert reply.headers["content-type"].startswith("text/html")
        assert reply.headers["cache-control"] == "no-cache"


def test_an_updated_viewer_is_taken_up_and_one_that_is_the_same_not_sent_again(client):
    first = client.get("/static/viewer.js")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/static/viewer.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == "no-cache"


def test_info_says_what_the_caller_may_do(guarded, client):
    assert client.get("/info").json()["role"] == "admin", "without tokens everybody may do everything"
    strict, tokens, _ = guarded
    for role, token in tokens.items():
        reply = strict.get("/info", headers={"Authorization": f"Bearer {token}"})
        assert reply.json()["role"] == role


@pytest.mark.slow
def test_a_server_starts_answers_and_ends_when_it_is_told(real_index, tmp_path, monkeypatch, capsys):
    """The command itself, with the real encoder."""
    import httpx

    shutil.copytree(real_index / "index", tmp_path / "index")
    (tmp_path / "tmp").mkdir()
    index = ["--index", str(tmp_path / "index")]
    headers = {"Authorization": f"Bearer {add_token(tmp_path / 'tokens', 'reader', 'read')}"}
    server = subprocess.Popen(
        [sys.executable, "-m", "retrieval.cli", "serve", "--port", "0", "--tokens", "tokens", *index],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
    )
    try:
        line = server.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
        new = sent(real_index / "N-01_t1ce.nii.gz")
        with httpx.Client(base_url=address, trust_env=False, timeout=60) as http:
            assert http.get("/health").json()["status"] == "ok"
            assert http.post("/query", files=new).status_code == 401
            assert len(http.post("/query", files=new, headers=headers).json()["hits"]) == 5
        run(monkeypatch, "serve", "--port", "0", *index)
        assert "another service runs on this index; stop it" in capsys.readouterr().err
        run(monkeypatch, "serve", "--port", address.rpartition(":")[2], "--index", str(tmp_path / "other"))
        assert "cannot listen there" in capsys.readouterr().err
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        rest = server.stderr.read()
    finally:
        server.kill()
        server.wait()
    assert "Traceback" not in rest
    assert "N-01" not in rest
    assert list((tmp_path / "tmp").iterdir()) == []


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cbir", *arguments])
    with contextlib.suppress(SystemExit):
        main()


def test_the_command_line_tells_what_is_missing(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "serve", "--host", "0.0.0.0", "--index", str(tmp_path / "i"))
    assert "loopback only; make tokens" in capsys.readouterr().err
    run(monkeypatch, "serve", "--tokens", str(tmp_path / "none"), "--index", str(tmp_path / "i"))
    assert "cbir token NAME" in capsys.readouterr().err
    assert not (tmp_path / "i").exists()
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for module in ("server", "connections"):
        monkeypatch.delitem(sys.modules, f"retrieval.service.{module}", raising=False)
    run(monkeypatch, "serve", "--index", str(tmp_path / "i"))
    assert f"{sys.executable} -m pip install 'cbir[serve]'" in capsys.readouterr().err


def test_a_token_is_printed_once_as_text_or_json(tmp_path, monkeypatch, capsys):
    file = tmp_path / "tokens"
    run(monkeypatch, "token", "a", "--role", "write", "--tokens", str(file))
    secret = capsys.readouterr().out.strip()
    run(monkeypatch, "token", "b", "--role", "admin", "--tokens", str(file), "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["role"]) == ("b", "admin")
    for each in (secret, told["token"]):
        assert len(each) == 43
        assert each not in file.read_text()
    run(monkeypatch, "token", "c", "--role", "king", "--tokens", str(file))
    assert "read, write or admin" in capsys.readouterr().err
