"""What is sent: the fields of a form, received within limits, each known and of its kind."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from indexer.errors import QueryError
from indexer.labels import UNKNOWN, identifies
from retrieval.parsing import parse_by, parse_region, parse_where
from retrieval.service.questions import Terms

FIELDS = 200
"""Fields of a form, at most."""
FIELD = 64 * 2**10
"""Bytes of a field, at most."""
MOST = 1000
"""Hits, at most."""
DIGITS = 9
"""Digits of a number, at most."""


class Again(BaseModel):
    """A question with a scan that is there already."""

    model_config = ConfigDict(extra="forbid")

    k: Annotated[int, Field(ge=1, le=MOST)] = 10
    where: Annotated[
        list[str], Field(description="Only cases with these labels", examples=[["who_grade=4"]])
    ] = []
    exclude_patient: Annotated[str, Field(description="A patient that no hit may belong to")] = ""
    all_cases: bool = False
    by: Annotated[
        str,
        Field(
            description="Order hits by class, by appearance, or by similarity alone", examples=["appearance"]
        ),
    ] = ""
    region: Annotated[
        str,
        Field(
            description="X0,Y0,X1,Y1[@SLICE], in pixels of the displayed slice from the top left",
            examples=["60,80,120,140@77"],
        ),
    ] = ""


File = Annotated[
    str,
    Field(
        description="NIfTI, a zip of DICOM or other files, PNG, JPEG, TIFF or WebP",
        json_schema_extra={"format": "binary"},
    ),
]
Series = Annotated[
    str,
    Field(
        description="A series of the PACS: its SeriesInstanceUID, or Orthanc's identifier of it",
        examples=["1.2.826.0.1.3680043.8.498.1"],
    ),
]


class Query(Again):
    """A question; one of file, series, study, like says what with."""

    file: File = ""
    series: Series = ""
    study: Annotated[
        str,
        Field(
            description="A study of the PACS, whose sequences ask together: its StudyInstanceUID, or "
            "Orthanc's identifier of it",
            examples=["1.2.826.0.1.3680043.8.498.2"],
        ),
    ] = ""
    like: Annotated[
        list[str], Field(description="Cases of the index", examples=[["c-0123456789abcdef"]])
    ] = []


class Report(Again):
    """A question whose answer is stored in the PACS."""

    series: Series = ""


class Filing(BaseModel):
    """What is to be indexed; one of file and series."""

    model_config = ConfigDict(extra="forbid")

    file: File = ""
    series: Series = ""
    labels: Annotated[
        str,
        Field(
            description="JSON object of labels of the patients in the upload, in place of those they have",
            examples=['{"who_grade": "4"}'],
        ),
    ] = ""


@asynccontextmanager
async def received(request: Request, form: type[BaseModel], timeout: float) -> AsyncIterator[FormData]:
    """The fields and the file of a request; the file is gone afterwards.

    Parameters
    ----------
    request : Request
    form : type
        Names the fields that there are.
    timeout : float
        Seconds that it may take to arrive.

    Raises
    ------
    HTTPException
        415 if it is no form, 408 if it takes too long, 400 if it is damaged or half, 413 if it is too much.
    QueryError
        If it has a field that the form has not, or one several times that can be given once.
    """
    kind = request.headers.get("content-type", "")
    if kind and not kind.lower().startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
        raise HTTPException(415, "send a form (multipart/form-data) with the field file or series")
    try:
        async with asyncio.timeout(timeout):
            fields = await request.form(max_files=1, max_fields=FIELDS, max_part_size=FIELD)
    except TimeoutError:
        raise HTTPException(408, "the request took too long to arrive") from None
    except ClientDisconnect:  # nobody hears it, but the trail, and the log does not
        raise HTTPException(400, "the request ended before it was whole") from None
    try:
        for name in dict.fromkeys(fields):
            known = form.model_fields.get(name)
            if known is None:
                raise QueryError("form", f"there is no such field; known are: {', '.join(form.model_fields)}")
            if known.annotation != list[str] and len(fields.getlist(name)) > 1:
                raise QueryError(name, f"the field {name} is given several times", "give it once")
        yield fields
    finally:
        await fields.close()


def one_source(form: FormData, *others: str) -> UploadFile | None:
    """The file; None if another field says what to work with.

    Raises
    ------
    QueryError
        If not exactly one of file, series and `others` is given.
    """
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


def question(form: FormData) -> Terms:
    """What is asked beside the scan.

    Raises
    ------
    QueryError
    """
    region = text(form, "region")
    if any(len(number) > DIGITS for number in re.findall(r"\d+", region)):
        raise QueryError("region", "the region is not inside its slices")
    box, position = parse_region(region) if region else (None, None)
    number = text(form, "k") or "10"
    if not re.fullmatch(rf"[0-9]{{1,{DIGITS}}}", number) or not 1 <= int(number) <= MOST:
        raise QueryError("k", f"k is not a number from 1 to {MOST}")
    every = (text(form, "all_cases") or "false").lower()
    if every not in ("true", "1", "on", "false", "0", "off"):
        raise QueryError("all_cases", "all_cases is neither true nor false")
    return Terms(
        k=int(number),
        where=parse_where(str(pair) for pair in form.getlist("where")),
        region=box,
        region_slice=position,
        exclude_patient=text(form, "exclude_patient") or None,
        all_cases=every in ("true", "1", "on"),
        by=parse_by(text(form, "by") or None),
    )


def text(form: FormData, name: str) -> str:
    """A field of text, without spaces around it; empty if there is none."""
    value = form.get(name)
    return value.strip() if isinstance(value, str) else ""


def labels(form: FormData) -> dict[str, str] | None:
    """Labels that come with an upload; None if there are none.

    Raises
    ------
    QueryError
    """
    given: Any = text(form, "labels")
    if not given:
        return None
    try:
        found = json.loads(given)
    except (TypeError, ValueError, RecursionError):
        raise QueryError("labels", 'labels are not a JSON object such as {"who_grade": "4"}') from None
    plain = isinstance(found, dict) and all(isinstance(v, str | int | float) for v in found.values())
    if not plain or any(len(n) > 64 or len(str(v)) > 128 for n, v in found.items()):
        raise QueryError("labels", 'labels are not a JSON object of short values such as {"who_grade": "4"}')
    if not all(word.isprintable() for pair in found.items() for word in map(str, pair)):
        raise QueryError("labels", "a label holds control characters", "write it as plain text")
    if any(identifies(name) for name in found):
        raise QueryError("labels", "a label's name says that it identifies people", "leave it out")
    return {name: str(value) for name, value in found.items() if str(value).lower() not in UNKNOWN}
