"""``{"pattern": …}`` in ``cbir.json`` states whose a file is where guessing fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from indexer.discovery import Discovery, discover
from indexer.errors import ReadError
from tests.support.images import phantom, write_nifti


def cohort(root: Path, pattern: str, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_nifti(root / name, phantom(number, 2))
    root.mkdir(exist_ok=True)
    (root / "cbir.json").write_text(json.dumps({"pattern": pattern}))
    return root


def told(found: Discovery) -> set[tuple[str, str, str | None]]:
    return {(source.patient_id, source.study_id, source.sequence) for source in found.sources}


def test_it_names_patient_visit_and_sequence(tmp_path: Path) -> None:
    root = cohort(
        tmp_path / "mri",
        "{visit}/{sequence}/{patient}",
        *(f"{when}/{what}/{who}.nii.gz" for when in "ab" for what in ("t1", "flair") for who in ("x", "y")),
    )
    assert told(discover(root)) == {(p, v, s) for p in "xy" for v in "ab" for s in ("t1", "flair")}


@pytest.mark.parametrize(
    ("word", "sequence"),
    [("T1w", "t1"), ("T1Gd", "t1ce"), ("t2_flair", "flair"), ("T2w", "t2"), ("nonsense", None)],
)
def test_words_of_sequences_are_the_fields(tmp_path: Path, word: str, sequence: str | None) -> None:
    root = cohort(tmp_path / "mri", "{sequence}/{patient}", f"{word}/x7.nii.gz", f"{word}/y8.nii.gz")
    assert told(discover(root)) == {("x7", "", sequence), ("y8", "", sequence)}


def test_a_field_that_comes_again_is_the_same_again(tmp_path: Path) -> None:
    root = cohort(
        tmp_path / "mri", "{patient}/{patient}-{sequence}", "7/7-t1.nii.gz", "8/8-t2.nii.gz", "9/6-t1.nii.gz"
    )
    assert {("7", "", "t1"), ("8", "", "t2")} <= told(discover(root))


def test_it_reaches_below_nested_folders(tmp_path: Path) -> None:
    root = cohort(
        tmp_path / "mri",
        "**/{patient}_*/{sequence}",
        "site1/batch2/p7_old/t1.nii.gz",
        "site2/p8_new/t1.nii.gz",
        "p9_x/t2.nii.gz",
    )
    assert told(discover(root)) == {("p7", "", "t1"), ("p8", "", "t1"), ("p9", "", "t2")}


def test_the_nearest_file_counts(tmp_path: Path) -> None:
    root = cohort(tmp_path / "mri", "{patient}/*", "a1/t1.nii.gz")
    cohort(root / "inner", "{sequence}-{patient}", "t2-b2.nii.gz")
    assert told(discover(root)) == {("a1", "", "t1"), ("b2", "", "t2")}


def test_where_it_fits_a_part_the_rest_is_told_of(tmp_path: Path) -> None:
    root = cohort(tmp_path / "mri", "{patient}/{sequence}", "7/t1.nii.gz", "deep/er/P8_t1.nii.gz")
    found = discover(root)
    assert {patient for patient, _, _ in told(found)} == {"7", "P8"}
    assert any("fits 1 of 2 images" in note and "cbir.json" in note for note in found.notes)


def test_one_that_fits_nothing_is_refused_by_name(tmp_path: Path) -> None:
    root = cohort(tmp_path / "mri", "{patient}/{visit}/{sequence}", "P7_t1.nii.gz")
    found = discover(root)
    assert found.sources == []
    (failure,) = found.failures
    assert str(failure.where) == str(root / "cbir.json")
    assert "fits none of 1 images" in str(failure)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("{visit}/{sequence}", "patient"), ("{patient}/{grade}", "grade"), ([1], "pattern"), ("", "patient")],
)
def test_a_pattern_that_cannot_be_meant_is_refused(tmp_path: Path, pattern: object, reason: str) -> None:
    root = cohort(tmp_path / "mri", "", "P7_t1.nii.gz")
    (root / "cbir.json").write_text(json.dumps({"pattern": pattern}))
    found = discover(root)
    assert isinstance(found.failures[0], ReadError)
    assert reason in str(found.failures[0])
    assert str(found.failures[0].where) == str(root / "cbir.json")
