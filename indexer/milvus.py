"""The vectors in a collection of a Milvus server, behind the calls of the FAISS index.

An entry is a vector in one of the partition's lists; a border vector has two. The list is the
collection's partition key, so a search goes to the same lists as in FAISS, and within them it is exact
(Milvus' index type FLAT). What is compared exactly comes from the catalog: reading vectors out of Milvus
takes several times as long (`benchmarks/engines.py`).

The collection is changed in place, by the one writer. A snapshot of the index therefore keeps the ids
it was made with: what a later writer adds is not seen, what it takes out is noticed.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from indexer.errors import CaseIndexError, StaleError
from indexer.partition import Partition
from indexer.vectors import DEEP_SHARE, EXACT_BELOW, EXACT_SHARE, Floats, Ints, Vectors, distinct

TOKEN = "CBIR_MILVUS_TOKEN"
"""Environment variable with the user's token, which is written nowhere."""
PATIENCE = 20.0
"""Seconds for a call, with what is tried again after a lost connection."""
SETTLING = 10.0
"""Seconds after opening in which a search waits for all that was written before (consistency level
`Strong`, some tenths of a second); later `Bounded` is enough: it lags five seconds at most."""
MOST = 16_384
"""Hits that Milvus gives for a query vector at most."""
LISTED = 50_000
"""Ids that a filter names one by one, at most."""
ROWS = 2000
"""Entries sent at a time: at 1280 numbers each 10 MB of the 64 that a message may have."""
RANGE = 100_000
"""Entries whose ids are asked for at a time."""
PARTITIONS = 64
"""Partitions of Milvus that the lists are spread over, at most; each costs the server memory."""


