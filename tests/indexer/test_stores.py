"""Which engine an address means, what a failed start leaves, and an engine from outside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cbir import open_index
from indexer import stores
from indexer.case_index import CaseIndex
from indexer.errors import CaseIndexError, EncoderError
from indexer.ingest import ingest
from indexer.manifest import Manifest
from indexer.stores import address
from indexer.transfer import transfer
from tests.indexer.test_case_index import Four, fill, same_answers

TOY = '''
"""An engine that keeps its vectors in a dictionary of this process."""

from dataclasses import dataclass, replace

import numpy as np

from indexer.stores.filed import Filed
from indexer.stores.protocol import compared

HELD = {}


@dataclass(frozen=True, eq=False)
class Toy:
    vectors: dict
    dimension: int
    partition: object = None

    def __len__(self):
        return len(self.vectors)

    def ids(self):
        return np.array(sorted(self.vectors), np.int64)

    def list_sizes(self):
        return np.array([len(self)])

    def search(self, q, k, keep=None, but=()):
        ids = self.ids() if keep is None else np.intersect1d(self.ids(), keep)
        ids = np.setdiff1d(ids, but)
        scores, found = np.full((len(q), k), -np.inf, np.float32), np.full((len(q), k), -1, np.int64)
        products = q @ self.gather(ids).T
        best = np.argsort(-products, axis=1, kind="stable")[:, :k]
        scores[:, : best.shape[1]] = np.minimum(np.take_along_axis(products, best, axis=1), 1)
        found[:, : best.shape[1]] = ids[best]
        return scores, found

    def gather(self, ids):
        return np.array([self.vectors[i] for i in ids.tolist()], np.float32).reshape(-1, self.dimension)

    filed = gather

    def changed(self, ids, x, gone):
        kept = {i: v for i, v in self.vectors.items() if i not in set(gone.tolist())}
        return replace(self, vectors=kept | dict(zip(ids.tolist(), x)))


class ToyStore:
    def __init__(self, address, site):
        self.site = site

    def create(self):
        HELD[self.site.name] = {}

    def reach(self):
        pass

    def open(self, filed, partition, contents):
        return HELD[self.site.name].get(filed and filed.file) or Toy({}, self.site.dimension)

    def file(self, filed, partition, contents):
        ids = contents.slice_ids
        name = f"state {contents.revision}"
        vectors = dict(zip(ids.tolist(), self.site.catalog.embeddings(ids)))
        HELD[self.site.name][name] = Toy(vectors, self.site.dimension)
        return Filed(name, "", contents.revision, len(ids), int(ids[-1]) if len(ids) else 0)

    def keep(self, filed):
        held = HELD[self.site.name]
        for name in held.keys() - {filed.file}:
            del held[name]

    def drop(self):
        HELD.pop(self.site.name, None)

    def differences(self, filed, partition, contents):
        return compared(self.open(filed, partition, contents), filed, contents, self.site.catalog)

    def describe(self, filed):
        return "toy"

    def close(self):
        pass
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A distribution that brings an engine, installed."""
    site = tmp_path / "site"
    (site / "toy_engine-1.0.dist-info").mkdir(parents=True)
    (site / "toy_engine-1.0.dist-info" / "METADATA").write_text("Name: toy-engine\nVersion: 1.0\n")
    (site / "toy_engine-1.0.dist-info" / "entry_points.txt").write_text(
        "[cbir.stores]\ntoy = toy_engine:ToyStore\n"
    )
    (site / "toy_engine.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("toy_engine", None)


def test_an_engine_from_outside_indexes_answers_and_is_copied_from(toy, tmp_path, tiny, cohort):
    root = cohort(5)
    with CaseIndex.create(tmp_path / "toy", tiny, keep_ids=True, store="toy") as index:
        ingest(index, [root], tiny)
        assert index.verify() == []
        assert index.about()["vectors"] == "toy"
        transfer(index, tmp_path / "copy", store="faiss")
    scan = root / "P-02" / "P-02_t1ce.nii.gz"
    answers = []
    for folder in ("toy", "copy"):
        with open_index(tmp_path / folder, tiny) as opened:
            answers.append([(hit.case_id, hit.score) for hit in opened.query(scan).hits])
    assert answers[0][0][0] == "P-02"
    assert [case for case, _ in answers[0]] == [case for case, _ in answers[1]]
    np.testing.assert_allclose(*(np.array([score for _, score in one]) for one in answers), atol=1e-5)


def test_what_came_and_went_is_taken_up_by_an_engine_from_outside(toy, tmp_path):
    with CaseIndex.create(tmp_path / "toy", Four(), store="toy:somewhere") as index:
        fill(index)
        index.file_vectors()
        before = index.snapshot()
        held = before.vectors.ids().tolist()
        index.catalog.remove_cases(["c1"])
        after = index.snapshot()
        assert after.vectors.ids().tolist() == after.contents.slice_ids.tolist() != held
        assert before.vectors.ids().tolist() == held


@pytest.mark.parametrize(
    ("engine", "uri", "expected"),
    [
        (None, None, None),
        ("faiss", None, "faiss"),
        ("milvus", "http://host:1", "milvus+http://host:1"),
        (None, "http://host:1", "milvus+http://host:1"),
        (None, "milvus+https://host:1", "milvus+https://host:1"),
        ("milvus", "milvus+http://host:1", "milvus+http://host:1"),
        ("toy", "x://y", "toy+x://y"),
    ],
)
def test_an_address_is_made_of_what_the_options_say(engine, uri, expected):
    assert address(engine, uri) == expected


@pytest.mark.parametrize("wrong", ["", "nosuch", "nosuch+http://host", "/a/path"])
def test_an_engine_that_is_not_there_names_those_that_are(wrong, tmp_path):
    with pytest.raises(CaseIndexError, match="there are: faiss, milvus") as caught:
        CaseIndex.create(tmp_path / "a" / "b", Four(), store=wrong)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_of_the_first_format_is_read(tmp_path):
    with CaseIndex.create(tmp_path / "index", Four()) as index:
        fill(index)
        index.file_vectors()
        told = index.manifest
        path = index.folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["store"]
    for engine, uri, expected in (("faiss", None, "faiss"), ("milvus", "http://h:1", "milvus+http://h:1")):
        path.write_text(json.dumps({**data, "format": 1, "engine": engine, "uri": uri}))
        assert Manifest.load(path).store == expected
        assert Manifest.load(path).vectors == told.vectors
    path.write_text(json.dumps({**data, "format": 1, "engine": "faiss", "uri": None}))
    with CaseIndex.open(tmp_path / "index") as again:
        same_answers(again)


class Trained(Four):
    """Says that its weights are in a file, which is none."""

    weights_file = Path("/nowhere/weights.safetensors")

    def __init__(self, weights_file=weights_file):
        self.weights_file = weights_file


@pytest.mark.parametrize("there", [True, False])
def test_a_creation_that_fails_leaves_what_there_was(tmp_path, there):
    folder = tmp_path / "above" / "index"
    if there:
        folder.mkdir(parents=True)
        (folder / "key").write_bytes(bytes(32))
        (folder / "key").chmod(0o600)
    with pytest.raises(EncoderError, match=r"weights.safetensors.*cannot be read"):
        CaseIndex.create(folder, Trained())
    left = {path.name for path in folder.iterdir()} if there else set()
    assert left <= {"key", "lock"}
    assert there or not folder.parent.exists()
    with CaseIndex.create(folder, Four()) as index:
        assert index.verify() == []
        if there:
            assert (folder / "key").read_bytes() == bytes(32)


def test_weights_that_are_damaged_end_in_one_line(tmp_path):
    from indexer.encoder import load_encoder

    for content in (b"", b"no weights" * 100, (8).to_bytes(8, "little") + b'{"a": 1}'):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(EncoderError) as caught:
            load_encoder(str(tmp_path / "bad.safetensors"))
        assert "\n" not in str(caught.value)


def test_files_are_hashed_once_and_again_when_they_change(tmp_path, monkeypatch):
    from indexer.stores.faiss import store

    hashed = []
    monkeypatch.setattr(store, "sha256", lambda path, plain=store.sha256: hashed.append(path) or plain(path))
    with CaseIndex.create(tmp_path / "index", Four()) as index:
        fill(index)
        index.file_vectors()
        hashed.clear()
        first = index.snapshot()
        assert len(hashed) == 1
        assert index.snapshot() is first
        index.catalog.remove_cases(["c1"])
        assert index.snapshot() is not first
        assert len(hashed) == 1
        path = index.folder / index.manifest.vectors.file
        content = path.read_bytes()
        path.write_bytes(content)  # the same, but who knows
        index.snapshot()
        assert len(hashed) == 2
        index.verify()
        assert len(hashed) == 3


def test_one_line_registers_an_engine(monkeypatch, tmp_path):
    made = SimpleNamespace(create=lambda: None)
    monkeypatch.setitem(sys.modules, "made_up", SimpleNamespace(make=lambda address, site: made))
    monkeypatch.setitem(stores.registry.STORES, "other", "made_up:make")
    assert stores.store("other+x", None) is made
