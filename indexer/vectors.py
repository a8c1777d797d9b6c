"""The FAISS index behind three calls: add, remove, search; what any engine has to offer.

Without a partition the index is flat and exact. With one it is an inverted file whose lists are
filled and probed as the partition says, holding a border vector in two lists; scores and ids come
out the same, and no id twice. Vectors are stored as they are (float32), so a list of ids can be
gathered and searched exactly: that is what happens to small collections, narrow filters and deep
rankings, where probing would save nothing or lose neighbours.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from indexer.errors import CaseIndexError, PartitionError
from indexer.partition import Partition

faiss: Any = _faiss  # the type stubs that come with it lack or misstate much of what is used here

EXACT_BELOW = 20_000
"""Fewer candidates are compared one by one. Probing is quicker from 5000 on (two cores, d = 1280: at
24 000 a single query 0.3 instead of 5-10 ms, 150 of them 26 instead of 50 ms), but what exactness costs
up to here is a tenth of embedding the query."""
EXACT_SHARE = 0.1
"""A filter that keeps a smaller share is searched exactly: its vectors lie thinly in the lists (recall@10
in the lists was 0.98, 0.95 and 0.87 for all, a tenth and a fiftieth)."""
DEEP_SHARE = 0.005
"""A ranking deeper than this share is exact: the lists probed for ten neighbours hold too few (recall@k
was 0.98, 0.94 and 0.88 at 0.02 %, 0.4 % and 1 % of the collection)."""
BLOCK = 20_000
"""Vectors gathered at a time."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class VectorIndex(Protocol):
    """What an engine offers: the calls of :class:`Vectors`, where they are described."""

    partition: Partition | None

    def __len__(self) -> int: ...

    def ids(self) -> Ints:
        """All ids, ascending."""

    def list_sizes(self) -> Ints:
        """Entries of each list."""

    def add(self, ids: Ints, x: Floats) -> None:
        """File vectors."""

    def remove(self, ids: Ints) -> int:
        """Take vectors out."""

    def search(self, q: Floats, k: int, keep: Ints | None = None) -> tuple[Floats, Ints]:
        """Nearest vectors by cosine similarity."""

    def gather(self, ids: Ints) -> Floats:
        """The vectors of these ids, to be compared exactly."""

    def filed(self, ids: Ints) -> Floats:
        """The vectors of these ids as the engine holds them, to be compared with the catalog's."""


