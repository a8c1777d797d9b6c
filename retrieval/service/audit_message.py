"""An event as DICOM audit message (PS3.15, A.5)."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

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

OUTCOMES = {"begun": "0", "success": "0", "failure": "4", "refused": "8"}
"""Outcome to EventOutcomeIndicator: success, minor failure, serious failure.

What was begun has no outcome yet: an EventOutcomeDescription says so, and names the act that the outcome
will name.
"""

_OWN = ("time", "who", "event", "outcome", "address", "patients", "act")


def message(record: Mapping[str, Any]) -> str:
    """An AuditMessage by the schema of PS3.15, A.5.1, on one line.

    Parameters
    ----------
    record : mapping
        An event as it is in the JSON form: ``time`` (ISO 8601), ``event`` and ``outcome`` (keys of `EVENTS`
        and `OUTCOMES`), ``who``, ``address``, ``patients`` (pseudonyms), and numbers and fixed words of
        its own. An act that has a beginning and an end has its name as ``act`` in both.
    """
    event, outcome, address = record["event"], record["outcome"], record.get("address", "")
    detail = {name: value for name, value in record.items() if name not in _OWN}
    code, meaning, action = EVENTS[event]
    message = Element("AuditMessage")
    identification = SubElement(
        message,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=record["time"],
        EventOutcomeIndicator=OUTCOMES[outcome],
    )
    SubElement(identification, "EventID", _code(code, meaning))
    if event == "refused":
        SubElement(identification, "EventTypeCode", _code("110132", "Use of Restricted Function"))
    if "act" in record:
        words = f"{'begun' if outcome == 'begun' else 'ended'}: {record['act']}"
        SubElement(identification, "EventOutcomeDescription").text = words
    person = SubElement(message, "ActiveParticipant", UserID=record["who"], UserIsRequestor="true")
    if address:
        person.attrib |= {"NetworkAccessPointID": address, "NetworkAccessPointTypeCode": "2"}
    if event == "query":
        SubElement(person, "RoleIDCode", _code("110153", "Source Role ID"))
        service = SubElement(message, "ActiveParticipant", UserID="cbir", UserIsRequestor="false")
        SubElement(service, "RoleIDCode", _code("110152", "Destination Role ID"))
    source = SubElement(message, "AuditSourceIdentification", AuditSourceID="cbir")
    SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})
    for patient in record["patients"]:
        _add_patient(message, patient)
    if event in ("query", "refused"):
        _add_asked(message, event, detail)
    return tostring(message, encoding="unicode")


def _add_patient(message: Element, patient: str) -> None:
    person = SubElement(
        message,
        "ParticipantObjectIdentification",
        ParticipantObjectID=patient,
        ParticipantObjectTypeCode="1",
        ParticipantObjectTypeCodeRole="1",
    )
    kind = {"csd-code": "2", "codeSystemName": "RFC-3881", "originalText": "Patient Number"}
    SubElement(person, "ParticipantObjectIDTypeCode", kind)
    SubElement(person, "ParticipantObjectName").text = patient


def _add_asked(message: Element, event: str, detail: Mapping[str, Any]) -> None:
    asked = SubElement(
        message,
        "ParticipantObjectIdentification",
        ParticipantObjectID="cbir",
        ParticipantObjectTypeCode="2",
        ParticipantObjectTypeCodeRole="24" if event == "query" else "13",
    )
    address = {"csd-code": "12", "codeSystemName": "RFC-3881", "originalText": "URI"}
    kind = _code("110181", "SOP Class UID") if event == "query" else address
    SubElement(asked, "ParticipantObjectIDTypeCode", kind)
    query = b64encode(json.dumps(detail, sort_keys=True).encode()).decode()
    SubElement(asked, "ParticipantObjectQuery").text = query


def _code(code: str, meaning: str) -> dict[str, str]:
    return {"csd-code": code, "codeSystemName": "DCM", "originalText": meaning}
