from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest

from indexer import demo
from indexer.demo import Cohort, write_cohort
from indexer.discovery import discover, read
from indexer.errors import CbirError

PATIENTS = 6


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("demo"), PATIENTS)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawings that take no time, for tests about folders."""

    def drawn(rng: np.random.Generator, grade: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        voxels = rng.integers(0, 9, demo.SHAPE, np.int16) + 0 * grade
        return {"t1ce": voxels, "flair": voxels}, np.ones(demo.SHAPE, np.uint8)

    monkeypatch.setattr(demo, "SHAPE", (4, 4, 2))
    monkeypatch.setattr(demo, "phantom", drawn)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_layout(cohort: Cohort) -> None:
    expected = {"README.txt", "participants.tsv"}
    for i in range(1, PATIENTS + 1):
        name = f"SYNTH-{i:03d}"
        expected |= {f"{name}/{name}_{part}.nii.gz" for part in ("t1ce", "flair", "seg")}
    written = files(cohort.folder)
    assert set(written) == expected
    assert sum(map(len, written.values())) < PATIENTS * 1e6


def test_labels_follow_the_grades(cohort: Cohort) -> None:
    with (cohort.folder / "participants.tsv").open() as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    assert [r["participant_id"] for r in rows] == [f"SYNTH-{i:03d}" for i in range(1, PATIENTS + 1)]
    assert sorted(r["who_grade"] for r in rows) == ["2", "2", "3", "3", "4", "4"]
    assert {r["participant_id"]: int(r["who_grade"]) for r in rows} == cohort.grades
    assert all((r["tumour"] == "glioblastoma") == (r["who_grade"] == "4") for r in rows)


def test_synthetic_is_said_everywhere(cohort: Cohort) -> None:
    assert "SYNTHETIC" in (cohort.folder / "README.txt").read_text().splitlines()[0]
    lines = (cohort.folder / "participants.tsv").read_text().splitlines()
    assert lines[0].split("\t")[-1] == "synthetic"
    assert all(line.startswith("SYNTH-") and line.endswith("\tyes") for line in lines[1:])
    images = list(cohort.folder.rglob("*.nii.gz"))
    assert images
    for path in images:
        assert path.name.startswith("SYNTH-")
        assert b"SYNTHETIC" in nibabel.load(path).header["descrip"].item()


def test_images_are_plausible_mr_volumes(cohort: Cohort) -> None:
    for path in cohort.folder.rglob("*.nii.gz"):
        image = nibabel.load(path)
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.header.get_zooms() == pytest.approx(demo.SPACING)
        if path.name.endswith("_seg.nii.gz"):
            assert set(np.unique(image.dataobj)) <= {0, 1, 2, 4}
            continue
        voxels = np.asanyarray(image.dataobj)
        assert voxels.dtype == np.int16
        # brain and the fluid in it: 1.0 to 1.8 litres in adults, inside the field of view
        litres = (voxels > 0).sum() * np.prod(demo.SPACING) / 1e6
        assert 1.0 < litres < 1.8
        assert not voxels[[0, -1]].any()
        assert not voxels[:, [0, -1]].any()
        assert len(np.unique(voxels)) > 200


def test_the_readers_take_it(cohort: Cohort) -> None:
    found = discover(cohort.folder)
    assert not found.failures
    assert len(found.sources) == 2 * PATIENTS
    for source in found.sources:
        (scan,) = read(source)
        assert scan.sequence in ("t1ce", "flair")
        assert len(scan) == demo.SHAPE[2]
        assert scan.axis == 2
        assert scan.region is not None
        assert scan.region.any()


@pytest.mark.slow
def test_grade_shows_in_the_lesion_and_not_in_one_voxel() -> None:
    enhancing: dict[int, list[int]] = {2: [], 3: [], 4: []}
    brightest: dict[int, list[float]] = {2: [], 3: [], 4: []}
    for grade in (2, 3, 4):
        for seed in range(5):
            images, seg = demo.phantom(np.random.default_rng([seed, grade]), grade)
            flair, t1ce = images["flair"], images["t1ce"]
            healthy = (seg == 0) & (flair > 0)
            assert np.median(flair[seg > 0]) > 1.2 * np.median(flair[healthy])
            enhancing[grade].append(int((seg == 4).sum()))
            brightest[grade].append(t1ce.max() / np.median(t1ce[healthy]))
            assert ((seg == 1).sum() > 20) == (grade == 4)
            if grade == 4:
                dark, ring = np.median(t1ce[seg == 1]), np.median(t1ce[seg == 4])
                assert dark < 0.7 * np.median(t1ce[healthy]) < ring
    assert np.median(enhancing[2]) < np.median(enhancing[3]) < np.median(enhancing[4])
    # vessels enhance in everybody: the brightest voxel of some patient of grade 2 beats one of 4
    assert max(brightest[2]) > min(brightest[4])


def test_same_seed_same_bytes(cohort: Cohort, tmp_path: Path) -> None:
    again = write_cohort(tmp_path, PATIENTS)
    assert files(tmp_path) == files(cohort.folder)
    assert again.grades == cohort.grades


@pytest.mark.usefixtures("quick")
def test_another_seed_draws_others(tmp_path: Path) -> None:
    write_cohort(tmp_path / "a", 3)
    write_cohort(tmp_path / "b", 3, seed=1)
    first, other = (next((tmp_path / folder).rglob("*-001_t1ce.nii.gz")) for folder in ("a", "b"))
    assert first.read_bytes() != other.read_bytes()
    assert first.name == "SYNTH-001_t1ce.nii.gz"
    assert other.name == "SYNTH-1-001_t1ce.nii.gz"


@pytest.mark.usefixtures("quick")
def test_second_run_touches_nothing(tmp_path: Path) -> None:
    write_cohort(tmp_path, 3)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    write_cohort(tmp_path, 3)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.usefixtures("quick")
def test_smaller_cohort_leaves_no_stale_case_and_no_loss(tmp_path: Path) -> None:
    write_cohort(tmp_path, 5)
    kept = tmp_path / "SYNTH-005" / "my-notes.txt"
    kept.write_text("mine")
    write_cohort(tmp_path, 3)
    assert not (tmp_path / "SYNTH-004").exists()
    assert list(kept.parent.iterdir()) == [kept]


@pytest.mark.usefixtures("quick")
def test_resumes_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(demo, "_nifti", lambda voxels: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_cohort(tmp_path, 2)
    assert len(write_cohort(tmp_path, 2).grades) == 2


@pytest.mark.usefixtures("quick")
def test_refuses_a_folder_that_is_not_a_demo(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("precious")
    with pytest.raises(CbirError, match=r"not empty and not a demo.*; name a new folder"):
        write_cohort(tmp_path)
    (tmp_path / "README.txt").write_text("my data")
    with pytest.raises(CbirError, match="not a demo"):
        write_cohort(tmp_path)
    with pytest.raises(CbirError, match="a file, not a folder"):
        write_cohort(precious)
    assert files(tmp_path) == {"thesis.txt": b"precious", "README.txt": b"my data"}
    with pytest.raises(CbirError, match="at least 1"):
        write_cohort(tmp_path / "new", 0)
    with pytest.raises(CbirError, match="choose another folder"):
        write_cohort(precious / "below")
