"""The audit trail: each event once in each form, by the standard's schema, rotated, for its owner only."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import threading
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from indexer.errors import CbirError
from retrieval.service.audit import Audit, AuditError
from retrieval.service.audit_message import EVENTS, message
from retrieval.service.refusals import EACH, KINDS, WINDOW, Refusals
from retrieval.service.trail import Trail

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
    "EventOutcomeDescription": ("", ""),
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
@pytest.mark.parametrize("outcome", ["begun", "success", "failure", "refused"])
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
    indicators = {"begun": "0", "success": "0", "failure": "4", "refused": "8"}
    assert identification["EventOutcomeIndicator"] == indicators[outcome]
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
    audit.record("view", "", "refused", status=401)
    first, second = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert (first["who"], first["event"], first["outcome"]) == ("reader", "query", "success")
    assert (first["patients"], first["k"]) == (["p-1"], 5)
    assert (second["who"], second["event"], second["status"]) == ("", "view", 401)


def lines(folder: Path, name: str = "audit.jsonl") -> list[dict[str, Any]]:
    """All that a trail holds, the oldest first."""
    files = [*sorted(folder.glob(f"{name}.*")), folder / name]
    return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]


def agree(folder: Path, names: tuple[str, str] = ("audit.jsonl", "dicom-audit.xml")) -> bool:
    """Whether both forms say the same, line by line, file by file."""
    found = [sorted(folder.glob(f"{name}*")) for name in names]
    assert [p.name.removeprefix(names[0]) for p in found[0]] == [
        p.name.removeprefix(names[1]) for p in found[1]
    ]
    return all(
        [message(json.loads(line)) for line in told.read_text().splitlines()]
        == messages.read_text().splitlines()
        for told, messages in zip(*found, strict=True)
    )


def test_it_is_set_aside_by_size_and_nothing_is_dropped(tmp_path):
    audit = Audit(tmp_path / "a", size=400)
    for n in range(100):
        audit.record("view", "reader", patients=[f"p-{n}"])
    assert [line["patients"] for line in lines(tmp_path / "a")] == [[f"p-{n}"] for n in range(100)]
    assert agree(tmp_path / "a")
    assert len(list((tmp_path / "a").glob("audit.jsonl.*"))) > 10
    for path in (tmp_path / "a").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_size < 400 + 1500
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_many_threads_write_whole_lines(tmp_path):
    audit = Audit(tmp_path, size=5000)
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
    told = lines(tmp_path)
    assert len({(line["who"], line["patients"][0]) for line in told}) == len(told) == 400
    assert agree(tmp_path)


@pytest.mark.parametrize("place", ["file", "link"])
def test_a_trail_that_cannot_be_written_is_refused(tmp_path, place):
    if place == "file":
        (tmp_path / "file").write_text("")
        folder = tmp_path / "file" / "audit"
    else:  # somebody else's file would be written to
        folder = tmp_path / "audit"
        folder.mkdir()
        (tmp_path / "precious").write_text("precious")
        (folder / "audit.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(CbirError, match=r"audit trail cannot be written|cannot be made"):
        Audit(folder)
    assert place == "file" or (tmp_path / "precious").read_text() == "precious"


def test_the_folder_is_no_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "audit").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CbirError, match="is a link"):
        Audit(tmp_path / "audit")
    assert list((tmp_path / "elsewhere").iterdir()) == []


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", range(1, 9))
def test_a_write_that_fails_or_is_short_leaves_whole_lines_in_both_forms(tmp_path, monkeypatch, failing):
    """Every write takes a few bytes only; one of them finds the disk full."""
    audit = Audit(tmp_path)
    audit.record("view", "reader", patients=["p-1"])
    real, count = os.write, [0]

    def write(handle: int, text: bytes) -> int:
        count[0] += 1
        if count[0] == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, text[:97])

    with monkeypatch.context() as patch:
        patch.setattr("retrieval.service.trail.os.write", write)
        with pytest.raises(AuditError, match="cannot be written.*No space left"):
            audit.record("query", "reader", patients=["p-2"], k=10)
    assert [line["patients"] for line in lines(tmp_path)] == [["p-1"]]
    assert agree(tmp_path)
    audit.record("query", "reader", patients=["p-3"], k=10)
    assert [line["patients"] for line in lines(tmp_path)] == [["p-1"], ["p-3"]]
    assert agree(tmp_path)


@pytest.mark.parametrize("form", ["audit.jsonl", "dicom-audit.xml"])
@pytest.mark.parametrize("lost", [1, 50, 10_000])
def test_what_a_crash_left_is_mended(tmp_path, form, lost):
    """The end of one of the two is missing: as after a power cut."""
    audit = Audit(tmp_path, size=2**20)
    for n in range(3):
        audit.record("query", "reader", patients=[f"p-{n}"], k=n)
    path = tmp_path / form
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - lost)])
    Audit(tmp_path).record("view", "reader", patients=["p-9"])
    assert agree(tmp_path)
    patients = [line["patients"][0] for line in lines(tmp_path)]
    assert patients[-1] == "p-9"
    if form == "dicom-audit.xml":
        assert patients == ["p-0", "p-1", "p-2", "p-9"], "the other form knew it"


@pytest.mark.parametrize("aside", [0, 1])
def test_a_crash_while_files_are_set_aside_is_mended(tmp_path, aside):
    audit = Audit(tmp_path, size=300)
    for n in range(3):
        audit.record("view", "reader", patients=[f"p-{n}"])
    name = ("audit.jsonl", "dicom-audit.xml")[aside]
    last = sorted(tmp_path.glob(f"{name}.*"))[-1]
    last.rename(tmp_path / name)  # this one was not set aside yet
    audit = Audit(tmp_path, size=300)
    audit.record("view", "reader", patients=["p-9"])
    assert agree(tmp_path)
    assert [line["patients"][0] for line in lines(tmp_path)] == ["p-0", "p-1", "p-2", "p-9"]


def test_an_act_has_a_line_before_and_one_after(tmp_path):
    audit = Audit(tmp_path)
    act = audit.begin("remove", "admin", address="192.0.2.1", patients=["p-1"])
    assert [line["outcome"] for line in lines(tmp_path)] == ["begun"]
    act.end("success", ["p-1"], removed=1)
    before, after = lines(tmp_path)
    assert before["act"] == after["act"] == act.name
    assert (after["outcome"], after["removed"], after["address"]) == ("success", 1, "192.0.2.1")
    for line in (tmp_path / "dicom-audit.xml").read_text().splitlines():
        check(ElementTree.fromstring(line))
        assert act.name in line


# ---- refusals ------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_refusals_are_told_one_by_one_then_counted(tmp_path):
    clock = Clock()
    refusals = Refusals(tmp_path, clock=clock)
    for _ in range(36_000):
        refusals.record("", 401, address="192.0.2.7", method="GET", route="/info")
    told = lines(tmp_path, "refused.jsonl")
    assert len(told) == EACH
    clock.now = WINDOW + 2
    refusals.record("", 401, address="192.0.2.8", method="GET", route="/info")
    *_, counted, other = lines(tmp_path, "refused.jsonl")
    assert (counted["count"], counted["from"], counted["status"]) == (36_000 - EACH, "192.0.2.7", 401)
    assert other["address"] == "192.0.2.8"
    assert agree(tmp_path, ("refused.jsonl", "dicom-refused.xml"))


def test_refusals_from_everywhere_do_not_fill_the_disk_or_the_memory(tmp_path):
    refusals = Refusals(tmp_path, clock=Clock())
    for n in range(4 * KINDS):
        refusals.record("", 401, address=f"198.18.{n // 256}.{n % 256}")
    refusals.settle(all=True)
    told = lines(tmp_path, "refused.jsonl")
    assert len(told) <= KINDS + EACH + 1
    assert sum(line.get("count", 1) for line in told) == 4 * KINDS, "and none is lost"


def test_refusals_drop_their_own_old_files_and_nothing_of_the_trail(tmp_path):
    audit = Audit(tmp_path, size=500)
    audit.record("query", "reader", patients=["p-1"])
    for n in range(2000):
        audit.refusals.record("", 401, address=f"198.18.{n // 256}.{n % 256}")
    assert len(list(tmp_path.glob("refused.jsonl*"))) <= 9
    assert [line["patients"] for line in lines(tmp_path)] == [["p-1"]]


def test_a_refusal_stands_also_where_it_cannot_be_written(tmp_path, monkeypatch):
    refusals = Refusals(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Trail, "append", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        refusals.record("", 401, address="192.0.2.7")
    assert lines(tmp_path, "refused.jsonl") == []
