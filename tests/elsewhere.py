"""Start Milvus and PostgreSQL and run tests with them, several files at a time; see ``test_engines.py``.

``python tests/elsewhere.py REPORTS FILE…`` writes a JUnit report for each file into a folder.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from servers import started

HERE = Path(__file__).parent


def main() -> None:
    reports, *files = sys.argv[1:]
    with started() as (milvus, postgres):
        running = []
        for name in files:
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short"]
            command += [str(HERE / f"{name}.py"), f"--junitxml={reports}/{name}.xml"]
            command += [f"--milvus={milvus.uri}", f"--postgres={postgres.url}"]
            running.append(subprocess.Popen(command, cwd=HERE.parent))
        for process in running:
            process.wait()


if __name__ == "__main__":
    main()
