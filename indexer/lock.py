"""One writer at a time in the folder of an index."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import filelock

from indexer.errors import CaseIndexError, WriterBusyError
from indexer.files import PRIVATE, content, needing_room, opened
from indexer.text import printable

LOCK = "lock"
HOLDER = "writer.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be alone in writing to the folder.

    Raises
    ------
    WriterBusyError
        If another process writes.
    CaseIndexError
        If the folder cannot be written.
    """
    lock = filelock.FileLock(folder / LOCK, mode=PRIVATE)
    try:
        with needing_room(folder):
            os.close(opened(folder / LOCK, os.O_RDWR | os.O_CREAT))  # no link, which it might follow
            lock.acquire(timeout=0)
    except filelock.Timeout:
        try:
            who = json.loads(content(folder / HOLDER, 10_000))
            pid, since = int(who["pid"]), datetime.fromisoformat(who["since"])
            told = f"`cbir {printable(who['command'])}` (process {pid}) has been writing since "
            told += since.isoformat(timespec="seconds")
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
            told = "another process is writing"
        raise WriterBusyError(folder, told, "wait until it has ended") from None
    except OSError as error:
        raise CaseIndexError(folder, f"cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def signed(folder: Path, command: str) -> Iterator[None]:
    """Tell others who is writing."""
    holder = folder / HOLDER
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        handle = opened(holder, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"command": command, "pid": os.getpid(), "since": since}, file)
        yield
    finally:
        with suppress(OSError):  # what went wrong first is what is told
            holder.unlink(missing_ok=True)
