"""The routes: who may call what, how a request is read, what is answered and written to the audit trail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from indexer.errors import QueryError
from indexer.labels import UNKNOWN, identifies
from indexer.scan import Scan
from retrieval.answer import NOTICE, Answer
from retrieval.parsing import parse_region, parse_where
from retrieval.service import examples, images, replies
from retrieval.service.core import Missing, Pair, Question, Service
from retrieval.service.follower import Follower
from retrieval.service.pool import Busy, Pool
from retrieval.service.queries import Kept
from retrieval.service.tokens import Role

STATIC = Path(__file__).parent / "static"
FIELDS = 200
"""Fields of a form, at most."""
FIELD = 64 * 2**10
"""Bytes of a field, at most."""
MOST = 1000
"""Hits, at most."""
PATIENCE = 30.0
"""Seconds a removal is waited for; then its job is told instead."""
SIDES = (16, 1024)
"""Sizes of a thumbnail."""


@dataclass(frozen=True)
class Route:
    """An address and what is behind it.

    Attributes
    ----------
    method, path : str
    role : Role or None
        Who may call it; None for everybody.
    endpoint : callable
    openapi : mapping
        What the description says beside the docstring.
    """

    method: str
    path: str
    role: Role | None
    endpoint: Callable[..., Awaitable[Response]]
    openapi: Mapping[str, Any]


Draw = Callable[[Scan], bytes]

ROUTES: list[Route] = []


def route(
    method: str, path: str, role: Role | None, **openapi: Any
) -> Callable[[Callable[..., Awaitable[Response]]], Callable[..., Awaitable[Response]]]:
    """Register an endpoint; there is no way to do so without saying who may call it."""

    def register(endpoint: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
        ROUTES.append(Route(method, path, role, endpoint, openapi))
        return endpoint

    return register


# ---- pages and state -----------------------------------------------------------------------------


@route("GET", "/health", None, answer=examples.HEALTH)
async def health(request: Request) -> Response:
    """Whether the service runs."""
    return JSONResponse({"status": "ok", "notice": NOTICE})


@route("GET", "/", None, hidden=True)
@route("GET", "/viewer", None, hidden=True)
async def viewer(request: Request) -> Response:
    """The viewer's page; it asks for a token where one is needed."""
    return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})


@route("GET", "/info", Role.READ, answer=examples.INFO)
async def info(request: Request) -> Response:
    """What is in the index, the values of each label, and what the caller's token allows."""
    role = request.state.role.name.lower()
    async with _looking(request).place():
        return JSONResponse(await _looking(request).run(lambda: replies.info(_service(request), role)))


@route("GET", "/pacs", Role.READ, answer=examples.PACS)
async def pacs(request: Request) -> Response:
    """How the PACS is followed: whether it answers, and what became of its series."""
    follower = _follower(request)
    async with _looking(request).place():
        return JSONResponse(await _looking(request).run(follower.status))


# ---- questions -----------------------------------------------------------------------------------


@route("POST", "/query", Role.READ, form=examples.QUERY_FORM, answer=examples.ANSWER)
async def query(request: Request) -> Response:
    """The cases most similar to an uploaded scan, a series of the PACS, or cases of the index."""
    asked = await _asked(request, "query")
    return JSONResponse(asked.reply)


@route("POST", "/report", Role.READ, form=examples.QUERY_FORM, media="text/html")
async def report(request: Request) -> Response:
    """The answer to the same question as `/query`, as one HTML page with its pictures inside."""
    asked = await _asked(request, "report")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"
    return HTMLResponse(asked.page, headers={"content-security-policy": policy})


@route("POST", "/queries/{query_id}", Role.READ, form=examples.AGAIN_FORM, answer=examples.ANSWER)
async def query_again(request: Request, query_id: str) -> Response:
    """Ask again with a scan that was sent some minutes ago."""
    asked = await _asked(request, "query", again=query_id)
    return JSONResponse(asked.reply)


@route("GET", "/queries/{query_id}/volume.nii.gz", Role.READ, media="application/gzip")
async def query_volume(
    request: Request, query_id: str, sequence: str | None = None, scan: int | None = None
) -> Response:
    """The voxels of a query."""
    return await _query_picture(request, query_id, sequence, scan, images.volume, "application/gzip")


@route("GET", "/queries/{query_id}/thumbnail.png", Role.READ, media="image/png")
async def query_thumbnail(
    request: Request,
    query_id: str,
    sequence: str | None = None,
    scan: int | None = None,
    slice: int | None = None,
    size: int = 256,
) -> Response:
    """A slice of a query."""
    return await _query_picture(request, query_id, sequence, scan, _thumbnail(slice, size), "image/png")


