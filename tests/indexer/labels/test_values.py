from __future__ import annotations

import pytest

from indexer.labels.columns import identifies, reveals
from indexer.labels.values import meaning


def kept(column: str, *cells: str) -> list[str]:
    values = meaning(column, cells).values
    return [values.get(cell, "") for cell in cells]


def test_words_for_unknown_are_unknown() -> None:
    words = ["unknown", "-", "--", "?", "None", "null", "Not Available", "n.a.", "N/A", "NaN", "", "NA"]
    assert kept("grade", *words, "2") == [""] * len(words) + ["2"]


@pytest.mark.parametrize(
    ("column", "cells", "values"),
    [
        ("who_grade", ["II", "Grade 3", "4", "IV", "grade 2", "3.0"], ["2", "3", "4", "4", "2", "3"]),
        ("tumor_grade", ["G2", "G3", "G4"], ["2", "3", "4"]),
        ("Grad", ["WHO II°", "WHO III", "Grad 4"], ["2", "3", "4"]),
        ("x", ["WHO grade II", "WHO grade IV"], ["2", "4"]),
        ("x", ["II", "III"], ["2", "3"]),
        ("grade", ["2.0", "3.0"], ["2", "3"]),
        ("who_grade", ["II", "II/III", "3"], ["2", "II/III", "3"]),
        ("grade", ["HGG", "LGG"], ["HGG", "LGG"]),
        ("grade", ["II", "control"], ["2", "control"]),
        # what is not called a grade, or is a code, stays as it is
        ("neoplasm_histologic_grade", ["1", "2"], ["1", "2"]),
        ("type", ["II", "x"], ["II", "x"]),
        ("type", ["I"], ["I"]),
        ("location", ["G2 gyrus", "IV ventricle"], ["G2 gyrus", "IV ventricle"]),
        ("grade", ["0", "5", "2"], ["0", "5", "2"]),
        ("volume", ["6,2", "7", "10,25"], ["6.2", "7", "10.25"]),
        ("field", ["3.0", "1.5"], ["3.0", "1.5"]),
        ("diagnosis", ["Glioma, mixed", "6,2"], ["Glioma, mixed", "6,2"]),
        ("tumour", ["Glioma", "glioma", "Glioma", "GLIOMA "], ["Glioma"] * 4),
    ],
)
def test_what_values_mean(column: str, cells: list[str], values: list[str]) -> None:
    assert kept(column, *cells) == values


def test_what_is_changed_and_what_looks_alike_is_told() -> None:
    assert meaning("g", ["Grade 2", "II"]).notes == ("g: grades are kept as numbers (Grade 2 as 2, II as 2)",)
    assert meaning("t", ["glioma", "Glioma", "glioma"]).notes == ("t: 'glioma' and 'Glioma' are one value",)
    assert meaning("t", ["glioma", "gliomas"]).notes == ("t: 'glioma' and 'gliomas' look like one value",)
    assert meaning("t", ["IDH-mutant", "IDH mutant"]).notes == (
        "t: 'IDH mutant' and 'IDH-mutant' look like one value",
    )
    assert meaning("who_grade", ["2", "3"]).notes == ()


SECRET = [
    *("Name", "patient_name", "birth_date", "BirthDate", "DOB", "AccessionNumber", "Address", "report"),
    *("Date of birth", "hospital_id", "PatientID", "scan_date", "lastname", "MRN", "BraTS21 ID", "case_id"),
]


def test_identifying_headers() -> None:
    kept = [
        "who_grade",
        "age",
        "sex",
        "site",
        "candidate",
        "IDH",
        "steroid",
        "fold",
        "Sex at Birth",
        "Patient's Age",
    ]
    assert [name for name in SECRET if not identifies(name)] == []
    assert [name for name in kept if identifies(name)] == []


@pytest.mark.parametrize(
    "cells",
    [
        ["2020-05-01", "1999-12-31T10:00:00", ""],
        ["01.05.2020", "5/6/99"],
        ["./labelsTr/BRATS_001.nii.gz", "x/y.png"],
        ["1.2.840.113619.2.5", "1.2.840.113619.2.6"],
        ["Brats17_CBICA_AAA_1", "Brats17_CBICA_AAB_1", "Brats17_TCIA_AAC_1"],
        ["a" * 300],
    ],
)
def test_columns_that_identify_by_their_values(cells: list[str]) -> None:
    assert reveals(cells)


@pytest.mark.parametrize(
    "cells",
    [
        ["2", "3", "4"],
        ["50.1", "60.2", "70.3"],
        ["IDH1 p.R132H", "wildtype", "IDH2"],
        ["G2", "G3", "G4"],
        ["TCGA-GBM", "TCGA-LGG", "TCGA-GBM"],
        ["unknown", "-", ""],
        ["1/2", "3/4"],
    ],
)
def test_columns_that_are_labels_by_their_values(cells: list[str]) -> None:
    assert not reveals(cells)
