"""An index of six phantoms, made once: each test has a copy, and what changes nothing one service."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cbir import create_index
from tests.support.encoders import TinyEncoder
from tests.support.images import write_cohort
from tests.support.service import serving


@pytest.fixture(scope="session")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the index and, beside it, its images: to be copied, not to be changed."""
    root = tmp_path_factory.mktemp("six")
    with create_index(root / "index", encoder=TinyEncoder()) as index:
        index.add(write_cohort(root / "mri", 6), calibrate=False)
    return root


@pytest.fixture
def filled(tmp_path: Path, six: Path) -> Path:
    """A copy of the index, of the same images."""
    return Path(shutil.copytree(six / "index", tmp_path / "index"))


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory, six: Path) -> Iterator[Any]:
    """A service for tests that change nothing."""
    index = tmp_path_factory.mktemp("standing") / "index"
    shutil.copytree(six / "index", index)
    with serving(index) as client:
        yield client