@route("GET", "/queries/{query_id}/explanation/{side}.nii.gz", Role.READ, media="application/gzip")
async def explanation(
    request: Request,
    query_id: str,
    side: Literal["query", "hit"],
    scan: int,
    slice: int,
    case: str,
    case_scan: int,
    case_slice: int,
    region: str = "",
) -> Response:
    """Where on the query's slice, or on the hit's, the similarity of the two comes from.

    A volume on the grid of the query's, or of the hit's: 1 where the most comes from, 0 where nothing
    does and on all other slices. Each hit of an answer has the addresses, as `explanation`; a reference
    case has none for its side, and an encoder that cannot explain gives none.
    """
    service, kept = _service(request), _kept(request, query_id)
    box, position = parse_region(region) if region else (None, None)
    pair = Pair(scan, slice, case, case_scan, case_slice, box, position)

    def work() -> tuple[bytes, str]:
        found, patient = service.explanation(kept, pair, of_query=side == "query")
        return images.volume(found), service.pseudonym(patient)

    with _audited(request, "view") as note:
        note.patients = [kept.patient]
        async with _looking(request).place():
            picture, patient = await _looking(request).run(work)
        note.patients = [kept.patient, patient]
    return Response(picture, media_type="application/gzip")


# ---- cases ---------------------------------------------------------------------------------------


@route("GET", "/cases/{case_id:path}/volume.nii.gz", Role.READ, media="application/gzip")
async def case_volume(
    request: Request, case_id: str, sequence: str | None = None, scan: int | None = None
) -> Response:
    """The voxels of a case's scan, without anything else that its file holds."""
    return await _case_picture(request, case_id, sequence, scan, images.volume, "application/gzip")


@route("GET", "/cases/{case_id:path}/thumbnail.png", Role.READ, media="image/png")
async def case_thumbnail(
    request: Request,
    case_id: str,
    sequence: str | None = None,
    scan: int | None = None,
    slice: int | None = None,
    size: int = 256,
) -> Response:
    """A slice of a case's scan."""
    return await _case_picture(request, case_id, sequence, scan, _thumbnail(slice, size), "image/png")


@route("GET", "/cases/{case_id:path}", Role.READ, answer=examples.CASE)
async def case(request: Request, case_id: str) -> Response:
    """A case: its labels and its scans."""
    with _audited(request, "view") as note:
        async with _looking(request).place():
            reply = await _looking(request).run(lambda: replies.case(_service(request), case_id))
        note.patients = [_service(request).pseudonym(reply["patient_id"])]
    return JSONResponse(reply)


@route("DELETE", "/cases/{case_id:path}", Role.ADMIN, answer=examples.REMOVED)
async def remove_case(request: Request, case_id: str) -> Response:
    """Take a case out of the index, and its images off the disk where the service keeps them."""
    service, who, address = _service(request), _who(request), _address(request)
    with _audited(request, "remove", only_failures=True):
        async with _looking(request).place():
            job = await _looking(request).run(lambda: service.remove_case(case_id, who=who, address=address))
        await asyncio.to_thread(job.wait, PATIENCE)
        if job.error is not None:
            raise job.error
    return JSONResponse(job.report) if job.report else JSONResponse({"job": job.id}, 202)


# ---- changes -------------------------------------------------------------------------------------


@route("POST", "/index", Role.WRITE, form=examples.INDEX_FORM, answer=examples.ACCEPTED, status=202)
async def index(request: Request) -> Response:
    """Index an uploaded scan or a series of the PACS; the job tells how it goes.

    The same series (by its SeriesInstanceUID) again changes nothing; with other images it replaces
    the old one.
    """
    service = _service(request)
    with _audited(request, "index", only_failures=True):
        if service.jobs.full:
            raise Busy(after=10)
        async with _looking(request).place():
            form = await _form(request)
            try:
                file, labels = _one_source(form), _labels(_text(form, "labels"))
                who, address = _who(request), _address(request)
                if file is not None:
                    upload, name = file.file, file.filename or ""
                    job = await _looking(request).run(
                        lambda: service.index_upload(upload, name, who=who, labels=labels, address=address)
                    )
                else:
                    series = _text(form, "series")
                    job = await _looking(request).run(
                        lambda: service.index_series(series, who=who, labels=labels, address=address)
                    )
            finally:
                await form.close()
    return JSONResponse({"job": job.id}, 202, headers={"location": f"/jobs/{job.id}"})


