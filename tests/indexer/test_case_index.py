from __future__ import annotations

import errno
import hashlib
import json

import numpy as np
import pytest

from indexer import files as writing
from indexer.case_index import CaseIndex, Manifest
from indexer.catalog.schema import slices
from indexer.errors import CaseIndexError, DiskFullError, EncoderError, PartitionError
from indexer.partition import Partition
from indexer.policy import SearchPolicy
from indexer.recall import drift
from indexer.stores.faiss import store as faiss_store
from indexer.stores.faiss.vectors import Vectors
from tests.indexer.test_catalog import entry, scan
from tests.indexer.test_vectors import only_by_lists

pytestmark = pytest.mark.both


class Four:
    name, dimension, version, size = "four", 4, "1", 16

    def encode(self, batch):
        raise AssertionError("not asked")


def unit(n=6, seed=0, **where):
    raw = scan(n=n, seed=seed, **where)
    vectors = raw.embeddings / np.linalg.norm(raw.embeddings, axis=1, keepdims=True)
    return type(raw)(**{**vars(raw), "embeddings": vectors})


EARLY = SearchPolicy(exact_below=300)
"""A partition of little."""


@pytest.fixture
def index(tmp_path):
    with CaseIndex.create(tmp_path / "index", Four(), policy=EARLY) as index:
        yield index


def fill(index, sources=4):
    with index.writing("test"):
        index.catalog.put(
            [entry(f"/{i}", unit(case=f"c{i}", patient=f"p{i}", seed=i)) for i in range(sources)], {}
        )


def ids(snapshot):
    return sorted(snapshot.vectors.ids().tolist())


def test_the_catalog_is_searched_before_it_is_filed(index):
    fill(index)
    assert index.manifest.vectors is None
    snapshot = index.snapshot()
    assert ids(snapshot) == snapshot.contents.slice_ids.tolist()
    x = index.catalog.embeddings(snapshot.contents.slice_ids[:3])
    scores, found = snapshot.vectors.search(x, 1)
    assert found[:, 0].tolist() == snapshot.contents.slice_ids[:3].tolist()
    np.testing.assert_allclose(scores, 1, atol=1e-6)


def test_what_came_and_went_since_filing_is_right_in_a_snapshot(index):
    fill(index)
    index.file_vectors()
    index.catalog.remove_cases(["c1"])
    index.catalog.put([entry("/9", unit(case="c9", patient="p9", seed=9))], {})
    snapshot = index.snapshot()
    assert ids(snapshot) == snapshot.contents.slice_ids.tolist()
    notes = index.verify()
    assert [p.sound for p in notes] == [True]
    assert index.lag() == 12 / 24
    assert "12 slices behind" in notes[0].what
    index.file_vectors()
    assert index.verify() == []


@pytest.mark.local
def test_one_vectors_file_is_kept(index):
    for i in range(3):
        index.catalog.put([entry(f"/{i}", unit(case=f"c{i}", seed=i))], {})
        index.file_vectors()
    assert len(list(index.folder.glob("vectors-*"))) == 1


def test_lag_counts_what_came_and_went(index):
    assert index.lag() == 0
    fill(index)
    assert index.lag() == 1
    index.file_vectors()
    assert index.lag() == 0
    index.catalog.remove_cases(["c0", "c1", "c2"])
    assert index.lag() == 1  # 18 went, 6 are left
    index.catalog.remove_cases(["c3"])
    assert index.lag() == 1


@pytest.mark.local
def test_a_flipped_bit_in_the_vectors_is_told_and_mended(index):
    fill(index)
    index.file_vectors()
    path = index.folder / index.manifest.vectors.file
    data = bytearray(path.read_bytes())
    data[-40] ^= 4
    path.write_bytes(data)
    with pytest.raises(CaseIndexError, match="checksum.*--repair"):
        index.snapshot()
    (problem,) = index.verify()
    assert not problem.sound
    (problem,) = index.verify(repair=True)
    assert problem.mended
    assert index.verify() == []
    index.snapshot()


@pytest.mark.local
@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_a_missing_or_torn_vectors_file_is_mended(index, damage):
    fill(index)
    index.file_vectors()
    path = index.folder / index.manifest.vectors.file
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CaseIndexError, match="repair"):
        index.snapshot()
    assert index.verify()
    index.verify(repair=True)
    assert index.verify() == []


