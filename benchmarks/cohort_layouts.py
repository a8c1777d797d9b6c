"""What a plan makes of public cohorts as their publishers ship them, beside what is true; and how fast.

The miniature cohorts lie in ``../shared/data/cohorts``, each with a table of the truth; ``truth/check.py``
compares. How long a look at many files takes is set beside ``find`` over the same files in the same run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import results
from indexer.discovery import Discovery, discover
from indexer.labels import find_tables

COHORTS = results.DATA / "cohorts"
FILES = 100_000


def planned(folder: Path) -> Discovery:
    return discover(folder, find_tables(folder)[0])


def judged(folder: Path) -> dict[str, Any]:
    """Figures of one tree: what check.py says in its last line, taken apart."""
    found = planned(folder)
    entries = found.planned()
    plan = {"schema": 1, "sources": [entry.to_dict() for entry in entries]}
    truth = folder.parent / "truth"
    said = subprocess.run(
        [sys.executable, str(truth / "check.py"), str(truth), folder.name, "-", "--strict"],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    figures = dict(re.findall(r"(persons|visits|sequences|masks as images|regions|labels) ([^;]+)", said[-1]))
    images = [entry for entry in entries if entry.role == "image"]
    return {
        **figures,
        "patients": len({entry.patient for entry in images}),
        "visits planned": len({(entry.patient, entry.visit) for entry in images}),
        "images": len(images),
        "outlines": len(found.regions),
        "left out": len(found.ignored),
        "short": next((line.partition(": ")[2] for line in said if line.startswith("falls short")), ""),
    }


def many(folder: Path) -> None:
    """A cohort of about `FILES` empty files: persons, two visits, four sequences and an outline."""
    for person in range(FILES // 10):
        for visit in ("week-000", "week-012"):
            home = folder / f"Patient-{person:05}" / visit
            home.mkdir(parents=True)
            for name in ("T1", "CT1", "T2", "FLAIR", "tumor_seg"):
                (home / f"{name}.nii.gz").touch()


def speed() -> dict[str, float]:
    """Seconds of a core to decide over many files, and of ``find`` with size and time of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cohort"
        many(folder)
        times = {}
        for _ in range(2):  # the second time all is in the page cache
            start = _used()
            subprocess.run(
                ["find", str(folder), "-printf", "%s %T@ %p\n"], stdout=subprocess.DEVNULL, check=True
            )
            times["find"] = _used() - start
            start = _used()
            found = discover(folder)
            times["plan"] = _used() - start
            start = _used()
            for source in found.sources:
                source.fingerprint()
            times["fingerprints"] = _used() - start
        assert len(found.sources) == FILES * 8 // 10
    return {name: round(seconds, 2) for name, seconds in times.items()} | {"files": FILES}


def _used() -> float:
    """Seconds of a core that this process and those it has run have used."""
    return sum(os.times()[:4])


def main() -> None:
    trees = sorted(path for path in COHORTS.iterdir() if path.is_dir() and path.name != "truth")
    found = {tree.name: judged(tree) for tree in trees}
    for name, figures in found.items():
        print(name, figures)
    timed = speed()
    print(timed)
    results.save("cohort_layouts", {"trees": found, "speed": timed})


if __name__ == "__main__":
    main()
