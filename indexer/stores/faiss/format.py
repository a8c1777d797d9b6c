"""Files of a flat index and of an inverted file, in FAISS's own format, without FAISS.

FAISS believes a file: what is not one, or was made by somebody to harm, ends the process or takes its memory.
So here nothing is believed before it was compared with the bytes that are there, and there is room for two
kinds of index only: ``IndexIDMap`` of ``IndexFlatIP``, and ``IndexIVFScalarQuantizer`` of bytes over
``IndexFlatL2``. FAISS reads what is written here, and the reverse (faiss/impl/index_write.cpp).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from indexer.files import opened

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

HEADER = np.dtype([("d", "<i4"), ("count", "<i8"), ("unused", "<i8", 2), ("trained", "?"), ("metric", "<i4")])
QUANTIZER = np.dtype(
    [("type", "<i4"), ("range", "<i4"), ("argument", "<f4"), ("d", "<u8"), ("code", "<u8"), ("learnt", "<u8")]
)
PRODUCT, DISTANCE = 0, 1
"""FAISS's metrics: inner product and L2."""
BYTES = 5
"""``QT_8bit_direct``: a component is a byte, as it is."""
UNUSED = 2**20


class KindError(ValueError):
    """An index of another kind than was asked for."""


@dataclass(frozen=True)
class Inverted:
    """Lists of an inverted file: their centroids, and ids and codes of each."""

    centroids: Floats
    lists: list[tuple[Ints, Bytes]]


def write_flat(file: BinaryIO, ids: Ints, x: Floats) -> None:
    """Write vectors with their ids."""
    count, d = x.shape
    _header(file, b"IxMp", d, count, PRODUCT)
    _flat(file, b"IxFI", x, PRODUCT)
    _put(file, np.array(count, "<u8"), ids.astype("<i8", copy=False))


def write_inverted(
    file: BinaryIO, centroids: Floats, lists: Sequence[tuple[Ints, Bytes]], probed: int = 1
) -> None:
    """Write lists of codes."""
    count, d = centroids.shape
    sizes = np.array([len(ids) for ids, _ in lists], "<u8")
    _header(file, b"IwSq", d, int(sizes.sum()), DISTANCE)
    _put(file, np.array([count, probed], "<u8"))
    _flat(file, b"IxF2", centroids, DISTANCE)
    _put(file, np.array(0, "u1"), np.array(0, "<u8"))  # no map from ids to places
    _put(file, np.array((BYTES, 0, 0, d, d, 0), QUANTIZER), np.array(d, "<u8"), np.array(False))
    file.write(b"ilar")
    _put(file, np.array([count, d], "<u8"))
    file.write(b"full")
    _put(file, np.array(count, "<u8"), sizes)
    for ids, codes in lists:
        _put(file, codes, ids.astype("<i8", copy=False))


def read_flat(path: Path, dimension: int | None = None) -> tuple[Ints, Floats]:
    """Ids and vectors of a file; of any dimension where none is given.

    Raises
    ------
    ValueError
        If it is none of a flat index of this dimension, whole and with nothing behind it.
    """
    held = _Held(path)
    held.kind(b"IxMp")
    dimension, count = held.header(dimension, PRODUCT)
    held.kind(b"IxFI")
    x = held.flat(dimension, PRODUCT, count)
    ids = held.vector("<i8", count)
    held.end()
    return ids.astype(np.int64), x


