"""Pictures in colour whose channels may be three sequences, which would be mixed to grey."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import indexer.readers.raster as raster
from indexer.discovery.memory import Memory
from indexer.errors import ReadError
from indexer.readers.source import Source

LIKE = 0.95
"""Correlation of two channels over the foreground, from which they show one thing. Grey with noise or in
sepia is at 0.97 and above, the least alike two of three sequences are below in 95 % of TCGA-LGG."""

APART = 16
"""Grey levels of 255 between the channels of a pixel that is in colour."""

COLOURED = 0.15
"""Share of the foreground that is in colour, at least: lines and words that somebody drew take less."""

EXAMPLES = 3
"""Pictures of one folder that are looked into."""

FOLDERS = 32
"""Folders that are looked into."""

RULE = '{"channels": ["t1", "flair", "t1ce"]}'


def mixed(sources: Iterable[Source], memory: Memory) -> list[str]:
    """Notes on pictures whose channels are unlike and that no ``cbir.json`` names; one for each home.

    A few pictures of a few folders decide for all of them. Those whose names say a sequence are of that one.

    Parameters
    ----------
    sources : iterable of Source
    memory : Memory
    """
    folders: dict[Path, list[Source]] = defaultdict(list)
    for source in sources:
        if source.kind in ("raster", "stack") and not source.channels and source.sequence is None:
            folders[source.path.parent].append(source)
    looked = {folder: _is_mixed(folders[folder], memory) for folder in _some(sorted(folders), FOLDERS)}
    unlike = [folder for folder, is_mixed in looked.items() if is_mixed]
    if len(looked) < len(folders) and 2 * len(unlike) > len(looked):
        unlike = [folder for folder in folders if looked.get(folder, True)]
    siblings = Counter(folder.parent for folder in unlike)
    homes: dict[Path, list[Path]] = defaultdict(list)
    for folder in unlike:  # where many persons have a folder each, theirs is told once
        homes[folder.parent if siblings[folder.parent] > 1 else folder].append(folder)
    notes = []
    for home, members in sorted(homes.items()):
        count = sum(len(source.files) for folder in members for source in folders[folder])
        notes.append(
            f"{home}: its {count} pictures are in colour, and their channels are unlike: they are mixed to "
            f"grey; if each channel is a sequence, write which to {home / 'cbir.json'}, e.g. {RULE}"
        )
    return notes


def unlike(pixels: NDArray[Any]) -> bool:
    """Whether the channels of a picture show different things.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (..., channels)
    """
    if pixels.shape[-1] < 2:
        return False
    values = pixels[pixels.max(axis=-1) > 0.05 * 255].astype(np.float32)
    if len(values) < APART or (values.max(axis=1) - values.min(axis=1) > APART).mean() <= COLOURED:
        return False
    varied = values[:, values.std(axis=0) > 0]
    return varied.shape[1] > 1 and bool(np.corrcoef(varied.T).min() < LIKE)


def _is_mixed(sources: Sequence[Source], memory: Memory) -> bool:
    """By the pictures of a folder, and by those in the middle of its stacks."""
    files = [source.files[len(source.files) // 2] for source in _some(sources, EXAMPLES)]
    seen = [memory.recall("channels", [file], lambda file=file: _look(file)) for file in files]  # type: ignore[misc]
    return 2 * seen.count("unlike") > len(seen)


def _look(file: Path) -> str | None:
    try:
        pages = raster.pages(file, split=True)
    except ReadError:  # the reader says it
        return None
    return "unlike" if unlike(pages[len(pages) // 2]) else "like"


def _some(items: Sequence[Any], most: int) -> list[Any]:
    """Some of the items, evenly."""
    return list(items[:: max(1, -(-len(items) // most))])
