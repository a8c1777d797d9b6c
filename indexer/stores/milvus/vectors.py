"""One state of vectors that are in a collection of a Milvus server.

What is compared exactly comes from the catalog: reading vectors out of Milvus takes several times as long
(`benchmarks/engines.py`). The collection is changed in place, by the one writer. A state therefore keeps the
ids it was made with: what a later writer adds is not seen, what it takes out is noticed.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import numpy as np

from indexer.errors import StaleError
from indexer.ids import NONE
from indexer.partition import Partition
from indexer.policy import SearchPolicy
from indexer.stores.faiss.vectors import Vectors, distinct
from indexer.stores.milvus.server import Milvus
from indexer.stores.protocol import Floats, Ints

SETTLING = 10.0
"""Seconds after opening in which a search waits for all that was written before (consistency level
`Strong`, some tenths of a second); later `Bounded` is enough: it lags five seconds at most."""
MOST_HITS = 16_384
"""Hits that Milvus gives for a query vector at most."""
LISTED = 50_000
"""Ids that a filter names one by one, at most."""


class MilvusVectors:
    """See :class:`indexer.stores.VectorIndex`; the collection itself is changed by nothing here.

    Parameters
    ----------
    server : Milvus
    name : str
        Of the collection.
    dimension : int
    partition : Partition or None
        What the vectors are filed by.
    ids : ndarray of int64, shape (n,)
        What the collection holds.
    read : callable
        Embeddings by ids, from the catalog; raises KeyError.
    policy : SearchPolicy
    """

    def __init__(
        self,
        server: Milvus,
        name: str,
        dimension: int,
        partition: Partition | None,
        ids: Ints,
        read: Callable[[Ints], Floats],
        policy: SearchPolicy = SearchPolicy(),  # noqa: B008, it is frozen
    ) -> None:
        self.partition = partition
        self.policy = policy
        self._server, self._name, self._dimension, self._read = server, name, dimension, read
        self._filed = np.sort(ids)
        self._added = self._in_memory(self._filed[:0])
        self._all: Vectors | None = None
        self._opened = time.monotonic()

    def _in_memory(self, ids: Ints) -> Vectors:
        x = self._read(ids) if len(ids) else np.empty((0, self._dimension), np.float32)
        return Vectors.build(ids, x)

    def __len__(self) -> int:
        return len(self._filed) + len(self._added)

    def ids(self) -> Ints:
        """All ids, ascending."""
        return np.sort(np.concatenate([self._filed, self._added.ids()]))

    def list_sizes(self) -> Ints:
        """Entries of each list in the collection, replicas counted; shape (c,), or (1,)."""
        lists = 1 if self.partition is None else len(self.partition.centroids)
        counts = [self._server.count(self._name, f"list == {i}", strong=not i) for i in range(lists)]
        return np.array(counts, np.int64)

    def changed(self, ids: Ints, x: Floats, gone: Ints) -> MilvusVectors:
        """Another state: with vectors that the collection has not, and without some; this one stays."""
        state = copy.copy(self)
        state._filed = self._filed[~np.isin(self._filed, gone)] if len(gone) else self._filed
        state._added = self._added.changed(ids, x, gone)
        state._all = None
        return state

    def search(self, q: Floats, k: int, keep: Ints | None = None, but: Ints = NONE) -> tuple[Floats, Ints]:
        """Nearest vectors by cosine similarity; to a depth of 16 384 entries.

        The lists probed are those of all the query's vectors together: one call to the server, which
        looks at more and never at less.
        """
        q = np.ascontiguousarray(q, np.float32)
        if q.ndim != 2 or q.shape[1] != self._dimension or k < 1:
            raise ValueError(f"expected k >= 1 and shape (n, {self._dimension}), got k = {k}, {q.shape}")
        kept = self._filed if keep is None else self._filed[np.isin(self._filed, keep)]
        kept = kept[~np.isin(kept, but)] if len(but) else kept
        n, near = len(self._filed), self.partition
        if self.policy.exact(len(kept), n, k):
            near = None
        scores, ids = self._added.search(q, k, keep, but)
        if len(kept):
            found = self._search(q, k, kept, near)
            scores = np.concatenate([scores, found[0]], axis=1)
            ids = np.concatenate([ids, found[1]], axis=1)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, ids = np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)
        return np.minimum(scores, 1), ids

    def _search(self, q: Floats, k: int, kept: Ints, near: Partition | None) -> tuple[Floats, Ints]:
        conditions = []
        if near is not None:
            probes = np.unique(near.probes_for(q))
            conditions.append(f"list in {probes[probes >= 0].tolist()}")
        share = len(kept) / len(self._filed)
        if share < 1 and len(kept) <= LISTED:
            conditions.append(f"slice in {kept.tolist()}")
            share = 1
        wide = math.ceil(2 * k / share)  # a vector is in two lists at most
        while True:
            wide = min(wide, MOST_HITS)
            scores, ids = self._server.search(
                self._name,
                q,
                wide,
                " and ".join(conditions),
                strong=time.monotonic() - self._opened < SETTLING,
            )
            whole = bool((ids[:, -1] < 0).all())  # there is no more
            # some are not to be found, or came or went since this state
            unknown = ~np.isin(ids, kept)
            scores[unknown], ids[unknown] = -np.inf, -1
            scores, ids = distinct(scores, ids, k)
            if whole or wide == MOST_HITS or bool((ids[:, -1] >= 0).all()):
                break
            wide *= 4
        missing = k - ids.shape[1]
        if missing > 0:
            ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=-1)
            scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        scores[ids < 0] = -np.inf
        return scores, ids

    def gather(self, ids: Ints) -> Floats:
        """The vectors of these ids, from the catalog; as they are filed there.

        A small collection is read once and kept.

        Raises
        ------
        KeyError
            If one of them is not in this state.
        StaleError
            If a writer has taken some out since.
        """
        ids = np.asarray(ids, np.int64)
        unknown = ids[~np.isin(ids, self.ids())]
        if len(unknown):
            raise KeyError(int(unknown[0]))
        try:
            if len(self) > self.policy.exact_below:
                return self._read(ids)
            held = self._all
            if held is None:
                held = self._all = self._in_memory(self.ids())
            return held.gather(ids)
        except KeyError:
            raise StaleError(
                self._name, "cases were taken out since the index was opened", "ask again"
            ) from None

    def filed(self, ids: Ints) -> Floats:
        """What the collection itself holds under these ids."""
        return self._server.fetch(self._name, ids)
