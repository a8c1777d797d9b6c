"""A route, and what endpoints share: who asks, the audit trail, replies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from retrieval.service.core import Service
from retrieval.service.models import plain
from retrieval.service.pool import Pool
from retrieval.service.questions import Terms
from retrieval.service.tokens import Role

STATIC = Path(__file__).parents[1] / "static"
Endpoint = Callable[..., Awaitable[Response]]


@dataclass(frozen=True)
class Route:
    """An address and what is behind it.

    Attributes
    ----------
    method, path : str
    role : Role or None
        Who may call it; None for everybody.
    endpoint : callable
    reply : type, optional
        Of the JSON that it answers; None for other media.
    form : type, optional
        Fields of the form that it takes.
    status : int
        Of a success.
    media : str
    hidden : bool
        Whether the description passes over it.
    """

    method: str
    path: str
    role: Role | None
    endpoint: Endpoint
    reply: type[BaseModel] | None = None
    form: type[BaseModel] | None = None
    status: int = 200
    media: str = "application/json"
    hidden: bool = False


class Routes(list[Route]):
    """Routes of a module; there is no way to register one without saying who may call it."""

    def route(
        self, method: str, path: str, role: Role | None, **about: Any
    ) -> Callable[[Endpoint], Endpoint]:
        """Register an endpoint."""

        def register(endpoint: Endpoint) -> Endpoint:
            self.append(Route(method, path, role, endpoint, **about))
            return endpoint

        return register


def service_of(request: Request) -> Service:
    """The service."""
    service: Service = request.app.state.service
    return service


def looking(request: Request) -> Pool:
    """Threads for pictures and uploads."""
    pool: Pool = request.app.state.looking
    return pool


def who(request: Request) -> str:
    """Name of the token."""
    return str(request.state.who)


def address(request: Request) -> str:
    """Where the request comes from; empty if that is not known."""
    return str(request.state.address)


def caller(request: Request) -> tuple[str, str]:
    """By whom places are counted: behind one token, such as a PACS's, may be many."""
    return who(request), address(request)


def answer(kind: type[BaseModel], found: Mapping[str, Any], status: int = 200, **headers: str) -> Response:
    """A reply of a kind."""
    return JSONResponse(plain(kind.model_validate(found)), status, headers)


@dataclass
class Note:
    """What a line of the audit trail will tell."""

    patients: list[str]
    detail: dict[str, Any]


@contextmanager
def audited(request: Request, event: str, *, only_failures: bool = False) -> Iterator[Note]:
    """Write down what happens within, whichever way it ends, before anything is answered."""
    note, outcome = Note([], {}), "failure"
    try:
        yield note
        outcome = "success"
    finally:
        if outcome == "failure" or not only_failures:
            service_of(request).audit.record(
                event,
                who(request),
                outcome,
                address=address(request),
                patients=note.patients,
                **note.detail,
            )


def counted(terms: Terms) -> dict[str, Any]:
    """What the audit trail tells of a question."""
    filters, region = len(terms.where), terms.region is not None
    return {"k": terms.k, "filters": filters, "region": region}