def test_a_damaged_scan_is_taken_out_so_that_it_is_read_again(index):
    fill(index)
    index.file_vectors()
    with index.catalog.engine.begin() as raw:
        raw.execute(slices.update().where(slices.c.id == 1).values(embedding=bytes(16)))
    assert [p.where for p in index.verify() if "checksum" in p.what] == ["/0"]
    index.verify(repair=True)
    assert index.verify() == []
    assert "/0" not in index.catalog.fingerprints()


def test_vectors_without_rows_and_rows_without_vectors_are_told(index):
    fill(index)
    index.file_vectors()
    manifest = json.loads((index.folder / "manifest.json").read_text())
    index.catalog.remove_cases(["c0"])
    index.catalog.put([entry("/9", unit(case="c9", patient="p9", seed=9))], {})
    manifest["vectors"]["revision"] = index.catalog.revision
    (index.folder / "manifest.json").write_text(json.dumps(manifest))
    with CaseIndex.open(index.folder, EARLY) as claimed:
        told = " ".join(p.what for p in claimed.verify())
    assert "6 slices have no vector" in told
    assert "6 vectors have no slice" in told


def test_leftovers_of_a_crash_are_cleared_by_the_next_writer(index):
    (index.folder / "vectors-7.faiss.123.part").write_text("torn")
    fill(index)
    assert not list(index.folder.glob("*.part"))


