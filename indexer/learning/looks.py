"""How the networks look at slices: at the whole, and at the region that they propose or are told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from indexer.components import components
from indexer.learning.backbone import ARCHITECTURE, STAGES, scaled
from indexer.learning.network import (
    CELL,
    COMPOSITE_STAGES,
    COMPOSITE_VIEW,
    INPUT,
    LATERAL,
    TISSUE_CELL,
    TISSUE_LATERAL,
    TISSUES,
    VIEW,
    CompositeNetwork,
    RetrievalNetwork,
)
from indexer.sequences import STANDARD

CONTEXT = 1.6
"""Side of a region's square over the longer side of its box, as the preprocessing crops regions."""

LEAST = 1 / 8
"""Least side of a region's square, as a share of the slice."""

SHARE = 0.5
"""The proposed region is where the lesion map exceeds this share of its maximum, around the maximum."""

LOOKS = ((0, False, 0.8), (1, False, 1.0), (2, True, 1.25), (3, True, 1.0))
"""How a region of a composite is looked at: quarters of a turn, mirrored or not, and the side of the square
over that of the region's. What the network embeds differs by these, though it has learnt that they do not
matter; the mean does less (docs/evaluation.md)."""

LOOKS_AGAIN = ((False, 0.8), (True, 1.0), (True, 1.25))
"""How a region that is given is looked at again: mirrored or not, and the side of the square over that of the
region's. Planes with an outline are few; one that is proposed is looked at once."""

STATISTICS = 2 * (STAGES[2][-1] + STAGES[4][-1])
"""Mean and deviation of each channel of the two finer levels of the pyramid."""

TOP = 4
"""Cells of the lesion map whose mean probability is the slice's weight."""


def architecture(network: RetrievalNetwork, composite: CompositeNetwork | None = None) -> str:
    """All that decides an encoder's vectors besides the weights, for its version."""
    how = f"{LATERAL} lateral, {CELL}, {INPUT} seen at {VIEW}, {CONTEXT}, {LEAST}, {SHARE}, {TOP}"
    how += f", given regions again {LOOKS_AGAIN}"
    text = f"{ARCHITECTURE}, {network.dimension} of mean and lesion, {how}"
    if composite is not None:
        text += f", {composite.channels} together at {COMPOSITE_VIEW} of {VIEW}, {COMPOSITE_STAGES} stages"
        if composite.segments:
            text += f", {TISSUES} at a {TISSUE_CELL}th by {TISSUE_LATERAL}, proposed by them"
            text += f", seen {LOOKS}"
        if composite.standardised:
            text += f", {STANDARD} deviations"
    return text


