"""Planted identifiers are found in nothing that the service or the command line says, keeps or writes."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest

from indexer.readers.dicom.belonging import IDENTITY
from retrieval.cli import main
from retrieval.service import app, questions
from tests.retrieval.test_explain import TinyExplainer
from tests.service.test_service import PICTURES, Drawer
from tests.support.planted import Plants, leaked
from tests.support.service import done, sent, serving, zipped

pytestmark = pytest.mark.slow

RASTERS = (".png", ".jpg", ".tif", ".webp")


@pytest.fixture
def plants() -> Plants:
    return Plants()


def written(folder: Path) -> list[bytes]:
    """Names and contents of all files below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path.relative_to(folder)).encode() for path in files] + [p.read_bytes() for p in files]


def damaged(path: Path, folder: Path) -> Path:
    """A copy of a file, or of the files of a folder, that ends in its middle."""
    copy = folder / f"damaged-{path.name}"
    (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
    for file in [copy] if copy.is_file() else sorted(copy.rglob("*"))[:1]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return copy


class Still:
    """A follower of no PACS."""

    def __init__(self, *_: object) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def status(self) -> dict[str, Any]:
        return {}


def uploads(plants: Plants, folder: Path, most: int) -> list[Path]:
    """Files and folders that are sent, until so many words are planted: their names are words, too."""
    made: list[Path] = []
    seed = 0
    while plants.count < most:
        seed += 1
        study = folder / plants.word("folder")
        series = plants.dicom(study / plants.word("folder") / "t1", seed, 60)
        plants.sidecar(series.parent / f"{plants.word('file')}_t1.json")
        plants.nifti(series.parent / f"{plants.word('file')}_t2.nii.gz", seed)
        plants.table(study / "participants.tsv", [plants.word("row of a patient")])
        made += [study, series]
        made.append(plants.nifti(folder / f"{plants.word('file')}_t1ce.nii.gz", seed))
        if seed == 1:
            made += [plants.raster(folder / f"{plants.word('file')}{ending}", seed) for ending in RASTERS]
            made += [plants.nrrd(folder / f"{plants.word('file')}_t1{e}", seed) for e in (".nrrd", ".mha")]
    return made


def test_none_reaches_a_reply_a_report_a_picture_the_log_the_trail_or_the_index(
    request: pytest.FixtureRequest,
    plants: Plants,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    measured: Callable[..., None],
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, "httpx")  # of this test's own requests
    made = uploads(plants, tmp_path / "in", request.config.getoption("--planted"))
    Drawer.files, Drawer.stored = made[1], []
    monkeypatch.setattr(questions, "Orthanc", Drawer)
    monkeypatch.setattr(app, "Follower", Still)
    replies = []
    with serving(tmp_path / "index", TinyExplainer(), pacs="http://127.0.0.1:1") as client:
        for path in [*made, *(damaged(path, tmp_path / "in") for path in made[:6])]:
            file = zipped(path) if path.is_dir() else sent(path)
            reply = client.post("/index", files=file)
            replies.append(reply)
            if reply.status_code == 202:
                done(client, reply)
        for path in [*made, tmp_path / "in" / f"damaged-{made[0].name}"]:
            file = zipped(path) if path.is_dir() else sent(path)
            for address in ("/query", "/report"):
                fields = {"exclude_patient": plants.word("field"), "where": f"name={plants.word('field')}"}
                replies += [client.post(address, files=file, data={name: v}) for name, v in fields.items()]
            answer = client.post("/query", files=file)
            replies += [answer, client.post("/report", files=file)]
            if answer.status_code == 200:
                for hit in answer.json()["hits"][:2]:
                    for where in (*map(hit.get, PICTURES), *hit["explanation"].values()):
                        replies.append(client.get(where))
                    replies.append(client.get(f"/cases/{hit['case_id']}"))
        replies.append(client.post("/sr", data={"series": "1.2.3", "k": "3"}))
        assert replies[-1].status_code == 201, replies[-1].text
        replies += [client.get(path) for path in ("/jobs", "/info", f"/cases/{plants.word('address')}")]
        replies.append(client.get(f"/info?{plants.word('parameter')}=1"))
        waiting = written(client.app.state.service.scratch.folder)
    assert sum(reply.status_code == 200 for reply in replies) > 50
    assert client.app.state.service.index.contents is not None
    (report,) = Drawer.stored
    own = pydicom.dcmread(next(iter(sorted(Drawer.files.iterdir()))))
    said = pydicom.dcmread(io.BytesIO(report))
    for name in IDENTITY:
        assert str(said.get(name) or "") in ("", str(own.get(name) or "")), "it is filed with its patient"
        if name in said:
            del said[name]
    rest = io.BytesIO()
    pydicom.dcmwrite(rest, said)
    found = [
        *leaked(*(reply.content for reply in replies)),
        *leaked(*(str(reply.headers).encode() for reply in replies)),
        *leaked("".join(capfd.readouterr()).encode(), caplog.text.encode()),
        *leaked(rest.getvalue()),
        *leaked(*waiting, *written(tmp_path / "index")),
    ]
    assert not found, found[:40]
    measured("identifiers through the service", {"planted": plants.count, "found": len(found)})


def test_none_reaches_what_the_command_line_prints_or_writes(
    request: pytest.FixtureRequest,
    plants: Plants,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    measured: Callable[..., None],
) -> None:
    """Paths are told as they are, so here nothing is planted in the names of files and folders."""
    root, patients, seed = tmp_path / "in", [], 0
    while plants.count < request.config.getoption("--planted"):
        seed += 1
        patients.append(f"P-{seed:02}")
        folder = root / patients[-1]
        plants.nifti(folder / f"{patients[-1]}_t1.nii.gz", seed)
        plants.sidecar(folder / f"{patients[-1]}_t1.json")
        plants.dicom(root / f"D-{seed:02}", 100 + seed, 60)
        if seed == 1:
            for n, ending in enumerate(RASTERS):
                plants.raster(root / f"R-{n:02}" / f"R-{n:02}_t1{ending}", seed)
            for ending in (".nrrd", ".mha"):
                plants.nrrd(root / f"N{ending[1:]}-01" / f"N{ending[1:]}-01_t1{ending}", seed)
    plants.table(root / "participants.tsv", patients)
    for path in (root / patients[0], root / "D-01"):
        damaged(path, root)
    printed = b""
    index = ("--index", str(tmp_path / "out" / "index"))
    for arguments in (
        ["index", str(root), *index],
        ["index", str(root), *index, "--json"],
        ["query", str(root / "D-01"), *index, "--json", "--report", str(tmp_path / "out" / "report.html")],
        ["query", str(root / patients[0]), *index],
        ["query", str(root / "damaged-D-01"), *index],
        ["eval", *index, "--json"],
        ["info", "--cases", "--failures", "--check", *index],
        ["info", "--json", *index],
        ["verify", *index],
    ):
        monkeypatch.setattr(sys, "argv", ["cbir", *arguments])
        with contextlib.suppress(SystemExit):
            main()
        out, err = capfd.readouterr()
        if "--json" in arguments and "eval" not in arguments:
            assert json.loads(out)
        printed += (out + err).encode()
    files = written(tmp_path / "out")
    assert any(name.endswith(b"report.html") for name in files)
    assert any(name.endswith(b"catalog.sqlite") for name in files)
    found = [*leaked(printed), *leaked(*files)]
    assert not found, found[:40]
    measured("identifiers on the command line", {"planted": plants.count, "found": len(found)})
