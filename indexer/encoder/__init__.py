"""Encoders turn prepared slices into unit vectors.

What an encoder is, and what it may offer beyond that, is in :mod:`indexer.encoder.protocols`. A package
can bring one by an entry point (:mod:`indexer.encoder.registry`); a file of trained weights is one, too
(:mod:`indexer.encoder.weights`).
"""

from indexer.encoder.mean import MeanEncoder, NetworkEncoder, imagenet
from indexer.encoder.protocols import (
    ANY_STACK,
    FLAT,
    LEAST_WEIGHT,
    STACK,
    Analyser,
    Analysis,
    Composer,
    Doubtful,
    Encoder,
    Explainer,
    FileEncoder,
    Segmenter,
    Sparse,
    Taught,
    chance_of_lesion,
    least_chance,
    look,
    trained_on,
    who_asks,
)
from indexer.encoder.registry import DEFAULT, GROUP, load_encoder
from indexer.encoder.trained import TrainedEncoder
from indexer.encoder.weights import FORMAT, SHIPPED, SUFFIX, load_weights, shipped, write_weights

__all__ = [
    "ANY_STACK",
    "DEFAULT",
    "FLAT",
    "FORMAT",
    "GROUP",
    "LEAST_WEIGHT",
    "SHIPPED",
    "STACK",
    "SUFFIX",
    "Analyser",
    "Analysis",
    "Composer",
    "Doubtful",
    "Encoder",
    "Explainer",
    "FileEncoder",
    "MeanEncoder",
    "NetworkEncoder",
    "Segmenter",
    "Sparse",
    "Taught",
    "TrainedEncoder",
    "chance_of_lesion",
    "imagenet",
    "least_chance",
    "load_encoder",
    "load_weights",
    "look",
    "shipped",
    "trained_on",
    "who_asks",
    "write_weights",
]