def test_a_crash_while_the_manifest_is_replaced_leaves_the_old_one(index, monkeypatch):
    fill(index)
    index.file_vectors()
    held = index.manifest
    index.catalog.remove_cases(["c0"])

    def crash(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(Manifest, "save", crash)
    with pytest.raises(OSError, match="no space"):
        index.file_vectors()
    monkeypatch.undo()
    with CaseIndex.open(index.folder, EARLY) as reopened:
        assert reopened.manifest.vectors == held.vectors
        snapshot = reopened.snapshot()
        assert ids(snapshot) == snapshot.contents.slice_ids.tolist()
        assert "c0" not in snapshot.contents.case_ids


def test_a_wrong_encoder_is_refused(index):
    other = Four()
    other.version = "2"
    with pytest.raises(EncoderError, match="four 1, not by four 2"):
        index.require(other)
    other.version, other.size = "1", 24
    with pytest.raises(EncoderError, match="preprocessing"):
        index.require(other)


def test_no_index_a_foreign_folder_and_another_format_are_one_line(tmp_path, index):
    with pytest.raises(CaseIndexError, match="no index here.*cbir index"):
        CaseIndex.open(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(CaseIndexError, match="holds no index"):
        CaseIndex.create(tmp_path / "photos", Four())
    path = index.folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 99'))
    with pytest.raises(CaseIndexError, match="format 99"):
        CaseIndex.open(index.folder, EARLY)
    path.write_text("{}")
    with pytest.raises(CaseIndexError, match="manifest cannot be read"):
        CaseIndex.open(index.folder, EARLY)


def test_a_key_that_others_may_read_is_told_and_mended(index):
    (index.folder / "key").chmod(0o644)
    assert "others may read" in index.verify()[0].what
    index.verify(repair=True)
    assert index.verify() == []
    (index.folder / "key").unlink()
    assert "missing" in index.verify()[0].what


def test_vectors_that_cannot_be_partitioned_are_all_compared(index, monkeypatch):
    same = unit()  # a scan that is filed under many names
    filed = [entry(f"/{i}", type(same)(**{**vars(same), "case_id": f"c{i}"})) for i in range(80)]
    index.catalog.put(filed, {})
    index.file_vectors()
    index.compact()
    assert index.manifest.vectors.partition is None
    assert index.verify() == []
    scores, _ = index.snapshot().vectors.search(same.embeddings[:1].astype(np.float32), 5)
    np.testing.assert_allclose(scores, 1, atol=1e-5)


def test_enough_vectors_are_partitioned_and_answers_stay(index, monkeypatch):
    fill(index, sources=80)
    index.file_vectors()
    assert index.manifest.vectors.partition
    check = index.check()
    assert check["recall_at_10"] >= 0.9
    assert "of the way to the limit" in check["fuzzifier_reason"]
    if index.manifest.store == "faiss":
        assert {path.suffix for path in index.folder.glob("vectors-*")} == {".faiss", ".rows"}
    assert index.verify() == []
    fitted = index.manifest.vectors.partition_sha256
    index.catalog.remove_cases(["c3"])
    index.file_vectors()
    assert index.manifest.vectors.partition_sha256 == fitted
    assert index.verify() == []
    index.catalog.put([entry(f"/{i}", unit(case=f"c{i}", seed=i)) for i in range(80, 170)], {})
    index.file_vectors()
    assert index.manifest.vectors.partition_sha256 != fitted  # more than twice what it was fitted on
    index.compact()
    assert index.verify() == []


def files(index):
    return {path.name: path.stat().st_mtime_ns for path in index.folder.glob("*-*.*")}


def same_answers(index):
    """The snapshot holds the catalog's slices with the catalog's vectors, and finds each of them."""
    snapshot = index.snapshot()
    held = snapshot.contents.slice_ids
    assert ids(snapshot) == held.tolist()
    x = index.catalog.embeddings(held)
    np.testing.assert_array_equal(snapshot.vectors.gather(held), x)
    with only_by_lists(snapshot.vectors):
        scores, _ = snapshot.vectors.search(x, 1)
    assert np.mean(scores[:, 0] > 1 - 1e-5) > 0.95
    assert index.verify() == []


@pytest.mark.local
def test_what_comes_and_goes_rewrites_no_large_file(index, monkeypatch):
    fill(index, sources=80)
    index.file_vectors()
    first = files(index)
    for i in range(80, 83):
        index.catalog.put([entry(f"/{i}", unit(case=f"c{i}", patient=f"p{i}", seed=i))], {})
        index.file_vectors()
        index.catalog.remove_cases([f"c{i - 80}", f"c{i - 1}"])  # also what came last
        index.file_vectors()
        assert files(index).items() >= first.items()
        same_answers(index)
    assert len(index.manifest.vectors.pieces) == 3
    piece = index.folder / index.manifest.vectors.pieces[0].rows
    content = bytearray(piece.read_bytes())
    content[3] ^= 1
    piece.write_bytes(content)
    with pytest.raises(CaseIndexError, match="checksum"):
        index.snapshot()
    index.verify(repair=True)
    assert index.manifest.vectors.pieces == ()
    same_answers(index)


@pytest.mark.local
def test_many_pieces_are_merged_and_nothing_is_filed_again(index, monkeypatch):
    monkeypatch.setattr(faiss_store, "PIECES", 2)
    fill(index, sources=80)
    index.file_vectors()
    fitted = index.manifest.vectors.partition_sha256
    before = index.snapshot()
    index.catalog.remove_cases(["c5"])
    filed = []
    monkeypatch.setattr(Vectors, "write", counting(Vectors.write, filed))
    for i in range(80, 83):
        index.catalog.put([entry(f"/{i}", unit(case=f"c{i}", patient=f"p{i}", seed=i))], {})
        index.file_vectors()
    held = index.manifest.vectors
    assert (held.pieces, held.entries, held.partition_sha256) == ((), held.slices, fitted)
    assert len(filed) == 3  # each of what had come, and none of all
    assert len(files(index)) == 3
    same_answers(index)
    # who has opened the files that are gone goes on asking them
    x = before.vectors.gather(before.contents.slice_ids[:5])
    assert before.vectors.search(x, 1)[1][:, 0].tolist() == before.contents.slice_ids[:5].tolist()


@pytest.mark.local
def test_drift_is_told_and_compacting_mends_it_while_questions_go_on(index, monkeypatch):
    fill(index, sources=80)
    index.file_vectors()
    assert index.check()["drift"] == "none"
    # a scanner that sees one thing only: 400 slices in a corner of the space
    corner = unit(n=400, case="c100", patient="p100", seed=100)
    corner.embeddings[:] = [1, 0, 0, 0] + 0.3 * corner.embeddings
    corner.embeddings[:] /= np.linalg.norm(corner.embeddings, axis=1, keepdims=True)
    index.catalog.put([entry("/100", corner)], {})
    index.file_vectors()
    assert "as full as at the fit: run `cbir compact`" in index.check()["drift"]
    before = index.snapshot()
    index.compact()
    assert index.check()["drift"] == "none"
    x = before.vectors.gather(before.contents.slice_ids[:5])
    assert before.vectors.search(x, 1)[1][:, 0].tolist() == before.contents.slice_ids[:5].tolist()


def test_recall_below_the_calibrated_one_isdrift():
    partition = Partition.fit(unit(n=400).embeddings.astype(np.float32), lists=8)
    partition.calibrate(unit(n=100, seed=1).embeddings.astype(np.float32), partition.centroids.repeat(20, 0))
    asked = partition.probing(10).recall
    assert drift(partition, partition.sizes, asked - 0.01, 200, 10) is None
    assert "run `cbir compact`" in (drift(partition, partition.sizes, asked - 0.03, 200, 10) or "")


def counting(write, calls):
    def counted(*arguments):
        calls.append(arguments)
        return write(*arguments)

    return staticmethod(counted)


@pytest.mark.local
def test_compacting_an_unchanged_index_leaves_its_files_until_the_manifest_names_others(index, monkeypatch):
    fill(index, sources=80)
    index.file_vectors()
    held = files(index)

    def crash(*_args, **_kwargs):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "save", crash)
        with pytest.raises(OSError, match="no space"):
            index.compact()
    assert files(index).items() >= held.items()
    with CaseIndex.open(index.folder, EARLY) as reopened:
        same_answers(reopened)


@pytest.mark.local
@pytest.mark.parametrize("name", ["file", "rows", "partition"])
def test_a_flipped_bit_in_codes_vectors_or_partition_is_told_and_mended(index, monkeypatch, name):
    fill(index, sources=80)
    index.file_vectors()
    path = index.folder / getattr(index.manifest.vectors, name)
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    with pytest.raises(CaseIndexError, match="checksum"):
        index.snapshot()
    assert [problem.sound for problem in index.verify()] == [False]
    index.verify(repair=True)
    assert index.verify() == []
    assert len(index.snapshot().vectors) == index.manifest.vectors.slices


def test_a_partition_of_another_version_is_told_and_fitted_anew(index, monkeypatch):
    fill(index, sources=80)
    index.file_vectors()
    path = index.folder / index.manifest.vectors.partition
    with path.open("wb") as file:
        np.savez(file, other=np.arange(3))
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = json.loads((index.folder / "manifest.json").read_text())
    manifest["vectors"]["partition_sha256"] = checksum
    (index.folder / "manifest.json").write_text(json.dumps(manifest))
    with CaseIndex.open(index.folder, EARLY) as reopened:
        with pytest.raises(PartitionError, match="--repair"):
            reopened.snapshot()
        assert [p.sound for p in reopened.verify()] == [False]
        with reopened.writing("verify --repair"):
            reopened.verify(repair=True)
        assert reopened.verify() == []


@pytest.mark.local
def test_a_catalog_without_its_manifest_is_not_taken_for_a_new_index(index):
    fill(index)
    (index.folder / "manifest.json").unlink()
    with pytest.raises(CaseIndexError, match="the manifest is missing"):
        CaseIndex.open(index.folder, EARLY)
    with pytest.raises(CaseIndexError, match="without its manifest"):
        CaseIndex.create(index.folder, Four())


def test_two_who_make_the_same_index_meet(tmp_path):
    with CaseIndex.create(tmp_path / "index", Four()) as first:
        with CaseIndex.create(tmp_path / "index", Four()) as second:
            assert second.manifest == first.manifest
        with first.writing("index"), pytest.raises(CaseIndexError, match="has been writing since"):
            CaseIndex.create(tmp_path / "index", Four())


def test_a_manifest_whose_name_cannot_be_synced_is_taken_back(tmp_path, monkeypatch):
    """It has its name already: left alone, it would be an index without a catalog."""
    sync = writing._sync

    def full(path):
        if path.is_dir() and (path / "manifest.json").exists():
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_sync", full)
        with pytest.raises(DiskFullError):
            CaseIndex.create(tmp_path / "index", Four())
    assert not (tmp_path / "index" / "manifest.json").exists()
    CaseIndex.create(tmp_path / "index", Four()).close()
