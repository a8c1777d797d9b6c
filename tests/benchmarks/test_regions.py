"""Hits of lesions, on maps made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import regions
from indexer.learning.samples import Samples


def test_a_hit_is_a_highest_cell_that_is_outlined() -> None:
    maps = np.zeros((3, 2, 2), np.float32)
    maps[:, 0, 1] = 0.4
    maps[2, 1, 0] = 0.9
    outlined = np.zeros((3, 4, 4), np.float32)
    outlined[0, 0, 2] = 1  # a quarter of the cell
    outlined[1, 0, 2] = 0.9
    outlined[2, 2:, :2] = 1
    assert regions.hit(maps, outlined).tolist() == [True, False, True]


def test_a_scan_without_a_lesion_shows_one_less_than_nearly_every_scan_with_one() -> None:
    flat, stacks = regions.SLICES.index("figshare/images"), regions.SLICES.index("tcga-lgg")
    # patient, cohort, fold, brightness (which the network takes for a lesion), whether it is outlined
    slices = [
        ("a", flat, "1", 90, True),
        ("a", flat, "1", 50, True),  # each flat image by itself
        ("b", stacks, "1", 10, True),  # of a stack the plane that shows most
        ("b", stacks, "1", 80, True),
        ("b", stacks, "1", 20, False),
        ("c", stacks, "1", 70, False),
        ("c", stacks, "1", 60, True),
        ("d", stacks, "2", 1, True),  # of this fold there is no network
    ]
    patients, cohort, folds, brightness, shown = zip(*slices, strict=True)
    samples = Samples(
        pixels=np.array(brightness, np.uint8)[:, None, None],
        outlines=np.zeros((len(slices), 1, 1), np.uint8),
        rows=np.arange(len(slices)),
        boxes=np.where(np.array(shown)[:, None], [0.0, 0, 1, 1], np.nan).astype(np.float32),
        outlined=np.ones(len(slices), bool),
        patients=np.array(patients),
        targets={},
        classes={},
        labels=tuple({"fold": fold} for fold in folds),
        cohort=np.array(cohort),
        importance=np.ones(len(slices)),
    )

    def analyse(images: NDArray[np.uint8]) -> Any:
        return SimpleNamespace(weights=images[:, 0, 0] / np.float32(100))

    network = cast(Any, SimpleNamespace(analyse=analyse))
    found = regions.least_lesion(samples, {"1": network})
    assert found["least"] == pytest.approx(np.quantile([0.9, 0.5, 0.8, 0.6], regions.LEAST))
    assert (found["scans"], found["without"], found["of these nothing found"]) == (4, 2, 0.5)
