"""The audit trail: who did what to whose images, in two forms.

``audit.jsonl`` has one JSON object a line, for people and scripts. ``dicom-audit.xml`` has the same event
on the same line as DICOM audit message (PS3.15, A.5): *Query* for questions, *DICOM Instances Accessed*
for images that were looked at, filed or removed and for reports stored in the PACS, *Security Alert* for
what was refused. Neither holds an identifier: patients are the index's keyed hashes, and people are the
names of their tokens.

Files are rotated by size and dropped by count, oldest first. All are readable by their owner only.
"""

from __future__ import annotations

import json
import os
import threading
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from indexer.errors import CbirError

SIZE = 16 * 2**20
"""Bytes after which a file is set aside."""
COUNT = 64
"""Files that are set aside at most, of each form."""

EVENTS: Mapping[str, tuple[str, str, str]] = {
    "query": ("110112", "Query", "E"),
    "view": ("110103", "DICOM Instances Accessed", "R"),
    "index": ("110103", "DICOM Instances Accessed", "C"),
    "remove": ("110103", "DICOM Instances Accessed", "D"),
    "report": ("110103", "DICOM Instances Accessed", "R"),
    "store": ("110103", "DICOM Instances Accessed", "C"),
    "refused": ("110113", "Security Alert", "E"),
}
"""Event to code and meaning (DICOM context group 400) and action (create, read, delete, execute)."""

OUTCOMES = {"success": "0", "failure": "4", "refused": "8"}
"""Outcome to EventOutcomeIndicator: success, minor failure, serious failure."""


class Audit:
    """An audit trail in a folder.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    size, count : int
        Bytes of a file, and files set aside, at most.

    Raises
    ------
    CbirError
        If the folder cannot be written: a service without an audit trail must not start.
    """

    def __init__(self, folder: Path, size: int = SIZE, count: int = COUNT) -> None:
        self._folder = folder
        self._size = size
        self._count = count
        self._lock = threading.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("audit.jsonl", "dicom-audit.xml"):
                os.close(_opened(folder / name))
        except OSError as error:
            reason = f"the audit trail cannot be written ({error.strerror})"
            raise CbirError(folder, reason, "name a folder with --audit") from error

    def record(
        self,
        event: str,
        who: str,
        outcome: str = "success",
        *,
        address: str = "",
        patients: Sequence[str] = (),
        **detail: Any,
    ) -> None:
        """Write an event down.

        Parameters
        ----------
        event : str
            A key of `EVENTS`.
        who : str
            Name of the token; empty if there was none.
        outcome : str
            A key of `OUTCOMES`.
        address : str
            Where the request came from.
        patients : sequence of str
            Pseudonyms.
        **detail
            Numbers and fixed words only, never text that a client or a file brought along.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "who": who, "event": event, "outcome": outcome, "patients": list(patients)}
        text = json.dumps({**line, **detail}, ensure_ascii=False)
        message = _message(now, event, who, outcome, address, patients, detail)
        with self._lock:
            self._append("audit.jsonl", text)
            self._append("dicom-audit.xml", message)

    def _append(self, name: str, line: str) -> None:
        path = self._folder / name
        handle = _opened(path)
        try:
            os.write(handle, line.encode() + b"\n")
            full = os.fstat(handle).st_size >= self._size
        finally:
            os.close(handle)
        if full:
            aside = [path.with_name(f"{name}.{n}") for n in range(1, self._count + 1)]
            for older, newer in zip(reversed(aside), reversed([path, *aside[:-1]]), strict=True):
                if newer.exists():
                    newer.replace(older)


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _message(
    now: str,
    event: str,
    who: str,
    outcome: str,
    address: str,
    patients: Sequence[str],
    detail: Mapping[str, Any],
) -> str:
    """An AuditMessage by the schema of PS3.15, A.5.1."""
    code, meaning, action = EVENTS[event]
    message = Element("AuditMessage")
    identification = SubElement(
        message,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=now,
        EventOutcomeIndicator=OUTCOMES[outcome],
    )
    SubElement(identification, "EventID", _code(code, meaning))
    if event == "refused":
        SubElement(identification, "EventTypeCode", _code("110132", "Use of Restricted Function"))
    person = SubElement(message, "ActiveParticipant", UserID=who, UserIsRequestor="true")
    if address:
        person.attrib |= {"NetworkAccessPointID": address, "NetworkAccessPointTypeCode": "2"}
    if event == "query":
        SubElement(person, "RoleIDCode", _code("110153", "Source Role ID"))
        service = SubElement(message, "ActiveParticipant", UserID="cbir", UserIsRequestor="false")
        SubElement(service, "RoleIDCode", _code("110152", "Destination Role ID"))
    source = SubElement(message, "AuditSourceIdentification", AuditSourceID="cbir")
    SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})
    for patient in patients:
        person_object = SubElement(
            message,
            "ParticipantObjectIdentification",
            ParticipantObjectID=patient,
            ParticipantObjectTypeCode="1",
            ParticipantObjectTypeCodeRole="1",
        )
        kind = {"csd-code": "2", "codeSystemName": "RFC-3881", "originalText": "Patient Number"}
        SubElement(person_object, "ParticipantObjectIDTypeCode", kind)
        SubElement(person_object, "ParticipantObjectName").text = patient
    if event in ("query", "refused"):
        asked = SubElement(
            message,
            "ParticipantObjectIdentification",
            ParticipantObjectID="cbir",
            ParticipantObjectTypeCode="2",
            ParticipantObjectTypeCodeRole="24" if event == "query" else "13",
        )
        kind = (
            _code("110181", "SOP Class UID")
            if event == "query"
            else {"csd-code": "12", "codeSystemName": "RFC-3881", "originalText": "URI"}
        )
        SubElement(asked, "ParticipantObjectIDTypeCode", kind)
        query = b64encode(json.dumps(dict(detail), sort_keys=True).encode()).decode()
        SubElement(asked, "ParticipantObjectQuery").text = query
    return tostring(message, encoding="unicode")


def _code(code: str, meaning: str) -> dict[str, str]:
    return {"csd-code": code, "codeSystemName": "DCM", "originalText": meaning}
