"""Where the pixels of questions lie while they are needed: a temporary folder of the service's own."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from indexer.discovery.config import CONFIG
from indexer.errors import CbirError
from retrieval.service.private import is_own, opened

BEGINNING = "cbir-serve-"
"""Of the temporary folder's name."""
LOCK = "lock"
"""A file in it that is locked as long as the service lives."""


class Scratch:
    """A temporary folder (mode 700); those of services that were killed are removed.

    Its name is made up at random, and what others may have put in the way is neither followed nor removed.

    Raises
    ------
    CbirError
        If it cannot be made.
    """

    def __init__(self) -> None:
        root = Path(tempfile.gettempdir())
        _remove_left(root)
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=BEGINNING, dir=root))
            self._lock = opened(self.folder / LOCK, os.O_RDWR)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            # the readers look no further up for settings of an archive
            (self.folder / CONFIG).write_text("{}")
            (self.folder / "queries").mkdir(mode=0o700)
        except OSError as error:
            reason = f"no temporary folder can be made ({error.strerror})"
            raise CbirError(root, reason, "make room, or set TMPDIR to another folder") from error

    @property
    def queries(self) -> Path:
        """The folder of the queries that are kept."""
        return self.folder / "queries"

    @contextmanager
    def new_folder(self) -> Iterator[Path]:
        """An empty folder, as long as it is needed."""
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="upload-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _remove_left(root: Path) -> None:
    """Remove the folders of ours that no living service holds."""
    for left in root.glob(f"{BEGINNING}*"):
        if not is_own(left):
            continue
        try:
            lock = opened(left / LOCK, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except OSError:
            pass  # it is being used
        finally:
            os.close(lock)
