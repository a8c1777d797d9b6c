"""Readers beside a writer, also those who may not write the folder: each sees one committed state."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from indexer.case_index import CaseIndex
from tests.indexer.test_case_index import EARLY, Four, unit
from tests.indexer.test_catalog import entry

pytestmark = pytest.mark.slow

WRITES = """
import sys, time
from pathlib import Path
import tests.indexer.test_readers_beside as beside
beside.write(Path(sys.argv[1]), int(sys.argv[2]))
"""
READS = """
import os, sys
from pathlib import Path
import tests.indexer.test_readers_beside as beside
import indexer.stores.faiss.store, numpy.ma, sqlalchemy.dialects.sqlite.pysqlite  # none can be read later
os.setgid(65534); os.setuid(65534)
beside.read(Path(sys.argv[1]), int(sys.argv[2]))
"""


def write(folder, rounds):
    """Cases come and go, vectors are filed and merged, and the index is opened and closed each time."""
    for i in range(rounds):
        with CaseIndex.open(folder, EARLY) as index, index.writing("test"):
            one = entry(f"/{i}", unit(case=f"c{i}", patient=f"p{i}", seed=i))
            index.catalog.put([one], {f"p{i}": {"round": str(i)}})
            if i % 3 == 0:
                index.catalog.remove_cases([f"c{i - 5}"])
            if i % 2:
                index.file_vectors(refit=i % 4 == 1)


def read(folder, rounds):
    """Whoever looks sees whole cases, none fewer than before, and nothing that is not sound."""
    last = 0
    for _ in range(rounds):
        with CaseIndex.open(folder, EARLY) as index:
            snapshot = index.snapshot()
            contents = snapshot.contents
            assert len(contents.slice_ids) == 6 * len(contents.case_ids)
            assert snapshot.vectors.ids().tolist() == contents.slice_ids.tolist()
            newest = max((int(labels["round"]) for labels in contents.labels), default=0)
            assert newest >= last
            last = newest
            assert [problem for problem in index.verify() if not problem.sound] == []
    print(last)


@pytest.fixture
def shared():
    """An index that others may read and not write, where they can get at it."""
    above = Path(tempfile.mkdtemp(dir="/tmp"))
    above.chmod(0o755)
    with CaseIndex.create(above / "index", Four(), policy=EARLY) as index:
        index.file_vectors()
    yield above / "index"
    shutil.rmtree(above)


def let_read(folder):
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o600 if path.name == "key" else 0o644)


def test_verify_beside_a_writer_cries_no_damage(shared):
    writer = subprocess.Popen([sys.executable, "-c", WRITES, shared, "12"])
    try:
        read(shared, 12)
    finally:
        assert writer.wait() == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_who_may_not_write_the_folder_sees_what_was_committed(shared):
    write(shared, 6)
    let_read(shared)
    seen = subprocess.run(
        [sys.executable, "-c", READS, shared, "2"], capture_output=True, text=True, check=False
    )
    assert seen.stdout == "5\n", seen.stderr
    with CaseIndex.open(shared, EARLY) as index:  # it is in the log, and not yet in the file
        index.catalog.put([entry("/9", unit(case="c9", patient="p9", seed=9))], {"p9": {"round": "9"}})
        let_read(shared)
        seen = subprocess.run(
            [sys.executable, "-c", READS, shared, "2"], capture_output=True, text=True, check=False
        )
    assert seen.stdout == "9\n", seen.stderr
