from __future__ import annotations

import json
from pathlib import Path

import pytest

from indexer.errors import LabelsError
from indexer.labels import find_tables


def write(path: Path, text: str = "participant_id\tgrade\nP1\t2\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(root: Path, top: Path | None = None) -> list[str]:
    tables, _ = find_tables(root, top)
    return [table.path.name for table in tables]


def test_the_nearest_participants_above(tmp_path: Path) -> None:
    write(tmp_path / "participants.tsv", "participant_id\nfar\n")
    write(tmp_path / "a" / "participants.tsv", "participant_id\nnear\n")
    write(tmp_path / "a" / "b" / "c" / "x.nii", "")
    for start, patient in (("a/b/c", "near"), ("a/b/c/x.nii", "near"), ("a", "near"), (".", "far")):
        tables, _ = find_tables(tmp_path / start)
        assert tables[0].rows[0][1] == (patient,)
    assert names(tmp_path / "a" / "b" / "c", tmp_path / "a" / "b") == []


def test_an_answer_that_was_kept_is_no_table_of_labels(tmp_path: Path) -> None:
    scan = write(tmp_path / "mri" / "P1" / "x.nii", "")
    labels = write(tmp_path / "mri" / "labels.csv", "id,grade,score\nP1,2,7\n")
    hit = {"rank": 1, "score": 0.9, "case_id": "P1", "patient_id": "P1", "labels": {"grade": "4"}, "slice": 3}
    write(tmp_path / "answer.json", json.dumps({"query": {"source": str(scan)}, "hits": [hit]}))
    write(
        tmp_path / "answer.tsv",
        "#\tscore\tcase\tgrade\tsequence\tslice\tsource\n1\t0.9\tP1\t4\tt1\t3 ~ 3\tx.nii\n",
    )
    tables, notes = find_tables(tmp_path / "mri")
    assert [table.path for table in tables] == [labels]
    kept = [
        f"{tmp_path / name}: no labels are taken from an answer of cbir"
        for name in ("answer.json", "answer.tsv")
    ]
    assert set(kept) <= set(notes)


def test_tables_below_and_beside(tmp_path: Path) -> None:
    root = tmp_path / "cohort" / "images"
    write(root / "P1" / "x.nii", "")
    for path in (root / "a.csv", root / "deep" / "er" / "b.tsv", tmp_path / "cohort" / "c.csv"):
        write(path, "id,grade\nP1,2\n")
    write(tmp_path / "cohort" / "other" / "d.csv")
    write(tmp_path / "e.csv")
    write(root / ".hidden" / "f.csv")
    write(root / "g.txt")
    assert sorted(names(root)) == ["a.csv", "b.tsv", "c.csv"]
    assert names(root / "P1" / "x.nii") == []


def test_json_is_looked_at_where_no_images_lie(tmp_path: Path) -> None:
    records = json.dumps([{"id": "P1", "grade": 2}])
    write(tmp_path / "r" / "tables" / "a.json", records)
    write(tmp_path / "r" / "P1" / "t1.json", records)
    write(tmp_path / "r" / "P1" / "t1.nii.gz", "")
    write(tmp_path / "r" / "tables" / "cbir.json", records)
    write(tmp_path / "r" / "tables" / "dataset_description.json", records)
    write(tmp_path / "r" / "tables" / "legend.json", '{"grade": {"Levels": {"2": "low"}}, "x": 1}')
    tables, notes = find_tables(tmp_path / "r")
    assert ([table.path.name for table in tables], notes) == (["a.json"], [])


def test_what_bids_writes_beside_images_is_no_table_of_labels(tmp_path: Path) -> None:
    for name in ("sub-1_sessions.tsv", "sub-1_scans.tsv", "sub-1_task-rest_events.tsv"):
        write(tmp_path / "r" / "sub-1" / name)
    assert names(tmp_path / "r") == ["sub-1_sessions.tsv"]


def test_what_cannot_be_read_is_told_and_passed_over_but_for_participants(tmp_path: Path) -> None:
    write(tmp_path / "r" / "a.csv", "id,grade\nP1,2,3\n")
    write(tmp_path / "r" / "b.csv", "id,grade\nP1,2\n")
    tables, (note,) = find_tables(tmp_path / "r")
    assert [table.path.name for table in tables] == ["b.csv"]
    assert note.startswith(f"{tmp_path}/r/a.csv: no labels are taken from it: line 2 has 3 cells")
    write(tmp_path / "r" / "participants.tsv", "participant_id\tgrade\nP1\t2\t3\n")
    with pytest.raises(LabelsError, match=r"participants\.tsv: line 2"):
        find_tables(tmp_path / "r")
