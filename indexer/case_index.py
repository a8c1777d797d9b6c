"""The index folder: manifest, catalog, vectors and partition, opened, committed and verified as one.

::

    manifest.json          what made the index, and what belongs to it (replaced in one step)
    catalog.sqlite         the truth: cases, scans, slices, embeddings, labels
    vectors-N.faiss        a cache of the catalog's embeddings, of revision N
    vectors-N.rows         where there is a partition: the embeddings, the file above having codes of them;
                           what came later has such a pair of its own, until there is much of it
    partition-N.npz        the fuzzy partition the vectors are filed by, where there are enough of them
    encoder.safetensors    the encoder's weights, where it was trained and not installed
    key                    secret that makes patient ids pseudonymous (mode 600)
    lock, writer.json      one writer at a time

On other engines the catalog is a schema in PostgreSQL, and the vectors are in a store of their own
(:mod:`indexer.stores`); both have the name that the manifest gives the index. Passwords are in no file of
the index.

The catalog commits on its own. A store that lags behind it is brought
up to date in memory when the index is opened, so a crash at any moment leaves an index that answers
correctly.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from indexer import places, sealed
from indexer.catalog import Catalog
from indexer.catalog.database import postgresql, sqlite
from indexer.encoder import Encoder, load_encoder
from indexer.errors import CaseIndexError, EncoderError
from indexer.files import content, is_plain, needing_room, sha256, written_whole
from indexer.filing import fits, fitted
from indexer.lock import LOCK, locked, signed
from indexer.manifest import MANIFEST, Manifest
from indexer.partition import Partition
from indexer.policy import SearchPolicy
from indexer.premises import (
    CALIBRATION,
    CATALOG,
    KEY,
    REMOVING,
    WEIGHTS,
    check_of,
    clear,
    inspect,
    lay_down,
    leftovers,
    make,
    ours,
)
from indexer.preprocess import Preprocessing
from indexer.recall import checked
from indexer.sequences import COMPOSITE
from indexer.snapshot import Snapshot, Snapshots
from indexer.stores import LOCAL, Site, Store, store
from indexer.verification import Problem, differences, of_calibration, of_key, of_manifest, of_weights

__all__ = ["CaseIndex", "Manifest", "Problem", "Snapshot"]

_log = logging.getLogger(__name__)


class CaseIndex:
    """An index folder. Make one with :meth:`create` or :meth:`open`; it is a context manager.

    Attributes
    ----------
    folder : Path
    manifest : Manifest
    catalog : Catalog
    policy : SearchPolicy
    store : Store
        The engine for the vectors.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, catalog: Catalog, policy: SearchPolicy | None = None
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.catalog = catalog
        self.policy = policy or SearchPolicy()
        self.store = _store(folder, manifest, catalog, self.policy)
        self._key: bytes | None = None
        self._snapshots = Snapshots(folder, catalog, self.store, self.policy)

    @classmethod
    def create(
        cls,
        folder: Path,
        encoder: Encoder,
        *,
        keep_ids: bool = False,
        store: str = LOCAL,
        catalog: str | None = None,
        policy: SearchPolicy | None = None,
    ) -> CaseIndex:
        """Make an empty index; where that fails nothing of it is left.

        Parameters
        ----------
        folder : Path
        encoder : Encoder
        keep_ids : bool
            Patients keep the ids that the files give them.
        store : str
            Address of the engine for the vectors; see :mod:`indexer.stores.registry`.
        catalog : str, optional
            URL of a PostgreSQL database; without one the catalog is a file in the folder.
        policy : SearchPolicy, optional

        Raises
        ------
        CaseIndexError
            If the folder holds something else or cannot be written, or a server does not answer.
        """
        made_folders: list[Path] = []
        try:
            make(folder, made_folders)
            with needing_room(folder), locked(folder), ExitStack() as undo:
                if (folder / MANIFEST).exists():  # another process was quicker
                    return cls.open(folder, policy)
                held = {path.name for path in folder.iterdir()} - ({LOCK} if made_folders else set())
                if not all(map(ours, held)):
                    raise CaseIndexError(
                        folder, "is not empty and holds no index", "name a new folder with --index"
                    )
                inspect(folder, writing=True)
                undo.callback(clear, folder, held)
                lay_down(folder, encoder)
                manifest = Manifest(
                    encoder=encoder.name,
                    encoder_version=encoder.version,
                    dimension=encoder.dimension,
                    size=encoder.size,
                    preprocessing=Preprocessing.of(encoder).version,
                    keep_ids=keep_ids,
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    store=store,
                    catalog=catalog,
                    name=f"cbir_{secrets.token_hex(8)}",
                    key_check=check_of(_key(folder)),
                    weights_sha256=sha256(folder / WEIGHTS) if is_plain(folder / WEIGHTS) else None,
                )
                for address in (store, catalog):
                    if address not in (None, *PLACELESS):
                        places.name(address)
                index = undo.enter_context(cls.made(folder, manifest, policy))
                if index.catalog.count()["slices"]:
                    raise CaseIndexError(
                        folder, "holds a catalog without its manifest", "restore it, or name a new folder"
                    )
                undo.callback(index.drop)
                manifest.save(folder / MANIFEST)
                undo.pop_all()
                made_folders.clear()
        except OSError as error:
            raise CaseIndexError(
                folder, f"cannot be written ({error.strerror})", "choose another --index"
            ) from error
        finally:
            for empty in reversed(made_folders):
                with suppress(OSError):
                    empty.rmdir()
        return index

    @classmethod
    def made(cls, folder: Path, manifest: Manifest, policy: SearchPolicy | None = None) -> CaseIndex:
        """Make the catalog and the store that a manifest names; one of them alone is not left.

        Raises
        ------
        CaseIndexError
            If one of them cannot be had.
        """
        with ExitStack() as undo:
            catalog = _catalog(folder, manifest, create=True)
            undo.callback(catalog.close)
            undo.callback(catalog.drop)
            index = cls(folder, manifest, catalog, policy)
            index.store.create()
            undo.pop_all()
        return index

    @classmethod
    def open(cls, folder: Path, policy: SearchPolicy | None = None) -> CaseIndex:
        """Open an index.

        Raises
        ------
        CaseIndexError
            If there is none, it is damaged, of another format, or sends us to a server that the user has
            not named (:mod:`indexer.places`).
        """
        inspect(folder)
        manifest = Manifest.load(folder / MANIFEST)
        _admit(folder, manifest)
        return cls(folder, manifest, _catalog(folder, manifest), policy)

    def close(self) -> None:
        """Release files and connections."""
        self._snapshots.forget()
        self.catalog.close()
        self.store.close()

    def drop(self) -> None:
        """Take away what lies outside the folder, and close."""
        with ExitStack() as rest:
            rest.callback(self.close)
            rest.callback(self.catalog.drop)
            self.store.drop()

    @classmethod
    def discard(cls, folder: Path, manifest: Manifest) -> None:
        """Take away what a manifest names outside its folder, whether or not it is all there."""
        cls._named(folder, manifest).drop()

    @classmethod
    def reach(cls, folder: Path, manifest: Manifest) -> None:
        """See that what a manifest names outside its folder can be had, though nothing is there yet.

        Raises
        ------
        CaseIndexError
            If an address is none, or its server does not answer.
        """
        with cls._named(folder, manifest) as index:
            index.store.reach()
            if manifest.catalog is not None:
                index.catalog.reach()

    @classmethod
    def _named(cls, folder: Path, manifest: Manifest) -> CaseIndex:
        if manifest.catalog is None:
            catalog = Catalog(sqlite(folder / CATALOG, writable=False), manifest.dimension)
        else:
            engine = postgresql(manifest.catalog, manifest.name)
            catalog = Catalog(engine, manifest.dimension, manifest.name)
        return cls(folder, manifest, catalog)

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
            If the folder cannot be written, or the engine for the vectors cannot be had.
        DiskFullError
            If there is no room in it.
        """
        inspect(self.folder, writing=True)
        with needing_room(self.folder), locked(self.folder), signed(self.folder, command):
            # another writer may have come and gone since the index was opened
            self.manifest = Manifest.load(self.folder / MANIFEST)
            self.store.reach()  # before any work is done
            self._tidy()
            self._complete()
            yield

    def _tidy(self) -> None:
        """Take away what a writer left that was ended: what it was writing, and what it had replaced."""
        held = self.manifest.vectors
        if held is not None:
            self.store.keep(held)
        kept = held.partition if held else None
        for path in (*leftovers(self.folder), *self.folder.glob("partition-*.npz")):
            if path.name != kept:
                path.unlink(missing_ok=True)

    def _complete(self) -> None:
        """Take down the checksums that an earlier version did not."""
        held = self.manifest
        key, weights = self.folder / KEY, self.folder / WEIGHTS
        if held.key_check is None and is_plain(key):
            held = replace(held, key_check=check_of(_key(self.folder)))
        if held.weights_sha256 is None and is_plain(weights):
            held = replace(held, weights_sha256=sha256(weights))
        if held != self.manifest:
            held.save(self.folder / MANIFEST)
            self.manifest = held

    # ---- identity ------------------------------------------------------------------------------

    def pseudonym(self, kind: str, identifier: str) -> str:
        """A patient's, study's or series' id as the index shows it (HMAC-SHA256, 64 bits)."""
        if self._key is None:
            key = _key(self.folder)
            if self.manifest.key_check not in (None, check_of(key)):
                raise CaseIndexError(
                    self.folder / KEY,
                    "is not the key that the index was made with: known patients would be strangers",
                    "restore it from a backup",
                )
            self._key = key
        digest = hmac.new(self._key, f"{kind}\0{identifier}".encode(errors="surrogateescape"), hashlib.sha256)
        return f"{kind[0]}-{digest.hexdigest()[:16]}"

    def patient(self, identifier: str) -> str:
        """The index's id of a patient, given the id in the files."""
        return identifier if self.manifest.keep_ids else self.pseudonym("patient", identifier)

    def shown(self, name: str) -> str:
        """A name that somebody asked for, as it may be repeated.

        Where the index keeps no ids, that is one of its own alone: anything else may be a patient's.
        """
        return name if self.manifest.keep_ids or PSEUDONYM.fullmatch(name) else "that id"

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

    def preprocessing(self, encoder: Encoder) -> Preprocessing:
        """How scans are prepared for the index: for the encoder, with planes as far apart as here."""
        return Preprocessing.of(encoder).as_in(self.manifest.preprocessing)

    def require(self, encoder: Encoder) -> None:
        """Refuse an encoder whose vectors cannot be compared with those in the index.

        Raises
        ------
        EncoderError
        """
        held, new = self.manifest, self.preprocessing(encoder).version
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
        """The last committed state; see :meth:`indexer.snapshot.Snapshots.now`.

        Raises
        ------
        CaseIndexError
            If the store is damaged.
        """
        self.manifest, state = self._snapshots.now()
        return state

    def lag(self) -> float:
        """Slices that came or went since the vectors were filed, over all slices; 0 to 1."""
        return min(1.0, self.unfiled() / max(self.catalog.count()["slices"], 1))

    def unfiled(self) -> int:
        """How many slices came or went since the vectors were filed."""
        held = self.manifest.vectors
        total, kept = self.catalog.slices_until(held.last if held else 0)  # ids only grow
        return total if held is None else total - kept + held.slices - kept

    def file_vectors(self, *, refit: bool = False) -> None:
        """Bring the store up to the catalog (the caller is the writer).

        The partition is fitted when there are enough vectors, and again when they have doubled or halved.

        Parameters
        ----------
        refit : bool
            Fit the partition in any case.
        """
        contents = self._snapshots.contents()
        count = len(contents.slice_ids)
        old = self.manifest.vectors
        partition, fitted_on, file, checksum = None, 0, None, None
        kept = old is not None and not old.partition and not refit
        if count >= self.policy.exact_below:
            if old and old.partition and not refit and fits(old, count):
                path = self.folder / old.partition
                if is_plain(path) and sha256(path) == old.partition_sha256:
                    partition, fitted_on = self._snapshots.partition(old), old.fitted_on
                    file, checksum = old.partition, old.partition_sha256
            kept = partition is not None
            if partition is None and (partition := fitted(self.catalog)) is not None:
                fitted_on = count
                file, checksum = self._save_partition(partition, contents.revision)
        filed = self.store.file(old if kept else None, partition, contents)
        filed = replace(filed, partition=file, partition_sha256=checksum, fitted_on=fitted_on)
        self.manifest = replace(self.manifest, vectors=filed)
        self.manifest.save(self.folder / MANIFEST)
        _log.info("%d vectors filed, %s", count, "by a partition" if partition else "to be compared exactly")
        self._tidy()

    def _save_partition(self, partition: Partition, revision: int) -> tuple[str, str]:
        """Write it beside others, which may still be read; the file's name and checksum."""
        names = (f"partition-{name}.npz" for name in (revision, *(f"{revision}-{i}" for i in range(1, 100))))
        path = self.folder / next(name for name in names if not (self.folder / name).exists())
        with written_whole(path, private=True) as aside:
            partition.save(aside)
        return path.name, sha256(path)

    # ---- removal -------------------------------------------------------------------------------

    def begun_removing(self) -> set[str]:
        """Cases whose removal was begun and not ended: its process was killed."""
        try:
            return set(map(str, sealed.read(self.folder / REMOVING, sealed=True, most=2**26)["cases"]))
        except (OSError, ValueError, KeyError, TypeError):
            return set()

    @contextmanager
    def removing(self, cases: set[str]) -> Iterator[set[str]]:
        """Have it on the disk which cases are being removed, until they are (the caller is the writer)."""
        path = self.folder / REMOVING
        sealed.write(path, {"cases": sorted(cases)})
        yield cases
        path.unlink()

    # ---- care ----------------------------------------------------------------------------------

    def verify(self, *, repair: bool = False) -> list[Problem]:
        """Check checksums, counts, and that every vector has its row and the reverse.

        Parameters
        ----------
        repair : bool
            Mend the store from the catalog, and take damaged scans out of the catalog so that the
            next ``cbir index`` reads them again (the caller is the writer).
        """
        problems: list[Problem] = []
        damaged: set[str] = set()
        with self.catalog.one_state() if not repair else nullcontext():
            try:
                for path, what in self.catalog.damage():
                    mended = bool(repair and path)
                    damaged.add(path)
                    told = f"{what}; taken out: index it again" if mended else what
                    problems.append(Problem(path or self.catalog.where, told, mended))
            except CaseIndexError as error:  # it cannot even be looked at
                if repair:
                    raise
                return [Problem(error.where, error.reason)]
            if repair:
                self.catalog.remove_sources(damaged - {""})
                self.catalog.recount()
            cache = self._differences()
        broken = [p for p in cache if not p.sound]
        if repair and (broken or damaged):
            self.file_vectors(refit=bool(broken))
            cache = [replace(p, mended=True) for p in broken]
        problems += cache
        if all(problem.sound for problem in problems):  # else these may follow from it, and are mended so
            problems += of_manifest(self.folder / MANIFEST, self.manifest, repair=repair)
        return [
            *problems,
            *of_key(self.folder / KEY, self.manifest.key_check, repair=repair),
            *of_weights(self.folder / WEIGHTS, self.manifest.weights_sha256),
            *of_calibration(self.folder / CALIBRATION, repair=repair),
        ]

    def _differences(self) -> list[Problem]:
        """What is not in the store as the catalog has it; a writer may replace what is being looked at."""
        found: list[Problem] = []
        for _ in range(10):
            manifest = Manifest.load(self.folder / MANIFEST)
            found = differences(self.catalog, self.store, manifest.vectors, self._snapshots)
            if all(problem.sound for problem in found) or Manifest.load(self.folder / MANIFEST) == manifest:
                self.manifest = manifest
                break
        return found

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
            "vectors": self.store.describe(held),
            "catalog": self.catalog.where,
            "search": "exact" if held is None or held.partition is None else "fuzzy partition",
            "failed": len(self.catalog.failed()),
        }

    def check(self, queries: int = 200, k: int = 10) -> dict[str, Any]:
        """Recall of the search against exact search, the shape of the partition, and whether it has drifted.

        It has where the recall is below the calibrated one by more than chance (three standard errors), or
        the list of a vector holds :data:`indexer.recall.DRIFTED` times the share of the collection that it
        held when the partition was made. ``cbir compact`` makes another; who asks meanwhile asks the old one.

        Parameters
        ----------
        queries : int
            Stored slices that ask, drawn with a fixed seed.
        k : int
            Neighbours compared.
        """
        return checked(self.snapshot().vectors, self.catalog, queries, k)


