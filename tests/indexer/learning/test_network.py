"""The retrieval network by hand-worked examples: its parts, its two looks, its proposals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexer.learning import backbone, looks, network
from indexer.learning.looks import CONTEXT
from indexer.learning.network import INPUT, VIEW, RetrievalNetwork, from_imagenet


def slices(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images with large and small structure."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (n, 8, 8), np.uint8).repeat(INPUT // 8, 1).repeat(INPUT // 8, 2)
    return coarse + rng.integers(0, 56, (n, INPUT, INPUT), np.uint8)


@pytest.fixture(scope="module")
def net() -> RetrievalNetwork:
    torch.manual_seed(0)
    net = RetrievalNetwork()
    from_imagenet(net)  # random layers would forget the image
    return net.eval()


# -- layers --------------------------------------------------------------------------------------------


def test_the_pyramid_is_the_backbone_on_its_way() -> None:
    torch.manual_seed(0)
    net = backbone.EfficientNetLite0().eval()
    x = torch.rand(2, 1, 64, 64)
    fine, middle, coarse = net.pyramid(x)
    assert [tuple(level.shape) for level in (fine, middle, coarse)] == [
        (2, 40, 8, 8),
        (2, 112, 4, 4),
        (2, 320, 2, 2),
    ]
    torch.testing.assert_close(net.head(coarse), net.features(x), rtol=0, atol=0)


def test_stochastic_depth_passes_blocks_by_in_training_only() -> None:
    torch.manual_seed(0)
    block = backbone.Block(8, 8, 3, 1, 2)
    x = torch.randn(400, 8, 4, 4)
    block.drop = 0.25
    block.train()
    y = block(x) - x
    passed = (y == 0).flatten(1).all(1)
    assert 0.18 < passed.float().mean() < 0.32
    block.drop = 0.0
    torch.testing.assert_close(y[~passed] * 0.75, (block(x) - x)[~passed], atol=1e-5, rtol=0)
    block.drop = 0.25
    block.eval()
    assert not (block(x) == x).flatten(1).all(1).any()


def test_depth_rises_to_what_is_asked() -> None:
    drops = [block.drop for block in RetrievalNetwork(depth=0.16).backbone.blocks]
    assert drops[0] == 0
    assert drops == sorted(drops)
    assert drops[-1] == pytest.approx(0.15)


# -- one look ------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_one_look_gives_unit_vectors_and_a_map(net: RetrievalNetwork) -> None:
    embeddings, lesion = net(torch.rand(3, 1, 96, 96) * 2 - 1)
    assert embeddings.shape == (3, network.DIMENSION)
    assert lesion.shape == (3, 12, 12)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


@torch.inference_mode()
def test_the_embedding_is_of_what_the_lesion_head_points_at(net: RetrievalNetwork) -> None:
    seen: list[torch.Tensor] = []
    handle = net.projection.register_forward_pre_hook(lambda m, x: seen.append(x[0].clone()))
    last = net.lesion[1]
    held = last.weight.clone(), last.bias.clone()
    try:
        x = torch.rand(1, 1, 96, 96) * 2 - 1
        last.weight.zero_()  # the same everywhere: the mean over the plane
        net(x)
        mean, attended = seen[-1].split(backbone.FEATURES, 1)
        torch.testing.assert_close(attended, mean, atol=1e-5, rtol=1e-4)

        chosen = torch.full((1, 1, 12, 12), -20.0)
        chosen[..., 5, 9] = 20  # one cell, in row 1 and column 2 of the 3 × 3 features
        point = last.register_forward_hook(lambda m, x, y: chosen)
        net(x)
        point.remove()
        features = net.backbone.features(x)
        attended = seen[-1].split(backbone.FEATURES, 1)[1]
        rest = features.sum((2, 3)) - features[..., 1, 2]
        by_hand = (features[..., 1, 2] * 1.001 + rest * 0.001) / (1.001 + 8 * 0.001)
        torch.testing.assert_close(attended, by_hand, atol=1e-4, rtol=1e-3)
    finally:
        handle.remove()
        last.weight.copy_(held[0])
        last.bias.copy_(held[1])


@torch.inference_mode()
def test_fusing_changes_neither_head(net: RetrievalNetwork) -> None:
    x = torch.rand(2, 1, 96, 96) * 2 - 1
    other = RetrievalNetwork()
    other.load_state_dict(net.state_dict())
    fused = other.fused()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    for a, b in zip(fused(x), net(x), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


# -- regions -------------------------------------------------------------------------------------------


def test_the_proposal_is_the_part_around_the_maximum() -> None:
    plane = np.zeros((1, 20, 20), np.float32)
    plane[0, 4:8, 10:16] = 0.9
    plane[0, 14:16, 2:4] = 0.6  # another, fainter one
    # 1 cell is 1/20; between cells the map falls linearly, so half of the height lies on the border
    np.testing.assert_allclose(looks.proposed(plane)[0], [10 / 20, 4 / 20, 16 / 20, 8 / 20], atol=0.5 / 20)
    plane[0, 14:16, 2:4] = 1.0
    np.testing.assert_allclose(looks.proposed(plane)[0], [2 / 20, 14 / 20, 4 / 20, 16 / 20], atol=0.5 / 20)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_any_map_has_a_proposal_inside_the_slice(seed: int) -> None:
    maps = np.random.default_rng(seed).random((3, 20, 20), np.float32)
    maps[1] = maps[1, 0, 0]  # no maximum at all
    boxes = looks.proposed(maps)
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    np.testing.assert_array_equal(boxes[1], [0, 0, 1, 1])


def test_squares_have_context_and_bounds() -> None:
    boxes = torch.tensor([[0.4, 0.45, 0.6, 0.55], [0.0, 0.0, 0.02, 0.01], [0.1, 0.0, 0.9, 1.0]])
    theta = looks.frames(boxes)
    torch.testing.assert_close(theta[0], torch.tensor([[0.2 * CONTEXT, 0, 0], [0, 0.2 * CONTEXT, 0]]))
    torch.testing.assert_close(theta[1, :, :2], torch.eye(2) / 8)  # the least
    torch.testing.assert_close(theta[1, :, 2], torch.tensor([-0.98, -0.99]))  # and not moved inside
    torch.testing.assert_close(theta[2, :, :2], torch.eye(2))  # the most


def test_a_view_is_the_part_of_the_image() -> None:
    images = torch.rand(2, 1, 8, 8)
    whole = looks.looked_at(images, torch.eye(2, 3).expand(2, 2, 3), side=8)
    torch.testing.assert_close(whole, images)
    lower_right = torch.tensor([[[0.5, 0, 0.5], [0, 0.5, 0.5]]]).expand(2, 2, 3)
    torch.testing.assert_close(looks.looked_at(images, lower_right, side=4), images[..., 4:, 4:])
    beside = torch.tensor([[[1.0, 0, 2], [0, 1, 0]]]).expand(2, 2, 3)
    assert (looks.looked_at(images, beside, side=8) == -1).all()


# -- two looks -----------------------------------------------------------------------------------------


def test_the_embedding_is_the_sum_of_both_looks(net: RetrievalNetwork) -> None:
    """Of which the second, where the region is given, is the mean of several: mirrored, nearer, farther."""
    images = slices(2)
    boxes = np.array([[0.25, 0.25, 0.5, 0.5], [np.nan] * 4], np.float32)
    embeddings, weights, maps, looked, _ = looks.analyse(net, images, boxes)
    np.testing.assert_array_equal(looked[0], boxes[0])
    x = torch.from_numpy(images / np.float32(127.5) - 1)[:, None]
    with torch.inference_mode():
        whole, logits = net(x.view(2, 1, VIEW, 2, VIEW, 2).mean((3, 5)))
        own = looks.known_or_proposed(boxes, logits.sigmoid())
        frames = looks.frames(torch.from_numpy(own))
        region, _ = net(looks.looked_at(x, frames))
        several = [region[:1]]
        for mirrored, side in looks.LOOKS_AGAIN:
            frame = frames[:1].clone()
            frame[:, :, :2] *= side
            view = looks.looked_at(x[:1], frame)
            several.append(net(view.flip(3) if mirrored else view)[0])
        mean = torch.stack(several).sum(0)
        region = torch.cat([mean / mean.norm(dim=1), region[1:]])
    by_hand = (whole + region).numpy()
    by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, by_hand, atol=1e-5)
    chance = 1 / (1 + np.exp(-logits.numpy().reshape(2, -1)))
    np.testing.assert_allclose(maps.reshape(2, -1), chance, atol=1e-5)
    np.testing.assert_allclose(weights, np.sort(chance)[:, -4:].mean(1), atol=1e-5)


def test_a_region_that_is_not_given_is_proposed(net: RetrievalNetwork) -> None:
    images = slices(3)
    own, _, maps, boxes, _ = looks.analyse(net, images)
    np.testing.assert_array_equal(boxes, looks.proposed(maps))
    mixed = np.full((3, 4), np.nan, np.float32)
    mixed[1] = [0, 0, 0.3, 0.2]
    embeddings, _, _, looked, _ = looks.analyse(net, images, mixed)
    np.testing.assert_array_equal(looked[[0, 2]], boxes[[0, 2]])
    np.testing.assert_allclose(embeddings[[0, 2]], own[[0, 2]], atol=1e-5)
    assert math.isclose(float(looked[1, 2]), 0.3, abs_tol=1e-6)
    assert np.abs(embeddings[1] - own[1]).max() > 1e-3


def test_a_slice_is_judged_by_itself(net: RetrievalNetwork) -> None:
    images = slices(3)
    together = looks.analyse(net, images)
    for i in range(3):
        for part, alone in zip(together, looks.analyse(net, images[i : i + 1]), strict=True):
            np.testing.assert_allclose(part[i], alone[0], atol=1e-4)
