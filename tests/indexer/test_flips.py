"""One flipped bit in any file of an index: `verify` notices it, or it has no effect at all."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest

from indexer.case_index import CaseIndex
from indexer.errors import CbirError
from retrieval.calibration import Calibration
from tests.indexer.test_case_index import EARLY, Four, unit
from tests.indexer.test_catalog import entry

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """An index with a partition, labels of persons and visits, history, failures and a calibration."""
    folder = tmp_path_factory.mktemp("sound") / "index"
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
        Calibration({}, "1", 1, 0, 40, 60, 60, {"grade": {"2": 20}}).save(folder)
    return folder


def everything(folder):
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


def noticed(folder):
    try:
        with CaseIndex.open(folder, EARLY) as index:
            return any(not problem.sound for problem in index.verify())
    except CbirError:
        return True


def flipped(sound, folder, name, at, bit):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    with (folder / name).open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def test_every_flip_is_noticed_or_has_no_effect(sound, tmp_path, request):
    times = request.config.getoption("--flips")
    assert not noticed(sound)
    before = everything(sound)
    rng = random.Random(0)
    unnoticed = []
    for path in sorted(sound.iterdir()):
        size = path.stat().st_size
        if not size or path.name.endswith("-shm"):  # an index of the log, made anew
            continue
        for _ in range(times * (20 if path.name == "catalog.sqlite" else 1)):
            at, bit = rng.randrange(size), rng.randrange(8)
            flipped(sound, tmp_path / "index", path.name, at, bit)
            if noticed(tmp_path / "index"):
                continue
            if everything(tmp_path / "index") != before:
                unnoticed.append((path.name, at, bit))
    assert unnoticed == []


@pytest.mark.parametrize("name", ["key", "calibration.json", "manifest.json"])
def test_each_byte_of_small_files_counts(sound, tmp_path, name):
    before = everything(sound)
    for at in range(0, (sound / name).stat().st_size, 7 if name != "key" else 1):
        flipped(sound, tmp_path / "index", name, at, at % 8)
        assert noticed(tmp_path / "index") or everything(tmp_path / "index") == before, at
