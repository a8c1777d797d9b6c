"""The house as it was drawn: imports run one way, and what is public is described."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
from pathlib import Path

from tests.support.paths import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("cbir", "indexer", "retrieval")
    for path in (ROOT / package).rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """Modules of this project that a module imports: at once, late in a function, or for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # a package is meant where one of its names is no module
            found |= names if names <= MODULES.keys() else names | {node.module}
    return found & MODULES.keys()


def test_imports_have_no_circle():
    graph = {name: imports(path) - {name} for name, path in MODULES.items()}
    # a package's own modules may be imported by its __init__, which they do not need in turn
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert len(order) == len(MODULES)


def test_a_circle_is_found_also_where_it_is_late_or_of_types(tmp_path):
    for text in (
        "def late():\n    from retrieval import state\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from retrieval.state import State\n",
        "def late():\n    import retrieval.state\n",
    ):
        (tmp_path / "module.py").write_text(text)
        assert imports(tmp_path / "module.py") == {"retrieval.state"}


def test_the_map_of_the_house_is_true():
    """Each room that it names is there, and each room is named."""
    table = (ROOT / "docs" / "architecture.md").read_text()
    folder, named = "", set()
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", row):
            if "/" in name.rstrip("/") and not name.startswith("…/"):  # else in the room named before
                folder, _, name = name.rstrip("/").rpartition("/")
            elif name.endswith("/") and (ROOT / name).is_dir():
                folder, name = "", name.rstrip("/")
            path = Path(folder) / name.removeprefix("…/")
            assert (ROOT / path).exists(), f"docs/architecture.md names {path}"
            named |= {str(path), *map(str, path.parents)}
    for package in ("cbir", "indexer", "retrieval"):
        for path in (ROOT / package).iterdir():
            known = path.suffix == ".py" or (path / "__init__.py").exists()
            room = f"{package}/{path.name}"
            assert not known or path.name == "__init__.py" or room in named, f"{room} is on no map"


def test_the_indexer_knows_nothing_of_retrieval():
    for name, path in MODULES.items():
        if name.startswith("indexer"):
            assert "retrieval" not in {
                (node.module or "").split(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom)
            }, name


def test_every_import_of_the_packages_is_a_declared_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        "scikit_fuzzy": "skfuzzy",
        "faiss_cpu": "faiss",
        "pillow": "PIL",
        "simpleitk": "SimpleITK",
        "pynrrd": "nrrd",
        "backports.zstd": "backports",
        "python_gdcm": "gdcm",
        "grpcio": "grpc",
    }
    extras = [d for extra in project["optional-dependencies"].values() for d in extra]
    declared = {
        d.split(">")[0].split("[")[0].strip().replace("-", "_").lower()
        for d in project["dependencies"] + extras
    }
    declared |= {names[d] for d in declared if d in names} | {"cbir", "indexer", "retrieval"}
    import sys

    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            roots = []
            if isinstance(node, ast.Import):
                roots = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                roots = [node.module.split(".")[0]]
            for root in roots:
                assert root in declared or root in sys.stdlib_module_names, (name, root)


def test_files_of_the_project_speak_of_the_project_alone():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for file in tracked.stdout.split():
        if "niivue" in file:  # somebody else's
            continue
        text = (ROOT / file).read_bytes()
        for path in (b"/work" + b"/", b"/root" + b"/", b"/home" + b"/"):
            assert path not in text, (file, path)
