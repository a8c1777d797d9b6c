"""What the second look costs, and what a question costs besides; as ratios, each in one run.

The shipped encoder over the plain backbone, in turn.

The plain backbone looks once, at the size that the frozen encoder takes (192 pixels), and at the size
of one look of the trained one (160). Machines are shared and noisy: only ratios say something.

A cold question, ``cbir query`` of a volume of 155 slices and of a patient's four, over what it cannot do
without: the import of torch, and the encoder's own time on the planes that are looked at.

    python -m benchmarks.speed [--cold]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from cbir import create_index
from indexer import discovery
from indexer.composite import groups
from indexer.encoder import Encoder, load_encoder, look
from indexer.learning import backbone, network
from indexer.preprocess import Preprocessing, prepared, prepared_composite

ROUNDS = 60
BATCHES = (1, 32)
COLD = 5
PATIENT = results.DATA / "volumes" / "TCGA-DU-7294"
HELD = [results.DATA / "volumes-2mm" / name for name in ("TCGA-CS-4944", "TCGA-06-2570")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cold", action="store_true", help="the cold questions alone")
    if not parser.parse_args().cold:
        looks()
    encoder = load_encoder("cbir")
    results.save("cold", cold(encoder), data=PATIENT.name, encoder=encoder.version)


def looks() -> None:
    """The second look."""
    trained, frozen = load_encoder("cbir"), load_encoder("imagenet")
    plain = functools.partial(backbone.embed, frozen.network)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    table: dict[str, Any] = {}
    for batch in BATCHES:
        runs: dict[str, Callable[[], NDArray[np.float32]]] = {
            "shipped encoder": functools.partial(trained.encode, _images(rng, batch, trained.size)),
            "backbone at 192": functools.partial(plain, _images(rng, batch, frozen.size)),
            "backbone at 160": functools.partial(plain, _images(rng, batch, network.VIEW)),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
        median = {name: statistics.median(found) / batch for name, found in times.items()}
        table[f"{batch} at a time"] = {
            name: {"ms": 1000 * seconds, "ratio": median["shipped encoder"] / seconds}
            for name, seconds in median.items()
        }
        print(batch, table[f"{batch} at a time"])
    results.save("speed", table, data="noise", encoder=trained.version)


def cold(encoder: Encoder) -> dict[str, Any]:
    """``cbir query`` in a process of its own, over the import of torch and the encoder's time, in turn."""
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with create_index(place / "index", encoder=encoder) as index:
            index.add(HELD)
        one = place / "P" / f"{PATIENT.name}_t1ce.nii.gz"
        one.parent.mkdir()
        one.symlink_to(PATIENT / one.name)
        for name, query in {"155 slices": one, "four sequences": PATIENT}.items():
            images = _looked_at(query, encoder)
            rounds: list[list[float]] = []
            asks = [sys.executable, "-m", "retrieval.cli", "query", str(query)]
            for _ in range(COLD):
                marks = [time.perf_counter()]
                for program in ("import torch", "import os, torch; os._exit(0)"):
                    _run([sys.executable, "-c", program])
                    marks.append(time.perf_counter())
                for ready in images:
                    look(encoder, ready.pixels, ready.boxes, ready.weights)
                marks.append(time.perf_counter())
                _run([*asks, "--index", str(place / "index"), "--json"])
                marks.append(time.perf_counter())
                rounds.append([after - before for before, after in itertools.pairwise(marks)])
            parts = "import torch", "import torch, ended at once", "encoder", "cbir query"
            table[name] = {
                "planes": sum(len(ready.pixels) for ready in images),
                "ratio": statistics.median(asked / (torch + own) for torch, _, own, asked in rounds),
                "ratio at once": statistics.median(asked / (torch + own) for _, torch, own, asked in rounds),
                **dict(zip(parts, map(statistics.median, zip(*rounds, strict=True)), strict=True)),
            }
            print(name, table[name], flush=True)
    return table


def _looked_at(query: Path, encoder: Encoder) -> list[Any]:
    """What the encoder sees of a file or folder."""
    how = Preprocessing.of(encoder)
    scans = [
        scan
        for source in discovery.discover(query).sources
        for scan in discovery.read(source)
        if scan.sequence is not None
    ]
    bare = [type(scan)(**{**vars(scan), "region": None}) for scan in scans]
    together = [
        prepared_composite(group.scans, how.composite_size, how.apart, how.standardised)
        for group in groups(bare, how.composite_size)
    ]
    return [*(prepared(scan, how) for scan in bare), *together]


def _run(command: list[str]) -> None:
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(results.ROOT)}
    subprocess.run(command, check=True, capture_output=True, env=environment)


def _images(rng: np.random.Generator, batch: int, size: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (batch, size, size), np.uint8)


if __name__ == "__main__":
    main()
