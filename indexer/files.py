"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from indexer.errors import DiskFullError

ASIDE = ".part"
"""Ending of a file that is still being written."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""No space left on the device, or none of the user's quota."""


def disk_full(path: Path) -> DiskFullError:
    """The error of a write for which there was no room."""
    return DiskFullError(path, "the disk is full", "make room and run the command again")


@contextmanager
def needing_room(path: Path) -> Iterator[None]:
    """Say in one line that the disk is full, where a write finds it so.

    Raises
    ------
    DiskFullError
        Naming `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(path) from error
        raise


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a path to write to; on success it replaces `path` in one step, else it vanishes.

    The data are on the disk before the name is (write aside, fsync, rename, fsync the folder).

    Raises
    ------
    DiskFullError
        If there is no room for it; `path` is what it was before.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}{ASIDE}")
    try:
        with needing_room(path):
            yield aside
            _sync(aside)
            aside.replace(path)
            _sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Checksum of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
