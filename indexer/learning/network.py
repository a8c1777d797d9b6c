"""What is trained on the backbone: the retrieval network, and the composite network beside it.

:class:`RetrievalNetwork` has two heads: a *lesion head* says where suspicious tissue is, and an
*embedding head* makes a short unit vector of the whole plane and of what the lesion head points at.
:class:`CompositeNetwork` sees several sequences of one region at once. How they are looked with is in
:mod:`indexer.learning.looks`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indexer.learning.backbone import (
    FEATURES,
    LAST,
    STAGES,
    STEM,
    Convolution,
    EfficientNetLite0,
    fused,
    pretrained,
    released,
)
from indexer.sequences import STANDARD

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

COMPOSITE_VIEW = 96
"""Side at which the composite network sees a region: coarse enough to learn from few patients."""

COMPOSITE_STAGES = 5
"""Stages of the backbone that it has; its features are taken at a 16th of the side."""

TISSUES = ("necrosis", "oedema", "enhancement")
"""What a lesion is made of, in the order of the tissue maps."""

TISSUE_CELL = 2
"""Pixels of its view, along each side, that share one value of the tissue maps."""

TISSUE_LATERAL = 32
"""Channels of its tissue head."""


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
    """The backbone's first stages with a stem for several sequences, an embedding head and a tissue head.

    The tissue head joins the features at a 16th, an 8th, a 4th and a half of the side, and the greys.

    Parameters
    ----------
    channels : int
        Sequences, one a channel.
    dimension, dropout, depth
        As in :class:`RetrievalNetwork`.
    segments : bool
        Whether it has a tissue head; those of earlier versions had none.
    standardised : bool
        Whether greys are standard deviations; for those of earlier versions they were not.

    Attributes
    ----------
    standard : Tensor, shape (2,)
        Deviations that the darkest and the brightest grey stand for, if they do.
    """

    def __init__(
        self,
        channels: int,
        dimension: int = DIMENSION,
        dropout: float = 0.0,
        depth: float = 0.0,
        segments: bool = True,
        standardised: bool = True,
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
        self.segments, self.standardised = segments, standardised
        if standardised:
            self.register_buffer("standard", torch.tensor(STANDARD))
        if segments:
            ends = [sum(stage[0] for stage in STAGES[: i + 1]) for i in range(COMPOSITE_STAGES)]
            # the last block before each halving of the side, and the last of all
            self._levels = (ends[0], ends[1], ends[2], ends[4])
            widths = [STAGES[i][-1] for i in (0, 1, 2, 4)]
            self.lateral = nn.ModuleList(Convolution(c, TISSUE_LATERAL, 1, linear=True) for c in widths)
            self.raw = Convolution(2 * channels, TISSUE_LATERAL, 1, linear=True)
            self.tissue = nn.Sequential(
                Convolution(TISSUE_LATERAL, TISSUE_LATERAL, 3), nn.Conv2d(TISSUE_LATERAL, 1 + len(TISSUES), 1)
            )

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
        return self.embedded(self.blocks(self.stem(self._shown(x, there))))

    def both(self, x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` and :meth:`tissues` return, of one look."""
        levels = self._pyramid(x, there)
        return self.embedded(levels[-1]), self._tissues(levels, x, there)

    def tissues(self, x: Tensor, there: Tensor) -> Tensor:
        """Logits of each cell, shape (n, 1 + tissues, side / 2, side / 2): healthy first, then `TISSUES`."""
        return self._tissues(self._pyramid(x, there), x, there)

    def embedded(self, features: Tensor) -> Tensor:
        """Unit vectors of feature maps at a 16th of the side."""
        pooled = self.dropout(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1))
        return nn.functional.normalize(self.norm(self.projection(pooled)))

    def _shown(self, x: Tensor, there: Tensor) -> Tensor:
        share = there / there.sum(1, keepdim=True).clamp(min=1)
        return (x * share[:, :, None, None]).contiguous(memory_format=torch.channels_last)

    def _pyramid(self, x: Tensor, there: Tensor) -> list[Tensor]:
        maps, done = [self.stem(self._shown(x, there))], 0
        for end in self._levels:
            maps.append(self.blocks[done:end](maps[-1]))
            done = end
        return maps[1:]

    def _tissues(self, levels: list[Tensor], x: Tensor, there: Tensor) -> Tensor:
        top_down = self.lateral[-1](levels[-1])
        for lateral, level in zip(reversed(self.lateral[:-1]), reversed(levels[:-1]), strict=True):
            wider = nn.functional.interpolate(top_down, scale_factor=2.0, mode="bilinear")
            top_down = lateral(level) + wider
        shown = there[:, :, None, None].to(x.dtype)
        greys = nn.functional.avg_pool2d((x + 1) * shown, TISSUE_CELL)
        raw = self.raw(torch.cat([greys, shown.expand_as(greys)], 1))
        return self.tissue(top_down + raw)  # type: ignore[no-any-return]

    def fused(self) -> CompositeNetwork:
        """This network, made ready for inference in place: fused, in evaluation mode, channels last."""
        return fused(self)


def from_imagenet(net: RetrievalNetwork) -> None:
    """Put the released ImageNet weights into the backbone."""
    net.backbone.load_state_dict(pretrained(released()).state_dict())


def composite_from_imagenet(net: CompositeNetwork) -> None:
    """Put the released ImageNet weights into stem and blocks; all channels start with the same kernels."""
    start = RetrievalNetwork()
    from_imagenet(start)
    stem = start.backbone.stem.state_dict()
    kernels = stem["conv.weight"].repeat(1, net.channels, 1, 1)
    net.stem.load_state_dict(stem | {"conv.weight": kernels})
    net.blocks.load_state_dict(start.backbone.blocks[: len(net.blocks)].state_dict())
