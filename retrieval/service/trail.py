"""A trail of events in two files that always say the same: JSON lines, and DICOM audit messages."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrieval.service.audit_message import message
from retrieval.service.private import opened, own_folder

SIZE = 16 * 2**20
"""Bytes after which a pair of files is set aside."""


class Trail:
    """A pair of files that only grows, by whole lines.

    Both get the line of an event, or neither does. When one of the pair is full, both are set aside under
    the next number: ``NAME.000001`` is the oldest, and what follows the last is ``NAME``.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    json, xml : str
        Names of the files.
    size : int
        Bytes after which the pair is set aside.
    keep : int, optional
        Pairs that are set aside at most: the oldest goes. None keeps all.

    Raises
    ------
    CbirError, OSError
        If they cannot be written, or are links.
    """

    def __init__(
        self, folder: Path, json: str, xml: str, *, size: int = SIZE, keep: int | None = None
    ) -> None:
        self._json, self._xml = own_folder(folder) / json, folder / xml
        self._size, self._keep = size, keep
        self._mend()

    def append(self, record: Mapping[str, Any], *, sync: bool = False) -> None:
        """Write an event into both files.

        Parameters
        ----------
        record : mapping
            As :func:`retrieval.service.audit_message.message` takes it.
        sync : bool
            Have it on the disk when the call returns.

        Raises
        ------
        OSError
            If there is no room, for instance; then neither file has changed.
        """
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        texts = ((self._json, line), (self._xml, message(record).encode() + b"\n"))
        ends: list[tuple[int, int]] = []
        try:
            for path, text in texts:
                handle = opened(path, os.O_WRONLY | os.O_APPEND)
                ends.append((handle, os.fstat(handle).st_size))
                _write(handle, text)
            if sync:
                for handle, _ in ends:
                    os.fsync(handle)
            full = any(os.fstat(handle).st_size >= self._size for handle, _ in ends)
        except BaseException:
            for handle, end in ends:
                os.ftruncate(handle, end)
            raise
        finally:
            for handle, _ in ends:
                os.close(handle)
        if full:
            self._set_aside()

    # ---- files that are full -------------------------------------------------------------------

    def _set_aside(self) -> None:
        number = max([0, *self._aside(self._json), *self._aside(self._xml)]) + 1
        for path in (self._json, self._xml):
            path.rename(_numbered(path, number))
        if self._keep is not None:
            for path in (self._json, self._xml):
                for old in self._aside(path)[: -self._keep or None]:
                    _numbered(path, old).unlink(missing_ok=True)

    def _aside(self, path: Path) -> list[int]:
        """Numbers of the files that are set aside, the oldest first."""
        numbered = re.compile(re.escape(path.name) + r"\.(\d{6,})")
        found = (numbered.fullmatch(each.name) for each in path.parent.iterdir())
        return sorted(int(match[1]) for match in found if match)

    # ---- what a crash left ---------------------------------------------------------------------

    def _mend(self) -> None:
        """Take up after a process that ended between two writes."""
        pair = (self._json, self._xml)
        numbers = [set(self._aside(path)) for path in pair]
        for number in numbers[0] ^ numbers[1]:
            if number < max(numbers[0] | numbers[1]):  # the other one of the pair was dropped
                for path in pair:
                    _numbered(path, number).unlink(missing_ok=True)
                continue
            for path in pair:  # the other one was being set aside
                if path.exists() and not _numbered(path, number).exists():
                    path.rename(_numbered(path, number))
        told, messages = map(_whole_lines, pair)
        with os.fdopen(opened(self._xml, os.O_RDWR), "r+b") as file:
            if len(messages) > len(told):
                file.truncate(sum(map(len, messages[: len(told)])))
            file.seek(0, os.SEEK_END)
            for line in told[len(messages) :]:
                file.write(message(json.loads(line)).encode() + b"\n")


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number:06}")


def _whole_lines(path: Path) -> list[bytes]:
    """Lines of a file, which loses one that is not whole."""
    with os.fdopen(opened(path, os.O_RDWR), "r+b") as file:
        text = file.read()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            file.truncate(whole)
    return text[:whole].splitlines(keepends=True)


def _write(handle: int, text: bytes) -> None:
    """Write all of it: a single write may take a part only."""
    while text:
        written = os.write(handle, text)
        if not written:
            raise OSError("nothing was written")
        text = text[written:]