@torch.inference_mode()
def analyse(
    network: RetrievalNetwork, images: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], ...]:
    """Look at slices and at a region of each; the embedding is the unit sum of both looks.

    A region that is given is looked at several times (:data:`LOOKS_AGAIN`), and their unit sum is the second
    look.

    Parameters
    ----------
    network : RetrievalNetwork
        In evaluation mode.
    images : ndarray of uint8, shape (n, 320, 320)
    boxes : ndarray of float32, shape (n, 4), optional
        Where the lesion is: x0, y0, x1, y1 as shares of the side. Rows that are NaN, and all without
        it, are proposed by the network.

    Returns
    -------
    embeddings : ndarray of float32, shape (n, dimension)
    weights : ndarray of float32, shape (n,)
        Chance that the slice shows a lesion at all, as the network sees it.
    maps : ndarray of float32, shape (n, 20, 20)
        Chance of a lesion in each cell of the slice.
    boxes : ndarray of float32, shape (n, 4)
        The boxes that were given; of the others, what the closer look shows of those that were proposed.
    statistics : ndarray of float32, shape (n, 304 = STATISTICS)
        Mean and deviation of each channel of the two finer levels of the pyramid, for
        :mod:`indexer.learning.strangeness`.
    """
    x = scaled(images)
    levels = network.backbone.pyramid(nn.functional.avg_pool2d(x, INPUT // VIEW))
    whole, logits = network.heads(*levels)
    maps = logits.sigmoid()
    theta = frames(torch.from_numpy(known_or_proposed(boxes, maps)))
    region, closer = network(looked_at(x, theta))
    if boxes is not None and (given := torch.from_numpy(np.isfinite(boxes[:, 0]))).any():
        again = [network(looked_at(x[given], frame))[0] for frame in frames_again(theta[given])]
        region[given] = nn.functional.normalize(torch.stack([region[given], *again]).sum(0))
    where = _within(proposed(closer.sigmoid().numpy()), theta.numpy())
    if boxes is not None:
        where = np.where(np.isfinite(boxes), boxes, where).astype(np.float32)
    embeddings = nn.functional.normalize(whole + region)
    weights = maps.flatten(1).topk(TOP).values.mean(1)
    planes = [level.flatten(2) for level in levels[:2]]
    statistics = torch.cat([part for plane in planes for part in (plane.mean(2), plane.std(2))], 1)
    return embeddings.numpy(), weights.numpy(), maps.numpy(), where, statistics.numpy()


@torch.inference_mode()
def compose(
    network: RetrievalNetwork,
    composite: CompositeNetwork,
    images: NDArray[np.uint8],
    leading: Sequence[int],
    boxes: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Look at a region of several sequences at once.

    A network with a tissue head looks several times, as :data:`LOOKS` says, and the embedding is the unit
    sum; one of an earlier version looks once.

    Parameters
    ----------
    network : RetrievalNetwork
        Proposes the region where the composite network has no tissue head; in evaluation mode.
    composite : CompositeNetwork
        In evaluation mode.
    images : ndarray of uint8, shape (n, channels, 160, 160)
        A sequence that there is none of is 0 everywhere.
    leading : sequence of int
        All channels; the first that there is proposes the region.
    boxes : ndarray of float32, shape (n, 4), optional
        As for :func:`analyse`.

    Returns
    -------
    embeddings : ndarray of float32, shape (n, dimension)
    weights : ndarray of float32, shape (n,)
        Chance that the slice shows a lesion at all.
    """
    x, there = _together(images)
    if composite.segments:
        maps = 1 - _tissues(composite, x, there, None)[:, 0]
    else:
        order = torch.tensor(leading)
        lead = order[there[:, order].int().argmax(1)]
        maps = network(x[torch.arange(len(x)), lead][:, None])[1].sigmoid()
    theta = frames(torch.from_numpy(known_or_proposed(boxes, maps)))
    looks = [
        composite(looked_at(x, torch.cat([theta[:, :, :2] @ way, theta[:, :, 2:]], 2), COMPOSITE_VIEW), there)
        for way in (_ways() if composite.segments else torch.eye(2)[None])
    ]
    highest = maps.flatten(1).topk(round(TOP * maps[0].numel() / (VIEW // CELL) ** 2)).values
    return nn.functional.normalize(torch.stack(looks).sum(0)).numpy(), highest.mean(1).numpy()


def _ways() -> Tensor:
    """`LOOKS` as maps from a view to the square, shape (looks, 2, 2)."""
    turn, mirror = torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.diag(torch.tensor([-1.0, 1.0]))
    ways = []
    for quarters, mirrored, side in LOOKS:
        way = torch.linalg.matrix_power(turn, quarters)
        ways.append(side * (way @ mirror if mirrored else way))
    return torch.stack(ways)


@torch.inference_mode()
def segment(
    composite: CompositeNetwork, images: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Look at several sequences at once for tissues: at the whole, and closer at a region.

    Parameters
    ----------
    composite : CompositeNetwork
        In evaluation mode, with a tissue head.
    images, boxes
        As for :func:`compose`.

    Returns
    -------
    ndarray of float32, shape (n, tissues, 80, 80)
        Chance of each of `TISSUES` in each cell of the image.
    """
    x, there = _together(images)
    whole = _tissues(composite, x, there, None)
    theta = frames(torch.from_numpy(known_or_proposed(boxes, 1 - whole[:, 0])))
    close = _tissues(composite, x, there, theta)
    side = VIEW // TISSUE_CELL
    # where in the closer look the cells of the image are
    scale = 1 / theta[:, 0, 0]
    back = torch.cat(
        [torch.diag_embed(scale[:, None].expand(-1, 2)), -theta[:, :, 2:] * scale[:, None, None]], 2
    )
    grid = nn.functional.affine_grid(back, [len(x), 1, side, side], align_corners=False)
    closer = nn.functional.grid_sample(close, grid, align_corners=False)
    whole = nn.functional.interpolate(whole, size=(side, side), mode="bilinear")
    covered = (grid.abs() <= 1).all(-1)[:, None]
    return torch.where(covered, closer, whole)[:, 1:].numpy()


def _together(images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Composites as the network takes them, and which of their channels there are."""
    return torch.from_numpy(images).float().div_(127.5).sub_(1), torch.from_numpy(images.any((2, 3)))


def _tissues(composite: CompositeNetwork, x: Tensor, there: Tensor, theta: Tensor | None) -> Tensor:
    """Chances in each cell of a view, the whole without a frame."""
    if theta is None:
        theta = torch.eye(2, 3).expand(len(x), 2, 3)
    return composite.tissues(looked_at(x, theta, COMPOSITE_VIEW), there).softmax(1)


def known_or_proposed(boxes: NDArray[np.float32] | None, maps: Tensor) -> NDArray[np.float32]:
    """The boxes to look at closer: those that are given and not NaN, else what lesion maps propose."""
    where = proposed(maps.numpy())
    return where if boxes is None else np.where(np.isfinite(boxes), boxes, where).astype(np.float32)


def proposed(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """The box around the connected part of each lesion map that holds its maximum.

    Parameters
    ----------
    maps : ndarray of float32, shape (n, h, w)
        Probabilities.

    Returns
    -------
    ndarray of float32, shape (n, 4)
        x0, y0, x1, y1 as shares of the side. The border is where the map, linear between the
        middles of its cells, falls below half of its maximum.
    """
    finer = nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], scale_factor=4.0, mode="bilinear", align_corners=False
    )[:, 0].numpy()
    n, height, width = finer.shape
    highest = finer.reshape(n, -1).argmax(1)
    parts = components(finer >= SHARE * finer.max((1, 2), keepdims=True), axes=2)
    part = parts == parts.reshape(n, -1)[np.arange(n), highest][:, None, None]
    sides = []
    for across, length in ((1, width), (2, height)):
        line = part.any(across)
        sides.append((line.argmax(1) / length, (length - line[:, ::-1].argmax(1)) / length))
    (x0, x1), (y0, y1) = sides
    return np.stack([x0, y0, x1, y1], 1).astype(np.float32)


def _within(boxes: NDArray[np.float32], theta: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boxes in views as boxes in the images, of which they show what the frames say."""
    width, middle = theta[:, 0, :1], theta[:, :, 2]
    found = ((boxes * 2 - 1) * width + np.tile(middle, 2) + 1) / 2
    return np.asarray(found.clip(0, 1), np.float32)


def frames(boxes: Tensor) -> Tensor:
    """The square with context around boxes, as affine maps from a view to the image.

    Parameters
    ----------
    boxes : Tensor, shape (n, 4)
        x0, y0, x1, y1 as shares of the side.

    Returns
    -------
    Tensor, shape (n, 2, 3)
        As :func:`torch.nn.functional.affine_grid` takes them. A square may reach over the image.
    """
    size = ((boxes[:, 2:] - boxes[:, :2]).amax(1) * CONTEXT).clamp(LEAST, 1)
    centre = boxes[:, :2] + boxes[:, 2:] - 1
    return torch.cat([torch.diag_embed(size[:, None].expand(-1, 2)), centre[:, :, None]], 2)


def frames_again(theta: Tensor) -> list[Tensor]:
    """Frames of the further looks at regions that are given, as :data:`LOOKS_AGAIN` has them."""
    sides = [torch.tensor([-side if mirrored else side, side]) for mirrored, side in LOOKS_AGAIN]
    return [torch.cat([theta[:, :, :2] * side, theta[:, :, 2:]], 2) for side in sides]


def looked_at(images: Tensor, theta: Tensor, side: int = VIEW, empty: float = -1.0) -> Tensor:
    """Views of images, bilinear.

    Parameters
    ----------
    images : Tensor, shape (n, channels, h, w)
    theta : Tensor, shape (n, 2, 3)
        Affine maps as of :func:`frames`.
    side : int
        Of the views.
    empty : float
        What lies beyond the image.
    """
    grid = nn.functional.affine_grid(theta, [len(images), 1, side, side], align_corners=False)
    return nn.functional.grid_sample(images - empty, grid, align_corners=False) + empty
