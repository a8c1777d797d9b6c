"""Tables that lie in, beside or above a folder of images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from indexer.errors import LabelsError
from indexer.labels.columns import is_image
from indexer.labels.table import PARTICIPANTS, Table, read_tables
from indexer.trust import foreign

ENDINGS = (".csv", ".tsv", ".xlsx", ".json")
"""Of files that may be tables, in any case."""

MOST = 10_000
"""Tables that are looked at below a folder."""

_OF_IMAGES = re.compile(r"sub-.*_(?!sessions\.tsv)|dataset_description\.json|cbir\.json|._.*", re.IGNORECASE)
"""Names that BIDS, or cbir, gives to what is no table of labels."""


def find_tables(
    root: Path, top: Path | None = None, given: Sequence[Table] = ()
) -> tuple[list[Table], list[str]]:
    """The tables that may label what lies in a folder, or a file; then those that the user named.

    They are the nearest ``participants.tsv`` beside or above it; and the csv, tsv, xlsx and JSON files
    below it and in the folder it lies in. JSON is looked at only where no images lie. What lies above is
    said, and passed over where others may have written it (:mod:`indexer.trust`).

    Parameters
    ----------
    root : Path
    top : Path, optional
        Folder above which nothing is looked for.
    given : sequence of Table
        Those that the user named.

    Returns
    -------
    tables : list of Table
    notes : list of str
        Those that cannot be read, or are not obeyed, and why; those that lie above.

    Raises
    ------
    LabelsError
        If a ``participants.tsv`` cannot be understood.
    """
    start = root.resolve() if root.is_dir() else root.parent.resolve()
    paths = list(_below(start)) if root.is_dir() else []
    beside = start.parent if root.is_dir() else start
    above = [folder for folder in (start, *start.parents) if top is None or folder.is_relative_to(top)]
    if beside in above:
        with suppress(OSError):  # who may enter a folder may not always list it
            paths += sorted(path for path in beside.iterdir() if is_table(path.name) and path.is_file())
    nearest = next((path for folder in above if os.path.isfile(path := folder / PARTICIPANTS)), None)  # noqa: PTH113 (in any folder)
    # of what lies above, the nearest holds
    paths = [p for p in paths if p.name != PARTICIPANTS or p.parent.is_relative_to(start)]
    if nearest is not None and nearest not in paths:
        paths.insert(0, nearest)
    tables: list[Table] = []
    notes: list[str] = []
    named = {table.path for table in given}
    for path in dict.fromkeys(path for path in paths if path not in named):
        above_it = not path.is_relative_to(start)
        if above_it and (why := foreign(path)) is not None:
            notes.append(f"{path} lies above {start} and is not used: {why}")
            continue
        try:
            found = read_tables(path)
            if any(map(_is_answer, found)):
                notes.append(f"{path}: no labels are taken from an answer of cbir")
                continue
            if above_it:
                notes.append(f"{path} lies above {start} and is used")
            tables += found
        except LabelsError as error:
            if path.name == PARTICIPANTS:
                raise
            if path.suffix.lower() != ".json":
                notes.append(f"{path}: no labels are taken from it: {error.explanation}")
    return [*tables, *given], notes


def _is_answer(table: Table) -> bool:
    """Whether a table holds the hits of a query that somebody kept, which say nothing of who asked."""
    header = {name.casefold() for name in table.header}
    return {"score", "slice"} <= header and bool({"rank", "#"} & header)


def _below(root: Path) -> Iterator[Path]:
    """Files in a folder and below it that may be tables, the highest first."""
    found = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        tables = [name for name in sorted(files) if is_table(name)]
        if any(name.lower().endswith(".json") for name in tables) and any(map(is_image, files)):
            tables = [name for name in tables if not name.lower().endswith(".json")]
        for name in tables:
            found += 1
            if found > MOST:
                return
            yield Path(folder, name)


def is_table(name: str) -> bool:
    """Whether a file may be a table of labels, by its name."""
    return name.lower().endswith(ENDINGS) and _OF_IMAGES.match(name) is None
