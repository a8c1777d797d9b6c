"""What a folder asks with is what an index would take of it, of one patient and one visit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indexer.discovery.visits import day, in_time
from indexer.errors import QueryError, ReadError
from indexer.readers import Source
from retrieval.asked import asked
from tests.support.images import write_nifti

RNG = np.random.default_rng(5)


def volume(path: Path) -> Path:
    return write_nifti(path, RNG.integers(0, 99, (6, 7, 8)).astype(np.int16))


def visits(*names: str) -> list[Source]:
    return [Source(Path(name or "x"), "nifti", (Path("x"),), "P", name) for name in names]


@pytest.mark.parametrize(
    ("names", "newest"),
    [
        (("week-044", "week-000-1", "week-000-2"), "week-044"),
        (("ses-postop", "ses-preop"), "ses-postop"),
        (("Timepoint_10", "Timepoint_9"), "Timepoint_10"),
        (("FU007d", ""), "FU007d"),
        (("2013-02-07", "2012-09-26"), "2013-02-07"),
        (("11-10-1996", "08-23-1997"), "08-23-1997"),
        (("11", "21"), "21"),
        (("baseline", "recurrence", "intraop"), "recurrence"),
    ],
)
def test_the_newest_visit_is_known_by_its_name(names: tuple[str, ...], newest: str) -> None:
    assert in_time(visits(*names))[-1] == newest
    assert in_time(visits(*reversed(names)))[-1] == newest


def test_days() -> None:
    assert str(day("19960823")) == str(day("08-23-1996")) == str(day("1996-08-23")) == "1996-08-23"
    assert day("week-19") is None


def test_the_newest_visit_asks_unless_another_is_chosen(tmp_path: Path) -> None:
    for visit in ("Timepoint_1", "Timepoint_2"):
        for sequence in ("t1c", "t2f"):
            volume(tmp_path / "PatientID_3" / visit / f"PatientID_3_{visit}_{sequence}.nii.gz")
    scans, notes = asked(tmp_path / "PatientID_3")
    assert {(scan.study_id, scan.sequence) for scan in scans} == {
        ("Timepoint_2", "t1ce"),
        ("Timepoint_2", "flair"),
    }
    assert notes == ["2 visits (Timepoint_1, Timepoint_2): the newest, Timepoint_2, asks; --visit chooses"]
    scans, notes = asked(tmp_path / "PatientID_3", "Timepoint_1")
    assert {scan.study_id for scan in scans} == {"Timepoint_1"}
    assert notes == []
    with pytest.raises(QueryError, match=r"holds no visit x; it holds: Timepoint_1, Timepoint_2"):
        asked(tmp_path / "PatientID_3", "x")


def test_what_cannot_be_read_is_skipped_while_something_can(tmp_path: Path) -> None:
    volume(tmp_path / "P1" / "t1.nii.gz")
    broken = tmp_path / "P1" / "t2.nii.gz"
    broken.write_bytes(b"nothing")
    scans, notes = asked(tmp_path / "P1")
    assert [scan.sequence for scan in scans] == ["t1"]
    assert "not asked with, since it cannot be read" in notes[0]
    (tmp_path / "P1" / "t1.nii.gz").unlink()
    with pytest.raises(ReadError, match=r"t2\.nii\.gz"):
        asked(tmp_path / "P1")


def test_copies_and_masks_do_not_ask(tmp_path: Path) -> None:
    for name in ("P1_t1", "P1_t1_bias", "P1_adc"):
        volume(tmp_path / "P1" / f"{name}.nii.gz")
    scans, notes = asked(tmp_path / "P1")
    assert len(scans) == 1
    assert notes == ["not asked with: 1 × a copy in another preparation, 1 × a map computed of images"]
    # whoever names a file wants it
    assert len(asked(tmp_path / "P1" / "P1_adc.nii.gz")[0]) == 1
