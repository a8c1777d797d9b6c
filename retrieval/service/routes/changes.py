"""Changes of the index."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

from retrieval.service import forms
from retrieval.service.models import Accepted, JobList, JobState
from retrieval.service.pictures import Missing
from retrieval.service.pool import Busy
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
from retrieval.service.tokens import Role

ROUTES = Routes()


@ROUTES.route("POST", "/index", Role.WRITE, form=forms.Filing, reply=Accepted, status=202)
async def index(request: Request) -> Response:
    """Index an uploaded scan or a series of the PACS; the job tells how it goes.

    What is accepted is done, also if the service is stopped in between. The same series (by its
    SeriesInstanceUID) again changes nothing; with other images it replaces the old one.
    """
    service, pool = service_of(request), looking(request)
    with audited(request, "index", only_failures=True):
        if service.jobs.full:
            raise Busy(after=10)
        async with (
            pool.place(caller(request)) as place,
            forms.received(request, forms.Filing, service.settings.timeout) as form,
        ):
            file, labels = forms.one_source(form), forms.labels(form)
            name, place_of, series = who(request), address(request), forms.text(form, "series")
            changes, questions = service.changes, service.questions
            if file is not None:
                upload, called = file.file, file.filename or ""
                job = await pool.run(
                    lambda: changes.index_upload(upload, called, who=name, labels=labels, address=place_of),
                    place,
                )
            else:
                job = await pool.run(
                    lambda: changes.index_files(
                        lambda folder: questions.download(series, folder),
                        who=name,
                        labels=labels,
                        address=place_of,
                    ),
                    place,
                )
    return answer(Accepted, {"job": job.id}, 202, location=f"/jobs/{job.id}")


@ROUTES.route("GET", "/jobs/{job_id}", Role.READ, reply=JobState)
async def job(request: Request, job_id: str) -> Response:
    """How a job goes."""
    found = service_of(request).jobs.get(job_id)
    if found is None:
        raise Missing("job", "there is no such job")
    return answer(JobState, found.to_dict())


@ROUTES.route("GET", "/jobs", Role.READ, reply=JobList)
async def jobs(request: Request) -> Response:
    """The last jobs, the newest first."""
    return answer(JobList, {"schema": 1, "jobs": [job.to_dict() for job in service_of(request).jobs.all()]})
