from __future__ import annotations

from pathlib import Path

import pytest

from indexer.errors import LabelsError
from indexer.labels import join, load_tables
from indexer.labels.table import read_tables
from tests.support.found import found, joined, people, visits

FOUR = ["2", "3", "4", "2"]


def grades(folder: Path, cells: list[str], patients: list[str], header: str = "ID") -> dict[str, str]:
    text = f"{header},grade\n" + "".join(f"{c},{g}\n" for c, g in zip(cells, FOUR, strict=False))
    labels = joined(folder, text, people(folder, patients)).labels
    return {patient: labels.of(patient).get("grade", "") for patient in patients}


@pytest.mark.parametrize(
    ("cells", "patients"),
    [
        (["P1", "P2", "P3"], ["P1", "P2", "P3"]),
        (["p_1", "P-2", "p 3"], ["P1", "P2", "P3"]),
        (["01", "02", "sub-03"], ["sub-01", "sub-02", "sub-03"]),
        (["UCSF-PDGM-004", "UCSF-PDGM-010"], ["UCSF-PDGM-0004", "UCSF-PDGM-0010"]),
        (["00000", "00002", "00003"], ["BraTS2021_00000", "BraTS2021_00002", "BraTS2021_00003"]),
        (["1", "2", "3"], ["P001", "P002", "P003"]),
        (["MR_EGD-0001", "MR_EGD-0002"], ["EGD-0001", "EGD-0002"]),
        (["EGD-1", "EGD-2"], ["MR_EGD-0001", "MR_EGD-0002"]),
        (["2013_2_1", "2013_0_1"], ["Brats18_2013_2_1", "Brats18_2013_0_1"]),
        (["4711", "4712"], ["4711", "4712"]),
        (["007", "7"], ["007", "7"]),
    ],
)
def test_spellings_of_ids(tmp_path: Path, cells: list[str], patients: list[str]) -> None:
    assert list(grades(tmp_path, cells, patients).values()) == FOUR[: len(cells)]


@pytest.mark.parametrize(
    ("cells", "patients", "known"),
    [
        (["P01"], ["P1", "P001"], []),  # it could be either
        (["P1", "P01"], ["P001"], []),  # either could be it
        (["P001", "P1"], ["P001", "P002"], ["P001"]),  # one is it, so the other is not
        (["HGG-001", "HGG-002"], ["LGG-001", "LGG-002"], []),  # another prefix is another name
        (["1"], ["A_1", "B_1"], []),
        (["p1"], ["P1", "p-1"], []),
        (["21"], ["X_2_1", "X_2_2"], []),
        (["Brats18_CBICA_AAB_1"], ["BraTS19_CBICA_AAB_1", "BraTS19_CBICA_AAC_1"], []),
    ],
)
def test_a_lax_agreement_that_is_ambiguous_is_none(
    tmp_path: Path, cells: list[str], patients: list[str], known: list[str]
) -> None:
    assert [patient for patient, grade in grades(tmp_path, cells, patients).items() if grade] == known


def test_the_key_is_found_by_its_values(tmp_path: Path) -> None:
    text = ",uuid,submitter,grade\n0,u7,TCGA-02-0006,4\n1,u9,TCGA-06-0185,3\n"
    found = joined(tmp_path, text, people(tmp_path, ["TCGA-02-0006", "TCGA-06-0185"]))
    assert found.labels.of("TCGA-06-0185") == {"uuid": "u9", "grade": "3"}
    assert any("by column submitter joined 2 of 2 rows to 2 of 2 patients" in note for note in found.notes)


def test_the_numbers_of_the_rows_are_no_key(tmp_path: Path) -> None:
    text = "no,name,grade\n1,A,4\n2,B,3\n"
    tables = joined(tmp_path, text, people(tmp_path, ["P001", "P002"]))
    assert [table.path.name for table in tables.unfit] == ["t.csv"]


