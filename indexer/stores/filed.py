"""What the manifest of an index says of its vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


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
    def of(cls, data: Mapping[str, Any]) -> Filed:
        """What was written as JSON."""
        values = dict(data)
        pieces = tuple(Piece(**piece) for piece in values.pop("pieces", ()))
        return cls(**values, pieces=pieces)

    def files(self) -> Iterator[tuple[str, str]]:
        """Names of the files of vectors with their checksums."""
        for name, checksum in ((self.file, self.sha256), (self.rows, self.rows_sha256)):
            if name and checksum:
                yield name, checksum
        for piece in self.pieces:
            yield from ((piece.file, piece.sha256), (piece.rows, piece.rows_sha256))
