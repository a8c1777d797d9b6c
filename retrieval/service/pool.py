"""Threads for what takes a processor's time, shared fairly among those who ask, with bounded queues."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

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


@dataclass(eq=False)
class Place:
    """A place that a request holds.

    Attributes
    ----------
    caller : hashable
    limit : asyncio.Timeout
        Moved to now, it sends the request away.
    begun : bool
        Whether its work runs.
    lost : bool
        Whether it was sent away for somebody who holds less.
    """

    caller: Hashable
    limit: asyncio.Timeout
    begun: bool = False
    lost: bool = False


class Pool:
    """A few threads and the places before them.

    Callers take turns, however much one of them asks. When all places are taken, one who holds fewer than
    another gets the youngest of the other's that still waits.

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
        self._idle = workers
        self._room = workers + queue
        self._places: list[Place] = []
        self._waiting: OrderedDict[Hashable, deque[tuple[asyncio.Future[None], Place]]] = OrderedDict()
        self._timeout = timeout

    @property
    def taken(self) -> int:
        """Places that are held."""
        return len(self._places)

    @asynccontextmanager
    async def place(self, caller: Hashable = None) -> AsyncIterator[Place]:
        """Hold a place, from before a request's body is read until its answer is made.

        Parameters
        ----------
        caller : hashable
            Who asks, and from where.

        Raises
        ------
        Busy
            If all are taken, or another caller needs it.
        """
        place = None
        try:
            async with asyncio.timeout(None) as limit:
                # on the event loop alone, so nobody comes in between
                if len(self._places) >= self._room and not self._yielded(caller):
                    raise Busy
                place = Place(caller, limit)
                self._places.append(place)
                yield place
        except TimeoutError:
            if place is not None and place.lost:
                raise Busy(after=5) from None
            raise
        finally:
            if place in self._places:
                self._places.remove(place)

    def _yielded(self, caller: Hashable) -> bool:
        """Whether one who holds more has lost a place."""
        held = Counter(place.caller for place in self._places)
        for other, count in held.most_common():
            if count <= held[caller] + 1:
                return False
            for place in reversed(self._places):
                if place.caller == other and not place.begun:
                    place.lost = True
                    place.limit.reschedule(asyncio.get_running_loop().time())
                    self._places.remove(place)
                    return True
        return False

    async def run(self, work: Callable[[], T], place: Place) -> T:
        """The result of `work`, which runs in a thread when it is the caller's turn.

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

        try:
            async with asyncio.timeout(self._timeout) as limit:
                await self._turn(place)
                place.begun = True
                running = asyncio.get_running_loop().run_in_executor(self._executor, bounded)
                running.add_done_callback(self._over)
                return await asyncio.shield(running)
        except TimeoutError:
            if limit.expired():
                raise Busy(after=10) from None
            raise  # the work's own

    async def _turn(self, place: Place) -> None:
        """Wait until a thread is free for this caller."""
        if self._idle:
            self._idle -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(place.caller, deque()).append((turn, place))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._next()  # it was ours already
            raise

    def _over(self, running: asyncio.Future[Any]) -> None:
        if not running.cancelled():
            running.exception()  # heard, though perhaps nobody waits any more
        self._next()

    def _next(self) -> None:
        """Give a thread that is free to the caller whose turn it is."""
        while self._waiting:
            caller, waiting = next(iter(self._waiting.items()))
            self._waiting.pop(caller)
            turn, _ = waiting.popleft()
            if waiting:
                self._waiting[caller] = waiting  # behind the others
            if not turn.done():
                turn.set_result(None)
                return
        self._idle += 1

    def close(self) -> None:
        """Wait for what runs, drop what waits."""
        self._executor.shutdown(cancel_futures=True)
