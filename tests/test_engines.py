"""The tests of indexing, queries, removal and evaluation once more, on a real Milvus and PostgreSQL.

They run in processes of their own, in a network namespace where the machine allows: Milvus listens on
all addresses.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from servers import missing

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]
HERE = Path(__file__).parent
SCENARIOS = "engine_scenarios"
ONCE_MORE = ("test_case_index", "test_catalog", "test_cli", "test_search")
ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
"""In a network of one's own. PostgreSQL refuses to run as root, also as a root who is none elsewhere."""
if os.getuid():
    ALONE[1:1] = ["--map-current-user", "--keep-caps"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a JUnit report for each file."""
    if absent := missing():
        pytest.skip(f"not installed: {', '.join(absent)}")
    folder = tmp_path_factory.mktemp("engines")
    pytest_of = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short"]
    commands = [
        [sys.executable, str(HERE / "elsewhere.py"), str(folder), *ONCE_MORE],
        [*pytest_of, str(HERE / f"{SCENARIOS}.py"), f"--junitxml={folder / SCENARIOS}.xml"],
    ]
    alone = shutil.which("unshare") and not subprocess.run([*ALONE, "true"], capture_output=True).returncode
    running = []
    for number, command in enumerate(commands):
        with (folder / f"output-{number}.txt").open("w") as output:
            running.append(
                subprocess.Popen(
                    [*ALONE, *command] if alone else command, cwd=HERE.parent, stdout=output, stderr=output
                )
            )
        if not alone:  # two would want the same ports
            running[-1].wait()
    for process in running:
        process.wait()
    return folder


@pytest.mark.parametrize("name", [SCENARIOS, *ONCE_MORE])
def test_file(reports: Path, name: str) -> None:
    report = reports / f"{name}.xml"
    assert report.exists(), "\n".join(path.read_text()[-4000:] for path in reports.glob("output-*.txt"))
    cases = list(ElementTree.parse(report).iter("testcase"))
    wrong = [
        f"{case.get('name')}\n{part.get('message')}\n{part.text}"
        for case in cases
        for part in case
        if part.tag in ("failure", "error")
    ]
    assert cases
    assert not wrong, "\n\n".join(wrong)
