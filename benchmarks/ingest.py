"""Indexing speed over the bare encoder's rate on the same slices, and memory against file count.

Both rates are taken in the same run, one after the other, on the same prepared slices: machines
are shared and noisy, so only their ratio says something. The better of several rounds counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import results
from indexer import discovery, readers, sandbox
from indexer.case_index import CaseIndex
from indexer.encoder import Encoder, load_encoder
from indexer.ingest import ingest
from indexer.labels import find_tables
from indexer.preprocess import Preprocessing, prepared
from indexer.sandbox import Sandbox, pool
from indexer.sandbox.pool import InProcess

COHORTS = ("volumes", "tcga-lgg", "figshare", "brats-lesions", "dicom-t1")
ROUNDS = 2
SLICES = 1500
"""Slices of a cohort that take part: the ratio needs no more."""

MEMORY = """
import resource, sys
from pathlib import Path
from indexer.case_index import CaseIndex
from indexer.encoder import load_encoder
from indexer.ingest import Threads, ingest
encoder = load_encoder("imagenet")
with CaseIndex.create(Path(sys.argv[1]), encoder) as index:
    report = ingest(index, [Path(p) for p in sys.argv[2:]], encoder)
print(report.slices, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def roots(folder: Path) -> list[Path]:
    """Files or folders of a cohort, few enough to hold about SLICES slices; single images all at once."""
    if folder.name == "figshare":
        return [folder]
    chosen: list[Path] = []
    slices = 0
    for source in discovery.discover(folder, find_tables(folder)[0]).sources:
        if slices >= SLICES:
            break
        slices += sum(len(scan) for scan in readers.read(source))
        chosen.append(source.path)
    return chosen


def bare(paths: list[Path], encoder: Encoder) -> tuple[int, float]:
    """Slices that the encoder sees for these paths, and the seconds it needs for them alone."""
    blocks, count, seconds = [], 0, 0.0

    def flush() -> None:
        nonlocal count, seconds
        batch = np.concatenate(blocks)
        start = time.perf_counter()
        encoder.encode(batch)
        seconds += time.perf_counter() - start
        count += len(batch)
        blocks.clear()

    for source in (s for path in paths for s in discovery.discover(path, find_tables(path)[0]).sources):
        for scan in readers.read(source):
            blocks.append(prepared(scan, Preprocessing.of(encoder)).pixels)
        if sum(map(len, blocks)) >= 256:
            flush()
    if blocks:
        flush()
    return count, seconds


def speed(paths: list[Path], encoder: Encoder) -> dict[str, Any]:
    """The better of several rounds of each, taken in turn."""
    indexing, alone = [], []
    for _ in range(ROUNDS):
        slices, seconds = bare(paths, encoder)
        alone.append(slices / seconds)
        with tempfile.TemporaryDirectory() as folder, CaseIndex.create(Path(folder) / "i", encoder) as index:
            report = ingest(index, paths, encoder)
            indexing.append(report.embedded / report.seconds)
    return {
        "slices": slices,
        "index_rate": round(max(indexing), 1),
        "encoder_rate": round(max(alone), 1),
        "ratio": round(max(indexing) / max(alone), 3),
    }


def isolation(paths: list[Path], encoder: Encoder) -> dict[str, float]:
    """What child processes cost: whole runs with them over runs without, in turn, as they are by default.

    Beside the time that passes stands the processor's, of all processes: it says the same on a busy
    machine. The processes are started before, once, which is told by itself.
    """
    first = next(s for path in paths for s in discovery.discover(path, find_tables(path)[0]).sources)
    seconds: dict[type[Sandbox], list[float]] = {Sandbox: [], InProcess: []}
    processor: dict[type[Sandbox], list[float]] = {Sandbox: [], InProcess: []}
    started: list[float] = []
    for _ in range(ROUNDS):
        for kind in seconds:
            with (
                pool.using(kind()),
                tempfile.TemporaryDirectory() as folder,
                CaseIndex.create(Path(folder) / "i", encoder) as index,
            ):
                started.append(spent())
                sandbox.prepare(first, Preprocessing.of(encoder))
                start = spent()
                started[-1] = start - started[-1]
                seconds[kind].append(ingest(index, paths, encoder).seconds)
                processor[kind].append(spent() - start)
    return {
        "run_ratio": round(min(seconds[Sandbox]) / min(seconds[InProcess]), 3),
        "processor_ratio": round(min(processor[Sandbox]) / min(processor[InProcess]), 3),
        "start_seconds": round(min(started[::2]) - min(started[1::2]), 2),
    }


def spent() -> float:
    """Seconds of the processor that this process and its children have taken so far."""
    own = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in (own, *own.children(recursive=True)))


def memory(paths: list[Path]) -> dict[str, int]:
    """Peak resident memory of indexing these paths in a process of its own, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", MEMORY, f"{folder}/i", *map(str, paths)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {"files": len(paths), "slices": int(out[0]), "peak_mb": round(int(out[1]) / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    encoder, default = load_encoder("imagenet"), load_encoder()
    encoder.encode(np.zeros((32, encoder.size, encoder.size), np.uint8))  # warm
    rates = {}
    for name in COHORTS:
        paths = roots(results.DATA / name)
        rates[name] = speed(paths, encoder) | isolation(paths, default)
        print(name, rates[name], flush=True)
    images = sorted((results.DATA / "figshare" / "images").iterdir())
    growth = [memory(images[:n]) for n in (500, 1000, 3000)]
    print(growth)
    results.save("ingest", {"speed": rates, "memory": growth}, encoder=encoder.version, rounds=ROUNDS)


if __name__ == "__main__":
    main()
