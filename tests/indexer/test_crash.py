"""Kill -9 an indexing run at random moments: the index stays sound, and a second run ends the same."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from indexer import files
from indexer.case_index import CaseIndex
from indexer.errors import DiskFullError
from indexer.ingest import filing, ingest
from indexer.stores.faiss import vectors
from tests.support.images import phantom, write_nifti

pytestmark = pytest.mark.slow

RUN = """
import sys
import indexer.case_index, indexer.encoder, indexer.ingest, indexer.policy, retrieval.calibration
from tests.support.encoders import TinyEncoder
indexer.encoder.load_encoder = indexer.case_index.load_encoder = lambda name="tiny": TinyEncoder()
indexer.ingest.filing.GROUP = 8      # many commits
early = indexer.policy.SearchPolicy(exact_below=200)
indexer.case_index.SearchPolicy = lambda: early # and a partition
retrieval.calibration.POLICY = early
from retrieval.cli import main
sys.argv = ["cbir", *sys.argv[1:]]
main()
"""


def command(root, index):
    return [sys.executable, "-c", RUN, "index", str(root), "--index", str(index), "--keep-ids", "--json"]


def state(folder):
    """All that an index says, without ids of rows."""
    with CaseIndex.open(folder) as index:
        snapshot = index.snapshot()
        contents = snapshot.contents
        scans = contents.slice_scan
        rows = [
            (
                contents.case_ids[contents.scan_case[scan]],
                contents.scan_source[scan],
                contents.scan_sequence[scan],
                int(position),
                round(float(weight), 5),
            )
            for scan, position, weight in zip(
                scans, contents.slice_position, contents.slice_weight, strict=True
            )
        ]
        vectors = index.catalog.embeddings(contents.slice_ids)
        partition = snapshot.vectors.partition
        return rows, contents.labels, vectors, partition.centroids


def test_a_killed_run_leaves_a_sound_index_and_resumes_to_the_same_end(tmp_path, request, monkeypatch):
    kills = request.config.getoption("--runs-killed")
    monkeypatch.setenv("PYTHONPATH", ".")
    root = tmp_path / "mri"
    lines = ["participant_id\twho_grade"]
    for i in range(40):
        write_nifti(root / f"P-{i:02}" / f"P-{i:02}_t1.nii", phantom(i))
        lines.append(f"P-{i:02}\t{2 + i % 3}")
    (root / "participants.tsv").write_text("\n".join(lines))

    start = time.monotonic()
    subprocess.run(command(root, tmp_path / "whole"), check=True, capture_output=True)
    length = time.monotonic() - start
    expected = state(tmp_path / "whole")

    rng = random.Random(0)
    interrupted = 0
    for _ in range(kills):
        folder = tmp_path / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        process = subprocess.Popen(
            command(root, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0.2, 1.0) * length)
        process.kill()
        interrupted += process.wait() != 0
        if (folder / "manifest.json").exists():
            with CaseIndex.open(folder) as index:
                assert all(problem.sound for problem in index.verify())
                index.snapshot()
        subprocess.run(command(root, folder), check=True, capture_output=True)
        with CaseIndex.open(folder) as index:
            assert index.verify() == []
        rows, labels, vectors, centroids = state(folder)
        assert rows == expected[0]
        assert labels == expected[1]
        np.testing.assert_allclose(vectors, expected[2], atol=1e-6)
        np.testing.assert_allclose(centroids, expected[3], atol=1e-5)
    assert interrupted


FULL = """
mount -t tmpfs -o size=$1 none "$2"
small=$2 kept=$3
shift 3
"$@"
code=$?
[ ! -e "$small/index" ] || cp -r "$small/index" "$kept"  # one that was not made is not there
exit $code
"""


def mounts():
    """Whether this process may mount a small file system of its own."""
    if shutil.which("unshare") is None:
        return False
    tried = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(tried, capture_output=True).returncode == 0


@pytest.mark.parametrize("size", ["120k", "300k"])  # while the index is made, while sources are committed
def test_a_full_disk_is_one_line_and_leaves_a_sound_index(tmp_path, monkeypatch, size):
    if not mounts():
        pytest.skip("no file system can be mounted in a user namespace here")
    monkeypatch.setenv("PYTHONPATH", ".")
    for i in range(30):
        write_nifti(tmp_path / "mri" / f"P-{i:02}_t1.nii", phantom(i))
    small, kept = tmp_path / "small", tmp_path / "kept"
    small.mkdir()
    # what is left is looked at from outside, where there is room
    run = command(tmp_path / "mri", small / "index")
    ran = subprocess.run(
        [*["unshare", "-rm", "sh", "-c"], FULL, "sh", size, small, kept, *run],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.endswith("the disk is full; make room and run the command again")
    if (kept / "manifest.json").exists():
        with CaseIndex.open(kept) as index:
            assert all(problem.sound for problem in index.verify())
    subprocess.run(command(tmp_path / "mri", kept), check=True, capture_output=True)
    subprocess.run(command(tmp_path / "mri", tmp_path / "whole"), check=True, capture_output=True)
    found, expected = state(kept), state(tmp_path / "whole")
    assert found[:2] == expected[:2]
    np.testing.assert_array_equal(found[2], expected[2])


@pytest.mark.parametrize("what", ["vectors", "sync"])
def test_no_room_for_the_vectors_leaves_the_index_as_it_was(tmp_path, tiny, cohort, monkeypatch, what):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filing, "GROUP", 8)
    root, other = cohort(4), cohort(6, folder="other")
    with CaseIndex.create(tmp_path / "index", tiny, keep_ids=True) as index:
        ingest(index, [root], tiny)
        manifest = (index.folder / "manifest.json").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(*((vectors, "_save", full) if what == "vectors" else (files, "_sync", full)))
            with pytest.raises(DiskFullError, match="make room"):
                ingest(index, [other], tiny)
        assert (index.folder / "manifest.json").read_bytes() == manifest
        assert list(index.folder.glob("*.part")) == []
        assert all(problem.sound for problem in index.verify())
        assert ingest(index, [other], tiny).embedded == 0
        assert index.verify() == []


def test_vectors_that_are_cut_short_are_noticed(tmp_path, tiny):
    """FAISS's own writer does not notice that the last bytes found no room; /dev/full has none for any."""
    with CaseIndex.create(tmp_path / "index", tiny) as index:
        vectors = index.snapshot().vectors
    with pytest.raises(OSError, match="No space left"):
        vectors.save("/dev/full")
