"""What every request passes before it is looked at: from where, by whom, for us, from our pages, small."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from indexer.errors import CbirError
from retrieval.service.addresses import client, origin
from retrieval.service.log import tell
from retrieval.service.settings import Settings, is_loopback
from retrieval.service.strangers import Strangers
from retrieval.service.tokens import Role, Tokens

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FORM = 2**20
"""Bytes of a request that brings no file."""
LOCAL = "local"
"""Name of who calls a service without tokens, in the audit trail."""
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
REFUSED = (401, 403, 405, 408, 413, 429)
"""Statuses that have their line among what was refused, beside what is refused here and what is nowhere."""

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

    - An address is what the connection says, or a proxy that is named in the settings.
    - On loopback the Host must be a name of this machine, or one of `Settings.names`: else a page of
      another site could reach us by giving its own name our address (DNS rebinding).
    - Who has no token may ask so often.
    - What changes something must come from our own pages, or from no page at all.
    - Bodies are counted while they are read, whatever Content-Length says.
    - What is refused has its line in the trail of refusals.
    - What the program did not foresee ends as one line, and the log does not quote it.

    Parameters
    ----------
    app : callable
    settings : Settings
    tokens : Tokens, optional
        Without them everybody may do everything.
    """

    def __init__(self, app: App, settings: Settings, tokens: Tokens | None = None) -> None:
        self._app = app
        self._settings = settings
        self._tokens = tokens
        self._names = {name.lower() for name in settings.names}
        self._strangers = Strangers(settings.strangers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(raw=scope["headers"])
        state = scope.setdefault("state", {})
        peer = scope["client"][0] if scope.get("client") else ""
        state["address"] = client(peer, headers, self._settings.trusted)
        state["who"], state["role"] = "", None
        begun, here = False, False

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                status = message["status"]
                if here or status in REFUSED or (status == 404 and "route" not in scope):
                    self._tell_refused(scope, status)
                held = {name.lower() for name, _ in message["headers"]}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in held]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            state["who"], state["role"] = self._known(headers)
            refusal = self._refusal(scope["method"], headers, state)
        except ValueError:  # a Host, Origin or Content-Length that is none
            refusal = 400, "a header is damaged"
        except CbirError as error:  # of the tokens
            here = True
            await _answer(sending, 500, error.explanation)
            return
        if refusal is not None:
            here = True
            await _answer(sending, *refusal)
            return
        try:
            await self._app(scope, self._counting(headers, receive), sending)
        except Exception as error:
            tell(error)
            if not begun:
                await _answer(sending, 500, "an error inside cbir; its log says where")

    def _known(self, headers: Headers) -> tuple[str, Role | None]:
        """Name and role of who asks; the role is None for somebody without a token."""
        if self._tokens is None:
            return LOCAL, Role.ADMIN
        kind, _, secret = headers.get("authorization", "").partition(" ")
        token = self._tokens.find(secret.strip()) if kind.lower() == "bearer" else None
        return ("", None) if token is None else (token.name, Role[token.role.upper()])

    def _refusal(
        self, method: str, headers: Headers, state: MutableMapping[str, Any]
    ) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if state["role"] is None and not self._strangers.admit(origin(state["address"])):
            return 429, "too many requests without a valid token"
        if self._settings.loopback:
            name = urlsplit(f"//{host}").hostname or ""
            if not (is_loopback(name) or name in self._names):
                return 400, "the Host header names another machine; tell the service by --name"
        if method not in ("GET", "HEAD", "OPTIONS"):
            site, comes_from = headers.get("sec-fetch-site"), headers.get("origin")
            if site not in (None, "same-origin", "none"):
                return 403, "requests from other sites are refused"
            if comes_from is not None and urlsplit(comes_from).netloc.lower() != host.lower():
                return 403, "requests from other sites are refused"
        if int(headers.get("content-length") or 0) > self._limit(headers):
            return 413, self._too_much(headers)
        return None

    def _tell_refused(self, scope: Scope, status: int) -> None:
        state, route = scope["state"], scope.get("route")
        scope["app"].state.service.audit.refusals.record(
            state["who"],
            status,
            address=state["address"],
            method=scope["method"] if scope["method"] in METHODS else "",
            route=getattr(route, "path", ""),
        )

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
    if status == 429:
        headers += [(b"retry-after", b"10"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
