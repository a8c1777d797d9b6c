"""How the partition grows with the collection: time to fit, file and ask, memory and disk.

Collections are enlarged from real slices as in :mod:`benchmarks.index`. Beside the fit stands FAISS's
k-means (25 iterations, 256 vectors a list at most, its defaults) with the same lists on the same vectors in
the same run, and beside the filing that of its inverted file. Seconds are those of the processor, queries
one thread, all in one call, probed for a recall of 0.99.

    python -m benchmarks.scale [--sizes 10000,100000,1000000] [--lists 1024]
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the libraries start theirs
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import faiss as _faiss
import numpy as np

from benchmarks import index as indexes  # first: it sets the threads
from benchmarks import results
from indexer import vectors as engine
from indexer.partition import Partition, lists_for_count
from indexer.vectors import Vectors

faiss: Any = _faiss
BLOCK = 20_000
SAMPLE = 200_000


class Stopwatch:
    """Seconds of the processor since the last lap."""

    def __init__(self) -> None:
        self.start = time.process_time()

    def lap(self) -> float:
        now = time.process_time()
        taken, self.start = now - self.start, now
        return round(taken, 3)


def grown(slices: indexes.Slices, n: int, lists: int | None) -> dict[str, Any]:
    """One size: fit, calibration, filing, questions, and what they take."""
    task = indexes.enlarged(slices, n)
    d = task.base.shape[1]
    lists = lists or lists_for_count(n)
    watch = Stopwatch()
    k_means = faiss.Kmeans(d, lists, seed=0)
    k_means.train(task.base)
    row: dict[str, Any] = {"vectors": n, "lists": lists, "k-means fit": watch.lap()}
    flat = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, lists, faiss.METRIC_INNER_PRODUCT)
    flat.quantizer.add(k_means.centroids)
    flat.is_trained = True
    watch.lap()
    flat.add(task.base)
    row["k-means filing"] = watch.lap()
    del flat
    partition = Partition.fit(task.base, lists=lists)
    row["fit"] = watch.lap()
    partition.calibrate(task.calibrating, task.base[:: max(1, n // SAMPLE)], of=n)
    row["calibration"] = watch.lap()
    with tempfile.TemporaryDirectory() as folder:
        path, rows = Path(folder) / "codes", Path(folder) / "rows"
        ids = np.arange(n)
        blocks = ((ids[at : at + BLOCK], task.base[at : at + BLOCK]) for at in range(0, n, BLOCK))
        watch.lap()
        Vectors.write(path, rows, blocks, d, partition)
        row["filing"] = watch.lap()
        row["disk, MB"] = round((path.stat().st_size + rows.stat().st_size) / 1e6, 1)
        row["memory, MB"] = round(path.stat().st_size / 1e6, 1)  # the rows are mapped
        vectors = Vectors.load(path, partition, rows)
        vectors.search(task.queries, indexes.K)
        watch.lap()
        found = vectors.search(task.queries, indexes.K)[1]
        row["query, µs"] = round(1e6 * watch.lap() / len(found), 1)
    row["recall@10"] = float((found[:, :, None] == task.truth[:, None]).any(axis=1).mean())
    row["distances"] = round(partition.probing(indexes.K).distances)
    row["over k-means"] = (row["fit"] + row["filing"]) / (row["k-means fit"] + row["k-means filing"])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--lists", type=int, help="instead of as many as an index of that size takes")
    parser.add_argument("--vectors", type=Path, help="as in benchmarks.index")
    options = parser.parse_args()
    slices, origin = indexes.read(options.vectors)
    faiss.omp_set_num_threads(1)
    engine.EXACT_BELOW, engine.DEEP_SHARE = 1, math.inf
    table = []
    for n in map(int, options.sizes.split(",")):
        table.append(grown(slices, n, options.lists))
        print(table[-1], flush=True)
    results.save("scale" + (f"-{options.lists}" if options.lists else ""), {"sizes": table}, **origin)


if __name__ == "__main__":
    main()