@route("GET", "/jobs/{job_id}", Role.READ, answer=examples.JOB)
async def job(request: Request, job_id: str) -> Response:
    """How a job goes."""
    found = _service(request).jobs.get(job_id)
    if found is None:
        raise Missing("job", "there is no such job")
    return JSONResponse(found.to_dict())


@route("GET", "/jobs", Role.READ, answer=examples.JOBS)
async def jobs(request: Request) -> Response:
    """The last jobs, the newest first."""
    return JSONResponse({"schema": 1, "jobs": [job.to_dict() for job in _service(request).jobs.all()]})


@route("POST", "/pacs/nudge", Role.WRITE, answer={"status": "ok"}, status=202)
async def nudge(request: Request) -> Response:
    """Tell the service that the PACS has something new; without it, the service looks now and then."""
    _follower(request).nudge()
    return JSONResponse({"status": "ok"}, 202)


@route("POST", "/sr", Role.WRITE, form=examples.SR_FORM, answer=examples.STORED, status=201)
async def structured_report(request: Request) -> Response:
    """Ask with a series of the PACS and store the answer beside it, as DICOM structured report."""
    service, asking = _service(request), request.app.state.asking
    with _audited(request, "store") as note:
        async with asking.place():
            form = await _form(request)
            try:
                question, series = _question(form), _text(form, "series")
            finally:
                await form.close()
            if not series:
                raise QueryError("series", "give the field series")
            note.detail = _counted(question)
            stored, note.patients = await asking.run(lambda: service.store_report(series, question))
    return JSONResponse({"stored": stored, "notice": NOTICE}, 201)


# ---- reading requests ----------------------------------------------------------------------------


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _follower(request: Request) -> Follower:
    follower: Follower | None = request.app.state.follower
    if follower is None:
        raise Missing("pacs", "this service has no PACS", "start it with --pacs URL")
    return follower


def _looking(request: Request) -> Pool:
    pool: Pool = request.app.state.looking
    return pool


def _who(request: Request) -> str:
    return str(request.state.who)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


@dataclass(frozen=True)
class _Asked:
    reply: dict[str, Any]
    page: str
    patients: list[str]


@dataclass
class _Note:
    patients: list[str]
    detail: dict[str, Any]


@contextmanager
def _audited(request: Request, event: str, *, only_failures: bool = False) -> Iterator[_Note]:
    """Write down what happens within, whichever way it ends."""
    note, outcome = _Note([], {}), "failure"
    try:
        yield note
        outcome = "success"
    finally:
        if outcome == "failure" or not only_failures:
            _service(request).audit.record(
                event,
                _who(request),
                outcome,
                address=_address(request),
                patients=note.patients,
                **note.detail,
            )


async def _form(request: Request) -> FormData:
    """The fields and the file of a request, received within limits.

    Raises
    ------
    HTTPException
        415 if it is no form, 408 if it takes too long, 400 if it is damaged, 413 if it is too much.
    """
    kind = request.headers.get("content-type", "")
    if kind and not kind.lower().startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
        raise HTTPException(415, "send a form (multipart/form-data) with the field file or series")
    try:
        async with asyncio.timeout(_service(request).settings.timeout):
            return await request.form(max_files=1, max_fields=FIELDS, max_part_size=FIELD)
    except TimeoutError:
        raise HTTPException(408, "the request took too long to arrive") from None


def _one_source(form: FormData, *others: str) -> UploadFile | None:
    """The file; None if another field says what to work with."""
    given = [name for name in ("file", "series", *others) if form.get(name)]
    if len(given) != 1:
        names = ", ".join(("file", "series", *others))
        raise QueryError("form", f"give one of the fields {names}")
    if given != ["file"]:
        return None
    file = form["file"]
    if not isinstance(file, UploadFile):
        raise QueryError("file", "it is a field of text, not a file")
    return file


def _question(form: FormData) -> Question:
    region = _text(form, "region")
    box, position = parse_region(region) if region else (None, None)
    number = _text(form, "k") or "10"
    if not number.isdecimal() or not 1 <= int(number) <= MOST:
        raise QueryError("k", f"k is not a number from 1 to {MOST}")
    every = (_text(form, "all_cases") or "false").lower()
    if every not in ("true", "1", "on", "false", "0", "off"):
        raise QueryError("all_cases", "all_cases is neither true nor false")
    return Question(
        k=int(number),
        where=parse_where(str(pair) for pair in form.getlist("where")),
        region=box,
        region_slice=position,
        exclude_patient=_text(form, "exclude_patient") or None,
        all_cases=every in ("true", "1", "on"),
    )


