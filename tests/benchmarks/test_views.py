from __future__ import annotations

import csv

import pytest

from benchmarks import cohorts, views
from indexer.view import AXES


def runs() -> list[dict[str, str]]:
    with cohorts.PLANES.open() as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def test_every_slice_has_one_plane() -> None:
    numbers = [n for run in runs() for n in range(int(run["first"]), int(run["last"]) + 1)]
    assert numbers == list(range(1, 3065))
    assert {run["plane"] for run in runs()} == set(AXES)


@pytest.mark.real
def test_planes_are_those_of_the_files_in_their_order() -> None:
    with (cohorts.FIGSHARE / "slices.tsv").open() as lines:
        patients = [row["participant_id"] for row in csv.DictReader(lines, delimiter="\t")]
    found = views.planes(patients)
    assert [found[n - 1] for n in (1, 59, 779, 2000, 3063, 3064)] == [
        *("axial", "coronal", "sagittal", "axial", "axial", "coronal")
    ]
    with pytest.raises(SystemExit, match="order"):
        views.planes(patients[::-1])
