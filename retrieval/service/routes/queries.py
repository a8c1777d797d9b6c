"""Pictures of queries."""

from __future__ import annotations

from typing import Literal

from fastapi import Request
from fastapi.responses import Response

from retrieval.parsing import parse_region
from retrieval.service import images
from retrieval.service.pictures import Pair, chosen
from retrieval.service.routes.asking import kept_query
from retrieval.service.routes.route import Routes, audited, caller, looking, service_of
from retrieval.service.routes.thumbnail import Draw, thumbnail
from retrieval.service.tokens import Role

ROUTES = Routes()


@ROUTES.route("GET", "/queries/{query_id}/volume.nii.gz", Role.READ, media="application/gzip")
async def query_volume(
    request: Request, query_id: str, sequence: str | None = None, scan: int | None = None
) -> Response:
    """The voxels of a query."""
    return await _picture(request, query_id, sequence, scan, images.volume, "application/gzip")


@ROUTES.route("GET", "/queries/{query_id}/thumbnail.png", Role.READ, media="image/png")
async def query_thumbnail(
    request: Request,
    query_id: str,
    sequence: str | None = None,
    scan: int | None = None,
    slice: int | None = None,
    size: int = 256,
) -> Response:
    """A slice of a query."""
    return await _picture(request, query_id, sequence, scan, thumbnail(slice, size), "image/png")


@ROUTES.route("GET", "/queries/{query_id}/explanation/{side}.nii.gz", Role.READ, media="application/gzip")
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
    service, kept = service_of(request), kept_query(request, query_id)
    box, position = parse_region(region) if region else (None, None)
    pair = Pair(scan, slice, case, case_scan, case_slice, box, position)

    def work() -> tuple[bytes, str]:
        found, patient = service.pictures.explanation(kept, pair, of_query=side == "query")
        return images.volume(found), service.pictures.pseudonym(patient)

    with audited(request, "view") as note:
        note.patients = [kept.patient]
        async with looking(request).place(caller(request)) as place:
            picture, patient = await looking(request).run(work, place)
        note.patients = [kept.patient, patient]
    return Response(picture, media_type="application/gzip")


async def _picture(
    request: Request, query_id: str, sequence: str | None, number: int | None, draw: Draw, media: str
) -> Response:
    kept = kept_query(request, query_id)

    def work() -> bytes:
        sequences = [scan.sequence for scan in kept.about]
        return draw(kept.scan(chosen(sequences, sequence, number, "the query")))

    with audited(request, "view") as note:
        note.patients = [kept.patient]
        async with looking(request).place(caller(request)) as place:
            picture = await looking(request).run(work, place)
    return Response(picture, media_type=media)
