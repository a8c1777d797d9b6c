"""Mistakes and tricks, each through the command line, Python and HTTP: one line, and no traceback."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from cbir import create_index, open_index
from indexer.errors import CbirError, QueryError
from retrieval.cli import main
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_nifti
from tests.support.service import done, sent, serving

ENDLESS = "9" * 5000
LONG = "n" * 300
GRIDS = {
    "parallel": [[1, 1, 0], [0, 1e-8, 0], [0, 0, 3]],
    "nearly parallel": [[1, 1, 0], [0, 1e-5, 0], [0, 0, 3]],
    "nothing": np.zeros((3, 3)),
    "endless": np.diag([np.inf, 1, 1]),
    "nobody knows": np.full((3, 3), np.nan),
    "tiny": np.diag([1e-30, 1e-30, 1e-30]),
    "one tiny": np.diag([1e-7, 1, 3]),
    "huge": np.diag([1e30, 1e30, 1e30]),
}


@pytest.fixture
def filled(tmp_path: Path, cohort: Callable[..., Path], tiny: TinyEncoder) -> Path:
    with create_index(tmp_path / "index", encoder=tiny) as index:
        index.add(cohort(3), calibrate=False)
    return tmp_path / "index"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write_nifti(tmp_path / "new" / "N-01_t1ce.nii", phantom(77, 4))


def placed(path: Path, grid: Any) -> Path:
    """An image whose sform is this, whatever nibabel thinks of it."""
    header = nib.Nifti1Header()
    header.set_data_shape((24, 28, 10))
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"], header["sform_code"] = b"n+1", 352, 1
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = [*np.asarray(grid, float)[row], 0]
    path.write_bytes(header.binaryblock + bytes(4) + phantom(1).tobytes("F"))
    return path


def shell(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that fails says."""
    monkeypatch.setattr(sys, "argv", ["cbir", *arguments])
    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    said = capfd.readouterr().err
    assert code in (1, 2), (arguments, code)
    assert "Traceback" not in said
    return said


def test_a_grid_that_means_nothing_is_refused(filled, tmp_path, monkeypatch, capfd):
    paths = [placed(tmp_path / f"S-{n:02}_t1.nii", grid) for n, grid in enumerate(GRIDS.values())]
    words = "singular|no scanner makes|right angles"
    for path in paths:
        (tmp_path / "all" / path.stem).mkdir(parents=True)
        (tmp_path / "all" / path.stem / path.name).write_bytes(path.read_bytes())
    said = shell(monkeypatch, capfd, "index", str(tmp_path / "all"), "--index", str(tmp_path / "new"))
    assert len(re.findall(words, said)) == len(paths), said
    with open_index(filled, TinyEncoder()) as index:
        for path in paths:
            with pytest.raises(CbirError, match=words):
                index.query(path)
        (failed,) = index.add(paths[0], calibrate=False).failed
        assert "singular" in failed["reason"]
    with serving(filled) as client:
        for path in paths:
            reply = client.post("/query", files=sent(path))
            assert (reply.status_code, bool(re.search(words, reply.text))) == (422, True), reply.text
        job = done(client, client.post("/index", files=sent(paths[0])))
        assert (job["state"], "singular" in job["reason"]) == ("failed", True)


def test_endless_numbers_are_refused(filled, scan, monkeypatch, capfd):
    asking = ("query", str(scan), "--index", str(filled))
    for wrong in (
        ("-k", ENDLESS),
        ("-k", f"-{ENDLESS}"),
        ("--region", f"{ENDLESS},0,1,1"),
        ("--recall", ENDLESS),
    ):
        assert "Invalid value" in shell(monkeypatch, capfd, *asking, *wrong)
    number = int("9" * 4000) ** 2
    with open_index(filled, TinyEncoder()) as index:
        for wrong in (
            {"k": number},
            {"k": -number},
            {"k": 2.5},
            {"k": "5"},
            {"region": (number, 0, 1, 1)},
            {"region": (float("nan"), 0, 1, 1)},
            {"region": (0, 0, 5, 5), "region_slice": number},
        ):
            with pytest.raises(QueryError, match="whole number"):
                index.query(scan, **wrong)
    with serving(filled) as client:
        for fields in ({"k": ENDLESS}, {"region": f"{ENDLESS},0,1,1"}, {"region": f"0,0,1,1@{ENDLESS}"}):
            assert client.post("/query", files=sent(scan), data=fields).status_code == 422
        case = client.app.state.service.index.contents.case_ids[0]
        for address in (f"scan={ENDLESS}", f"slice={ENDLESS}", f"size={ENDLESS}"):
            assert client.get(f"/cases/{case}/thumbnail.png?{address}").status_code in (404, 422), address


@pytest.mark.parametrize("name", [LONG, "ä" * 200, "/".join(["n" * 200] * 30)])
def test_names_that_no_disk_takes_are_refused(name, filled, scan, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    index = ("--index", str(filled))
    for arguments in (
        ("query", name, *index),
        ("query", str(scan), "--index", name),
        ("query", str(scan), *index, "--mask", name),
        ("query", str(scan), *index, "--report", name),
        ("query", "--like", name, *index),
        ("index", name, *index),
        ("index", str(scan), *index, "--labels", name),
        ("index", str(scan), *index, "--labels", f"{name}:column"),
        ("index", str(scan), "--index", name),
        ("verify", "--index", name),
        ("copy", str(filled), name),
        ("remove", name, *index),
    ):
        assert shell(monkeypatch, capfd, *arguments).startswith("cbir"), arguments[:1]
    with open_index(filled, TinyEncoder()) as opened:
        for wrong in (
            lambda: opened.query(name),
            lambda: opened.query(scan, mask=name),
            lambda: opened.like(name),
            lambda: opened.add(name),
            lambda: opened.add(scan, labels=name),
            lambda: opened.add(scan, labels="a\0b"),
            lambda: opened.remove(name),
        ):
            with pytest.raises(CbirError):
                wrong()
    with serving(filled) as client:
        for address in (
            f"/cases/{name}",
            f"/queries/{name}/volume.nii.gz",
            f"/jobs/{name}",
            f"/static/{name}",
        ):
            assert client.get(address).status_code == 404
        status = client.post("/query", files=sent(scan, f"{name}_t1ce.nii")).status_code
        assert status == (400 if len(name) > 4096 else 200), "the head of a part of a form has 4 KiB"


def test_what_nobody_knows_is_refused(filled, scan, monkeypatch, capfd):
    assert "No such option" in shell(monkeypatch, capfd, "query", str(scan), "--kk", "5")
    with open_index(filled, TinyEncoder()) as index, pytest.raises(TypeError, match="kk"):
        index.query(scan, kk=5)
    with serving(filled) as client:
        assert client.post("/query?k=5", files=sent(scan)).status_code == 422
        assert client.post("/query", files=sent(scan), data={"kk": "5"}).status_code == 422
        assert client.get("/cases?kk=5").status_code in (404, 422)
