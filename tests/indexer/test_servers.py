"""What only other engines can do wrong: servers that go away and come back, copies, two who write."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cbir import Index
from indexer import case_index, ingest, transfer
from indexer.case_index import CaseIndex
from indexer.catalog import Catalog, change
from indexer.errors import CaseIndexError, StaleError
from indexer.ingest import filing
from indexer.policy import ONLY_BY_LISTS
from indexer.stores.milvus import server as milvus
from retrieval.cli import main
from tests.indexer.test_case_index import Four, fill, ids, unit
from tests.indexer.test_catalog import entry
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_nifti

BY_LISTS = replace(ONLY_BY_LISTS, exact_below=200)
"""A partition from 200 vectors on, which every search among so many goes by."""
LISTS = replace(ONLY_BY_LISTS, exact_below=0)
"""Questions go by the partition's lists."""

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def running(servers):
    yield
    for server in servers:  # one failure is enough
        if not server.running:
            server.start()


@pytest.fixture
def create(servers, tmp_path):
    """Make an index on both servers: `create(folder)`."""
    made = []

    def create(folder="index", encoder=None, **where):
        where = where or at(servers)
        made.append(CaseIndex.create(tmp_path / folder, encoder or Four(), policy=BY_LISTS, **where))
        return made[-1]

    yield create
    for index in made:
        index.close()


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "mri"
    lines = ["participant_id\twho_grade"]
    for i in range(8):
        write_nifti(root / f"P-{i:02}" / f"P-{i:02}_t1.nii", phantom(i))
        lines.append(f"P-{i:02}\t{2 + i % 3}")
    (root / "participants.tsv").write_text("\n".join(lines))
    return root


def at(servers):
    return {"store": f"milvus+{servers[0].uri}", "catalog": servers[1].url}


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def state(index):
    """All that an index says, without ids of rows."""
    contents = index.snapshot().contents
    places = zip(contents.slice_scan, contents.slice_position, strict=True)
    rows = [(contents.scan_source[scan], int(position)) for scan, position in places]
    return rows, contents.labels, index.catalog.embeddings(contents.slice_ids).round(5).tolist()


def test_both_engines_answer_alike_there_and_back(create, servers, tmp_path):
    here = create("here", store="faiss")
    fill(here, sources=60)
    here.catalog.remove_cases(["c7"])  # ids with a gap
    here.file_vectors()
    where = at(servers)
    transfer.transfer(here, tmp_path / "there", **where)
    with CaseIndex.open(tmp_path / "there") as there:
        transfer.transfer(there, tmp_path / "back")
        assert there.verify() == []
        back = CaseIndex.open(tmp_path / "back")
        near, far, again = here.snapshot(), there.snapshot(), back.snapshot()
        assert far.vectors.partition is not None
        for other in (far, again):
            assert other.contents.slice_ids.tolist() == near.contents.slice_ids.tolist()
            assert other.contents.case_ids == near.contents.case_ids
        q = unit(40, seed=1000).embeddings
        keep = near.contents.slice_ids[::2]
        for kept in (None, keep):
            for query in q:  # one by one they probe the same lists
                ours = near.vectors.search(query[None], 10, kept)
                theirs = far.vectors.search(query[None], 10, kept)
                np.testing.assert_allclose(theirs[0], ours[0], atol=1e-6)
                assert set(theirs[1][0].tolist()) == set(ours[1][0].tolist())
            together = far.vectors.search(q, 10, kept)[0]
            assert (together >= near.vectors.search(q, 10, kept)[0] - 1e-6).all()  # more lists, never fewer
        assert there.pseudonym("patient", "x") == here.pseudonym("patient", "x")
        assert back.about()["catalog"].endswith("catalog.sqlite")
        back.close()


