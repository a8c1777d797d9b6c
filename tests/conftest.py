"""Shared by all tests: a small encoder, small cohorts, and the real data where they are."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from benchmarks import results
from indexer.case_index import CaseIndex
from indexer.catalog import Catalog
from indexer.ingest import ingest
from indexer.sandbox.pool import InProcess, using
from tests.support.encoders import TinyAnalyser, TinyEncoder
from tests.support.images import write_cohort
from tests.support.network import leave
from tests.support.paths import REAL
from tests.support.servers import Milvus, Postgres, missing, started

# machines are shared and noisy: no test is about time
hypothesis.settings.register_profile("cbir", deadline=None)
hypothesis.settings.load_profile("cbir")


CREATE = CaseIndex.create
"""With files, whatever a test puts in its place."""
ENGINES = ("files", "servers")
"""FAISS and SQLite, and Milvus and PostgreSQL."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runs-killed", type=int, default=6, help="moments at which a real run is killed")
    parser.addoption(
        "--flips", type=int, default=2, help="bits flipped in each file; 20 times in the catalog"
    )
    parser.addoption("--kills", type=int, default=12, help="system calls at which a verb is killed")
    parser.addoption("--errors", type=int, default=12, help="system calls that fail, or all from one on")
    parser.addoption("--interrupts", type=int, default=8, help="system calls at which Ctrl-C comes")
    parser.addoption("--folders", type=int, default=80, help="commands at hostile index folders")
    parser.addoption("--fuzz", type=int, default=200, help="mutated files that the fuzz test reads")
    parser.addoption("--fuzz-seed", type=int, default=0, help="number of the first of them")
    parser.addoption("--planted", type=int, default=300, help="identifiers that are planted, at least")
    parser.addoption("--record", action="store_true", help="keep figures for the documents")


@pytest.fixture(scope="session")
def servers() -> Iterator[tuple[Milvus, Postgres]]:
    """A real Milvus and a real PostgreSQL; what comes after these has no other network."""
    if absent := missing():
        pytest.skip(f"not installed: {', '.join(absent)}")
    if not leave():
        pytest.skip("this needs a network of its own: run it as root, or see tests/support/network.py")
    with started() as both:
        yield both


@pytest.fixture(scope="session", autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder of settings that is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        yield


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where an index lies if no test says otherwise: each of `ENGINES` in turn, where it is marked `both`."""
    which = str(getattr(request, "param", ENGINES[0]))
    if which == "servers":
        milvus, postgres = request.getfixturevalue("servers")
        create = partial(CaseIndex.create, store=f"milvus+{milvus.uri}", catalog=postgres.url)
        monkeypatch.setattr(CaseIndex, "create", staticmethod(create))
    return which


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    both = metafunc.definition.get_closest_marker("both")
    if both and not metafunc.definition.get_closest_marker("local"):
        there = pytest.param("servers", marks=[pytest.mark.engines, pytest.mark.timeout(600)])
        metafunc.parametrize("engine", ["files", there], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: bool(item.get_closest_marker("engines")))  # they leave the network
    if not REAL.is_dir():
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason="no ../shared/data beside the checkout"))


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str, dict[str, Any]], None]:
    """Called with a name and figures; with ``--record`` they are kept for the documents."""

    def keep(name: str, figures: dict[str, Any]) -> None:
        if request.config.getoption("--record"):
            path = results.RESULTS / "hostility.json"
            before = results.load("hostility")["results"] if path.exists() else {}
            results.save("hostility", {**before, name: {**figures, **results.provenance()}})

    return keep


@pytest.fixture(scope="session")
def real() -> Path:
    """The real data; only for tests marked `real`."""
    return REAL


@pytest.fixture
def in_process() -> Iterator[None]:
    """Files are read in this process, where a test can put something else in a reader's place."""
    with using(InProcess()):
        yield


@pytest.fixture
def tiny() -> TinyEncoder:
    return TinyEncoder()


@pytest.fixture
def looking() -> TinyAnalyser:
    return TinyAnalyser()


@pytest.fixture
def cohort(tmp_path: Path) -> Callable[..., Path]:
    """Write a cohort of phantoms: `cohort(n)` gives its folder."""

    def write(n: int = 6, sequences: tuple[str, ...] = ("t1ce",), folder: str = "mri") -> Path:
        return write_cohort(tmp_path / folder, n, sequences)

    return write


@pytest.fixture
def catalog(tmp_path: Path, engine: str, request: pytest.FixtureRequest) -> Iterator[Catalog]:
    """An empty catalog of embeddings with four numbers."""
    if engine == "servers":
        _, postgres = request.getfixturevalue("servers")
        catalog = Catalog.on(postgres.url, 4, f"test_{secrets.token_hex(8)}", create=True)
    else:
        catalog = Catalog.at(tmp_path / "catalog.sqlite", 4, create=True)
    yield catalog
    catalog.drop()
    catalog.close()


@pytest.fixture(scope="session")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Indexes of phantoms, each made once: `indexes(n)` gives a folder with `index` and its images, `mri`.

    They are to be copied, not to be changed.
    """
    made: dict[object, Path] = {}

    def make(n: int, sequences: tuple[str, ...] = ("t1ce",), *, keep_ids: bool = True) -> Path:
        if (n, sequences, keep_ids) not in made:
            root = tmp_path_factory.mktemp("made")
            with CREATE(root / "index", TinyEncoder(), keep_ids=keep_ids) as index:
                ingest(index, [write_cohort(root / "mri", n, sequences)], TinyEncoder())
            made[n, sequences, keep_ids] = root
        return made[n, sequences, keep_ids]

    return make


@pytest.fixture
def index_of(tmp_path: Path, indexes: Callable[..., Path]) -> Callable[..., Path]:
    """Copy such an index: `index_of(n)` gives its folder."""

    def copied(n: int, sequences: tuple[str, ...] = ("t1ce",), *, keep_ids: bool = True) -> Path:
        made = indexes(n, sequences, keep_ids=keep_ids) / "index"
        return Path(shutil.copytree(made, tmp_path / "index"))

    return copied
