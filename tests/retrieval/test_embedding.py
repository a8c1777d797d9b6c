"""The examples of docs/embedding.md, run as they stand there."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import indexer.case_index
from indexer.case_index import CaseIndex
from indexer.ingest import ingest
from indexer.labels import load_tables
from pacs.installation import until
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_dicom, write_nifti
from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs" / "embedding.md"
IN_PYTHON, OVER_HTTP = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Three graded cases."""
    for i in range(3):
        write_nifti(tmp_path / "mri" / f"P-{i}_t1.nii.gz", phantom(i, 2 + i))
    table = tmp_path / "mri" / "participants.tsv"
    table.write_text("participant_id\twho_grade\n" + "".join(f"P-{i}\t{2 + i}\n" for i in range(3)))
    with CaseIndex.create(tmp_path / "index", TinyEncoder()) as made:
        ingest(made, [tmp_path / "mri"], TinyEncoder(), labels=load_tables(table))
    return tmp_path / "index"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return write_dicom(tmp_path / "series", phantom(1, 3), SeriesDescription="ax t1")


@pytest.mark.parametrize("example", [IN_PYTHON, OVER_HTTP])
def test_an_example_has_at_most_twenty_lines(example: str) -> None:
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 20


def test_in_python(index: Path, series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer.case_index, "load_encoder", lambda name: TinyEncoder())
    names: dict[str, Any] = {}
    exec(compile(IN_PYTHON, str(DOCUMENT), "exec"), names)
    names["INDEX"] = index
    names["series_complete"](series)
    with CaseIndex.open(index) as filed:
        assert filed.catalog.count()["cases"] == 4
    hits, notice = names["similar_cases"](series, "D-01")
    assert hits[0][1] == {"who_grade": "3"}
    assert len(hits) == 3, "the patient who is asked about is not among them"
    assert "research use only" in notice


@pytest.fixture
def service(index: Path) -> Iterator[tuple[str, str]]:
    """Address and token of a running service."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra cbir[serve] is not installed")
    from retrieval.service.app import create_app
    from retrieval.service.settings import Settings
    from retrieval.service.tokens import add_token

    tokens = index.parent / "tokens"
    token = add_token(tokens, "other-pacs", "write")
    app = create_app(Settings(index, tokens=tokens), TinyEncoder())
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # so that who asks before the server is ready waits
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", token
        server.should_exit = True
        thread.join()


def test_over_http(service: tuple[str, str], series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url, token = service
    example = OVER_HTTP.replace("http://127.0.0.1:8043", url).replace("TOKEN", token)
    names: dict[str, Any] = {}
    exec(compile(example, str(DOCUMENT), "exec"), names)
    files = sorted(series.iterdir())
    with names["cbir"] as cbir:
        job = names["series_complete"](files)
        until("the job", lambda: cbir.get(f"/jobs/{job}").json()["state"] == "done")
        assert cbir.get("/info").json()["cases"] == 4
        answer = names["similar_cases"](files, "D-01")
        assert answer["hits"][0]["labels"] == {"who_grade": "3"}
        assert len(answer["hits"]) == 3
        volume = cbir.get(answer["hits"][0]["volume"])
        assert volume.content[:2] == b"\x1f\x8b"
