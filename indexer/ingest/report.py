"""What a run did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.errors import ReadError
from indexer.text import printable

Progress = Callable[[int, int, int], None]
"""Called with sources done, sources in all, slices embedded."""


def untold(done: int, total: int, slices: int) -> None:
    """The progress of a run that nobody watches."""


@dataclass
class IngestReport:
    """What a run did.

    Attributes
    ----------
    indexed, unchanged : int
        Sources.
    failed : list of {"source", "reason"}
    cases, slices : int
        In the index after the run.
    seconds, encoder_seconds : float
        Wall time of the run, and of the network within it.
    embedded : int
        Slices that the network saw.
    taken : dict
        What was taken as what, with counts.
    pruned : int
        Sources taken out because their files are gone.
    reference : int
        Reference cases in the index, if they were asked for.
    notes : list of str
        What the user should know: labels without data, data without labels, ….
    """

    indexed: int = 0
    unchanged: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    cases: int = 0
    slices: int = 0
    seconds: float = 0.0
    encoder_seconds: float = 0.0
    embedded: int = 0
    taken: dict[str, int] = field(default_factory=dict)
    pruned: int = 0
    reference: int = 0
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``cbir index --json`` (schema 1)."""
        return {"schema": 1, **vars(self)}


def failure(where: str | Path, error: ReadError) -> dict[str, str]:
    """An error as the report and the catalog hold it, on one line and in valid Unicode."""
    return {"source": printable(str(where)), "reason": printable(error.explanation)}
