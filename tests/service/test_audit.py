"""The audit trail: each event once in each form, by the standard's schema, rotated, for its owner only."""

from __future__ import annotations

import base64
import json
import re
import threading
from datetime import datetime
from xml.etree import ElementTree

import pytest

from indexer.errors import CbirError
from retrieval.service.audit import EVENTS, Audit

CODE = ("", "csd-code codeSystemName displayName? originalText")
# PS3.15, A.5.1: what an element may hold, in this order: child elements (?, *, +) and attributes (? optional)
SCHEMA = {
    "AuditMessage": (
        "EventIdentification ActiveParticipant+ AuditSourceIdentification ParticipantObjectIdentification*",
        "",
    ),
    "EventIdentification": (
        "EventID EventTypeCode* EventOutcomeDescription?",
        "EventActionCode? EventDateTime EventOutcomeIndicator",
    ),
    "ActiveParticipant": (
        "RoleIDCode* MediaIdentifier?",
        "UserID AlternativeUserID? UserName? UserIsRequestor NetworkAccessPointID? "
        "NetworkAccessPointTypeCode?",
    ),
    "AuditSourceIdentification": ("AuditSourceTypeCode*", "AuditEnterpriseSiteID? AuditSourceID"),
    "ParticipantObjectIdentification": (
        "ParticipantObjectIDTypeCode (ParticipantObjectName|ParticipantObjectQuery) ParticipantObjectDetail* "
        "ParticipantObjectDescription*",
        "ParticipantObjectID ParticipantObjectTypeCode? ParticipantObjectTypeCodeRole? "
        "ParticipantObjectDataLifeCycle? ParticipantObjectSensitivity?",
    ),
    "AuditSourceTypeCode": ("", "csd-code codeSystemName? displayName? originalText?"),
    "ParticipantObjectName": ("", ""),
    "ParticipantObjectQuery": ("", ""),
    "EventID": CODE,
    "EventTypeCode": CODE,
    "RoleIDCode": CODE,
    "ParticipantObjectIDTypeCode": CODE,
}


def check(element: ElementTree.Element) -> None:
    children, attributes = SCHEMA[element.tag]
    pattern = "".join(
        rf"(?:{names.strip('()')};){many}"
        for names, many in re.findall(r"(\([\w|]+\)|\w+)([?*+]?)", children)
    )
    held = "".join(f"{child.tag};" for child in element)
    assert re.fullmatch(pattern.replace("|", ";|"), held), (element.tag, held)
    known = {name.rstrip("?"): not name.endswith("?") for name in attributes.split()}
    assert element.attrib.keys() <= known.keys(), element.attrib
    assert {name for name, needed in known.items() if needed} <= element.attrib.keys(), element.attrib
    for child in element:
        check(child)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("outcome", ["success", "failure", "refused"])
def test_messages_follow_the_schema(tmp_path, event, outcome):
    audit = Audit(tmp_path / "audit")
    audit.record(event, "reader", outcome, address="127.0.0.1", patients=["p-1", "p-2"], k=10)
    (line,) = (tmp_path / "audit" / "dicom-audit.xml").read_text().splitlines()
    message = ElementTree.fromstring(line)
    check(message)
    code, meaning, action = EVENTS[event]
    assert message.find("EventIdentification/EventID").attrib == {
        "csd-code": code,
        "codeSystemName": "DCM",
        "originalText": meaning,
    }
    identification = message.find("EventIdentification").attrib
    assert identification["EventActionCode"] == action
    assert (
        identification["EventOutcomeIndicator"] == {"success": "0", "failure": "4", "refused": "8"}[outcome]
    )
    assert datetime.fromisoformat(identification["EventDateTime"]).tzinfo is not None
    assert message.find("ActiveParticipant").attrib["UserID"] == "reader"
    patients = [
        each.attrib["ParticipantObjectID"]
        for each in message.iter("ParticipantObjectIdentification")
        if each.attrib["ParticipantObjectTypeCodeRole"] == "1"
    ]
    assert patients == ["p-1", "p-2"]
    if event == "query":
        query = message.find(".//ParticipantObjectQuery").text
        assert json.loads(base64.b64decode(query)) == {"k": 10}


def test_the_schema_check_can_fail():
    with pytest.raises(AssertionError):
        check(ElementTree.fromstring("<AuditMessage><EventIdentification/></AuditMessage>"))
    with pytest.raises(AssertionError):
        check(ElementTree.fromstring('<AuditSourceIdentification AuditSourceID="x" Name="y"/>'))


def test_lines_say_who_did_what_to_whom(tmp_path):
    audit = Audit(tmp_path)
    audit.record("query", "reader", patients=["p-1"], k=5)
    audit.record("refused", "", "refused", status=401)
    first, second = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert (first["who"], first["event"], first["outcome"]) == ("reader", "query", "success")
    assert (first["patients"], first["k"]) == (["p-1"], 5)
    assert (second["who"], second["event"], second["status"]) == ("", "refused", 401)


def test_it_is_rotated_by_size_and_count_and_private(tmp_path):
    audit = Audit(tmp_path / "a", size=400, count=3)
    for n in range(100):
        audit.record("view", "reader", patients=[f"p-{n}"])
    names = sorted(path.name for path in (tmp_path / "a").iterdir() if path.name.startswith("audit.jsonl"))
    assert names in (
        [f"audit.jsonl{x}" for x in ("", ".1", ".2", ".3")],
        [f"audit.jsonl.{n}" for n in (1, 2, 3)],
    )
    newest = (tmp_path / "a" / "audit.jsonl.1").read_text().splitlines()
    older = (tmp_path / "a" / "audit.jsonl.2").read_text().splitlines()
    number = lambda line: int(json.loads(line)["patients"][0][2:])  # noqa: E731
    assert number(older[-1]) + 1 == number(newest[0])
    for path in (tmp_path / "a").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_size < 400 + 1500
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_many_threads_write_whole_lines(tmp_path):
    audit = Audit(tmp_path, size=5000, count=1000)
    threads = [
        threading.Thread(
            target=lambda i=i: [audit.record("view", f"t{i}", patients=[f"p-{n}"]) for n in range(50)]
        )
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [
        json.loads(line) for path in tmp_path.glob("audit.jsonl*") for line in path.read_text().splitlines()
    ]
    assert len({(line["who"], line["patients"][0]) for line in lines}) == len(lines) == 400


def test_a_trail_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CbirError, match="audit trail cannot be written"):
        Audit(tmp_path / "file" / "audit")
