"""Questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel
from starlette.datastructures import FormData

from indexer.errors import QueryError
from retrieval.answer import NOTICE, Answer
from retrieval.service import forms, replies
from retrieval.service.models import Answer as AnswerReply
from retrieval.service.models import Stored
from retrieval.service.pictures import Missing
from retrieval.service.queries import Kept
from retrieval.service.questions import Terms
from retrieval.service.routes.route import (
    Routes,
    address,
    answer,
    audited,
    caller,
    counted,
    service_of,
    who,
)
from retrieval.service.tokens import Role

ROUTES = Routes()


@ROUTES.route("POST", "/query", Role.READ, form=forms.Query, reply=AnswerReply)
async def query(request: Request) -> Response:
    """The cases most similar to an uploaded scan, a series or study of the PACS, or cases of the index."""
    asked = await _asked(request, "query", forms.Query)
    return answer(AnswerReply, asked.reply)


@ROUTES.route("POST", "/report", Role.READ, form=forms.Query, media="text/html")
async def report(request: Request) -> Response:
    """The answer to the same question as `/query`, as one HTML page with its pictures inside."""
    asked = await _asked(request, "report", forms.Query)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"
    return HTMLResponse(asked.page, headers={"content-security-policy": policy})


@ROUTES.route("POST", "/queries/{query_id}", Role.READ, form=forms.Again, reply=AnswerReply)
async def query_again(request: Request, query_id: str) -> Response:
    """Ask again with a scan that was sent some minutes ago."""
    asked = await _asked(request, "query", forms.Again, again=query_id)
    return answer(AnswerReply, asked.reply)


@ROUTES.route("POST", "/sr", Role.WRITE, form=forms.Report, reply=Stored, status=201)
async def structured_report(request: Request) -> Response:
    """Ask with a series of the PACS and store the answer beside it, as DICOM structured report."""
    service, asking = service_of(request), request.app.state.asking
    act, patients, detail, outcome = None, [], {}, "failure"
    try:
        async with asking.place(caller(request)) as place:
            async with forms.received(request, forms.Report, service.settings.timeout) as form:
                terms, series = forms.question(form), forms.text(form, "series")
            if not series:
                raise QueryError("series", "give the field series")
            detail = counted(terms)
            act = service.audit.begin("store", who(request), address=address(request), **detail)
            stored, patients = await asking.run(lambda: service.questions.report(series, terms), place)
        outcome = "success"
    finally:
        if act is None:
            service.audit.record("store", who(request), outcome, address=address(request), **detail)
        else:
            act.end(outcome, patients, **detail)
    return answer(Stored, {"stored": stored, "notice": NOTICE}, 201)


@dataclass(frozen=True)
class _Asked:
    reply: dict[str, Any]
    page: str
    patients: list[str]


async def _asked(request: Request, event: str, kind: type[BaseModel], *, again: str | None = None) -> _Asked:
    """Read a question, ask it in a thread, write it down."""
    service, asking = service_of(request), request.app.state.asking
    with audited(request, event) as note:
        async with (
            asking.place(caller(request)) as place,
            forms.received(request, kind, service.settings.timeout) as form,
        ):
            terms = forms.question(form)
            note.detail = counted(terms)
            ask, like = _answering(request, form, terms, again)

            def work() -> _Asked:
                found, kept = ask()
                reply = replies.answered(service, found, kept, like)
                page = replies.page(service, found, kept) if event == "report" else ""
                own = [] if kept is None else [kept.patient]
                shown = (service.pictures.pseudonym(hit.patient_id) for hit in found.hits)
                return _Asked(reply, page, list(dict.fromkeys([*own, *shown])))

            asked: _Asked = await asking.run(work, place)
        note.patients = asked.patients
    return asked


def _answering(
    request: Request, form: FormData, terms: Terms, again: str | None
) -> tuple[Callable[[], tuple[Answer, Kept | None]], list[str]]:
    """What to do in the thread, and the cases that ask."""
    questions, name = service_of(request).questions, who(request)
    if again is not None:
        kept = kept_query(request, again)
        return lambda: (questions.again(kept, terms), kept), []
    file = forms.one_source(form, "study", "like")
    if file is not None:
        upload, called = file.file, file.filename or ""
        return lambda: questions.with_upload(upload, called, terms, name), []
    if series := forms.text(form, "series"):
        return lambda: questions.with_series(series, terms, name), []
    if study := forms.text(form, "study"):
        return lambda: questions.with_study(study, terms, name), []
    like = [str(case) for case in form.getlist("like") if case]
    return lambda: (questions.like(like, terms), None), like


def kept_query(request: Request, query_id: str) -> Kept:
    """A query that this caller asked some minutes ago.

    Raises
    ------
    Missing
    """
    kept = service_of(request).queries.get(query_id, who(request))
    if kept is None:
        raise Missing("query", "there is no such query any more", "send the scan again")
    return kept
