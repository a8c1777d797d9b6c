"""What requests and answers look like, for the description at ``/openapi.json``."""

from __future__ import annotations

from typing import Any

from retrieval.answer import NOTICE

HEALTH = {"status": "ok", "notice": NOTICE}
INFO = {
    "schema": 1,
    "cases": 24,
    "scans": 48,
    "slices": 2304,
    "sources": 48,
    "patients": 24,
    "encoder": "imagenet 5a2f0c1d9e8b7a61",
    "dimension": 1280,
    "preprocessing": "192-1-0.08",
    "keep_ids": False,
    "created": "2026-01-05T09:00:00+00:00",
    "sequences": "flair, t1ce",
    "search": "exact",
    "failed": 0,
    "labels": {"who_grade": ["2", "3", "4"]},
    "pacs": True,
    "role": "write",
    "notice": NOTICE,
}
PACS: dict[str, Any] = {
    "answers": True,
    "reason": None,
    "series": {"filed": 48, "failed": 0, "ignored": 12},
    "failed": [],
    "change": 4711,
}
_SCAN = {
    "scan": 0,
    "sequence": "t1ce",
    "modality": "MR",
    "shape": [240, 240, 155],
    "spacing": [1.0, 1.0, 1.0],
    "axis": 2,
    "slices": 155,
    "volume": "/cases/c-0123456789abcdef/volume.nii.gz?sequence=t1ce&scan=0",
    "thumbnail": "/cases/c-0123456789abcdef/thumbnail.png?sequence=t1ce&scan=0&slice=77",
}
CASE = {
    "schema": 1,
    "case_id": "c-0123456789abcdef",
    "patient_id": "p-fedcba9876543210",
    "labels": {"who_grade": "4"},
    "scans": [_SCAN],
    "notice": NOTICE,
}
_QUERY = "Kz8x1r0m2vQd5n7sT9uWyA"
_PAIR = "scan=0&slice=80&case=c-0123456789abcdef&case_scan=0&case_slice=77"
ANSWER = {
    "schema": 1,
    "query": {
        "source": f"query {_QUERY}",
        "sequence": "t1ce",
        "slices": 140,
        "region": None,
        "region_slice": None,
        "id": _QUERY,
        "scans": [
            {
                **_SCAN,
                "volume": f"/queries/{_QUERY}/volume.nii.gz?sequence=t1ce&scan=0",
                "thumbnail": f"/queries/{_QUERY}/thumbnail.png?sequence=t1ce&scan=0&slice=77",
            }
        ],
    },
    "hits": [
        {
            "rank": 1,
            "score": 0.93,
            "case_id": "c-0123456789abcdef",
            "patient_id": "p-fedcba9876543210",
            "labels": {"who_grade": "4"},
            "sequence": "t1ce",
            "source": "c-0123456789abcdef",
            "slice": 77,
            "query_slice": 80,
            "query_source": f"query {_QUERY}",
            "query_sequence": "t1ce",
            "volume": "/cases/c-0123456789abcdef/volume.nii.gz?sequence=t1ce&scan=0",
            "thumbnail": "/cases/c-0123456789abcdef/thumbnail.png?sequence=t1ce&scan=0&slice=77",
            "query_volume": f"/queries/{_QUERY}/volume.nii.gz?sequence=t1ce&scan=0",
            "query_thumbnail": f"/queries/{_QUERY}/thumbnail.png?sequence=t1ce&scan=0&slice=80",
            "explanation": {
                "query": f"/queries/{_QUERY}/explanation/query.nii.gz?{_PAIR}",
                "hit": f"/queries/{_QUERY}/explanation/hit.nii.gz?{_PAIR}",
            },
        }
    ],
    "evidence": {
        "who_grade": {
            "probabilities": {"2": 0.08, "3": 0.17, "4": 0.75},
            "prior": {"2": 0.3, "3": 0.3, "4": 0.4},
            "set": ["3", "4"],
            "abstain": False,
            "neighbours": 10,
            "calibrated": True,
            "calibrated_on": 281,
            "reason": None,
        }
    },
    "notes": [],
    "notice": NOTICE,
    "familiar": True,
}
ACCEPTED = {"job": "9f1c2d3e4a5b6c7d"}
JOB = {
    "job": "9f1c2d3e4a5b6c7d",
    "what": "index",
    "state": "done",
    "progress": {"done": 1, "total": 1},
    "report": {
        "schema": 1,
        "indexed": 1,
        "unchanged": 0,
        "failed": [],
        "embedded": 140,
        "cases": 25,
        "slices": 2444,
    },
    "reason": None,
    "created": "2026-01-05T09:00:00+00:00",
    "ended": "2026-01-05T09:00:02+00:00",
}
JOBS = {"schema": 1, "jobs": [JOB]}
REMOVED = {"schema": 1, "removed": 1}
STORED = {"stored": "6e2c0ff0-5be7c3a9-2a1d4b0f-93fd2b5e-1c7a8d21", "notice": NOTICE}

_FILE = {
    "type": "string",
    "format": "binary",
    "description": "NIfTI, a zip of DICOM or other files, PNG, JPEG, TIFF or WebP",
}
_SERIES = {
    "type": "string",
    "description": "A series of the PACS: its SeriesInstanceUID, or Orthanc's identifier of it",
    "example": "1.2.826.0.1.3680043.8.498.1",
}
_ASKING = {
    "k": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 10},
    "where": {
        "type": "array",
        "items": {"type": "string"},
        "description": "Only cases with these labels",
        "example": ["who_grade=4"],
    },
    "exclude_patient": {"type": "string", "description": "A patient that no hit may belong to"},
    "all_cases": {"type": "boolean", "default": False},
}
_REGION = {
    "type": "string",
    "description": "X0,Y0,X1,Y1[@SLICE], in pixels of the displayed slice from the top left",
    "example": "60,80,120,140@77",
}
AGAIN_FORM: dict[str, Any] = {**_ASKING, "region": _REGION}
QUERY_FORM: dict[str, Any] = {
    "file": _FILE,
    "series": _SERIES,
    "like": {
        "type": "array",
        "items": {"type": "string"},
        "description": "Ask with cases of the index; give one of file, series, like",
        "example": ["c-0123456789abcdef"],
    },
    **AGAIN_FORM,
}
INDEX_FORM: dict[str, Any] = {
    "file": _FILE,
    "series": _SERIES,
    "labels": {
        "type": "string",
        "description": "JSON object of labels of the patients in the upload, in place of those they have",
        "example": '{"who_grade": "4"}',
    },
}
SR_FORM: dict[str, Any] = {"series": _SERIES, **AGAIN_FORM}
