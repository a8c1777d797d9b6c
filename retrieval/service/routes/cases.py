"""Cases: what they are, their pictures, and their end."""

from __future__ import annotations

import asyncio

from fastapi import Request
from fastapi.responses import Response

from retrieval.service import images, replies
from retrieval.service.models import Accepted, Case, Removed
from retrieval.service.routes.route import (
    Routes,
    address,
    answer,
    audited,
    caller,
    looking,
    service_of,
    who,
)
from retrieval.service.routes.thumbnail import Draw, thumbnail
from retrieval.service.tokens import Role

PATIENCE = 30.0
"""Seconds a removal is waited for; then its job is told instead."""

ROUTES = Routes()


@ROUTES.route("GET", "/cases/{case_id:path}/volume.nii.gz", Role.READ, media="application/gzip")
async def case_volume(
    request: Request, case_id: str, sequence: str | None = None, scan: int | None = None
) -> Response:
    """The voxels of a case's scan, without anything else that its file holds."""
    return await _picture(request, case_id, sequence, scan, images.volume, "application/gzip")


@ROUTES.route("GET", "/cases/{case_id:path}/thumbnail.png", Role.READ, media="image/png")
async def case_thumbnail(
    request: Request,
    case_id: str,
    sequence: str | None = None,
    scan: int | None = None,
    slice: int | None = None,
    size: int = 256,
) -> Response:
    """A slice of a case's scan."""
    return await _picture(request, case_id, sequence, scan, thumbnail(slice, size), "image/png")


@ROUTES.route("GET", "/cases/{case_id:path}", Role.READ, reply=Case)
async def case(request: Request, case_id: str) -> Response:
    """A case: its labels and its scans."""
    service = service_of(request)
    with audited(request, "view") as note:
        async with looking(request).place(caller(request)) as place:
            reply = await looking(request).run(lambda: replies.case(service, case_id), place)
        note.patients = [service.pictures.pseudonym(reply["patient_id"])]
    return answer(Case, reply)


@ROUTES.route("DELETE", "/cases/{case_id:path}", Role.ADMIN, reply=Removed)
async def remove_case(request: Request, case_id: str) -> Response:
    """Take a case out of the index, and its images off the disk where the service keeps them.

    Where that takes longer, the answer is 202 with the id of the job, as `POST /index` gives it.
    """
    changes, name, place_of = service_of(request).changes, who(request), address(request)
    with audited(request, "remove", only_failures=True):
        async with looking(request).place(caller(request)) as place:
            job = await looking(request).run(
                lambda: changes.remove_case(case_id, who=name, address=place_of), place
            )
    await asyncio.to_thread(job.wait, PATIENCE)
    if job.error is not None:
        raise job.error
    if job.report is None:
        return answer(Accepted, {"job": job.id}, 202, location=f"/jobs/{job.id}")
    return answer(Removed, job.report)


async def _picture(
    request: Request, case_id: str, sequence: str | None, number: int | None, draw: Draw, media: str
) -> Response:
    pictures = service_of(request).pictures

    def work() -> tuple[bytes, str]:
        scan, patient = pictures.scan(case_id, sequence, number)
        return draw(scan), pictures.pseudonym(patient)

    with audited(request, "view") as note:
        async with looking(request).place(caller(request)) as place:
            picture, patient = await looking(request).run(work, place)
        note.patients = [patient]
    return Response(picture, media_type=media)
