"""The catalog as a whole: each of its methods is one transaction."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

import indexer.catalog.contents as contents
import indexer.catalog.database as database
import indexer.catalog.digests as digests
import indexer.catalog.embeddings as embeddings
import indexer.catalog.migrations as migrations
from indexer.catalog.blocks import blocks
from indexer.catalog.change import COUNTS, Change, counted, keep
from indexer.catalog.contents import Contents
from indexer.catalog.records import Entry, FiledCase, FiledScan
from indexer.catalog.schema import (
    FORMAT,
    cases,
    failures,
    history,
    labels,
    metadata,
    roots,
    scans,
    slices,
    sources,
    trained_on,
    visit_labels,
)
from indexer.errors import CaseIndexError
from indexer.files import is_plain, make_private
from indexer.sequences import COMPOSITE


class Catalog:
    """A database of cases; made by :meth:`at` or :meth:`on`.

    Parameters
    ----------
    engine : sqlalchemy.Engine
        Of SQLite or PostgreSQL.
    dimension : int
        Length of an embedding.
    schema : str, optional
        The schema of a PostgreSQL database that holds the tables.
    """

    def __init__(self, engine: sa.Engine, dimension: int, schema: str | None = None) -> None:
        self.dimension = dimension
        self.schema = schema
        self.engine = engine
        self._looking = threading.local()
        self._log_is_kept = False

    @classmethod
    def at(cls, path: Path, dimension: int, *, create: bool = False, immutable: bool = False) -> Catalog:
        """The SQLite catalog in a file; nothing beside it is written where nobody will change it.

        Raises
        ------
        CaseIndexError
            If it is missing, is no catalog, or one of a later version.
        """
        if not create and not is_plain(path):
            raise CaseIndexError(path, "the catalog is missing", "restore it from a backup, or index again")
        if create:
            make_private(path)
        # what has a second name is a backup's, too
        writable = not immutable and os.access(path.parent, os.W_OK) and path.lstat().st_nlink == 1
        catalog = cls(database.sqlite(path, writable=writable, immutable=immutable), dimension)
        catalog._prepare(create=create, writable=writable)
        catalog._log_is_kept = writable
        return catalog

    @classmethod
    def on(cls, url: str, dimension: int, schema: str, *, create: bool = False) -> Catalog:
        """The catalog in a schema of a PostgreSQL database.

        Raises
        ------
        CaseIndexError
            If the URL is of another database or holds a password, its driver is not installed, the
            database cannot be reached, or holds no such schema.
        """
        catalog = cls(database.postgresql(url, schema), dimension, schema)
        with catalog._transaction() as connection:
            if create:
                connection.execute(sa.schema.CreateSchema(schema))
            elif not sa.inspect(connection).has_schema(schema):
                raise CaseIndexError(catalog.where, "the catalog is missing", "restore it from a backup")
        catalog._prepare(create=create, writable=True)
        return catalog

    def _prepare(self, *, create: bool, writable: bool) -> None:
        """Make the tables, or bring those of an earlier version up to date."""
        with self._transaction() as connection:
            held = migrations.held_format(connection, self.schema)
            if held is None and create:
                migrations.create(connection)
        if held is not None:
            migrations.refuse_later(self.where, held)
            if held < FORMAT and writable:
                with self._transaction() as connection:
                    migrations.migrate(connection, self.schema)

    def reach(self) -> None:
        """See that the database lets us in."""
        with self._transaction():
            pass

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
        if self._log_is_kept:
            with database.keep_log(Path(self.where)):
                self.engine.dispose()
        else:
            self.engine.dispose()

    @contextmanager
    def one_state(self) -> Iterator[None]:
        """All that this thread reads in this context is of one committed moment."""
        with self._transaction() as connection:
            self._looking.at = connection
            try:
                yield
            finally:
                self._looking.at = None

    @contextmanager
    def _transaction(self, *, given: bool = False) -> Iterator[sa.Connection]:
        if (held := getattr(self._looking, "at", None)) is not None:
            yield held
            return
        with (
            database.told(self.where, server=self.schema is not None, given=given),
            self.engine.begin() as connection,
        ):
            yield connection

    # ---- writing -------------------------------------------------------------------------------

    def put(
        self,
        batch: Iterable[Entry],
        table: Mapping[str, Mapping[str, str]],
        visits: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """File sources and labels, replacing what was held under the same names.

        Parameters
        ----------
        batch : iterable of Entry
        table : mapping
            Patient to labels.
        visits : mapping, optional
            Case to the labels of its visit.
        """
        with self._transaction(given=True) as connection:
            change = Change(connection)
            change.file(list(batch))
            change.set_labels(table)
            change.set_visit_labels(visits or {})
            change.commit()

    def set_labels(self, table: Mapping[str, Mapping[str, str]]) -> None:
        """Replace the labels of the given patients."""
        with self._transaction() as connection:
            change = Change(connection)
            if change.set_labels(table):
                change.commit()

    def set_visit_labels(self, table: Mapping[str, Mapping[str, str]]) -> None:
        """Replace the labels of the visits of the given cases; cases that are not there are ignored."""
        with self._transaction() as connection:
            change = Change(connection)
            if change.set_visit_labels(table):
                change.commit()

    def set_visits(self, visits: Mapping[str, str | None]) -> None:
        """What the visits of the given cases are called; cases that are not there are ignored."""
        with self._transaction() as connection:
            change = Change(connection)
            if change.set_visits(visits):
                change.commit()

    def set_root(self, root: str, how: str) -> None:
        """Remember how a root was indexed (:mod:`indexer.roots`)."""
        with self._transaction() as connection:
            connection.execute(roots.delete().where(roots.c.path == root))
            connection.execute(roots.insert().values(path=root, labels=how))
            digests.renew(connection, tables=[roots.name])

    def root(self, root: str) -> str | None:
        """How a root was indexed, if it was."""
        with self._transaction() as connection:
            found: str | None = connection.scalar(sa.select(roots.c.labels).where(roots.c.path == root))
        return found

    def roots(self) -> list[str]:
        """How each of the roots was indexed."""
        with self._transaction() as connection:
            return list(connection.scalars(sa.select(roots.c.labels).order_by(roots.c.path)))

    def set_failures(self, under: Iterable[str], reasons: Mapping[str, str]) -> None:
        """Replace the failures recorded at or below the given paths."""
        with self._transaction() as connection:
            for root in under:
                below = root.rstrip(os.sep) + os.sep
                at_or_below = sa.or_(failures.c.path == root, self._begins(failures.c.path, below))
                connection.execute(failures.delete().where(at_or_below))
            for path, reason in reasons.items():
                connection.execute(failures.delete().where(failures.c.path == path))
                connection.execute(failures.insert().values(path=path, reason=reason))
            digests.renew(connection, tables=[failures.name])

    def remove_sources(self, paths: Iterable[str]) -> int:
        """Take sources out, with their scans and slices; returns how many there were."""
        with self._transaction() as connection:
            change = Change(connection)
            gone = change.take_out(paths)
            if gone:
                change.commit()
        return gone

    def rename_sources(self, paths: Mapping[str, str]) -> None:
        """Sources lie elsewhere: old path to new path."""
        with self._transaction() as connection:
            change = Change(connection)
            for old, new in paths.items():
                change.rename(old, new)
            change.commit()

    def remove_cases(self, case_ids: Iterable[str]) -> int:
        """Take cases out, with the sources that hold nothing else; returns how many there were."""
        with self._transaction() as connection:
            change = Change(connection)
            gone = change.remove_cases(case_ids)
            if gone:
                change.commit()
        return gone

    def log(self, command: str, outcome: Mapping[str, Any]) -> None:
        """Add a line to the history."""
        with self._transaction() as connection:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            line = history.insert().values(time=now, command=command, outcome=dict(outcome))
            digests.append(connection, connection.scalars(line.returning(history.c.id)).one())

    def recount(self) -> None:
        """Make the database's indexes anew, and count and take down everything as it is now."""
        with self._transaction() as connection:
            if self.schema is None:
                connection.exec_driver_sql("REINDEX")
            keep(connection, {**counted(connection), "counted": self._numbers(connection).get("revision", 0)})
            digests.renew_all(connection)

    def compact(self) -> None:
        """Give free pages back: to the file system by SQLite, to the tables by PostgreSQL."""
        if self.schema is not None:
            with database.told(self.where, server=True), self.engine.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                for name in metadata.tables:
                    connection.exec_driver_sql(f'VACUUM (ANALYZE) "{self.schema}"."{name}"')
        else:
            with database.told(self.where, server=False):
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
            digests.renew_all(connection)  # those of the counters are the engine's

    # ---- reading -------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """Counts the committed changes."""
        with self._transaction() as connection:
            return self._numbers(connection).get("revision", 0)

    def contents(self, since: Contents | None = None) -> Contents:
        """Everything but the embeddings, of one moment.

        Parameters
        ----------
        since : Contents, optional
            An earlier state, of which only what has changed since is read; it stays as it is.
        """
        with self._transaction() as connection:
            return contents.read(connection, since)

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
        with self._transaction() as connection:
            return embeddings.of(connection, ids, self.dimension)

    def embedding_blocks(self, block: int = 4096) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """All embeddings by ascending id, a block at a time."""
        last = 0
        while True:
            with self._transaction() as connection:
                ids, vectors = embeddings.after(connection, last, block, self.dimension)
            if not len(ids):
                return
            last = int(ids[-1])
            yield ids, vectors

    def entries(self) -> list[Entry]:
        """All sources with what they hold, as :meth:`put` takes them."""
        with self._transaction() as connection:
            return embeddings.entries(connection, self.dimension)

    def fingerprints(self, beginning: str = "") -> dict[str, str]:
        """Path of every source, or of those that begin so, to the fingerprint it was read with."""
        with self._transaction() as connection:
            chosen = sa.select(sources.c.path, sources.c.fingerprint)
            rows = connection.execute(chosen.where(self._begins(sources.c.path, beginning)))
            return {row.path: row.fingerprint for row in rows}

    def fingerprints_of(self, paths: Iterable[str]) -> dict[str, str]:
        """The same of the sources among these."""
        found: dict[str, str] = {}
        with self._transaction() as connection:
            for block in blocks(paths):
                chosen = sa.select(sources.c.path, sources.c.fingerprint).where(sources.c.path.in_(block))
                found |= {row.path: row.fingerprint for row in connection.execute(chosen)}
        return found

    def sources_of(self, patients: Iterable[str]) -> set[str]:
        """Paths of the sources that hold a scan of one of these patients."""
        found: set[str] = set()
        with self._transaction() as connection:
            for block in blocks(patients):
                chosen = sa.select(sources.c.path).join(scans, scans.c.source == sources.c.id)
                chosen = chosen.join(cases, cases.c.id == scans.c.case)
                found |= set(connection.scalars(chosen.where(cases.c.patient_id.in_(block))))
        return found

    def labels_beyond(
        self, roots: Iterable[str], patients: Iterable[str], without: str
    ) -> dict[str, dict[str, str]]:
        """Labels of those of the patients who have a source that lies neither at nor below the roots.

        Sources whose paths begin with `without` do not count.
        """
        there = [self._begins(sources.c.path, without)]
        for root in roots:
            there += [sources.c.path == root, self._begins(sources.c.path, root.rstrip(os.sep) + os.sep)]
        found: dict[str, dict[str, str]] = {}
        with self._transaction() as connection:
            for block in blocks(patients):
                beyond = sa.select(cases.c.patient_id).join(scans, scans.c.case == cases.c.id)
                beyond = beyond.join(sources, sources.c.id == scans.c.source)
                beyond = beyond.where(cases.c.patient_id.in_(block), ~sa.or_(*there))
                found |= {patient: {} for patient in connection.scalars(beyond.distinct())}
                for row in connection.execute(sa.select(labels).where(labels.c.patient_id.in_(block))):
                    if row.patient_id in found:
                        found[row.patient_id][row.name] = row.value
        return found

    def cases_of(self, paths: Iterable[str]) -> list[str]:
        """Ids of the cases that hold a scan of one of these sources."""
        found: set[str] = set()
        with self._transaction() as connection:
            for block in blocks(paths):
                of_sources = (
                    sa.select(cases.c.case_id)
                    .join(scans, scans.c.case == cases.c.id)
                    .join(sources, sources.c.id == scans.c.source)
                    .where(sources.c.path.in_(block))
                )
                found |= set(connection.scalars(of_sources))
        return sorted(found)

    def composites_of(self, case_ids: Iterable[str]) -> list[str]:
        """Paths of the sources that are nothing but a composite of one of these cases."""
        found: set[str] = set()
        with self._transaction() as connection:
            for block in blocks(case_ids):
                chosen = (
                    sa.select(sources.c.path, sources.c.record)
                    .join(scans, scans.c.source == sources.c.id)
                    .join(cases, cases.c.id == scans.c.case)
                    .where(scans.c.sequence == COMPOSITE, cases.c.case_id.in_(block))
                )
                rows = connection.execute(chosen)
                found |= {row.path for row in rows if row.record["kind"] == COMPOSITE}
        return sorted(found)

    def record(self, path: str) -> dict[str, Any] | None:
        """How to read a source again."""
        with self._transaction() as connection:
            record = connection.scalar(sa.select(sources.c.record).where(sources.c.path == path))
        return None if record is None else dict(record)

    def case(self, case_id: str) -> FiledCase | None:
        """A case as it is filed now."""
        with self._transaction() as connection:
            case = connection.execute(sa.select(cases).where(cases.c.case_id == case_id)).one_or_none()
            if case is None:
                return None
            of_person = sa.select(labels.c.name, labels.c.value).where(labels.c.patient_id == case.patient_id)
            of_visit = sa.select(visit_labels.c.name, visit_labels.c.value).where(
                visit_labels.c.case == case.id
            )
            seen = sa.select(trained_on.c.patient_id).where(trained_on.c.patient_id == case.patient_id)
            columns = (scans.c.sequence, scans.c.modality, scans.c.shape, scans.c.spacing, scans.c.channel)
            rows = connection.execute(
                sa.select(*columns, sources.c.path)
                .join(sources, sources.c.id == scans.c.source)
                .where(scans.c.case == case.id, scans.c.sequence.is_distinct_from(COMPOSITE))
                .order_by(scans.c.id)
            )
            return FiledCase(
                patient_id=case.patient_id,
                visit=case.visit,
                labels={
                    row.name: row.value
                    for named in (of_person, of_visit)
                    for row in connection.execute(named)
                },
                scans=[
                    FiledScan(
                        source=row.path,
                        number=row.channel,
                        sequence=row.sequence,
                        modality=row.modality,
                        shape=tuple(row.shape),
                        spacing=None if row.spacing is None else tuple(row.spacing),
                    )
                    for row in rows
                ],
                in_sample=connection.scalar(seen) is not None,
            )

    def embedded(
        self, input_hashes: Sequence[str]
    ) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]:
        """What :func:`indexer.encoder.look` found in network inputs that are filed already, whole slices.

        The strangeness is the scan's, for each of its slices.
        """
        with self._transaction() as connection:
            return embeddings.of_inputs(connection, input_hashes, self.dimension)

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
        with self._transaction() as connection:
            return self._counts(connection)

    def sequences(self) -> list[str | None]:
        """The sequences of all scans, None first where it is one of them."""
        with self._transaction() as connection:
            unknown = connection.scalar(sa.select(sa.exists().where(scans.c.sequence.is_(None))))
            return [*([None] if unknown else []), *_values(connection, scans.c.sequence)]

    def label_names(self) -> list[str]:
        """The names of all labels, of patients and of visits."""
        with self._transaction() as connection:
            names = {*_values(connection, labels.c.name), *_values(connection, visit_labels.c.name)}
        return sorted(names)

    def people(self) -> Contents:
        """Cases with their labels, as if they had no scans."""
        with self._transaction() as connection:
            return contents.people(connection)

    def cases_among(self, case_ids: Iterable[str]) -> set[str]:
        """Those of the cases that are there."""
        return self._named(cases.c.case_id, case_ids)

    def cases_of_patients(self, patients: Iterable[str]) -> set[str]:
        """All cases of these patients."""
        return self._named(cases.c.patient_id, patients)

    def _named(self, column: sa.Column[str], values: Iterable[str]) -> set[str]:
        found: set[str] = set()
        with self._transaction() as connection:
            for block in blocks(filter(str.isprintable, values)):  # nothing else is filed
                found |= set(connection.scalars(sa.select(cases.c.case_id).where(column.in_(block))))
        return found

    def scans_until(self, last: int) -> tuple[int, int]:
        """How many scans there are, composites too, and how many of them have an id up to `last`."""
        with self._transaction() as connection:
            every = sa.select(sa.func.count(), sa.func.count().filter(scans.c.id <= last)).select_from(scans)
            total, until = connection.execute(every).one()
            return int(total), int(until)

    def slices_until(self, last: int) -> tuple[int, int]:
        """How many slices there are, and how many of them have an id up to `last`."""
        with self._transaction() as connection:
            total = self._counts(connection)["slices"]
            later = sa.select(sa.func.count()).select_from(slices).where(slices.c.id > last)
            return total, total - int(connection.scalar(later) or 0)

    def damage(self) -> Iterator[tuple[str, str]]:
        """Check every row against its checksum, and what is counted against the rows.

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
            told = set()
            for path, what in embeddings.damage(connection):
                told.add(path)
                yield path, what
            counts = self._counts(connection)
            for name, number in counted(connection).items():
                if counts[name] != number:
                    told.add("")
                    yield "", f"{number} {name}, of which {counts[name]} are counted"
            for kind, key in digests.wrong(connection):
                if kind in (digests.SOURCE, digests.PATIENT):
                    paths = list(self._paths(connection, kind, key)) or [""]
                    what = f"what is known of this {kind} does not match its checksum"
                    yield from ((path, what) for path in paths if path not in told)
                    told |= {*paths}
                elif "" not in told:
                    yield "", f"the {kind} {key}".rstrip() + " does not match its checksum"

    # ---- steps ---------------------------------------------------------------------------------

    def _paths(self, connection: sa.Connection, kind: str, key: str) -> Iterable[str]:
        """The sources that a checksum is of."""
        chosen = sa.select(sources.c.path)
        if kind == digests.SOURCE:
            return connection.scalars(chosen.where(sources.c.id == int(key))) if key.isdecimal() else ()
        chosen = chosen.join(scans, scans.c.source == sources.c.id).join(cases, cases.c.id == scans.c.case)
        return connection.scalars(chosen.where(cases.c.patient_id == key).distinct())

    def _numbers(self, connection: sa.Connection) -> dict[str, int]:
        return contents.numbers(connection)

    def _counts(self, connection: sa.Connection) -> dict[str, int]:
        held = self._numbers(connection)
        if held.get("counted") != held.get("revision"):  # an earlier version has written
            return counted(connection)
        return {name: held.get(name, 0) for name in COUNTS}

    def _begins(self, column: sa.Column[str], beginning: str) -> sa.ColumnElement[bool]:
        """Whether a text begins so, as an index can tell."""
        text = column if self.schema is None else column.collate("C")
        return sa.and_(text >= beginning, text < beginning + "\U0010ffff")


def _values(connection: sa.Connection, column: sa.Column[str]) -> Iterator[str]:
    """All values of an indexed column, each once, in as many steps."""
    value = connection.scalar(sa.select(sa.func.min(column)))
    while value is not None:
        yield value
        value = connection.scalar(sa.select(sa.func.min(column)).where(column > value))
