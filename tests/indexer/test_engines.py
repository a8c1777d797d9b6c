"""What the runs on Milvus and PostgreSQL found (``elsewhere.py``); collected last, see ``conftest.py``."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.support.elsewhere import ONCE_MORE, SCENARIOS
from tests.support.servers import missing

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("name", [name for files in (SCENARIOS, *ONCE_MORE) for name in files])
def test_file(engine_runs, name):
    if engine_runs is None:
        pytest.skip(f"not installed: {', '.join(missing())}")
    run = next(run for run in engine_runs if name in run.files)
    run.ended.result()
    assert run.report.exists(), run.output.read_text()[-8000:]
    cases = [
        case
        for case in ElementTree.parse(run.report).iter("testcase")
        if Path(name).name in case.get("classname", "").split(".")
    ]
    wrong = [
        f"{case.get('name')}\n{part.get('message')}\n{part.text}"
        for case in cases
        for part in case
        if part.tag in ("failure", "error")
    ]
    assert cases, run.output.read_text()[-8000:]
    assert not wrong, "\n\n".join(wrong)