def test_numbers_that_many_rows_share_are_no_key(tmp_path: Path) -> None:
    text = "Site ID,grade\n1,4\n1,3\n2,4\n2,4\n3,2\n3,2\n"
    assert joined(tmp_path, text, people(tmp_path, ["P001", "P002", "P003"])).unfit


def test_two_columns_that_fit_alike_are_asked_about(tmp_path: Path) -> None:
    text = "first id,second id,grade\nP1,P2,4\nP2,P1,3\n"
    sources = people(tmp_path, ["P1", "P2"])
    with pytest.raises(
        LabelsError, match="'first id' and 'second id' .*: --labels t.csv:first id|--labels t.csv:first id"
    ):
        joined(tmp_path, text, sources)
    labels = join(load_tables(tmp_path / "t.csv:second id"), sources).labels
    assert labels.of("P1") == {"grade": "3"}
    unasked = join(read_tables(tmp_path / "t.csv"), sources)
    assert (unasked.labels.persons, len(unasked.unfit)) == ({}, 1)
    assert "--labels t.csv:first id" in unasked.notes[0]


def test_two_columns_that_say_the_same_are_no_tie(tmp_path: Path) -> None:
    text = "first id,second id,grade\nP1,P-1,4\nP2,P-2,3\n"
    assert joined(tmp_path, text, people(tmp_path, ["P1", "P2"])).labels.of("P1") == {"grade": "4"}


def test_rows_of_visits_label_visits(tmp_path: Path) -> None:
    sources = visits(tmp_path, ("B-005", "B-005-100"), ("B-005", "B-005-101"), ("B-006", "B-006-100"))
    text = "ID,grade\nB-005-100,2\nB-005-101,3\nB-006-100,4\nB-006,9\n"
    labels = joined(tmp_path, text, sources).labels
    assert labels.of_visit("B-005", "B-005-101") == {"grade": "3"}
    assert labels.of_case("B-005", "B-005-100") == {"grade": "2"}
    assert labels.of("B-005") == {}
    assert labels.of("B-006") == {"grade": "9"}
    assert labels.of_case("B-006", "B-006-100") == {"grade": "4"}


def test_follow_ups_have_rows_beside_that_of_the_person(tmp_path: Path) -> None:
    sources = [*people(tmp_path, ["U-0433", "U-0004"]), *visits(tmp_path, ("U-0433", "FU007d"))]
    labels = joined(tmp_path, "ID,grade\nU-004,2\nU-433,3\nU-0433_FU007d,4\n", sources).labels
    assert labels.of_case("U-0433", "") == {"grade": "3"}
    assert labels.of_case("U-0433", "FU007d") == {"grade": "4"}
    assert labels.of("U-0004") == {"grade": "2"}


def test_a_second_column_may_name_the_visit(tmp_path: Path) -> None:
    sources = visits(
        tmp_path, ("P1", "week-000-1"), ("P1", "week-000-2"), ("P2", "week-000-1"), ("P2", "week-044")
    )
    text = (
        "Patient,Date,sex,rating\nP1,week-000-1,F,Pre-Op\nP1,week-000-2,F,PD\nP2,week-000-1,M,SD\n"
        "P2,week-050,M,CR\nP2,,M,all\n"
    )
    found = joined(tmp_path, text, sources)
    assert found.labels.of_visit("P1", "week-000-2") == {"sex": "F", "rating": "PD"}
    assert found.labels.of_case("P2", "week-000-1") == {"sex": "M", "rating": "SD"}
    # what is said of a visit that is not there is said of no other
    assert found.labels.of_case("P2", "week-044") == {"sex": "M", "rating": "all"}
    assert any("by column Patient and Date joined 4 of 5 rows" in note for note in found.notes)


