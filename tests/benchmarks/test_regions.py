"""Hits of lesions, on maps made by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import regions
from indexer import readers
from indexer.learning.samples import Samples
from tests.support.images import write_nifti


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
    shown = {f"P-{n}": [n / 1000] for n in range(1, 1000)}
    free = {"P-1": [0.002, 0.7], "P-2": [0.7]}
    found = regions.least_lesion({"flat images": (shown, {}), "a stack": (shown, free)})
    for part in found.values():
        assert part["least"] == pytest.approx(0.012)  # twelve of a thousand lie no higher, of 12.5 that may
        assert part["with"] == 999
    assert found["flat images"]["of these nothing found"] is None
    assert (found["a stack"]["without"], found["a stack"]["of these nothing found"]) == (2, 0.25)

    def least(patients: int, **more: list[float]) -> Any:
        some = dict(list(shown.items())[:patients]) | more
        return regions.least_lesion({"t2": (some, {})}).get("t2", {}).get("least")

    assert least(78) is None, "too few to place so rare a chance"
    assert least(79) == least(150) == 0.001
    assert least(159) == 0.002
    assert least(79, **{"P-1": [0.001, 0.9], "P-2": [0.001, 0.9]}) == 0.001, "patients count, not their scans"
    assert least(79, **{"P-1": [0.001, 0.9]}) == 0.002


def bright(images: NDArray[np.uint8]) -> Any:
    """Takes brightness for a lesion."""
    return SimpleNamespace(weights=images.max(axis=(1, 2)) / np.float32(255))


def test_flat_images_are_asked_of_the_network_that_has_not_seen_them() -> None:
    flat, stack = regions.SLICES.index("figshare/images"), regions.SLICES.index("tcga-lgg")
    # cohort, fold, brightness, whether it is outlined
    slices = [(flat, "1", 90, True), (flat, "1", 51, True), (stack, "1", 10, True), (flat, "2", 1, True)]
    cohort, folds, brightness, shown = zip(*slices, strict=True)
    samples = Samples(
        pixels=np.array(brightness, np.uint8)[:, None, None],
        outlines=np.zeros((len(slices), 1, 1), np.uint8),
        rows=np.arange(len(slices)),
        boxes=np.where(np.array(shown)[:, None], [0.0, 0, 1, 1], np.nan).astype(np.float32),
        outlined=np.ones(len(slices), bool),
        patients=np.array(["a", "b", "c", "d"]),
        targets={},
        classes={},
        labels=tuple({"fold": fold} for fold in folds),
        cohort=np.array(cohort),
        importance=np.ones(len(slices)),
    )
    shown, free = regions.of_flat_images(samples, {"1": cast(Any, SimpleNamespace(analyse=bright))})
    assert shown == {"a": [pytest.approx(90 / 255)], "b": [pytest.approx(0.2)]}
    assert not free


def test_of_a_stack_the_planes_without_a_lesion_are_asked_by_themselves(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).uniform(60, 100, (16, 16, 20)).astype(np.float32)
    volume[4:8, 4:8, :6] = 200
    for patient, sequences in (("P-1", ("flair",)), ("P-2", ("flair", "t1")), ("P-3", ("flair",))):
        for sequence in sequences:
            write_nifti(tmp_path / patient / f"{patient}_{sequence}.nii.gz", volume)
        write_nifti(tmp_path / patient / f"{patient}_seg.nii.gz", (volume == 200).astype(np.float32))
    (tmp_path / "participants.tsv").write_text("participant_id\tfold\nP-1\t1\nP-2\t1\nP-3\t2\n")
    network = cast(Any, SimpleNamespace(analyse=bright, size=32))
    found = regions.of_stacks({"1": network}, {tmp_path: readers.read})
    asked = {name: [len(part) for part in parts] for name, parts in found.items()}
    assert asked == {"a stack": [2, 2], "flair": [2, 2], "t1": [1, 1], "flair + t1": [1, 1]}
    assert len(found["a stack"][0]["P-2"]) == 2
    for shown, free in found.values():
        assert min(map(min, shown.values())) == 1  # the brightest of the scan is the lesion
        assert max(map(max, free.values())) < 0.6


def test_foci_are_counted_across_planes() -> None:
    outlined = np.zeros((6, 10, 10), bool)
    outlined[1:4, 1:4, 1:4] = True
    outlined[1:4, 6:9, 6:9] = True  # a second focus, which is not found
    chance = np.zeros(outlined.shape, np.float32)
    chance[2:5, 1:4, 1:4] = 0.9  # two of its three planes
    chance[5, 8:, :2] = 0.9  # beside both
    dice, hit, touches = regions.by_focus(chance, outlined)
    assert hit == [True, False]
    assert touches == [True, False]
    assert dice == pytest.approx(2 * 18 / (54 + 27 + 4))
