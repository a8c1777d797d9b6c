"""Which pictures of a folder are slices of one scan.

A folder with two or more pictures (outlines and folders in it not counted) is asked, and the first of
these that knows decides for all of them:

1. ``"stack": true`` or ``false`` in the nearest ``cbir.json``, in the folder or above it;
2. the labels table: if it names one of the files, each picture is a scan on its own; if one of its
   participants is called like the folder, they are one scan;
3. the names: if each is the word ``slice`` and a number (``slice-001``, ``slice_2``, ``slice003``), or
   the folder's name (with a number in it) and one more number of a row without a gap
   (``TCGA_CS_4941_19960909_1`` …), they are one scan;
4. else each picture is a scan on its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from indexer.discovery.config import Config
from indexer.discovery.tokens import stem
from indexer.discovery.vocabulary import GROUPS, SLICE
from indexer.errors import ReadError
from indexer.labels import Mentioned

_BEHIND = re.compile(r"[-_ .]?(?:slice|img|image|z|s)?[-_ .]?(\d+)", re.IGNORECASE)


def is_stack(folder: Path, files: Sequence[Path], config: Config | None, mentioned: Mentioned) -> bool:
    """Whether the pictures of a folder are slices of one scan (the rule at the top of this module)."""
    if len(files) < 2:
        return False
    if config is not None and config.stack is not None:
        return config.stack
    if any(mentioned.file(file) for file in files):
        return False
    if mentioned.folder(folder):
        return True
    return all(SLICE.fullmatch(stem(file.name)) for file in files) or is_numbered(
        folder.name, [stem(file.name) for file in files]
    )


def is_numbered(folder: str, names: Sequence[str]) -> bool:
    """Whether names are their folder's and a running number without gaps.

    The folder's name needs a letter and a digit and must not be a group's: ``no/no1.jpg`` and
    ``fold1/fold1_1.jpg`` are folders of many people's pictures.

    Examples
    --------
    >>> is_numbered("P01", ["P01_1", "P01_2", "P01_3"]), is_numbered("no", ["no1", "no2"])
    (True, False)
    """
    telling = re.search(r"\d", folder) and re.search(r"[^\W\d_]", folder) and not GROUPS.fullmatch(folder)
    if not telling or not all(name.lower().startswith(folder.lower()) for name in names):
        return False
    found = [_BEHIND.fullmatch(name[len(folder) :]) for name in names]
    numbers = sorted(int(match[1]) for match in found if match)
    return len(numbers) == len(names) and all(b == a + 1 for a, b in pairwise(numbers))


def in_order(folder: Path, files: Sequence[Path]) -> tuple[Path, ...]:
    """Slices by their numbers.

    Raises
    ------
    ReadError
        If a slice has no number, or a number is missing or comes twice.
    """
    remedy = (
        'mend the names, or write {"stack": false} to a cbir.json there if they are not slices of one scan'
    )
    numbers: dict[Path, int] = {}
    for file in files:
        found = re.findall(r"\d+", stem(file.name))
        if not found:
            raise ReadError(folder, f"is a stack of slices, but {file.name} has no number", remedy)
        numbers[file] = int(found[-1])
    number, times = Counter(numbers.values()).most_common(1)[0]
    if times > 1:
        twice = " and ".join(sorted(file.name for file in files if numbers[file] == number))
        raise ReadError(folder, f"slice {number} comes {times} times ({twice})", remedy)
    there = sorted(numbers.values())
    gap = next((a for a, b in pairwise(there) if b != a + 1), None)
    if gap is not None:
        raise ReadError(folder, f"slice {gap + 1} is missing", remedy)
    return tuple(sorted(files, key=numbers.__getitem__))
