"""What can be told without a server; the rest is in ``engine_scenarios.py``."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys

import numpy as np
import pytest

from indexer.case_index import CaseIndex
from indexer.errors import CaseIndexError
from indexer.stores.milvus import server
from indexer.stores.milvus.server import Milvus
from indexer.stores.milvus.vectors import MilvusVectors
from tests.indexer.test_case_index import Four, unit
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("", "address of a Milvus.*http://host:19530"),
        ("milvus.db", "address of a Milvus.*http://host:19530"),
        ("http://root:secret@127.0.0.1:1", "holds a password.*CBIR_MILVUS_TOKEN"),
    ],
)
def test_an_address_that_is_none_is_one_line_without_its_password(uri, told):
    with pytest.raises(CaseIndexError, match=told) as caught:
        Milvus(uri)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_away_leaves_no_index(tmp_path, monkeypatch):
    pytest.importorskip("pymilvus")
    monkeypatch.setattr(server, "PATIENCE", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(CaseIndexError, match="Milvus cannot be used.*repeat") as caught:
        CaseIndex.create(tmp_path / "index", Four(), store=f"milvus+{uri}")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with CaseIndex.create(tmp_path / "index", Four(), store="faiss") as index:  # nothing is in the way
        assert index.verify() == []


def test_a_missing_client_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(CaseIndexError, match=r"pymilvus.*cbir\[milvus\]"):
        Milvus("http://127.0.0.1:19530")


class Shelf:
    """A server that holds more than this state knows, and less."""

    def __init__(self, x):
        self.x = x
        self.asked = []

    def search(self, name, q, k, condition, *, strong):
        self.asked.append((k, condition))
        scores = q @ self.x.T
        best = np.argsort(-scores, axis=1)[:, :k]
        padding = max(0, k - best.shape[1])
        scores = np.pad(
            np.take_along_axis(scores, best, axis=1), ((0, 0), (0, padding)), constant_values=-np.inf
        )
        return scores, np.pad(best, ((0, 0), (0, padding)), constant_values=-1)


def test_what_this_state_does_not_know_is_neither_found_nor_in_the_way():
    x = unit(600, seed=3).embeddings
    known = np.arange(0, 600, 20)
    shelf = Shelf(x)
    vectors = MilvusVectors(shelf, "name", 4, None, known, lambda ids: x[ids])
    vectors = vectors.changed(np.array([1000]), x[7:8], known[:0])
    assert len(vectors) == 31
    q = x[[7, 11]]
    scores, found = vectors.search(q, 5)
    held = np.append(known, 1000)
    truth = q @ np.append(x[known], x[7:8], axis=0).T
    for row in range(2):
        best = np.argsort(-truth[row])[:5]
        assert found[row].tolist() == held[best].tolist()
        np.testing.assert_allclose(scores[row], truth[row][best], atol=1e-6)
    assert len(shelf.asked) > 1  # looked further where others stood before
    for keep in (None, np.append(known[:20], 1000)):  # some are left out, of all and of those
        but = np.append(found[:, 0], known[3])
        scores, ids = vectors.search(q, 5, keep, np.unique(but))
        may = ~np.isin(held, but) if keep is None else np.isin(held, keep) & ~np.isin(held, but)
        for row in range(2):
            best = np.argsort(-np.where(may, truth[row], -np.inf))[:5]
            assert ids[row].tolist() == held[best].tolist()
    vectors = vectors.changed(known[:0], x[:0], np.append(known[1:], 1000))
    scores, found = vectors.search(q, 3)
    assert found.tolist() == [[0, -1, -1]] * 2
    assert np.isneginf(scores[:, 1:]).all()
    np.testing.assert_array_equal(vectors.gather(np.array([0])), x[:1])
    with pytest.raises(KeyError):
        vectors.gather(known[1:2])


def test_the_hosts_logging_stays_the_hosts() -> None:
    """pymilvus sets up loggers when it is imported, and prints what it raises."""
    pytest.importorskip("pymilvus")
    program = """
import logging
from indexer.errors import CaseIndexError
from indexer.stores.milvus import server
server.PATIENCE = 0.5
log = logging.getLogger("pymilvus")
log.setLevel(logging.DEBUG)
try:
    server.Milvus("http://127.0.0.1:1")
except CaseIndexError as error:
    print("refused")
print(log.level, log.handlers, log.propagate, logging.getLogger("pymilvus.milvus_client").handlers)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["refused", f"{logging.DEBUG} [] True []"], done.stderr
    assert "pymilvus" not in done.stderr
