from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.errors import LabelsError
from indexer.labels import Labels, find_labels, load_labels


def table(folder: Path, text: str, name: str = "participants.tsv", encoding: str = "utf-8") -> Labels:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode(encoding))
    return load_labels(folder / name)


def test_labels_of_patients(tmp_path: Path) -> None:
    labels = table(tmp_path, "participant_id\twho_grade\tsex\nsub-01\t4\tn/a\nsub-02\tNA\t\nsub-03\tnan\tF\n")
    assert labels.columns == ("who_grade", "sex")
    assert labels.patients == ("sub-01", "sub-02", "sub-03")
    assert labels.of("sub-01") == {"who_grade": "4"}
    assert labels.of("01") == {"who_grade": "4"}
    assert labels.of("sub-02") == {}
    assert labels.of("sub-03") == {"sex": "F"}
    assert labels.of("somebody else") == {}


@pytest.mark.parametrize("header", ["Patient_ID", "SUBJECT", "subject_id", "participant"])
def test_headers_of_the_id_column(tmp_path: Path, header: str) -> None:
    assert table(tmp_path, f"grade,{header}\n4,a\n", "t.csv").of("a") == {"grade": "4"}


@pytest.mark.parametrize(
    ("text", "name", "encoding"),
    [
        ("participant_id\ttumour\nP1\tGlioma, größer\n", "a.tsv", "utf-8-sig"),
        ("participant_id\ttumour\r\nP1\tGlioma, größer\r\n", "a.tsv", "latin-1"),
        ('"participant_id","tumour"\n"P1","Glioma, größer"\n\n', "a.csv", "utf-8"),
        ("participant_id;tumour;\nP1;Glioma, größer;\n", "a.csv", "cp1252"),
        ("participant_id\ttumour\r\nP1\tGlioma, größer", "a.txt", "utf-16"),
    ],
)
def test_spellings_of_a_table(tmp_path: Path, text: str, name: str, encoding: str) -> None:
    assert table(tmp_path, text, name, encoding).of("P1") == {"tumour": "Glioma, größer"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no rows"),
        ("participant_id\tgrade\n", "no rows"),
        ("who\tgrade\nx\t4\n", "no column names patients"),
        ("participant_id\tgrade\tGrade\nx\t4\t4\n", "two columns called 'grade'"),
        ("participant_id\tgrade\nx\t4\t5\n", "line 2 has 3 cells"),
        ("participant_id\tgrade\nx\t4\nn/a\t4\n", "line 3 names neither"),
        ("participant_id\tgrade\n\0\t4\n", "not a text file"),
        ("file\tparticipant_id\na.png\tx\na.png\ty\n", "line 3 gives a.png to a second patient"),
    ],
)
def test_refused_tables(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(LabelsError, match=reason) as refused:
        table(tmp_path, text)
    assert "participants.tsv" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"nowhere\.tsv: cannot be read"):
        load_labels(tmp_path / "nowhere.tsv")


def test_identifying_columns_are_dropped(tmp_path: Path) -> None:
    secret = [
        "Name",
        "patient_name",
        "birth_date",
        "BirthDate",
        "DOB",
        "AccessionNumber",
        "Address",
        "report",
    ]
    secret += ["Date of birth", "hospital_id", "PatientID", "scan_date", "lastname", "MRN"]
    kept = ["who_grade", "age", "sex", "site", "candidate", "IDH", "steroid", "fold"]
    header = "\t".join(["participant_id", *secret, *kept])
    labels = table(tmp_path, header + "\n" + "\t".join(["P1", *"s" * len(secret), *"k" * len(kept)]) + "\n")
    assert labels.columns == tuple(kept)
    assert labels.dropped == tuple(secret)
    assert set(labels.of("P1").values()) == {"k"}


def test_conflicting_rows_give_no_label(tmp_path: Path) -> None:
    text = "participant_id\tgrade\tsex\na\t2\tF\na\t4\tF\na\tn/a\t\nb\t3\tM\n"
    labels = table(tmp_path, text)
    assert labels.conflicts == {"grade": ("a",)}
    assert labels.of("a") == {"sex": "F"}
    assert labels.of("b") == {"grade": "3", "sex": "M"}


def test_patient_by_row_then_folder_then_name(tmp_path: Path) -> None:
    text = "file,participant_id\nX/1.png,A\n,B\n,TCGA-02-0006\n"
    labels = table(tmp_path, text, "t.csv")
    assert labels.patient_of(tmp_path / "X" / "1.png", "TCGA-02-0006") == "A"
    assert labels.patient_of(tmp_path / "B" / "x" / "2.png", "TCGA-02-0006") == "B"
    assert labels.patient_of(tmp_path / "y" / "2.png", "TCGA-02-0006_lesion-1") == "TCGA-02-0006"
    assert labels.patient_of(tmp_path / "y" / "2.png", "TCGA-02-0007_t1") is None
    assert labels.names_folder(tmp_path / "B")
    assert labels.names_folder(tmp_path / "sub-B")
    assert not labels.names_folder(tmp_path / "X")


