"""Which file is being looked at: readers say it, and who runs them may want to know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_watchers: list[Callable[[Path], None]] = []


def at(file: Path) -> None:
    """Say that a file is about to be parsed or decoded.

    Raises
    ------
    ReadError
        If that is not wanted.
    """
    for watcher in _watchers:
        watcher(file)


def listen(watcher: Callable[[Path], None]) -> None:
    """Have a function called with each file; there is no way back."""
    _watchers.append(watcher)
