"""Bad luck and bad will, met inside the service: full disks, kills, links, what nobody asked for."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.errors import CbirError
from indexer.scan import Scan
from retrieval.service import intake, spool
from retrieval.service.inbox import TRIES, Inbox, Order
from retrieval.service.queries import Queries
from retrieval.service.scratch import BEGINNING, LOCK, Scratch
from retrieval.service.tokens import add_token
from retrieval.service.trail import Trail
from tests.service.test_service import Gated, told
from tests.support.images import phantom, write_nifti
from tests.support.service import done, sent, serving, zipped


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def client(filled: Path) -> Iterator[Any]:
    with serving(filled) as client:
        yield client


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return write_nifti(tmp_path / "new" / "N-01_t1ce.nii.gz", phantom(77, 4))


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def left(*folders: Path) -> list[str]:
    """Files with somebody's pixels."""
    return sorted(p.name for folder in folders for p in folder.rglob("*") if p.suffix in (".nii", ".gz"))


# ---- audit before the act ------------------------------------------------------------------------


def test_without_room_for_its_line_nothing_is_done_or_told(client, filled, new, monkeypatch):
    case = client.app.state.service.index.contents.case_ids[0]
    with monkeypatch.context() as patch:
        patch.setattr(Trail, "append", full)
        for reply in (
            client.delete(f"/cases/{case}"),
            client.post("/index", files=sent(new)),
            client.post("/query", files=sent(new)),
            client.get(f"/cases/{case}/volume.nii.gz"),
        ):
            assert reply.status_code == 500
            assert "audit trail cannot be written" in reply.json()["detail"]
            assert str(filled) not in reply.text
    assert client.get(f"/cases/{case}").status_code == 200, "it was not deleted"
    assert client.get("/jobs").json()["jobs"] == []
    assert client.get("/info").json()["cases"] == 6
    assert left(filled / "inbox", filled / "spool") == []
    assert client.delete(f"/cases/{case}").status_code == 200


