"""Mutated files of every kind, through whole runs: each is read or refused, and the good ones are filed."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from indexer import discovery
from indexer.case_index import CaseIndex
from indexer.errors import CbirError
from indexer.ingest import ingest
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_nifti
from tests.support.mutations import Seed, mutant, seeds

BATCH = 50
"""Mutated files in a folder, which one run takes."""
RUNS = 20
"""Runs into one index."""
ENDED = {
    "ended its process": r"ended the process",
    "took more time than it may": r"takes more than|takes longer",
    "took more memory than it may": r"more memory than",
}


@pytest.fixture(scope="module")
def good() -> list[Seed]:
    return seeds()


def test_the_seeds_are_good(good: list[Seed], tmp_path: Path) -> None:
    """Else nothing behind the first check is tried."""
    for number, seed in enumerate(good):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for name, content in seed.files(number, seed.content).items():
            (folder / name).write_bytes(content)
        found = discovery.discover(folder)
        assert not found.failures, (seed.name, found.failures)
        assert found.sources or found.ignored, seed.name
        for source in found.sources:
            assert discovery.read(source), seed.name


def test_mutated_files_end_no_run(
    request: pytest.FixtureRequest,
    good: list[Seed],
    tmp_path: Path,
    tiny: TinyEncoder,
    measured: Callable[..., None],
) -> None:
    count = request.config.getoption("--fuzz")
    first = request.config.getoption("--fuzz-seed")
    image = write_nifti(tmp_path / "good" / "P-good_t1.nii", phantom(1)).read_bytes()
    found = Counter(dict.fromkeys(ENDED, 0))
    for begun in range(first, first + count, BATCH * RUNS):
        folder = tmp_path / f"from-{begun}"
        with CaseIndex.create(folder / "index", tiny, keep_ids=True) as index:
            for start in range(begun, min(begun + BATCH * RUNS, first + count), BATCH):
                root = folder / f"batch-{start}"
                for number in range(start, min(start + BATCH, first + count)):
                    found["files"] += 1
                    for name, content in mutant(good, number)[1].items():
                        path = root / f"F-{number:05}" / name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(content)
                (root / "P-good_t1.nii").write_bytes(image)
                report = ingest(index, [root], tiny)
                held = index.catalog.fingerprints(str(root))
                assert str(root / "P-good_t1.nii") in held, (start, report.failed)
                found["refused"] += len(report.failed)
                for failure in report.failed:
                    assert "\n" not in failure["reason"], start
                    for what, words in ENDED.items():
                        found[what] += bool(re.search(words, failure["reason"]))
                shutil.rmtree(root)
        shutil.rmtree(folder)
    measured("fuzz through runs", dict(found))


@pytest.mark.parametrize("kind", ["t1.nii.gz", "t1.png", "t1.dcm"])
def test_a_mutated_query_is_answered_or_refused(
    kind: str, good: list[Seed], tmp_path: Path, tiny: TinyEncoder, cohort: Callable[..., Path]
) -> None:
    from cbir import open_index

    with CaseIndex.create(tmp_path / "index", tiny) as index:
        ingest(index, [cohort(3)], tiny)
    chosen = [seed for seed in good if seed.name == kind]
    with open_index(tmp_path / "index", tiny) as asked:
        for number in range(8):
            ((name, content),) = mutant(chosen, number)[1].items()
            (tmp_path / f"q{number}").mkdir()
            (tmp_path / f"q{number}" / name).write_bytes(content)
            with suppress(CbirError):
                assert asked.query(tmp_path / f"q{number}" / name).hits
