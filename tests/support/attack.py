"""Nobody and one reader against a running service, while others ask: bounded in count and time, on loopback.

Strangers and clients come from addresses of their own (127.0.0.0/8). What they do is drawn from a seed.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import socket
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

HOST = "127.0.0.1"
STRANGER, READER = "127.66.6.6", "127.55.5.5"


@dataclass
class Good:
    """What clients saw who ask without pause.

    Attributes
    ----------
    seconds : list of float
        For each answer.
    statuses : Counter
        Of answers; what could not be asked is 0.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def quantile(self, q: float) -> float:
        """Seconds within which this share was answered."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def ask(
    port: int, token: str, scan: Path, clients: int, each: int = 1, *, seconds: float | None = None
) -> Good:
    """Clients that ask at the same time, each so often or so long, each from an address of its own."""
    good, lock = Good(), threading.Lock()
    end = None if seconds is None else time.monotonic() + seconds
    content = scan.read_bytes()

    def before_the_end(_: int) -> bool:
        return end is None or time.monotonic() < end

    def one(number: int) -> None:
        transport = httpx.HTTPTransport(local_address=f"127.0.1.{number + 1}")
        headers = {"Authorization": f"Bearer {token}"}
        url = f"http://{HOST}:{port}"
        with httpx.Client(
            base_url=url, transport=transport, headers=headers, timeout=120, trust_env=False
        ) as http:
            for _ in range(each) if end is None else itertools.takewhile(before_the_end, itertools.count()):
                begun = time.monotonic()
                try:
                    status = http.post("/query", files={"file": (scan.name, content)}).status_code
                except httpx.HTTPError:
                    status = 0
                with lock:
                    good.seconds.append(time.monotonic() - begun)
                    good.statuses[status] += 1

    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return good


@contextmanager
def attacked(
    port: int, token: str, *, seed: int = 0, idle: int = 600, threads: int = 1
) -> Iterator[Counter[str]]:
    """While within, a service is attacked; what was done is counted."""
    over, done = threading.Event(), Counter[str]()
    attacks: list[Callable[[random.Random], None]] = [
        lambda rng: _flood(port, rng, done),
        lambda rng: _damaged(port, rng, done),
        lambda rng: _poison(port, token, rng, done),
    ]
    holders = [
        threading.Thread(target=_hold, args=(port, idle, over, done)),
        threading.Thread(target=_slow, args=(port, token, over, done)),
    ]

    def again_and_again(attack: Callable[[random.Random], None], number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        while not over.is_set():
            with contextlib.suppress(OSError):
                attack(rng)
            over.wait(0.02)  # a machine that only attacks shows how fast it attacks

    holders += [
        threading.Thread(target=again_and_again, args=(attack, number))
        for number, attack in enumerate(attacks)
    ]
    for thread in holders:
        thread.start()
    try:
        yield done
    finally:
        over.set()
        for thread in holders:
            thread.join()


def connection(port: int, address: str, timeout: float = 2.0) -> socket.socket:
    """A connection from an address of loopback."""
    return socket.create_connection((HOST, port), timeout, source_address=(address, 0))


def _hold(port: int, count: int, over: threading.Event, done: Counter[str]) -> None:
    """Keep connections open that ask nothing, or never end their headers."""
    held: list[socket.socket] = []
    while not over.is_set():
        with contextlib.suppress(OSError):
            one = connection(port, STRANGER)
            if len(held) % 2:
                one.sendall(b"POST /query HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
            held.append(one)
            done["idle"] += 1
        if len(held) >= count:
            held.pop(0).close()
            over.wait(0.01)
    for one in held:
        one.close()


def _slow(port: int, token: str, over: threading.Event, done: Counter[str]) -> None:
    """Post with a token, a byte at a time, as often as there is room for."""
    held: list[socket.socket] = []
    head = (
        f"POST /query HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n--x\r\n"
    ).encode()
    while not over.is_set():
        if len(held) < 60:
            with contextlib.suppress(OSError):
                one = connection(port, READER)
                one.sendall(head)
                held.append(one)
                done["slow"] += 1
        for one in list(held):
            try:
                one.sendall(b"x")
            except OSError:
                held.remove(one)
                one.close()
        over.wait(0.05)
    for one in held:
        one.close()


def _flood(port: int, rng: random.Random, done: Counter[str]) -> None:
    """Ask without a token, with long and lying headers."""
    with connection(port, STRANGER) as one:
        for _ in range(20):
            lie = f"X-Forwarded-For: {rng.randbytes(2000).hex()}\r\nAuthorization: Bearer {rng.random()}\r\n"
            path = rng.choice(("/info", "/query", "/cases/x", "/health"))
            one.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lie}\r\n".encode())
            if not one.recv(4096):
                break
            done["flood"] += 1


def _damaged(port: int, rng: random.Random, done: Counter[str]) -> None:
    """Send what is no request, or one of another site."""
    texts = (
        rng.randbytes(300),
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"POST /query HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: null\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /index HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"GET /" + b"x" * 70_000,
    )
    with connection(port, STRANGER) as one:
        one.sendall(rng.choice(texts))
        one.recv(4096)
        done["damaged"] += 1


def _poison(port: int, token: str, rng: random.Random, done: Counter[str]) -> None:
    """Post with a token what is damaged, or more than it seems."""
    files = {
        "a.nii": bytes(rng.randrange(400)),
        "a.nii.gz": b"\x1f\x8b" + rng.randbytes(200),
        "a.dcm": bytes(128) + b"DICM" + rng.randbytes(500),
        "a.png": b"\x89PNG\r\n\x1a\n" + rng.randbytes(200),
        "a.zip": _zip({"x" * 60 + f"/{n}.nii": bytes(10_000) for n in range(50)}),
        "b.zip": b"PK\x03\x04" + rng.randbytes(200),
        "cbir.zip": _zip({"cbir.json": b'{"channels": 1}', "a.nii": b"x"}),
    }
    name = rng.choice(sorted(files))
    transport = httpx.HTTPTransport(local_address=READER)
    with (
        httpx.Client(transport=transport, timeout=30, trust_env=False) as http,
        contextlib.suppress(httpx.HTTPError),
    ):
        http.post(
            f"http://{HOST}:{port}/query",
            files={"file": (name, files[name])},
            data={"k": rng.choice(("5", "9" * 5000, "x"))},
            headers={"Authorization": f"Bearer {token}"},
        )
        done["poison"] += 1


def _zip(members: dict[str, bytes]) -> bytes:
    with io.BytesIO() as out:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return out.getvalue()
