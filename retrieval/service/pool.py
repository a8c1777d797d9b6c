"""Threads for what takes a processor's time, with a bounded queue before them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from indexer import sandbox

T = TypeVar("T")


class Busy(Exception):
    """There is no place in the queue; come again.

    Parameters
    ----------
    after : int
        Seconds after which it is worth trying again.
    """

    def __init__(self, after: int = 2) -> None:
        self.after = after
        super().__init__("too many requests at once; try again")


class Pool:
    """A few threads and the places before them.

    Parameters
    ----------
    name : str
    workers, queue : int
        What runs at a time, and what waits for it at most.
    timeout : float
        Seconds from the beginning of the wait to the result.
    """

    def __init__(self, name: str, workers: int, queue: int, timeout: float) -> None:
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._places = workers + queue
        self._taken = 0
        self._timeout = timeout

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place, from before a request's body is read until its answer is made.

        Raises
        ------
        Busy
            If all are taken.
        """
        if self._taken >= self._places:  # on the event loop alone, so nobody comes in between
            raise Busy
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, which runs in a thread.

        What has not begun when the time is over never begins; what has begun ends where it reads what
        somebody sent, else goes on unheard, and clears up behind itself.

        Raises
        ------
        Busy
            When the time is over.
        """
        end = time.monotonic() + self._timeout

        def bounded() -> T:
            with sandbox.within(end - time.monotonic()):
                return work()

        future = self._executor.submit(bounded)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout)
        except TimeoutError:
            if future.done() and not future.cancelled():
                raise  # the work's own
            raise Busy(after=10) from None

    def close(self) -> None:
        """Wait for what runs, drop what waits."""
        self._executor.shutdown(cancel_futures=True)
