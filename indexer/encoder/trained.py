"""The encoder that a file of trained weights holds."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexer.encoder.batch import blocks, check
from indexer.encoder.protocols import Analysis
from indexer.learning.strangeness import TrainingDistribution
from indexer.sequences import CHANNELS, LEADING

if TYPE_CHECKING:
    from indexer.learning.network import CompositeNetwork, RetrievalNetwork


APART = 4.0
"""Millimetres between planes: measured, for volumes of 1 and 2 mm, by ``python -m benchmarks.planes``."""


@dataclass
class TrainedEncoder:
    """An encoder from a file of weights: it offers all that :mod:`indexer.encoder.protocols` names.

    Attributes
    ----------
    name, dimension, version, size, composite_size
        As in :class:`Encoder` and :class:`Composer`.
    apart : float
        See :class:`Sparse`.
    least_lesion : mapping of str to float
        See :class:`Doubtful`.
    weights_file : Path
        See :class:`FileEncoder`.
    about : dict
        What the file says of itself: ``labels``, ``recipe``, ….
    network : RetrievalNetwork
        Fused, in evaluation mode.
    distribution : TrainingDistribution, optional
        What it was trained on, to tell strange slices.
    composite : CompositeNetwork, optional
        Fused, in evaluation mode.
    """

    name: str
    dimension: int
    version: str
    size: int
    weights_file: Path
    about: Mapping[str, Any] = field(repr=False)
    network: RetrievalNetwork = field(repr=False)
    distribution: TrainingDistribution | None = field(repr=False, default=None)
    composite: CompositeNetwork | None = field(repr=False, default=None)
    apart: float = APART
    least_lesion: Mapping[str, float] = field(repr=False, default_factory=dict)

    @property
    def composite_size(self) -> int:
        """See :class:`Composer`."""
        from indexer.learning.network import VIEW

        return VIEW if self.composite else 0

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors of grey images; see :class:`NetworkEncoder`."""
        return self.analyse(batch).embeddings

    def analyse(self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None) -> Analysis:
        """Embeddings, weights, lesion maps, regions and strangeness of grey images.

        Parameters
        ----------
        batch : ndarray of uint8, shape (n, size, size)
        boxes : ndarray of float32, shape (n, 4), optional
            Known regions: x0, y0, x1, y1 as shares of the side; NaN where the encoder proposes one.

        Raises
        ------
        ValueError
            If the batch or the boxes have another shape or type.
        """
        from indexer.learning.looks import analyse
        from indexer.learning.network import CELL, VIEW

        check(self, batch, boxes=boxes)
        cells = VIEW // CELL
        shapes = ((self.dimension,), (), (cells, cells), (4,), ())
        parts = [np.full((len(batch), *shape), np.nan, np.float32) for shape in shapes]
        for rows in blocks(len(batch)):
            *found, statistics = analyse(self.network, batch[rows], None if boxes is None else boxes[rows])
            if self.distribution is not None:
                found.append(self.distribution.strangeness(statistics))
            for part, values in zip(parts, found, strict=False):
                part[rows] = values
        return Analysis(*parts)

    def compose(
        self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Unit vectors and weights of composites: see :class:`Composer`.

        Raises
        ------
        ValueError
            If the encoder takes no composites, or not of this shape or type.
        """
        from indexer.learning.looks import compose

        self._check_composites(batch)
        assert self.composite is not None
        vectors, weights = (
            np.empty((len(batch), self.dimension), np.float32),
            np.empty(len(batch), np.float32),
        )
        for rows in blocks(len(batch)):
            known = None if boxes is None else boxes[rows]
            vectors[rows], weights[rows] = compose(self.network, self.composite, batch[rows], LEADING, known)
        return vectors, weights

    def _check_composites(self, batch: NDArray[np.uint8]) -> None:
        shape = (len(CHANNELS), self.composite_size, self.composite_size)
        if self.composite is None or batch.dtype != np.uint8 or batch.shape[1:] != shape:
            raise ValueError(f"{self.name} takes no composites of {batch.dtype} {batch.shape}")

    @property
    def standardised(self) -> bool:
        """See :class:`Segmenter`."""
        return self.composite is not None and self.composite.standardised

    @property
    def segments(self) -> bool:
        """See :class:`Segmenter`."""
        return self.composite is not None and self.composite.segments

    def segment(
        self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Chances of tissues in composites, shape (n, 3, 80, 80): see :class:`Segmenter`.

        Raises
        ------
        ValueError
            If the encoder does not tell tissues apart, or takes no composites of this shape or type.
        """
        from indexer.learning.looks import segment
        from indexer.learning.network import TISSUE_CELL, TISSUES

        if self.composite is None or not self.segments:
            raise ValueError(f"{self.name} does not tell tissues apart")
        self._check_composites(batch)
        side = self.composite_size // TISSUE_CELL
        maps = np.empty((len(batch), len(TISSUES), side, side), np.float32)
        for rows in blocks(len(batch)):
            maps[rows] = segment(self.composite, batch[rows], None if boxes is None else boxes[rows])
        return maps

    def explain(
        self,
        batch: NDArray[np.uint8],
        directions: NDArray[np.float32],
        boxes: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Contributions of the cells of the slice, shape (n, 40, 40): see :class:`Explainer`.

        Raises
        ------
        ValueError
            If the batch, the directions or the boxes have another shape or type.
        """
        from indexer.learning.explanation import GRID, explain

        check(self, batch, directions, boxes)
        maps = np.empty((len(batch), GRID, GRID), np.float32)
        for rows in blocks(len(batch)):
            known = None if boxes is None else boxes[rows]
            maps[rows], _ = explain(self.network, batch[rows], directions[rows], known)
        return maps

    def trained_on(self, patient_id: str) -> bool:
        """Whether the weights have seen a patient, by the id that the training's labels used."""
        return keyed_hash(bytes.fromhex(self.about["key"]), patient_id) in self.about["patients"]


def keyed_hash(key: bytes, patient: str) -> str:
    """A patient's keyed hash; ``sub-01`` and ``01`` are one patient, as in a labels table."""
    return hmac.new(key, patient.removeprefix("sub-").encode(), hashlib.sha256).hexdigest()[:16]
