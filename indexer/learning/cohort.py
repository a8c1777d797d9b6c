"""A cohort: a folder of images, and which of its labels are learnt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indexer import sandbox
from indexer.errors import CbirError, LabelsError
from indexer.labels import Labels, Table, identifies
from indexer.readers import Source
from indexer.scan import Scan

LESION, CORE, TISSUES = "lesion", "core", "tissues"
"""What an outline is of: the whole lesion; all of it but the oedema; each tissue by itself."""


@dataclass(frozen=True)
class Cohort:
    """Where some of the training data lie, and what is learnt from them.

    Attributes
    ----------
    root : Path
        A folder or file of images.
    tables : sequence of Table
        Of labels.
    columns : tuple of str
        Label columns to learn. Cohorts of one table share their heads.
    read : callable
        Gives the scans of a source; :func:`indexer.sandbox.read`, or what adds outlines to them.
    version : str
        Changes whenever `read` would give something else for the same files.
    importance : float
        How often its slices are drawn, as a multiple of what they would be.
    outlines : str
        What its outlines are of: `LESION`, `CORE`, or `TISSUES`, whose regions hold BraTS's labels.
    labels : Labels
        What the tables say, once the images are found.
    """

    root: Path
    tables: Sequence[Table]
    columns: tuple[str, ...]
    read: Callable[[Source], list[Scan]] = sandbox.read
    version: str = ""
    importance: float = 1.0
    outlines: str = LESION
    labels: Labels = field(default_factory=Labels)

    @property
    def table(self) -> Path:
        """The first table that has a column to learn; the folder where there is no table."""
        having = (each.path for each in self.tables if set(self.columns) & set(each.header))
        return next(having, self.tables[0].path if self.tables else self.root)


def cohorts(
    folders: Sequence[Path], tables: Sequence[Sequence[Table]], columns: Sequence[str]
) -> list[Cohort]:
    """Folders with their labels tables, each learning those of the columns that its table has.

    Parameters
    ----------
    folders : sequence of Path
    tables : sequence of sequence of Table
        Those of each folder; one at least.
    columns : sequence of str

    Raises
    ------
    LabelsError
        If no table has a column, or a table has none of them.
    """
    found = []
    for folder, table in zip(folders, tables, strict=True):
        there = [name for each in table for name in each.header if name and not identifies(name)]
        mine = tuple(column for column in columns if column in there)
        if not mine:
            known = ", ".join(dict.fromkeys(there)) or "none"
            raise LabelsError(table[0].path, f"has no column {' or '.join(columns)}", f"choose of: {known}")
        found.append(Cohort(folder, table, mine))
    for column in columns:
        if all(column not in cohort.columns for cohort in found):
            raise LabelsError(column, "is no column of any labels table", "leave it out")
    return found


def validation(patients: Collection[str], share: float, seed: int = 0) -> frozenset[str]:
    """Patients to choose settings on: those whose keyed hash is lowest, the same whatever else is there.

    Raises
    ------
    CbirError
        If the share leaves none on one of the two sides.
    """
    names = sorted(set(patients), key=lambda p: hashlib.sha256(f"{seed}\0{p}".encode()).digest())
    count = round(share * len(names))
    if not 0 < count < len(names):
        raise CbirError(f"{share:g} of {len(names)} patients", "leaves nobody to train or to validate on")
    return frozenset(names[:count])
