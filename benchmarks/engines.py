"""The same index on FAISS + SQLite and on Milvus + PostgreSQL: the same answers, and how long they take.

The index is that of the reference cases (10 876 slices of 320 patients, in the package). Both engines are
made to search by the fuzzy lists, which they would do from 20 000 slices on. `slices` is the share of the
first ten places, asked one by one, at which both find the same similarity (which of two equals is found
is no matter); `cases` the share of the first ten cases, each case asking with all its slices. Times are
medians on a shared machine: they tell orders of magnitude. Both servers must run:

    python -m benchmarks.engines --uri http://127.0.0.1:19530 --catalog postgresql://user@127.0.0.1/database
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from cbir import Index
from indexer import reference
from indexer.case_index import CaseIndex
from indexer.policy import SearchPolicy
from indexer.stores.milvus.vectors import SETTLING
from indexer.transfer import transfer


def median(action: Callable[[], Any], times: int = 7) -> float:
    """Seconds that an action takes."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken), 4)


def compare(near: CaseIndex, far: CaseIndex) -> dict[str, Any]:
    """Agreement and times of two engines."""
    ours, theirs = near.snapshot(), far.snapshot()
    rng = np.random.default_rng(0)
    ids = ours.contents.slice_ids
    asking = ours.vectors.gather(np.sort(rng.choice(ids, 300, replace=False)))
    exact = -np.sort(-asking @ ours.vectors.gather(ids).T, axis=1)[:, 9:10]
    case = ours.vectors.gather(ids[:30])  # as they are asked with: of one patient
    time.sleep(SETTLING)
    alike = []
    for query in asking:
        a, b = (one.vectors.search(query[None], 10)[0] for one in (ours, theirs))
        alike.append(np.isclose(a, b, rtol=0, atol=1e-6).mean())
    recalls = {
        name: float(np.mean(one.vectors.search(asking, 10)[0] >= exact - 1e-6))
        for name, one in (("faiss", ours), ("milvus", theirs))
    }
    cases = []

    with Index(near) as here, Index(far) as there:
        names = ours.contents.case_ids
        for name in rng.choice(names, 60, replace=False):
            hits = [[hit.case_id for hit in index.like(str(name), 10).hits] for index in (here, there)]
            cases.append(len(set(hits[0]) & set(hits[1])) / len(hits[0]))
        some = np.sort(rng.choice(ids, 4000, replace=False))
        name = far.manifest.vectors.file if far.manifest.vectors else ""
        return {
            "slices": len(ids),
            "lists": len(ours.vectors.partition.centroids) if ours.vectors.partition else 0,
            "agreement": {"slices": float(np.mean(alike)), "cases": float(np.mean(cases))},
            "recall_at_10": recalls,
            "seconds": {
                "search of 30 slices, faiss": median(lambda: ours.vectors.search(case, 64)),
                "search of 30 slices, milvus": median(lambda: theirs.vectors.search(case, 64)),
                "4000 vectors, faiss": median(lambda: ours.vectors.gather(some)),
                "4000 vectors, sqlite": median(lambda: near.catalog.embeddings(some)),
                "4000 vectors, postgresql": median(lambda: far.catalog.embeddings(some)),
                "4000 vectors, milvus": median(lambda: theirs.vectors.filed(some)),
                "contents, sqlite": median(near.catalog.contents),
                "contents, postgresql": median(far.catalog.contents),
            },
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uri", required=True)
    parser.add_argument("--catalog", required=True)
    options = parser.parse_args()
    early = SearchPolicy(exact_below=5000)
    by_lists = SearchPolicy(exact_below=1, deep_share=1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(reference.FOLDER, folder / "reference")
        (folder / "reference" / "key").touch(0o600)
        with CaseIndex.open(folder / "reference", early) as held:
            with held.writing("benchmark"):
                held.file_vectors()
            start = time.perf_counter()
            transfer(held, folder / "there", store=f"milvus+{options.uri}", catalog=options.catalog)
            copied = time.perf_counter() - start
            with (
                CaseIndex.open(folder / "reference", by_lists) as near,
                CaseIndex.open(folder / "there", by_lists) as far,
            ):
                found = compare(near, far)
                found["seconds"]["copy"] = round(copied, 1)
                found["dimension"] = held.manifest.dimension
                encoder = f"{held.manifest.encoder} {held.manifest.encoder_version}"
                far.drop()
    print(results.save("engines", found, data="reference cases", encoder=encoder))
    print(found)


if __name__ == "__main__":
    main()
