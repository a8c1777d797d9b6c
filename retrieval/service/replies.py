"""Answers as the network gets them: addresses of pictures in place of paths of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from indexer import reference
from indexer.encoder import Explainer
from indexer.scan import Scan
from retrieval.answer import NOTICE, Answer, Hit, Query
from retrieval.evidence import class_columns
from retrieval.report import report_page
from retrieval.service.core import Service
from retrieval.service.queries import Kept


def answered(
    service: Service, answer: Answer, kept: Kept | None = None, like: Sequence[str] = ()
) -> dict[str, Any]:
    """The JSON of ``cbir query --json`` with addresses of the pictures.

    Each hit has ``volume`` and ``thumbnail``, and ``query_volume`` and ``query_thumbnail`` for the query's
    side of the pair. Its ``source`` is the case's id. ``explanation`` has the addresses of the maps of
    the pair, where the encoder explains and the query is kept; a reference case has none for its side.
    """
    reply = answer.to_dict()
    explains = isinstance(service.index.encoder, Explainer)
    asking = {case: service.case(case)["scans"] for case in like}
    if kept is not None:
        place = f"/queries/{kept.id}"
        reply["query"] |= {"id": kept.id, "scans": described(place, kept.about)}
    for hit, told in zip(answer.hits, reply["hits"], strict=True):
        found = service.index.case_index.catalog.case(hit.case_id)  # None: removed in this moment
        of_case = _number(asdict(found)["scans"] if found else (), hit.source, hit.sequence)
        told |= {"source": hit.case_id, "scan": _named(hit.case_id, of_case)}
        told |= _pictures(_case(hit.case_id), hit.sequence, of_case, hit.slice)
        place, number, told["query_source"] = "", None, answer.query.source
        if kept is not None:
            place, number = f"/queries/{kept.id}", kept.number(hit.query_source)
            if explains and number is not None and of_case is not None:
                told["explanation"] = _maps(place, answer.query, hit, number, of_case)
        for case, scans in asking.items():
            if number is None and _number(scans, hit.query_source, hit.query_sequence) is not None:
                place, number = _case(case), _number(scans, hit.query_source, hit.query_sequence)
                told["query_source"] = case
        told["query_scan"] = _named(told["query_source"], number)
        asked = _pictures(place, hit.query_sequence, number, hit.query_slice)
        told |= {f"query_{name}": address for name, address in asked.items()}
    return reply


def page(service: Service, answer: Answer, kept: Kept | None) -> str:
    """The answer as one HTML page with its pictures inside."""
    asked = answer.query if kept is None else replace(answer.query, source="the scan that was sent")
    return report_page(
        replace(answer, query=asked),
        load=lambda path: service.read(path, kept),
        explain=service.index.explain(answer),
    )


def case(service: Service, case_id: str) -> dict[str, Any]:
    """The JSON of ``GET /cases/{case_id}``.

    Raises
    ------
    Missing
    """
    found = service.case(case_id)
    return {
        "schema": 1,
        "case_id": case_id,
        "patient_id": found["patient_id"],
        "labels": found["labels"],
        "scans": described(_case(case_id), found["scans"]),
        "notice": NOTICE,
    }


def described(place: str, scans: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a viewer needs to know of scans.

    ``axis`` is the one of the volume's axes (which run to the patient's right, front and head) along
    which slices are counted.
    """
    told = []
    for number, scan in enumerate(scans):
        shape, spacing = tuple(scan["shape"]), scan["spacing"]
        axis = Scan(np.broadcast_to(np.uint8(0), shape), source=None, spacing=spacing).axis  # type: ignore[arg-type]
        told.append(
            {
                "scan": number,
                "sequence": scan["sequence"],
                "modality": scan["modality"],
                "shape": list(shape),
                "spacing": None if spacing is None else list(spacing),
                "axis": axis,
                "slices": shape[axis],
                **_pictures(place, scan["sequence"], number, shape[axis] // 2),
            }
        )
    return told


def info(service: Service, role: str) -> dict[str, Any]:
    """The JSON of ``GET /info``: as ``cbir info --json``, with the values of each label.

    ``pacs`` says whether the service is joined to a PACS, ``role`` what the caller may do.
    """
    contents = service.index.contents
    by_patient = dict(zip(contents.patient_ids, contents.labels, strict=True))
    values = {
        name: sorted({row[name] for row in by_patient.values() if name in row})
        for name in class_columns(list(by_patient.values()))
    }
    about = service.index.case_index.about()
    for place in ("vectors", "catalog"):  # paths and addresses of the server are no client's business
        del about[place]
    return {
        "schema": 1,
        **about,
        "labels": values,
        "pacs": service.settings.pacs is not None,
        "role": role,
        "notice": NOTICE,
    }


def _case(case_id: str) -> str:
    return f"/cases/{quote(case_id)}"


def _number(scans: Sequence[Mapping[str, Any]], source: str, sequence: str | None) -> int | None:
    matches = (n for n, s in enumerate(scans) if (s["source"], s["sequence"]) == (source, sequence))
    return next(matches, None)


def _named(place: str, number: int | None) -> str | None:
    """A scan as clients see it: among those of a case or a query, without a word of files."""
    return None if number is None else f"{place}#{number}"


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


def _pictures(place: str, sequence: str | None, number: int | None, position: int) -> dict[str, str]:
    which = {} if sequence is None else {"sequence": sequence}
    which |= {} if number is None else {"scan": str(number)}
    query = f"?{urlencode(which)}" if which else ""
    return {
        "volume": f"{place}/volume.nii.gz{query}",
        "thumbnail": f"{place}/thumbnail.png?{urlencode({**which, 'slice': position})}",
    }
