"""What readers say while they read: which file they look at, and what of it they leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_watchers: list[Callable[[Path], None]] = []
_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


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


def say(note: str) -> None:
    """Say what the user should know of the source that is being read, without its name."""
    notes = _notes.get()
    if notes is not None and note not in notes:
        notes.append(note)


@contextmanager
def heard() -> Iterator[list[str]]:
    """Have what is said within collected."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)
