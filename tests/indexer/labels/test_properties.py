"""Random tables over random ids, spelled in all ways: what is joined is what was planned, or nothing."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from hypothesis import assume, given
from hypothesis import strategies as st

from indexer.errors import LabelsError
from indexer.labels import join, load_tables
from indexer.labels.table import read_tables
from tests.support.found import Found, found

FRONTS = ["", "P", "sub-", "BraTS2021_", "UCSF-PDGM-", "Patient-", "TCGA-02-", "MR_EGD-", "case "]
VISITS = [["ses-1", "ses-2"], ["Timepoint_1", "Timepoint_2"], ["000", "001"], ["week-000-1", "week-044"]]
TAIL = "[-_ ]?0{0,2}[12]{1,2}([-_]0?[12])?"
SPELLINGS = {
    "as it is": lambda front, number, width: f"{front}{number:0{width}}",
    "case": lambda front, number, width: f"{front}{number:0{width}}".swapcase(),
    "separators": lambda front, number, width: f"{front}{number:0{width}}".replace("-", "_").replace(
        " ", "-"
    ),
    "zeros lost": lambda front, number, width: f"{front}{number}",
    "more zeros": lambda front, number, width: f"{front}{number:06}",
    "number alone": lambda front, number, width: f"{number:0{width}}",
    "bare number": lambda front, number, width: f"{number}",
    "another front": lambda front, number, width: f"X-{front}{number:0{width}}",
}


def text(header: list[str], rows: list[list[str]], delimiter: str) -> str:
    return "\n".join(delimiter.join(row) for row in (header, *rows)) + "\n"


@given(
    front=st.sampled_from(FRONTS),
    numbers=st.lists(st.integers(0, 400), min_size=2, max_size=12, unique=True),
    width=st.integers(1, 5),
    spelling=st.sampled_from(sorted(SPELLINGS)),
    several=st.sampled_from([None, *range(len(VISITS))]),
    delimiter=st.sampled_from(",;\t|"),
    seed=st.integers(0, 10**6),
)
def test_what_is_joined_is_what_was_planned(
    front: str, numbers: list[int], width: int, spelling: str, several: int | None, delimiter: str, seed: int
) -> None:
    assume(several is None or front)  # a visit that is called like a person cannot be told from one
    rng = random.Random(seed)
    spelled = SPELLINGS[spelling]
    persons = {number: f"{front}{number:0{width}}" for number in numbers}
    visits = [] if several is None else VISITS[several]
    sources: list[Found] = []
    planned: dict[tuple[str, str], str] = {}
    rows = []
    for number, person in persons.items():
        for visit in visits or [""]:
            sources.append(found(Path("/data") / person / visit / "t1.nii", person, visit))
            grade = rng.choice(["2", "3", "4", "unknown"])
            planned[person, visit] = "" if grade == "unknown" else grade
            noise = [str(rng.randint(0, 99)), rng.choice(["glioma", "metastasis"])]
            rows.append(
                [str(len(rows)), spelled(front, number, width), *filter(None, [visit]), *noise, grade]
            )
    # patients that are not there
    rows += [
        [str(900 + n), spelled(front, 500 + n, width), *visits[:1], "7", "glioma", "4"]
        for n in range(rng.randint(0, 3))
    ]
    rng.shuffle(rows)
    header = ["", "Subject ID", *(["Session"] if visits else []), "age", "tumour", "grade"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text(text(header, rows, delimiter))
        for tables in (load_tables(path), read_tables(path)):
            labels = join(tables, sources).labels
            got = {key: labels.of_case(*key).get("grade", "") for key in planned}
            assert got == planned


@given(
    persons=st.lists(
        st.from_regex(r"[ab]{0,2}[-_ ]?0{0,2}[12]{1,2}([-_]0?[12])?", fullmatch=True), max_size=8, unique=True
    ),
    cells=st.lists(
        st.from_regex(r"([AaBbx]{0,2}[-_ ]?0{0,2}[12]{1,2}([-_]0?[12])?)?", fullmatch=True), max_size=10
    ),
    header=st.sampled_from(["patient_id", "ID", "x"]),
)
def test_no_two_persons_have_one_row_and_no_person_two(
    persons: list[str], cells: list[str], header: str
) -> None:
    """Among ids made to be mistaken: each row labels one person at most, who could not be another's."""
    sources = [found(Path("/data") / f"{n}" / "t1.nii", person) for n, person in enumerate(persons)]
    rows = [[cell, f"v{n}"] for n, cell in enumerate(cells)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text(text([header, "value"], rows, ";"))
        try:
            joined = join(load_tables(path), sources)
        except LabelsError:
            return
    labelled = {person: joined.labels.of(person).get("value") for person in persons}
    row_of = {f"v{n}": cell.strip() for n, cell in enumerate(cells)}
    taken = [value for value in labelled.values() if value]
    if not joined.patients:
        assert len(taken) == len(set(taken))
    for person, value in labelled.items():
        exact = [v for v, cell in row_of.items() if cell == person]
        if value and exact:
            assert value in exact  # an exact row is never passed over for another
        if value and row_of[value] in persons:
            assert row_of[value] == person