class Narrow:
    """A disk that takes the lines of what is begun, and none of what has ended, until there is room."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.room, append = False, Trail.append

        def narrow(trail: Trail, record: Any, **options: Any) -> None:
            if record.get("act") and record["outcome"] != "begun" and not self.room:
                full()
            append(trail, record, **options)

        patch.setattr(Trail, "append", narrow)


@pytest.mark.parametrize("what", ["index", "remove"])
def test_an_outcome_for_which_there_is_no_room_is_owed(client, filled, new, monkeypatch, what):
    disk, trail = Narrow(monkeypatch), filled / "audit" / "audit.jsonl"
    case = client.app.state.service.index.contents.case_ids[0]
    if what == "index":
        job = done(client, client.post("/index", files=sent(new)))
    else:
        assert client.delete(f"/cases/{case}").status_code == 500
        (job,) = client.get("/jobs").json()["jobs"]
    assert job["state"] == "failed", "nobody hears of a success that is not written down"
    assert "audit trail cannot be written" in job["reason"]
    assert [line["outcome"] for line in told(trail)] == ["begun"]
    assert left(filled / "inbox") == []
    for reply in (client.post("/query", files=sent(new)), client.post("/index", files=sent(new))):
        assert reply.status_code == 500, "nothing is answered or begun before it is written"
        assert "audit trail cannot be written" in reply.json()["detail"]
    assert [line["outcome"] for line in told(trail)] == ["begun"]
    disk.room = True
    assert client.post("/query", files=sent(new)).status_code == 200
    lines = told(trail)
    assert [(line["event"], line["outcome"]) for line in lines] == [
        (what, "begun"),
        (what, "success"),
        ("query", "success"),
    ]
    assert lines[0]["act"] == lines[1]["act"] == job["job"]


def test_an_outcome_has_the_room_that_the_files_of_its_job_took(client, filled, new, monkeypatch):
    append = Trail.append

    def narrow(trail: Trail, record: Any, **options: Any) -> None:
        if left(filled / "inbox") and record["outcome"] == "success":
            full()
        append(trail, record, **options)

    monkeypatch.setattr(Trail, "append", narrow)
    assert done(client, client.post("/index", files=sent(new)))["state"] == "done"
    assert [line["outcome"] for line in told(filled / "audit" / "audit.jsonl")] == ["begun", "success"]


def test_what_is_owed_is_written_when_the_service_stops(filled, new, monkeypatch):
    disk = Narrow(monkeypatch)
    with serving(filled) as client:
        done(client, client.post("/index", files=sent(new)))
        disk.room = True
    assert [line["outcome"] for line in told(filled / "audit" / "audit.jsonl")] == ["begun", "success"]


def test_a_job_that_fails_unforeseen_has_its_lines(client, filled, new, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("Plantedname^Jane")

    with monkeypatch.context() as patch:
        patch.setattr(intake, "spool", fail)
        job = done(client, client.post("/index", files=sent(new)))
    lines = told(filled / "audit" / "audit.jsonl")
    assert [(line["event"], line["outcome"], line["act"]) for line in lines] == [
        ("index", "begun", job["job"]),
        ("index", "failure", job["job"]),
    ]


def test_every_refusal_has_its_line(filled, new, tmp_path):
    token = add_token(tmp_path / "tokens", "reader", "read")
    mine = {"Authorization": f"Bearer {token}"}
    with serving(filled, tokens=tmp_path / "tokens", strangers=10, max_upload=100_000) as client:
        client.get("/info")
        client.post("/index", headers=mine)
        client.post("/query", headers={**mine, "Origin": "http://evil.example"})
        client.get("/info", headers={**mine, "Host": "evil.example"})
        client.get("/info", headers={**mine, "Host": "["})
        client.post("/query", headers=mine, files={"file": ("a.nii", bytes(200_000))})
        statuses = [client.get("/info").status_code for _ in range(12)]
        assert statuses[-1] == 429
        mine_still = client.get("/info", headers=mine)
        assert mine_still.status_code == 200, "who has a token is not shut out"
    refused = told(filled / "audit" / "refused.jsonl")
    by_token = [(line["status"], line["route"]) for line in refused if line["who"] == "reader"]
    assert by_token == [(403, "/index"), (403, ""), (400, ""), (400, ""), (413, "")]
    assert {line["status"] for line in refused if not line["who"]} == {401, 429}
    assert not (filled / "audit" / "audit.jsonl").read_text(), "nothing of it is in the trail"


def test_an_address_is_believed_from_a_named_proxy_alone(filled, tmp_path):
    token = add_token(tmp_path / "tokens", "reader", "read")
    for proxies, expected in ((), None), (("127.0.0.1",), "198.51.100.7"):
        folder = tmp_path / f"audit-{len(proxies)}"
        with serving(filled, tokens=tmp_path / "tokens", proxies=proxies, audit=folder) as client:
            client._transport.client = ("127.0.0.1", 1)
            for said in ("198.51.100.7", "<b>any text</b>"):
                headers = {"X-Forwarded-For": said}
                client.get("/info", headers=headers)
                case = client.app.state.service.index.contents.case_ids[0]
                client.get(f"/cases/{case}", headers={**headers, "Authorization": f"Bearer {token}"})
        text = "".join(path.read_text() for path in folder.iterdir())
        assert "any text" not in text
        addresses = [line["address"] for line in told(folder / "audit.jsonl")]
        assert addresses == [expected or "127.0.0.1", "127.0.0.1"]


# ---- pixels that nobody needs any more -----------------------------------------------------------


def test_a_query_for_which_there_is_no_room_leaves_nothing(tmp_path, monkeypatch):
    scan = Scan(phantom(1), Path("a"), (1, 1, 3), np.diag([1.0, 1, 3, 1]))
    queries = Queries(tmp_path / "temporary", seconds=10)

    def some(scan: Scan, stream: Any) -> None:
        stream.write(b"pixels")
        full()

    monkeypatch.setattr("retrieval.service.queries.write_voxels", some)
    with pytest.raises(CbirError, match="disk is full"):
        queries.keep([scan], "a", "p-1")
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("failing", ["spool", "add"])
def test_a_job_that_fails_leaves_no_pixels(client, filled, tmp_path, monkeypatch, failing):
    for name in "ab":
        write_nifti(tmp_path / "study" / f"{name}_t1.nii.gz", phantom(ord(name)))
    real, seen = intake.spool, []

    def second_fails(index: Any, scans: Any) -> Any:
        seen.append(1)
        return real(index, scans) if len(seen) == 1 else full()

    with monkeypatch.context() as patch:
        if failing == "spool":
            patch.setattr(intake, "spool", second_fails)
        else:
            patch.setattr("cbir.index.Index.add", full)
        job = done(client, client.post("/index", files=zipped(tmp_path / "study")))
    assert job["state"] == "failed"
    assert left(filled / "spool", filled / "inbox", tmp_path / "temporary") == []


def test_the_sweep_at_the_start_knows_all_names_of_ours(client, filled, new):
    done(client, client.post("/index", files=sent(new)))
    folder = filled / "spool"
    (held,) = left(folder)
    stem = held.removesuffix(".nii.gz")
    other = "s-0123456789abcdef"
    for name in (
        f"{held}.new",
        f"{held}.123.part",
        f"{stem}.region.nii.gz.new",
        f"{other}.nii.gz",
        f"{other}-1.nii.gz",
        f"{other}.region.nii.gz",
        "notes of somebody.txt",
    ):
        (folder / name).write_bytes(b"pixels")
    spool.sweep(client.app.state.service._writer.case_index)
    assert sorted(path.name for path in folder.iterdir()) == sorted([held, "notes of somebody.txt"])


def test_a_spool_that_is_a_link_is_neither_swept_nor_written_to(filled, new, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "s-0123456789abcdef.nii.gz").write_bytes(b"mine")
    (filled / "spool").symlink_to(precious)
    with serving(filled) as client:
        job = done(client, client.post("/index", files=sent(new)))
        assert (job["state"], "is a link" in job["reason"]) == ("failed", True)
        case = client.app.state.service.index.contents.case_ids[0]
        assert client.delete(f"/cases/{case}").status_code == 200
    assert left(precious) == ["s-0123456789abcdef.nii.gz"]


# ---- what was accepted ---------------------------------------------------------------------------


def test_what_was_accepted_outlives_the_service(filled, tmp_path):
    """Twelve uploads are accepted while the first is held up; the service is stopped and started again."""
    encoder = Gated("writer")
    ids = []
    with serving(filled, encoder, queue=20) as client:
        for n in range(12):
            path = write_nifti(tmp_path / "new" / f"N-{n:02}_t1ce.nii.gz", phantom(200 + n, 3))
            reply = client.post("/index", files=sent(path))
            assert reply.status_code == 202, reply.text
            ids.append(reply.json()["job"])
            assert encoder.reached.wait(60)
        encoder.go.set()
    with serving(filled) as client:
        for job in ids:
            held = client.app.state.service.jobs.get(job)
            assert held is None or held.wait(60)
        assert client.get("/info").json()["cases"] == 6 + 12
        assert left(filled / "inbox") == []
        assert len(left(filled / "spool")) == 12
    lines = told(filled / "audit" / "audit.jsonl")
    for job in ids:
        outcomes = [line["outcome"] for line in lines if line["act"] == job]
        assert outcomes == ["begun", "success"]


@pytest.mark.slow
def test_what_was_accepted_outlives_a_kill(tmp_path, filled):
    """kill -9 while uploads wait, of a process that does nothing but accept."""
    program = f"""
