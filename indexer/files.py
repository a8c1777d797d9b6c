"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from indexer.errors import CbirError, DiskFullError

ASIDE = ".part"
"""Ending of a file that is still being written."""

PRIVATE = 0o600
"""Rights of a file that only its owner may read."""

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
def written_whole(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a path to write to; on success it replaces `path` in one step, else it vanishes.

    The data are on the disk before the name is (write aside, fsync, rename, fsync the folder). What a writer
    left that was killed is written over by the next one.

    Parameters
    ----------
    path : Path
    private : bool
        Only its owner may read it, whatever the umask says; who has given more rights to the file that is
        replaced has given them to this one.

    Raises
    ------
    DiskFullError
        If there is no room for it; `path` is what it was before.
    """
    with needing_room(path):
        aside, lock = _aside(path)
    try:
        with needing_room(path):
            if private:
                os.fchmod(lock, mode(path))  # the umask has no say
            yield aside
            _sync(aside)
            aside.replace(path)
            aside = path
            _sync(path.parent)
    finally:
        with suppress(OSError):  # what went wrong first is what is told
            if aside != path:
                aside.unlink(missing_ok=True)
        with suppress(OSError):
            os.close(lock)


def _aside(path: Path) -> tuple[Path, int]:
    """A file of our own beside another, and what it is locked by: empty, and nobody else's to write."""
    name = f"{path.name}.0{ASIDE}"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for rest in (0, os.O_EXCL, os.O_EXCL, os.O_EXCL):
        aside = path.with_name(name)
        name = f"{path.name}.{secrets.token_hex(6)}{ASIDE}"
        with ExitStack() as undo:
            try:
                lock = os.open(aside, flags | rest, 0o666)
                undo.callback(os.close, lock)
                if not rest:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held, there = os.fstat(lock), aside.lstat()
            except OSError:
                if rest:
                    raise
                continue  # somebody else writes the same file, or has put something in our way
            own = held.st_uid == os.geteuid() and held.st_nlink == 1 and stat.S_ISREG(held.st_mode)
            if own and (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino):
                os.ftruncate(lock, 0)
                undo.pop_all()
                return aside, lock
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))


def opened(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a plain file; no link is followed, and nothing else is waited for.

    Raises
    ------
    OSError
        If it is a link, a folder, a pipe or a device, or cannot be opened.
    """
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, PRIVATE)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is no plain file", os.fspath(path))
    return handle


def content(path: Path, most: int) -> bytes:
    """The bytes of a plain file, of which there are at most so many.

    Raises
    ------
    OSError
        As :func:`opened`; or if there are more.
    """
    with os.fdopen(opened(path), "rb") as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise OSError(errno.EFBIG, f"has more than {most} bytes", os.fspath(path))
    return found


def there(path: str | os.PathLike[str], refusal: type[CbirError] = CbirError) -> bool:
    """Whether something is at a path that the user named.

    Raises
    ------
    CbirError
        Of the given kind, if nobody can say: no file has such a name, links lead in a circle, or a folder on
        the way may not be entered.
    """
    try:
        os.fspath(path).encode()  # else no catalog can hold it
        os.stat(path)  # noqa: PTH116 (any name)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except UnicodeEncodeError:
        raise refusal(path, "has a name that is no text (UTF-8)", "rename it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file has such a name"
        raise refusal(
            path, f"cannot be looked at ({reason})", "check the path and who may enter it"
        ) from None
    return True


def refuse_folder(path: Path) -> None:
    """Refuse to write a file where none can be: in place of a folder, or at what :func:`there` refuses.

    Raises
    ------
    CbirError
    """
    if there(path) and path.is_dir():
        raise CbirError(path, "is a folder", "name a file in it")


def is_plain(path: Path) -> bool:
    """Whether there is a plain file, and no link to one."""
    with suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def mode(path: Path) -> int:
    """Who may read and write a file; its owner alone, where there is none."""
    with suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            return stat.S_IMODE(found.st_mode) & 0o666 | PRIVATE
    return PRIVATE


def make_private(path: Path) -> None:
    """Make an empty file that only its owner may read, where there is none."""
    with suppress(FileExistsError):
        _made(path, PRIVATE)


def sha256(path: Path) -> str:
    """Checksum of a plain file's bytes."""
    with os.fdopen(opened(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _made(path: Path, rights: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, rights)
    try:
        os.fchmod(handle, rights)  # the umask has no say
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
