"""The FAISS index behind three calls: add, remove, search; what any engine has to offer.

Without a partition the index is flat and exact. With one it is an inverted file whose lists are
filled and probed as the partition says, a border vector perhaps in two of them. The lists hold codes
of 8 bits a component, of one scale for all components, so that a search compares bytes with bytes: by
distance, which takes half the time of decoding them and, unlike the inner product, also sees by how much
rounding has changed a code's length. The vectors themselves lie in a second file, by
ascending id, which is mapped into memory and read where it is needed: the best of the codes are
compared again exactly, and so is all that the lists are not fit for (small collections, narrow filters,
deep rankings). Scores are exact either way, and no id comes out twice.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
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
SPARE = 10
"""Beside 1.5 times the neighbours wanted, so many are compared again: of the ten nearest among a million
vectors the codes have 0.946 in their first ten, 0.9987 in 15 and all in 20."""
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
        # of each file of vectors, the ids and the vectors
        self._files: list[tuple[Ints, Floats]] = []
        self._places: Ints | None = None
        self._added: Ints = np.empty(0, np.int64)
        self._added_rows: Floats = np.empty((0, index.d), np.float32)

    @classmethod
    def build(cls, ids: Ints, x: Floats, partition: Partition | None = None) -> Vectors:
        """File vectors in a new index, in memory.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
            Distinct, not negative.
        x : ndarray of float32, shape (n, d)
            Unit vectors.
        partition : Partition, optional
            Without one every search is exact.
        """
        vectors = cls(_empty(x.shape[1], partition), partition)
        vectors.add(ids, x)
        if partition is not None:
            vectors._files = [(vectors._added, vectors._added_rows)]
            vectors._added, vectors._added_rows = vectors._added[:0], vectors._added_rows[:0]
        return vectors

    @staticmethod
    def write(
        path: str | os.PathLike[str],
        rows: str | os.PathLike[str] | None,
        blocks: Iterable[tuple[Ints, Floats]],
        dimension: int,
        partition: Partition | None = None,
    ) -> None:
        """File vectors straight into files, in the memory of their codes.

        Parameters
        ----------
        path : path
            For the FAISS index.
        rows : path or None
            For the vectors; only with a partition.
        blocks : iterable of (ids, vectors)
            By ascending id.
        dimension : int
        partition : Partition, optional
        """
        if partition is None or rows is None:
            vectors = Vectors.build(np.empty(0, np.int64), np.empty((0, dimension), np.float32))
            for ids, x in blocks:
                vectors.add(ids, x)
            vectors.save(path)
            return
        index = _empty(dimension, partition)
        with Path(rows).open("wb") as file:
            for ids, x in blocks:
                _file(index, partition, ids, x)
                np.ascontiguousarray(x, "<f4").tofile(file)
        faiss.write_index(index, os.fspath(path))

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
            _file(self._index, self.partition, ids, x)
            by_id = np.argsort(ids)
            at = np.searchsorted(self._added, new)
            self._added = np.insert(self._added, at, new)
            self._added_rows = np.insert(self._added_rows, at, x[by_id], axis=0)
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
        stays = ~np.isin(self._added, ids)
        self._added, self._added_rows = self._added[stays], self._added_rows[stays]
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
            scores, ids = self._search_lists(q, k, self.partition, kept)
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
        if self.partition is None:
            (own, x), *_ = self._lists()
            if self._places is None:
                self._places = np.argsort(own)  # of the ids, which are in order
            return x[self._places[at]]
        return self._read(ids)

    def _read(self, ids: Ints) -> Floats:
        """Vectors by ids that are in the index: of the files, or added since."""
        x = np.empty((len(ids), self._index.d), np.float32)
        for held, rows in self._pieces():
            at = np.searchsorted(held, ids).clip(max=len(held) - 1)
            own = held[at] == ids
            x[own] = rows[at[own]]
        return x

    def _pieces(self) -> Iterator[tuple[Ints, Floats]]:
        """Ids, ascending, and vectors; of an id that was taken out and came again, the last counts."""
        return (piece for piece in (*self._files, (self._added, self._added_rows)) if len(piece[0]))

    def filed(self, ids: Ints) -> Floats:
        """The same as :meth:`gather`: there is one copy."""
        return self.gather(ids)

    def save(self, path: str | os.PathLike[str], rows: str | os.PathLike[str] | None = None) -> None:
        """Write the FAISS index to a file, and with a partition the vectors to another."""
        # by a Python file: FAISS's own does not notice that closing it failed, and a full disk cuts it short
        with Path(path).open("wb") as file:
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))
        if rows is not None and self.partition is not None:
            with Path(rows).open("wb") as file:
                for begin in range(0, len(self), BLOCK):
                    self._read(self._ids[begin : begin + BLOCK]).astype("<f4").tofile(file)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        partition: Partition | None = None,
        rows: str | os.PathLike[str] | None = None,
        more: Iterable[tuple[Path, Path]] = (),
    ) -> Vectors:
        """Read what :meth:`save` or :meth:`write` wrote; of the file of vectors only what is asked for.

        FAISS does not notice flipped bits: keep a checksum.

        Parameters
        ----------
        path : path
            The FAISS index.
        partition : Partition, optional
        rows : path, optional
            The vectors.
        more : iterable of (path, rows)
            Of further vectors that were filed by the same partition.

        Raises
        ------
        CaseIndexError
            If FAISS cannot read the file, or the vectors are not those of its codes.
        PartitionError
            If the vectors were filed by another partition.
        FileNotFoundError
            If there is no such file.
        """
        index = _opened(Path(path), partition)
        vectors = cls(index, partition)
        if partition is None or rows is None:
            return vectors
        vectors._files.append((vectors._ids, _mapped(Path(rows), index.d, len(vectors))))
        for further, own_rows in more:
            piece = cls(_opened(further, partition), partition)
            vectors._files.append((piece._ids, _mapped(own_rows, index.d, len(piece))))
            index.merge_from(piece._index, 0)
        vectors._ids = np.unique(np.concatenate([ids for ids, _ in vectors._files]))
        return vectors

    def _lists(self) -> list[tuple[Ints, NDArray[Any]]]:
        """Ids and vectors or codes of each list, as views into FAISS's memory (until the next change)."""
        index, d = self._index, self._index.d
        if self.partition is None:
            flat = faiss.downcast_index(index.index)
            x = _view(flat.get_xb(), flat.ntotal * d, np.float32)
            return [(faiss.vector_to_array(index.id_map), x.reshape(-1, d))]
        lists = []
        for i in range(index.nlist):
            size = index.invlists.list_size(i)
            x = _view(index.invlists.get_codes(i), size * d, np.uint8)
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

    def _search_lists(self, q: Floats, k: int, partition: Partition, kept: Ints) -> tuple[Floats, Ints]:
        share = len(kept) / len(self)
        probes = np.ascontiguousarray(partition.probes_for(q, math.ceil(k / share)))
        selector = None if share == 1 else _selector(kept)
        settings = faiss.SearchParametersIVF(nprobe=probes.shape[1], sel=selector)
        near = candidates(k)
        twice = not math.isinf(partition.border)
        wide = 2 * near if twice else near
        scores, ids = np.empty((len(q), wide), np.float32), np.empty((len(q), wide), np.int64)
        unused = np.zeros(probes.shape, np.float32)
        codes = _coded(q, partition)
        # the underlying call: its Python wrapper takes no parameters, and the probe count of the
        # index itself would be shared between threads
        self._index.search_preassigned_c(
            len(q),
            faiss.swig_ptr(codes),
            wide,
            faiss.swig_ptr(probes),
            faiss.swig_ptr(unused),
            faiss.swig_ptr(scores),
            faiss.swig_ptr(ids),
            False,
            settings,
        )
        if twice:
            scores, ids = distinct(scores, ids, near)
        return self._compared_again(q, ids, k)

    def _compared_again(self, q: Floats, ids: Ints, k: int) -> tuple[Floats, Ints]:
        """The k best of some candidates for each query, by their vectors."""
        scores = np.full(ids.shape, -np.inf, np.float32)
        products = np.empty_like(scores)
        for held, rows in self._pieces():  # compared in place, without a copy of what is read
            at = np.searchsorted(held, ids).clip(max=len(held) - 1)
            at[held[at] != ids] = -1
            faiss.fvec_inner_products_by_idx(
                *(faiss.swig_ptr(a) for a in (products, q, rows, at)), q.shape[1], *ids.shape
            )
            np.copyto(scores, products, where=at >= 0)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)


