"""The folder that an index is made in: what may lie there already, and what is taken away on failure."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from indexer.encoder import Encoder, FileEncoder
from indexer.errors import EncoderError
from indexer.files import ASIDE, written_whole
from indexer.lock import HOLDER, LOCK

CATALOG = "catalog.sqlite"
KEY = "key"
WEIGHTS = "encoder.safetensors"


def ours(name: str) -> bool:
    """Whether a file may lie in the folder of an index that was not finished."""
    return name in {LOCK, HOLDER, KEY, WEIGHTS} or name.startswith(CATALOG) or name.endswith(ASIDE)


def make(folder: Path, made: list[Path]) -> None:
    """Make a folder with those above it, telling which of them were not there."""
    for path in reversed((folder, *folder.parents)):
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            made.append(path)


def lay_down(folder: Path, encoder: Encoder) -> None:
    """The key, and the encoder's weights where it is not installed.

    Raises
    ------
    EncoderError
        If the weights cannot be read.
    """
    if not (folder / KEY).exists():
        with written_whole(folder / KEY) as aside:
            aside.touch(0o600)
            aside.write_bytes(secrets.token_bytes(32))
    if isinstance(encoder, FileEncoder):
        try:
            weights = encoder.weights_file.open("rb")
        except OSError as error:
            raise EncoderError(encoder.weights_file, f"cannot be read ({error.strerror})") from error
        with weights, written_whole(folder / WEIGHTS) as aside, aside.open("wb") as written:
            shutil.copyfileobj(weights, written)


def clear(folder: Path, held: set[str]) -> None:
    """Take away what a failed creation has left beside what there was."""
    for path in folder.iterdir():
        if path.name not in held and ours(path.name):
            path.unlink(missing_ok=True)
