"""A real Orthanc with the plugin, a real service, a real browser: see the scenarios beside this.

The scenarios run one after the other in a process of its own, in a network namespace where the machine
allows, so that nothing can reach Orthanc's ports and nothing can leave.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = [pytest.mark.pacs, pytest.mark.timeout(600)]
SCENARIOS = [Path(__file__).with_name(f"{name}_scenarios.py") for name in ("pacs", "scanner")]
NAMES = [
    name for path in SCENARIOS for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
]
ALONE = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What became of each scenario: passed, skipped or failed, and the words for it."""
    report = tmp_path_factory.mktemp("pacs") / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    command += [*map(str, SCENARIOS), f"--junitxml={report}", "--tb=short"]
    if not shutil.which("unshare") or subprocess.run([*ALONE, "true"], capture_output=True).returncode:
        print("no network namespace on this machine: Orthanc listens on this machine's own ports")
    else:
        command = ALONE + command
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        told = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if told is None else told.tag
        text = "" if told is None else f"{told.get('message')}\n{told.text}"
        found[case.get("name", "")] = (outcome, text)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_scenario(outcomes: dict[str, tuple[str, str]], name: str) -> None:
    outcome, text = outcomes.get(name, ("missing", "was not run"))
    if outcome == "skipped":
        pytest.skip(text.strip())
    assert outcome == "passed", text
