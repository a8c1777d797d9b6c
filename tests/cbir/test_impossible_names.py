"""Names that no disk takes, or that lead where nobody may go: one line with a remedy, through every door."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cbir
from cbir import CbirError, Index
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_nifti

NAMES = {
    "a long name": "n" * 300,
    "a long path": "folder/" * 1000 + "x",
    "a null": "a\0b",
    "half a character": "a\ud800b",
    "a name in another encoding": "caf\udce9",
    "below a file": "file/x",
    "far below a file": "file/x/y",
    "a circle": "circle",
    "below a circle": "circle/x",
    "where nobody may enter": "closed/x",
    "a pipe": "pipe",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("names")
    for i in range(3):
        write_nifti(home / "mri" / f"P-{i}" / f"P-{i}_t1.nii", phantom(i))
    (home / "file").write_text("no folder")
    (home / "circle").symlink_to("circle")
    os.mkfifo(home / "pipe")
    with cbir.create_index(home / "index", encoder=TinyEncoder(), keep_ids=True) as index:
        index.add(home / "mri", calibrate=False)
    return home


@pytest.fixture
def index(home: Path) -> Iterator[Index]:
    with cbir.open_index(home / "index", TinyEncoder()) as index:
        yield index


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """A folder that nobody may enter, root neither."""
    stat = os.stat

    def refused(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(str(home / "closed") + os.sep):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refused)


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(CbirError) as told:
        work()
    line = str(told.value)
    assert "\n" not in line
    assert told.value.reason, line
    assert told.value.remedy, line
    assert "did not write" not in line  # the user's mistake is no damage of the index
    return line


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_place_for_an_index_is_refused(home: Path, index: Index, name: str, monkeypatch: Any) -> None:
    path, tiny = f"{home}/{name}", TinyEncoder()
    refused(lambda: cbir.open_index(path, tiny))
    refused(lambda: cbir.create_index(path, encoder=tiny))
    refused(lambda: index.copy(path))
    refused(lambda: cbir.create_index(home / "new", encoder=f"{path}.safetensors"))
    refused(lambda: cbir.create_index(home / "new", encoder=tiny, store=path))
    refused(lambda: index.copy(home / "new", store=path))
    refused(lambda: index.copy(home / "new", catalog=path))
    assert {each.name for each in home.iterdir()} <= {"mri", "file", "circle", "pipe", "index"}
    with index.case_index.writing("test"):
        assert not (home / "index" / "copying.json").exists()
    if "\0" not in name and "\ud800" not in name:  # no variable can say these
        monkeypatch.setenv("CBIR_INDEX", path)
        refused(lambda: cbir.open_index(encoder=tiny))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_what_should_be_read_is_refused(home: Path, index: Index, name: str) -> None:
    if name == "pipe":
        assert cbir.plan(home / name).failures[0].remedy
        refused(lambda: index.query(home / name))
        return
    path, scan = f"{home}/{name}", home / "mri" / "P-0" / "P-0_t1.nii"
    for work in (
        lambda: cbir.plan(path),
        lambda: cbir.plan(scan, labels=path),
        lambda: index.add(path, calibrate=False),
        lambda: index.add(scan, labels=path, calibrate=False),
        lambda: index.add(scan, labels=f"{path}:COLUMN", calibrate=False),
        lambda: index.add(scan, labels=".:COLUMN", calibrate=False),
        lambda: index.query(path),
        lambda: index.query(scan, mask=path),
        lambda: index.scans(path),
        lambda: index.scan(f"{path}#0"),
        lambda: index.scan(path),
        lambda: index.remove(path),
        lambda: index.remove(patients=path),
        lambda: index.like(path),
    ):
        refused(work)
    assert index.verify() == []


@pytest.mark.parametrize("name", [*NAMES.values(), ".", "mri"], ids=[*NAMES, "here", "a folder"])
def test_a_report_there_is_refused(home: Path, index: Index, name: str) -> None:
    if name == "pipe":
        pytest.skip("what is in the way is replaced")
    answer = index.query(home / "mri" / "P-0" / "P-0_t1.nii", k=1)
    path = name if name == "." else f"{home}/{name}"
    if name == "caf\udce9":
        assert "rename it" in refused(lambda: index.report(answer, path))
    refused(lambda: index.report(answer, path))


def test_a_copy_that_cannot_be_stands_in_the_way_of_no_other(index: Index, home: Path) -> None:
    """What a copy writes down before it begins must be readable by the next one."""
    refused(lambda: index.copy(home / "copy", store="/no/address"))
    refused(lambda: index.copy(home / "copy", catalog="mysql://host/database"))
    refused(lambda: index.copy(home / "copy", catalog="postgresql://nobody@127.0.0.1:1/nowhere"))
    assert index.copy(home / "copy")["cases"] == 3


def test_what_could_not_be_opened_again_is_not_made(tmp_path: Path) -> None:
    class Odd(TinyEncoder):
        name = "of/a/path"

    assert "encoder cannot be" in refused(lambda: cbir.create_index(tmp_path / "index", encoder=Odd()))
    assert not (tmp_path / "index").exists()
