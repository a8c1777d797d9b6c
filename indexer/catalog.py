"""The catalog: cases, scans, slices with their embeddings, labels, failures and history, in SQL.

The catalog is the truth of an index; the vectors are a cache made from it. Each public method
that writes is one transaction, so a crash leaves the last whole one. It is an SQLite file in the
index folder, or a schema of its own in a PostgreSQL database.
"""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from indexer.composite import COMPOSITE
from indexer.errors import CaseIndexError
from indexer.files import disk_full

metadata = sa.MetaData()
READ = 20_000
"""Rows read at a time."""
CATALOG_EXAMPLE = "name one such as postgresql://user@host/database"
Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite counts up in INTEGER only
meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)
sources = sa.Table(
    "sources",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("path", sa.String, nullable=False, unique=True),
    sa.Column("fingerprint", sa.String, nullable=False),
    sa.Column("record", sa.JSON, nullable=False),  # how to read it again
    sqlite_autoincrement=True,
)
cases = sa.Table(
    "cases",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("case_id", sa.String, nullable=False, unique=True),
    sa.Column("patient_id", sa.String, nullable=False, index=True),
    sqlite_autoincrement=True,
)
scans = sa.Table(
    "scans",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("source", sa.ForeignKey("sources.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("case", sa.ForeignKey("cases.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("channel", sa.Integer, nullable=False),
    sa.Column("sequence", sa.String),
    sa.Column("modality", sa.String),
    sa.Column("series_id", sa.String, nullable=False, index=True),
    sa.Column("shape", sa.JSON, nullable=False),
    sa.Column("spacing", sa.JSON),
    sa.Column("input_hash", sa.String, nullable=False, index=True),
    sa.Column("embedding_hash", sa.String, nullable=False),
    sqlite_autoincrement=True,
)
slices = sa.Table(
    "slices",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("scan", sa.ForeignKey("scans.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("view", sa.Integer, nullable=False),  # 0 the whole slice, 1 its outlined region
    sa.Column("weight", sa.Float, nullable=False),
    sa.Column("embedding", sa.LargeBinary, nullable=False),  # float32, little-endian
    # an id that was removed must never name another vector in a FAISS file
    sqlite_autoincrement=True,
)
labels = sa.Table(
    "labels",
    metadata,
    sa.Column("patient_id", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)
# how far a scan is from what the encoder was trained on, where the encoder says
strangeness = sa.Table(
    "strangeness",
    metadata,
    sa.Column("scan", sa.ForeignKey("scans.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("value", sa.Float, nullable=False),
)
# patients that the encoder's weights have seen: a figure on them would be in-sample
trained_on = sa.Table("trained_on", metadata, sa.Column("patient_id", sa.String, primary_key=True))
roots = sa.Table(
    "roots",
    metadata,
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("labels", sa.String, nullable=False),  # the table it was indexed with
)
failures = sa.Table(
    "failures",
    metadata,
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("reason", sa.String, nullable=False),
)
history = sa.Table(
    "history",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("time", sa.String, nullable=False),
    sa.Column("command", sa.String, nullable=False),
    sa.Column("outcome", sa.JSON, nullable=False),
)


@dataclass(frozen=True)
class EmbeddedScan:
    """A scan as it is stored: where it belongs, and its slices' embeddings.

    Attributes
    ----------
    case_id, patient_id, series_id : str
        As they shall appear in the index (pseudonymous unless the user keeps ids).
    sequence, modality : str, optional
    shape : tuple of int
    spacing : tuple of float, optional
        In mm.
    input_hash : str
        sha256 of the network's input for the whole slices; equal inputs have equal embeddings.
    positions, views : ndarray of int, shape (n,)
    weights : ndarray of float32, shape (n,)
    embeddings : ndarray of float32, shape (n, dimension)
    in_sample : bool
        Whether the encoder was trained on this patient.
    strangeness : float
        See :mod:`indexer.learning.strangeness`; NaN where the encoder cannot say.
    """

    case_id: str
    patient_id: str
    series_id: str
    sequence: str | None
    modality: str | None
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    input_hash: str
    positions: NDArray[np.int64]
    views: NDArray[np.uint8]
    weights: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    in_sample: bool = False
    strangeness: float = math.nan


@dataclass(frozen=True)
class Entry:
    """A source with what it holds.

    Attributes
    ----------
    path, fingerprint : str
    record : mapping
        What is needed to read it again; no identifiers.
    scans : sequence of EmbeddedScan
    """

    path: str
    fingerprint: str
    record: Mapping[str, Any]
    scans: Sequence[EmbeddedScan]


@dataclass(frozen=True)
class Contents:
    """All of the catalog but the embeddings, as arrays: one consistent state.

    Attributes
    ----------
    revision : int
    case_ids, patient_ids : list of str
        One entry a case.
    labels : list of dict
        One entry a case.
    in_sample : ndarray of bool
        For each case whether the encoder was trained on its patient.
    scan_ids : ndarray of int64
        Ascending.
    scan_case : ndarray of int64
        For each scan the position of its case in `case_ids`.
    scan_sequence : list of str or None
    scan_source : list of str
    scan_strangeness : ndarray of float32
        NaN where it is unknown.
    slice_ids : ndarray of int64
        Ascending.
    slice_scan : ndarray of int64
        For each slice the position of its scan.
    slice_position, slice_view, slice_weight : ndarray
    """

    revision: int
    case_ids: list[str]
    patient_ids: list[str]
    labels: list[dict[str, str]]
    in_sample: NDArray[np.bool_]
    scan_ids: NDArray[np.int64]
    scan_case: NDArray[np.int64]
    scan_sequence: list[str | None]
    scan_source: list[str]
    scan_strangeness: NDArray[np.float32]
    slice_ids: NDArray[np.int64]
    slice_scan: NDArray[np.int64]
    slice_position: NDArray[np.int64]
    slice_view: NDArray[np.uint8]
    slice_weight: NDArray[np.float32]


class Catalog:
    """A database of cases.

    Parameters
    ----------
    url : str
        An SQLAlchemy URL, of SQLite or PostgreSQL.
    dimension : int
        Length of an embedding.
    schema : str, optional
        The schema of a PostgreSQL database that holds the tables.

    Raises
    ------
    CaseIndexError
        If the URL is of another database, holds a password, or its driver is not installed.
    """

    def __init__(self, url: str, dimension: int, schema: str | None = None) -> None:
        self.dimension = dimension
        self.schema = schema
        self.engine = _engine(url, schema)

    @classmethod
    def at(cls, path: Path, dimension: int, *, create: bool = False, immutable: bool = False) -> Catalog:
        """The SQLite catalog in a file; nothing beside it is written where nobody will change it.

        Raises
        ------
        CaseIndexError
            If it is missing or is no catalog.
        """
        if not create and not path.is_file():
            raise CaseIndexError(path, "the catalog is missing", "restore it from a backup, or index again")
        writable = not immutable and os.access(path.parent, os.W_OK)
        if writable:
            catalog = cls(f"sqlite:///{path}", dimension)
        else:  # WAL needs a writable folder; in a read-only one nobody writes either
            catalog = cls(f"sqlite:///file:{path}?immutable=1&uri=true", dimension)
        with catalog._transaction() as connection:
            if create or (catalog._later(connection) and writable):
                catalog._make_tables(connection)
        return catalog

    @classmethod
    def on(cls, url: str, dimension: int, schema: str, *, create: bool = False) -> Catalog:
        """The catalog in a schema of a PostgreSQL database.

        Raises
        ------
        CaseIndexError
            If the database cannot be reached, or holds no such schema.
        """
        catalog = cls(url, dimension, schema)
        with catalog._transaction() as connection:
            if create:
                connection.execute(sa.schema.CreateSchema(schema))
            elif not sa.inspect(connection).has_schema(schema):
                raise CaseIndexError(catalog.where, "the catalog is missing", "restore it from a backup")
            if create or catalog._later(connection):
                catalog._make_tables(connection)
        return catalog

    def _later(self, connection: sa.Connection) -> bool:
        """Whether a catalog of an earlier version lacks tables that have come since."""
        held = set(sa.inspect(connection).get_table_names(self.schema))
        return "cases" in held and not held >= set(metadata.tables)

    def _make_tables(self, connection: sa.Connection) -> None:
        metadata.create_all(connection)
        if connection.scalar(sa.select(meta.c.value).where(meta.c.key == "revision")) is None:
            connection.execute(meta.insert().values(key="revision", value=0))

    def drop(self) -> None:
        """Take the whole schema out of its database; the SQLite file is the folder's to remove."""
        if self.schema is not None:
            with self._transaction() as connection:
                connection.execute(sa.schema.DropSchema(self.schema, cascade=True, if_exists=True))

    @property
    def where(self) -> str:
        """The file, or the database without what belongs to a user."""
        if self.schema is None:
            return self.engine.url.database or str(self.engine.url)
        return f"{self.engine.url.render_as_string()} schema {self.schema}"

    def close(self) -> None:
        """Release the database."""
        self.engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._told(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise disk_full(Path(self.where)) from error
            reason = " ".join(str(error.orig).split())
            away = self.schema is not None and (
                error.connection_invalidated or isinstance(error, sa.exc.OperationalError)
            )
            remedy = (
                "see that the database is running and lets you in, and repeat the command"
                if away
                else "run `cbir verify`, or restore a backup"
            )
            raise CaseIndexError(self.where, f"the catalog cannot be used ({reason})", remedy) from error

    # ---- writing -------------------------------------------------------------------------------

    def put(self, batch: Iterable[Entry], table: Mapping[str, Mapping[str, str]]) -> None:
        """File sources and the labels of their patients, replacing what was held under the same names.

        Parameters
        ----------
        batch : iterable of Entry
        table : mapping
            Patient to labels.
        """
        entries = list(batch)
        embedded = [scan for entry in entries for scan in entry.scans]
        paths = [entry.path for entry in entries]
        with self._transaction() as connection:
            replaced = connection.execute(sources.delete().where(sources.c.path.in_(paths))).rowcount
            connection.execute(failures.delete().where(failures.c.path.in_(paths)))
            source_ids = _inserted(
                connection,
                sources,
                [{"path": e.path, "fingerprint": e.fingerprint, "record": dict(e.record)} for e in entries],
            )
            case_ids = _case_ids(connection, {scan.case_id: scan.patient_id for scan in embedded})
            scan_ids = _inserted(
                connection,
                scans,
                [
                    _scan_row(scan, source, case_ids[scan.case_id], channel)
                    for source, entry in zip(source_ids, entries, strict=True)
                    for channel, scan in enumerate(entry.scans)
                ],
            )
            rows = [row for i, scan in zip(scan_ids, embedded, strict=True) for row in _slice_rows(i, scan)]
            if rows:
                connection.execute(slices.insert(), rows)
            strange = [
                {"scan": i, "value": float(scan.strangeness)}
                for i, scan in zip(scan_ids, embedded, strict=True)
                if math.isfinite(scan.strangeness)
            ]
            if strange:
                connection.execute(strangeness.insert(), strange)
            _set_trained_on(connection, {scan.patient_id: scan.in_sample for scan in embedded})
            if replaced:
                _delete_empty_cases(connection)
            _set_labels(connection, table)
            _advance(connection)

    def set_labels(self, table: Mapping[str, Mapping[str, str]]) -> None:
        """Replace the labels of the given patients."""
        with self._transaction() as connection:
            if _set_labels(connection, table):
                _advance(connection)

    def set_labels_file(self, root: str, path: str) -> None:
        """Remember the labels table that a root was indexed with."""
        with self._transaction() as connection:
            connection.execute(roots.delete().where(roots.c.path == root))
            connection.execute(roots.insert().values(path=root, labels=path))

    def labels_file(self, root: str) -> str | None:
        """The labels table that a root was indexed with, if one was named."""
        with self._transaction() as connection:
            found: str | None = connection.scalar(sa.select(roots.c.labels).where(roots.c.path == root))
        return found

    def set_failures(self, under: Iterable[str], reasons: Mapping[str, str]) -> None:
        """Replace the failures recorded at or below the given paths."""
        with self._transaction() as connection:
            for root in under:
                connection.execute(failures.delete().where(_under(failures.c.path, root)))
            for path, reason in reasons.items():
                connection.execute(failures.delete().where(failures.c.path == path))
                connection.execute(failures.insert().values(path=path, reason=reason))

    def remove_sources(self, paths: Iterable[str]) -> int:
        """Take sources out, with their scans and slices; returns how many there were."""
        with self._transaction() as connection:
            gone = sum(
                connection.execute(sources.delete().where(sources.c.path == path)).rowcount for path in paths
            )
            if gone:
                _delete_empty_cases(connection)
                _advance(connection)
        return gone

    def rename_sources(self, paths: Mapping[str, str]) -> None:
        """Sources lie elsewhere: old path to new path."""
        with self._transaction() as connection:
            for old, new in paths.items():
                connection.execute(sources.delete().where(sources.c.path == new))
                connection.execute(sources.update().where(sources.c.path == old).values(path=new))
            _delete_empty_cases(connection)
            _advance(connection)

    def remove_cases(self, case_ids: Iterable[str]) -> int:
        """Take cases out, with the sources that hold nothing else; returns how many there were."""
        with self._transaction() as connection:
            gone = sum(
                connection.execute(cases.delete().where(cases.c.case_id == case)).rowcount
                for case in case_ids
            )
            if gone:
                used = sa.select(scans.c.source)
                connection.execute(sources.delete().where(sources.c.id.not_in(used)))
                _delete_empty_cases(connection)
                _advance(connection)
        return gone

    def log(self, command: str, outcome: Mapping[str, Any]) -> None:
        """Add a line to the history."""
        with self._transaction() as connection:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            connection.execute(history.insert().values(time=now, command=command, outcome=dict(outcome)))

    def compact(self) -> None:
        """Give free pages back: to the file system by SQLite, to the tables by PostgreSQL."""
        if self.schema is not None:
            with self._told(), self.engine.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                for name in metadata.tables:
                    connection.exec_driver_sql(f'VACUUM (ANALYZE) "{self.schema}"."{name}"')
        else:
            raw = self.engine.raw_connection()  # VACUUM must not stand in a transaction
            try:
                raw.cursor().execute("VACUUM")
                raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                raw.close()

    def take_over(self, other: Catalog) -> None:
        """Become the same as another catalog, ids included."""
        with other._transaction() as source, self._transaction() as connection:
            for table in metadata.sorted_tables:
                connection.execute(table.delete())
                rows = sa.select(table).order_by(*table.primary_key).execution_options(yield_per=1000)
                for block in source.execute(rows).mappings().partitions():
                    connection.execute(table.insert(), [dict(row) for row in block])
                if self.schema is not None and "id" in table.c:  # its counter knows nothing of these ids
                    counter = sa.func.pg_get_serial_sequence(f"{self.schema}.{table.name}", "id")
                    last = sa.select(sa.func.max(table.c.id)).scalar_subquery()
                    connection.execute(sa.select(sa.func.setval(counter, last)).where(last.is_not(None)))

    # ---- reading -------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """Counts the committed changes."""
        with self._transaction() as connection:
            return int(connection.scalar(sa.select(meta.c.value).where(meta.c.key == "revision")) or 0)

    def contents(self) -> Contents:
        """Everything but the embeddings, of one moment."""
        with self._transaction() as connection:
            revision = int(connection.scalar(sa.select(meta.c.value).where(meta.c.key == "revision")) or 0)
            case_rows = connection.execute(sa.select(cases).order_by(cases.c.id)).all()
            label_rows = connection.execute(sa.select(labels)).all()
            seen = set(connection.scalars(sa.select(trained_on.c.patient_id)))
            scan_rows = connection.execute(
                sa.select(scans.c.id, scans.c.case, scans.c.sequence, sources.c.path, strangeness.c.value)
                .join(sources, sources.c.id == scans.c.source)
                .join(strangeness, strangeness.c.scan == scans.c.id, isouter=True)
                .order_by(scans.c.id)
            ).all()
            slice_rows = connection.execute(
                sa.select(
                    slices.c.id, slices.c.scan, slices.c.position, slices.c.view, slices.c.weight
                ).order_by(slices.c.id),
                execution_options={"yield_per": READ},
            )
            # a block at a time: as objects the rows of ten million slices take gigabytes
            blocks = [np.array(list(zip(*block, strict=True)), float) for block in slice_rows.partitions()]
        by_patient: dict[str, dict[str, str]] = {}
        for row in label_rows:
            by_patient.setdefault(row.patient_id, {})[row.name] = row.value
        case_place = {row.id: place for place, row in enumerate(case_rows)}
        scan_ids = np.array([row.id for row in scan_rows], np.int64)
        columns = np.concatenate(blocks or [np.empty((5, 0))], axis=1)
        return Contents(
            revision=revision,
            case_ids=[row.case_id for row in case_rows],
            patient_ids=[row.patient_id for row in case_rows],
            labels=[by_patient.get(row.patient_id, {}) for row in case_rows],
            in_sample=np.array([row.patient_id in seen for row in case_rows], bool),
            scan_ids=scan_ids,
            scan_case=np.array([case_place[row.case] for row in scan_rows], np.int64),
            scan_sequence=[row.sequence for row in scan_rows],
            scan_source=[row.path for row in scan_rows],
            scan_strangeness=np.array([row.value for row in scan_rows], np.float32),  # None becomes NaN
            slice_ids=columns[0].astype(np.int64),
            slice_scan=np.searchsorted(scan_ids, columns[1].astype(np.int64)),
            slice_position=columns[2].astype(np.int64),
            slice_view=columns[3].astype(np.uint8),
            slice_weight=columns[4].astype(np.float32),
        )

    def embeddings(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Stored embeddings, in the order of `ids`.

        Returns
        -------
        ndarray of float32, shape (n, dimension)

        Raises
        ------
        KeyError
            If an id is not in the catalog.
        """
        out = np.empty((len(ids), self.dimension), np.float32)
        place = {int(i): n for n, i in enumerate(ids)}
        found = 0
        with self._transaction() as connection:
            for start in range(0, len(ids), 500):  # below SQLite's limit of bound variables
                block = [int(i) for i in ids[start : start + 500]]
                query = sa.select(slices.c.id, slices.c.embedding).where(slices.c.id.in_(block))
                for row in connection.execute(query):
                    out[place[row.id]] = np.frombuffer(row.embedding, "<f4")
                    found += 1
        if found != len(ids):
            raise KeyError(f"{len(ids) - found} of {len(ids)} slices are not in the catalog")
        return out

    def embedding_blocks(self, block: int = 4096) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """All embeddings by ascending id, a block at a time."""
        last = 0
        while True:
            with self._transaction() as connection:
                rows = connection.execute(
                    sa.select(slices.c.id, slices.c.embedding)
                    .where(slices.c.id > last)
                    .order_by(slices.c.id)
                    .limit(block)
                ).all()
            if not rows:
                return
            last = rows[-1].id
            vectors = np.frombuffer(b"".join(row.embedding for row in rows), "<f4")
            yield np.array([row.id for row in rows], np.int64), vectors.reshape(len(rows), self.dimension)

    def entries(self) -> list[Entry]:
        """All sources with what they hold, as :meth:`put` takes them."""
        with self._transaction() as connection:
            seen = set(connection.scalars(sa.select(trained_on.c.patient_id)))
            strange = {row.scan: row.value for row in connection.execute(sa.select(strangeness))}
            source_rows = connection.execute(sa.select(sources).order_by(sources.c.id)).all()
            scan_rows = connection.execute(
                sa.select(scans, cases.c.case_id, cases.c.patient_id)
                .join(cases, cases.c.id == scans.c.case)
                .order_by(scans.c.source, scans.c.channel)
            ).all()
            slice_rows = connection.execute(sa.select(slices).order_by(slices.c.id)).all()
        of_scan: dict[int, list[Any]] = {}
        for row in slice_rows:
            of_scan.setdefault(row.scan, []).append(row)
        of_source: dict[int, list[EmbeddedScan]] = {}
        for row in scan_rows:
            held = of_scan.get(row.id, [])
            vectors = np.frombuffer(b"".join(s.embedding for s in held), "<f4")
            scan = EmbeddedScan(
                case_id=row.case_id,
                patient_id=row.patient_id,
                series_id=row.series_id,
                sequence=row.sequence,
                modality=row.modality,
                shape=tuple(row.shape),
                spacing=None if row.spacing is None else tuple(row.spacing),
                input_hash=row.input_hash,
                positions=np.array([s.position for s in held], np.int64),
                views=np.array([s.view for s in held], np.uint8),
                weights=np.array([s.weight for s in held], np.float32),
                embeddings=vectors.reshape(len(held), self.dimension),
                in_sample=row.patient_id in seen,
                strangeness=strange.get(row.id, math.nan),
            )
            of_source.setdefault(row.source, []).append(scan)
        return [
            Entry(row.path, row.fingerprint, row.record, of_source.get(row.id, [])) for row in source_rows
        ]

    def fingerprints(self, beginning: str = "") -> dict[str, str]:
        """Path of every source, or of those that begin so, to the fingerprint it was read with."""
        chosen = sa.func.substr(sources.c.path, 1, len(beginning)) == beginning
        with self._transaction() as connection:
            rows = connection.execute(sa.select(sources.c.path, sources.c.fingerprint).where(chosen))
            return {row.path: row.fingerprint for row in rows}

    def record(self, path: str) -> dict[str, Any] | None:
        """How to read a source again."""
        with self._transaction() as connection:
            record = connection.scalar(sa.select(sources.c.record).where(sources.c.path == path))
        return None if record is None else dict(record)

    def case(self, case_id: str) -> dict[str, Any] | None:
        """A case as it is filed now: ``patient_id``, ``labels`` and ``scans``.

        A scan has ``sequence``, ``modality``, ``shape``, ``spacing``, ``source`` (its path) and
        ``channel`` (its place among the scans of that source). Composites are no scans of their own.
        """
        with self._transaction() as connection:
            case = connection.execute(sa.select(cases).where(cases.c.case_id == case_id)).one_or_none()
            if case is None:
                return None
            named = sa.select(labels.c.name, labels.c.value).where(labels.c.patient_id == case.patient_id)
            rows = connection.execute(
                sa.select(
                    scans.c.sequence,
                    scans.c.modality,
                    scans.c.shape,
                    scans.c.spacing,
                    scans.c.channel,
                    sources.c.path.label("source"),
                )
                .join(sources, sources.c.id == scans.c.source)
                .where(scans.c.case == case.id, scans.c.sequence.is_distinct_from(COMPOSITE))
                .order_by(scans.c.id)
            )
            return {
                "patient_id": case.patient_id,
                "labels": {row.name: row.value for row in connection.execute(named)},
                "scans": [dict(row._mapping) for row in rows],
            }

    def embedded(
        self, input_hashes: Sequence[str]
    ) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]:
        """What :func:`indexer.encoder.look` found in network inputs that are filed already, whole slices.

        The strangeness is the scan's, for each of its slices.
        """
        found = {}
        with self._transaction() as connection:
            held = sa.select(scans.c.input_hash, sa.func.min(scans.c.id))
            chosen = held.where(scans.c.input_hash.in_(input_hashes)).group_by(scans.c.input_hash)
            for digest, scan in connection.execute(chosen).all():
                rows = connection.execute(
                    sa.select(slices.c.embedding, slices.c.weight)
                    .where(slices.c.scan == scan, slices.c.view == 0)
                    .order_by(slices.c.id)
                ).all()
                vectors = np.frombuffer(b"".join(row.embedding for row in rows), "<f4")
                weights = np.array([row.weight for row in rows], np.float32)
                said = connection.scalar(sa.select(strangeness.c.value).where(strangeness.c.scan == scan))
                strange = np.full(len(rows), math.nan if said is None else said, np.float32)
                found[digest] = vectors.reshape(len(rows), self.dimension), weights, strange
        return found

    def scans_of(self, input_hash: str) -> list[int]:
        """Ids of the scans with this network input."""
        with self._transaction() as connection:
            return list(connection.scalars(sa.select(scans.c.id).where(scans.c.input_hash == input_hash)))

    def failed(self) -> list[dict[str, str]]:
        """What could not be read, with the reason."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(failures)).all()
        # databases sort text in different ways
        return sorted(({"source": row.path, "reason": row.reason} for row in rows), key=lambda f: f["source"])

    def count(self) -> dict[str, int]:
        """How many cases, scans, slices, patients and sources there are.

        Composites are no scans of their own, but their slices are filed like others.
        """
        own = scans.c.sequence.is_distinct_from(COMPOSITE)
        counted = {
            "cases": sa.select(sa.func.count()).select_from(cases),
            "scans": sa.select(sa.func.count()).select_from(scans).where(own),
            "slices": sa.select(sa.func.count()).select_from(slices),
            "sources": sa.select(sa.func.count(sa.distinct(scans.c.source))).where(own),
            "patients": sa.select(sa.func.count(sa.distinct(cases.c.patient_id))),
        }
        with self._transaction() as connection:
            return {name: int(connection.scalar(one) or 0) for name, one in counted.items()}

    def slices_until(self, last: int) -> tuple[int, int]:
        """How many slices there are, and how many of them have an id up to `last`."""
        counted = sa.select(sa.func.count(), sa.func.count().filter(slices.c.id <= last))
        with self._transaction() as connection:
            total, until = connection.execute(counted.select_from(slices)).one()
        return int(total), int(until)

    def damage(self) -> Iterator[tuple[str, str]]:
        """Check every row against its checksum.

        Yields
        ------
        (source path, what is wrong with it)
            The path is empty where the database as a whole is unsound.
        """
        with self._transaction() as connection:
            if self.schema is None:
                for (line,) in connection.exec_driver_sql("PRAGMA integrity_check"):
                    if line != "ok":
                        yield "", f"the database says: {line}"
            rows = connection.execute(
                sa.select(scans.c.id, scans.c.embedding_hash, sources.c.path)
                .join(sources, sources.c.id == scans.c.source, isouter=True)
                .order_by(scans.c.id)
            ).all()
            for row in rows:
                blobs = connection.scalars(
                    sa.select(slices.c.embedding).where(slices.c.scan == row.id).order_by(slices.c.id)
                )
                if _digest(blobs) != row.embedding_hash:
                    yield row.path or "", f"the embeddings of scan {row.id} do not match their checksum"
            orphans = sa.select(sa.func.count()).select_from(slices)
            lost = connection.scalar(orphans.where(slices.c.scan.not_in(sa.select(scans.c.id))))
            if lost:
                yield "", f"{lost} slices belong to no scan"


def _engine(url: str, schema: str | None) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise CaseIndexError("--catalog", "is not a database URL", CATALOG_EXAMPLE) from None
    where = parsed.set(query={}).render_as_string()
    if schema is None:
        engine = sa.create_engine(parsed)
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.get_backend_name() != "postgresql":
        raise CaseIndexError(where, "is no PostgreSQL database", CATALOG_EXAMPLE)
    if parsed.password or "password" in parsed.query:
        raise CaseIndexError(where, "holds a password", "put it into ~/.pgpass or the variable PGPASSWORD")
    try:
        # a question sees one state, and a server that was restarted meanwhile is no error
        return sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            isolation_level="REPEATABLE READ",
            pool_pre_ping=True,
            execution_options={"schema_translate_map": {None: schema}},
        )
    except ModuleNotFoundError as error:
        raise CaseIndexError(
            error.name or "psycopg",
            "is not installed",
            "install what this needs: pip install 'cbir[postgres]'",
        ) from None


def _begin_sqlite(connection: sa.Connection) -> None:
    # Python's driver begins only before a change: several reads would see several states
    connection.exec_driver_sql("BEGIN")


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA busy_timeout=10000")
    # in an immutable (read-only) database the mode stays as it is
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    connection.execute("PRAGMA synchronous=FULL")


def _inserted(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Insert rows; their new ids, in the same order."""
    if not rows:
        return []
    statement = table.insert().returning(table.c.id, sort_by_parameter_order=True)
    return list(connection.scalars(statement, list(rows)))


def _case_ids(connection: sa.Connection, wanted: Mapping[str, str]) -> dict[str, int]:
    """Row ids of cases, given with their patients; new ones are inserted."""
    held = sa.select(cases.c.case_id, cases.c.id).where(cases.c.case_id.in_(list(wanted)))
    found = {row.case_id: row.id for row in connection.execute(held)}
    new = [name for name in wanted if name not in found]
    rows = [{"case_id": name, "patient_id": wanted[name]} for name in new]
    return found | dict(zip(new, _inserted(connection, cases, rows), strict=True))


def _scan_row(scan: EmbeddedScan, source: int, case: int, channel: int) -> dict[str, Any]:
    return {
        "source": source,
        "case": case,
        "channel": channel,
        "sequence": scan.sequence,
        "modality": scan.modality,
        "series_id": scan.series_id,
        "shape": list(scan.shape),
        "spacing": None if scan.spacing is None else list(scan.spacing),
        "input_hash": scan.input_hash,
        "embedding_hash": _digest([np.ascontiguousarray(scan.embeddings, "<f4").tobytes()]),
    }


def _slice_rows(scan_id: int, scan: EmbeddedScan) -> Iterator[dict[str, Any]]:
    embeddings = np.ascontiguousarray(scan.embeddings, "<f4")
    columns = zip(scan.positions, scan.views, scan.weights, embeddings, strict=True)
    for position, view, weight, embedding in columns:
        yield {
            "scan": scan_id,
            "position": int(position),
            "view": int(view),
            "weight": float(weight),
            "embedding": embedding.tobytes(),
        }


def _set_labels(connection: sa.Connection, table: Mapping[str, Mapping[str, str]]) -> bool:
    held: dict[str, dict[str, str]] = {}
    for row in connection.execute(sa.select(labels)):
        held.setdefault(row.patient_id, {})[row.name] = row.value
    changed = {patient: new for patient, new in table.items() if held.get(patient, {}) != dict(new)}
    for patient, new in changed.items():
        connection.execute(labels.delete().where(labels.c.patient_id == patient))
        if new:
            rows = [{"patient_id": patient, "name": name, "value": value} for name, value in new.items()]
            connection.execute(labels.insert(), rows)
    return bool(changed)


def _set_trained_on(connection: sa.Connection, patients: Mapping[str, bool]) -> None:
    connection.execute(trained_on.delete().where(trained_on.c.patient_id.in_(list(patients))))
    if seen := [{"patient_id": patient} for patient, yes in patients.items() if yes]:
        connection.execute(trained_on.insert(), seen)


def _advance(connection: sa.Connection) -> None:
    connection.execute(meta.update().where(meta.c.key == "revision").values(value=meta.c.value + 1))


def _delete_empty_cases(connection: sa.Connection) -> None:
    connection.execute(cases.delete().where(cases.c.id.not_in(sa.select(scans.c.case))))
    for table in (labels, trained_on):
        connection.execute(table.delete().where(table.c.patient_id.not_in(sa.select(cases.c.patient_id))))


def _under(column: Any, root: str) -> Any:
    prefix = root.rstrip(os.sep) + os.sep
    return sa.or_(column == root, sa.func.substr(column, 1, len(prefix)) == prefix)


def _digest(blobs: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for blob in blobs:
        digest.update(blob)
    return digest.hexdigest()
