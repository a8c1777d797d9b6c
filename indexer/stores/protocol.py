"""What an engine for vectors has to offer, on both sides: to who asks and to who writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import Catalog, Contents
from indexer.ids import NONE
from indexer.partition import Partition
from indexer.policy import SearchPolicy
from indexer.stores.filed import Filed

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class VectorIndex(Protocol):
    """One state of the vectors: unit vectors by id, which many threads may ask and nobody changes.

    Attributes
    ----------
    partition : Partition or None
        What the vectors are filed by.
    """

    partition: Partition | None

    def __len__(self) -> int: ...

    def ids(self) -> Ints:
        """All ids, ascending."""

    def list_sizes(self) -> Ints:
        """Entries of each list, replicas counted; shape (c,), or (1,) without a partition."""

    def search(self, q: Floats, k: int, keep: Ints | None = None, but: Ints = NONE) -> tuple[Floats, Ints]:
        """Nearest vectors by cosine similarity.

        Parameters
        ----------
        q : ndarray of float32, shape (n, d)
            Unit vectors.
        k : int
            Neighbours wanted.
        keep : ndarray of int64, optional
            Search among these ids only; unknown ones are ignored. Nobody changes the array: who passes it
            again need not have it looked through again.
        but : ndarray of int64
            Few distinct ids that are not searched, of those or of all.

        Returns
        -------
        scores : ndarray of float32, shape (n, k)
            Cosine, descending, at most 1; −inf where there are fewer than k.
        ids : ndarray of int64, shape (n, k)
            Each at most once in a row; −1 where there are fewer than k.
        """

    def gather(self, ids: Ints) -> Floats:
        """The vectors of these ids, to be compared exactly; shape (n, d).

        Raises
        ------
        KeyError
            If one of them is not in this state.
        StaleError
            If a writer has taken it out meanwhile.
        """

    def filed(self, ids: Ints) -> Floats:
        """The vectors of these ids as the engine holds them, to be compared with the catalog's."""

    def changed(self, ids: Ints, x: Floats, gone: Ints) -> Self:
        """Another state: with these vectors, whose ids are new, and without those; this one stays."""


@dataclass(frozen=True)
class Site:
    """Where a store works.

    Attributes
    ----------
    folder : Path
        Of the index.
    name : str
        What the index is called on servers.
    dimension : int
        Of the vectors.
    catalog : Catalog
        The truth, which the vectors are filed from.
    policy : SearchPolicy
    """

    folder: Path
    name: str
    dimension: int
    catalog: Catalog
    policy: SearchPolicy = field(default_factory=SearchPolicy)


@dataclass(frozen=True)
class Difference:
    """Something that is not in the store as the catalog has it; `sound` where that needs no mending."""

    where: str
    what: str
    sound: bool = False


class Store(Protocol):
    """The vectors of one index on one engine.

    Made from an address and a :class:`Site`, without a look at either. All but :meth:`open`,
    :meth:`differences` and :meth:`describe` are called by the one writer. Whatever cannot be had raises a
    ``CaseIndexError``.
    """

    def create(self) -> None:
        """See that there is an engine, and make what an empty index needs."""

    def reach(self) -> None:
        """See that the engine can be had, before any work is done."""

    def open(self, filed: Filed | None, partition: Partition | None, contents: Contents) -> VectorIndex:
        """The vectors as they were filed last, whether or not that is what the contents say; or none yet.

        What was opened before and has not changed since is the same object.

        Raises
        ------
        StaleError
            If the engine has not what was filed; ``FileNotFoundError`` where a writer may have replaced it.
        """

    def file(self, filed: Filed | None, partition: Partition | None, contents: Contents) -> Filed:
        """Bring what was filed up to the contents, or, without it, file all anew by this partition.

        Readers of the last state are not disturbed. What is returned says nothing of the partition.
        """

    def keep(self, filed: Filed) -> None:
        """Take away everything of this index that is not what was filed."""

    def drop(self) -> None:
        """Take away everything of this index."""

    def differences(
        self, filed: Filed, partition: Partition | None, contents: Contents
    ) -> Iterator[Difference]:
        """What is not as the catalog has it, everything being looked at."""

    def describe(self, filed: Filed | None) -> str:
        """Where the vectors are, for ``cbir info``."""

    def close(self) -> None:
        """Release files and connections."""


def compared(
    vectors: VectorIndex, filed: Filed, contents: Contents, catalog: Catalog, gone: int = 0
) -> Iterator[Difference]:
    """What a state of vectors lacks, has too much of or has otherwise than the catalog.

    Parameters
    ----------
    vectors : VectorIndex
        With all that the engine holds.
    filed, contents, catalog
    gone : int
        Vectors that are known to be there without a slice.
    """
    ids = vectors.ids()
    if filed.revision != contents.revision:
        if lag := len(np.setxor1d(ids, contents.slice_ids)):
            what = f"lags {lag} slices behind the catalog; they are searched from there"
            yield Difference(filed.file, what, sound=True)
    else:
        for lost, what, known in (
            (np.setdiff1d(contents.slice_ids, ids), "slices have no vector", 0),
            (np.setdiff1d(ids, contents.slice_ids), "vectors have no slice", gone),
        ):
            if len(lost) != known:
                yield Difference(filed.file, f"{len(lost)} {what}")
    differ = 0
    present = np.intersect1d(ids, contents.slice_ids)
    for start in range(0, len(present), 4096):
        block = present[start : start + 4096]
        differ += int((vectors.filed(block) != catalog.embeddings(block)).any(axis=1).sum())
    if differ:
        yield Difference(filed.file, f"{differ} vectors differ from the catalog's")
