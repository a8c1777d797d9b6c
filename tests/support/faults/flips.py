"""One flipped bit in any file of an index: `verify` notices it, or it has no effect at all."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from indexer.case_index import CaseIndex
from indexer.errors import CbirError
from retrieval.calibration import Calibration, Fit, Kind
from tests.indexer.test_case_index import EARLY, Four, unit
from tests.indexer.test_catalog import entry

LARGE = "catalog.sqlite"
"""Has many kinds of regions: it is flipped so many times as often."""
OFTEN = 20


def make(folder: Path) -> Path:
    """An index with a partition, labels of persons and visits, history, failures and a calibration."""
    with CaseIndex.create(folder, Four(), policy=EARLY) as index, index.writing("test"):
        index.catalog.put(
            [entry(f"/{i}", unit(case=f"c{i}", patient=f"p{i}", seed=i)) for i in range(60)],
            {f"p{i}": {"grade": str(2 + i % 3)} for i in range(60)},
            {f"c{i}": {"age": str(50 + i)} for i in range(0, 60, 2)},
        )
        index.catalog.remove_cases(["c7"])
        index.catalog.set_failures(["/x"], {"/x/broken": "cannot be read"})
        index.catalog.set_root("/mri", '{"labels": ["/mri/labels.csv"]}')
        index.catalog.log("index", {"found": 60})
        index.file_vectors()
        fit = Fit(40, 1.25, {"2": 0.5, "3": 0.75}, {"2": [(1, 0.5), (4, 0.25)], "3": [(2, 0.5)]})
        kind = Kind({"grade": fit}, {"similarity": {"": 0.5}}, {})
        Calibration({"scan": kind}, "1", 1, 0, 40, 60, 60, {"grade": {"2": 20}}).save(folder)
    return folder


def everything(folder: Path) -> str:
    """All that an index says."""
    with CaseIndex.open(folder, EARLY) as index:
        snapshot = index.snapshot()
        contents = snapshot.contents
        q = unit(20, seed=99).embeddings
        scores, ids = snapshot.vectors.search(q, 10)
        return repr((
            {name: value.tolist() if isinstance(value, np.ndarray) else value
             for name, value in vars(contents).items()},
            index.catalog.embeddings(contents.slice_ids).tolist(),
            scores.tolist(), ids.tolist(), {n: v for n, v in index.about().items() if n != "catalog"},
            index.catalog.failed(),
            index.catalog.root("/mri"), index.pseudonym("patient", "x"), Calibration.read(folder),
            index.catalog.fingerprints(), [index.catalog.record(path) for path in contents.scan_source],
        ))  # fmt: skip


def noticed(folder: Path) -> bool:
    """Whether it cannot be opened, or `verify` finds something."""
    try:
        with CaseIndex.open(folder, EARLY) as index:
            return any(not problem.sound for problem in index.verify())
    except CbirError:
        return True


def flipped(sound: Path, folder: Path, name: str, at: int, bit: int) -> None:
    """Make another folder of the index, with one bit of a file otherwise."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    with (folder / name).open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def run(above: Path, count: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Flip so many bits in each file, each in its own part; in the catalog :data:`OFTEN` times as many."""
    sound, folder = make(above / "sound"), above / "index"
    if noticed(sound):
        raise RuntimeError("the index was not sound before")
    before = everything(sound)
    rng = random.Random(seed)
    tried: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    wrong = []
    for path in sorted(sound.iterdir()):
        size = path.stat().st_size
        if not size or path.name.endswith("-shm"):  # an index of the log, made anew
            continue
        parts = count * (OFTEN if path.name == LARGE else 1)
        for part in range(parts):
            low, high = size * part // parts, max(size * part // parts + 1, size * (part + 1) // parts)
            at, bit = rng.randrange(low, min(high, size)), rng.randrange(8)
            flipped(sound, folder, path.name, at, bit)
            tried[path.name] += 1
            if noticed(folder):
                seen[path.name] += 1
            elif everything(folder) != before:
                wrong.append(f"{path.name}, byte {at}, bit {bit}")
                say(wrong[-1])
    return {
        "trials": tried.total(),
        "seed": seed,
        "files": dict(tried),
        "noticed": dict(seen),
        "wrong": wrong,
    }
