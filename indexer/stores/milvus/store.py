"""The vectors of an index in a collection of its own, which is changed in place."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import numpy as np

from indexer.catalog import Contents
from indexer.errors import StaleError
from indexer.partition import Partition
from indexer.stores.faiss.vectors import Vectors
from indexer.stores.filed import Filed
from indexer.stores.milvus.server import Milvus
from indexer.stores.milvus.vectors import MilvusVectors
from indexer.stores.protocol import Difference, Ints, Site, VectorIndex, compared

SENT = 4096
"""Embeddings read from the catalog at a time."""


class MilvusStore:
    """See :class:`indexer.stores.Store`; the address is ``milvus+http://host:19530``."""

    def __init__(self, address: str, site: Site) -> None:
        self._uri = address.removeprefix("milvus").removeprefix("+")
        self._site = site
        self._connected: Milvus | None = None
        self._opened: tuple[object, MilvusVectors] | None = None
        self._nothing = Vectors(site.dimension, None, site.policy)

    @property
    def server(self) -> Milvus:
        """The server (connected at the first use).

        Raises
        ------
        CaseIndexError
            If it does not answer.
        """
        if self._connected is None:
            self._connected = Milvus(self._uri)
        return self._connected

    def create(self) -> None:
        """See that the server answers; a collection is made when there is something to file."""
        self.reach()

    def reach(self) -> None:
        """See that the server answers."""
        self.server.collections(self._site.name)

    def open(self, filed: Filed | None, partition: Partition | None, contents: Contents) -> VectorIndex:
        """The collection; its ids are asked for where the manifest does not say what they are."""
        if filed is None:
            return self._nothing
        self.server.load(filed.file)
        whole = filed.revision == contents.revision
        if whole and (n := self.server.count(filed.file)) != filed.entries:
            raise StaleError(
                f"{self._uri} {filed.file}",
                f"holds {n} entries instead of {filed.entries}",
                "run `cbir verify --repair`",
            )
        state = filed, partition
        if self._opened is None or self._opened[0] != state:
            ids = contents.slice_ids if whole else self._ids(filed, contents)
            self._opened = state, self._vectors(filed, partition, ids)
        return self._opened[1]

    def file(self, filed: Filed | None, partition: Partition | None, contents: Contents) -> Filed:
        """Bring the collection up to date, or fill a new one."""
        server, ids = self.server, contents.slice_ids
        name, there = "" if filed is None else filed.file, ids[:0]
        if name in server.collections(self._site.name):
            server.load(name)
            there = server.ids(name, max([0, *ids[-1:].tolist()]))
        else:
            name = f"{self._site.name}_{contents.revision}_{secrets.token_hex(2)}"
            lists = 0 if partition is None else len(partition.centroids)
            server.create(name, self._site.dimension, lists, f"cbir index {self._site.folder}")
        server.delete(name, np.setdiff1d(there, ids))
        new: Ints = np.setdiff1d(ids, there)
        for start in range(0, len(new), SENT):
            block = new[start : start + SENT]
            server.insert(name, block, self._site.catalog.embeddings(block), partition)
        return Filed(
            file=name,
            sha256="",
            revision=contents.revision,
            slices=len(ids),
            last=int(ids[-1]) if len(ids) else 0,
            entries=server.count(name),
        )

    def keep(self, filed: Filed) -> None:
        """Take away all other collections of the index."""
        for name in self.server.collections(self._site.name):
            if name != filed.file:
                self.server.drop(name)

    def drop(self) -> None:
        """Take away all collections of the index."""
        for name in self.server.collections(self._site.name):
            self.server.drop(name)

    def differences(
        self, filed: Filed, partition: Partition | None, contents: Contents
    ) -> Iterator[Difference]:
        """Ask the server for all that it holds."""
        self._opened = None
        self.open(filed, partition, contents)
        vectors = self._vectors(filed, partition, self._ids(filed, contents))
        yield from compared(vectors, filed, contents, self._site.catalog)

    def describe(self, filed: Filed | None) -> str:
        """The server and the collection."""
        return f"Milvus {self._uri} {filed.file if filed else self._site.name}"

    def close(self) -> None:
        """Release the connection."""
        if self._connected is not None:
            self._connected.close()
            self._connected = None

    def _ids(self, filed: Filed, contents: Contents) -> Ints:
        return self.server.ids(filed.file, max([filed.last, *contents.slice_ids[-1:].tolist()]))

    def _vectors(self, filed: Filed, partition: Partition | None, ids: Ints) -> MilvusVectors:
        site = self._site
        return MilvusVectors(
            self.server, filed.file, site.dimension, partition, ids, site.catalog.embeddings, site.policy
        )
