"""Where a similarity comes from: what each cell of a slice adds to a cosine."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from indexer.learning.backbone import FEATURES, EfficientNetLite0, scaled
from indexer.learning.looks import frames, frames_again, known_or_proposed, looked_at
from indexer.learning.network import INPUT, VIEW, RetrievalNetwork

GRID = 40
"""Cells of an explanation along each side of the slice: as fine as those of the least region."""


@torch.inference_mode()
def explain(
    network: RetrievalNetwork,
    images: NDArray[np.uint8],
    directions: NDArray[np.float32],
    boxes: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How much each cell of slices contributes to the cosine of their embeddings with other vectors.

    With the attention and the lengths as they are, the embedding of
    :func:`indexer.learning.looks.analyse` is affine in the features of each cell, so the cosine is a
    sum over the cells of both looks, and a rest that no cell decides. This is class activation mapping
    (Zhou et al., CVPR 2016) with the other vector as the class.

    Parameters
    ----------
    network : RetrievalNetwork
        In evaluation mode.
    images : ndarray of uint8, shape (n, 320, 320)
    directions : ndarray of float32, shape (n, dimension)
        Unit vectors: embeddings of what the slices are compared with.
    boxes : ndarray of float32, shape (n, 4), optional
        As for :func:`indexer.learning.looks.analyse`.

    Returns
    -------
    maps : ndarray of float32, shape (n, 40, 40)
        Contributions, of either sign. What the region look sees is laid where the region is.
    rests : ndarray of float32, shape (n,)
        What the sum of the map lacks to the cosine: the same for every image but for the lengths.
    """
    x, towards = scaled(images), torch.from_numpy(directions)
    halved = nn.functional.avg_pool2d(x, INPUT // VIEW)
    frame = frames(torch.from_numpy(known_or_proposed(boxes, network(halved)[1].sigmoid())))
    whole, cells, rest = _shares(network, halved, towards)
    region, finer, rest_finer = _shares(network, looked_at(x, frame), towards)
    finer = spread(finer, frame)
    if boxes is not None and (given := torch.from_numpy(np.isfinite(boxes[:, 0]))).any():
        for again in frames_again(frame[given]):
            look, its_cells, its_rest = _shares(network, looked_at(x[given], again), towards[given])
            region[given] += look
            finer[given] += spread(its_cells, again)
            rest_finer[given] += its_rest
    length = region.norm(dim=1)
    region, rest_finer, finer = region / length[:, None], rest_finer / length, finer / length[:, None, None]
    length = (whole + region).norm(dim=1)
    maps = (spread(cells, torch.eye(2, 3).expand_as(frame)) + finer) / length[:, None, None]
    return maps.numpy(), ((rest + rest_finer) / length).numpy()


def _shares(network: RetrievalNetwork, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of one look; what each cell adds to their products with directions; the rest of these."""
    levels = network.backbone.pyramid(x)
    features = network.backbone.head(levels[-1])
    embeddings, lesion = network.heads(*levels)
    attention = nn.functional.max_pool2d(lesion.sigmoid(), 4) + 1e-3
    attention = attention / attention.sum((1, 2), keepdim=True)
    norm = network.norm
    assert norm.running_mean is not None  # it would be for a layer without statistics of its own
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    towards = (directions * scale @ network.projection.weight).reshape(-1, 2, FEATURES)
    mean, attended = torch.einsum("nchw,npc->pnhw", features, towards)
    pooled = torch.cat([features.mean((2, 3)), (features * attention[:, None]).sum((2, 3))], 1)
    length = norm(network.projection(pooled)).norm(dim=1)
    shares = mean / mean[0].numel() + attended * attention
    rest = directions @ (norm.bias - norm.running_mean * scale)
    return embeddings, shares / length[:, None, None], rest / length


@torch.inference_mode()
def explain_mean(
    network: EfficientNetLite0, images: NDArray[np.uint8], directions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """As :func:`explain`, for the mean over the plane alone: the maps sum up to the cosines.

    Returns
    -------
    ndarray of float32, shape (n, side / 32, side / 32)
    """
    features = network.features(scaled(images))
    mean = features.mean((2, 3))
    shares = torch.einsum("nchw,nc->nhw", features, torch.from_numpy(directions)) / features[0, 0].numel()
    maps: NDArray[np.float32] = (shares / mean.norm(dim=1)[:, None, None]).numpy()
    return maps


def spread(cells: Tensor, theta: Tensor, side: int = GRID) -> Tensor:
    """Values of a view's cells, laid over the image that the view is of; their sum stays.

    Parameters
    ----------
    cells : Tensor, shape (n, h, w)
    theta : Tensor, shape (n, 2, 3)
        Affine maps as of :func:`indexer.learning.looks.frames`; those that mirror are of a negative scale.
    side : int
        Cells of the image along each side.

    Returns
    -------
    Tensor, shape (n, side, side)
        Each value is spread as a tent around the middle of its cell, which falls to nothing at the
        middles of the next ones: so the image is as smooth as if one interpolated between the cells.
        What lies beyond the image falls to its nearest cell.
    """
    edges = torch.arange(side + 1.0)
    edges[0], edges[-1] = -torch.inf, torch.inf

    def overlap(axis: int) -> Tensor:
        """Shares of the view's columns (axis 0) or rows (1) in those of the image, (n, count, side)."""
        count = cells.shape[2 - axis]
        scale = theta[:, axis, axis, None, None] * side / count  # a cell of the view, in those of the image
        middles = (torch.arange(count) + 0.5 - count / 2)[:, None] * scale
        middles = middles + (theta[:, axis, 2, None, None] + 1) / 2 * side
        u = ((edges - middles) / scale.abs()).clamp(-1, 1)
        below = 0.5 + u - u * u.abs() / 2  # the tent's area up to u
        return below.diff(dim=2)

    return torch.einsum("nij,nia,njb->nab", cells, overlap(1), overlap(0))