@pytest.mark.parametrize(
    ("names", "cells", "header"),
    [
        (["ses-preop", "ses-postop"], ["ses-preop", "ses-postop"], "session_id"),
        (["ses-01", "ses-02"], ["1", "2"], "session"),
        (["Timepoint_1", "Timepoint_2"], ["1", "2"], "Timepoint"),
        (["P1_11", "P1_21"], ["11", "21"], "visit"),
        (["19960823", "20050412"], ["08-23-1996", "2005-04-12"], "Study Date"),
        (["t0", "t1"], ["T0", "T1"], "when"),
    ],
)
def test_visits_by_their_spellings(tmp_path: Path, names: list[str], cells: list[str], header: str) -> None:
    sources = visits(tmp_path, *(("P1", name) for name in names))
    text = f"patient,{header},kind\n" + "".join(f"P1,{cell},k{i}\n" for i, cell in enumerate(cells))
    labels = joined(tmp_path, text, sources).labels
    assert [labels.of_visit("P1", name) for name in names] == [{"kind": "k0"}, {"kind": "k1"}]


def test_numbers_that_look_like_visits_are_labels_unless_the_header_says_so(tmp_path: Path) -> None:
    sources = visits(tmp_path, ("P1", "Timepoint_1"), ("P1", "Timepoint_2"), ("P2", "Timepoint_1"))
    labels = joined(tmp_path, "patient,score\nP1,1\nP2,2\n", sources).labels
    assert labels.of("P1") == {"score": "1"}
    assert labels.visits == {}


def test_a_table_in_a_persons_folder_is_about_the_person(tmp_path: Path) -> None:
    sources = visits(tmp_path, ("sub-1", "ses-a"), ("sub-1", "ses-b"), ("sub-2", "ses-a"))
    for person in ("sub-1", "sub-2"):
        path = tmp_path / "mri" / person / f"{person}_sessions.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"session_id\tgrade\nses-a\t{person[-1]}\nses-b\t3\n")
    tables = [
        t
        for person in ("sub-1", "sub-2")
        for t in read_tables(tmp_path / "mri" / person / f"{person}_sessions.tsv")
    ]
    labels = join(tables, sources).labels
    assert labels.of_visit("sub-1", "ses-a") == {"grade": "1"}
    assert labels.of_visit("sub-1", "ses-b") == {"grade": "3"}
    assert labels.of_visit("sub-2", "ses-a") == {"grade": "2"}
    assert labels.persons == {}


def test_rows_of_files(tmp_path: Path) -> None:
    sources = [found(tmp_path / "images" / f"{n:04}.jpg", f"{n:04}") for n in (1, 2, 3)]
    text = "file,participant_id,tumour\nimages/0001.jpg,A,x\nimages\\0002.jpg,A,x\nimages/0003.jpg,B,y\n"
    result = joined(tmp_path, text, sources)
    assert result.patients == {s.path: p for s, p in zip(sources, "AAB", strict=True)}
    assert result.labels.of("A") == {"tumour": "x"}
    without = joined(tmp_path, "file,tumour\n0001.jpg,x\n0003.jpg,y\n", sources)
    assert without.patients == {}
    assert [without.labels.of(s.patient_id).get("tumour") for s in sources] == ["x", None, "y"]
    by_stem = joined(tmp_path, "image_id,tumour\n0001,x\n0003,y\n", sources)
    assert [by_stem.labels.of(s.patient_id).get("tumour") for s in sources] == ["x", None, "y"]


def test_files_are_found_by_path_end_or_name(tmp_path: Path) -> None:
    images = tmp_path / "elsewhere" / "images"
    images.mkdir(parents=True)
    for name in ("1.png", "2.png", "3.png", "11.png"):
        (images / name).touch()
    sources = [found(images / name, name[:-4]) for name in ("1.png", "2.png", "3.png", "11.png")]
    text = "file,patient\nimages/1.png,A\nold\\2.png,B\nx/3.png,C\ny/3.png,D\n"
    result = joined(tmp_path / "tables", text, sources)
    assert result.patients == {images / "1.png": "A", images / "2.png": "B"}


