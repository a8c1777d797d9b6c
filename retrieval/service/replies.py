"""Answers as the network gets them: addresses of pictures in place of paths of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from indexer import reference
from indexer.catalog import FiledScan
from indexer.scan import Scan, ScanRef
from retrieval.answer import NOTICE, Answer, Hit, Query
from retrieval.report import report_page
from retrieval.service.core import Service
from retrieval.service.queries import Kept, place_of


def answered(
    service: Service, answer: Answer, kept: Kept | None = None, like: Sequence[str] = ()
) -> dict[str, Any]:
    """The JSON of ``cbir query --json`` with addresses of the pictures.

    Each hit has ``volume`` and ``thumbnail``, and ``query_volume`` and ``query_thumbnail`` for the query's
    side of the pair. Its ``source`` is the case's id. ``explanation`` has the addresses of the maps of
    the pair, where the encoder explains and the query is kept; a reference case has none for its side.
    """
    reply = answer.to_dict()
    asking = {case: service.pictures.case(case).scans for case in like}
    del reply["query"]["scans"]  # by the paths of their files
    if kept is not None:
        reply["query"] |= {"id": kept.id, "scans": described(f"/queries/{kept.id}", kept.about)}
    for hit, told in zip(answer.hits, reply["hits"], strict=True):
        of_case = service.pictures.number(hit.case_id, hit.scan)
        told |= {"source": hit.case_id, "scan": _named(hit.case_id, of_case)}
        told |= _pictures(_case(hit.case_id), of_case, hit.slice)
        source, place, number = _asking(hit, answer.query, kept, asking)
        told |= {"query_source": source, "query_scan": _named(source, number)}
        if kept is not None and number is not None and of_case is not None and service.pictures.explains:
            told["explanation"] = _maps(place, answer.query, hit, number, of_case)
        asked = _pictures(place, number, hit.query_slice)
        told |= {f"query_{name}": address for name, address in asked.items()}
    return reply


def _asking(
    hit: Hit, asked: Query, kept: Kept | None, asking: Mapping[str, Sequence[FiledScan]]
) -> tuple[str, str, int | None]:
    """What a hit's query side is called, where its pictures are, and which of its scans it is."""
    if kept is not None:
        return asked.source, f"/queries/{kept.id}", kept.number(hit.query_scan)
    for case, scans in asking.items():
        number = place_of(scans, hit.query_scan)
        if number is not None:
            return case, _case(case), number
    return asked.source, "", None


def _named(source: str, number: int | None) -> str | None:
    """A scan as clients see it: among those of a case or a query, without a word of files."""
    return None if number is None else str(ScanRef(source, number))


def page(service: Service, answer: Answer, kept: Kept | None) -> str:
    """The answer as one HTML page with its pictures inside."""
    asked = answer.query if kept is None else replace(answer.query, source="the scan that was sent")
    return report_page(
        replace(answer, query=asked),
        load=lambda path: service.read(path, kept),
        explain=service.index.explain(answer),
        beside=service.index.state.beside,
    )


def case(service: Service, case_id: str) -> dict[str, Any]:
    """The JSON of ``GET /cases/{case_id}``.

    Raises
    ------
    Missing
    """
    found = service.pictures.case(case_id)
    return {
        "schema": 1,
        "case_id": case_id,
        "patient_id": found.patient_id,
        "visit": found.visit,
        "labels": found.labels,
        "scans": described(_case(case_id), found.scans),
        "notice": NOTICE,
    }


def described(place: str, scans: Sequence[FiledScan]) -> list[dict[str, Any]]:
    """What a viewer needs to know of scans.

    ``axis`` is the one of the volume's axes (which run to the patient's right, front and head) along
    which slices are counted.
    """
    told = []
    for number, scan in enumerate(scans):
        shape, spacing = tuple(scan.shape), scan.spacing
        axis = Scan(np.broadcast_to(np.uint8(0), shape), source=None, spacing=spacing).axis  # type: ignore[arg-type]
        told.append(
            {
                "scan": number,
                "sequence": scan.sequence,
                "modality": scan.modality,
                "shape": list(shape),
                "spacing": None if spacing is None else list(spacing),
                "axis": axis,
                "slices": shape[axis],
                **_pictures(place, number, shape[axis] // 2),
            }
        )
    return told


def info(service: Service, role: str) -> dict[str, Any]:
    """The JSON of ``GET /info``: as ``cbir info --json``, with the values of each label.

    ``pacs`` says whether the service is joined to a PACS, ``role`` what the caller may do.
    """
    return {
        "schema": 1,
        **service.about(),
        "pacs": service.settings.pacs is not None,
        "role": role,
        "notice": NOTICE,
    }


def _case(case_id: str) -> str:
    return f"/cases/{quote(case_id)}"


def _maps(place: str, asked: Query, hit: Hit, number: int, of_case: int) -> dict[str, str]:
    """Where the maps of a pair are, below the query's address."""
    pair = {
        "scan": str(number),
        "slice": str(hit.query_slice),
        "case": hit.case_id,
        "case_scan": str(of_case),
        "case_slice": str(hit.slice),
    }
    if asked.region is not None:
        pair["region"] = f"{','.join(map(str, asked.region))}@{asked.region_slice}"
    sides = ("query",) if reference.is_reference(hit.source) else ("query", "hit")
    return {side: f"{place}/explanation/{side}.nii.gz?{urlencode(pair)}" for side in sides}


def _pictures(place: str, number: int | None, position: int) -> dict[str, str]:
    """Where the pictures of a scan are; of one that is gone, where they were."""
    which = -1 if number is None else number
    return {
        "volume": f"{place}/volume.nii.gz?scan={which}",
        "thumbnail": f"{place}/thumbnail.png?scan={which}&slice={position}",
    }
