"""Publishers' tables as shipped, joined to what discovery makes of the folders beside them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from indexer.discovery import discover
from indexer.labels import Joined, find_tables, load_tables
from indexer.labels.values import known

pytestmark = pytest.mark.real

TABLES = Path(__file__).parents[4] / "shared" / "data" / "cohorts" / "19_labels" / "tables"


def planned(truth: Path) -> dict[tuple[str, str, str], set[str]]:
    """What the truth says of a person or visit by column: raw and normal values."""
    with truth.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["debatable"] != "yes"]
    found: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        if row["column"] != "(folder)":
            key = row["person"], row["visit"].rpartition("@")[2], row["column"].strip()
            found.setdefault(key, set()).update((row["value"].strip(), row["normal"]))
    return found


def said(joined: Joined, person: str, visit: str) -> dict[str, str]:
    """The labels of the case that ends like these names."""
    labels = joined.labels
    named = next((v for p, v in labels.visits if p == person and v.endswith(visit)), "")
    return labels.of_case(person, named)


@pytest.mark.parametrize(
    "tree",
    [
        *("01a_brats2018", "01c_brats2020", "02a_brats2021", "03a_brats_gli", "04_ucsf_pdgm", "05_upenn"),
        *(
            "06b_egd_xnat",
            "07_tcia_nbia",
            "12_kaggle_3m",
            "14_bids",
            "17a_mu_glioma",
            "17c_lumiere",
            "18_pacs",
        ),
    ],
)
def test_every_label_of_a_publisher_is_joined(real: Path, tree: str) -> None:
    root = real / "cohorts" / tree
    tables, _ = find_tables(root, root.resolve())
    joined = discover(root, tables).joined
    wrong = []
    for (person, visit, column), values in planned(real / "cohorts" / "truth" / f"{tree}.labels.tsv").items():
        got = said(joined, person, visit).get(re.sub(r"\s+", " ", column), "")
        if (got or "n/a") not in values and known(got or "n/a") not in map(known, values):
            wrong.append((person, visit, column, got))
    assert wrong == []
    assert joined.patients == {}


@pytest.mark.parametrize("name", sorted(path.name for path in TABLES.glob("*")))
def test_spellings_of_one_table(real: Path, name: str) -> None:
    table = real / "cohorts" / "19_labels" / "tables" / name
    joined = discover(real / "cohorts" / "19_labels", load_tables(table)).joined
    grades = {
        p: next((v for c, v in row.items() if "grad" in c.lower()), "")
        for p, row in joined.labels.persons.items()
    }
    usual = dict(zip((f"P00{n}" for n in range(1, 7)), "234423", strict=True))
    expected = {
        "g_hgg.csv": {p: "LGG" if g == "2" else "HGG" for p, g in usual.items()},
        "r_unknown_words.csv": {**dict.fromkeys(usual, ""), "P001": "2"},
        "c_cp1252.csv": dict.fromkeys(usual, ""),
        "o_sessions.tsv": usual | {"P001": ""},  # of two sessions, where the images have one
    }.get(name, usual)
    assert grades == expected


def test_the_tables_of_the_other_data(real: Path) -> None:
    figshare = discover(real / "figshare" / "images", load_tables(real / "figshare" / "slices.tsv"))
    assert len({source.patient_id for source in figshare.sources}) == 233
    assert figshare.joined.labels.of("100360") == {"tumour": "meningioma", "fold": "3"}
    lesions = discover(real / "brats-lesions", load_tables(real / "brats-lesions" / "lesions.tsv"))
    assert len({source.patient_id for source in lesions.sources}) == 293
    volumes = discover(real / "volumes", find_tables(real / "volumes")[0])
    assert volumes.joined.labels.of("TCGA-02-0006")["who_grade"] == "4"
    for found in (figshare, lesions, volumes):
        assert not [note for note in found.joined.notes if "several" in note]
