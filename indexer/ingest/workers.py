"""Who reads and embeds, while one process writes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer import sandbox
from indexer.encoder import Encoder, look
from indexer.measures import Measures, measure
from indexer.preprocess import Preprocessing
from indexer.readers import Source
from indexer.reading import Read
from indexer.view import view_of

READERS = 2
"""Sources that are read at a time."""

Pick = tuple[Any, int, int, Sequence[str | None]]
"""Images to embed: `Read.images`, which of its scans, which view of it, and the sequences of its channels."""


@dataclass(frozen=True)
class Embedding:
    """What the network found in a list of picks.

    Attributes
    ----------
    parts : list of tuple of ndarray
        Embeddings, weights and strangeness (see :func:`indexer.encoder.look`), a tuple a pick.
    seconds : float
        That the network took.
    measures : list of ndarray
        Of the lesion (:mod:`indexer.measures`), where regions were picked: one for each of these picks.
    """

    parts: list[tuple[NDArray[np.float32], ...]]
    seconds: float
    measures: list[NDArray[np.float32]]


class Workers(Protocol):
    """Who reads and embeds, while this process writes.

    Attributes
    ----------
    ahead : int
        Sources that are read before they are asked for.
    groups : int
        Groups that are embedded at a time.
    """

    ahead: int
    groups: int

    def read(self, source: Source, preprocessing: Preprocessing) -> Future[Read]:
        """Read and prepare a source; the future raises `ReadError` if that cannot be."""
        ...

    def embed(self, picks: Sequence[Pick]) -> Future[Embedding]:
        """Take images to the network, all of them together."""
        ...


class Threads:
    """Threads that have child processes read; the network runs while the caller waits. A context manager."""

    ahead = 2 * READERS
    groups = 1

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, source: Source, preprocessing: Preprocessing) -> Future[Read]:
        """See :meth:`Workers.read`."""
        return self._pool.submit(sandbox.prepare, source, preprocessing)

    def embed(self, picks: Sequence[Pick]) -> Future[Embedding]:
        """See :meth:`Workers.embed`."""
        found: Future[Embedding] = Future()
        found.set_result(embed(self._encoder, picks))
        return found


def embed(encoder: Encoder, picks: Sequence[Pick]) -> Embedding:
    """Take images to the network, all of them together, wherever that is done."""
    blocks = [(images[scan], images[scan].views == view) for images, scan, view, _ in picks]
    kinds: dict[int, list[int]] = {}  # composites have a network of their own
    for place, (ready, _) in enumerate(blocks):
        kinds.setdefault(ready.pixels.ndim, []).append(place)
    parts: dict[int, tuple[NDArray[np.float32], ...]] = {}
    seconds = 0.0
    for places in kinds.values():
        pixels, boxes, weights = (
            np.concatenate([getattr(blocks[place][0], part)[blocks[place][1]] for place in places])
            for part in ("pixels", "boxes", "weights")
        )
        start = time.perf_counter()
        found = look(encoder, pixels, boxes, weights)
        seconds += time.perf_counter() - start
        ends = np.cumsum([np.count_nonzero(blocks[place][1]) for place in places])[:-1]
        parts |= zip(places, zip(*(np.split(part, ends) for part in found), strict=True), strict=True)
    start = time.perf_counter()
    composed = {id(images) for images, *_, sequences in picks if len(sequences) > 1}
    measures = [
        measure(images[scan], sequences, encoder).as_vector()
        if len(sequences) > 1 or id(images) not in composed  # together they tell more
        else Measures(view=view_of(images[scan])).as_vector()
        for images, scan, view, sequences in picks
        if view
    ]
    seconds += time.perf_counter() - start
    return Embedding([parts[place] for place in range(len(blocks))], seconds, measures)