class Milvus:
    """A server; many threads may ask at a time.

    Parameters
    ----------
    uri : str
        Such as ``http://127.0.0.1:19530``, without user and password.

    Raises
    ------
    CaseIndexError
        If it does not answer, or the client is not installed.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CaseIndexError(uri, "is not the address of a Milvus", "name one such as http://host:19530")
        if parts.username or parts.password:
            raise CaseIndexError(
                parts.hostname, "the address holds a password", f"put it as user:password into {TOKEN}"
            )
        try:
            import grpc
            import pymilvus
        except ModuleNotFoundError as error:
            raise CaseIndexError(
                error.name or "pymilvus",
                "is not installed",
                "install what this needs: pip install 'cbir[milvus]'",
            ) from None
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it prints what it raises
        self.uri = uri
        self._types = pymilvus.DataType
        self._errors = (pymilvus.MilvusException, grpc.RpcError)
        with self._told():
            self._client: Any = pymilvus.MilvusClient(
                uri=uri, token=os.environ.get(TOKEN, ""), timeout=PATIENCE
            )

    def close(self) -> None:
        """Release the connection."""
        self._client.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            text = str(getattr(error, "message", "") or error.details())
            if "collection not found" in text or "can't find collection" in text:
                raise StaleError(self.uri, "the collection is gone", "run `cbir verify --repair`") from error
            if "not loaded" in text:  # the server was started again
                raise StaleError(self.uri, "the collection is not loaded", "repeat the command") from error
            reason = " ".join(text.split())[:200]
            raise CaseIndexError(
                self.uri,
                f"Milvus cannot be used ({reason})",
                "see that it is running, and repeat the command",
            ) from error

    def collections(self, beginning: str) -> list[str]:
        """Names of the collections that begin so."""
        with self._told():
            names: list[str] = self._client.list_collections(timeout=PATIENCE)
        return sorted(name for name in names if name.startswith(beginning))

    def create(self, name: str, dimension: int, lists: int, note: str) -> None:
        """Make an empty collection and hold it ready.

        Parameters
        ----------
        name : str
        dimension : int
        lists : int
            Lists of the partition; 0 without one.
        note : str
            What the collection says about itself.
        """
        client, types = self._client, self._types
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=note)
        schema.add_field("entry", types.INT64, is_primary=True)  # twice the slice's id, the second + 1
        schema.add_field("slice", types.INT64)
        schema.add_field("list", types.INT64, is_partition_key=bool(lists))
        schema.add_field("embedding", types.FLOAT_VECTOR, dim=dimension)
        index = client.prepare_index_params()
        index.add_index("embedding", index_type="FLAT", metric_type="IP")
        spread = {"num_partitions": min(PARTITIONS, lists)} if lists else {}
        with self._told():
            client.create_collection(name, schema=schema, index_params=index, timeout=3 * PATIENCE, **spread)

    def load(self, name: str) -> None:
        """Hold a collection ready; a server that was started again does not by itself."""
        with self._told():
            self._client.load_collection(name, timeout=3 * PATIENCE)

    def drop(self, name: str) -> None:
        """Take a collection away; one that is not there is ignored."""
        with self._told():
            self._client.drop_collection(name, timeout=PATIENCE)

    def count(self, name: str, condition: str = "entry >= 0", *, strong: bool = True) -> int:
        """Entries that meet a condition, if `strong` with all that was written before."""
        (row,) = self._ask(name, condition, ["count(*)"], strong=strong)
        return int(row["count(*)"])

    def ids(self, name: str, last: int) -> Ints:
        """Ids of all slices in a collection, ascending.

        Parameters
        ----------
        name : str
        last : int
            The highest that is expected; a guess that is too low costs memory, not rows.
        """
        starts = range(0, 2 * last + 2, RANGE)
        found = []
        for start in starts:
            end = f" and entry < {start + RANGE}" if start != starts[-1] else ""
            rows = self._ask(name, f"entry >= {start}{end}", ["slice"])
            found += [row["slice"] for row in rows]
        return np.unique(np.array(found, np.int64))

    def fetch(self, name: str, ids: Ints) -> Floats:
        """The vectors as they are held, NaN for ids that are not; shape (n, d)."""
        held: dict[int, Floats] = {}
        for start in range(0, len(ids), ROWS):
            entries = (2 * ids[start : start + ROWS]).tolist()
            rows = self._ask(name, f"entry in {entries}", ["slice", "embedding"])
            held |= {row["slice"]: np.array(row["embedding"], np.float32) for row in rows}
        empty = np.full_like(next(iter(held.values())), np.nan) if held else np.empty(0, np.float32)
        return np.stack([held.get(i, empty) for i in ids.tolist()])

    def insert(self, name: str, ids: Ints, x: Floats, partition: Partition | None) -> None:
        """File vectors that the collection has not."""
        lists = np.zeros((len(ids), 1), np.int64) if partition is None else partition.lists_for(x)
        rows = [
            {"entry": 2 * i + second, "slice": i, "list": number, "embedding": vector}
            for i, own, vector in zip(ids.tolist(), lists.tolist(), x, strict=True)
            for second, number in enumerate(own)
            if number >= 0
        ]
        for start in range(0, len(rows), ROWS):
            # Milvus 2.3 loses the partition key where it replaces ("upsert"). An insert must not be tried
            # again by the client, which would file twice: the next writer asks first what there is.
            with self._told():
                self._client.insert(name, rows[start : start + ROWS], retry_times=0, timeout=3 * PATIENCE)

    def delete(self, name: str, ids: Ints) -> None:
        """Take vectors out; ids that are not there are ignored."""
        for start in range(0, len(ids), ROWS):
            block = ids[start : start + ROWS]
            entries = np.concatenate([2 * block, 2 * block + 1]).tolist()
            with self._told():
                self._client.delete(name, filter=f"entry in {entries}", timeout=PATIENCE)

    def search(self, name: str, q: Floats, k: int, condition: str, *, strong: bool) -> tuple[Floats, Ints]:
        """The nearest entries; scores and slices of shape (n, k), −inf and −1 where there are fewer."""
        with self._told():
            found = self._client.search(
                name,
                list(q),
                filter=condition,
                limit=k,
                output_fields=["slice"],
                anns_field="embedding",
                search_params={"metric_type": "IP"},
                consistency_level=_level(strong),
                timeout=PATIENCE,
            )
        scores, ids = np.full((len(q), k), -np.inf, np.float32), np.full((len(q), k), -1, np.int64)
        for row, hits in enumerate(found):
            scores[row, : len(hits)] = [hit["distance"] for hit in hits]
            ids[row, : len(hits)] = [hit["entity"]["slice"] for hit in hits]
        return scores, ids

    def _ask(
        self, name: str, condition: str, fields: list[str], *, strong: bool = True
    ) -> list[dict[str, Any]]:
        with self._told():
            rows: list[dict[str, Any]] = self._client.query(
                name,
                condition,
                output_fields=fields,
                consistency_level=_level(strong),
                timeout=3 * PATIENCE,
            )
        return rows


class MilvusVectors:
    """One state of an index whose vectors are in Milvus.

    :meth:`add` and :meth:`remove` change what this object knows, not the collection: that is how what
    came and went since the collection was filed is taken up, as in a FAISS index in memory.

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
    """

    def __init__(
        self,
        server: Milvus,
        name: str,
        dimension: int,
        partition: Partition | None,
        ids: Ints,
        read: Callable[[Ints], Floats],
    ) -> None:
        self.partition = partition
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

    def add(self, ids: Ints, x: Floats) -> None:
        """Know vectors that the collection has not; as :meth:`Vectors.add`."""
        self._added.add(ids, x)
        self._all = None

    def remove(self, ids: Ints) -> int:
        """Know nothing of these any more; returns how many there were."""
        before = len(self)
        self._filed = np.setdiff1d(self._filed, ids)
        self._added.remove(ids)
        self._all = None
        return before - len(self)

    def search(self, q: Floats, k: int, keep: Ints | None = None) -> tuple[Floats, Ints]:
        """Nearest vectors by cosine similarity; as :meth:`Vectors.search`, to a depth of 16 384 entries.

        The lists probed are those of all the query's vectors together: one call to the server, which
        looks at more and never at less.
        """
        q = np.ascontiguousarray(q, np.float32)
        if q.ndim != 2 or q.shape[1] != self._dimension or k < 1:
            raise ValueError(f"expected k >= 1 and shape (n, {self._dimension}), got k = {k}, {q.shape}")
        kept = self._filed if keep is None else self._filed[np.isin(self._filed, keep)]
        n, near = len(self._filed), self.partition
        if len(kept) < EXACT_BELOW or len(kept) < EXACT_SHARE * n or k > DEEP_SHARE * n:
            near = None
        scores, ids = self._added.search(q, k, keep)
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
            wide = min(wide, MOST)
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
            if whole or wide == MOST or bool((ids[:, -1] >= 0).all()):
                break
            wide *= 4
        missing = k - ids.shape[1]
        if missing > 0:
            ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=-1)
            scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        scores[ids < 0] = -np.inf
        return scores, ids

    def gather(self, ids: Ints) -> Floats:
        """The vectors of these ids, from the catalog; as :meth:`Vectors.gather`.

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
            if len(self) > EXACT_BELOW:
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


def _level(strong: bool) -> str:
    return "Strong" if strong else "Bounded"
