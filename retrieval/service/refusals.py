"""What was refused: each line by itself at first, then counted, so that nobody fills a disk by asking."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retrieval.service.addresses import origin
from retrieval.service.log import tell
from retrieval.service.trail import SIZE, Trail

KEPT = 8
"""Files that are set aside at most, of each form."""
EACH = 10
"""Refusals of one kind from one address that have a line of their own, in a window."""
WINDOW = 60.0
"""Seconds after which what was beyond is told as one number, and the next have lines again."""
KINDS = 1024
"""Addresses and kinds that are told apart in a window; what is beyond is counted together."""
OTHERS = "others"


@dataclass
class _Count:
    since: float
    began: str
    told: int = 0
    more: int = 0


class Refusals:
    """The trail of what was refused.

    In a window of time an address writes at most `EACH` lines of each kind and one with the number of the
    others, whatever it sends.

    Parameters
    ----------
    folder : Path
    size : int
        Bytes of a file, after which it is set aside.
    clock : callable
        Seconds from any beginning.

    Raises
    ------
    CbirError, OSError
        If it cannot be written.
    """

    def __init__(
        self, folder: Path, *, size: int = SIZE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._trail = Trail(folder, "refused.jsonl", "dicom-refused.xml", size=size, keep=KEPT)
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, int], _Count] = {}
        self._next = clock()

    def record(self, who: str, status: int, *, address: str = "", **detail: Any) -> None:
        """Write a refusal down, or count it. Never fails: what is refused stays refused.

        Parameters
        ----------
        who : str
            Name of the token; empty if there was none.
        status : int
            Of the answer.
        address : str
            Where it came from.
        **detail
            Fixed words only, never text that a client sent.
        """
        with self._lock:
            self._settle()
            key = (origin(address), who, status)
            if key not in self._counts and len(self._counts) >= KINDS:
                key = (OTHERS, "", status)
            count = self._counts.setdefault(key, _Count(self._clock(), _now()))
            if count.told < EACH:
                count.told += 1
                self._write(who, address, {**detail, "status": status})
            else:
                count.more += 1

    def settle(self, *, all: bool = False) -> None:
        """Tell the numbers of the windows that are over, or of all."""
        with self._lock:
            self._settle(all=all)

    def _settle(self, *, all: bool = False) -> None:
        now = self._clock()
        if now < self._next and not all:
            return
        self._next = now + 1
        over = [key for key, count in self._counts.items() if all or now - count.since >= WINDOW]
        for key in over:
            count = self._counts.pop(key)
            if count.more:
                address, who, status = key
                told = {"status": status, "count": count.more, "since": count.began, "from": address}
                self._write(who, "", told)

    def _write(self, who: str, address: str, detail: dict[str, Any]) -> None:
        record = {"time": _now(), "who": who, "event": "refused", "outcome": "refused", "patients": []}
        if address:
            record["address"] = address
        try:
            self._trail.append({**record, **detail})
        except OSError as error:
            tell(error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
