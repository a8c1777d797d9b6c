"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE = ".part"
"""Ending of a file that is still being written."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a path to write to; on success it replaces `path` in one step, else it vanishes.

    The data are on the disk before the name is (write aside, fsync, rename, fsync the folder).
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}{ASIDE}")
    try:
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
