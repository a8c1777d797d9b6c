"""The service under load, and a warm query over the bare encoder.

Warm: one client asks with a volume of 155 slices; the same prepared slices go through the encoder alone,
in turn, in the same run. Machines are shared and noisy, so only the ratio says something.

Load: clients ask without pause with single images, at first alone (idle), then while another client
fills the index with the rest of the cohort and with volumes, takes cases out and begins anew. A client
that is sent away with 503 comes again after Retry-After; the time counts. Resident memory of the server is
sampled all along.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks import results
from indexer import discovery
from indexer.case_index import CaseIndex
from indexer.encoder import Encoder, load_encoder
from indexer.ingest import ingest
from indexer.preprocess import Preprocessing, prepared

BASE = 1000
"""Images that are indexed before the service starts."""
ASKING = 64
"""Images that clients ask with; they are not in the index."""
ZIP = 32
"""Images that are sent to the index together."""


@contextmanager
def served(index: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server on a free port of loopback: its address and process."""
    command = [sys.executable, "-m", "retrieval.cli", "serve", "--index", str(index), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = re.search(r"http://\S+", server.stderr.readline())
            assert found is not None, server.stderr.read()
            yield found[0], psutil.Process(server.pid)
        finally:
            server.terminate()


# ---- warm ----------------------------------------------------------------------------------------


def warm(encoder: Encoder, folder: Path, rounds: int) -> dict[str, Any]:
    """A query over HTTP and the encoder alone, in turn."""
    volumes = results.DATA / "volumes"
    paths = sorted(volumes.rglob("*_t1ce.nii.gz"))
    asking = paths[-1]
    with CaseIndex.create(folder / "warm", encoder) as index:
        ingest(index, [path.parent for path in paths[:-1]], encoder)
    (scan,) = discovery.read(asking)
    ready = prepared(scan, Preprocessing.of(encoder))
    pixels = ready.pixels[ready.views == 0]
    content = asking.read_bytes()
    asked, alone = [], []
    with served(folder / "warm") as (address, _), httpx.Client(base_url=address, timeout=120) as http:
        for turn in range(rounds + 1):
            start = time.perf_counter()
            encoder.encode(pixels)
            between = time.perf_counter()
            reply = http.post("/query", files={"file": (asking.name, content)})
            end = time.perf_counter()
            reply.raise_for_status()
            if turn:  # the first is not warm
                alone.append(between - start)
                asked.append(end - between)
    return {
        "slices": len(scan),
        "slices_embedded": len(pixels),
        "query_seconds": round(statistics.median(asked), 3),
        "encoder_seconds": round(statistics.median(alone), 3),
        "ratio": round(statistics.median(a / b for a, b in zip(asked, alone, strict=True)), 3),
    }


# ---- load ----------------------------------------------------------------------------------------


class Load:
    """Clients that ask without pause, and what became of their questions."""

    def __init__(self, address: str, images: list[Path], clients: int) -> None:
        self._address = address
        self._images = [(path.name, path.read_bytes()) for path in images]
        self._clients = clients

    async def run(self, queries: int, seconds: float) -> dict[str, Any]:
        """Ask until so many questions were answered or the time is over."""
        self._left, self._end = queries, time.monotonic() + seconds
        self._times: list[float] = []
        self._waits, self._errors = 0, []
        begun = time.monotonic()
        limits = httpx.Limits(max_connections=self._clients)
        async with httpx.AsyncClient(base_url=self._address, timeout=300, limits=limits) as http:
            await asyncio.gather(*(self._client(http, n) for n in range(self._clients)))
        p50, p99 = np.percentile(self._times, (50, 99))
        return {
            "queries": len(self._times),
            "seconds": round(time.monotonic() - begun, 1),
            "errors": len(self._errors),
            "first_error": self._errors[0] if self._errors else None,
            "sent_away": self._waits,
            "p50": round(float(p50), 3),
            "p99": round(float(p99), 3),
            "longest": round(max(self._times), 3),
        }

    async def _client(self, http: httpx.AsyncClient, number: int) -> None:
        for image in itertools.islice(itertools.cycle(self._images), number, None):
            if self._left <= 0 or time.monotonic() > self._end:
                return
            self._left -= 1
            start = time.perf_counter()
            try:
                reply = await http.post("/query", files={"file": image})
                while reply.status_code == 503 and "retry-after" in reply.headers:
                    self._waits += 1
                    await asyncio.sleep(int(reply.headers["retry-after"]))
                    reply = await http.post("/query", files={"file": image})
                if reply.status_code != 200 or not reply.json()["hits"]:
                    self._errors.append(f"{reply.status_code} {reply.text[:200]}")
            except httpx.HTTPError as error:
                self._errors.append(type(error).__name__)
            self._times.append(time.perf_counter() - start)


class Filling(threading.Thread):
    """Fills the index with the cohort, takes it out again, and begins anew, until it is stopped."""

    def __init__(self, address: str, images: list[Path], volumes: list[Path]) -> None:
        super().__init__(daemon=True)
        self._address = address
        groups = [images[i : i + ZIP] for i in range(0, len(images), ZIP)]
        patients = [sorted(volume.glob("*.nii.gz")) for volume in volumes]
        self._uploads = [group for pair in itertools.zip_longest(groups, patients) for group in pair if group]
        self.stopped = threading.Event()
        self.counts = {"jobs": 0, "series": 0, "slices": 0, "removed": 0, "failed": 0}

    def run(self) -> None:
        """Work."""
        with httpx.Client(base_url=self._address, timeout=600) as http:
            held = self._cases(http)
            while not self.stopped.is_set():
                for files in self._uploads:
                    self._index(http, files)
                    if self.stopped.is_set():
                        return
                for case in self._cases(http) - held:
                    self.counts["removed"] += http.delete(f"/cases/{case}").json().get("removed", 0)
                    if self.stopped.is_set():
                        return

    def _index(self, http: httpx.Client, files: list[Path]) -> None:
        with io.BytesIO() as out:
            with zipfile.ZipFile(out, "w") as archive:
                for file in files:
                    archive.write(file, file.name)
            reply = http.post("/index", files={"file": ("upload.zip", out.getvalue())})
        if reply.status_code == 503:
            time.sleep(int(reply.headers["retry-after"]))
            return
        job = reply.json()["job"]
        while (told := http.get(f"/jobs/{job}").json())["state"] in ("queued", "running"):
            time.sleep(0.2)
        self.counts["jobs"] += 1
        if told["state"] == "failed":
            self.counts["failed"] += 1
        else:
            self.counts["series"] += told["report"]["indexed"]
            self.counts["slices"] += told["report"]["embedded"]

    def _cases(self, http: httpx.Client) -> set[str]:
        any_case = http.post("/query", files={"file": _file(self._uploads[0][0])}, data={"k": "1000"})
        return {hit["case_id"] for hit in any_case.json()["hits"]}


class Memory(threading.Thread):
    """Resident memory of a process, once a second."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._process = process
        self.stopped = threading.Event()
        self.samples: list[float] = []

    def run(self) -> None:
        """Look."""
        while True:
            self.samples.append(self._process.memory_info().rss / 2**20)
            if self.stopped.wait(1.0):
                return

    def summary(self) -> dict[str, Any]:
        """MiB while indexing: before, then the mean of each fifth of the time, and the most."""
        fifths = np.array_split(np.array(self.samples[1:]), 5)
        return {
            "before": round(self.samples[0]),
            "fifths": [round(float(fifth.mean())) for fifth in fifths if len(fifth)],
            "most": round(max(self.samples)),
        }


def _file(path: Path) -> tuple[str, bytes]:
    return path.name, path.read_bytes()


def load(encoder: Encoder, folder: Path, queries: int, clients: int, minutes: float) -> dict[str, Any]:
    """The same clients alone, and beside a writer."""
    images = sorted((results.DATA / "figshare" / "images").iterdir())
    base, asking, rest = images[:BASE], images[BASE : BASE + ASKING], images[BASE + ASKING :]
    with CaseIndex.create(folder / "load", encoder) as index:
        ingest(index, base, encoder)
    volumes = sorted(path for path in (results.DATA / "volumes").iterdir() if path.is_dir())
    with served(folder / "load") as (address, process):
        asked = Load(address, asking, clients)
        asyncio.run(asked.run(2 * clients, 60))  # warm
        idle = asyncio.run(asked.run(max(queries // 4, 4 * clients), minutes * 60))
        print("idle", idle, flush=True)
        memory = Memory(process)
        memory.start()
        filling = Filling(address, rest, volumes)
        filling.start()
        loaded = asyncio.run(asked.run(queries, minutes * 60))
        filling.stopped.set()
        filling.join(600)
        memory.stopped.set()
        memory.join()
    return {
        "clients": clients,
        "idle": idle,
        "while_indexing": loaded,
        "p99_ratio": round(loaded["p99"] / idle["p99"], 2),
        "filled": filling.counts,
        "memory_mib": memory.summary(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=5000, help="questions while indexing, at most")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10, help="of questions while indexing, at most")
    parser.add_argument("--rounds", type=int, default=12, help="warm queries")
    parser.add_argument("--dry", action="store_true", help="write no result")
    options = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    encoder = load_encoder()
    with tempfile.TemporaryDirectory() as folder:
        warmth = warm(encoder, Path(folder), options.rounds)
        print("warm", warmth, flush=True)
        under = load(encoder, Path(folder), options.queries, options.clients, options.minutes)
    print("load", under, flush=True)
    if not options.dry:
        results.save("service", {"warm": warmth, "load": under}, encoder=encoder.version)


if __name__ == "__main__":
    main()