def test_a_file_that_is_there_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    for folder in ("data", "copy"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").touch()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    sources = [found(tmp_path / folder / "1.png", folder) for folder in ("data", "copy", "link")]
    result = joined(tmp_path / "data", "file,patient\n1.png,A\n", sources)
    assert result.patients == {tmp_path / "data" / "1.png": "A", tmp_path / "link" / "1.png": "A"}


def test_a_row_that_fits_two_files_is_refused(tmp_path: Path) -> None:
    sources = [found(tmp_path / folder / "1.png", f"{folder}-1") for folder in "ab"]
    with pytest.raises(LabelsError, match=r"row 1\.png fits both .*a/1\.png and .*b/1\.png"):
        joined(tmp_path, "file,tumour\n1.png,x\n", sources)
    assert join(read_tables(tmp_path / "t.csv"), sources).labels.persons == {}


def test_a_file_of_two_patients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"gives a\.png to a second patient"):
        joined(tmp_path, "file,participant_id\na.png,x\na.png,y\n", [found(tmp_path / "a.png", "a")])


def test_a_table_merges_persons_and_splits_none(tmp_path: Path) -> None:
    lesions = [found(tmp_path / f"P-02_lesion-{n}.nii", f"P-02_lesion-{n}") for n in (1, 2)]
    apart = [found(tmp_path / "Q" / f"{n}.nii", "Q") for n in (1, 2)]
    below = [found(tmp_path / "R" / name, name[:-4]) for name in ("a_1.png", "b_2.png")]
    result = joined(tmp_path, "participant_id,grade\nP-02,2\nR,3\n", [*lesions, *apart, *below])
    assert result.patients == {**{s.path: "P-02" for s in lesions}, **{s.path: "R" for s in below}}
    assert result.labels.of("P-02") == {"grade": "2"}
    assert result.labels.of("R") == {"grade": "3"}
    split = joined(tmp_path, "file,participant_id\nQ/1.nii,X\n", apart)
    assert set(split.patients.values()) == {"X"}  # the whole person, not a part


def test_no_folder_of_a_whole_cohort_is_a_patient(tmp_path: Path) -> None:
    sources = [found(tmp_path / "TCGA-GBM" / p / "t1.nii", p) for p in ("A1", "A2")]
    result = joined(tmp_path, "project_id,name,grade\nTCGA-GBM,x,2\nTCGA-GBM,y,3\n", sources)
    assert (result.patients, len(result.unfit)) == ({}, 1)


def test_conflicting_rows_give_no_label(tmp_path: Path) -> None:
    text = "id,grade,sex\nP1,2,F\nP1,4,F\nP1,n/a,\nP2,3,M\n"
    result = joined(tmp_path, text, people(tmp_path, ["P1", "P2"]))
    assert result.labels.of("P1") == {"sex": "F"}
    assert result.labels.of("P2") == {"grade": "3", "sex": "M"}
    assert "grade has several values for 1 patients, who stay without it: P1" in result.notes


def test_rows_without_data_and_data_without_rows_are_told(tmp_path: Path) -> None:
    notes = " ".join(joined(tmp_path, "id,grade\nP1,2\nP8,3\n", people(tmp_path, ["P1", "P2", "P3"])).notes)
    assert "1 rows without data: line 3" in notes
    assert "2 patients without a row: P2, P3" in notes
    assert "1 of 3 patients, fewer than half" in notes


