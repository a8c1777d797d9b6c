"""What is remembered of how a root was indexed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indexer import roots
from indexer.case_index import CaseIndex
from indexer.ingest import ingest
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_nifti
from tests.support.paths import ROOT


@pytest.fixture
def index(tmp_path, tiny):
    with CaseIndex.create(tmp_path / "index", tiny, keep_ids=True) as index:
        yield index


def copies(root: Path) -> Path:
    """Two patients with a T1 and a copy of it in another preparation."""
    for patient in ("P01", "P02"):
        for name in ("t1", "t1_bias"):
            path = root / patient / f"{patient}_{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_nifti(path, phantom(len(name) + int(patient[1:]), 2))
    return root


def test_all_images_once_is_all_images_again(index, tiny, tmp_path):
    root = copies(tmp_path / "mri").absolute()
    assert ingest(index, [root], tiny).indexed == 2
    assert not roots.takes_all(index, root)
    assert ingest(index, [root], tiny, all_images=True).indexed == 2
    again = ingest(index, [root], tiny)
    assert (again.indexed, again.unchanged, again.notes) == (0, 4, [])
    assert roots.takes_all(index, root / "P01")
    assert not roots.takes_all(index, root.parent)
    ingest(index, [root], tiny, all_images=False)
    assert not roots.takes_all(index, root)


def test_a_catalog_that_remembered_tables_alone_is_understood(index, tmp_path):
    for held, labels in (("a.csv", ["a.csv"]), ('["a.csv", "b.csv"]', ["a.csv", "b.csv"])):
        index.catalog.set_root(str(tmp_path), held)
        assert roots.recall(index, tmp_path) == roots.Root(labels=labels)


def pictures(root: Path, count: int) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for kind in ("glioma", "no_tumor"):
        (root / kind).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (40, 40)).astype(np.uint8)
            Image.fromarray(pixels).save(root / kind / f"image({number}).png")
    return root.absolute()


def test_that_each_image_is_a_patient_is_said_wherever_it_matters(tmp_path, tiny):
    from cbir import Index

    root = pictures(tmp_path / "kaggle", 3)
    said = "6 pictures of the index do not say whose they are: each image counts as a patient of its own"
    with CaseIndex.create(tmp_path / "index", tiny) as held:
        index = Index(held, tiny)
        report = index.add(root)
        assert any("each counts as a patient of its own" in note for note in report.notes)
        answer = index.query(root / "glioma" / "image(1).png")
        assert any(note.startswith(said) for note in answer.notes)
        assert any(note.startswith(said) for note in answer.to_dict()["notes"])
        evaluation = index.evaluate("class", bootstrap=10)
        assert evaluation.notes[0].startswith(said)
        assert evaluation.to_dict()["notes"] == list(evaluation.notes)


def test_named_patients_need_no_such_note(index, tiny, tmp_path):
    ingest(index, [copies(tmp_path / "mri")], tiny)
    assert roots.notes(index) == []


COHORTS = ROOT.parent / "shared" / "data" / "cohorts"
TREES = sorted(tree.name for tree in COHORTS.iterdir() if tree.name != "truth") if COHORTS.is_dir() else []


@pytest.mark.real
@pytest.mark.parametrize("tree", TREES)
def test_a_visit_of_each_public_cohort_asks_with_its_sequences(tree: str, tmp_path: Path) -> None:
    """`cbir query VISIT` of an index of the same tree: all sequences match, the own patient has no vote."""
    from cbir import Index
    from indexer import sandbox

    tiny = TinyEncoder()
    root = (COHORTS / tree).resolve()
    with CaseIndex.create(tmp_path / "index", tiny, keep_ids=True) as held:
        index = Index(held, tiny)
        index.add(root, calibrate=False)
        tables, _ = sandbox.find_tables(root)
        visits: dict[tuple[str, str], list] = {}
        for source in sandbox.discover(root, tables).sources:
            visits.setdefault((source.patient_id, source.study_id), []).append(source)
        asked = 0
        for (patient, visit), sources in visits.items():
            files = [file for source in sources for file in source.files]
            folder = Path(*_common(files))
            inside = {
                (s.patient_id, s.study_id)
                for other in visits.values()
                for s in other
                if any(file.is_relative_to(folder) for file in s.files)
            }
            # a folder of other people, too, is asked by a file
            path = folder if {who for who, _ in inside} == {patient} else files[0]
            answer = index.query(path, visit=visit or None if path == folder and len(inside) > 1 else None)
            named = {patient, held.patient(patient)}
            itself = any("the query itself is in the index" in note for note in answer.notes)
            assert itself or not named & {hit.patient_id for hit in answer.hits}, path
            if len({who for who, _ in visits}) > 1:
                assert answer.hits, (path, answer.notes)
                assert not any("no other case has" in note for note in answer.notes), (path, answer.notes)
            asked += 1
        assert asked == len(visits)


def _common(files: list[Path]) -> tuple[str, ...]:
    parts = [file.parent.parts for file in files]
    shared = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return tuple(shared)
