"""The builder of the reference cases, on a cohort of phantoms."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from benchmarks import reference as recipe
from cbir import Index
from indexer import readers, reference
from indexer.case_index import CaseIndex
from indexer.ingest import ingest
from indexer.measures import NAMES
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom


class Together(TinyEncoder):
    """Sees composites, too."""

    name = "together"
    composite_size = 32

    def compose(self, batch, boxes=None):
        return self.encode(batch.mean(axis=1).astype(np.uint8)), np.ones(len(batch), np.float32)


def public(folder, name, patients, grades):
    """A collection of volumes of four sequences, one file a patient, and a table."""
    root = folder / name
    root.mkdir()
    (root / "cbir.json").write_text(json.dumps({"channels": ["t1", "t1ce", "t2", "flair"]}))
    for n, patient in enumerate(patients):
        volume = np.stack([phantom(10 * n + i, 2 + n % 3) for i in range(4)], axis=-1)
        nib.save(nib.Nifti1Image(volume.astype(np.float32), np.eye(4)), root / f"{patient}.nii.gz")
    rows = [f"{p}\t{p}.nii.gz\tglioma\t{g}" for p, g in zip(patients, grades, strict=True)]
    (root / "table.tsv").write_text("\n".join(["participant_id\tfile\ttumour\twho_grade", *rows]) + "\n")
    return recipe.Collection(
        name,
        root,
        root / "table.tsv",
        ("tumour", "who_grade"),
        readers.read,
        lambda source: 0,
        recipe.of_brats,
        slices=3,
    )


IDS = ["TCGA-02-0001", "TCGA-CS-0002", "UCSF-PDGM-003", "BraTS-004"]


@pytest.fixture
def collections(tmp_path):
    return [
        public(tmp_path, "TCGA-LGG", IDS, ["4", "2", "4", "n/a"]),
        public(tmp_path, "BraTS-lesions", IDS[:2], ["4", "n/a"]),
    ]


def test_only_what_may_be_handed_on_with_composites_measures_and_no_pictures(collections, tmp_path):
    encoder = Together()
    recipe.made(encoder, tmp_path / "made", collections)
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["catalog.sqlite", "manifest.json"]
    with CaseIndex.open(tmp_path / "made") as index:
        contents = index.catalog.contents()
    assert contents.case_ids == [*IDS[:3], *(f"{p}/BraTS-lesions" for p in IDS[:2])]
    assert contents.patient_ids == [*IDS[:3], *IDS[:2]]
    assert contents.in_sample.all()
    assert [row.get("who_grade") for row in contents.labels] == ["4", "2", "4", "4", "2"]
    assert contents.labels[2]["collection"] == "UCSF-PDGM (TCIA, CC BY 4.0)"
    assert set(contents.scan_sequence) == {"t1", "t1ce", "t2", "flair", "composite"}
    assert len(contents.scan_ids) == 5 * 5
    assert np.bincount(contents.slice_scan).max() <= 3
    size = contents.scan_measures[:, NAMES.index("size")]
    assert np.isfinite(size[np.array(contents.scan_sequence) == "composite"]).all()


def test_they_join_an_index_and_step_aside_for_its_own_patients(collections, tmp_path, monkeypatch):
    encoder = Together()
    recipe.made(encoder, tmp_path / "made", collections)
    monkeypatch.setattr(reference, "FOLDER", tmp_path / "made")
    index = CaseIndex.create(tmp_path / "index", encoder, keep_ids=True)
    own = tmp_path / "own"
    own.mkdir()
    (own / "cbir.json").write_text((collections[0].root / "cbir.json").read_text())
    (own / f"{IDS[0]}.nii.gz").write_bytes((collections[0].root / f"{IDS[0]}.nii.gz").read_bytes())
    ingest(index, [own], encoder, with_reference=True)
    with Index(index, encoder) as opened:
        sources = set(opened.contents.scan_source)
        assert not any(reference.is_reference(s) and reference.person(s) == IDS[0] for s in sources)
        assert sum(map(reference.is_reference, sources)) == 3
        answer = opened.query(collections[0].root / f"{IDS[1]}.nii.gz", exclude_patient=IDS[0])
        assert answer.hits[0].patient_id == IDS[1]
        assert answer.hits[0].score == pytest.approx(1, abs=0.05)


def test_equal_cases_give_equal_files(collections, tmp_path):
    for name in ("one", "two"):
        recipe.made(Together(), tmp_path / name, collections)
    one, two = ((tmp_path / name / "catalog.sqlite").read_bytes() for name in ("one", "two"))
    assert one == two


def test_collections_must_agree_on_a_patient(collections, tmp_path):
    other = public(tmp_path, "other", IDS[:1], ["2"])
    with pytest.raises(SystemExit, match=r"TCGA-02-0001: who_grade is 4 and 2"):
        recipe.made(Together(), tmp_path / "made", [collections[0], other])
