"""An index of six phantoms, made once: each test has a copy, and what changes nothing one service."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import serving


@pytest.fixture(scope="session")
def six(indexes: Callable[..., Path]) -> Path:
    """A folder with the index and, beside it, its images: to be copied, not to be changed."""
    return indexes(6, keep_ids=False)


@pytest.fixture
def filled(index_of: Callable[..., Path]) -> Path:
    """A copy of the index, of the same images."""
    return index_of(6, keep_ids=False)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory, six: Path) -> Iterator[Any]:
    """A service for tests that change nothing."""
    index = tmp_path_factory.mktemp("standing") / "index"
    shutil.copytree(six / "index", index)
    with serving(index) as client:
        yield client
