"""The service as an ASGI application, and the server that runs it."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from indexer.encoder import Encoder
from indexer.errors import CbirError, LabelsError, QueryError, ReadError, WriterBusyError
from retrieval.answer import NOTICE
from retrieval.service.core import Missing, Service
from retrieval.service.follower import Follower
from retrieval.service.guard import Guard
from retrieval.service.orthanc import NotInPacs, PacsError
from retrieval.service.pool import Busy, Pool
from retrieval.service.routes import ROUTES, STATIC, Route
from retrieval.service.settings import Settings
from retrieval.service.tokens import Role, Tokens
from retrieval.service.uploads import TooLarge, Unreadable

STATUS: tuple[tuple[type[CbirError], int], ...] = (
    (Missing, 404),
    (NotInPacs, 404),
    (PacsError, 502),
    (TooLarge, 413),
    (Unreadable, 422),
    (ReadError, 422),
    (LabelsError, 422),
    (QueryError, 422),
    (WriterBusyError, 503),
    (CbirError, 500),
)
"""Errors and the status they end in; the first that fits."""

LOCAL = "local"
"""Name of who calls a service without tokens, in the audit trail."""
LOOKING = 64
"""Pictures and uploads that wait for a thread, at most."""
CONNECTIONS = 512


def create_app(
    settings: Settings, encoder: Encoder | None = None, *, service: Service | None = None
) -> FastAPI:
    """The service as an application.

    Parameters
    ----------
    settings : Settings
    encoder : Encoder, optional
        Instead of the installed one that the index names.
    service : Service, optional
        With these settings, and open already; else it is opened when the application starts. It is
        closed when the application ends.

    Raises
    ------
    CbirError
        If the token file cannot be used.
    """
    tokens = None if settings.tokens is None else Tokens.load(settings.tokens)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state = app.state
        opened = service if service is not None else await asyncio.to_thread(Service, settings, encoder)
        state.service = opened
        state.asking = Pool("asking", settings.workers, settings.queue, settings.timeout)
        state.looking = Pool("looking", settings.workers, LOOKING, settings.timeout)
        state.follower = None
        try:
            if settings.pacs is not None:
                state.follower = Follower(settings, opened)
                state.follower.start()
            yield
        finally:
            if state.follower is not None:
                await asyncio.to_thread(state.follower.stop)
            for pool in (state.asking, state.looking):
                await asyncio.to_thread(pool.close)
            await asyncio.to_thread(opened.close)

    app = FastAPI(
        title="cbir",
        summary=f"Find the known, graded cases that look like a new scan: {NOTICE}.",
        version=version("cbir"),
        lifespan=lifespan,
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Guard, settings=settings)
    for route in ROUTES:
        _add(app, route, tokens)
    app.mount("/static", _Static(directory=STATIC, check_dir=False))
    app.add_exception_handler(CbirError, _refused)
    app.add_exception_handler(Busy, _busy)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    return app


class _Static(StaticFiles):
    """Files that a browser keeps, and asks each time whether they are still the same."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


def serve(settings: Settings, encoder: Encoder | None = None) -> None:
    """Run the service until it is told to stop (SIGINT, SIGTERM).

    Raises
    ------
    CbirError
        If it cannot start.
    """
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise CbirError(where, f"cannot listen there ({error.strerror})", "choose another --port") from error
    with listener:
        if settings.tokens is not None:
            Tokens.load(settings.tokens)  # before an index is made
        service = Service(settings, encoder)  # here, because uvicorn would tell a traceback
        config = uvicorn.Config(
            create_app(settings, service=service),
            log_config=None,
            access_log=False,  # addresses hold case ids
            server_header=False,
            ws="none",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=30,
        )
        # uvicorn raises the signal again when it has shut down; being stopped is no failure
        signal.signal(signal.SIGTERM, lambda *_: None)
        with suppress(KeyboardInterrupt):
            _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"cbir: serving on http://{shown}:{port} ({NOTICE})", file=sys.stderr, flush=True)


# ---- who may do what -----------------------------------------------------------------------------

_bearer = HTTPBearer(auto_error=False, description="A token made by `cbir token`")


def allowed(role: Role, tokens: Tokens | None) -> Callable[..., Awaitable[None]]:
    """A dependency that lets a request pass whose token has the role; who asks is known afterwards."""

    async def check(
        request: Request,
        credentials: HTTPAuthorizationCredentials | None = Depends(_bearer),  # noqa: B008
    ) -> None:
        if tokens is None:
            request.state.who, request.state.role = LOCAL, Role.ADMIN
            return
        token = tokens.find(credentials.credentials) if credentials else None
        held = Role[token.role.upper()] if token else None
        if token is not None and held is not None and held >= role:
            request.state.who, request.state.role = token.name, held
            return
        status = 401 if token is None else 403
        address = request.client.host if request.client else ""
        request.app.state.service.audit.record(
            "refused",
            token.name if token else "",
            "refused",
            address=address,
            method=request.method,
            route=request.scope["route"].path,
            status=status,
        )
        if token is None:
            raise HTTPException(401, "a valid token is needed", {"WWW-Authenticate": "Bearer"})
        raise HTTPException(403, f"this needs the role {role.name.lower()}")

    check.role = role  # type: ignore[attr-defined]
    return check


def _add(app: FastAPI, route: Route, tokens: Tokens | None) -> None:
    about = dict(route.openapi)
    status = about.get("status", 200)
    media = about.get("media", "application/json")
    content = {"example": about["answer"]} if "answer" in about else {}
    responses: dict[int | str, dict[str, Any]] = {
        status: {"description": "Done", "content": {media: content}}
    }
    failures = {404: "Unknown"}
    if route.role is not None:
        failures |= {401: "No valid token", 403: "Not the role", 503: "Too busy, see Retry-After"}
    if "form" in about:
        failures |= {413: "Too much", 415: "No form", 422: "Not readable, or not a question", 408: "Too slow"}
    for code, meaning in sorted(failures.items()):
        example = {"detail": f"{meaning.lower()}: the reason in one line"}
        responses[code] = {"description": meaning, "content": {"application/json": {"example": example}}}
    extra: dict[str, Any] = {}
    if "form" in about:
        schema = {"type": "object", "properties": about["form"]}
        extra["requestBody"] = {"content": {"multipart/form-data": {"schema": schema}}}
    app.add_api_route(
        route.path,
        route.endpoint,
        methods=[route.method],
        dependencies=[] if route.role is None else [Depends(allowed(route.role, tokens))],
        response_class=Response,
        response_model=None,
        status_code=status,
        responses=responses,
        openapi_extra=extra,
        include_in_schema=not about.get("hidden", False),
    )


# ---- errors --------------------------------------------------------------------------------------


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, CbirError)
    status = next(status for kind, status in STATUS if isinstance(error, kind))
    headers = {"Retry-After": "5"} if status == 503 else {}
    return JSONResponse({"detail": error.explanation}, status, headers)


async def _busy(request: Request, error: Exception) -> Response:
    assert isinstance(error, Busy)
    return JSONResponse({"detail": str(error)}, 503, {"Retry-After": str(error.after)})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg'].lower()}"}, 422)
