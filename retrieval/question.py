"""A question: one value, whichever door it came through."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import TypedDict, get_args

from indexer.errors import QueryError
from indexer.scan import Scan
from retrieval.parsing import Box, By

LARGEST = 10**9
"""No number of a question is as large."""


class Fields(TypedDict, total=False):
    """What a :class:`Question` has beside what asks and `k`."""

    where: Mapping[str, str] | None
    region: Box | None
    region_slice: int | None
    mask: str | os.PathLike[str] | None
    exclude_patient: str | Sequence[str] | None
    all_cases: bool
    visit: str | None
    recall: float | None
    by: By | None


@dataclass(frozen=True)
class Question:
    """What an index is asked: with a scan, or with cases of its own.

    Attributes
    ----------
    source : str or path, optional
        A file or folder that cbir reads: one patient's scan, or several of its sequences. Beside `scans`
        it is only what the answer calls them.
    scans : sequence of Scan
        Scans in memory, of one patient, in place of a file.
    like : str or sequence of str
        Cases of the index that ask instead, together: the score is the mean over theirs.
    k : int
        How many hits at most.
    where : mapping
        Labels that hits must have.
    region : tuple of int, optional
        Box in pixels of the displayed slice, columns and rows from the top left, end exclusive.
    region_slice : int, optional
        The slice the box is on; the middle one if not given.
    mask : path, optional
        Image on the same grid whose non-zero voxels are the region.
    exclude_patient : str or sequence of str
        Patients that no hit may belong to, by the id in the files or in the index.
    all_cases : bool
        Several cases of a patient may be hits.
    visit : str, optional
        Of a source that holds several visits of the patient, the one that asks.
    recall : float, optional
        Share of the nearest slices that a search through the partition's lists finds, 0 to 1; by default
        what the index was opened with. Small collections and narrow filters are exact anyway.
    by : str, optional
        What hits are ordered by: ``class``, the similarity and what the vote says of their labels;
        ``appearance``, above all the measures of the lesion; ``similarity``, their score alone; by default
        the first, and the second where that is close. Votes stay the same.

    Raises
    ------
    QueryError
        If it cannot be asked, whatever the index holds.

    Examples
    --------
    >>> Question("scan.nii", k=5, exclude_patient="P-1").excluded
    ('P-1',)
    >>> Question(k=0, like="c-1")
    Traceback (most recent call last):
    indexer.errors.QueryError: k: 0 hits cannot be shown; ask for at least 1
    """

    source: str | os.PathLike[str] | None = None
    scans: Sequence[Scan] = field(default=(), repr=False, compare=False)
    like: str | Sequence[str] = ()
    k: int = 10
    where: Mapping[str, str] | None = None
    region: Box | None = None
    region_slice: int | None = None
    mask: str | os.PathLike[str] | None = None
    exclude_patient: str | Sequence[str] | None = None
    all_cases: bool = False
    visit: str | None = None
    recall: float | None = None
    by: By | None = None

    def __post_init__(self) -> None:
        asking = bool(self.scans or self.source is not None), bool(self.cases)
        if sum(asking) != 1:
            raise QueryError("the question", "asks with a scan or with cases", "give one of them")
        numbers = {"k": (self.k,), "region": (*(self.region or ()), self.region_slice or 0)}
        for name, given in numbers.items():
            if not all(isinstance(number, Integral) and abs(int(number)) < LARGEST for number in given):
                raise QueryError(name, "is no whole number of at most nine digits", "give a smaller one")
        if self.k < 1:
            raise QueryError("k", f"{self.k} hits cannot be shown", "ask for at least 1")
        if self.region is not None and self.mask is not None:
            raise QueryError("region", "a box and a mask cannot both be the region", "give one of them")
        if self.region_slice is not None and self.region is None:
            raise QueryError("region", "a slice was given without a box on it", "give the box, too")
        if self.cases and (self.marked or self.visit is not None):
            raise QueryError("region", "a region goes with a scan, not with cases", "ask with the scan")
        if self.recall is not None and not 0 <= self.recall <= 1:
            raise QueryError("recall", f"{self.recall} is no share", "give a number from 0 to 1")
        if self.by not in (None, *get_args(By)):
            raise QueryError(
                "by", f"{self.by!r} is no order of hits", f"give one of {', '.join(get_args(By))}, or nothing"
            )

    @cached_property
    def cases(self) -> tuple[str, ...]:
        """The cases that ask, each once."""
        return _names(self.like)

    @cached_property
    def excluded(self) -> tuple[str, ...]:
        """The patients that no hit may belong to."""
        return _names(self.exclude_patient)

    @property
    def name(self) -> str:
        """What the answer calls what asks."""
        if self.cases:
            return f"case {', '.join(self.cases)}"
        return os.fspath(self.source) if self.source is not None else str(self.scans[0].source)

    @property
    def marked(self) -> bool:
        """Whether a part of the scan asks."""
        return self.region is not None or self.mask is not None


def _names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys([given] if isinstance(given, str) else given or ()))
