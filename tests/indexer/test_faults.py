"""Kills, errors of the disk, Ctrl-C and hostile folders: a few of what `tests.support.faults` tries."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.faults.__main__ import UNSUPPORTED
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(14400)]


@pytest.mark.parametrize("kind", ["kills", "errors", "interrupts", "folders"])
def test_nothing_is_lost_left_over_or_thrown(kind, request):
    count = request.config.getoption(f"--{kind}")
    tried = [sys.executable, "-m", "tests.support.faults", kind, "--count", str(count), "--seed", "7"]
    ran = subprocess.run(tried, capture_output=True, text=True, cwd=ROOT, check=False)
    if ran.returncode == UNSUPPORTED:
        pytest.skip(ran.stderr)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["trials"] == count
    assert found["wrong"] == []


def test_a_fault_is_noticed(tmp_path):
    """What the bench calls wrong, where something is: else nothing would ever be."""
    broken = """
import sys, tempfile
from pathlib import Path
from tests.support.faults import calls, fork, trials
if not calls.supported():
    sys.exit(3)
folder = Path(sys.argv[1])
fork.warm(folder)
bench = trials.Bench(folder)
import errno, indexer.files
from indexer.case_index import CaseIndex
full = calls.Fault(at=40, error=errno.ENOSPC, lasting=True)
assert bench.tried("index more", full)[1] == []
bench.expect("compact")
CaseIndex._tidy = lambda self: None
left = [bench.tried("compact", calls.Fault(at=at, signal=9))[1] for at in range(150, 290, 20)]
assert any("left" in str(found) for found in left), left
def lies(self, *arguments, **options):
    raise ValueError("broken")
CaseIndex.file_vectors = lies
assert "Traceback" in str(bench.tried("compact", calls.Fault())[1])
"""
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    ran = subprocess.run(
        [sys.executable, "-c", broken, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | alone,
        check=False,
    )
    if ran.returncode == UNSUPPORTED:
        pytest.skip("the kernel does not ask about system calls here")
    assert ran.returncode == 0, ran.stderr