def test_a_copy_that_fails_leaves_nothing_and_a_killed_one_is_cleared(create, servers, tmp_path, monkeypatch):
    source = create()
    fill(source)
    source.file_vectors()
    server = source.store.server
    where = at(servers)
    before = server.collections("cbir_"), schemas(source)

    def fail(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr(Catalog, "take_over", fail)
    with pytest.raises(RuntimeError):
        transfer.transfer(source, tmp_path / "to", **where)
    assert (server.collections("cbir_"), schemas(source)) == before
    assert {path.name for path in tmp_path.iterdir()} == {"index"}
    with monkeypatch.context() as killed:
        killed.setattr(transfer, "_discard", lambda *_: None)
        with pytest.raises(RuntimeError):
            transfer.transfer(source, tmp_path / "to", **where)
    assert schemas(source) != before[1]
    monkeypatch.undo()
    transfer.transfer(source, tmp_path / "to", **where)
    assert len(schemas(source)) == len(before[1]) + 1
    assert {path.name for path in tmp_path.iterdir()} == {"index", "to"}
    with pytest.raises(CaseIndexError, match="exists already"):
        transfer.transfer(source, tmp_path / "to", **where)


def schemas(index):
    with index.catalog._transaction() as connection:
        found = connection.exec_driver_sql("select nspname from pg_namespace where nspname like 'cbir%%'")
        return sorted(found.scalars())


def test_a_writer_killed_while_it_files_is_caught_up(create, monkeypatch):
    index = create()
    fill(index)
    index.file_vectors()
    index.catalog.put([entry("/9", unit(case="c9", patient="p9", seed=9))], {})
    index.catalog.remove_cases(["c1"])
    insert = milvus.Milvus.insert

    def half(self, name, new, x, partition):
        insert(self, name, new[:3], x[:3], partition)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(milvus.Milvus, "insert", half)
        with pytest.raises(KeyboardInterrupt):
            index.file_vectors()
    with CaseIndex.open(index.folder) as reader:
        snapshot = reader.snapshot()
        assert ids(snapshot) == snapshot.contents.slice_ids.tolist()
        x = reader.catalog.embeddings(snapshot.contents.slice_ids)
        assert snapshot.vectors.search(x, 1)[1][:, 0].tolist() == snapshot.contents.slice_ids.tolist()
        assert all(problem.sound for problem in reader.verify())
    held = index.manifest.vectors.file
    index.file_vectors()
    assert index.manifest.vectors.file == held  # in place
    assert index.verify() == []


def test_entries_that_were_lost_or_spoilt_are_told_and_mended(create):
    index = create()
    fill(index)
    index.file_vectors()
    held = index.manifest.vectors.file
    index.store.server.delete(held, np.array([2, 3]))
    with pytest.raises(StaleError, match="22 entries instead of 24.*--repair"):
        index.snapshot()
    assert not index.verify()[0].sound
    assert index.verify(repair=True)[0].mended
    assert index.verify() == []
    held = index.manifest.vectors.file
    index.store.server.delete(held, np.array([4]))
    index.store.server.insert(held, np.array([4]), unit(1, seed=77).embeddings, None)
    assert ["1 vectors differ" in problem.what for problem in index.verify()] == [True]
    index.verify(repair=True)
    assert index.verify() == []
    index.store.server.drop(index.manifest.vectors.file)
    with pytest.raises(CaseIndexError, match="collection is gone.*--repair"):
        index.snapshot()
    index.verify(repair=True)
    assert index.verify() == []


def test_a_reader_answers_from_the_new_state_where_a_writer_took_cases_out(create, images):
    tiny = TinyEncoder()
    folder = filled(create, images, tiny).folder
    with Index(CaseIndex.open(folder, LISTS), tiny) as reader:
        query = images / "P-00" / "P-00_t1.nii"
        first = reader.query(query, 8, by="similarity").hits
        with CaseIndex.open(reader.case_index.folder) as writer, writer.writing("remove"):
            writer.catalog.remove_cases([hit.case_id for hit in first[1:3]])
            writer.file_vectors()
        kept = [hit.case_id for hit in first if hit not in first[1:3]]
        # by similarity: who votes, and so the other orders, may change with who is gone
        assert [hit.case_id for hit in reader.query(query, 8, by="similarity").hits] == kept


def filled(create, images, encoder, folder="index"):
    index = create(
        folder,
        encoder,
    )
    ingest.ingest(index, [images], encoder)
    return index


@pytest.mark.parametrize("which", ["postgres", "milvus"])
def test_a_server_that_is_lost_and_comes_back(create, images, servers, monkeypatch, capsys, which):
    server = servers[which == "postgres"]
    tiny = TinyEncoder()
    monkeypatch.setattr(filing, "GROUP", 20)
    monkeypatch.setattr(case_index, "load_encoder", lambda name: tiny)
    index = filled(create, images, tiny)
    reader = Index(CaseIndex.open(index.folder, LISTS), tiny)
    ask = partial(reader.query, images / "P-00" / "P-00_t1.nii", 5)
    before = [hit.case_id for hit in ask().hits]
    more = images.with_name("more")
    for i in range(8):
        write_nifti(more / f"Q-{i:02}" / f"Q-{i:02}_t1.nii", phantom(100 + i))
    undisturbed = filled(create, images, tiny, "undisturbed")
    ingest.ingest(undisturbed, [more], tiny)
    expected = state(undisturbed)

    put, calls = index.catalog.put, []

    def lost(*arguments):
        calls.append(arguments)
        if len(calls) == 2:  # of several groups
            server.lose()
            monkeypatch.setattr(milvus, "PATIENCE", 5)  # nobody will answer
        return put(*arguments)

    index.catalog.put = lost
    with pytest.raises(CaseIndexError, match="repeat the command") as caught:
        ingest.ingest(index, [more], tiny)
    one_line(caught)
    with pytest.raises(CaseIndexError) as caught:
        ask()
    one_line(caught)
    index.close()

    # away at the start
    verbs = [["remove", "--patient", "P-01"], ["index", str(more)], ["query", str(more / "Q-00")], ["verify"]]
    for verb in verbs:
        monkeypatch.setattr(sys, "argv", ["cbir", *verb, "--index", str(index.folder)])
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        assert end.value.code == 1
        assert "repeat the command" in told.err or (verb == ["verify"] and "cannot be used" in told.out)
        assert "Traceback" not in told.err
        assert len(told.err.splitlines()) == 1

    server.start()
    monkeypatch.setattr(milvus, "PATIENCE", 60)
    with Index(CaseIndex.open(index.folder, LISTS), tiny) as fresh:
        now = fresh.query(images / "P-00" / "P-00_t1.nii", 5)
    # a reader whose state cannot be had any more answers from what was committed meanwhile
    assert [hit.case_id for hit in ask().hits] in (before, [hit.case_id for hit in now.hits])
    reader.close()
    index = CaseIndex.open(index.folder)
    ingest.ingest(index, [more], tiny)
    assert index.verify() == []
    assert state(index) == expected
    index.close()


def in_the_second_transaction(index, servers, monkeypatch, restarted):
    """The database goes when a group is half written."""
    rows, calls = change.SliceRow.of, []

    def lost(scan, embedded):
        calls.append(scan)
        if len(calls) == 4:
            servers[1].lose()
            if restarted:
                servers[1].start()
        return rows(scan, embedded)

    monkeypatch.setattr(change.SliceRow, "of", staticmethod(lost))


def in_the_second_insert(index, servers, monkeypatch, restarted):
    """Milvus goes when the vectors are half filed."""
    monkeypatch.setattr(milvus, "ROWS", 30)
    client, calls = index.store.server._client, []
    insert = client.insert

    def lost(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            servers[0].lose()
            monkeypatch.setattr(milvus, "PATIENCE", 5)  # nobody will answer
        return insert(*arguments, **options)

    monkeypatch.setattr(client, "insert", lost)


@pytest.mark.parametrize(
    ("moment", "restarted"),
    [(in_the_second_transaction, False), (in_the_second_transaction, True), (in_the_second_insert, False)],
)
def test_a_server_lost_half_way_through_a_write(create, images, servers, monkeypatch, moment, restarted):
    tiny = TinyEncoder()
    monkeypatch.setattr(filing, "GROUP", 20)
    expected = state(filled(create, images, tiny, "undisturbed"))
    index = create("index", tiny)
    with monkeypatch.context() as patch:
        moment(index, servers, patch, restarted)
        with pytest.raises(CaseIndexError, match="repeat the command") as caught:
            ingest.ingest(index, [images], tiny)
        one_line(caught)
    index.close()
    for server in servers:
        if not server.running:
            server.start()
    monkeypatch.setattr(milvus, "PATIENCE", 60)
    with CaseIndex.open(index.folder) as again:
        assert all(problem.sound for problem in again.verify())
        assert len(state(again)[0]) < len(expected[0]) or moment is in_the_second_insert
        ingest.ingest(again, [images], tiny)
        assert again.verify() == []
        assert state(again) == expected
        snapshot = again.snapshot()
        found = snapshot.vectors.search(again.catalog.embeddings(snapshot.contents.slice_ids), 1)[1]
        assert found[:, 0].tolist() == snapshot.contents.slice_ids.tolist()


def test_a_milvus_restarted_while_images_are_read_is_no_error(create, images, servers, monkeypatch):
    tiny = TinyEncoder()
    monkeypatch.setattr(filing, "GROUP", 20)
    monkeypatch.setattr(milvus, "PATIENCE", 60)
    index = create("index", tiny)
    put, calls = index.catalog.put, []

    def restarted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            servers[0].stop()
            servers[0].start()
        return put(*arguments)

    index.catalog.put = restarted
    assert ingest.ingest(index, [images], tiny).indexed == 8
    assert index.verify() == []


def test_a_database_restarted_between_two_transactions_is_no_error(create, images, servers, monkeypatch):
    tiny = TinyEncoder()
    monkeypatch.setattr(filing, "GROUP", 20)
    index = create("index", tiny)
    put, calls = index.catalog.put, []

    def restarted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            servers[1].stop()
            servers[1].start()
        return put(*arguments)

    index.catalog.put = restarted
    assert ingest.ingest(index, [images], tiny).indexed == 8
    assert index.verify() == []


def test_no_password_is_written(create, servers, monkeypatch):
    monkeypatch.setenv(milvus.TOKEN, "root:planted-token")
    monkeypatch.setenv("PGPASSWORD", "planted-password")
    index = create()
    fill(index)
    index.file_vectors()
    written = b"".join(path.read_bytes() for path in Path(index.folder).iterdir() if path.is_file())
    assert b"planted" not in written
