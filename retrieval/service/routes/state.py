"""Pages, and how it stands."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import FileResponse, Response

from retrieval.answer import NOTICE
from retrieval.service import replies
from retrieval.service.follower import Follower
from retrieval.service.models import Health, Info, Nudged, Pacs
from retrieval.service.pictures import Missing
from retrieval.service.routes.route import STATIC, Routes, answer, caller, looking, service_of
from retrieval.service.tokens import Role

ROUTES = Routes()


@ROUTES.route("GET", "/health", None, reply=Health)
async def health(request: Request) -> Response:
    """Whether the service runs."""
    return answer(Health, {"status": "ok", "notice": NOTICE})


@ROUTES.route("GET", "/", None, hidden=True)
@ROUTES.route("GET", "/viewer", None, hidden=True)
async def viewer(request: Request) -> Response:
    """The viewer's page; it asks for a token where one is needed."""
    return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})


@ROUTES.route("GET", "/info", Role.READ, reply=Info)
async def info(request: Request) -> Response:
    """What is in the index, the values of each label, and what the caller's token allows."""
    role = request.state.role.name.lower()
    async with looking(request).place(caller(request)) as place:
        return answer(
            Info, await looking(request).run(lambda: replies.info(service_of(request), role), place)
        )


@ROUTES.route("GET", "/pacs", Role.READ, reply=Pacs)
async def pacs(request: Request) -> Response:
    """How the PACS is followed: whether it answers, and what became of its series."""
    follower = _follower(request)
    async with looking(request).place(caller(request)) as place:
        return answer(Pacs, await looking(request).run(follower.status, place))


@ROUTES.route("POST", "/pacs/nudge", Role.WRITE, reply=Nudged, status=202)
async def nudge(request: Request) -> Response:
    """Tell the service that the PACS has something new; without it, the service looks now and then."""
    _follower(request).nudge()
    return answer(Nudged, {"status": "ok"}, 202)


def _follower(request: Request) -> Follower:
    follower: Follower | None = request.app.state.follower
    if follower is None:
        raise Missing("pacs", "this service has no PACS", "start it with --pacs URL")
    return follower
