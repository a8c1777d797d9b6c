"""What there is to learn: from single slices with their outlines, and from composites.

A task has a network and says what the network's losses are on some of its samples;
:func:`indexer.learning.training.train` does the rest. Slices are embedded in three looks: the whole
slice, the region around the outline, and their sum, which is what the index stores. The lesion head
learns the outlines by cross-entropy and overlap (soft Dice).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from indexer.errors import CbirError
from indexer.learning.augmentation import (
    lesion_frames,
    recoloured,
    region_frames,
    tissue_frames,
    whole_frames,
)
from indexer.learning.looks import looked_at, proposed
from indexer.learning.network import (
    CELL,
    COMPOSITE_VIEW,
    TISSUE_CELL,
    TISSUES,
    VIEW,
    CompositeNetwork,
    RetrievalNetwork,
    composite_from_imagenet,
    from_imagenet,
)
from indexer.learning.recipe import Recipe
from indexer.learning.samples import Samples
from indexer.learning.targets import UNKNOWN, ClassVectors

RECOLOURED = 0.4
"""How much views for tissues change in colour, beside those for labels: tissues are told by their greys."""

HIDDEN = 0.25
"""Chance that a composite is learnt without one of its sequences, as a scan may lack any."""

UNLABELLED = 0.4
"""Share of a composite task's draws that goes to outlined composites without any label."""

Network = TypeVar("Network", bound=nn.Module)


class Task(Protocol[Network]):
    """What one network learns from some samples.

    Attributes
    ----------
    samples : Samples
    recipe : Recipe
    weights : dict of str to float
        What each of the losses weighs in their sum.
    """

    samples: Samples
    recipe: Recipe
    weights: dict[str, float]

    def shares(self) -> NDArray[np.float64]:
        """How often each sample is drawn, shape (n,); sums to 1."""
        ...

    def network(self) -> Network:
        """A network with its first weights; torch's generator decides what is random about them."""
        ...

    def losses(
        self,
        net: Network,
        heads: ClassVectors,
        rows: NDArray[np.int64],
        epoch: int,
        generator: Generator,
        device: str,
    ) -> dict[str, Tensor]:
        """The losses, by name, on a batch of samples, after so many epochs."""
        ...


