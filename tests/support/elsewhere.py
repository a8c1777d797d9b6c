"""The tests of indexing and queries once more, on a real Milvus and PostgreSQL, beside the other tests.

They wait more than they work, so they are started first and their reports are read last, by
``test_engines.py``. They run in processes of their own, in a network namespace where the machine
allows: Milvus listens on all addresses.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parents[1]
SCENARIOS = ("indexer/engine_scenarios",)
ONCE_MORE = (
    ("indexer/test_case_index", "indexer/test_catalog", "retrieval/test_cli", "retrieval/test_search"),
    ("indexer/test_ingest", "retrieval/test_crossmatch", "retrieval/test_evidence", "indexer/test_reference"),
)
"""Files that run once more, a tuple in a process, all of them at a time."""
ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
"""In a network of one's own. PostgreSQL refuses to run as root, also as a root who is none elsewhere."""
if os.getuid():
    ALONE[1:1] = ["--map-current-user", "--keep-caps"]


class Run:
    """Test files in a process of their own, which tells what it found in a JUnit report.

    Parameters
    ----------
    folder : Path
        For the report and the output.
    files : tuple of str
        Names of test modules.
    options : str
        Of pytest.
    """

    ended: Future[None]

    def __init__(self, folder: Path, files: tuple[str, ...], *options: str) -> None:
        self.files = files
        self.report, self.output = (
            folder / f"{Path(files[0]).name}.xml",
            folder / f"{Path(files[0]).name}.txt",
        )
        self._command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", *options]
        self._command += [f"--junitxml={self.report}", *(str(HERE / f"{name}.py") for name in files)]
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Run them, until they end."""
        with self.output.open("w") as output:
            self._process = subprocess.Popen(
                ALONE + self._command if alone() else self._command,
                cwd=HERE.parent,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._process.wait()

    def stop(self) -> None:
        """End it as Ctrl-C does, so that it stops its servers, if it has not ended."""
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@functools.cache
def alone() -> bool:
    """Whether a process can have a network of its own here."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0


@contextlib.contextmanager
def started(folder: Path) -> Iterator[list[Run]]:
    """All runs, at a time; one after the other in one network, where they would want the same ports."""
    runs = [Run(folder, SCENARIOS), *(Run(folder, files, "--elsewhere") for files in ONCE_MORE)]
    with ThreadPoolExecutor(len(runs) if alone() else 1) as pool:
        try:
            for run in runs:
                run.ended = pool.submit(run)
            yield runs
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for run in runs:
                run.stop()
