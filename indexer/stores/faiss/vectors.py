"""Unit vectors by id, searched by FAISS.

Without a partition a search is exact. With one there is an inverted file whose lists are
filled and probed as the partition says, a border vector perhaps in two of them. The lists hold codes
of 8 bits a component, of one scale for all components, so that a search compares bytes with bytes: by
distance, which takes half the time of decoding them and, unlike the inner product, also sees by how much
rounding has changed a code's length. The vectors themselves lie in a second file, by
ascending id, which is mapped into memory and read where it is needed: the best of the codes are
compared again exactly, and so is all that the lists are not fit for (small collections, narrow filters,
deep rankings). Scores are exact either way, and no id comes out twice.

What has been filed is never changed in memory: several states share it, and each knows what came and what
went since. What came is compared with one by one; a writer files it before it is much.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.ids import NONE, among
from indexer.partition import Partition
from indexer.policy import SearchPolicy
from indexer.stores.faiss.codes import (
    Floats,
    Ints,
    Kept,
    coded,
    empty,
    faiss,
    file,
    flat,
    lists,
    mapped,
    opened,
    selector,
    take_up,
    write,
)

SPARE = 10
"""Beside 1.5 times the neighbours wanted, so many are compared again: of the ten nearest among a million
vectors the codes have 0.946 in their first ten, 0.9987 in 15 and all in 20."""
REMEMBERED = 8
"""Sets of ids that the last searches were among."""
GATHERED = 20_000
"""Vectors gathered at a time."""


@dataclass(frozen=True)
class Part:
    """Vectors that were filed at a time.

    Attributes
    ----------
    ids : ndarray of int64, shape (n,)
        Ascending.
    rows : ndarray of float32, shape (n, d)
        In the same order.
    index : FAISS index
        With lists of their codes; None without a partition.
    """

    ids: Ints
    rows: Floats
    index: Any = None

    @classmethod
    def read(
        cls, path: Path, partition: Partition | None, rows: Path | None, dimension: int | None = None
    ) -> Part:
        """What was written to a file, and with a partition to a second one."""
        if partition is None:
            ids, x = flat(path, dimension)
            if (np.diff(ids) > 0).all():
                return cls(ids, x)
            order = np.argsort(ids)
            return cls(ids[order], x[order])
        index = opened(path, partition)
        ids = np.unique(np.concatenate([own for own, _ in lists(index)]))
        held = np.empty((0, index.d), np.float32) if rows is None else mapped(rows, index.d, len(ids))
        return cls(ids, held, index)


class Vectors:
    """Unit vectors by id; made by :meth:`build` or :meth:`load`.

    Many threads may search at once. Who shares a state takes another by :meth:`changed`; :meth:`add` and
    :meth:`remove` are for who has it alone.

    Attributes
    ----------
    partition : Partition or None
        What the vectors are filed by.
    policy : SearchPolicy
    """

    def __init__(
        self, dimension: int, partition: Partition | None, policy: SearchPolicy, parts: Iterable[Part] = ()
    ) -> None:
        self.partition = partition
        self.policy = policy
        self._dimension = dimension
        self._parts = tuple(part for part in parts if len(part.ids))
        self._ids = _merged([part.ids for part in self._parts])
        self._gone: Ints = np.empty(0, np.int64)  # of the parts
        self._added: Ints = np.empty(0, np.int64)
        self._added_rows: Floats = np.empty((0, dimension), np.float32)
        self._asked: tuple[tuple[Ints, Kept], ...] = ()

    @classmethod
    def build(
        cls,
        ids: Ints,
        x: Floats,
        partition: Partition | None = None,
        policy: SearchPolicy = SearchPolicy(),  # noqa: B008, it is frozen
    ) -> Vectors:
        """File vectors in memory.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
            Distinct, not negative.
        x : ndarray of float32, shape (n, d)
            Unit vectors.
        partition : Partition, optional
            Without one every search is exact.
        policy : SearchPolicy
        """
        vectors = cls(x.shape[1], partition, policy)
        vectors.add(ids, x)
        if partition is None or not len(ids):
            return vectors
        index = empty(x.shape[1], partition)
        file(index, partition, ids, np.ascontiguousarray(x, np.float32))
        return cls(x.shape[1], partition, policy, [Part(vectors._added, vectors._added_rows, index)])

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
        index = empty(dimension, partition)
        if partition is None or rows is None:
            for ids, x in blocks:
                file(index, None, ids, x)
        else:
            with Path(rows).open("wb") as written:
                for ids, x in blocks:
                    file(index, partition, ids, x)
                    np.ascontiguousarray(x, "<f4").tofile(written)
        _save(index, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        partition: Partition | None = None,
        rows: str | os.PathLike[str] | None = None,
        more: Iterable[tuple[Path, Path]] = (),
        policy: SearchPolicy = SearchPolicy(),  # noqa: B008, it is frozen
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
        policy : SearchPolicy

        Raises
        ------
        CaseIndexError
            If it is no such file, or the vectors are not those of its codes.
        PartitionError
            If the vectors were filed by another partition.
        FileNotFoundError
            If there is no such file.
        """
        parts = [Part.read(Path(path), partition, None if rows is None else Path(rows))]
        parts += [Part.read(further, partition, own_rows) for further, own_rows in more]
        return cls(parts[0].rows.shape[1], partition, policy, parts)

    def save(self, path: str | os.PathLike[str], rows: str | os.PathLike[str] | None = None) -> None:
        """Write everything to one file, and with a partition the vectors to another."""
        index = empty(self._dimension, self.partition)
        if self.partition is None:
            file(index, None, self._ids, self.gather(self._ids))
        else:
            for part in self._parts:
                take_up(index, part.index, self._gone)
            file(index, self.partition, self._added, self._added_rows)
        _save(index, path)
        if rows is not None and self.partition is not None:
            with Path(rows).open("wb") as written:
                for block in self._blocks(self._ids):
                    self.gather(block).astype("<f4").tofile(written)

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> Ints:
        """All ids, ascending."""
        return self._ids.copy()

    def list_sizes(self) -> Ints:
        """Entries of each list, replicas counted; shape (c,), or (1,) without a partition."""
        if self.partition is None:
            return np.array([len(self)], np.int64)
        sizes = np.zeros(len(self.partition.centroids), np.int64)
        for part in self._parts:
            filed = [ids for ids, _ in lists(part.index)]
            stays = ~np.isin(np.concatenate(filed), self._gone)
            places = np.repeat(np.arange(len(filed)), [len(ids) for ids in filed])
            sizes += np.bincount(places[stays], minlength=len(sizes))
        if len(self._added):
            own = self.partition.lists_for(self._added_rows)
            sizes += np.bincount(own[own >= 0], minlength=len(sizes))
        return sizes

    def changed(self, ids: Ints, x: Floats, gone: Ints) -> Vectors:
        """Another state: with these vectors, whose ids are new, and without those; this one stays."""
        state = copy.copy(self)
        state.remove(gone)
        state.add(ids, x)
        return state

    def add(self, ids: Ints, x: Floats) -> None:
        """Take vectors up; many at a time.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
            Distinct, not negative, and none of them in the index.
        x : ndarray of float32, shape (n, d)
            Unit vectors.
        """
        ids = np.ascontiguousarray(ids, np.int64)
        x = np.ascontiguousarray(x, np.float32)
        if x.shape != (len(ids), self._dimension):
            raise ValueError(f"expected shape {(len(ids), self._dimension)}, got {x.shape}")
        by_id = np.argsort(ids)
        new = ids[by_id]
        at = np.searchsorted(self._ids, new)
        twice = self._ids[at.clip(max=len(self) - 1)] == new if len(self) else np.zeros(len(new), bool)
        if twice.any() or (np.diff(new) <= 0).any() or (new < 0).any():
            raise ValueError("ids must be new, distinct and not negative")
        if len(new):
            self._ids = _inserted(self._ids, at, new)
            at = np.searchsorted(self._added, new)
            self._added = _inserted(self._added, at, new)
            self._added_rows = _inserted(self._added_rows, at, x[by_id])

    def remove(self, ids: Ints) -> int:
        """Take vectors out; ids that are not in the index are ignored.

        Returns
        -------
        int
            How many were taken out.
        """
        if not len(ids):
            return 0
        before = len(self)
        self._ids = self._ids[~np.isin(self._ids, ids)]
        held = [part.ids[np.isin(part.ids, ids)] for part in self._parts]
        self._gone = np.unique(np.concatenate([self._gone, *held]))
        stays = ~np.isin(self._added, ids)
        if not stays.all():
            self._added, self._added_rows = self._added[stays], self._added_rows[stays]
        return before - len(self)

    def search(self, q: Floats, k: int, keep: Ints | None = None, but: Ints = NONE) -> tuple[Floats, Ints]:
        """Nearest vectors by cosine similarity; see :meth:`indexer.stores.VectorIndex.search`."""
        q = np.ascontiguousarray(q, np.float32)
        if q.ndim != 2 or q.shape[1] != self._dimension or k < 1:
            raise ValueError(f"expected k >= 1 and shape (n, {self._dimension}), got k = {k}, {q.shape}")
        kept = None if keep is None else self._those(keep)
        every = self._ids if kept is None else kept.ids
        but = np.unique(but[among(but, every)])
        count = min(len(every) - len(but), len(self))
        if self.partition is None or self.policy.exact(count, len(self), k):
            some = every if kept is None else every[among(every, self._ids)]
            some = np.setdiff1d(some, but, assume_unique=True) if len(but) else some
            scores, ids = self._search_exactly(q, k, None if len(some) == len(self) else some)
        else:
            scores, ids = self._search_lists(q, k, self.partition, kept, but)
        scores[ids < 0] = -np.inf
        return np.minimum(scores, 1, out=scores), ids

    def _those(self, keep: Ints) -> Kept:
        """These ids, whether or not they are there; those of the last few searches are remembered."""
        for ids, kept in self._asked:
            if ids is keep:
                return kept
        kept = Kept(keep if (keep[1:] > keep[:-1]).all() else np.unique(keep))
        self._asked = (*self._asked[1 - REMEMBERED :], (keep, kept))
        return kept

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
        x = np.empty((len(ids), self._dimension), np.float32)
        for held, rows in self._rows():
            at = np.searchsorted(held, ids).clip(max=len(held) - 1)
            own = held[at] == ids
            x[own] = rows[at[own]]
        return x

    def filed(self, ids: Ints) -> Floats:
        """The same as :meth:`gather`: there is one copy."""
        return self.gather(ids)

    def _rows(self) -> Iterator[tuple[Ints, Floats]]:
        """Ids, ascending, and vectors; of an id that was taken out and came again, the last counts."""
        yield from ((part.ids, part.rows) for part in self._parts)
        if len(self._added):
            yield self._added, self._added_rows

    def _blocks(self, ids: Ints) -> Iterator[Ints]:
        return (ids[begin : begin + GATHERED] for begin in range(0, len(ids), GATHERED))

    def _search_exactly(self, q: Floats, k: int, kept: Ints | None) -> tuple[Floats, Ints]:
        best = faiss.ResultHeap(len(q), k, keep_max=True)
        pairs: Iterable[tuple[Ints, Floats]]
        if kept is None and self.partition is None and not len(self._gone):
            pairs = self._rows()  # in memory as they are
        else:
            ids = self._ids if kept is None else kept
            pairs = ((block, self.gather(block)) for block in self._blocks(ids))
        for ids, rows in pairs:
            scores, found = faiss.knn(q, rows, min(k, len(ids)), metric=faiss.METRIC_INNER_PRODUCT)
            best.add_result(scores, ids[found])
        best.finalize()
        return best.D, best.I

    def _search_lists(
        self, q: Floats, k: int, partition: Partition, kept: Kept | None, but: Ints
    ) -> tuple[Floats, Ints]:
        every = self._ids if kept is None else kept.ids
        share = min(1, (len(every) - len(but)) / len(self))
        probes = np.ascontiguousarray(partition.probes_for(q, math.ceil(k / share)))
        gone = self._gone if kept is None else self._gone[among(self._gone, every)]
        settings = faiss.SearchParametersIVF(nprobe=probes.shape[1], sel=selector(kept, np.append(gone, but)))
        codes, near = coded(q, partition), candidates(k)
        twice = not math.isinf(partition.border)
        wide = 2 * near if twice else near
        found = [np.full((len(q), k), -1, np.int64)]
        for part in self._parts:
            scores, ids = np.empty((len(q), wide), np.float32), np.empty((len(q), wide), np.int64)
            unused = np.zeros(probes.shape, np.float32)
            # the underlying call: its Python wrapper takes no parameters, and the probe count of the
            # index itself would be shared between threads
            part.index.search_preassigned_c(
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
            found.append(distinct(scores, ids, near)[1] if twice else ids)
        stays = among(self._added, every) & ~among(self._added, but)
        came, rows = self._added, self._added_rows
        if not stays.all():
            came, rows = came[stays], rows[stays]
        if len(came):
            places = faiss.knn(q, rows, min(near, len(came)), metric=faiss.METRIC_INNER_PRODUCT)[1]
            found.append(came[places])
        return self._compared_again(q, np.ascontiguousarray(np.concatenate(found[::-1], axis=1)), k)

    def _compared_again(self, q: Floats, ids: Ints, k: int) -> tuple[Floats, Ints]:
        """The k best of some candidates for each query, by their vectors."""
        scores = np.full(ids.shape, -np.inf, np.float32)
        products = np.empty_like(scores)
        for held, rows in self._rows():  # compared in place, without a copy of what is read
            at = np.searchsorted(held, ids).clip(max=len(held) - 1)
            at[held[at] != ids] = -1
            faiss.fvec_inner_products_by_idx(
                *(faiss.swig_ptr(a) for a in (products, q, rows, at)), q.shape[1], *ids.shape
            )
            np.copyto(scores, products, where=at >= 0)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)


