"""How the partition grows with the collection: time to fit, file, add and ask, memory and disk.

Collections are enlarged from real slices as in :mod:`benchmarks.index`; their vectors lie in a file that is
mapped, and are filed a block at a time. Seconds of fitting and filing are those of the processor, one
thread. Then a process of its own opens the files and asks for the ten nearest of one slice at a time, fifty
a second, probed for a recall of 0.99: its latency is that of the clock, beside it that of the processor, and
its memory what it holds itself and what is mapped of the vectors.

With ``--lists``, FAISS's k-means (25 iterations, 256 vectors a list at most, its defaults) and the filing in
its inverted file are measured beside it, with the same lists on the same vectors in the same run.

    python -m benchmarks.scale [--sizes 10000,100000,1000000,10000000] [--indexes FOLDER …]
    python -m benchmarks.scale --sizes 1000000 --lists 1024
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import index as indexes  # first: it sets the threads
from benchmarks import results
from indexer.partition import Partition, lists_for_count
from indexer.policy import ONLY_BY_LISTS
from indexer.stores.faiss.vectors import Vectors

faiss = indexes.faiss
BLOCK = 20_000
SAMPLE = 200_000
PAUSE = 0.02
"""Seconds between two questions."""


class Stopwatch:
    """Seconds of the processor since the last lap."""

    def __init__(self) -> None:
        self.start = time.process_time()

    def lap(self) -> float:
        now = time.process_time()
        taken, self.start = now - self.start, now
        return round(taken, 3)


def grown(slices: indexes.Slices, n: int, lists: int | None, folder: Path) -> dict[str, Any]:
    """One size: fit, calibration, filing, questions, and what they take."""
    task = indexes.enlarged(slices, n, file=folder / "base")
    d = task.base.shape[1]
    row: dict[str, Any] = {"vectors": n, "lists": lists or lists_for_count(n)}
    watch = Stopwatch()
    if lists:
        k_means = faiss.Kmeans(d, lists, seed=0)
        k_means.train(task.base)
        row["k-means fit, s"] = watch.lap()
        flat = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, lists, faiss.METRIC_INNER_PRODUCT)
        flat.quantizer.add(k_means.centroids)
        flat.is_trained = True
        watch.lap()
        flat.add(task.base)
        row["k-means filing, s"] = watch.lap()
        del flat
    partition = Partition.fit(task.base, lists=lists)
    row["fit, s"] = watch.lap()
    partition.calibrate(task.calibrating, task.base[:: max(1, n // SAMPLE)], of=n)
    row["calibration, s"] = watch.lap()
    codes, rows = folder / "codes", folder / "rows"
    filed(task.base, codes, rows, partition)
    row["filing, s"] = watch.lap()
    filed(task.base[: n // 100], folder / "more", folder / "more rows", partition)
    row["adding 1 %, s"] = watch.lap()
    if lists:
        ours, theirs = (row[f"{of}fit, s"] + row[f"{of}filing, s"] for of in ("", "k-means "))
        row["over k-means"] = ours / theirs
    row["disk, MB"] = round((codes.stat().st_size + rows.stat().st_size) / 1e6)
    partition.save(folder / "partition")
    np.savez(folder / "questions", x=task.queries, truth=task.truth)
    asked = [sys.executable, "-m", "benchmarks.scale", "--ask", str(folder)]
    told = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    return row | json.loads(told)


def filed(x: indexes.Floats, codes: Path, rows: Path, partition: Partition) -> None:
    blocks = ((np.arange(at, min(at + BLOCK, len(x))), x[at : at + BLOCK]) for at in range(0, len(x), BLOCK))
    Vectors.write(codes, rows, blocks, x.shape[1], partition)


def answered(folder: Path) -> dict[str, Any]:
    """What a process that only asks has to say."""
    held = np.load(folder / "questions.npz")
    start = time.perf_counter()
    partition = Partition.load(folder / "partition")
    vectors = Vectors.load(folder / "codes", partition, folder / "rows", policy=ONLY_BY_LISTS)
    vectors.search(held["x"][:1], indexes.K)
    opened = time.perf_counter() - start
    took, worked, found = [], [], []
    for x in held["x"]:
        time.sleep(PAUSE)
        clock, processor = time.perf_counter(), time.process_time()
        found.append(vectors.search(x[None], indexes.K)[1][0])
        took.append(time.perf_counter() - clock)
        worked.append(time.process_time() - processor)
    watch = Stopwatch()
    vectors.search(held["x"], indexes.K)
    together = watch.lap()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    hits = (np.array(found)[:, :, None] == held["truth"][:, None]).any(axis=1).mean()
    return {
        "opening, s": round(opened, 2),
        "memory, MiB": round(own),
        "mapped, MiB": round(mapped),
        "query, ms": round(1e3 * float(np.median(took)), 2),
        "p99, ms": round(1e3 * float(np.quantile(took, 0.99)), 2),
        "p99 of the processor, ms": round(1e3 * float(np.quantile(worked, 0.99)), 2),
        "in one call, µs": round(1e6 * together / len(found), 1),
        "recall@10": round(float(hits), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="10000,100000,1000000,10000000")
    parser.add_argument("--lists", type=int, help="instead of as many as an index of that size takes")
    parser.add_argument("--indexes", type=Path, nargs="*", default=[], help="as in benchmarks.index")
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        print(json.dumps(answered(options.ask)))
        return
    slices, origin = indexes.read(options.indexes)
    faiss.omp_set_num_threads(1)
    for n in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            row = grown(slices, n, options.lists, Path(folder))
        print(row, flush=True)
        # a file for each, since the large ones take long
        results.save(f"scale-{n}" + (f"-{options.lists}" if options.lists else ""), row, **origin)


if __name__ == "__main__":
    main()
