"""What every request passes before it is looked at: is it meant for us, from our own pages, small enough."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from retrieval.service.log import tell
from retrieval.service.settings import Settings, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FORM = 2**20
"""Bytes of a request that brings no file."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer that does not set its own."""


class Guard:
    """ASGI middleware.

    - On loopback the Host must be a name of this machine, or one of `Settings.names`: else a page of
      another site could reach us by giving its own name our address (DNS rebinding).
    - What changes something must come from our own pages, or from no page at all.
    - Bodies are counted while they are read, whatever Content-Length says.
    - What the program did not foresee ends as one line, and the log does not quote it.
    """

    def __init__(self, app: App, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._names = {name.lower() for name in settings.names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(raw=scope["headers"])
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                held = {name.lower() for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in held]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            refusal = self._refusal(scope["method"], headers)
        except ValueError:  # a Host, Origin or Content-Length that is none
            refusal = 400, "a header is damaged"
        if refusal is not None:
            await _answer(sending, *refusal)
            return
        try:
            await self._app(scope, self._counting(headers, receive), sending)
        except Exception as error:
            tell(error)
            if not begun:
                await _answer(sending, 500, "an error inside cbir; its log says where")

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._settings.loopback:
            name = urlsplit(f"//{host}").hostname or ""
            if not (is_loopback(name) or name in self._names):
                return 400, "the Host header names another machine; tell the service by --name"
        if method not in ("GET", "HEAD", "OPTIONS"):
            site, origin = headers.get("sec-fetch-site"), headers.get("origin")
            if site not in (None, "same-origin", "none"):
                return 403, "requests from other sites are refused"
            if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
                return 403, "requests from other sites are refused"
        if int(headers.get("content-length") or 0) > self._limit(headers):
            return 413, self._too_much(headers)
        return None

    def _limit(self, headers: Headers) -> int:
        brings_file = headers.get("content-type", "").lower().startswith("multipart/form-data")
        return self._settings.max_upload if brings_file else FORM

    def _too_much(self, headers: Headers) -> str:
        return f"more than {self._limit(headers):,} bytes in one request"

    def _counting(self, headers: Headers, receive: Receive) -> Receive:
        limit, got = self._limit(headers), 0

        async def counting() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body") or b"")
            if got > limit:
                raise HTTPException(413, self._too_much(headers))
            return message

        return counting


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