PSEUDONYM = re.compile(r"[a-z]-[0-9a-f]{16}")
"""What :meth:`CaseIndex.pseudonym` gives."""

PLACELESS = ("faiss", "faiss:", "file:")
"""Addresses of stores that are in the folder."""


def _admit(folder: Path, manifest: Manifest) -> None:
    """Refuse an index that sends us where the user has not."""
    if manifest.store not in PLACELESS:
        places.require(manifest.store, folder, "vectors")
    if manifest.catalog is not None:
        places.require(manifest.catalog, folder, "catalog")


def _key(folder: Path) -> bytes:
    try:
        key = content(folder / KEY, 1000)
    except OSError as error:
        raise CaseIndexError(
            folder / KEY, f"the key cannot be read ({error.strerror})", "restore it from a backup"
        ) from error
    if not key:
        raise CaseIndexError(folder / KEY, "the key is empty", "restore it from a backup")
    return key


def _store(folder: Path, manifest: Manifest, catalog: Catalog, policy: SearchPolicy) -> Store:
    return store(manifest.store, Site(folder, manifest.name, manifest.dimension, catalog, policy))


def _catalog(folder: Path, manifest: Manifest, *, create: bool = False) -> Catalog:
    if manifest.catalog is None:
        return Catalog.at(folder / CATALOG, manifest.dimension, create=create)
    return Catalog.on(manifest.catalog, manifest.dimension, manifest.name, create=create)
