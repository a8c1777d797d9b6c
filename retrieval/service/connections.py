"""Connections of HTTP clients, with deadlines and limits, so that nobody shuts others out by waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from retrieval.service.addresses import Address, origin, parsed

MOST = 512
"""Connections at a time."""
OF_ONE = 64
"""Of them from one address, if it is no proxy that is named in the settings."""
HEADERS = 10.0
"""Seconds for the headers of a request, from the opening of the connection or the end of the last answer."""
REST = 5.0
"""Seconds for the rest of a request that was answered before all of it had come."""
WRITE = 60.0
TAKEN = 64 * 2**10
"""A client that takes an answer takes so many bytes in so many seconds, or is no client any more."""


class Connections:
    """The connections of a server.

    What is closed before there was a request that could be answered is told as refused: 400 what is no
    HTTP, 408 who does not end a request or take an answer, 503 whom there is no room for.

    Where there is no room for another one, the one that has kept us waiting for a request the longest is
    closed: first one that never asked anything. Where all are being answered, the new one is closed.

    Parameters
    ----------
    proxies : collection of address
        Addresses that many clients come from.
    refused : callable, optional
        Told the status of what is refused, and the address of the connection.
    most, of_one : int
        Connections at a time, and of them from one address.
    """

    def __init__(
        self,
        proxies: Collection[Address] = (),
        refused: Callable[[int, str], None] = lambda status, address: None,
        *,
        most: int = MOST,
        of_one: int = OF_ONE,
    ) -> None:
        self._proxies, self.refused = proxies, refused
        self._most, self._of_one = most, of_one
        self._open: dict[Connection, str] = {}
        self._of: Counter[str] = Counter()

    def admit(self, connection: Connection, peer: str) -> bool:
        """Take a new connection, if need be in the place of another; False if there is no room."""
        address = "" if parsed(peer) in self._proxies else origin(peer)
        if address and self._of[address] >= self._of_one and not self._closed_one(address):
            return False
        if len(self._open) >= self._most and not self._closed_one(None):
            return False
        self._open[connection] = address
        self._of[address] += 1
        return True

    def drop(self, connection: Connection) -> None:
        """A connection has ended."""
        address = self._open.pop(connection, None)
        if address is not None:
            self._of[address] -= 1
            if not self._of[address]:
                del self._of[address]

    def _closed_one(self, address: str | None) -> bool:
        waiting = [
            connection
            for connection, its in self._open.items()
            if connection.waits_since is not None and address in (None, its)
        ]
        if not waiting:
            return False
        longest = min(waiting, key=lambda each: (each.has_asked, each.waits_since or 0.0))
        self.drop(longest)
        longest.refuse(503)
        return True


class Connection(H11Protocol):
    """A connection, as uvicorn serves it, with a deadline for whatever is waited for.

    Attributes
    ----------
    waits_since : float or None
        When we began to wait for a request; None while one is being answered.
    has_asked : bool
        Whether there was a request with whole headers.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        connections: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._all = connections
        self._deadline: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self.waits_since: float | None = None
        self.has_asked = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit it, and wait for its first request."""
        super().connection_made(transport)
        if self._all.admit(self, self.client[0] if self.client else ""):
            self._wait()
        else:
            self.refuse(503)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let it go."""
        for timer in (self._deadline, self._stuck):
            if timer is not None:
                timer.cancel()
        self._all.drop(self)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Begin what has come; the headers have come if there is another request."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self.has_asked, self.waits_since = True, None
            self._set_deadline(None)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._tell(400)
        super().send_400_response(msg)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one."""
        unread = self.conn.their_state is h11.SEND_BODY
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if unread:
            self._wait(REST)
        elif self.cycle.response_complete:
            self._wait()

    def pause_writing(self) -> None:
        """The client does not take what it asked for."""
        super().pause_writing()
        self._look_again(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """It has taken some."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _look_again(self, left: int) -> None:
        def look() -> None:
            now = self.transport.get_write_buffer_size()
            if now > left - TAKEN:
                self.refuse(408)
            else:
                self._look_again(now)

        self._stuck = self.loop.call_later(WRITE, look)

    def refuse(self, status: int) -> None:
        """Close it at once, and tell why."""
        self._tell(status)
        self.end()

    def end(self) -> None:
        """Close it at once."""
        if self.transport is not None:
            self.transport.abort()

    def _tell(self, status: int) -> None:
        address = parsed(self.client[0]) if self.client else None
        self._all.refused(status, "" if address is None else str(address))

    def _late(self) -> None:
        """The time is over: who has begun a request is refused, who has not was merely silent."""
        if self.conn.trailing_data[0] and self.conn.their_state is h11.IDLE:
            self.refuse(408)
        else:
            self.end()

    def _wait(self, seconds: float = HEADERS) -> None:
        self.waits_since = self.loop.time()
        self._set_deadline(seconds)

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._late)
