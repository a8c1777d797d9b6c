"""What the second stage of the training learns, on samples made by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks import cohorts
from benchmarks.cohorts import BELIEVED, believed, of_low_grade
from indexer.labels import load_tables
from indexer.learning.samples import Samples


def test_a_cohort_of_low_grades_says_so(tmp_path: Path) -> None:
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id\twho_grade\nP-1\t2\nP-2\tn/a\n")
    (table,) = map(of_low_grade, load_tables(path))
    assert table.header == ("participant_id", "who_grade", "grade_group")
    assert [cells for _, cells in table.rows] == [("P-1", "2", "LGG"), ("P-2", "n/a", "LGG")]


def test_of_heads_only_what_shows_a_lesion_is_learnt_and_where() -> None:
    n = 6
    heads = np.array([False, False, True, True, True, False])
    chances = np.array([0.9, BELIEVED, 0.1], np.float32)
    found = np.array([[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], [0, 0, 1, 1]], np.float32)
    samples = Samples(
        pixels=np.arange(n, dtype=np.uint8)[:, None, None],
        outlines=np.zeros((n, 1, 1), np.uint8),
        rows=np.arange(n),
        boxes=np.full((n, 4), np.nan, np.float32),
        outlined=np.zeros(n, bool),
        patients=np.array([f"p{i}" for i in range(n)]),
        targets={"grade_group": np.zeros(n, np.int64)},
        classes={"grade_group": ("HGG", "LGG")},
        labels=({},) * n,
        cohort=heads.astype(np.int64),
        importance=np.ones(n),
    )

    def analyse(pixels: Any) -> Any:
        assert pixels.ravel().tolist() == [2, 3, 4]  # no other slice is looked at
        return SimpleNamespace(weights=chances, boxes=found)

    kept = believed(samples, heads, cast(Any, SimpleNamespace(analyse=analyse)))
    assert kept.patients.tolist() == ["p0", "p1", "p2", "p5"]
    np.testing.assert_array_equal(kept.boxes[2], found[0])
    assert np.isnan(kept.boxes[[0, 1, 3]]).all()
    assert not kept.outlined.any()  # a guess teaches no outline


def test_a_network_of_another_recipe_stands_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fold-1.safetensors"
    assert not cohorts._held(path, {"epochs": 5})
    path.touch()
    monkeypatch.setattr(cohorts, "load_weights", lambda _: SimpleNamespace(about={"recipe": {"epochs": 5}}))
    assert cohorts._held(path, {"epochs": 5})
    with pytest.raises(SystemExit, match="another recipe"):
        cohorts._held(path, {"epochs": 6})
