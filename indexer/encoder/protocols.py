"""What the index asks of an encoder, and all that an encoder may offer beyond that.

An encoder offers something by having the members of its protocol; nobody asks what class it is of.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

LEAST_WEIGHT = 0.02
"""A slice that surely shows no lesion weighs this much beside one that surely does."""

STACK = 8
"""A scan of so many planes is a stack, and shows a lesion in two of them at least."""


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


@dataclass(frozen=True)
class Analysis:
    """What an encoder sees in slices beside their vectors.

    Attributes
    ----------
    embeddings : ndarray of float32, shape (n, dimension)
        Unit vectors, the same as `encode` gives.
    weights : ndarray of float32, shape (n,)
        How informative each slice is, 0 to 1: the chance that it shows a lesion at all.
    maps : ndarray of float32, shape (n, h, w)
        Chance of a lesion in each cell of a grid over the slice.
    boxes : ndarray of float32, shape (n, 4)
        The region, as it was given or as it shows itself: x0, y0, x1, y1 as shares of the side.
    strangeness : ndarray of float32, shape (n,)
        Distance from what the encoder was trained on, about 1 for its like; NaN where it cannot say.
    """

    embeddings: NDArray[np.float32]
    weights: NDArray[np.float32]
    maps: NDArray[np.float32]
    boxes: NDArray[np.float32]
    strangeness: NDArray[np.float32]


@runtime_checkable
class Analyser(Encoder, Protocol):
    """An encoder that also says where it looks."""

    def analyse(self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None) -> Analysis:
        """Embeddings, weights, lesion maps, regions and strangeness of grey images, shape (n, size, size).

        `boxes`, shape (n, 4), are regions that are known, as in `Analysis.boxes`; rows that are NaN
        are proposed by the encoder.
        """
        ...


@runtime_checkable
class Composer(Encoder, Protocol):
    """An encoder that can also see several sequences of one place at once (:mod:`indexer.composite`).

    Attributes
    ----------
    composite_size : int
        Side of the composites it takes, in pixels; 0 if it does not take any after all.
    """

    composite_size: int

    def compose(
        self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Unit vectors, shape (n, dimension), and weights as in `Analysis`, of composites.

        `batch`, of shape (n, 4, composite_size, composite_size), has the channels of
        `indexer.composite`, 0 where a sequence is lacking; `boxes` are as for an `Analyser`.
        """
        ...


