"""States of an index: what is in it with its vectors, one committed moment each."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import Catalog, Contents
from indexer.errors import CaseIndexError, StaleError
from indexer.files import sha256
from indexer.manifest import MANIFEST, Manifest
from indexer.partition import Partition
from indexer.policy import SearchPolicy
from indexer.stores import Filed, Store, VectorIndex


@dataclass(frozen=True)
class Snapshot:
    """One committed state of an index: what is in it, and its vectors."""

    contents: Contents
    vectors: VectorIndex


class Snapshots:
    """The last state, and how it comes from the one before; many threads may ask.

    Parameters
    ----------
    folder : Path
        Of the index.
    catalog : Catalog
    store : Store
    policy : SearchPolicy
    """

    def __init__(self, folder: Path, catalog: Catalog, store: Store, policy: SearchPolicy) -> None:
        self._folder, self._catalog, self._store, self._policy = folder, catalog, store, policy
        self._seen: tuple[VectorIndex, Snapshot] | None = None
        self._partition: tuple[tuple[str | None, int], Partition] | None = None
        self._looking = threading.Lock()

    def now(self) -> tuple[Manifest, Snapshot]:
        """The last committed state, with the manifest that it is of.

        Vectors that the store lacks are taken from the catalog. Of what was seen by the last call only what
        has changed since is read; a state is never changed.

        Raises
        ------
        CaseIndexError
            If the store is damaged.
        """
        told = CaseIndexError(self._folder, "the vectors file is missing", "run `cbir verify --repair`")
        with self._looking:
            for _ in range(5):
                manifest = Manifest.load(self._folder / MANIFEST)
                try:
                    return manifest, self._of(manifest.vectors)
                except (FileNotFoundError, KeyError):
                    continue  # a writer replaced the files, or removed cases, between two of our looks
                except StaleError as error:
                    told = error
        raise told

    def _of(self, filed: Filed | None) -> Snapshot:
        seen = self._seen
        contents = self.contents()
        base = self._store.open(filed, self.partition(filed), contents)
        if seen and seen[0] is base:
            vectors, held = seen[1].vectors, seen[1].contents.slice_ids
        else:
            vectors, held = base, base.ids()
        vectors = _caught_up(vectors, held, contents.slice_ids, self._catalog)
        if seen and seen[1].contents is contents and seen[1].vectors is vectors:
            return seen[1]
        state = Snapshot(contents, vectors)
        self._seen = base, state
        return state

    def contents(self) -> Contents:
        """What is in the catalog now."""
        return self._catalog.contents(self._seen[1].contents if self._seen else None)

    def partition(self, filed: Filed | None) -> Partition | None:
        """What the vectors are filed by; read once.

        Raises
        ------
        CaseIndexError
            If its file is damaged.
        PartitionError
            If it is no partition.
        """
        if filed is None or filed.partition is None:
            return None
        path = self._folder / filed.partition
        stamp = filed.partition_sha256, path.stat().st_mtime_ns
        if self._partition is None or self._partition[0] != stamp:
            if sha256(path) != filed.partition_sha256:
                raise CaseIndexError(path, "does not match its checksum", "run `cbir verify --repair`")
            partition = Partition.load(path)
            if self._policy.recall is not None:
                partition = partition.at(self._policy.recall)
            self._partition = stamp, partition
        return self._partition[1]

    def forget(self) -> None:
        """Read everything again the next time."""
        self._seen = self._partition = None


def _caught_up(
    vectors: VectorIndex, held: NDArray[np.int64], wanted: NDArray[np.int64], catalog: Catalog
) -> VectorIndex:
    """The vectors of these ids, given those that there are."""
    shared = min(len(held), len(wanted))
    if np.array_equal(held[:shared], wanted[:shared]):  # as a rule: ids only grow
        gone, new = held[shared:], wanted[shared:]
    else:
        gone, new = (
            np.setdiff1d(held, wanted, assume_unique=True),
            np.setdiff1d(wanted, held, assume_unique=True),
        )
    if not len(gone) and not len(new):
        return vectors
    return vectors.changed(new, catalog.embeddings(new), gone)