@dataclass
class SliceTask:
    """Labels and outlines of single slices: a :class:`Task`.

    Parameters
    ----------
    samples : Samples
    recipe : Recipe
    start : callable
        Puts the first weights into the network.

    Raises
    ------
    CbirError
        If no sample has a label.
    """

    samples: Samples
    recipe: Recipe
    start: Callable[[RetrievalNetwork], None] = from_imagenet

    def __post_init__(self) -> None:
        if not any((target >= 0).any() for target in self.samples.targets.values()):
            raise CbirError(
                "training", "no image has a label", "check that the labels table names the images"
            )
        self.weights = {"labels": 1.0, "outlines": self.recipe.lesion}
        self._outlines = bool(self.samples.outlined.any())

    def shares(self) -> NDArray[np.float64]:
        """See :meth:`Task.shares`."""
        return self.samples.shares()

    def network(self) -> RetrievalNetwork:
        """See :meth:`Task.network`."""
        net = RetrievalNetwork(self.recipe.dimension, self.recipe.dropout, self.recipe.depth)
        self.start(net)
        return net

    def losses(
        self,
        net: RetrievalNetwork,
        heads: ClassVectors,
        rows: NDArray[np.int64],
        epoch: int,
        generator: Generator,
        device: str,
    ) -> dict[str, Tensor]:
        """Loss of labels and of outlines, each slice seen as a whole and as a region."""
        n, samples = len(rows), self.samples
        images = _shares(samples.pixels[samples.rows[rows]], device)
        halved = nn.functional.avg_pool2d(images, 2)
        boxes = torch.from_numpy(samples.boxes[rows])
        own = self.recipe.own if self._outlines and 3 * epoch >= self.recipe.epochs else 0.0
        if own:
            mine = torch.rand(n, generator=generator) < own
            boxes = torch.where(mine[:, None], proposals(net, halved * 2 - 1), boxes)
        theta = (whole_frames(n, generator).to(device), region_frames(boxes, generator).to(device))
        views = [looked_at(halved, theta[0], empty=0.0), looked_at(images, theta[1], empty=0.0)]
        x = recoloured(torch.cat(views), generator) * 2 - 1
        embeddings, logits = net(x.contiguous(memory_format=torch.channels_last))

        whole, region = embeddings.split(n)
        shown = torch.from_numpy(samples.shown[rows]).to(device)
        targets = {
            head: target.masked_fill(~shown, UNKNOWN)
            for head, target in _targets(samples, rows, device).items()
        }
        both = nn.functional.normalize(whole + region)
        labels = torch.stack([heads(e, targets) for e in (whole, region, both)]).mean()

        masks = _shares(samples.outlines[samples.rows[rows]], device)
        cells = [looked_at(masks, t, 2 * VIEW // CELL, empty=0.0) for t in theta]
        outlines = nn.functional.avg_pool2d(torch.cat(cells), 2)[:, 0]
        known = torch.from_numpy(samples.outlined[rows]).to(device).repeat(2)
        return {"labels": labels, "outlines": outline_loss(logits[known], outlines[known])}


class CompositeTask:
    """Labels and tissues of composites: a :class:`Task`. Those that can show neither are left out.

    Labels are learnt from the region around the lesion; tissues from anything between it and the whole
    slice, where there are outlines.

    Parameters
    ----------
    samples : Samples
        Composites, of :func:`indexer.learning.pack.load_composites`.
    recipe : Recipe

    Raises
    ------
    CbirError
        If no composite has a label.
    """

    weights: dict[str, float]

    def __init__(self, samples: Samples, recipe: Recipe) -> None:
        if not samples.labelled.any():
            raise CbirError(
                "training", "no composite has a label", "check that the labels table names the images"
            )
        outlined = samples.outlined & (samples.outlines.ndim == 4)
        self.samples, self.recipe = samples.chosen(samples.labelled | outlined), recipe
        self.weights = {"labels": 1.0}
        if outlined.any():
            self.weights["tissues"] = recipe.tissues

    def shares(self) -> NDArray[np.float64]:
        """See :meth:`Task.shares`."""
        return self.samples.shares(UNLABELLED)

    def network(self) -> CompositeNetwork:
        """See :meth:`Task.network`."""
        channels, segments = self.samples.pixels.shape[1], "tissues" in self.weights
        settings = self.recipe.dimension, self.recipe.dropout, self.recipe.depth
        net = CompositeNetwork(channels, *settings, segments=segments)
        composite_from_imagenet(net)
        return net

    def losses(
        self,
        net: CompositeNetwork,
        heads: ClassVectors,
        rows: NDArray[np.int64],
        epoch: int,
        generator: Generator,
        device: str,
    ) -> dict[str, Tensor]:
        """Loss of labels of the region around the lesion, and of its tissues in another view."""
        samples = self.samples
        labelled, outlined = rows[samples.labelled[rows]], rows[samples.outlined[rows]]
        found = {"labels": torch.zeros((), device=device)}
        if len(labelled) > 1:
            views, there, _ = composite_views(samples, labelled, generator, lesion_frames)
            found["labels"] = heads(
                net(views.to(device), there.to(device)), _targets(samples, labelled, device)
            )
        if "tissues" in self.weights:
            found["tissues"] = torch.zeros((), device=device)
            if len(outlined) > 1:
                views, there, theta = composite_views(samples, outlined, generator, tissue_frames, RECOLOURED)
                maps = torch.from_numpy(samples.outlines[samples.rows[outlined]]).float().div_(255)
                # beyond the slice all is healthy
                maps[:, 0] -= 1
                maps = looked_at(maps, theta, COMPOSITE_VIEW // TISSUE_CELL, empty=0.0)
                maps[:, 0] += 1
                found["tissues"] = tissue_loss(
                    net.tissues(views.to(device), there.to(device)), maps.to(device)
                )
        return found


def composite_views(
    samples: Samples,
    rows: NDArray[np.int64],
    generator: Generator,
    framed: Callable[[Tensor, Generator], Tensor],
    strength: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Views of composites, each sequence recoloured by itself, those that are not hidden, and the frames."""
    pixels = samples.pixels[samples.rows[rows]]
    images = torch.from_numpy(pixels).float().div_(255)
    theta = framed(torch.from_numpy(samples.boxes[rows]), generator)
    views = looked_at(images, theta, COMPOSITE_VIEW, empty=0.0)
    n, channels = views.shape[:2]
    single = views.reshape(n * channels, 1, COMPOSITE_VIEW, COMPOSITE_VIEW)
    views = recoloured(single, generator, strength).view_as(views) * 2 - 1
    there = torch.from_numpy(pixels.any((2, 3)))
    shown = there & (torch.rand(n, channels, generator=generator) >= HIDDEN)
    return views, torch.where(shown.any(1, keepdim=True), shown, there), theta


def tissue_loss(logits: Tensor, maps: Tensor) -> Tensor:
    """Cross-entropy by cell, plus one minus the soft Dice overlap of each image that shows a lesion.

    Parameters
    ----------
    logits : Tensor, shape (n, 1 + tissues, h, w)
    maps : Tensor, shape (n, 1 + tissues, h, w)
        How far a cell may be healthy, and of each tissue: where an outline does not tell some of them
        apart, their chances are added, and any way to share them out is right.
    """
    p = logits.softmax(1)
    entropy = -(p * maps).sum(1).clamp(min=1e-6).log().mean()
    healthy, oedema = maps[:, 0], maps[:, 1 + TISSUES.index("oedema")]
    untold = torch.minimum(healthy, oedema)  # beyond the outline of a core
    lesion = (1 - p[:, 0] - untold * p[:, 1 + TISSUES.index("oedema")]).flatten(1)
    outline = (1 - healthy).flatten(1)
    area = outline.sum(1)
    dice = 2 * (lesion * outline).sum(1) / (lesion.sum(1) + area).clamp(min=1e-6)
    shown = (area > 0.5).float()
    return entropy + ((1 - dice) * shown).sum() / shown.sum().clamp(min=1)


def outline_loss(logits: Tensor, outlines: Tensor) -> Tensor:
    """Cross-entropy by cell, plus one minus the soft Dice overlap of each image that shows a lesion.

    Overlap is taken image by image, so that a small lesion counts as much as a large one.

    Parameters
    ----------
    logits, outlines : Tensor, shape (n, h, w)
        The lesion map; how far the outline covers each cell, 0 to 1.
    """
    if not len(logits):
        return logits.sum()
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, outlines)
    p, area = logits.sigmoid().flatten(1), outlines.flatten(1).sum(1)
    dice = 2 * (p * outlines.flatten(1)).sum(1) / (p.sum(1) + area).clamp(min=1e-6)
    shown = (area > 0).float()
    return entropy + ((1 - dice) * shown).sum() / shown.sum().clamp(min=1)


@torch.no_grad()
def proposals(net: RetrievalNetwork, x: Tensor) -> Tensor:
    """The boxes that the network proposes for whole slices, as it will when it is used."""
    net.eval()
    _, logits = net(x.contiguous(memory_format=torch.channels_last))
    net.train()
    return torch.from_numpy(proposed(logits.sigmoid().cpu().numpy()))


def _targets(samples: Samples, rows: NDArray[np.int64], device: str) -> dict[str, Tensor]:
    return {head: torch.from_numpy(target[rows]).to(device) for head, target in samples.targets.items()}


def _shares(images: NDArray[np.uint8], device: str) -> Tensor:
    """From uint8 (n, h, w) to 0…1 (n, 1, h, w)."""
    return torch.from_numpy(images).to(device)[:, None].float().div_(255)
