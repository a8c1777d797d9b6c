from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from indexer.discovery import discover
from indexer.discovery.config import find_config
from indexer.errors import ReadError
from indexer.labels import find_tables
from indexer.trust import foreign


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder of two images, below one that has a table and settings."""
    root = tmp_path / "shared" / "mine"
    root.mkdir(parents=True)
    for n in (1, 2):
        nib.save(nib.Nifti1Image(np.eye(8).reshape(8, 8, 1).repeat(4, 2), np.eye(4)), root / f"P{n}_t1.nii")
    (tmp_path / "shared" / "participants.tsv").write_text("participant_id\tgrade\nP1\t2\nP2\t3\n")
    (tmp_path / "shared" / "other.csv").write_text("id,sex\nP1,F\nP2,M\n")
    (tmp_path / "shared" / "cbir.json").write_text('{"pattern": "mine/{patient}_t1"}')
    return root


def told(root: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    tables, notes = find_tables(root)
    found = discover(root, tables)
    return {p: dict(row) for p, row in found.joined.labels.persons.items()}, [*notes, *found.notes]


def test_what_is_taken_from_above_is_said(shared: Path) -> None:
    labels, notes = told(shared)
    assert labels == {"P1": {"grade": "2", "sex": "F"}, "P2": {"grade": "3", "sex": "M"}}
    for name in ("participants.tsv", "other.csv", "cbir.json"):
        assert f"{shared.parent / name} lies above {shared} and is used" in notes


def by_writing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(0o666)


def by_owning(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)


@pytest.mark.parametrize(
    ("by", "why"), [(by_writing, "other users may write it"), (by_owning, "it belongs to another user")]
)
def test_what_others_may_have_written_above_is_not_obeyed(
    shared: Path, by: object, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("participants.tsv", "other.csv", "cbir.json")
    for name in names:
        assert callable(by)
        by(shared.parent / name, monkeypatch)
    labels, notes = told(shared)
    assert labels == {}
    for name in names:
        assert f"{shared.parent / name} lies above {shared} and is not used: {why}; copy it into" in " ".join(
            notes
        )


def test_what_lies_in_the_folder_is_obeyed_whoever_wrote_it(shared: Path) -> None:
    for name in ("participants.tsv", "cbir.json"):
        (shared.parent / name).chmod(0o666)
    labels, notes = told(shared.parent)
    assert labels == {"P1": {"grade": "2", "sex": "F"}, "P2": {"grade": "3", "sex": "M"}}
    assert not [note for note in notes if "above" in note]


def test_settings_of_a_stranger_are_passed_over_for_those_above(shared: Path) -> None:
    (shared.parent / "cbir.json").chmod(0o666)
    (shared.parent.parent / "cbir.json").write_text('{"channels": ["t1"]}')
    _, notes = told(shared)
    assert f"{shared.parent.parent / 'cbir.json'} lies above {shared} and is used" in notes


def test_a_single_file_is_told_of_the_settings_above_too(shared: Path) -> None:
    (shared.parent / "cbir.json").chmod(0o666)
    found = discover(shared / "P1_t1.nii")
    assert [note for note in found.notes if "cbir.json lies above" in note and "is not used" in note]


def test_a_group_of_others_may_not_write(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.touch(0o644)
    assert foreign(file) is None
    file.chmod(0o664)
    if os.getuid() == 0:
        os.chown(file, -1, 23456)
        assert foreign(file) is not None


def test_settings_are_text_of_bounded_size(tmp_path: Path) -> None:
    (tmp_path / "cbir.json").write_text('{"channels": ["t1\\u001b[2J", "t2"]}')
    with pytest.raises(ReadError, match="its channels are not a list of names") as refused:
        find_config(tmp_path)
    assert str(refused.value).isprintable()
    with (tmp_path / "cbir.json").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(ReadError, match="has more than 1048576 bytes"):
        find_config(tmp_path)
