"""Encoders to measure against: raw pixels, and the same network with random weights."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.encoder import Encoder, NetworkEncoder
from indexer.learning import backbone


class Pixels:
    """The prepared image at 32 × 32 pixels, free of its mean, as a unit vector."""

    name, version, size, dimension = "pixels", "1", 192, 1024

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors of grey images."""
        side, part = 32, self.size // 32
        x = batch.reshape(len(batch), side, part, side, part).mean(axis=(2, 4), dtype=np.float32)
        x = x.reshape(len(batch), side * side)
        x -= x.mean(axis=1, keepdims=True)
        return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6), np.float32)


def random_network(seed: int = 0) -> Encoder:
    """EfficientNet-Lite0 with random weights (He initialisation), its normalisation set by random input.

    Without statistics of its own the normalisation would let all outputs collapse onto one vector.
    """
    torch.manual_seed(seed)
    net = backbone.EfficientNetLite0()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # plain mean over what it sees
    smooth = torch.nn.functional.interpolate(torch.rand(32, 1, 24, 24), size=(192, 192), mode="bilinear")
    with torch.inference_mode():
        net.train()(smooth * 2 - 1)
    embed = functools.partial(backbone.embed, net.fused())
    return NetworkEncoder("random", backbone.FEATURES, f"seed {seed}", 192, embed)