def _empty(dimension: int, partition: Partition | None) -> Any:
    """A FAISS index without vectors."""
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


def _file(index: Any, partition: Partition, ids: Ints, x: Floats) -> None:
    """Put vectors into the lists of an index."""
    coded, ids = _coded(x, partition), np.ascontiguousarray(ids, np.int64)
    for lists in partition.lists_for(x).T:
        filed = lists >= 0
        entries = coded[filed], ids[filed], lists[filed]  # named: FAISS gets bare pointers to them
        if len(entries[0]):
            index.add_core(len(entries[0]), *map(faiss.swig_ptr, entries))


def _coded(x: Floats, partition: Partition) -> Floats:
    """Vectors on the scale of the codes, 0 to 255; FAISS casts these to bytes."""
    coded: Floats = (x - np.float32(partition.low)) * np.float32(255 / (partition.high - partition.low))
    return np.clip(np.rint(coded, out=coded), 0, 255, out=coded)


def candidates(k: int) -> int:
    """How many are compared again for k neighbours."""
    return math.ceil(1.5 * k) + SPARE


def _opened(path: Path, partition: Partition | None) -> Any:
    """The FAISS index in a file, if it is one of this partition."""
    path.stat()
    try:
        index = faiss.read_index(os.fspath(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise CaseIndexError(path, f"cannot be read ({reason})", "run `cbir verify --repair`") from error
    if partition is None:
        fits = isinstance(index, faiss.IndexIDMap)
    else:
        fits = (
            isinstance(index, faiss.IndexIVFScalarQuantizer)
            and index.sq.qtype == faiss.ScalarQuantizer.QT_8bit_direct
            and np.array_equal(index.quantizer.reconstruct_n(), partition.centroids)
        )
    if not fits:
        raise PartitionError(path, "was filed by another partition", "run `cbir verify --repair`")
    return index


def _mapped(path: Path, dimension: int, count: int) -> Floats:
    """So many vectors in a file."""
    size = path.stat().st_size // (4 * dimension)
    if size != count:
        raise CaseIndexError(path, f"holds {size} vectors, not {count}", "run `cbir verify --repair`")
    if not size:  # nothing can be mapped
        return np.empty((0, dimension), np.float32)
    return np.memmap(path, "<f4", "r", shape=(size, dimension))


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
