"""What is being read, written down before it is read: so that a file which ends whole runs ends few.

Most of what a file can do ends a child process (:mod:`indexer.sandbox`), and is remembered here until the
file changes. Should a run itself end without a word, what it was reading then is suspect: the next run
reads each of these alone, and what ends that run, too, is passed over from then on.

A line is written without waiting for the disk: it outlives the process, which is what files can end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from indexer.files import content, needing_room, opened, written_whole

NAME = "reading.jsonl"
"""The file in an index folder."""

MOST = 2**30
"""Bytes of it, at most."""
BEGUN, ALONE, ENDED, POISON, SUSPECT = "begun", "alone", "ended", "poison", "suspect"

UNSAID = "ended the run that read it"


class Journal:
    """The sources that a run reads. Made by :func:`journal`.

    Parameters
    ----------
    path : Path
        Its file, which need not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._suspects: dict[str, str] = {}
        self._poison: dict[str, tuple[str, str]] = {}
        begun: dict[str, tuple[str, str]] = {}
        for what, name, fingerprint, reason in _lines(path):
            if what in (BEGUN, ALONE):
                begun[name] = what, fingerprint
            elif what == SUSPECT:
                self._suspects[name] = fingerprint
            elif what == POISON:
                self._poison[name] = fingerprint, reason
            else:
                begun.pop(name, None)
                self._suspects.pop(name, None)
        for name, (what, fingerprint) in begun.items():
            if what == ALONE:
                self._suspects.pop(name, None)
                self._poison[name] = fingerprint, UNSAID
            else:
                self._suspects[name] = fingerprint
        self._compact()
        self._handle = opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def reason(self, name: str, fingerprint: str) -> str | None:
        """Why a source is passed over, if it is."""
        held, reason = self._poison.get(name, (None, ""))
        return reason if held == fingerprint else None

    def suspect(self, name: str) -> bool:
        """Whether a source is to be read alone."""
        return name in self._suspects

    def begin(self, name: str, fingerprint: str) -> None:
        """A source is about to be read."""
        self._write(ALONE if self.suspect(name) else BEGUN, name, fingerprint)

    def end(self, name: str) -> None:
        """It was read, or could not be."""
        self._suspects.pop(name, None)
        self._poison.pop(name, None)
        self._write(ENDED, name)

    def condemn(self, name: str, fingerprint: str, reason: str) -> None:
        """It ended the process that read it."""
        self._suspects.pop(name, None)
        self._poison[name] = fingerprint, reason
        self._write(ENDED, name)
        self._write(POISON, name, fingerprint, reason)

    def close(self) -> None:
        """Keep what the next run has to know; nothing that was begun and given up is suspect."""
        os.close(self._handle)
        self._compact()

    def _write(self, what: str, name: str, fingerprint: str = "", reason: str = "") -> None:
        line = json.dumps([what, name, fingerprint, reason]).encode() + b"\n"
        with needing_room(self._path):
            os.write(self._handle, line)

    def _compact(self) -> None:
        lines = [(SUSPECT, name, held, "") for name, held in self._suspects.items()]
        lines += [(POISON, name, held, reason) for name, (held, reason) in self._poison.items()]
        if not lines:
            self._path.unlink(missing_ok=True)
            return
        with written_whole(self._path, private=True) as aside:
            aside.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="ascii")


@contextmanager
def journal(folder: Path) -> Iterator[Journal]:
    """The journal of an index folder, for the one run that writes to it.

    Raises
    ------
    DiskFullError
        If there is no room for it.
    """
    held = Journal(folder / NAME)
    try:
        yield held
    finally:
        held.close()


def _lines(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """The lines of a journal, without what was torn."""
    try:
        held = content(path, MOST)
    except FileNotFoundError:
        return
    for line in held.splitlines():
        try:
            what, name, fingerprint, reason = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if all(isinstance(part, str) for part in (what, name, fingerprint, reason)):
            yield what, name, fingerprint, reason
