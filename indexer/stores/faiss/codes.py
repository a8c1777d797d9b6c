"""FAISS indexes: flat, or inverted files of codes of 8 bits, filled as a partition says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from indexer.errors import CaseIndexError, PartitionError
from indexer.partition import Partition
from indexer.stores.faiss.format import KindError, read_flat, read_inverted, write_flat, write_inverted

faiss: Any = _faiss  # the type stubs that come with it lack or misstate much of what is used here

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def empty(dimension: int, partition: Partition | None) -> Any:
    """An index without vectors."""
    if partition is None:
        return faiss.IndexIDMap(faiss.IndexFlatIP(dimension))
    coarse = faiss.IndexFlatL2(dimension)
    coarse.add(partition.centroids)
    # no direct map: its hash table keeps only one of two replicas, and removal misses the other
    index = faiss.IndexIVFScalarQuantizer(
        coarse,
        dimension,
        len(partition.centroids),
        faiss.ScalarQuantizer.QT_8bit_direct,
        faiss.METRIC_L2,
        False,  # codes of the vector, not of its residual
    )
    index.is_trained = True
    coarse.this.disown()
    index.own_fields = True
    return index


def file(index: Any, partition: Partition | None, ids: Ints, x: Floats) -> None:
    """Put vectors into an index, into the lists of its partition."""
    ids = np.ascontiguousarray(ids, np.int64)
    if partition is None:
        index.add_with_ids(np.ascontiguousarray(x, np.float32), ids)
        return
    codes = coded(x, partition)
    for lists in partition.lists_for(x).T:
        filed = lists >= 0
        entries = codes[filed], ids[filed], lists[filed]  # named: FAISS gets bare pointers to them
        if len(entries[0]):
            index.add_core(len(entries[0]), *map(faiss.swig_ptr, entries))


def coded(x: Floats, partition: Partition) -> Floats:
    """Vectors on the scale of the codes, 0 to 255; FAISS casts these to bytes."""
    scaled: Floats = (x - np.float32(partition.low)) * np.float32(255 / (partition.high - partition.low))
    return np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled)


def take_up(index: Any, other: Any, gone: Ints) -> None:
    """Put the entries of another index into the lists of this one, without filing anything again."""
    for i, (ids, codes) in enumerate(lists(other)):
        stays = ~np.isin(ids, gone)
        kept = ids[stays], codes[stays]
        if len(kept[0]):
            index.invlists.add_entries(i, len(kept[0]), *map(faiss.swig_ptr, kept))
            index.ntotal += len(kept[0])


def lists(index: Any) -> list[tuple[Ints, NDArray[Any]]]:
    """Ids and vectors or codes of each list, as views into FAISS's memory (until the next change)."""
    d = index.d
    if isinstance(index, faiss.IndexIDMap):
        flat = faiss.downcast_index(index.index)
        x = _view(flat.get_xb(), flat.ntotal * d, np.float32)
        return [(faiss.vector_to_array(index.id_map), x.reshape(-1, d))]
    found = []
    for i in range(index.nlist):
        size = index.invlists.list_size(i)
        x = _view(index.invlists.get_codes(i), size * d, np.uint8)
        found.append((_view(index.invlists.get_ids(i), size, np.int64), x.reshape(-1, d)))
    return found


def write(index: Any, to: BinaryIO) -> None:
    """Write an index to a file."""
    if isinstance(index, faiss.IndexIDMap):
        ((ids, x),) = lists(index)
        write_flat(to, ids, x)
    else:
        write_inverted(to, index.quantizer.reconstruct_n(), lists(index))


def opened(path: Path, partition: Partition) -> Any:
    """The inverted file that was written, if it is one of this partition.

    Raises
    ------
    CaseIndexError
        If it is something else.
    PartitionError
        If it was filed by another partition.
    """
    dimension = partition.centroids.shape[1]
    with _told(path):
        held = read_inverted(path, dimension)
    if not np.array_equal(held.centroids, partition.centroids):
        raise _otherwise(path)
    index = empty(dimension, partition)
    for i, (ids, codes) in enumerate(held.lists):
        if len(ids):
            index.invlists.add_entries(i, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))
    index.ntotal = sum(len(ids) for ids, _ in held.lists)
    return index


def flat(path: Path, dimension: int | None) -> tuple[Ints, Floats]:
    """Ids and vectors of a flat index that was written.

    Raises
    ------
    CaseIndexError
        If it is something else.
    """
    with _told(path):
        return read_flat(path, dimension)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except KindError as error:
        raise _otherwise(path) from error
    except ValueError as error:
        raise CaseIndexError(path, f"cannot be read (it {error})", "run `cbir verify --repair`") from error


def _otherwise(path: Path) -> PartitionError:
    return PartitionError(path, "was filed by another partition", "run `cbir verify --repair`")


def mapped(path: Path, dimension: int, count: int) -> Floats:
    """So many vectors in a file."""
    size = path.stat().st_size // (4 * dimension)
    if size != count:
        raise CaseIndexError(path, f"holds {size} vectors, not {count}", "run `cbir verify --repair`")
    if not size:  # nothing can be mapped
        return np.empty((0, dimension), np.float32)
    return np.memmap(path, "<f4", "r", shape=(size, dimension))


@dataclass(frozen=True)
class Kept:
    """Ids that are searched, ascending."""

    ids: Ints

    @cached_property
    def bits(self) -> NDArray[np.uint8] | None:
        """A bit an id, where they are dense."""
        if not len(self.ids) or self.ids[-1] >= 64 * len(self.ids):
            return None
        mask = np.zeros(int(self.ids[-1]) + 1, bool)
        mask[self.ids] = True
        return np.packbits(mask, bitorder="little")


def selector(kept: Kept | None, out: Ints) -> Any:
    """A FAISS set of the ids that may be found: None for all, a bitmap where they are dense, else a hash.

    Parameters
    ----------
    kept : Kept, optional
        All, if not given.
    out : ndarray of int64
        But for these, which are among them.
    """
    if kept is None:
        return faiss.IDSelectorNot(faiss.IDSelectorBatch(out)) if len(out) else None
    if kept.bits is None:
        return faiss.IDSelectorBatch(np.setdiff1d(kept.ids, out, assume_unique=True))
    bits = kept.bits.copy()
    np.bitwise_and.at(bits, out >> 3, ~np.left_shift(1, out & 7).astype(np.uint8))
    return faiss.IDSelectorBitmap(bits)


def _view(pointer: Any, size: int, dtype: Any) -> NDArray[Any]:
    """An array over FAISS's memory, of `size` items of the pointer's type, read as `dtype`."""
    # where there are none the pointer is null and has no type
    return faiss.rev_swig_ptr(pointer, size).view(dtype) if size else np.empty(0, dtype)
