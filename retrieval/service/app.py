"""The service as an ASGI application."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from indexer.encoder import Encoder
from indexer.errors import CbirError, LabelsError, QueryError, ReadError, WriterBusyError
from retrieval.answer import NOTICE
from retrieval.service.core import Service
from retrieval.service.follower import Follower
from retrieval.service.guard import Guard
from retrieval.service.models import Failure
from retrieval.service.orthanc import NotInPacs, PacsError
from retrieval.service.pictures import Missing
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

LOOKING = 64
"""Pictures and uploads that wait for a thread, at most."""


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
    app.add_middleware(Guard, settings=settings, tokens=tokens)
    for route in ROUTES:
        _add(app, route)
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


# ---- who may do what -----------------------------------------------------------------------------

_bearer = HTTPBearer(auto_error=False, description="A token made by `cbir token`")


def allowed(role: Role) -> Callable[..., Awaitable[None]]:
    """A dependency that lets a request pass whose token has the role; the guard knows whose it is."""

    async def check(
        request: Request,
        credentials: HTTPAuthorizationCredentials | None = Depends(_bearer),  # noqa: B008  # for the description
    ) -> None:
        held = request.state.role
        if held is None:
            raise HTTPException(401, "a valid token is needed", {"WWW-Authenticate": "Bearer"})
        if held < role:
            raise HTTPException(403, f"this needs the role {role.name.lower()}")

    return check


def only(known: Set[str]) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses what an address asks for and nobody would answer."""

    async def check(request: Request) -> None:
        for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
            if name not in known:
                there_are = ", ".join(known) or "none"
                raise HTTPException(422, f"there is no such parameter; known are: {there_are}")
            if times > 1:
                raise HTTPException(422, f"{name}: it is given several times")

    return check


def _add(app: FastAPI, route: Route) -> None:
    responses: dict[int | str, dict[str, Any]] = {route.status: {"description": "Done"}}
    if route.reply is not None:
        responses[route.status]["model"] = route.reply
    else:
        responses[route.status]["content"] = {route.media: {}}
    failures = {404: "Unknown", 422: "Not a question", 429: "Too many without a token"}
    if route.role is not None:
        failures |= {401: "No valid token", 403: "Not the role", 503: "Too busy, see Retry-After"}
    if route.form is not None:
        failures |= {413: "Too much", 415: "No form", 422: "Not readable, or not a question", 408: "Too slow"}
    for code, meaning in sorted(failures.items()):
        responses[code] = {"description": meaning, "model": Failure}
    extra: dict[str, Any] = {}
    if route.form is not None:
        schema = route.form.model_json_schema()
        extra["requestBody"] = {"content": {"multipart/form-data": {"schema": schema}}}
    in_path = set(re.findall(r"{(\w+)", route.path))
    parameters = dict.fromkeys(inspect.signature(route.endpoint).parameters)
    known = dict.fromkeys(name for name in parameters if name not in {"request", *in_path}).keys()
    needed = [] if route.role is None else [Depends(allowed(route.role))]
    app.add_api_route(
        route.path,
        route.endpoint,
        methods=[route.method],
        dependencies=[*needed, Depends(only(known))],
        response_class=Response,
        response_model=None,
        status_code=route.status,
        responses=responses,
        openapi_extra=extra,
        include_in_schema=not route.hidden,
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