def test_folders_above_the_table_say_nothing(tmp_path: Path) -> None:
    labels = table(tmp_path / "A", "participant_id\nA\nB\n")
    assert labels.patient_of(tmp_path / "A" / "scan.nii", "scan") is None


def test_a_table_of_files_without_patients(tmp_path: Path) -> None:
    labels = table(tmp_path, "file,tumour\na/1.png,x\nb/1.png,y\nb/2.nii.gz,z\n", "t.csv")
    assert labels.patients == ("a/1", "b/1", "2")
    assert labels.of("a/1") == {"tumour": "x"}
    assert labels.patient_of(tmp_path / "b" / "1.png", "1") == "b/1"


def test_files_are_found_by_path_end_or_name(tmp_path: Path) -> None:
    images = tmp_path / "elsewhere" / "images"
    images.mkdir(parents=True)
    for name in ("1.png", "2.png", "3.png"):
        (images / name).touch()
    text = "file,patient\nimages/1.png,A\nold\\2.png,B\nx/3.png,C\ny/3.png,D\n"
    labels = table(tmp_path / "tables", text, "t.csv")
    assert labels.row_of(images / "1.png") == "images/1.png"
    assert labels.row_of(images / "2.png") == "old/2.png"
    assert labels.row_of(images / "3.png") is None
    assert labels.row_of(images / "11.png") is None


def test_a_file_that_is_there_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    for folder in ("data", "copy"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").touch()
    labels = table(tmp_path / "data", "file,patient\n1.png,A\n", "t.csv")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert labels.names_file(tmp_path / "data" / "1.png")
    assert labels.names_file(tmp_path / "link" / "1.png")
    assert not labels.names_file(tmp_path / "copy" / "1.png")


def test_rows_without_data_and_data_without_rows(tmp_path: Path) -> None:
    labels = table(tmp_path, "participant_id\nsub-1\nsub-2\nsub-3\n")
    found = [(tmp_path / "a.nii", "sub-1"), (tmp_path / "b.nii", "2"), (tmp_path / "c.nii", "9")]
    assert labels.unmatched(found) == (["sub-3"], [str(tmp_path / "c.nii")])
    by_file = table(tmp_path, "file,patient\na.nii,A\nz.nii,A\n", "t.csv")
    assert by_file.unmatched(found[:2]) == (["z.nii"], [str(tmp_path / "b.nii")])


def test_the_nearest_table_above_is_found(tmp_path: Path) -> None:
    table(tmp_path, "participant_id\nfar\n")
    table(tmp_path / "a", "participant_id\nnear\n")
    (tmp_path / "a" / "b").mkdir()
    (tmp_path / "a" / "b" / "x.nii").touch()
    for start, patient in (("a/b", "near"), ("a/b/x.nii", "near"), ("a", "near"), (".", "far")):
        labels = find_labels(tmp_path / start)
        assert labels is not None
        assert labels.patients == (patient,)


def test_no_table(tmp_path: Path) -> None:
    assert find_labels(tmp_path) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    for start in (b"", b"file,participant_id,grade\n"):
        path.write_bytes(start + content)
        try:
            labels = load_labels(path)
        except LabelsError:
            continue
        assert all(set(labels.of(p)) <= set(labels.columns) for p in labels.patients)


@pytest.mark.real
def test_real_tables(real: Path) -> None:
    slices = load_labels(real / "figshare" / "slices.tsv")
    assert len(slices.patients) == 233
    assert slices.patient_of(real / "figshare" / "images" / "0001.jpg", "0001") == "100360"
    assert slices.of("100360") == {"tumour": "meningioma", "fold": "3"}
    lesions = load_labels(real / "brats-lesions" / "lesions.tsv")
    assert len(lesions.patients) == 293
    file = real / "brats-lesions" / "TCGA-FG-6692_lesion-2.nii.gz"
    assert lesions.patient_of(file, "") == "TCGA-FG-6692"
    volumes = find_labels(real / "volumes" / "TCGA-02-0006")
    assert volumes is not None
    assert volumes.of("TCGA-02-0006")["who_grade"] == "4"
    assert (
        volumes.patient_of(real / "volumes" / "TCGA-02-0006" / "TCGA-02-0006_t1.nii.gz", "") == "TCGA-02-0006"
    )
    assert (slices.conflicts, lesions.conflicts, volumes.conflicts) == ({}, {}, {})
