"""Result files with provenance: a figure without commit, data, encoder and machine is hearsay."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT.parent / "shared" / "data"
CACHE = ROOT / ".cache"


def save(name: str, results: dict[str, Any], **settings: Any) -> Path:
    """Write ``results/NAME.json``: settings, results, and where they come from."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"provenance": {**provenance(), **settings}, "results": results}
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return path


def load(name: str) -> dict[str, Any]:
    """Results and provenance as :func:`save` wrote them."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def provenance() -> dict[str, str]:
    """Commit, date and machine."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    return {
        "commit": commit.strip() + (" with changes" if changed.strip() else ""),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{processor()}, {platform.system()}, Python {platform.python_version()}",
    }


def processor() -> str:
    """The processor's name and how many cores the process may use."""
    import os

    name = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        name = names[0] if names else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