def candidates(k: int) -> int:
    """How many are compared again for k neighbours."""
    return math.ceil(1.5 * k) + SPARE


def distinct(scores: Floats, ids: Ints, k: int) -> tuple[Floats, Ints]:
    """First k distinct ids of each row, in the order they come in; −1 is no id."""
    by_id = np.argsort(ids, axis=1, kind="stable")
    in_order = np.take_along_axis(ids, by_id, axis=1)
    again = np.zeros(ids.shape, bool)
    np.put_along_axis(again, by_id[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    first = np.argsort(again | (ids < 0), axis=1, kind="stable")[:, :k]
    ids = np.where(np.take_along_axis(again, first, axis=1), -1, np.take_along_axis(ids, first, axis=1))
    return np.take_along_axis(scores, first, axis=1), ids


def _inserted(held: NDArray[Any], at: Ints, new: NDArray[Any]) -> NDArray[Any]:
    """What is held, with new items before these places; as a rule they come last, which is done sooner."""
    return np.append(held, new, axis=0) if at[0] == len(held) else np.insert(held, at, new, axis=0)


def _merged(ids: list[Ints]) -> Ints:
    """Ids of several parts, ascending; what comes later is mostly higher."""
    every = np.concatenate([*ids, np.empty(0, np.int64)])
    return every if (np.diff(every) > 0).all() else np.unique(every)


def _save(index: Any, path: str | os.PathLike[str]) -> None:
    with Path(path).open("wb") as to:
        write(index, to)
