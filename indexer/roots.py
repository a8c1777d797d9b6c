"""How each root was indexed, for the next run and for questions from below it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from indexer.case_index import CaseIndex


@dataclass(frozen=True)
class Root:
    """What is remembered of a root.

    Attributes
    ----------
    labels : list of str
        The labels tables that the user gave, as they were named.
    all_images : bool, optional
        Whether maps and copies are scans, too; None where nobody said.
    alone : int
        Pictures that did not say whose they are: each counts as a patient of its own.
    looked : dict
        What was seen of voxels (see :mod:`indexer.discovery.memory`).
    """

    labels: list[str] = field(default_factory=list)
    all_images: bool | None = None
    alone: int = 0
    looked: dict[str, str] = field(default_factory=dict)


def recall(index: CaseIndex, root: Path | str) -> Root:
    """What is remembered of a root."""
    return _parsed(index.catalog.root(str(root)))


def remember(index: CaseIndex, root: Path | str, what: Root) -> None:
    """Remember a root, if there is anything new to be remembered."""
    if what != recall(index, root):
        index.catalog.set_root(str(root), json.dumps(asdict(what)))


def around(index: CaseIndex, root: Path | str) -> Iterator[Root]:
    """What is remembered of what a path lies in, the highest first, and of itself."""
    for above in _above(root):
        yield recall(index, above)


def takes_all(index: CaseIndex, root: Path | str) -> bool:
    """Whether maps and copies are scans there: what was said of the nearest root counts."""
    said = [each.all_images for each in around(index, root) if each.all_images is not None]
    return bool(said and said[-1])


def top(index: CaseIndex, path: Path) -> Path | None:
    """The highest root that a path lies in; None if it lies in none."""
    found = (above for above in _above(path) if index.catalog.root(above) is not None)
    return next(map(Path, found), None)


def notes(index: CaseIndex) -> list[str]:
    """What whoever reads an answer or a figure should know of how patients were told apart."""
    alone = sum(_parsed(held).alone for held in index.catalog.roots())
    if not alone:
        return []
    return [
        f"{alone} pictures of the index do not say whose they are: each image counts as a patient of its "
        "own, so a patient's other images may be among the hits, and have a vote"
    ]


def _parsed(held: str | None) -> Root:
    if held is None:
        return Root()
    if not held.startswith("{"):  # of a version that kept labels tables alone
        return Root(labels=json.loads(held) if held.startswith("[") else [held])
    return Root(**json.loads(held))


def _above(root: Path | str) -> Iterator[str]:
    """A root and what it lies in, the highest first."""
    if isinstance(root, Path):
        return map(str, (*reversed(root.parents), root))
    start, parts = root.index("://") + 3, root.split("/")
    return (above for n in range(1, len(parts) + 1) if len(above := "/".join(parts[:n])) > start)