@runtime_checkable
class Segmenter(Encoder, Protocol):
    """An encoder that also tells the tissues of a lesion apart, in the composites of a :class:`Composer`.

    Attributes
    ----------
    composite_size : int
        As for a :class:`Composer`.
    segments : bool
        Whether it does so after all.
    standardised : bool
        Whether its composites' greys are standard deviations (:class:`indexer.preprocess.Preprocessing`).
    """

    composite_size: int

    @property
    def segments(self) -> bool:
        """See the attributes."""
        ...

    @property
    def standardised(self) -> bool:
        """See the attributes."""
        ...

    def segment(
        self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Chance of necrosis, oedema and enhancement in each cell of composites, shape (n, 3, h, w).

        Parameters as of :meth:`Composer.compose`; a cell is a whole number of pixels.
        """
        ...


@runtime_checkable
class Explainer(Encoder, Protocol):
    """An encoder that also says where a similarity comes from."""

    def explain(
        self,
        batch: NDArray[np.uint8],
        directions: NDArray[np.float32],
        boxes: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """What each cell of grey images, shape (n, size, size), adds to their cosine with unit vectors.

        `directions`, shape (n, dimension), are embeddings of what the images are compared with; `boxes`
        are as for an `Analyser`, and change nothing for an encoder that has no use for them. Returns
        maps over the images, shape (n, h, w), of either sign.
        """
        ...


@runtime_checkable
class Sparse(Encoder, Protocol):
    """An encoder to which neighbouring planes say the same.

    Attributes
    ----------
    apart : float
        Distance in mm of planes between which no others need to be seen.
    """

    apart: float


@runtime_checkable
class Doubtful(Analyser, Protocol):
    """An encoder that knows when it sees no lesion at all.

    Attributes
    ----------
    least_lesion : mapping of str to float
        By :data:`FLAT`, :data:`ANY_STACK` or :func:`who_asks` the chance of a lesion
        (:func:`chance_of_lesion`; of several scans the highest) below which none is shown;
        :func:`least_chance` says which holds. 0 where nothing is known of that.
    """

    least_lesion: Mapping[str, float]


@runtime_checkable
class FileEncoder(Encoder, Protocol):
    """An encoder that is not installed but lies in a file, of which an index keeps a copy.

    Attributes
    ----------
    weights_file : Path
        What :func:`indexer.encoder.load_encoder` makes the encoder of.
    """

    weights_file: Path


@runtime_checkable
class Taught(Encoder, Protocol):
    """An encoder that knows whom it was trained on."""

    def trained_on(self, patient_id: str) -> bool:
        """Whether its weights have seen a patient, by the id that the training's labels used."""
        ...


def look(
    encoder: Encoder, pixels: NDArray[np.uint8], boxes: NDArray[np.float32], weights: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings, weights and strangeness of prepared images, by whatever the encoder can do.

    Parameters
    ----------
    encoder : Encoder
    pixels, boxes, weights
        As in :class:`indexer.preprocess.Prepared`. An :class:`Analyser` is told the boxes, and scales
        the weights of slices without one by the chance that they show a lesion; the strangeness that
        another encoder cannot tell is NaN, as it is of composites.
    """
    strangeness = np.full(len(pixels), np.nan, np.float32)
    if pixels.ndim == 4 and isinstance(encoder, Composer):
        embeddings, lesion = encoder.compose(pixels, boxes)
    elif isinstance(encoder, Analyser):
        found = encoder.analyse(pixels, boxes)
        embeddings, lesion, strangeness = found.embeddings, found.weights, found.strangeness
    else:
        return encoder.encode(pixels), weights, strangeness
    lesion = np.maximum(lesion, LEAST_WEIGHT)
    weights = np.where(np.isnan(boxes[:, 0]), weights * lesion, weights).astype(np.float32)
    return embeddings, weights, strangeness


def chance_of_lesion(chances: NDArray[np.floating[Any]]) -> float:
    """The chance that a scan shows a lesion, given that of each of its planes.

    It is the highest, and of a stack the second highest: a lesion shows in two planes.

    Examples
    --------
    >>> chance_of_lesion(np.array([0.1, 0.75]))
    0.75
    >>> chance_of_lesion(np.array([0.0, 0.0, 0.0, 0.75, 0.25, 0.0, 0.0, 0.0]))
    0.25
    """
    return float(np.sort(chances)[-2 if len(chances) >= STACK else -1])


FLAT, ANY_STACK, AND = "flat images", "a stack", " + "


def who_asks(sequences: Collection[str]) -> str:
    """The name of stacks of these sequences, as an encoder's `least_lesion` has it.

    Examples
    --------
    >>> who_asks(["t1ce", "flair"])
    'flair + t1ce'
    """
    return AND.join(sorted(sequences))


def least_chance(limits: Mapping[str, float], stacks: Collection[str | None]) -> float:
    """The chance of a lesion below which a visit shows none; 0 where none is known.

    More scans show a lesion with no lower a chance, so what holds for some of them holds for all: of the
    limits of all sets of these sequences the highest is taken. That of any stack is of stacks at large; it
    holds only where no set is known.

    Parameters
    ----------
    limits : mapping of str to float
        As of :class:`Doubtful`.
    stacks : collection of str or None
        The sequence of each stack of the visit; without any, its images are flat.

    Examples
    --------
    >>> limits = {"flat images": 0.1, "a stack": 0.4, "flair": 0.8, "flair + t1": 0.9}
    >>> [least_chance(limits, stacks) for stacks in (["t1", "flair", "t2"], ["flair"], ["t2", None], [])]
    [0.9, 0.8, 0.4, 0.1]
    """
    if not stacks:
        return limits.get(FLAT, 0.0)
    of_some = (limit for name, limit in limits.items() if {*name.split(AND)} <= {*stacks})
    return max(of_some, default=limits.get(ANY_STACK, 0.0))


def trained_on(encoder: Encoder, patient_id: str) -> bool:
    """Whether an encoder's weights have seen a patient, as far as it says."""
    return isinstance(encoder, Taught) and bool(encoder.trained_on(patient_id))
