"""All that decides a training beside the data."""

from __future__ import annotations

from dataclasses import dataclass

from indexer.learning.network import DIMENSION


@dataclass(frozen=True)
class Recipe:
    """All that decides a training beside the data.

    Attributes
    ----------
    epochs : int
    batch : int
        Slices of a step; each is seen as a whole and as a region.
    draws : int, optional
        Slices of an epoch; default as many as may show what the labels are about.
    rate, decay : float
        Highest learning rate, after a warm-up over `warmup` of the steps and before a cosine
        decline to 0; weight decay of AdamW.
    warmup : float
    margin, scale, smoothing : float
        Of the normalised softmax.
    lesion : float
        Weight of the outlines' loss.
    tissues : float
        Weight of the tissues' loss of composites.
    own : float
        Chance that a region is the one that the network itself proposes, instead of the outline's;
        after a third of the epochs, when it has learnt to propose.
    dropout, depth : float
        See :class:`~indexer.learning.network.RetrievalNetwork`.
    dimension : int
    seed : int
    """

    epochs: int = 12
    batch: int = 24
    draws: int | None = None
    rate: float = 1e-3
    decay: float = 0.05
    warmup: float = 0.05
    margin: float = 0.2
    scale: float = 16.0
    smoothing: float = 0.05
    lesion: float = 2.0
    tissues: float = 1.0
    own: float = 0.5
    dropout: float = 0.3
    depth: float = 0.15
    dimension: int = DIMENSION
    seed: int = 0
