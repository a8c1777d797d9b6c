"""One writer at a time in the folder of an index."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import filelock

from indexer.errors import CaseIndexError, WriterBusyError
from indexer.files import needing_room

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
    lock = filelock.FileLock(folder / LOCK)
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


@contextmanager
def signed(folder: Path, command: str) -> Iterator[None]:
    """Tell others who is writing."""
    holder = folder / HOLDER
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder.write_text(json.dumps({"command": command, "pid": os.getpid(), "since": since}), "utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
