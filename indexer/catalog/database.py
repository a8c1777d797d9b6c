"""Connections to SQLite and PostgreSQL, and what is told of their errors."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from indexer.catalog.intake import refuse_journal, refuse_schema
from indexer.catalog.migrations import lay_over
from indexer.errors import CaseIndexError
from indexer.files import disk_full
from indexer.text import printable

DEFENSIVE = 1010
"""SQLITE_DBCONFIG_DEFENSIVE, which Python's older modules do not name."""
EXAMPLE = "name one such as postgresql://user@host/database"


def sqlite(path: Path, *, writable: bool, immutable: bool = False) -> sa.Engine:
    """A file; nothing beside it is written where `writable` is false.

    Who may not write the folder of a database that others write reads their log beside it, which
    :func:`keep_log` leaves there; without one nobody has written since the file was whole, so it is read as
    one that does not change.

    Raises
    ------
    CaseIndexError
        If a journal beside it leads elsewhere; when it is connected to, if it holds what no catalog does.
    """
    refuse_journal(path)
    if writable:
        engine = sa.create_engine(f"sqlite:///{path}")
    else:

        def connect() -> sqlite3.Connection:
            alone = immutable or not _log(path).exists()
            how = "immutable=1" if alone else "mode=ro"
            place = f"file:{quote(str(path))}?{how}"
            return sqlite3.connect(place, uri=True, check_same_thread=False)

        engine = sa.create_engine(f"sqlite:///{path}", creator=connect, poolclass=sa.NullPool)
    looked: list[Path] = []

    def look(raw: Any, _record: Any) -> None:
        if not looked:
            refuse_schema(raw, str(path))
            looked.append(path)

    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "connect", look)
    if not writable:
        sa.event.listen(engine, "connect", lambda raw, _: lay_over(raw))
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def keep_log(path: Path) -> Iterator[None]:
    """Leave the log of a database beside it when the last connection is closed in this context.

    A connection that may not write closes last, and leaves it: so who may not write the folder can read it.
    """
    reader = None
    if _log(path).exists():
        with suppress(sqlite3.Error):
            reader = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
            reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
            with closing(sqlite3.connect(path)) as writer:  # what is in the log is in the file, too
                writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    try:
        yield
    finally:
        if reader is not None:
            reader.close()


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def postgresql(url: str, schema: str) -> sa.Engine:
    """A schema of a database.

    Raises
    ------
    CaseIndexError
        If the URL is of another database, holds a password, or its driver is not installed.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise CaseIndexError("--catalog", "is not a database URL", EXAMPLE) from None
    where = parsed.set(query={}).render_as_string()
    if parsed.get_backend_name() != "postgresql":
        raise CaseIndexError(where, "is no PostgreSQL database", EXAMPLE)
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


@contextmanager
def told(where: str, *, server: bool, given: bool = False) -> Iterator[None]:
    """Errors of a database, and of what is found in it, as one line.

    Parameters
    ----------
    where : str
    server : bool
        Whether it is one.
    given : bool
        Wrong values are the caller's, who has given them.

    Raises
    ------
    CaseIndexError
    DiskFullError
    """
    try:
        yield
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        orig = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if getattr(orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise disk_full(Path(where)) from error
        reason = " ".join(str(orig).split())
        away = server and (
            isinstance(error, sa.exc.OperationalError) or getattr(error, "connection_invalidated", False)
        )
        remedy = (
            "see that the database is running and lets you in, and repeat the command"
            if away
            else "run `cbir verify`, or restore a backup"
        )
        raise CaseIndexError(where, f"the catalog cannot be used ({reason})", remedy) from error
    except (sa.exc.SQLAlchemyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        if given:
            raise
        reason = printable(" ".join(str(error).split()))[:200]
        raise CaseIndexError(
            where,
            f"the catalog holds what cbir did not write ({reason})",
            "run `cbir verify`, or restore a backup",
        ) from error


def _begin_sqlite(connection: sa.Connection) -> None:
    # Python's driver begins only before a change: several reads would see several states
    connection.exec_driver_sql("BEGIN")


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    if hasattr(connection, "setconfig"):  # Python 3.12
        connection.setconfig(DEFENSIVE, True)
    connection.execute("PRAGMA trusted_schema=OFF")  # a file of strangers calls no functions
    connection.execute("PRAGMA cell_size_check=ON")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA busy_timeout=10000")
    # in an immutable (read-only) database the mode stays as it is
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    connection.execute("PRAGMA synchronous=FULL")
