"""A service in this process, and what is sent to it."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra cbir[serve] is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # httpx or httpx2: either will do
    from starlette.testclient import TestClient

from retrieval.service.app import create_app
from retrieval.service.settings import Settings
from tests.support.encoders import TinyEncoder

HERE = "http://127.0.0.1"


@contextmanager
def serving(index: Path, encoder: Any = None, **settings: Any) -> Iterator[TestClient]:
    made = create_app(Settings(index=index, **settings), encoder or TinyEncoder())
    with TestClient(made, base_url=HERE, raise_server_exceptions=False) as client:
        yield client


def sent(path: Path, name: str = "") -> dict[str, Any]:
    return {"file": (name or path.name, path.read_bytes())}


def zipped(*folders: Path) -> dict[str, Any]:
    with io.BytesIO() as out:
        with zipfile.ZipFile(out, "w") as archive:
            for folder in folders:
                for path in sorted(folder.rglob("*")):
                    archive.write(path, path.relative_to(folder.parent))
        return {"file": ("study.zip", out.getvalue())}


def done(client: TestClient, reply: Any) -> dict[str, Any]:
    """The job that a reply started, when it is over."""
    assert reply.status_code == 202, reply.text
    service = client.app.state.service
    assert service.jobs.get(reply.json()["job"]).wait(60)
    return client.get(f"/jobs/{reply.json()['job']}").json()
