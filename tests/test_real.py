"""The whole path on real MRI, as a user walks it."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest

from retrieval.cli import main

pytestmark = pytest.mark.real


@pytest.fixture
def cbir(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cbir", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        return json.loads(out)

    return run


def take(real, tmp_path, name, members):
    """A part of a cohort, linked, with its table and configuration."""
    folder = tmp_path / name
    folder.mkdir()
    for member in [*members, "participants.tsv", "cbir.json", "lesions.tsv", "slices.tsv"]:
        if (real / name / member).exists():
            (folder / member).symlink_to(real / name / member)
    return folder


def test_volumes_answer_with_their_sequences_and_grades(real, tmp_path, cbir):
    patients = ["TCGA-02-0006", "TCGA-DU-7294", "TCGA-HT-7473", "TCGA-FG-6692"]
    folder, index = take(real, tmp_path, "volumes", patients), tmp_path / "index"
    report = cbir("index", folder, "--index", index, "--keep-ids", "--json")
    assert (report["indexed"], report["cases"], report["failed"]) == (16, 4, [])
    query = real / "volumes" / "TCGA-06-0185" / "TCGA-06-0185_t1ce.nii.gz"
    answer = cbir("query", query, "--index", index, "--json")
    assert answer["query"]["sequence"] == "t1ce"
    assert sorted(h["patient_id"] for h in answer["hits"]) == sorted(patients)
    assert {h["sequence"] for h in answer["hits"]} == {"t1ce"}
    assert all(h["labels"]["who_grade"] in "234" for h in answer["hits"])
    own = folder / "TCGA-HT-7473" / "TCGA-HT-7473_flair.nii.gz"
    first = cbir("query", own, "--index", index, "--json")["hits"][0]
    assert first["patient_id"] == "TCGA-HT-7473"
    assert first["score"] == pytest.approx(1, abs=1e-4)
    mask = folder / "TCGA-HT-7473" / "TCGA-HT-7473_seg.nii.gz"
    marked = cbir("query", own, "--mask", mask, "--index", index, "--json")
    assert marked["hits"][0]["patient_id"] == "TCGA-HT-7473"


def test_stacks_and_images_and_lesions_are_labelled_as_their_tables_say(real, tmp_path, cbir):
    index = tmp_path / "index"
    stacks = take(real, tmp_path, "tcga-lgg", ["TCGA-CS-4941", "TCGA-CS-4942"])
    report = cbir("index", stacks, "--index", index, "--keep-ids", "--json")
    assert report["taken"]["folders of slices"] == 2
    assert report["cases"] == 2
    lesions = take(
        real, tmp_path, "brats-lesions", ["BraTS-001_lesion-1.nii.gz", "BraTS-003_lesion-2.nii.gz"]
    )
    report = cbir("index", lesions, "--labels", lesions / "lesions.tsv", "--index", index, "--json")
    assert report["cases"] == 4
    images = tmp_path / "figshare"
    (images / "images").mkdir(parents=True)
    shutil.copy(real / "figshare" / "slices.tsv", images)
    for number in ("0001", "0002", "3000"):
        shutil.copy(real / "figshare" / "images" / f"{number}.jpg", images / "images")
    report = cbir("index", images, "--labels", images / "slices.tsv", "--index", index, "--json")
    assert report["taken"]["single images"] == 3
    assert report["cases"] == 6
    listed = cbir("info", "--cases", "--index", index, "--json")["cases_list"]
    labels = {row["case_id"]: row["labels"] for row in listed}
    assert labels["100360"]["tumour"] == "meningioma"
    assert labels["TCGA-CS-4941"]["who_grade"] == "3"
    assert labels["BraTS-001"]["grade_group"] == "HGG"
    answer = cbir("query", real / "tcga-lgg" / "TCGA-CS-4943", "--index", index, "--json")
    assert set(answer["query"]["sequence"].split("+")) == {"t1", "flair", "t1ce"}
    assert answer["hits"][0]["patient_id"] in labels


def test_a_dicom_folder_is_indexed_and_asks(real, tmp_path, cbir):
    index = tmp_path / "index"
    report = cbir("index", real / "dicom-t1", "--index", index, "--json")
    assert (report["indexed"], report["cases"]) == (1, 1)
    answer = cbir("query", real / "dicom-t1", "--index", index, "--json")
    assert answer["query"]["sequence"] == "t1"
    assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-4)


def test_frozen_features_find_the_tumour_class_above_chance(real, tmp_path, cbir):
    """On one image of each of 90 patients; the figures of the whole cohort are in the README."""
    lines = (real / "figshare" / "slices.tsv").read_text().splitlines()
    seen, rows = set(), []
    for line in lines[1:]:
        patient = line.split("\t")[1]
        if patient not in seen:
            seen.add(patient)
            rows.append(line)
    rng = np.random.default_rng(0)
    rows = [rows[i] for i in rng.choice(len(rows), 90, replace=False)]
    folder = tmp_path / "figshare"
    (folder / "images").mkdir(parents=True)
    for row in rows:
        (folder / row.split("\t")[0]).symlink_to(real / "figshare" / row.split("\t")[0])
    (folder / "slices.tsv").write_text("\n".join([lines[0], *rows]) + "\n")
    index = tmp_path / "index"
    cbir("index", folder, "--labels", folder / "slices.tsv", "--index", index, "--json")
    result = cbir("eval", "--label", "tumour", "--by", "scan", "--folds", "fold", "--index", index, "--json")
    precision = result["metrics"]["P@5"]["macro"]
    assert precision["low"] > precision["chance"]
