"""Encoders around a network that was not trained here: the mean of its features over the plane."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from indexer.encoder.batch import blocks, check
from indexer.encoder.protocols import Encoder

if TYPE_CHECKING:
    from indexer.learning.backbone import EfficientNetLite0


@dataclass
class NetworkEncoder:
    """An encoder around a function that embeds a bounded number of images.

    Attributes
    ----------
    name, dimension, version, size
        As in :class:`Encoder`.
    embed : callable
        From uint8 (n, size, size) with n of at most 32 to float32 unit vectors (n, dimension).
    """

    name: str
    dimension: int
    version: str
    size: int
    embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]] = field(repr=False)

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors of grey images.

        Parameters
        ----------
        batch : ndarray of uint8, shape (n, size, size)

        Returns
        -------
        ndarray of float32, shape (n, dimension)

        Raises
        ------
        ValueError
            If the batch has another shape or type.
        """
        check(self, batch)
        vectors = np.empty((len(batch), self.dimension), np.float32)
        for rows in blocks(len(batch)):
            vectors[rows] = self.embed(batch[rows])
        return vectors


@dataclass
class MeanEncoder(NetworkEncoder):
    """The mean of a network's features over the plane; it is an :class:`Explainer`.

    Attributes
    ----------
    network : EfficientNetLite0
        Fused, in evaluation mode.
    """

    network: EfficientNetLite0 = field(repr=False)

    def explain(
        self,
        batch: NDArray[np.uint8],
        directions: NDArray[np.float32],
        boxes: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Contributions of the feature map's cells, shape (n, size / 32, size / 32): see :class:`Explainer`.

        Raises
        ------
        ValueError
            If the batch or the directions have another shape or type.
        """
        from indexer.learning.backbone import STRIDE
        from indexer.learning.explanation import explain_mean

        check(self, batch, directions)
        cells = self.size // STRIDE
        maps = np.empty((len(batch), cells, cells), np.float32)
        for rows in blocks(len(batch)):
            maps[rows] = explain_mean(self.network, batch[rows], directions[rows])
        return maps


@functools.cache
def imagenet() -> Encoder:
    """EfficientNet-Lite0 as it comes from ImageNet: 1280 features of a slice at 192 pixels."""
    from indexer.learning import backbone  # brings torch, which readers of the catalog need not wait for

    size = 192
    weights = backbone.released()
    architecture = f"{backbone.ARCHITECTURE} {size}".encode()
    version = hashlib.sha256(weights + architecture).hexdigest()[:16]
    net = backbone.pretrained(weights).fused()
    embed = functools.partial(backbone.embed, net)
    return MeanEncoder("imagenet", backbone.FEATURES, version, size, embed, net)
