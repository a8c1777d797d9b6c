"""How often somebody without a token may ask: enough to open the viewer, not enough to keep a server busy."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

RATE = 0.1
"""Of the requests that an address may send at once, so many come back each second."""
REMEMBERED = 4096
"""Addresses; who has not asked for the longest is forgotten."""


class Strangers:
    """Counts requests by address.

    Parameters
    ----------
    at_once : int
        Requests that an address may send at once.
    clock : callable
        Seconds from any beginning.
    """

    def __init__(self, at_once: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once = float(at_once)
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, address: str) -> bool:
        """Count a request; False if there were too many."""
        now = self._clock()
        left, then = self._left.pop(address, (self._at_once, now))
        left = min(self._at_once, left + RATE * self._at_once * (now - then))
        self._left[address] = (max(left - 1, 0), now)
        if len(self._left) > REMEMBERED:
            self._left.popitem(last=False)
        return left >= 1
