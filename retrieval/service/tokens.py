"""Who may do what: bearer tokens, of which a file keeps the hashes."""

from __future__ import annotations

import enum
import errno
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from indexer.errors import CbirError
from indexer.files import needing_room, there

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Role(enum.IntEnum):
    """What a token allows; each role includes the ones below it."""

    READ = 1
    WRITE = 2
    ADMIN = 3


@dataclass(frozen=True)
class Token:
    """A line of the token file.

    Attributes
    ----------
    name : str
        Who holds it, as the audit trail shows it.
    role : str
        ``read``, ``write`` or ``admin``.
    sha256 : str
        Of the token, which has 256 random bits.
    created : str
    """

    name: str
    role: str
    sha256: str
    created: str


def add_token(path: Path, name: str, role: str) -> str:
    """Make a token, file its hash, and return it: nobody can read it again.

    Raises
    ------
    CbirError
        If the name is taken or no name, the role unknown, or the file unreadable.
    """
    if not _NAME.fullmatch(name):
        raise CbirError(name, "is no name for a token", "use letters, digits and ._@-, at most 64")
    if role.upper() not in Role.__members__:
        raise CbirError(role, "is no role", "choose read, write or admin")
    if there(path) and any(token.name == name for token in _loaded(path)):
        raise CbirError(path, f"has a token for {name}", "choose another name, or delete that line first")
    secret = secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    token = Token(name, role.lower(), _digest(secret), created)
    try:
        with needing_room(path):
            _append(path, json.dumps(asdict(token)))
    except OSError as error:
        raise CbirError(path, f"cannot be written ({error.strerror})", "choose another --tokens") from error
    return secret


class Tokens:
    """The tokens of a file. A change of the file takes effect at once, without a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._tokens: list[Token] = []
        self._refresh()

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """Read a token file.

        Raises
        ------
        CbirError
            If it is missing, damaged, or others than its owner may write it.
        """
        return cls(path)

    def find(self, secret: str) -> Token | None:
        """The token, or None; the time it takes does not tell how much of it was right.

        Raises
        ------
        CbirError
            If the file has become unreadable.
        """
        self._refresh()
        digest, found = _digest(secret), None
        for token in self._tokens:
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return found

    def _refresh(self) -> None:
        try:
            stat = self._path.stat()
        except OSError as error:
            reason = f"the tokens cannot be read ({error.strerror})"
            raise CbirError(
                self._path, reason, "make one with `cbir token NAME --role read --tokens FILE`"
            ) from None
        if (stat.st_mtime_ns, stat.st_size) != self._stamp:
            if stat.st_mode & 0o022:
                raise CbirError(self._path, "others may write the tokens", "chmod 600")
            self._tokens = _loaded(self._path)
            self._stamp = (stat.st_mtime_ns, stat.st_size)


def _append(path: Path, line: str) -> None:
    """Add a line, on the disk, or nothing; what was torn before it is taken out."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        fcntl.flock(handle, fcntl.LOCK_EX)  # of two who add at a time, one waits
        held = file.read()
        kept = len(held) - len(_torn(held))
        between = b"\n" if held[:kept] and not held[:kept].endswith(b"\n") else b""
        added = between + line.encode() + b"\n"
        try:
            if os.pwrite(handle, added, kept) < len(added):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
            file.truncate(kept + len(added))
            os.fsync(handle)
        except BaseException:
            with suppress(OSError):  # what went wrong first is what is told
                file.truncate(kept)
            raise


def _torn(held: bytes) -> bytes:
    """The end of a file that a killed process has left, without a line's end: nobody knows that token."""
    last = held.rpartition(b"\n")[2]
    return b"" if last.endswith(b"}") else last


def _loaded(path: Path) -> list[Token]:
    try:
        held = path.read_bytes()
        text = held[: len(held) - len(_torn(held))].decode("utf-8")
        lines = [line for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        remedy = "name a file that `cbir token` made, or a new one"
        raise CbirError(path, f"the tokens cannot be read ({reason})", remedy) from error
    tokens = []
    for number, line in enumerate(lines, start=1):
        try:
            token = Token(**json.loads(line))
            if token.role.upper() not in Role.__members__ or not re.fullmatch("[0-9a-f]{64}", token.sha256):
                raise ValueError
        except (ValueError, TypeError, AttributeError):
            raise CbirError(path, f"line {number} is no token", "delete it, and make a new one") from None
        tokens.append(token)
    return tokens


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
