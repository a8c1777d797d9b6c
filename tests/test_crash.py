"""Kill -9 an indexing run at random moments: the index stays sound, and a second run ends the same."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time

import numpy as np
from conftest import phantom, write_nifti

from indexer.case_index import CaseIndex

RUN = """
import sys
import conftest, indexer.case_index, indexer.encoder, indexer.ingest
indexer.encoder.load_encoder = indexer.case_index.load_encoder = lambda name="tiny": conftest.TinyEncoder()
indexer.ingest.GROUP = 8             # many commits
indexer.case_index.EXACT_BELOW = 200 # and a partition
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
    kills = request.config.getoption("--kills")
    monkeypatch.setenv("PYTHONPATH", "tests")
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