def test_tables_add_to_each_other_and_the_last_named_holds(tmp_path: Path) -> None:
    sources = people(tmp_path, ["P1", "P2"])
    for name, text in (("a", "id,grade,age\nP1,2,50\nP2,3,60\n"), ("b", "id,Grade,sex\nP1,4,F\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    given = join([*load_tables(tmp_path / "a.csv"), *load_tables(tmp_path / "b.csv")], sources)
    assert given.labels.of("P1") == {"grade": "4", "age": "50", "sex": "F"}
    assert given.labels.of("P2") == {"grade": "3", "age": "60"}
    assert "grade: of 1 patients tables say different things; the one named last holds" in given.notes
    found = join([*read_tables(tmp_path / "a.csv"), *read_tables(tmp_path / "b.csv")], sources)
    assert found.labels.of("P1") == {"age": "50", "sex": "F"}
    both = join([*load_tables(tmp_path / "a.csv"), *read_tables(tmp_path / "b.csv")], sources)
    assert both.labels.of("P1")["grade"] == "2"


def test_identifying_columns_are_dropped_and_named(tmp_path: Path) -> None:
    text = "participant_id,Name,grade,hospital_id,seen\nP1,s,2,s,2020-01-02\nP2,s,3,s,2020-01-03\n"
    result = joined(tmp_path, text, people(tmp_path, ["P1", "P2"]))
    assert result.labels.persons == {"P1": {"grade": "2"}, "P2": {"grade": "3"}}
    assert any(
        "not kept, since they may identify people: Name, hospital_id, seen" in note for note in result.notes
    )


def test_a_list_of_series_is_no_table_of_labels(tmp_path: Path) -> None:
    text = "Series UID,Subject ID,Modality\n1.2.3,P1,MR\n1.2.4,P2,MR\n"
    (tmp_path / "metadata.csv").write_text(text)
    sources = people(tmp_path, ["P1", "P2"])
    assert join(read_tables(tmp_path / "metadata.csv"), sources).unfit
    assert join(load_tables(tmp_path / "metadata.csv"), sources).labels.of("P1") == {"Modality": "MR"}


def test_many_tables_of_one_make_are_told_once(tmp_path: Path) -> None:
    sources = visits(tmp_path, *((f"sub-{n}", "ses-a") for n in range(9)))
    tables = []
    for n in range(9):
        path = tmp_path / "mri" / f"sub-{n}" / f"sub-{n}_sessions.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("session_id\tgrade\nses-a\t2\n")
        tables += read_tables(path)
    result = join(tables, sources)
    assert len(result.labels.visits) == 9
    assert len(result.notes) == 2
    assert "8 more tables like it" in result.notes[1]


def test_what_a_named_table_does_not_know_is_not_taken_from_a_found_one(tmp_path: Path) -> None:
    sources = people(tmp_path, ["P1", "P2", "P3"])
    (tmp_path / "named.csv").write_text("id,grade\nP1,2\nP2,unknown\n")
    (tmp_path / "found.csv").write_text("id,grade,sex\nP1,4,F\nP2,4,M\nP3,3,F\n")
    labels = join(
        [*read_tables(tmp_path / "found.csv"), *load_tables(tmp_path / "named.csv")], sources
    ).labels
    assert labels.of("P1") == {"grade": "2", "sex": "F"}
    assert labels.of("P2") == {"sex": "M"}
    assert labels.of("P3") == {"grade": "3", "sex": "F"}


@pytest.mark.parametrize(
    ("header", "cells", "known"),
    [
        ("IXI_ID", ["2", "12", "25"], ["IXI002-Guys-0828", "IXI012-HH-1211"]),
        ("SITE_ID", ["2", "12", "25"], []),  # of what, nobody knows
        ("IXI_ID", ["828", "1211"], []),
        ("IXI_ID", ["2", "02"], []),  # either could be it
    ],
)
def test_bare_numbers_in_a_column_that_is_called_like_the_ids_begin(
    tmp_path: Path, header: str, cells: list[str], known: list[str]
) -> None:
    patients = ["IXI002-Guys-0828", "IXI012-HH-1211"]
    assert [who for who, grade in grades(tmp_path, cells, patients, header).items() if grade] == known


def test_a_row_may_name_a_folder_that_only_one_visit_has(tmp_path: Path) -> None:
    folders = {"I13722": ("002_S_0295", "1.2.840.1.1.3"), "I55275": ("002_S_0295", "1.2.840.1.1.4")}
    sources = [found(tmp_path / "ADNI" / f / "1.dcm", *who) for f, who in folders.items()]
    labels = joined(tmp_path, "Image Data ID,Group\nI13722,CN\nI55275,MCI\n", sources).labels
    assert labels.of_visit("002_S_0295", "1.2.840.1.1.3") == {"Group": "CN"}
    assert labels.of_visit("002_S_0295", "1.2.840.1.1.4") == {"Group": "MCI"}
