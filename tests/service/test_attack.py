"""Connections that wait, and an attack, against the server as it runs (``make attack``: longer, harder)."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cbir import create_index
from retrieval.service.audit_message import message
from retrieval.service.connections import OF_ONE
from retrieval.service.tokens import add_token
from tests.support.attack import ask, attacked, connection
from tests.support.images import phantom, write_nifti
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

ASK = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms embedded by the encoder that comes with cbir."""
    root = tmp_path_factory.mktemp("attacked")
    lines = ["participant_id\twho_grade"]
    for i in range(5):
        lines.append(f"P-{i:02}\t{2 + i % 3}")
        write_nifti(root / "mri" / f"P-{i:02}" / f"P-{i:02}_t1ce.nii.gz", phantom(i, 2 + i % 3))
    (root / "mri" / "participants.tsv").write_text("\n".join(lines) + "\n")
    with create_index(root / "index") as made:
        made.add(root / "mri", calibrate=False)
    return root / "index"


@contextmanager
def server(index: Path, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """The command itself: its port and process."""
    (folder / "tmp").mkdir()
    command = [sys.executable, "-m", "retrieval.cli", "serve", "--port", "0", "--index", str(index)]
    command += ["--tokens", str(folder / "tokens"), "--audit", str(folder / "audit")]
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT)}
    log = folder / "stderr"  # a pipe that nobody reads would stop who writes to it
    with log.open("w") as told, subprocess.Popen(command, stderr=told, env=environment) as process:
        try:
            end = time.monotonic() + 120
            while not (found := re.search(r"http://127\.0\.0\.1:(\d+) ", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end
                time.sleep(0.05)
            yield int(found[1]), psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def running(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    folder = tmp_path_factory.mktemp("running")
    add_token(folder / "tokens", "nobody-uses-it", "read")
    with server(index, folder) as (port, _):
        yield port, folder


def closed(one: socket.socket, within: float) -> bool:
    """Whether the other side closes in time."""
    one.settimeout(within)
    try:
        while one.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


# ---- connections ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: 127.",
        ASK + b"GET /health HTTP/1.1\r\n",
        b"POST /query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\nx",
    ],
)
def test_who_never_ends_a_request_is_not_waited_for(running: tuple[int, Path], begun: bytes) -> None:
    """Within the ten seconds that headers may take, also where a byte comes now and then."""
    with connection(running[0], "127.0.0.9") as one:
        one.sendall(begun)
        end = time.monotonic() + 25
        while time.monotonic() < end:
            try:
                one.sendall(b"x")
            except OSError:
                return
            if closed(one, 0.5):
                return
        raise AssertionError("it is still open")


def test_a_thousand_idle_connections_shut_nobody_out(running: tuple[int, Path]) -> None:
    """From one address, and then from many."""
    port, _ = running
    for addresses in (["127.66.6.6"], [f"127.66.{n // 200}.{n % 200 + 1}" for n in range(700)]):
        held = []
        for n in range(700):
            held.append(connection(port, addresses[n % len(addresses)]))
        for good in ("127.0.0.1", "127.0.0.1", addresses[0]):
            with connection(port, good, timeout=10) as one:
                one.sendall(ASK)
                assert one.recv(100).startswith(b"HTTP/1.1 200"), good
        for one in held:
            one.close()


def reply(asking: socket.socket) -> bytes:
    """One whole answer, in however many pieces it comes."""
    received = b""
    while not received.rstrip().endswith(b"}"):
        piece = asking.recv(4096)
        if not piece:
            break
        received += piece
    return received


def test_who_asks_is_not_closed_for_who_waits(running: tuple[int, Path]) -> None:
    port, _ = running
    with connection(port, "127.77.0.1", timeout=10) as asking:
        asking.sendall(ASK)
        assert reply(asking).startswith(b"HTTP/1.1 200")
        held = [connection(port, "127.77.0.1") for _ in range(70)]
        asking.sendall(ASK)
        assert reply(asking).startswith(b"HTTP/1.1 200"), "those that never asked went first"
        for one in held:
            one.close()


def test_what_is_closed_before_it_is_a_request_has_its_line(running: tuple[int, Path]) -> None:
    """What is no HTTP, headers that never end, connections beyond the limit of an address, no place."""
    port, folder = running
    with connection(port, "127.88.0.1") as one:
        one.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert one.recv(100).startswith(b"HTTP/1.1 400")
    with connection(port, "127.88.0.2") as one:
        one.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        assert closed(one, 25)
    held = [connection(port, "127.88.0.3") for _ in range(OF_ONE + 3)]
    for one in held[:3]:
        assert closed(one, 10)
    for one in held:
        one.close()
    with connection(port, "127.88.0.4") as one:
        one.sendall(b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert one.recv(100).startswith(b"HTTP/1.1 404")
    with connection(port, "127.88.0.5") as one:  # it was silent, and asked for nothing
        assert closed(one, 25)
    lines = [json.loads(line) for line in (folder / "audit" / "refused.jsonl").read_text().splitlines()]
    found = Counter((line["address"], line["status"]) for line in lines if "address" in line)
    assert {key: n for key, n in found.items() if key[0].startswith("127.88.0.")} == {
        ("127.88.0.1", 400): 1,
        ("127.88.0.2", 408): 1,
        ("127.88.0.3", 503): 3,
        ("127.88.0.4", 404): 1,
    }
    assert whole(folder / "audit")


# ---- the attack ----------------------------------------------------------------------------------


def lines_of(folder: Path, name: str) -> list[str]:
    """Of a file of the trail, with those that were put aside when it was long, oldest first."""
    parts = [*sorted(folder.glob(f"{name}.*")), folder / name]
    return [line for part in parts for line in part.read_text().splitlines()]


def whole(folder: Path) -> bool:
    """Whether both forms of the trail, and of refusals, agree in every line."""
    for told, messages in (("audit.jsonl", "dicom-audit.xml"), ("refused.jsonl", "dicom-refused.xml")):
        if [message(json.loads(line)) for line in lines_of(folder, told)] != lines_of(folder, messages):
            return False
    return True


def test_good_clients_are_answered_during_an_attack(
    index: Path, tmp_path: Path, measured: Callable[..., None]
) -> None:
    """With ``CBIR_ATTACK``, for so many seconds, after a fifth of them without an attack."""
    seconds = float(os.environ.get("CBIR_ATTACK", "0"))
    before_it = {"seconds": seconds / 5} if seconds else {"each": 4}
    during = {"seconds": seconds} if seconds else {"each": 4}
    tokens = {who: add_token(tmp_path / "tokens", who, "read") for who in ("good", "bad")}
    scan = write_nifti(tmp_path / "N-01_t1ce.nii.gz", phantom(9, 3))
    shutil.copytree(index, tmp_path / "index", ignore=shutil.ignore_patterns("service.lock", "audit"))
    with server(tmp_path / "index", tmp_path) as (port, process):
        ask(port, tokens["good"], scan, 8, 1)  # warm
        load = os.getloadavg()[0]
        alone = ask(port, tokens["good"], scan, 8, **before_it)
        before = process.memory_info().rss
        with attacked(port, tokens["bad"], seed=int(seconds)) as done:
            under = ask(port, tokens["good"], scan, 8, **during)
        rest = ask(port, tokens["good"], scan, 8, 1)
        after = process.memory_info().rss
        open_files = process.num_fds()
    figures = {
        "attacks": dict(done),
        "seconds": seconds,
        "p99_alone": round(alone.quantile(0.99), 2),
        "p99_attacked": round(under.quantile(0.99), 2),
        "ratio": round(under.quantile(0.99) / alone.quantile(0.99), 2),
        "answers": under.statuses.total(),
        "errors": under.statuses.total() - under.statuses[200],
        "mib_before": round(before / 2**20),
        "mib_after": round(after / 2**20),
        "load": round(load, 1),
    }
    print(json.dumps(figures))
    for asked in (alone, under, rest):
        assert set(asked.statuses) == {200}, figures
    assert min(done[kind] for kind in ("idle", "slow", "flood", "damaged", "poison")) > 0, figures
    assert open_files < 200, "what was held is let go"
    assert len((tmp_path / "stderr").read_text().splitlines()) < 20, "nobody fills the log"
    assert whole(tmp_path / "audit")
    genuine = [json.loads(line) for line in lines_of(tmp_path / "audit", "audit.jsonl")]
    answered = [line for line in genuine if (line["who"], line["outcome"]) == ("good", "success")]
    asked_for = 2 * 8 + alone.statuses.total() + under.statuses.total()
    assert len(answered) == asked_for, "each question has its line"
    assert {line["who"] for line in genuine} == {"good", "bad"}
    refused = "".join(lines_of(tmp_path / "audit", "refused.jsonl"))
    assert '"from": "127.66.6.6"' in refused or '"address": "127.66.6.6"' in refused
    if seconds:  # a share of a busy machine says nothing in a short run
        measured("attack", figures)
        assert figures["ratio"] <= 3, figures
        assert after < before + 200 * 2**20, figures
