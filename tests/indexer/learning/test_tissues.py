"""The tissue head: what its outlines say, its loss by hand, its views, and what comes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from indexer.learning import augmentation, looks, pack, tasks, training
from indexer.learning.cohort import CORE, LESION, TISSUES
from indexer.learning.network import COMPOSITE_VIEW, CompositeNetwork
from indexer.learning.recipe import Recipe
from indexer.learning.samples import Samples
from indexer.scan import Scan
from indexer.sequences import CHANNELS

SIDE = 32


def outlined_scan(region: NDArray[np.uint8]) -> list[Scan | None]:
    """A bright square on black that fills the image, outlined on its one plane."""
    voxels = np.full((SIDE, SIDE, 1), 100.0)
    voxels[::2] = 120
    voxels[0], voxels[-1], voxels[:, 0], voxels[:, -1] = 0, 0, 0, 0
    scan = Scan(voxels, Path("p_flair.nii.gz"), (1.0, 1.0, 1.0), np.eye(4), "flair", region=region)
    return [scan if channel == "flair" else None for channel in CHANNELS]


def maps_of(region: NDArray[np.uint8], outlines: str) -> NDArray[np.float64]:
    """Cells, as displayed, of two voxels a side; the frame of zeros is cropped away."""
    pixels, maps, boxes, known = pack.composites_of(outlined_scan(region), SIDE - 2, outlines)
    assert pixels.shape == (1, 4, SIDE - 2, SIDE - 2)
    assert known
    assert np.isfinite(boxes).all() == bool(region.any())
    return maps[0] / 255


def test_outlines_say_what_a_cell_may_be() -> None:
    region = np.zeros((SIDE, SIDE, 1), np.uint8)
    region[7:11, 7:11] = 1
    region[11:15, 7:11] = 2
    region[7:11, 11:15] = 4
    shown = np.zeros((4, 15, 15))
    # the display turns both axes, and rows are y
    for tissue, code in enumerate((1, 2, 4), 1):
        plane = region[::-1, ::-1, 0].T[1:-1, 1:-1] == code
        shown[tissue] = plane.reshape(15, 2, 15, 2).mean((1, 3))
    shown[0] = 1 - shown[1:].sum(0)
    np.testing.assert_allclose(maps_of(region, TISSUES), shown, atol=0.01)
    lesion = 1 - shown[0]
    np.testing.assert_allclose(maps_of(region, LESION), [shown[0], *[lesion] * 3], atol=0.01)
    core = maps_of(region, CORE)
    np.testing.assert_allclose(core[[0, 1, 3]], [shown[0], lesion, lesion], atol=0.01)
    oedema = core[2] > 0.5  # where the core is not, but near it
    rows, columns = np.nonzero(lesion > 0)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert not (oedema & (lesion > 0.5)).any()
    assert oedema.sum() == 4 * height * width - (lesion > 0.5).sum()


def test_nothing_outlined_is_healthy_throughout() -> None:
    maps = maps_of(np.zeros((SIDE, SIDE, 1), np.uint8), LESION)
    assert (maps[0] == 1).all()
    assert not maps[1:].any()


def test_the_loss_is_the_chance_of_what_is_allowed() -> None:
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits = p.log().view(1, 4, 1, 1)

    def loss(*maps: float) -> float:
        return float(tasks.tissue_loss(logits, torch.tensor(maps).view(1, 4, 1, 1)))

    assert loss(1, 0, 0, 0) == pytest.approx(-np.log(0.1), abs=1e-5)
    assert loss(0, 1, 0, 0) == pytest.approx(-np.log(0.2) + 1 - 2 * 0.9 / 1.9, abs=1e-5)
    assert loss(0, 1, 1, 1) == pytest.approx(-np.log(0.9) + 1 - 2 * 0.9 / 1.9, abs=1e-5)
    # beyond a core's outline oedema is as right as health, and no lesion is there to be overlapped
    assert loss(1, 0, 1, 0) == pytest.approx(-np.log(0.4), abs=1e-5)


def test_views_lie_between_the_region_and_all() -> None:
    boxes = torch.tensor([[0.6, 0.6, 0.8, 0.8], [torch.nan] * 4]).repeat(500, 1)
    theta = augmentation.tissue_frames(boxes, torch.Generator().manual_seed(0))
    width = theta[:, :, :2].det().abs().sqrt()
    known, free = width[::2], width[1::2]
    least = 0.2 * looks.CONTEXT / augmentation.REGION
    for found, smallest in ((known, least), (free, augmentation.PART[0])):
        assert found.min() >= smallest / augmentation.WHOLE - 1e-4
        assert found.max() <= augmentation.WHOLE + 1e-4
    assert (known > 0.85).float().mean() > augmentation.WHOLES
    # a small view holds the middle of the region
    small = theta[::2][known < 0.3]
    away = (small[:, :, 2] - 0.4).abs().amax(1) / known[known < 0.3]
    assert away.max() < 1


def spots(n: int, seed: int) -> Samples:
    """Composites of four sequences with a disc that only the second shows, as enhancement."""
    dice = np.random.default_rng(seed)
    pixels = dice.integers(90, 130, (n, 4, 64, 64)).astype(np.uint8)
    outlines = np.zeros((n, 4, 32, 32), np.uint8)
    outlines[:, 0] = 255
    boxes = np.empty((n, 4), np.float32)
    for i in range(n):
        y, x = dice.integers(4, 36, 2)
        pixels[i, 1, y : y + 20, x : x + 20] = 250
        rows, columns = (slice(round(at / 2), round(at / 2) + 10) for at in (y, x))
        outlines[i, 0, rows, columns], outlines[i, 3, rows, columns] = 0, 255
        boxes[i] = np.array([x, y, x + 20, y + 20]) / 64
    target = np.arange(n, dtype=np.int64) % 2
    return Samples(
        pixels=pixels,
        outlines=outlines,
        rows=np.arange(n),
        boxes=boxes,
        outlined=np.ones(n, bool),
        patients=np.array([f"P-{i}" for i in range(n)]),
        targets={"kind": np.where(np.arange(n) < n // 2, target, -1)},
        classes={"kind": ("a", "b")},
        labels=({},) * n,
        cohort=np.zeros(n, np.int64),
        importance=np.ones(n),
    )


def test_a_training_learns_labels_and_tissues_and_half_of_the_draws_has_no_label() -> None:
    samples = spots(8, 0)
    task = tasks.CompositeTask(samples, Recipe(epochs=1, batch=8, draws=8, dimension=16))
    assert task.weights == {"labels": 1.0, "tissues": 1.0}
    assert task.shares()[4:].sum() == pytest.approx(tasks.UNLABELLED)
    assert training.train(task).segments


@pytest.mark.slow
def test_tissues_are_learnt_and_found_where_they_are() -> None:
    recipe = Recipe(epochs=6, batch=16, draws=160, dimension=16, dropout=0, depth=0, rate=2e-3, tissues=2)
    net = training.train(tasks.CompositeTask(spots(64, 0), recipe))
    asked = spots(16, 1)
    images = asked.pixels.repeat(5, 2).repeat(5, 3)[:, :, ::2, ::2]  # 160 a side
    maps = looks.segment(net, images)
    assert maps.shape == (16, 3, 80, 80)
    truth = asked.outlines[:, 3].repeat(5, 1).repeat(5, 2)[:, ::2, ::2] > 127
    found = maps[:, 2] > 0.5
    overlap = 2 * (found & truth).sum((1, 2)) / (found.sum((1, 2)) + truth.sum((1, 2)))
    assert overlap.mean() > 0.8


@torch.inference_mode()
def test_a_closer_look_is_laid_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network that says what it sees of the first channel."""
    net = CompositeNetwork(4).eval()

    def seen(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        p = torch.nn.functional.avg_pool2d((x[:, :1] + 1) / 2, 2).clamp(1e-4, 1 - 1e-4)
        return torch.cat([1 - p, *[p / 3] * 3], 1).log()

    monkeypatch.setattr(net, "tissues", seen)
    image = np.zeros((1, 4, 160, 160), np.uint8)
    image[0, 0, 40:60, 90:130] = 255
    maps = looks.segment(net, image)
    np.testing.assert_allclose(maps[0, 0, 22:28, 47:63], 1 / 3, atol=0.02)
    maps[0, :, 18:32, 43:67] = 0
    assert maps.max() < 0.01
    # what is given is looked at, whatever is seen elsewhere
    box = np.array([[0.1, 0.1, 0.2, 0.2]], np.float32)
    assert looks.segment(net, image, box)[0, 0, 25, 55] == pytest.approx(1 / 3, abs=0.02)


def test_a_network_without_the_head_is_made_as_before() -> None:
    net = CompositeNetwork(4, segments=False)
    assert not any(name.startswith(("tissue", "lateral")) for name in net.state_dict())
    x, there = torch.zeros(2, 4, COMPOSITE_VIEW, COMPOSITE_VIEW), torch.ones(2, 4, dtype=torch.bool)
    assert net.eval()(x, there).shape == (2, net.dimension)
    assert replace(Recipe(), tissues=0.0).tissues == 0
