"""Connections to SQLite and PostgreSQL, and what is told of their errors."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from indexer.catalog.migrations import lay_over
from indexer.errors import CaseIndexError
from indexer.files import disk_full

EXAMPLE = "name one such as postgresql://user@host/database"


def sqlite(path: Path, *, writable: bool) -> sa.Engine:
    """A file; nothing beside it is written where nobody will change it."""
    # WAL needs a writable folder; in a read-only one nobody writes either
    engine = sa.create_engine(
        f"sqlite:///{path}" if writable else f"sqlite:///file:{path}?immutable=1&uri=true"
    )
    sa.event.listen(engine, "connect", _configure_sqlite)
    if not writable:
        sa.event.listen(engine, "connect", lambda raw, _: lay_over(raw))
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


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
def told(where: str, *, server: bool) -> Iterator[None]:
    """Errors of a database as one line.

    Raises
    ------
    CaseIndexError
    DiskFullError
    """
    try:
        yield
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise disk_full(Path(where)) from error
        reason = " ".join(str(error.orig).split())
        away = server and (error.connection_invalidated or isinstance(error, sa.exc.OperationalError))
        remedy = (
            "see that the database is running and lets you in, and repeat the command"
            if away
            else "run `cbir verify`, or restore a backup"
        )
        raise CaseIndexError(where, f"the catalog cannot be used ({reason})", remedy) from error


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