def _counted(question: Question) -> dict[str, Any]:
    """What the audit trail tells of a question."""
    filters, region = len(question.where or {}), question.region is not None
    return {"k": question.k, "filters": filters, "region": region}


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    return value.strip() if isinstance(value, str) else ""


def _labels(text: Any) -> dict[str, str] | None:
    if not text:
        return None
    try:
        labels = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise QueryError("labels", 'labels are not a JSON object such as {"who_grade": "4"}') from None
    plain = isinstance(labels, dict) and all(isinstance(v, str | int | float) for v in labels.values())
    if not plain or any(len(n) > 64 or len(str(v)) > 128 for n, v in labels.items()):
        raise QueryError("labels", 'labels are not a JSON object of short values such as {"who_grade": "4"}')
    if any(identifies(name) for name in labels):
        raise QueryError("labels", "a label's name says that it identifies people", "leave it out")
    return {name: str(value) for name, value in labels.items() if str(value).lower() not in UNKNOWN}


# ---- answering -----------------------------------------------------------------------------------


async def _asked(request: Request, event: str, *, again: str | None = None) -> _Asked:
    """Read a question, ask it in a thread, write it down."""
    service, asking = _service(request), request.app.state.asking
    with _audited(request, event) as note:
        async with asking.place():
            form = await _form(request)
            try:
                question = _question(form)
                note.detail = _counted(question)
                ask, like = _answering(request, form, question, again)

                def work() -> _Asked:
                    answer, kept = ask()
                    reply = replies.answered(service, answer, kept, like)
                    page = replies.page(service, answer, kept) if event == "report" else ""
                    own = [] if kept is None else [kept.patient]
                    shown = (service.pseudonym(hit.patient_id) for hit in answer.hits)
                    return _Asked(reply, page, list(dict.fromkeys([*own, *shown])))

                asked: _Asked = await asking.run(work)
            finally:
                await form.close()
        note.patients = asked.patients
    return asked


def _answering(
    request: Request, form: FormData, question: Question, again: str | None
) -> tuple[Callable[[], tuple[Answer, Kept | None]], list[str]]:
    """What to do in the thread, and the cases that ask."""
    service, who = _service(request), _who(request)
    if again is not None:
        kept = _kept(request, again)
        return lambda: (service.query_again(kept, question), kept), []
    file = _one_source(form, "like")
    if file is not None:
        upload, name = file.file, file.filename or ""
        return lambda: service.query_upload(upload, name, question, who), []
    if series := _text(form, "series"):
        return lambda: service.query_series(series, question, who), []
    like = [str(case) for case in form.getlist("like") if case]
    return lambda: (service.query_like(like, question), None), like


def _kept(request: Request, query_id: str) -> Kept:
    kept = _service(request).queries.get(query_id, _who(request))
    if kept is None:
        raise Missing("query", "there is no such query any more", "send the scan again")
    return kept


async def _query_picture(
    request: Request, query_id: str, sequence: str | None, number: int | None, draw: Draw, media: str
) -> Response:
    kept = _kept(request, query_id)

    def work() -> bytes:
        chosen = [
            n
            for n, about in enumerate(kept.about)
            if (n == number if number is not None else sequence in (None, about["sequence"]))
        ]
        if not chosen:
            raise Missing("scan", "the query has no such scan")
        return draw(kept.scan(chosen[0]))

    with _audited(request, "view") as note:
        note.patients = [kept.patient]
        async with _looking(request).place():
            return Response(await _looking(request).run(work), media_type=media)


async def _case_picture(
    request: Request, case_id: str, sequence: str | None, number: int | None, draw: Draw, media: str
) -> Response:
    service = _service(request)

    def work() -> tuple[bytes, str]:
        scan, patient = service.scan(case_id, sequence, number)
        return draw(scan), service.pseudonym(patient)

    with _audited(request, "view") as note:
        async with _looking(request).place():
            picture, patient = await _looking(request).run(work)
        note.patients = [patient]
    return Response(picture, media_type=media)


def _thumbnail(position: int | None, size: int) -> Draw:
    if not SIDES[0] <= size <= SIDES[1]:
        raise QueryError("size", f"size is not from {SIDES[0]} to {SIDES[1]}")

    def draw(scan: Scan) -> bytes:
        try:
            return images.thumbnail(scan, len(scan) // 2 if position is None else position, size)
        except IndexError:
            raise Missing("slice", "the scan has no such slice") from None

    return draw