import sys, threading, time
from pathlib import Path
from tests.service.test_service import Gated
from tests.support.service import sent, serving
with serving(Path({str(filled)!r}), Gated("writer"), queue=20) as client:
    for path in sorted(Path({str(tmp_path / "new")!r}).iterdir()):
        print(client.post("/index", files=sent(path)).status_code, flush=True)
    print("accepted", flush=True)
    time.sleep(60)
"""
    for n in range(3):
        write_nifti(tmp_path / "new" / f"N-{n:02}_t1ce.nii.gz", phantom(200 + n, 3))
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(4)] == ["202", "202", "202", "accepted"]
        process.send_signal(signal.SIGKILL)
        process.wait()
    with serving(filled) as client:
        deadline = time.monotonic() + 60
        while client.get("/info").json()["cases"] < 9 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.get("/info").json()["cases"] == 9


def test_what_ends_the_service_each_time_is_given_up_and_named(filled, tmp_path):
    inbox = Inbox(filled)
    order = Order("0123456789abcdef", "index", "writer", "", "2026-01-05T09:00:00", tries=TRIES)
    with inbox.receiving(order.id) as folder:
        write_nifti(folder / "N-01_t1.nii.gz", phantom(1))
        inbox.accept(order, folder)
    with serving(filled) as client:
        assert client.app.state.service.jobs.get(order.id).wait(60)
        job = client.get(f"/jobs/{order.id}").json()
        assert (job["state"], "ended each time" in job["reason"]) == ("failed", True)
        assert client.get("/info").json()["cases"] == 6
    assert left(filled / "inbox") == []
    assert told(filled / "audit" / "audit.jsonl")[-1]["outcome"] == "failure"


def test_an_upload_that_was_not_accepted_leaves_nothing(filled, new, monkeypatch):
    with serving(filled) as client:
        with monkeypatch.context() as patch:
            patch.setattr("retrieval.service.inbox.sync_all", full)
            reply = client.post("/index", files=sent(new))
            assert (reply.status_code, "disk is full" in reply.json()["detail"]) == (500, True)
        assert left(filled / "inbox") == []
        outcomes = [line["outcome"] for line in told(filled / "audit" / "audit.jsonl")]
        assert outcomes[:2] == ["begun", "failure"]
    (filled / "inbox" / ".new-left").mkdir(mode=0o700)
    (filled / "inbox" / ".new-left" / "x.nii").write_bytes(b"pixels")
    Inbox(filled)
    assert left(filled / "inbox") == []


# ---- several users on a machine ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["99999999999999999999999-x", "1-x", "left"])
def test_what_others_put_into_the_way_is_neither_followed_nor_removed(tmp_path, name):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / LOCK).write_text("mine")
    link = Path(tempfile.gettempdir()) / f"{BEGINNING}{name}"
    link.symlink_to(precious)
    file = Path(tempfile.gettempdir()) / f"{BEGINNING}file"
    file.write_text("a file")
    folder = Path(tempfile.gettempdir()) / f"{BEGINNING}folder"
    folder.mkdir()
    (folder / LOCK).symlink_to(precious / LOCK)
    scratch = Scratch()
    assert scratch.folder.stat().st_mode & 0o777 == 0o700
    scratch.close()
    assert (link.is_symlink(), file.exists(), (precious / LOCK).read_text()) == (True, True, "mine")
    assert folder.exists()


def test_own_folders_are_for_their_owner(client, filled, new):
    client.post("/query", files=sent(new))
    done(client, client.post("/index", files=sent(new)))
    service = client.app.state.service
    for folder in (service.scratch.folder, service.scratch.queries, filled / "spool", filled / "inbox"):
        assert folder.stat().st_mode & 0o077 == 0, folder


# ---- what nobody knows ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("POST", "/query?k=5"),
        ("GET", "/info?verbose=1"),
        ("GET", "/health?x=1"),
        ("GET", "/jobs?limit=3"),
        ("GET", "/cases/x/thumbnail.png?scan=1&scan=2"),
        ("DELETE", "/cases/x?force=1"),
    ],
)
def test_unknown_parameters_are_refused(standing, new, method, address):
    files = {"files": sent(new)} if method == "POST" else {}
    reply = standing.request(method, address, **files)
    assert reply.status_code == 422, reply.text
    assert re.search("no such parameter|several times", reply.json()["detail"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kk": "5"}, "there is no such field"),
        ({"labels": "{}"}, "there is no such field"),
        ({"k": ["5", "6"]}, "several times"),
        ({"k": "9" * 5000}, "k is not a number"),
        ({"k": "\u0663"}, "k is not a number"),
        ({"region": f"{'9' * 5000},0,1,1"}, "not inside its slices"),
        ({"region": f"0,0,1,1@{'9' * 5000}"}, "not inside its slices"),
    ],
)
def test_unknown_fields_and_endless_numbers_are_refused(standing, new, fields, words):
    reply = standing.post("/query", files=sent(new), data=fields)
    assert (reply.status_code, words in reply.json()["detail"]) == (422, True), reply.text


@pytest.mark.parametrize("name", ["\u00e4" * 300 + "_t1.nii.gz", "n" * 4000 + ".nii.gz"])
def test_endless_names_ask_and_are_filed(client, new, name):
    assert client.post("/query", files=sent(new, name)).status_code == 200
    assert done(client, client.post("/index", files=sent(new, name)))["state"] == "done"
    for address in (f"/cases/{'x' * 5000}", f"/queries/{'x' * 5000}/volume.nii.gz", f"/jobs/{'x' * 5000}"):
        assert client.get(address).status_code == 404


# ---- words of what was sent ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("participants.tsv", "participant_id\twho_grade\nPlantedname\t3\nPlantedname\t4\n"),
        ("participants.tsv", "Plantedcolumn\tPlantedcolumn\nPlantedname\t3\n"),
        ("participants.tsv", "participant_id,who_grade\nPlantedname"),
        ("cbir.json", '{"channels": "Plantedname"}'),
        ("cbir.json", '{"Plantedname": 1}'),
        ("cbir.json", '{"channels": ["Plantedname", Plantedname'),
        ("cbir.json", '{"stack": "Plantedname"}'),
    ],
)
def test_errors_repeat_no_word_of_an_archive(client, tmp_path, file, content):
    study = tmp_path / "study"
    write_nifti(study / "sub-1_t1.nii.gz", phantom(1))
    (study / file).write_text(content)
    (study / "Plantedfile.nii").write_bytes(b"x" * 400)
    answers = []
    for address in ("/query", "/index"):
        reply = client.post(address, files=zipped(study))
        answers.append(reply.text)
        if reply.status_code == 202:
            answers.append(json.dumps(done(client, reply)))
    answers.append(client.get("/jobs").text)
    for answer in answers:
        assert "planted" not in answer.lower()


def test_a_pacs_cannot_send_without_limit(tmp_path):
    import httpx

    from retrieval.service.orthanc import Limits, Orthanc, PacsError
    from retrieval.service.uploads import TooLarge

    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path.decode())
        if request.url.path.endswith("/file"):
            return httpx.Response(200, stream=httpx.ByteStream(bytes(1000)))
        instances = ["../../changes?x=1#", "b", "c"]
        tags = {"SeriesInstanceUID": "1.2.3", "Modality": "MR"}
        body = {"MainDicomTags": tags, "Instances": instances, "LastUpdate": "x", "IsStable": True}
        return httpx.Response(200, json=body)

    series = "0" * 8 + "-00000000" * 4

    def orthanc(**limits: Any) -> Orthanc:
        made = Orthanc("http://127.0.0.1:1", limits=dataclasses.replace(Limits(), **limits))
        made._http = httpx.Client(base_url="http://127.0.0.1:1", transport=httpx.MockTransport(answer))
        return made

    with pytest.raises(TooLarge, match="more than 2 images"):
        orthanc(files=2).series(series, tmp_path)
    with pytest.raises(TooLarge, match="more than 2,500 bytes"):
        orthanc(bytes=2500).series(series, tmp_path)
    with pytest.raises(PacsError, match="takes too long"):
        orthanc(seconds=-1.0).series(series, tmp_path)
    assert len(orthanc().series(series, tmp_path)) == 3
    assert "/instances/..%2F..%2Fchanges%3Fx%3D1%23/file" in asked, "its ids are quoted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrieval.service.orthanc.ANSWER", 10)
        with pytest.raises(PacsError, match="unlike Orthanc"):
            orthanc().describe(series)
    with pytest.raises(PacsError, match="takes too long"):
        orthanc(seconds=-1.0).describe(series)


def listing(body: bytes, apiece: int) -> list[str]:
    """What the list of all series is taken for, if it comes in pieces."""
    import httpx

    from retrieval.service.orthanc import Orthanc

    pieces = [body[i : i + apiece] for i in range(0, len(body), apiece)]
    with Orthanc("http://127.0.0.1:1") as made:
        made._http = httpx.Client(
            base_url="http://127.0.0.1:1",
            transport=httpx.MockTransport(lambda _: httpx.Response(200, content=iter(pieces))),
        )
        return made.all_series()


@pytest.mark.parametrize("apiece", [1, 7, 64, 10_000])
@pytest.mark.parametrize("number", [0, 1, 50])
@pytest.mark.parametrize("indent", [None, 3])
def test_the_list_of_all_series_is_read_as_it_comes(number, indent, apiece):
    names = [f"{i:08x}-{i:08x}-0-1-2" for i in range(number)]
    assert listing(json.dumps(names, indent=indent).encode() + b"\n", apiece) == names


@pytest.mark.parametrize(
    "body",
    [b'["a", "b"', b'["a", "b",', b'["a" "b"]', b'{"a": 1}', b'["a", 1]', b'["a"]]', b"", b'["a\\"b"]',
     b'"a"', b'["a", ' + b" " * 100_000 + b'"b"]', b'["' + b"x" * 65 + b'"]', b'["a\xff"]'],
)  # fmt: skip
def test_half_a_list_of_series_is_none(body):
    """What it lacks would be removed from the index."""
    from retrieval.service.orthanc import PacsError

    with pytest.raises(PacsError, match="unlike Orthanc"):
        listing(body, 8)


def test_a_pacs_may_not_list_series_without_end(monkeypatch):
    from retrieval.service.orthanc import PacsError

    monkeypatch.setattr("retrieval.service.orthanc.MOST_SERIES", 3)
    assert len(listing(b'["a","b","c"]', 4)) == 3
    with pytest.raises(PacsError, match="more than 3 series"):
        listing(b'["a","b","c","d"]', 4)
