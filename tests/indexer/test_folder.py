"""An index folder is not believed: links, names that are paths, servers that the user has not named."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import struct
from pathlib import Path

import pytest

from indexer import places, remote, sealed
from indexer.case_index import CaseIndex
from indexer.errors import CaseIndexError
from indexer.files import written_whole
from indexer.ingest import ingest
from indexer.manifest import MANIFEST
from indexer.premises import COPYING
from indexer.transfer import transfer
from retrieval.cli.app import run


@pytest.fixture
def index(index_of):
    """An index that is closed, with all its kinds of files but a partition."""
    return index_of(4)


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setattr(places, "_named", set())


def rewrite(folder, **fields):
    data = sealed.read(folder / MANIFEST)
    sealed.write(folder / MANIFEST, data | fields)


NAMES = [
    *("lock", "writer.json", "key", "catalog.sqlite", "catalog.sqlite-wal", "manifest.json"),
    *("calibration.json", "encoder.safetensors", "vectors-1.faiss", "removing.json", "reading.jsonl"),
    *("copying.json", "a.0.part"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_link_in_an_index_is_refused_and_not_followed(tmp_path, index, tiny, name):
    outside = tmp_path / "precious"
    held = (index / name).read_bytes() if (index / name).is_file() else b"precious"
    outside.write_bytes(held)
    (index / name).unlink(missing_ok=True)
    (index / name).symlink_to(outside)
    with pytest.raises(CaseIndexError, match=r"is a link.*move it away"):
        CaseIndex.open(index)
    assert outside.read_bytes() == held
    assert (index / name).is_symlink()


@pytest.mark.parametrize("name", NAMES)
def test_a_link_that_appears_after_it_was_opened_stops_the_writer(tmp_path, index, name):
    outside = tmp_path / "precious"
    outside.write_bytes(b"precious")
    with CaseIndex.open(index) as opened:
        (index / name).unlink(missing_ok=True)
        (index / name).symlink_to(outside)
        with pytest.raises(CaseIndexError), opened.writing("test"):
            raise AssertionError("was let in")
    assert outside.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["key", "manifest.json", "catalog.sqlite", "writer.json", "lock"])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_not_waited_for(index, name):
    for make in (os.mkfifo, os.mkdir):
        path = index / name
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        make(path)
        with pytest.raises(CaseIndexError, match="is no plain file"):
            CaseIndex.open(index)


@pytest.mark.parametrize("field", ["file", "partition", "rows"])
@pytest.mark.parametrize("name", ["/etc/passwd", "../key", "a/b", "", None, 3, ".hidden", "x" * 300])
def test_names_in_the_manifest_are_plain(index, field, name):
    vectors = sealed.read(index / MANIFEST)["vectors"]
    if vectors[field] == name:
        return
    if (field, name) in {("file", ""), ("partition", None), ("rows", None)}:
        return  # it has none
    rewrite(index, vectors={**vectors, field: name})
    with pytest.raises(CaseIndexError, match="manifest cannot be read"):
        CaseIndex.open(index)


@pytest.mark.parametrize(
    "fields",
    [
        {"dimension": 0}, {"dimension": "64"}, {"dimension": 10**30}, {"dimension": True}, {"size": -1},
        {"keep_ids": "yes"}, {"encoder": "/tmp/x.safetensors"}, {"encoder": "x\n"}, {"name": "a b"},
        {"format": None}, {"store": None}, {"store": ""}, {"catalog": 5}, {"more": 1}, {"vectors": []},
        {"vectors": {"file": "x"}}, {"encoder": None}, {"preprocessing": []}, {"created": 1},
    ],
)  # fmt: skip
def test_a_manifest_of_wrong_types_is_one_line(index, fields):
    rewrite(index, **fields)
    with pytest.raises(CaseIndexError) as caught:
        CaseIndex.open(index)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"store": "milvus+http://203.0.113.1:19530"}, "vectors"),
        ({"catalog": "postgresql://me@203.0.113.1/x"}, "catalog"),
    ],
)
def test_a_server_that_the_user_has_not_named_is_not_asked(index, fields, what, monkeypatch, capsys):
    rewrite(index, **fields)
    asked = []
    monkeypatch.setattr("socket.socket.connect", lambda *a: asked.append(a))
    monkeypatch.setenv("CBIR_MILVUS_TOKEN", "secret")
    for verb in (["info"], ["verify"], ["verify", "--repair"], ["compact"], ["remove", "x"]):
        assert run([*verb, "--index", str(index)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert what in line
        assert "which you have not named; if you trust it, name it in the variable CBIR_TRUST" in line
    assert not asked


def test_what_is_trusted():
    for address in ("s3://bucket", "postgresql://me@host/x", "milvus+http://host:1"):
        assert not places.trusted(address)
        places.name(address)
    for address in ("s3://bucket", "s3://bucket/a/b.nii", "postgresql://me@host/x", "milvus+http://host:1"):
        assert places.trusted(address)
    for address in (
        "s3://bucket-of-others/a", "s3://bucket@evil/a", "s3://buck", "postgresql://me@host/x?host=evil",
        "postgresql://me@host/x/..", "milvus+http://host:19", "milvus+http://host:1@evil/", "s3://bucket/../x",
        "milvus+http://host:1/?x", "s3:", "",
    ):  # fmt: skip
        assert not places.trusted(address), address
    places._named.clear()
    assert places.trusted("s3://bucket/a"), "it is remembered"
    assert stat.S_IMODE((places.settings() / "trusted").stat().st_mode) == 0o600


def test_the_variable_names_too(monkeypatch):
    monkeypatch.setenv("CBIR_TRUST", "s3://one  s3://two")
    assert places.trusted("s3://two/a")
    assert not places.trusted("s3://three/a")


def test_settings_that_cannot_be_written_stop_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    places.name("s3://bucket")
    assert places.trusted("s3://bucket/a")


@pytest.mark.parametrize("address", ["s3://planted/a.nii", "http://169.254.169.254/x", "file:///etc/passwd"])
def test_a_planted_address_of_an_image_is_not_fetched(address):
    with pytest.raises(CaseIndexError, match="which you have not named"):
        remote.held(address, {"kind": "image"})


def test_files_of_an_index_are_their_owners_alone_whatever_the_umask(tmp_path, tiny, cohort):
    before = os.umask(0)
    try:
        with CaseIndex.create(tmp_path / "open" / "index", tiny) as made:
            ingest(made, [cohort(4)], tiny)
            with made.writing("test"):
                rights = {p.name: stat.S_IMODE(p.stat().st_mode) for p in made.folder.iterdir()}
    finally:
        os.umask(before)
    assert {"manifest.json", "catalog.sqlite", "key", "lock", "writer.json"} <= rights.keys()
    assert set(rights.values()) == {0o600}
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700


def test_rights_that_were_given_stay(index, tiny):
    (index / MANIFEST).chmod(0o640)
    with CaseIndex.open(index) as opened, opened.writing("test"):
        opened.file_vectors()
    assert stat.S_IMODE((index / MANIFEST).stat().st_mode) == 0o640


def test_a_copy_takes_no_folder_and_no_link_along(tmp_path, index):
    (index / "spool").mkdir()
    (index / "spool" / "image").write_text("pixels")
    with CaseIndex.open(index) as opened:
        transfer(opened, tmp_path / "copy")
        (index / "secret").symlink_to("/etc/hostname")
        transfer(opened, tmp_path / "another")
    assert not os.path.lexists(tmp_path / "another" / "secret")
    assert not (tmp_path / "copy" / "spool").exists()
    assert not (tmp_path / "copy" / COPYING).exists()
    assert not (index / COPYING).exists()
    assert sorted(p.name for p in tmp_path.iterdir() if "part" in p.name) == []


def test_a_copy_leaves_alone_what_bears_no_mark_of_its_own(tmp_path, index):
    planted = tmp_path / ".copy.part"
    planted.mkdir()
    (planted / MANIFEST).write_text(json.dumps({"name": "foreign", "catalog": "postgresql://me@host/x"}))
    (planted / "photo").write_text("precious")
    with CaseIndex.open(index) as opened:
        transfer(opened, tmp_path / "copy")
    assert (planted / "photo").read_text() == "precious"
    assert CaseIndex.open(tmp_path / "copy").verify() == []


def test_what_a_killed_copy_left_is_taken_away_by_the_next(tmp_path, index, monkeypatch):
    with CaseIndex.open(index) as opened:
        with monkeypatch.context() as patched:
            patched.setattr("indexer.transfer._discard", lambda *_: None)  # a kill takes nothing away
            patched.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                transfer(opened, tmp_path / "copy")
        (left,) = tmp_path.glob(".copy.*.part")
        transfer(opened, tmp_path / "other")
    assert not left.exists()
    assert not (index / COPYING).exists()


def test_a_planted_record_of_a_copy_sends_nowhere(tmp_path, index):
    record = {
        "to": str(tmp_path / "x"),
        "mark": "0" * 16,
        "store": "faiss",
        "catalog": "postgresql://me@203.0.113.1/x",
    }
    sealed.write(index / COPYING, record)
    with CaseIndex.open(index) as opened, pytest.raises(CaseIndexError, match="not named"):
        transfer(opened, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_copy_whose_server_is_gone_names_the_way_out(tmp_path, index, monkeypatch):
    with CaseIndex.open(index) as opened:
        with monkeypatch.context() as patched:
            patched.setattr("indexer.transfer._discard", lambda *_: None)
            patched.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                transfer(opened, tmp_path / "copy")
        with monkeypatch.context() as patched:
            gone = CaseIndexError("server", "does not answer")
            patched.setattr(CaseIndex, "discard", lambda *_: (_ for _ in ()).throw(gone))
            with pytest.raises(CaseIndexError, match=r"server: does not answer.*move this file away"):
                transfer(opened, tmp_path / "other")
        (index / COPYING).rename(tmp_path / "left")
        transfer(opened, tmp_path / "other")
    assert CaseIndex.open(tmp_path / "other").verify() == []


PLANTED = {
    "trigger": "CREATE TRIGGER planted AFTER INSERT ON history BEGIN DELETE FROM cases; END",
    "view": "ALTER TABLE roots RENAME TO other; CREATE VIEW roots AS SELECT * FROM other",
    "table": "CREATE TABLE planted (x)",
    "virtual": "CREATE VIRTUAL TABLE planted USING fts5(x)",
    "column": "ALTER TABLE roots ADD COLUMN more AS (length(path))",
    "default": "ALTER TABLE roots ADD COLUMN more TEXT DEFAULT 'x'",
    "index": "CREATE INDEX planted ON roots (length(path))",
    "part": "DROP INDEX ix_cases_patient_id; "
    "CREATE INDEX ix_cases_patient_id ON cases (patient_id) WHERE visit IS NOT NULL",
    "check": "DROP TABLE roots; CREATE TABLE roots (path TEXT PRIMARY KEY, labels TEXT CHECK (labels > 1))",
}


@pytest.mark.parametrize("what", PLANTED)
@pytest.mark.parametrize("rights", [0o700, 0o500])
def test_a_catalog_with_what_no_catalog_has_is_refused(index, what, rights):
    with sqlite3.connect(index / "catalog.sqlite") as raw:
        raw.executescript(PLANTED[what])
    raw.close()
    index.chmod(rights)
    with pytest.raises(CaseIndexError, match=r"as no catalog has; it is not from cbir"):
        CaseIndex.open(index)
    index.chmod(0o700)


def test_a_catalog_of_a_later_version_is_not_called_foreign(index):
    with sqlite3.connect(index / "catalog.sqlite") as raw:
        raw.executescript("CREATE TABLE later (x); UPDATE meta SET value = 99 WHERE key = 'format'")
    raw.close()
    with pytest.raises(CaseIndexError, match="install a later cbir"):
        CaseIndex.open(index)


def journal(catalog: Path, further: bytes) -> bytes:
    """A journal of SQLite that is to be played back, and names a further one."""
    begin = bytes.fromhex("d9d505f920a163d7")
    pages = catalog.stat().st_size // 4096
    head = (begin + struct.pack(">IIIII", 0, 1, pages, 512, 4096)).ljust(512, b"\0")
    if not further:
        return head
    lock = 0x40000000 // 4096 + 1
    return head + struct.pack(">I", lock) + further + struct.pack(">II", len(further), sum(further)) + begin


def test_a_journal_takes_no_other_file_away(tmp_path, index):
    """SQLite removes the file that a journal names when it has played the journal back."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes((index / "catalog.sqlite").read_bytes())
    for path in (copy, index / "catalog.sqlite"):
        planted = journal(path, os.fsencode(precious))
        path.with_name(f"{path.name}-journal").write_bytes(planted)
    with pytest.raises(CaseIndexError, match="leads to another file"):
        CaseIndex.open(index)
    assert precious.exists()
    with sqlite3.connect(copy) as raw:  # what would have happened
        raw.execute("SELECT count(*) FROM sqlite_master").fetchone()
    raw.close()
    assert not precious.exists()


