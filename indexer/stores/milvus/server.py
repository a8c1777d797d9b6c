"""A Milvus server and its collections.

An entry is a vector in one of the partition's lists; a border vector has two. The list is the
collection's partition key, so a search goes to the same lists as in FAISS, and within them it is exact
(Milvus' index type FLAT).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from indexer.errors import CaseIndexError, StaleError
from indexer.partition import Partition
from indexer.stores.protocol import Floats, Ints

TOKEN = "CBIR_MILVUS_TOKEN"
"""Environment variable with the user's token, which is written nowhere."""
PATIENCE = 20.0
"""Seconds for a call, with what is tried again after a lost connection."""
ROWS = 2000
"""Entries sent at a time: at 1280 numbers each 10 MB of the 64 that a message may have."""
RANGE = 100_000
"""Entries whose ids are asked for at a time."""
PARTITIONS = 64
"""Partitions of Milvus that the lists are spread over, at most; each costs the server memory."""


LOGS = ("pymilvus", "pymilvus.milvus_client", "pymilvus.bulk_writer")
"""Loggers that pymilvus sets up when it is imported; they are the host's."""


@contextmanager
def _unchanged() -> Iterator[None]:
    """Have these loggers afterwards as they were before."""
    logs = [logging.getLogger(name) for name in LOGS]
    before = [(log, log.level, log.propagate, list(log.handlers)) for log in logs]
    try:
        yield
    finally:
        for log, level, propagate, handlers in before:
            log.setLevel(level)
            log.propagate, log.handlers = propagate, handlers


class _Silence:
    """A context in which pymilvus does not log what it raises; many threads may be inside."""

    def __init__(self) -> None:
        self._lock, self._inside, self._level = threading.Lock(), 0, logging.NOTSET

    def __enter__(self) -> None:
        log = logging.getLogger(LOGS[0])
        with self._lock:
            if not self._inside:
                self._level = log.level
                log.setLevel(logging.CRITICAL)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                logging.getLogger(LOGS[0]).setLevel(self._level)


_SILENCE = _Silence()


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
            with _unchanged():
                import grpc
                import pymilvus
        except ModuleNotFoundError as error:
            raise CaseIndexError(
                error.name or "pymilvus",
                "is not installed",
                "install what this needs: pip install 'cbir[milvus]'",
            ) from None
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
            with _SILENCE:
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


def _level(strong: bool) -> str:
    return "Strong" if strong else "Bounded"
