"""How long reading a DICOM series takes, over the time that dcm2niix needs to convert it.

Both are taken in turn in one run, on files that are in memory: machines are shared and noisy, so only the
ratio says something. The best of several rounds counts. Reading is discovery and volumes in an interpreter
that is warm; dcm2niix is a process that writes uncompressed NIfTI.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import peers, results, series
from indexer import discovery

ROUNDS = 5


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def reading(folder: Path) -> None:
    """Discover a folder and read all that is in it."""
    for source in discovery.discover(folder).sources:
        discovery.read(source)


def converting(folder: Path) -> None:
    """Let dcm2niix convert a folder."""
    with tempfile.TemporaryDirectory() as out:
        peers.convert(folder, Path(out))


def speed(folder: Path, rounds: int) -> dict[str, Any]:
    """Both, the best of several rounds each."""
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(timed(lambda: converting(folder)))
        ours.append(timed(lambda: reading(folder)))
    return {
        "files": sum(file.is_file() for file in folder.rglob("*")),
        "reading_ms": round(1000 * min(ours), 1),
        "dcm2niix_ms": round(1000 * min(theirs), 1),
        "ratio": round(min(ours) / min(theirs), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("folders", nargs="*", type=Path, help="series to time instead; nothing is saved then")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    table: dict[str, dict[str, Any]] = {}

    def take(name: str, folder: Path) -> None:
        table[name] = speed(folder, arguments.rounds)
        print(name, table[name], flush=True)

    if arguments.folders:
        for folder in arguments.folders:
            take(str(folder), folder)
        return
    take("dicom-t1, 384 files", results.DATA / "dicom-t1")
    with tempfile.TemporaryDirectory() as folder:
        peers.send(Path(folder), 1)
        for study in sorted(Path(folder).glob("*/*")):
            take(f"{study.name} as a scanner would have sent it", study)
    for name, shape in series.LARGE.items():
        with tempfile.TemporaryDirectory() as folder:
            series.save(Path(folder), shape())
            take(name, Path(folder))
    results.save("readers", table, encoder="none", rounds=arguments.rounds, peer=peers.version())


if __name__ == "__main__":
    main()
