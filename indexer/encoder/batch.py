"""Batches of images, as encoders around a network take them: checked, and some at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from indexer.encoder.protocols import Encoder

IMAGES_AT_ONCE = 32
"""Images that go through the network at once: more are no faster and take more memory."""


def blocks(n: int) -> Iterator[slice]:
    """The rows of a batch of n images, some at a time."""
    for start in range(0, n, IMAGES_AT_ONCE):
        yield slice(start, start + IMAGES_AT_ONCE)


def check(
    encoder: Encoder,
    batch: NDArray[np.uint8],
    directions: NDArray[np.float32] | None = None,
    boxes: NDArray[np.float32] | None = None,
) -> None:
    """Refuse images, directions and boxes of other shapes than an encoder takes.

    Raises
    ------
    ValueError
    """
    if batch.dtype != np.uint8 or batch.ndim != 3 or batch.shape[1:] != (encoder.size, encoder.size):
        expected = f"uint8 (n, {encoder.size}, {encoder.size})"
        raise ValueError(f"{encoder.name} takes {expected}, not {batch.dtype} {batch.shape}")
    if directions is not None and directions.shape != (len(batch), encoder.dimension):
        raise ValueError(f"{encoder.name} takes one vector an image, not {directions.shape}")
    if boxes is not None and boxes.shape != (len(batch), 4):
        raise ValueError(f"{encoder.name} takes one box an image, not {boxes.shape}")