class Vectors:
    """Unit vectors by id; made by :meth:`build` or :meth:`load`.

    Searches may run in several threads at once; :meth:`add` and :meth:`remove` must be alone.

    Attributes
    ----------
    partition : Partition or None
        What the vectors are filed by.
    """

    def __init__(self, index: Any, partition: Partition | None) -> None:
        self._index = index
        self.partition = partition
        self._ids: Ints = np.unique(np.concatenate([ids for ids, _ in self._lists()]))
        self._places: Ints | None = None

    @classmethod
    def build(cls, ids: Ints, x: Floats, partition: Partition | None = None) -> Vectors:
        """File vectors in a new index.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
            Distinct, not negative.
        x : ndarray of float32, shape (n, d)
            Unit vectors.
        partition : Partition, optional
            Without one every search is exact.
        """
        d = x.shape[1]
        if partition is None:
            index = faiss.IndexIDMap(faiss.IndexFlatIP(d))
        else:
            coarse = faiss.IndexFlatL2(d)
            coarse.add(partition.centroids)
            # no direct map: its hash table keeps only one of two replicas, and removal misses the other
            index = faiss.IndexIVFFlat(coarse, d, len(partition.centroids), faiss.METRIC_INNER_PRODUCT)
            index.is_trained = True
        vectors = cls(index, partition)
        vectors.add(ids, x)
        return vectors

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> Ints:
        """All ids, ascending."""
        return self._ids.copy()

    def list_sizes(self) -> Ints:
        """Entries of each list, replicas counted; shape (c,), or (1,) without a partition."""
        return np.array([len(ids) for ids, _ in self._lists()], np.int64)

    def add(self, ids: Ints, x: Floats) -> None:
        """File vectors; many at a time (each call costs milliseconds of its own).

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
            Distinct, not negative, and none of them in the index.
        x : ndarray of float32, shape (n, d)
            Unit vectors.
        """
        ids = np.ascontiguousarray(ids, np.int64)
        x = np.ascontiguousarray(x, np.float32)
        if x.shape != (len(ids), self._index.d):
            raise ValueError(f"expected shape {(len(ids), self._index.d)}, got {x.shape}")
        new = np.sort(ids)
        merged = np.insert(self._ids, np.searchsorted(self._ids, new), new)
        if (np.diff(merged) <= 0).any() or (new < 0).any():
            raise ValueError("ids must be new, distinct and not negative")
        if not len(ids):
            return
        if self.partition is None:
            self._index.add_with_ids(x, ids)
        else:
            for lists in self.partition.lists_for(x).T:
                filed = lists >= 0
                entries = x[filed], ids[filed], lists[filed]  # named: FAISS gets bare pointers to them
                self._index.add_core(len(entries[0]), *map(faiss.swig_ptr, entries))
        self._ids, self._places = merged, None

    def remove(self, ids: Ints) -> int:
        """Take vectors out; ids that are not in the index are ignored.

        Returns
        -------
        int
            How many were taken out.
        """
        before = len(self)
        self._ids = np.setdiff1d(self._ids, ids)
        self._places = None
        if len(self) < before:
            self._index.remove_ids(faiss.IDSelectorBatch(np.ascontiguousarray(ids, np.int64)))
        return before - len(self)

    def search(self, q: Floats, k: int, keep: Ints | None = None) -> tuple[Floats, Ints]:
        """Nearest vectors by cosine similarity.

        Parameters
        ----------
        q : ndarray of float32, shape (n, d)
            Unit vectors.
        k : int
            Neighbours wanted.
        keep : ndarray of int64, optional
            Search among these ids only; unknown ones are ignored.

        Returns
        -------
        scores : ndarray of float32, shape (n, k)
            Cosine, descending, at most 1; −inf where there are fewer than k.
        ids : ndarray of int64, shape (n, k)
            Each at most once in a row; −1 where there are fewer than k.
        """
        q = np.ascontiguousarray(q, np.float32)
        if q.ndim != 2 or q.shape[1] != self._index.d or k < 1:
            raise ValueError(f"expected k >= 1 and shape (n, {self._index.d}), got k = {k}, {q.shape}")
        kept = self._ids if keep is None else self._ids[np.isin(self._ids, keep)]
        n, whole = len(self), len(kept) == len(self)
        if self.partition is None and whole:
            scores, ids = self._index.search(q, k)
        elif (
            self.partition is None
            or len(kept) < EXACT_BELOW
            or len(kept) < EXACT_SHARE * n
            or k > DEEP_SHARE * n
        ):
            scores, ids = self._search_exactly(q, k, kept)
        else:
            scores, ids = self._search_lists(q, k, self.partition, None if whole else kept)
        scores[ids < 0] = -np.inf
        return np.minimum(scores, 1, out=scores), ids

    def gather(self, ids: Ints) -> Floats:
        """The vectors of these ids.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)

        Returns
        -------
        ndarray of float32, shape (n, d)

        Raises
        ------
        KeyError
            If one of them is not in the index.
        """
        ids = np.asarray(ids, np.int64)
        at = np.searchsorted(self._ids, ids)
        unknown = ids[self._ids[np.minimum(at, len(self) - 1)] != ids] if len(self) else ids
        if len(unknown):
            raise KeyError(int(unknown[0]))
        x = np.empty((len(ids), self._index.d), np.float32)
        lists = self._lists()
        if self._places is None:
            self._places = _places(self._ids, [own for own, _ in lists])
        number, position = self._places[:, at]
        order = np.argsort(number, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
            if len(rows):
                x[rows] = lists[number[rows[0]]][1][position[rows]]
        return x

    def filed(self, ids: Ints) -> Floats:
        """The same as :meth:`gather`: there is one copy."""
        return self.gather(ids)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the FAISS index to a file; the partition is saved by itself."""
        # by a Python file: FAISS's own does not notice that closing it failed, and a full disk cuts it short
        with Path(path).open("wb") as file:
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))

    @classmethod
    def load(cls, path: str | os.PathLike[str], partition: Partition | None = None) -> Vectors:
        """Read what :meth:`save` wrote. FAISS does not notice flipped bits: keep a checksum.

        Raises
        ------
        CaseIndexError
            If FAISS cannot read the file.
        PartitionError
            If the vectors were filed by another partition.
        FileNotFoundError
            If there is no such file.
        """
        Path(path).stat()
        try:
            index = faiss.read_index(os.fspath(path))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise CaseIndexError(path, f"cannot be read ({reason})", "run `cbir verify --repair`") from error
        if partition is None:
            fits = isinstance(index, faiss.IndexIDMap)
        else:
            fits = isinstance(index, faiss.IndexIVFFlat) and np.array_equal(
                index.quantizer.reconstruct_n(), partition.centroids
            )
        if not fits:
            raise PartitionError(path, "was filed by another partition", "run `cbir verify --repair`")
        return cls(index, partition)

    def _lists(self) -> list[tuple[Ints, Floats]]:
        """Ids and vectors of each list, as views into FAISS's memory (valid until the next change)."""
        index, d = self._index, self._index.d
        if self.partition is None:
            flat = faiss.downcast_index(index.index)
            x = _view(flat.get_xb(), flat.ntotal * d, np.float32)
            return [(faiss.vector_to_array(index.id_map), x.reshape(-1, d))]
        lists = []
        for i in range(index.nlist):
            size = index.invlists.list_size(i)
            x = _view(index.invlists.get_codes(i), size * d * 4, np.float32)
            lists.append((_view(index.invlists.get_ids(i), size, np.int64), x.reshape(-1, d)))
        return lists

    def _search_exactly(self, q: Floats, k: int, ids: Ints) -> tuple[Floats, Ints]:
        best = faiss.ResultHeap(len(q), k, keep_max=True)
        for begin in range(0, len(ids), BLOCK):
            block = ids[begin : begin + BLOCK]
            scores, found = faiss.knn(
                q, self.gather(block), min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT
            )
            best.add_result(scores, block[found])
        best.finalize()
        return best.D, best.I

    def _search_lists(
        self, q: Floats, k: int, partition: Partition, kept: Ints | None
    ) -> tuple[Floats, Ints]:
        probes = np.ascontiguousarray(partition.probes_for(q))
        selector = None if kept is None else _selector(kept)
        settings = faiss.SearchParametersIVF(nprobe=probes.shape[1], sel=selector)
        wide = 2 * k  # a vector is in two lists at most
        scores, ids = np.empty((len(q), wide), np.float32), np.empty((len(q), wide), np.int64)
        unused = np.zeros(probes.shape, np.float32)
        # the underlying call: its Python wrapper takes no parameters, and the probe count of the
        # index itself would be shared between threads
        self._index.search_preassigned_c(
            len(q),
            faiss.swig_ptr(q),
            wide,
            faiss.swig_ptr(probes),
            faiss.swig_ptr(unused),
            faiss.swig_ptr(scores),
            faiss.swig_ptr(ids),
            False,
            settings,
        )
        return distinct(scores, ids, k)


def _view(pointer: Any, size: int, dtype: Any) -> NDArray[Any]:
    """An array over FAISS's memory, of `size` items of the pointer's type, read as `dtype`."""
    # where there are none the pointer is null and has no type
    return faiss.rev_swig_ptr(pointer, size).view(dtype) if size else np.empty(0, dtype)


def distinct(scores: Floats, ids: Ints, k: int) -> tuple[Floats, Ints]:
    """First k distinct ids of each row, in the order they come in; −1 is no id."""
    by_id = np.argsort(ids, axis=1, kind="stable")
    in_order = np.take_along_axis(ids, by_id, axis=1)
    again = np.zeros(ids.shape, bool)
    np.put_along_axis(again, by_id[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    first = np.argsort(again | (ids < 0), axis=1, kind="stable")[:, :k]
    ids = np.where(np.take_along_axis(again, first, axis=1), -1, np.take_along_axis(ids, first, axis=1))
    return np.take_along_axis(scores, first, axis=1), ids


def _selector(ids: Ints) -> Any:
    """A FAISS set of ids: a bitmap where they are dense, else a hash set."""
    if ids[-1] < 64 * len(ids):
        mask = np.zeros(int(ids[-1]) + 1, bool)
        mask[ids] = True
        return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
    return faiss.IDSelectorBatch(ids)


def _places(ids: Ints, lists: list[Ints]) -> Ints:
    """List number and position in it of each id (one of its replicas); shape (2, n)."""
    places = np.empty((2, len(ids)), np.int64)
    for number, own in enumerate(lists):
        at = np.searchsorted(ids, own)
        places[0, at], places[1, at] = number, np.arange(len(own))
    return places
