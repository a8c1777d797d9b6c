"""The index folder: manifest, catalog, vectors and partition, opened, committed and verified as one.

::

    manifest.json          what made the index, and which files belong to it (replaced in one step)
    catalog.sqlite         the truth: cases, scans, slices, embeddings, labels
    vectors-N.faiss        a cache of the catalog's embeddings, of revision N
    vectors-N.rows         where there is a partition: the embeddings, the file above having codes of them;
                           what came later has such a pair of its own, until there is much of it
    partition-N.npz        the fuzzy partition the vectors are filed by, where there are enough of them
    encoder.safetensors    the encoder's weights, where it was trained and not installed
    key                    secret that makes patient ids pseudonymous (mode 600)
    lock, writer.json      one writer at a time

On other engines the catalog is a schema in PostgreSQL, and the vectors are a collection in Milvus; both
have the name that the manifest gives the index. Passwords are in no file of the index.

The catalog commits on its own. A vectors file or collection that lags behind it is brought
up to date in memory when the index is opened, so a crash at any moment leaves an index that answers
correctly.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from indexer.catalog import Catalog, Contents
from indexer.composite import COMPOSITE
from indexer.encoder import Encoder, FileEncoder, load_encoder
from indexer.errors import (
    CaseIndexError,
    CbirError,
    EncoderError,
    PartitionError,
    StaleError,
    WriterBusyError,
)
from indexer.files import ASIDE, needing_room, sha256, written_whole
from indexer.milvus import Milvus, MilvusVectors
from indexer.partition import POINTS_PER_LIST, Partition, lists_for_count
from indexer.preprocess import Preprocessing
from indexer.vectors import EXACT_BELOW, VectorIndex, Vectors

FORMAT = 1
WEIGHTS = "encoder.safetensors"
HOLDER = "writer.json"
MERGED_AT = 0.25
"""Share of slices that came or went since the large files were written, at which they are written anew."""
PIECES = 8
"""Pairs of files for what came later, at most: a reader opens all of them."""
DRIFTED = 1.5
"""Growth of the share of the collection in the list of a vector that calls for another partition."""
HELD_OUT = 1000
"""Vectors that the probe count is calibrated with, at most."""


@dataclass(frozen=True)
class Piece:
    """Files of the vectors that came after others were written, and how many they hold."""

    file: str
    sha256: str
    rows: str
    rows_sha256: str
    slices: int


@dataclass(frozen=True)
class VectorFile:
    """The cache files, the catalog revision they were made from, and the last slice id they hold.

    `entries` is how many vectors the files hold, those among them whose slice was taken out of the catalog:
    they are taken out of memory when the files are read. In Milvus `file` is a collection, whose `entries`
    are counted, and `sha256` is empty.
    """

    file: str
    sha256: str
    revision: int
    slices: int
    last: int
    partition: str | None = None
    partition_sha256: str | None = None
    fitted_on: int = 0
    entries: int = 0
    rows: str | None = None
    rows_sha256: str | None = None
    pieces: tuple[Piece, ...] = ()

    def checksums(self) -> Iterator[tuple[str | None, str | None]]:
        """Names of the files with their checksums."""
        yield from ((self.file, self.sha256), (self.rows, self.rows_sha256))
        for piece in self.pieces:
            yield from ((piece.file, piece.sha256), (piece.rows, piece.rows_sha256))
        yield self.partition, self.partition_sha256


@dataclass(frozen=True)
class Manifest:
    """What made the index, and which files belong to it.

    `engine` is ``faiss`` or ``milvus``, the latter at `uri`; `catalog` is the URL of a database where it
    is no file in the folder; `name` is what the index is called there.
    """

    encoder: str
    encoder_version: str
    dimension: int
    size: int
    preprocessing: str
    keep_ids: bool
    created: str
    vectors: VectorFile | None = None
    engine: str = "faiss"
    uri: str | None = None
    catalog: str | None = None
    name: str = ""
    format: int = FORMAT

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises
        ------
        CaseIndexError
            If it is missing, no manifest, or of another format.
        """
        try:
            data = json.loads(path.read_text("utf-8"))
            if data["format"] != FORMAT:
                raise CaseIndexError(
                    path.parent,
                    f"the index has format {data['format']}, this cbir reads {FORMAT}",
                    "index again into another folder",
                )
            vectors = data.pop("vectors")
            if vectors is not None:
                pieces = tuple(Piece(**piece) for piece in vectors.pop("pieces", ()))
                vectors = VectorFile(**vectors, pieces=pieces)
            return cls(**data, vectors=vectors)
        except FileNotFoundError:
            if (path.parent / "catalog.sqlite").exists():
                raise CaseIndexError(
                    path, "the manifest is missing", "restore it from a backup, or index into another folder"
                ) from None
            raise CaseIndexError(
                path.parent,
                "there is no index here",
                "make one with `cbir index FOLDER`, or name it with --index",
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CaseIndexError(
                path, f"the manifest cannot be read ({error})", "restore it from a backup, or index again"
            ) from error

    def save(self, path: Path) -> None:
        """Replace the manifest in one step."""
        with written_whole(path) as aside:
            aside.write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")


@dataclass(frozen=True)
class Snapshot:
    """One committed state of an index: what is in it, and its vectors."""

    contents: Contents
    vectors: VectorIndex


@dataclass(frozen=True)
class Problem:
    """Something `verify` found.

    Attributes
    ----------
    where, what : str
    mended : bool
    sound : bool
        True for a note that needs no mending.
    """

    where: str
    what: str
    mended: bool = False
    sound: bool = False


class CaseIndex:
    """An index folder. Make one with :meth:`create` or :meth:`open`; it is a context manager."""

    def __init__(self, folder: Path, manifest: Manifest, catalog: Catalog) -> None:
        self.folder = folder
        self.manifest = manifest
        self.catalog = catalog
        self._key: bytes | None = None
        self._milvus: Milvus | None = None

    @classmethod
    def create(
        cls,
        folder: Path,
        encoder: Encoder,
        *,
        keep_ids: bool = False,
        engine: str = "faiss",
        uri: str | None = None,
        catalog: str | None = None,
    ) -> CaseIndex:
        """Make an empty index.

        Parameters
        ----------
        folder : Path
        encoder : Encoder
        keep_ids : bool
            Patients keep the ids that the files give them.
        engine : str
            ``faiss``, or ``milvus`` on a server.
        uri : str, optional
            Of the Milvus server.
        catalog : str, optional
            URL of a PostgreSQL database; without one the catalog is a file in the folder.

        Raises
        ------
        CaseIndexError
            If the folder holds something else or cannot be written, or a server does not answer.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with needing_room(folder), _locked(folder):
                if (folder / "manifest.json").exists():  # another process was quicker
                    return cls.open(folder)
                if any(not _ours(path.name) for path in folder.iterdir()):
                    raise CaseIndexError(
                        folder, "is not empty and holds no index", "name a new folder with --index"
                    )
                key = folder / "key"
                if not key.exists():
                    with written_whole(key) as aside:
                        aside.touch(0o600)
                        aside.write_bytes(secrets.token_bytes(32))
                if isinstance(encoder, FileEncoder):
                    with written_whole(folder / WEIGHTS) as aside:
                        shutil.copyfile(encoder.weights_file, aside)
                manifest = Manifest(
                    encoder=encoder.name,
                    encoder_version=encoder.version,
                    dimension=encoder.dimension,
                    size=encoder.size,
                    preprocessing=Preprocessing.of(encoder).version,
                    keep_ids=keep_ids,
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    engine=engine,
                    uri=uri,
                    catalog=catalog,
                    name=f"cbir_{secrets.token_hex(8)}",
                )
                made = cls.made(folder, manifest)
                if made.catalog.count()["slices"]:
                    raise CaseIndexError(
                        folder, "holds a catalog without its manifest", "restore it, or name a new folder"
                    )
                manifest.save(folder / "manifest.json")
        except OSError as error:
            raise CaseIndexError(
                folder, f"cannot be written ({error.strerror})", "choose another --index"
            ) from error
        return made

    @classmethod
    def made(cls, folder: Path, manifest: Manifest) -> CaseIndex:
        """Make the catalog that a manifest names, and see that its servers answer.

        Raises
        ------
        CaseIndexError
            If one of them does not.
        """
        if manifest.engine == "milvus":
            Milvus(manifest.uri or "").close()
        return cls(folder, manifest, _catalog(folder, manifest, create=True))

    @classmethod
    def open(cls, folder: Path) -> CaseIndex:
        """Open an index.

        Raises
        ------
        CaseIndexError
            If there is none, it is damaged, or of another format.
        """
        manifest = Manifest.load(folder / "manifest.json")
        return cls(folder, manifest, _catalog(folder, manifest))

    def close(self) -> None:
        """Release files and connections."""
        self.catalog.close()
        if self._milvus is not None:
            self._milvus.close()
            self._milvus = None

    @property
    def milvus(self) -> Milvus:
        """The server that holds the vectors (connected at the first use).

        Raises
        ------
        CaseIndexError
            If it does not answer.
        """
        if self._milvus is None:
            self._milvus = Milvus(self.manifest.uri or "")
        return self._milvus

    def __enter__(self) -> CaseIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def writing(self, command: str) -> Iterator[None]:
        """Be the only writer.

        Raises
        ------
        WriterBusyError
            If another process writes.
        CaseIndexError
            If the folder cannot be written, or the server for the vectors does not answer.
        DiskFullError
            If there is no room in it.
        """
        with needing_room(self.folder), _locked(self.folder):
            holder = self.folder / HOLDER
            try:
                since = datetime.now(UTC).isoformat(timespec="seconds")
                holder.write_text(
                    json.dumps({"command": command, "pid": os.getpid(), "since": since}), "utf-8"
                )
                # another writer may have come and gone since the index was opened
                self.manifest = Manifest.load(self.folder / "manifest.json")
                if self.manifest.engine == "milvus":
                    self.milvus.collections(self.manifest.name)  # before any work is done
                for leftover in self.folder.glob(f"*{ASIDE}"):
                    leftover.unlink()
                yield
            finally:
                holder.unlink(missing_ok=True)

    # ---- identity ------------------------------------------------------------------------------

    def pseudonym(self, kind: str, identifier: str) -> str:
        """A patient's, study's or series' id as the index shows it (HMAC-SHA256, 64 bits)."""
        if self._key is None:
            try:
                self._key = (self.folder / "key").read_bytes()
            except OSError as error:
                raise CaseIndexError(
                    self.folder / "key",
                    f"the key cannot be read ({error.strerror})",
                    "restore it from a backup",
                ) from error
        digest = hmac.new(self._key, f"{kind}\0{identifier}".encode(errors="surrogateescape"), hashlib.sha256)
        return f"{kind[0]}-{digest.hexdigest()[:16]}"

    def patient(self, identifier: str) -> str:
        """The index's id of a patient, given the id in the files."""
        return identifier if self.manifest.keep_ids else self.pseudonym("patient", identifier)

    def case(self, patient_id: str, study_id: str) -> str:
        """The index's id of a patient's study, given the ids in the files."""
        if not self.manifest.keep_ids:
            return self.pseudonym("case", f"{patient_id}\0{study_id}")
        return patient_id if study_id in ("", patient_id) else f"{patient_id}/{study_id}"

    def visit(self, patient_id: str, study_id: str) -> str | None:
        """What the index calls a visit, given the ids in the files; None for one without a name."""
        if study_id in ("", patient_id):
            return None
        return study_id if self.manifest.keep_ids else f"v-{self.case(patient_id, study_id)[2:]}"

    def load_encoder(self) -> Encoder:
        """The encoder that made the index.

        Raises
        ------
        EncoderError
            If it is not installed, or its weights in the folder are damaged.
        """
        weights = self.folder / WEIGHTS
        return load_encoder(str(weights) if weights.exists() else self.manifest.encoder)

    def require(self, encoder: Encoder) -> None:
        """Refuse an encoder whose vectors cannot be compared with those in the index.

        Raises
        ------
        EncoderError
        """
        held, new = self.manifest, Preprocessing.of(encoder).version
        if (held.encoder, held.encoder_version) != (encoder.name, encoder.version):
            raise EncoderError(
                self.folder,
                f"was made by encoder {held.encoder} {held.encoder_version}, "
                f"not by {encoder.name} {encoder.version}",
                "use the same encoder, or index again into another folder",
            )
        if held.preprocessing != new:
            raise EncoderError(
                self.folder,
                f"was made with preprocessing {held.preprocessing}, this cbir has {new}",
                "index again into another folder",
            )

    # ---- vectors -------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The last committed state; vectors that the cache lacks are taken from the catalog.

        Raises
        ------
        CaseIndexError
            If the cache is damaged.
        """
        told = CaseIndexError(self.folder, "the vectors file is missing", "run `cbir verify --repair`")
        for _ in range(5):
            manifest = Manifest.load(self.folder / "manifest.json")
            contents = self.catalog.contents()
            try:
                vectors = self._load_vectors(manifest, contents)
                _catch_up(vectors, contents, self.catalog)
            except (FileNotFoundError, KeyError):
                continue  # a writer replaced the files, or removed cases, between two of our looks
            except StaleError as error:
                told = error
                continue
            self.manifest = manifest
            return Snapshot(contents, vectors)
        raise told

    def _load_vectors(self, manifest: Manifest, contents: Contents, *, listed: bool = False) -> VectorIndex:
        """The vectors as they were filed last.

        `listed` asks Milvus for its ids, even where the manifest says what they are.
        """
        held = manifest.vectors
        if held is None:
            return _empty(manifest.dimension)
        partition = None
        remote = manifest.engine == "milvus"
        for name, checksum in held.checksums():
            if name is not None and checksum and sha256(self.folder / name) != checksum:
                raise CaseIndexError(
                    self.folder / name, "does not match its checksum", "run `cbir verify --repair`"
                )
        if held.partition is not None:
            partition = Partition.load(self.folder / held.partition)
        if not remote:
            rows = None if held.rows is None else self.folder / held.rows
            more = [(self.folder / piece.file, self.folder / piece.rows) for piece in held.pieces]
            return Vectors.load(self.folder / held.file, partition, rows, more)
        ids = contents.slice_ids
        self.milvus.load(held.file)
        if held.revision == contents.revision and (n := self.milvus.count(held.file)) != held.entries:
            raise StaleError(
                f"{manifest.uri} {held.file}",
                f"holds {n} entries instead of {held.entries}",
                "run `cbir verify --repair`",
            )
        if listed or held.revision != contents.revision:
            ids = self.milvus.ids(held.file, max([held.last, *ids[-1:].tolist()]))
        return MilvusVectors(
            self.milvus, held.file, manifest.dimension, partition, ids, self.catalog.embeddings
        )

    def lag(self) -> float:
        """Slices that came or went since the vectors file was written, over all slices; 0 to 1."""
        held = self.manifest.vectors
        total, kept = self.catalog.slices_until(held.last if held else 0)  # ids only grow
        if held is None:
            return float(total > 0)
        return min(1.0, (total - kept + held.slices - kept) / max(total, 1))

    def file_vectors(self, *, refit: bool = False) -> None:
        """Bring the vectors file up to the catalog (the caller is the writer).

        The partition is fitted when there are enough vectors, and again when they have doubled or halved.
        Until then what came is written into files beside the others, and what went is only counted; the
        files are merged, without filing anything again, when there are many or much has changed.

        Parameters
        ----------
        refit : bool
            Fit the partition in any case.
        """
        contents = self.catalog.contents()
        revision, count = contents.revision, len(contents.slice_ids)
        old = self.manifest.vectors
        partition, fitted_on = None, 0
        kept = old is not None and not old.partition and not refit
        if count >= EXACT_BELOW:
            if old and old.partition and not refit and old.fitted_on / 2 <= count <= 2 * old.fitted_on:
                path = self.folder / old.partition
                if path.is_file() and sha256(path) == old.partition_sha256:
                    partition, fitted_on = Partition.load(path), old.fitted_on
            kept = partition is not None
            if partition is None:
                partition = self._fit()
                fitted_on = count if partition else 0
        remote = self.manifest.engine == "milvus"
        # a catalog that was restored from a backup gives ids again
        if not remote and kept and partition and old and old.revision <= revision and self._whole(old):
            self._keep(self._grown(old, partition, contents))
            return
        entries, name = count, self._fresh(revision)
        if remote:
            file = old.file if old is not None and kept else ""
            file, entries = self._file_in_milvus(file, partition, contents)
        else:
            file, rows = f"vectors-{name}.faiss", f"vectors-{name}.rows"
            blocks, dimension = self.catalog.embedding_blocks(), self.manifest.dimension
            with written_whole(self.folder / file) as aside:
                if partition is None:
                    Vectors.write(aside, None, blocks, dimension)
                else:
                    with written_whole(self.folder / rows) as aside_rows:
                        Vectors.write(aside, aside_rows, blocks, dimension, partition)
        partition_file = f"partition-{name}.npz"
        if partition is not None:
            with written_whole(self.folder / partition_file) as aside:
                partition.save(aside)
        held = VectorFile(
            file=file,
            sha256="" if remote else sha256(self.folder / file),
            revision=revision,
            slices=count,
            last=int(contents.slice_ids[-1]) if count else 0,
            partition=partition_file if partition is not None else None,
            partition_sha256=sha256(self.folder / partition_file) if partition is not None else None,
            fitted_on=fitted_on,
            entries=entries,
            rows=None if remote or partition is None else rows,
            rows_sha256=None if remote or partition is None else sha256(self.folder / rows),
        )
        self._keep(held)

    def _keep(self, held: VectorFile) -> None:
        """Name these files in the manifest, and take away all others."""
        self.manifest = replace(self.manifest, vectors=held)
        self.manifest.save(self.folder / "manifest.json")
        named = {name for name, _ in held.checksums()}
        for path in [*self.folder.glob("vectors-*"), *self.folder.glob("partition-*.npz")]:
            if path.name not in named:
                path.unlink()
        if self.manifest.engine == "milvus":
            for name in self.milvus.collections(self.manifest.name):
                if name != held.file:
                    self.milvus.drop(name)

    def _fresh(self, revision: int) -> str:
        """What new files are called: others of the same revision may still be read."""
        names = (str(revision), *(f"{revision}-{i}" for i in range(1, 2 + 2 * PIECES)))
        return next(name for name in names if not any(self.folder.glob(f"*-{name}.*")))

    def _whole(self, held: VectorFile) -> bool:
        """Whether the files are there."""
        return all(name and (self.folder / name).is_file() for name, _ in held.checksums())

    def _grown(self, held: VectorFile, partition: Partition, contents: Contents) -> VectorFile:
        """The same files with another pair for what came since, or all of them as one pair."""
        ids = contents.slice_ids
        new = ids[np.searchsorted(ids, held.last, side="right") :]  # ids only grow
        known = max(held.entries, held.slices)
        if len(new):
            blocks = ((block, self.catalog.embeddings(block)) for block in _blocks(new))
            dimension = self.manifest.dimension
            file, rows = self._pair(
                contents.revision, lambda to, rows: Vectors.write(to, rows, blocks, dimension, partition)
            )
            held = replace(held, pieces=(*held.pieces, Piece(*file, *rows, len(new))))
        held = replace(
            held,
            revision=contents.revision,
            slices=len(ids),
            last=int(new[-1]) if len(new) else held.last,
            entries=known + len(new),
        )
        changed = sum(piece.slices for piece in held.pieces) + held.entries - held.slices
        if len(held.pieces) <= PIECES and changed <= MERGED_AT * len(ids):
            return held
        vectors = self._load_vectors(replace(self.manifest, vectors=held), contents)
        assert isinstance(vectors, Vectors)
        _catch_up(vectors, contents, self.catalog)
        file, rows = self._pair(contents.revision, vectors.save)
        return replace(
            held,
            file=file[0],
            sha256=file[1],
            rows=rows[0],
            rows_sha256=rows[1],
            entries=len(ids),
            pieces=(),
        )

    def _pair(
        self, revision: int, write: Callable[[Path, Path], None]
    ) -> tuple[tuple[str, str], tuple[str, str]]:
        """Write codes and vectors; the files' names with their checksums."""
        name = self._fresh(revision)
        file, rows = self.folder / f"vectors-{name}.faiss", self.folder / f"vectors-{name}.rows"
        with written_whole(file) as aside, written_whole(rows) as aside_rows:
            write(aside, aside_rows)
        return (file.name, sha256(file)), (rows.name, sha256(rows))

    def _file_in_milvus(self, name: str, partition: Partition | None, contents: Contents) -> tuple[str, int]:
        """Bring a collection up to date, or fill a new one; its name, and the entries in it."""
        server, ids = self.milvus, contents.slice_ids
        filed = ids[:0]
        if name in server.collections(self.manifest.name):
            server.load(name)
            filed = server.ids(name, max([0, *ids[-1:].tolist()]))
        else:
            name = f"{self.manifest.name}_{contents.revision}_{secrets.token_hex(2)}"
            lists = 0 if partition is None else len(partition.centroids)
            server.create(name, self.manifest.dimension, lists, f"cbir index {self.folder}")
        server.delete(name, np.setdiff1d(filed, ids))
        new: NDArray[np.int64] = np.setdiff1d(ids, filed)
        for start in range(0, len(new), 4096):
            block = new[start : start + 4096]
            server.insert(name, block, self.catalog.embeddings(block), partition)
        return name, server.count(name)

    def _fit(self) -> Partition | None:
        """A partition of a sample, its probing calibrated on patients that are not in the sample.

        Where many vectors are all but equal the fit collapses: then it gets fewer lists, and at last none.
        """
        contents, rng = self.catalog.contents(), np.random.default_rng(0)
        names, patient_of_case = np.unique(contents.patient_ids, return_inverse=True)
        asking = rng.permutation(len(names))[: math.ceil(len(names) / 10)]
        patient = patient_of_case[contents.scan_case[contents.slice_scan]]
        held_out = np.isin(patient, asking) if len(names) > 1 else rng.random(len(patient)) < 0.1

        def sample(ids: NDArray[np.int64], most: int) -> NDArray[np.float32]:
            return self.catalog.embeddings(np.sort(rng.choice(ids, min(most, len(ids)), replace=False)))

        count = len(contents.slice_ids)
        base = sample(contents.slice_ids[~held_out], POINTS_PER_LIST * lists_for_count(count))
        wanted = lists_for_count(count)
        for lists in (None, wanted // 4, wanted // 16):
            try:
                partition = Partition.fit(base, lists=lists, of=count)
            except PartitionError:
                if not np.isfinite(base).all():
                    raise
                continue
            partition.calibrate(sample(contents.slice_ids[held_out], HELD_OUT), base, of=count)
            return partition
        return None

    # ---- care ----------------------------------------------------------------------------------

    def verify(self, *, repair: bool = False) -> list[Problem]:
        """Check checksums, counts, and that every vector has its row and the reverse.

        Parameters
        ----------
        repair : bool
            Mend the cache from the catalog, and take damaged scans out of the catalog so that the
            next ``cbir index`` reads them again (the caller is the writer).
        """
        problems: list[Problem] = []
        damaged = set()
        for path, what in self.catalog.damage():
            mended = bool(repair and path)
            damaged.add(path)
            told = f"{what}; taken out: index it again" if mended else what
            problems.append(Problem(path or self.catalog.where, told, mended))
        if repair:
            self.catalog.remove_sources(damaged - {""})
            self.catalog.recount()

        contents, held = self.catalog.contents(), self.manifest.vectors
        cache: list[Problem] = []
        if held is not None:
            try:
                cache += self._compare(contents, held)
            except CbirError as error:
                cache.append(Problem(error.where, error.reason))
            except (OSError, RuntimeError, ValueError) as error:
                cache.append(Problem(held.file, f"cannot be read ({error})"))
        broken = [p for p in cache if not p.sound]
        if repair and (broken or damaged):
            self.file_vectors(refit=bool(broken))
            cache = [replace(p, mended=True) for p in broken]
        return problems + cache + self._verify_key(repair)

    def _compare(self, contents: Contents, held: VectorFile) -> Iterator[Problem]:
        vectors = self._load_vectors(self.manifest, contents, listed=True)
        ids = np.sort(vectors.ids())
        if held.revision != contents.revision:
            lag = len(np.setxor1d(ids, contents.slice_ids))
            if lag:
                yield Problem(
                    held.file,
                    f"lags {lag} slices behind the catalog; they are searched from there",
                    sound=True,
                )
        else:
            went = 0 if self.manifest.engine == "milvus" else max(0, held.entries - held.slices)
            for lost, what, known in (
                (np.setdiff1d(contents.slice_ids, ids), "slices have no vector", 0),
                (np.setdiff1d(ids, contents.slice_ids), "vectors have no slice", went),
            ):
                if len(lost) != known:
                    yield Problem(held.file, f"{len(lost)} {what}")
        differ = 0
        present = np.intersect1d(ids, contents.slice_ids)
        for start in range(0, len(present), 4096):
            block = present[start : start + 4096]
            differ += int((vectors.filed(block) != self.catalog.embeddings(block)).any(axis=1).sum())
        if differ:
            yield Problem(held.file, f"{differ} vectors differ from the catalog's")

    def _verify_key(self, repair: bool) -> list[Problem]:
        key = self.folder / "key"
        if not key.is_file():
            return [
                Problem(str(key), "the key is missing: patients indexed from now on get other pseudonyms")
            ]
        if key.stat().st_mode & 0o077:
            if repair:
                key.chmod(0o600)
            return [Problem(str(key), "others may read the key (mode should be 600)", mended=repair)]
        return []

    def compact(self) -> None:
        """Fit the partition again, rewrite the vectors, free what is unused (the caller is the writer)."""
        self.file_vectors(refit=True)
        self.catalog.compact()

    def about(self) -> dict[str, Any]:
        """Counts and provenance, as ``cbir info --json`` prints them."""
        held = self.manifest.vectors
        sequences = {sequence or "unknown" for sequence in self.catalog.sequences()} - {COMPOSITE}
        return {
            **self.catalog.count(),
            "encoder": f"{self.manifest.encoder} {self.manifest.encoder_version}",
            "dimension": self.manifest.dimension,
            "preprocessing": self.manifest.preprocessing,
            "keep_ids": self.manifest.keep_ids,
            "created": self.manifest.created,
            "sequences": ", ".join(sorted(sequences)),
            "labels": ", ".join(self.catalog.label_names()) or "none",
            "vectors": self._place(),
            "catalog": self.catalog.where,
            "search": "exact" if held is None or held.partition is None else "fuzzy partition",
            "failed": len(self.catalog.failed()),
        }

    def _place(self) -> str:
        """Where the vectors are."""
        held, uri = self.manifest.vectors, self.manifest.uri
        if self.manifest.engine == "milvus":
            return f"Milvus {uri} {held.file if held else self.manifest.name}"
        return f"FAISS {held.file}" if held else "FAISS"

    def check(self, queries: int = 200, k: int = 10) -> dict[str, Any]:
        """Recall of the search against exact search, the shape of the partition, and whether it has drifted.

        It has where the recall is below the calibrated one by more than chance (three standard errors), or
        the list of a vector holds :data:`DRIFTED` times the share of the collection that it held when the
        partition was made. ``cbir compact`` makes another; who asks meanwhile asks the old one.

        Parameters
        ----------
        queries : int
            Stored slices that ask, drawn with a fixed seed.
        k : int
            Neighbours compared.
        """
        snapshot = self.snapshot()
        ids, vectors = snapshot.contents.slice_ids, snapshot.vectors
        if not len(ids):
            return {}
        asking = np.sort(np.random.default_rng(0).choice(ids, min(queries, len(ids)), replace=False))
        x = vectors.gather(asking)
        exact, best = _exact(x, self.catalog, k)
        scores, _ = vectors.search(x, k)
        # by score: which of two equally similar slices is found is no matter
        found = np.mean((scores >= exact[:, -1:] - 1e-6).sum(axis=1) / best)
        summary = {} if vectors.partition is None else vectors.partition.summary()
        sizes = vectors.list_sizes()
        summary["list_sizes"] = {
            "min": int(sizes.min()),
            "median": float(np.median(sizes)),
            "max": int(sizes.max()),
        }
        if vectors.partition is not None:
            summary["drift"] = _drift(vectors.partition, sizes, float(found), len(asking), k) or "none"
        return {f"recall_at_{k}": round(float(found), 4), "queries": len(asking), **summary}


def _catalog(folder: Path, manifest: Manifest, *, create: bool = False) -> Catalog:
    if manifest.catalog is None:
        return Catalog.at(folder / "catalog.sqlite", manifest.dimension, create=create)
    return Catalog.on(manifest.catalog, manifest.dimension, manifest.name, create=create)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = filelock.FileLock(folder / "lock")
    try:
        with needing_room(folder):
            lock.acquire(timeout=0)
    except filelock.Timeout:
        try:
            who = json.loads((folder / HOLDER).read_text("utf-8"))
            told = f"`cbir {who['command']}` (process {who['pid']}) has been writing since {who['since']}"
        except (OSError, ValueError, KeyError):
            told = "another process is writing"
        raise WriterBusyError(folder, told, "wait until it has ended") from None
    except OSError as error:
        raise CaseIndexError(folder, f"cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()


def _ours(name: str) -> bool:
    """Whether a file may lie in the folder of an index that was not finished."""
    return (
        name in {"lock", HOLDER, "key", WEIGHTS} or name.startswith("catalog.sqlite") or name.endswith(ASIDE)
    )


def _exact(x: NDArray[np.float32], catalog: Catalog, k: int) -> tuple[NDArray[np.float32], int]:
    """Scores of the k nearest in the catalog, best first, and how many there are."""
    top = np.empty((len(x), 0), np.float32)
    for _, embeddings in catalog.embedding_blocks():
        top = -np.sort(-np.concatenate([top, x @ embeddings.T], axis=1), axis=1)[:, :k]
    return top, top.shape[1]


def _empty(dimension: int, partition: Partition | None = None) -> Vectors:
    return Vectors.build(np.empty(0, np.int64), np.empty((0, dimension), np.float32), partition)


def _drift(partition: Partition, sizes: NDArray[np.int64], found: float, queries: int, k: int) -> str | None:
    asked = partition.probing(k).recall
    if found < asked - 3 * math.sqrt(asked * (1 - asked) / queries):
        return f"recall {found:.3f} instead of {asked}: run `cbir compact`"
    fuller = _fullness(sizes) / _fullness(partition.sizes)
    return f"lists {fuller:.1f} times as full as at the fit: run `cbir compact`" if fuller > DRIFTED else None


def _fullness(sizes: NDArray[np.int64]) -> float:
    """Share of all entries that the list of an entry holds, on average."""
    return float((sizes.astype(float) ** 2).sum() / max(1.0, float(sizes.sum())) ** 2)


def _blocks(ids: NDArray[np.int64], size: int = 4096) -> Iterator[NDArray[np.int64]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _catch_up(vectors: VectorIndex, contents: Contents, catalog: Catalog) -> None:
    filed = vectors.ids()
    if np.array_equal(filed, contents.slice_ids):
        return
    removed = np.setdiff1d(filed, contents.slice_ids)
    if len(removed):
        vectors.remove(removed)
    added: NDArray[np.int64] = np.setdiff1d(contents.slice_ids, filed)
    if len(added):
        vectors.add(added, catalog.embeddings(added))
