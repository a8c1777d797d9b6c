"""Small encoders whose answers are foreseeable."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Analysis


class TinyEncoder:
    """An 8 × 8 thumbnail, centred: quick, deterministic, and nearer for more similar images."""

    name = "tiny"
    dimension = 64
    version = "1"
    size = 32

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        x = batch.reshape(len(batch), 8, 4, 8, 4).mean(axis=(2, 4), dtype=np.float32).reshape(len(batch), 64)
        x = x - x.mean(axis=1, keepdims=True) + 1e-3
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


class TinyAnalyser(TinyEncoder):
    """Looks at the region it is told, else at the brightest sixteenth; was trained on patient P-01."""

    name = "looking"

    def analyse(self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None) -> Analysis:
        blocks = batch.reshape(len(batch), 4, 8, 4, 8).mean(axis=(2, 4)).reshape(len(batch), 16)
        row, column = np.divmod(blocks.argmax(1), 4)
        own = np.stack([column, row, column + 1, row + 1], 1).astype(np.float32) / 4
        where = own if boxes is None else np.where(np.isnan(boxes), own, boxes)
        seen = np.zeros_like(batch)
        for image, part, box in zip(batch, seen, (where * self.size).astype(int), strict=True):
            inside = np.s_[box[1] : box[3], box[0] : box[2]]
            part[inside] = image[inside]
        weights = (blocks.max(1) / 255).astype(np.float32)
        maps = blocks.reshape(-1, 4, 4).astype(np.float32)
        return Analysis(self.encode(seen), weights, maps, where, np.ones(len(batch), np.float32))

    def trained_on(self, patient_id: str) -> bool:
        return patient_id == "P-01"