def read_inverted(path: Path, dimension: int) -> Inverted:
    """Lists of a file, as views of it.

    Raises
    ------
    ValueError
        If it is none of an inverted file of this dimension, whole and with nothing behind it.
    """
    held = _Held(path)
    held.kind(b"IwSq")
    _, entries = held.header(dimension, DISTANCE)
    count, _ = held.numbers(2)
    held.kind(b"IxF2")
    centroids = held.flat(dimension, DISTANCE, count)
    held.require(held.take("u1", 1)[0] == 0 and held.numbers(1) == [0], "has a map of ids")
    (quantizer,) = held.take(QUANTIZER, 1)
    own = [quantizer[name] for name in ("type", "d", "code", "learnt")] == [BYTES, dimension, dimension, 0]
    held.require(own and held.numbers(1) == [dimension], "has codes of another kind")
    held.require(held.take("u1", 1)[0] == 0, "has codes of residuals")
    held.kind(b"ilar")
    held.require(held.numbers(2) == [count, dimension], "has lists that are not those of its centroids")
    sizes = held.sizes(count)
    held.require(sum(sizes) == entries, "has another number of entries than its lists")
    lists = []
    for size in sizes:
        codes = held.take("u1", size * dimension).reshape(size, dimension)
        lists.append((held.take("<i8", size).astype(np.int64), codes))
    held.end()
    return Inverted(centroids, lists)


class _Held:
    """The bytes of a file, taken from the beginning on; more than there are cannot be asked for."""

    def __init__(self, path: Path) -> None:
        with os.fdopen(opened(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            held = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
        self._bytes: Bytes = np.frombuffer(held, np.uint8)
        self._at = 0

    def require(self, true: bool | np.bool_, what: str) -> None:
        if not true:
            raise ValueError(what)

    def take(self, dtype: Any, count: int) -> NDArray[Any]:
        dtype = np.dtype(dtype)
        end = self._at + count * dtype.itemsize
        self.require(0 <= count <= len(self._bytes) and end <= len(self._bytes), "is cut short")
        found: NDArray[Any] = self._bytes[self._at : end].view(dtype)
        self._at = end
        return found

    def kind(self, name: bytes) -> None:
        if self.take("u1", 4).tobytes() != name:
            raise KindError("is no index of this kind")

    def numbers(self, count: int) -> list[int]:
        found: list[int] = self.take("<u8", count).tolist()
        return found

    def header(self, dimension: int | None, metric: int) -> tuple[int, int]:
        """The dimension, and how many entries there are said to be."""
        (found,) = self.take(HEADER, 1)
        d, count = int(found["d"]), int(found["count"])
        self.require(d > 0 and dimension in (None, d), f"has vectors of {d} numbers, not {dimension}")
        self.require(found["metric"] == metric, "is compared otherwise")
        return d, count

    def vector(self, dtype: Any, count: int) -> NDArray[Any]:
        self.require(self.numbers(1) == [count], "has another number of entries than it says")
        return self.take(dtype, count)

    def flat(self, dimension: int, metric: int, count: int) -> Floats:
        self.require(
            self.header(dimension, metric) == (dimension, count), "has another number of vectors than it says"
        )
        x: Floats = self.vector("<f4", count * dimension).astype(np.float32).reshape(count, dimension)
        return x

    def sizes(self, count: int) -> list[int]:
        """How long the lists are: of all, or of those that hold anything."""
        how = self.take("u1", 4).tobytes()
        if how == b"full":
            sizes: list[int] = self.vector("<u8", count).tolist()
            return sizes
        self.require(how == b"sprs", "has lists of another kind")
        (twice,) = self.numbers(1)
        found = [0] * count
        for place, size in self.take("<u8", twice).reshape(-1, 2).tolist() if twice % 2 == 0 else ():
            self.require(place < count, "has a list that is none of its lists")
            found[place] = size
        return found

    def end(self) -> None:
        self.require(self._at == len(self._bytes), "goes on behind its end")


def _header(file: BinaryIO, kind: bytes, d: int, count: int, metric: int) -> None:
    file.write(kind)
    _put(file, np.array((d, count, (UNUSED, UNUSED), True, metric), HEADER))


def _flat(file: BinaryIO, kind: bytes, x: Floats, metric: int) -> None:
    _header(file, kind, x.shape[1], len(x), metric)
    _put(file, np.array(x.size, "<u8"), x.astype("<f4", copy=False))


def _put(file: BinaryIO, *arrays: NDArray[Any]) -> None:
    for array in arrays:
        file.write(np.ascontiguousarray(array).data)
