"""The folder that an index is made in: what may lie there already, and what is taken away on failure."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import shutil
import stat
from pathlib import Path

from indexer.encoder import Encoder, FileEncoder
from indexer.errors import CaseIndexError, EncoderError
from indexer.files import ASIDE, there, written_whole
from indexer.journal import NAME as JOURNAL
from indexer.lock import HOLDER, LOCK
from indexer.manifest import MANIFEST

CATALOG = "catalog.sqlite"
KEY = "key"
WEIGHTS = "encoder.safetensors"
CALIBRATION = "calibration.json"
COPYING = "copying.json"
"""Says which copy has been begun: what a killed one left is known by it."""
REMOVING = "removing.json"
"""Says which cases are being removed, until they are."""
_BEING_WRITTEN = re.compile(rf".+\.[0-9a-f]+{re.escape(ASIDE)}")


def inspect(folder: Path, *, writing: bool = False) -> None:
    """Refuse a folder in which what has the name of a file of ours cannot be one.

    It is a link or no plain file, or belongs to somebody else than the folder. Who writes refuses also what
    has another name elsewhere: a backup may share its files so, and they would change there, too. What has
    another name is let be, and not looked at: the service looks itself at its own.

    Raises
    ------
    CaseIndexError
        Naming what lies there; or if the folder cannot be looked into.
    """
    there(folder, CaseIndexError)
    try:
        known = {folder.stat().st_uid, os.geteuid(), 0}
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _a_file(entry.name):
                    continue
                held = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(held.st_mode):
                    what = "a link" if stat.S_ISLNK(held.st_mode) else "no plain file"
                    raise CaseIndexError(entry.path, f"is {what}, and no file of an index is", "move it away")
                if held.st_uid not in known:
                    what = "belongs to another user than the folder"
                    raise CaseIndexError(entry.path, what, "copy the index, if it is right")
                beside = entry.name.startswith(f"{CATALOG}-")  # who only reads writes these, too
                if held.st_nlink > 1 and (writing or beside):
                    what = "has another name elsewhere, and would change there, too"
                    raise CaseIndexError(entry.path, what, "use a copy of the folder (cp -r)")
    except FileNotFoundError:
        return  # whoever opens it says what is missing
    except NotADirectoryError:
        raise CaseIndexError(folder, "is no folder", "name the folder of an index") from None
    except OSError as error:
        reason = f"cannot be looked into ({error.strerror})"
        raise CaseIndexError(folder, reason, "see that you may read and enter it") from error


def leftovers(folder: Path) -> list[Path]:
    """Files that were being written when their writer was ended."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _BEING_WRITTEN.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                found.append(Path(entry.path))
    return found


def _a_file(name: str) -> bool:
    named = (MANIFEST, CALIBRATION, COPYING, JOURNAL, REMOVING)
    return ours(name) or name in named or name.startswith(("vectors-", "partition-"))


def check_of(key: bytes) -> str:
    """A checksum of the key which tells nothing of it."""
    return hmac.new(key, b"cbir key", hashlib.sha256).hexdigest()


def ours(name: str) -> bool:
    """Whether a file may lie in the folder of an index that was not finished."""
    return name in {LOCK, HOLDER, KEY, WEIGHTS} or name.startswith(CATALOG) or name.endswith(ASIDE)


def make(folder: Path, made: list[Path]) -> None:
    """Make a folder with those above it, telling which of them were not there.

    Raises
    ------
    CaseIndexError
        If there is something else in its place, or nothing can be there.
    """
    for path in reversed((folder, *folder.parents)):
        if there(path, CaseIndexError) and not path.is_dir():
            raise CaseIndexError(path, "is no folder", "choose another --index")
        if not path.is_dir():
            path.mkdir(mode=0o700 if path == folder else 0o777, exist_ok=True)
            made.append(path)


def lay_down(folder: Path, encoder: Encoder) -> None:
    """The key, and the encoder's weights where it is not installed.

    Raises
    ------
    EncoderError
        If the weights cannot be read.
    """
    if not (folder / KEY).exists():
        with written_whole(folder / KEY, private=True) as aside:
            aside.write_bytes(secrets.token_bytes(32))
    if isinstance(encoder, FileEncoder):
        try:
            weights = encoder.weights_file.open("rb")
        except OSError as error:
            raise EncoderError(encoder.weights_file, f"cannot be read ({error.strerror})") from error
        with weights, written_whole(folder / WEIGHTS, private=True) as aside, aside.open("wb") as written:
            shutil.copyfileobj(weights, written)


def clear(folder: Path, held: set[str]) -> None:
    """Take away what a failed creation has left beside what there was.

    The manifest goes first: where it is, the rest has to be.
    """
    made = [path for path in folder.iterdir() if path.name not in held]
    for path in sorted(made, key=lambda path: path.name != MANIFEST):
        if path.name == MANIFEST or ours(path.name):
            try:
                path.unlink(missing_ok=True)
            except OSError:  # what went wrong first is what is told
                if path.name == MANIFEST:
                    return
