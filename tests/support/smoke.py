"""Does an installed cbir work? ``python smoke.py PREFIX`` needs nothing but Python.

A cohort is written, indexed and asked; the reference cases answer where there is no index; the parts that
are no modules lie where the documents say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PLACES = """
import cbir, indexer, json, retrieval.service
from pathlib import Path
parts = [Path(module.__file__).parent for module in (cbir, indexer, retrieval.service)]
typed = all((part / "py.typed").exists() for part in parts[:2])
print(json.dumps([str(parts[0]), typed, sorted(f.name for f in (parts[2] / "static").iterdir())]))
"""


def smoke(prefix: Path, python: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Try what is installed below a prefix.

    Parameters
    ----------
    prefix : Path
    python : sequence of str
        How to start a Python that sees it.
    environment : mapping

    Returns
    -------
    list of str
        What was tried.
    """
    with tempfile.TemporaryDirectory() as folder:

        def run(*arguments: str) -> str:
            done = subprocess.run(
                [*python, *arguments], cwd=folder, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, (arguments, done.stderr)
            return done.stdout

        def cbir(*arguments: str) -> str:
            return run(str(prefix / "bin" / "cbir"), *arguments)

        package, typed, static = json.loads(run("-c", PLACES))
        assert Path(package).is_relative_to(prefix), package
        assert typed
        assert {"index.html", "niivue.umd.js", "niivue.LICENSE.txt"} <= set(static)
        plugin = prefix / "share" / "cbir" / "orthanc"
        compile((plugin / "cbir_plugin.py").read_text("utf-8"), "cbir_plugin.py", "exec")
        assert json.loads((plugin / "orthanc.json").read_text("utf-8"))
        cbir("demo", "cohort", "--patients", "3")
        cbir("demo", "new", "--patients", "3", "--seed", "1")
        scan = sorted(Path(folder, "new").glob("SYNTH-1-001/*t1ce.nii.gz"))[0]
        answer = json.loads(cbir("query", str(scan), "--json"))
        assert answer["hits"][0]["labels"]
        assert any("reference cases" in note for note in answer["notes"])
        indexed = json.loads(cbir("index", "cohort", "--json"))
        assert (indexed["cases"], indexed["failed"]) == (3, [])
        answer = json.loads(cbir("query", str(scan), "--json", "--report", "report.html"))
        assert len(answer["hits"]) == 3
        assert "data:image/" in Path(folder, "report.html").read_text("utf-8")
    return ["package", "viewer", "plugin", "demo", "reference cases", "index", "query", "report"]


if __name__ == "__main__":
    root = Path(sys.argv[1]).absolute()
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CBIR"))}
    print(f"works: {', '.join(smoke(root, [str(root / 'bin' / 'python')], outside))}")
