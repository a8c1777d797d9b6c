"""Folders and files of the service's own: nobody else reads them, and no link leads out of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from indexer.errors import CbirError


def own_folder(path: Path) -> Path:
    """Make a folder that only its owner may enter, or take the one that is there.

    Raises
    ------
    CbirError
        If a link, a file, or somebody else's folder is in its place, or it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise CbirError(path, f"cannot be made ({error.strerror})", "name another folder") from error
    if not stat.S_ISDIR(found.st_mode):
        raise CbirError(path, "is a link, or no folder", "move it away")
    if found.st_uid != os.getuid():
        raise CbirError(path, "is somebody else's folder", "move it away")
    return path


def opened(path: Path, flags: int) -> int:
    """Open a file of our own, made for its owner alone if it is missing; a link is not followed.

    Raises
    ------
    OSError
        If it is a link, or cannot be opened.
    """
    handle = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileExistsError(f"{path.name} is no plain file")
    return handle


def is_own(path: Path) -> bool:
    """Whether something is a folder of this user, and no link to one."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def sync_all(folder: Path) -> None:
    """Have a folder and all that is in it on the disk."""
    for below in folder.rglob("*"):
        sync(below)
    sync(folder)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
