"""JSON documents with a checksum of what they say: a bit that was flipped is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from indexer.files import content, written_whole

SEAL = "sha256"
"""The field with the checksum of all others."""
MOST = 2**23
"""Bytes of a document, at most, if nothing else is said."""


def write(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a document in one step; only its owner may read it."""
    text = json.dumps({**data, SEAL: seal(data)}, indent=1) + "\n"
    with written_whole(path, private=True) as aside:
        aside.write_text(text, "utf-8")


def load(path: Path, most: int = MOST) -> tuple[dict[str, Any], bool | None]:
    """What a document of at most so many bytes says, without its seal, and whether it is as it was written.

    Returns
    -------
    data : dict
    whole : bool or None
        None for an earlier version's document, which has no seal.

    Raises
    ------
    OSError
        If it is missing, no plain file, or cannot be read.
    ValueError
        If it is no JSON object.
    """
    try:
        data = json.loads(content(path, most), object_pairs_hook=_distinct, parse_constant=_refused)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("no object")
    held = data.pop(SEAL, None)
    if held is None:  # of an earlier version, or the seal's own name is damaged
        return data, False if any(map(_flipped, data)) else None
    return data, held == seal(data)


def read(path: Path, *, sealed: bool = False, most: int = MOST) -> dict[str, Any]:
    """What a document says, if it is as it was written.

    Parameters
    ----------
    path : Path
    sealed : bool
        Without a seal it is not believed.
    most : int
        Bytes that it may have.

    Raises
    ------
    OSError
        As :func:`load`.
    ValueError
        As :func:`load`; or if it does not match its seal.
    """
    data, whole = load(path, most)
    if not whole and (sealed or whole is not None):
        raise ValueError("it does not match its checksum")
    return data


def seal(data: Mapping[str, Any]) -> str:
    """Checksum of what is said, however it is written."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _flipped(name: str) -> bool:
    """Whether one bit makes it the seal's name: no field is called so."""
    bits = [ord(a) ^ ord(b) for a, b in zip(name, SEAL, strict=False)]
    return len(name) == len(SEAL) and sum(bit.bit_count() for bit in bits) == 1


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a name is there twice")
    return data


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
