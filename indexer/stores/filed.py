"""What the manifest of an index says of its vectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Rule = Callable[[object], bool]
DIGEST = r"[0-9a-f]{64}"
PLAIN = r"[^/\\.][^/\\]*"
"""The name of a file in the folder, or of a collection: no path, and not hidden."""
MOST = 2**62


def text(most: int, pattern: str = r".*") -> Rule:
    """Printable text of so many characters at most, which looks so."""
    return lambda value: (
        isinstance(value, str)
        and len(value) <= most
        and value.isprintable()
        and re.fullmatch(pattern, value) is not None
    )


def number(least: int, most: int = MOST) -> Rule:
    """A whole number in a range."""
    return lambda value: type(value) is int and least <= value <= most


def either(one: object, rule: Rule) -> Rule:
    """This, or what a rule says."""
    return lambda value: value == one or rule(value)


def checked(data: object, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Fields that are known, and are what they may be.

    Raises
    ------
    ValueError
        Naming the field.
    """
    if not isinstance(data, dict):
        raise ValueError("no object")
    for name, value in data.items():
        if name not in rules:
            raise ValueError(f"{name!r:.40} is no field of it")
        if not rules[name](value):
            raise ValueError(f"{name} cannot be {value!r:.40}")
    return data


@dataclass(frozen=True)
class Piece:
    """Files of the vectors that came after others were written, and how many they hold."""

    file: str
    sha256: str
    rows: str
    rows_sha256: str
    slices: int


@dataclass(frozen=True)
class Filed:
    """Vectors as a store filed them last.

    Attributes
    ----------
    file : str
        What the store calls them: a file in the folder of the index, a collection on a server.
    sha256 : str
        Checksum of the file; empty where it is none.
    revision, slices, last : int
        Of the catalog that they were made from: its revision, how many slices it had, and the last id.
    partition, partition_sha256 : str, optional
        File with the partition that they are filed by.
    fitted_on : int
        How many slices there were when it was made.
    entries : int
        What the store holds: with vectors whose slice was taken out of the catalog, where these are only
        taken out of memory; with a second entry of border vectors, where it counts these.
    rows, rows_sha256 : str, optional
        Beside a file of codes, one of vectors.
    pieces : tuple of Piece
    """

    file: str
    sha256: str
    revision: int
    slices: int
    last: int
    partition: str | None = None
    partition_sha256: str | None = None
    fitted_on: int = 0
    entries: int = 0
    rows: str | None = None
    rows_sha256: str | None = None
    pieces: tuple[Piece, ...] = ()

    @classmethod
    def of(cls, data: object) -> Filed:
        """What was written as JSON.

        Raises
        ------
        ValueError, TypeError
            If it is something else.
        """
        values = dict(checked(data, RULES))
        pieces = tuple(Piece(**checked(piece, OF_PIECE)) for piece in values.pop("pieces", ()))
        return cls(**values, pieces=pieces)

    def files(self) -> Iterator[tuple[str, str]]:
        """Names of the files of vectors with their checksums."""
        for name, checksum in ((self.file, self.sha256), (self.rows, self.rows_sha256)):
            if name and checksum:
                yield name, checksum
        for piece in self.pieces:
            yield from ((piece.file, piece.sha256), (piece.rows, piece.rows_sha256))


OF_PIECE: Mapping[str, Rule] = {
    "file": text(255, PLAIN),
    "sha256": text(64, DIGEST),
    "rows": text(255, PLAIN),
    "rows_sha256": text(64, DIGEST),
    "slices": number(0),
}
RULES: Mapping[str, Rule] = {
    "file": either("", text(255, PLAIN)),
    "sha256": either("", text(64, DIGEST)),
    "revision": number(0),
    "slices": number(0),
    "last": number(0),
    "partition": either(None, text(255, PLAIN)),
    "partition_sha256": either(None, text(64, DIGEST)),
    "fitted_on": number(0),
    "entries": number(0),
    "rows": either(None, text(255, PLAIN)),
    "rows_sha256": either(None, text(64, DIGEST)),
    "pieces": lambda value: isinstance(value, list) and len(value) <= 1000,
}
"""What each field may be."""