def test_a_journal_that_names_no_other_is_played_back(index):
    path = index / "catalog.sqlite"
    path.with_name("catalog.sqlite-journal").write_bytes(journal(path, b""))
    with CaseIndex.open(index) as opened:
        assert opened.catalog.count()["cases"] == 4


@pytest.mark.parametrize("name", ["catalog.sqlite", "key", "manifest.json", "vectors-1.faiss", "lock"])
def test_a_file_with_a_second_name_is_read_and_not_written(tmp_path, index, tiny, cohort, name):
    """A backup may share its files with the index (cp -l)."""
    (index / name).touch()
    held = (index / name).read_bytes()
    (tmp_path / "backup").hardlink_to(index / name)
    with CaseIndex.open(index) as opened:
        assert opened.catalog.count()["cases"] == 4
        with pytest.raises(CaseIndexError, match="has another name elsewhere"), opened.writing("test"):
            raise AssertionError("was let in")
    assert (tmp_path / "backup").read_bytes() == held


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_than_the_folder_is_refused(index):
    os.chown(
        index / "calibration.json" if (index / "calibration.json").exists() else index / "key", 12345, -1
    )
    with pytest.raises(CaseIndexError, match="belongs to another user than the folder"):
        CaseIndex.open(index)
    for path in (index, *index.iterdir()):  # all of it is somebody else's, and we may read it
        os.chown(path, 12345, -1)
    CaseIndex.open(index).close()


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    left = tmp_path / "report.html.0.part"
    left.write_text("torn, and longer than what comes")
    with written_whole(tmp_path / "report.html") as aside:
        assert aside == left
        aside.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "whole"


def test_two_who_write_the_same_file_do_not_meet(tmp_path):
    path = tmp_path / "report.html"
    with written_whole(path) as first, written_whole(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_what_somebody_put_in_the_way_is_not_written_to(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for make in ("symlink_to", "hardlink_to"):
        planted = tmp_path / "report.html.0.part"
        getattr(planted, make)(precious)
        with written_whole(tmp_path / "report.html") as aside:
            aside.write_text("report")
        assert precious.read_text() == "precious"
        planted.unlink()
    assert (tmp_path / "report.html").read_text() == "report"
