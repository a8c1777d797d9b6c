"""What files there are."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from indexer.errors import ReadError

_LEFT_OUT = ("DICOMDIR", "__MACOSX")


def files(root: Path, failures: list[ReadError], without: Collection[Path] = ()) -> Iterator[Path]:
    """All files below a folder, or the one file.

    Hidden files and folders, ``DICOMDIR`` and what macOS leaves in archives are passed over. Links are
    followed; a folder that can be reached twice is entered once, by its own path if that is below the root.

    Parameters
    ----------
    root : Path
    failures : list of ReadError
        Gets what cannot be opened.
    without : collection of Path
        Folders to leave out.
    """
    if root.is_file():
        yield root
        return
    seen: set[tuple[int, int]] = set()
    folders: list[Path] = [root]
    links: list[Path] = []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        if folder in without:
            continue
        try:
            stat = folder.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(folder) as entries:
                members = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            failures.append(
                ReadError(
                    folder, f"cannot be opened ({error.strerror})", "see what it is, and who may read it"
                )
            )
            continue
        for entry in members:
            if entry.name.startswith(".") or entry.name.upper() in _LEFT_OUT:
                continue
            path, link = Path(entry.path), entry.is_symlink()
            there = path if link else entry  # an entry knows what it is without asking again, a link does not
            if there.is_dir():
                (links if link else folders).append(path)
            elif there.is_file():
                yield path
            elif link:
                failures.append(ReadError(path, "cannot be read (a link that leads nowhere)"))
