"""Files of vectors in the folder of an index: written aside, and renamed when they are whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from indexer.catalog import Contents
from indexer.errors import CaseIndexError
from indexer.files import sha256, written_whole
from indexer.partition import Partition
from indexer.stores.faiss.codes import Floats, Ints
from indexer.stores.faiss.vectors import Part, Vectors
from indexer.stores.filed import Filed, Piece
from indexer.stores.protocol import Difference, Site, compared

MERGED_AT = 0.25
"""Share of slices that came or went since the large files were written, at which they are written anew."""
PIECES = 8
"""Pairs of files for what came later, at most: a reader opens all of them."""
READ = 4096
"""Embeddings read from the catalog at a time."""

Stamp = tuple[int, int, int]
"""Size, time of the last change and number of a file: while they stay, so does its content."""


class FaissStore:
    """See :class:`indexer.stores.Store`; the address is ``faiss``.

    What came is written into files beside the others, and what went is only counted; the
    files are merged, without filing anything again, when there are many or much has changed.
    """

    def __init__(self, address: str, site: Site) -> None:
        if address not in ("faiss", "faiss:", "file:"):
            raise CaseIndexError(address, "names a place, and these files lie in the index", "name it faiss")
        self._site = site
        self._sound: dict[str, tuple[Stamp, str]] = {}
        self._parts: dict[tuple[str, str], Part] = {}
        self._opened: tuple[tuple[tuple[tuple[str, Stamp], ...], Partition | None], Vectors] | None = None

    def create(self) -> None:
        """There is nothing to make."""

    def reach(self) -> None:
        """The files are where the index is."""

    def open(self, filed: Filed | None, partition: Partition | None, contents: Contents) -> Vectors:
        """The vectors in the files; one that was opened before is not read again."""
        checked = tuple(self._checked(name, checksum) for name, checksum in filed.files()) if filed else ()
        state = checked, partition
        if self._opened is not None and self._opened[0] == state:
            return self._opened[1]
        if filed is None:
            vectors = Vectors(self._site.dimension, None, self._site.policy)
            self._opened = state, vectors
            return vectors
        pairs = [(filed.file, filed.rows), *((piece.file, piece.rows) for piece in filed.pieces)]
        files = {name: (name, stamp) for name, stamp in checked}
        parts = {}
        for name, rows in pairs:
            key = (str(files[name]), str(files.get(rows or "")))
            held = self._parts.get(key) if self._filed_by(partition) else None
            parts[key] = held or Part.read(
                self._site.folder / name,
                partition,
                None if rows is None else self._site.folder / rows,
                self._site.dimension,
            )
        vectors = Vectors(self._site.dimension, partition, self._site.policy, parts.values())
        self._parts, self._opened = parts, (state, vectors)
        return vectors

    def file(self, filed: Filed | None, partition: Partition | None, contents: Contents) -> Filed:
        """Write what came into files of its own, all into one pair, or everything by a new partition."""
        # a catalog that was restored from a backup gives ids again
        if filed and partition and filed.revision <= contents.revision and self._whole(filed):
            return self._grown(filed, partition, contents)
        blocks, dimension = self._site.catalog.embedding_blocks(READ), self._site.dimension
        ids = contents.slice_ids
        made = Filed(
            file="",
            sha256="",
            revision=contents.revision,
            slices=len(ids),
            last=int(ids[-1]) if len(ids) else 0,
            entries=len(ids),
        )
        if partition is None:
            path = self._site.folder / f"vectors-{self._fresh(contents.revision)}.faiss"
            with written_whole(path, private=True) as aside:
                Vectors.write(aside, None, blocks, dimension)
            return replace(made, file=path.name, sha256=sha256(path))
        return _of_pair(
            made,
            self._pair(
                contents.revision, lambda to, rows: Vectors.write(to, rows, blocks, dimension, partition)
            ),
        )

    def keep(self, filed: Filed) -> None:
        """Take away all other files of vectors."""
        named = {name for name, _ in filed.files()}
        for path in self._site.folder.glob("vectors-*"):
            if path.name not in named:
                path.unlink(missing_ok=True)

    def drop(self) -> None:
        """Take away all files of vectors."""
        for path in self._site.folder.glob("vectors-*"):
            path.unlink()

    def differences(
        self, filed: Filed, partition: Partition | None, contents: Contents
    ) -> Iterator[Difference]:
        """Look at every byte again."""
        self._sound.clear()
        vectors = self.open(filed, partition, contents)
        gone = max(0, filed.entries - filed.slices)
        yield from compared(vectors, filed, contents, self._site.catalog, gone)

    def describe(self, filed: Filed | None) -> str:
        """The engine and its file."""
        return f"FAISS {filed.file}" if filed else "FAISS"

    def close(self) -> None:
        """Let the files go."""
        self._parts, self._opened = {}, None

    # ---- steps ---------------------------------------------------------------------------------

    def _filed_by(self, partition: Partition | None) -> bool:
        return self._opened is not None and self._opened[0][1] is partition

    def _checked(self, name: str, checksum: str) -> tuple[str, Stamp]:
        """A file with its stamp, its content being as it was written.

        Raises
        ------
        CaseIndexError
            If it is not.
        """
        path = self._site.folder / name
        stat = path.lstat()
        stamp = stat.st_size, stat.st_mtime_ns, stat.st_ino
        if self._sound.get(name) != (stamp, checksum):
            if sha256(path) != checksum:
                raise CaseIndexError(path, "does not match its checksum", "run `cbir verify --repair`")
            self._sound[name] = stamp, checksum
        return name, stamp

    def _whole(self, filed: Filed) -> bool:
        """Whether there are files, and all of them."""
        names = [name for name, _ in filed.files()]
        return bool(names) and all((self._site.folder / name).is_file() for name in names)

    def _fresh(self, revision: int) -> str:
        """What new files are called: others of the same revision may still be read."""
        names = (str(revision), *(f"{revision}-{i}" for i in range(1, 2 + 2 * PIECES)))
        return next(name for name in names if not any(self._site.folder.glob(f"vectors-{name}.*")))

    def _grown(self, filed: Filed, partition: Partition, contents: Contents) -> Filed:
        """The same files with another pair for what came since, or all of them as one pair."""
        ids, catalog = contents.slice_ids, self._site.catalog
        new = ids[np.searchsorted(ids, filed.last, side="right") :]  # ids only grow
        known = max(filed.entries, filed.slices)
        if len(new):
            parts = (new[start : start + READ] for start in range(0, len(new), READ))
            blocks: Iterator[tuple[Ints, Floats]] = ((block, catalog.embeddings(block)) for block in parts)
            dimension = self._site.dimension
            file, rows = self._pair(
                contents.revision, lambda to, rows: Vectors.write(to, rows, blocks, dimension, partition)
            )
            filed = replace(filed, pieces=(*filed.pieces, Piece(*file, *rows, len(new))))
        filed = replace(
            filed,
            revision=contents.revision,
            slices=len(ids),
            last=int(new[-1]) if len(new) else filed.last,
            entries=known + len(new),
        )
        changed = sum(piece.slices for piece in filed.pieces) + filed.entries - filed.slices
        if len(filed.pieces) <= PIECES and changed <= MERGED_AT * len(ids):
            return filed
        vectors = self.open(filed, partition, contents)
        vectors = vectors.changed(
            new[:0], np.empty((0, self._site.dimension), np.float32), _gone(vectors, ids)
        )
        pair = self._pair(contents.revision, vectors.save)
        return _of_pair(replace(filed, entries=len(ids), pieces=()), pair)

    def _pair(
        self, revision: int, write: Callable[[Path, Path], None]
    ) -> tuple[tuple[str, str], tuple[str, str]]:
        """Write codes and vectors; the files' names with their checksums."""
        name = self._fresh(revision)
        file, rows = (self._site.folder / f"vectors-{name}.{kind}" for kind in ("faiss", "rows"))
        with written_whole(file, private=True) as aside, written_whole(rows, private=True) as aside_rows:
            write(aside, aside_rows)
        return (file.name, sha256(file)), (rows.name, sha256(rows))


def _of_pair(filed: Filed, pair: tuple[tuple[str, str], tuple[str, str]]) -> Filed:
    (file, file_sha256), (rows, rows_sha256) = pair
    return replace(filed, file=file, sha256=file_sha256, rows=rows, rows_sha256=rows_sha256)


def _gone(vectors: Vectors, ids: Ints) -> Ints:
    return np.setdiff1d(vectors.ids(), ids)
