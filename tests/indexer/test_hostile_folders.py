"""Hostile index folders, seeded: every verb ends in one line or works, and nothing outside is touched."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3

import pytest

from indexer import sealed
from indexer.case_index import CaseIndex
from indexer.ingest import ingest
from retrieval.cli.app import run

pytestmark = pytest.mark.slow

WRONG = [
    None, True, -1, 0, 2**31, 2**63, 10**400, 1.5, 1e308, "", "x" * 5000, "../../precious", "/etc/passwd",
    "a\nb", "\x1b[2J", "\ud800", [], {}, [[]], {"a": None}, "s3://planted/x", "http://203.0.113.1/x",
    "cbir_0", "postgresql://me@203.0.113.1/x", "milvus+http://203.0.113.1:1",
]  # fmt: skip
VALUES = [None, -1, 0, 2**40, 2**63 - 1, 1.5, float("inf"), -1e308, "", "x", "a\nb", "../../precious", b"",
          b"\xff\xfe", "[]", "{}", "null", "[1e999]", '{"kind": 3}', "x" * 5000,
          "s3://planted/x", "postgresql://h/x"]  # fmt: skip
FILES = ["lock", "writer.json", "key", "catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm",
         "manifest.json", "calibration.json", "encoder.safetensors", "reading.jsonl", "copying.json",
         "removing.json", "spool", "catalog.sqlite-journal"]  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    from tests.support.encoders import TinyEncoder
    from tests.support.images import phantom, write_nifti

    above = tmp_path_factory.mktemp("good")
    for i in range(4):
        write_nifti(above / "mri" / f"P-{i}" / f"P-{i}_t1.nii", phantom(i))
    (above / "mri" / "participants.tsv").write_text("participant_id\tgrade\nP-0\t2\nP-1\t3\n")
    with CaseIndex.create(above / "index", TinyEncoder(), keep_ids=True) as index:
        ingest(index, [above / "mri"], TinyEncoder())
    (above / "index" / "calibration.json").write_text('{"kinds": {}, "format": 1}')
    return above / "index"


def by_manifest(folder, rng, precious):
    data, _ = sealed.load(folder / "manifest.json")
    at = data if rng.random() < 0.6 else data["vectors"]
    at[rng.choice([*at, "more"])] = rng.choice(WRONG)
    text = json.dumps({**data, "sha256": sealed.seal(data)} if rng.random() < 0.7 else data)
    (folder / "manifest.json").write_text(text, errors="surrogatepass")


def by_bytes(folder, rng, precious):
    path = rng.choice([p for p in sorted(folder.iterdir()) if p.is_file()])
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 8, 64])):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content[: rng.choice([len(content), len(content) // 2, 0, 100])])


def by_row(folder, rng, precious):
    with sqlite3.connect(folder / "catalog.sqlite") as raw:
        tables = [t for (t,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = rng.choice(tables)
        column = rng.choice([row[1] for row in raw.execute(f'PRAGMA table_info("{table}")')])
        try:
            raw.execute(f'UPDATE "{table}" SET "{column}" = ?', [rng.choice(VALUES)])
        except sqlite3.Error:
            raw.execute(f'DELETE FROM "{table}"')
    raw.close()


def by_schema(folder, rng, precious):
    with sqlite3.connect(folder / "catalog.sqlite") as raw:
        raw.execute("PRAGMA foreign_keys=OFF")
        table = rng.choice([t for (t,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' "
                                                      "AND name NOT LIKE 'sqlite%'")])  # fmt: skip
        raw.execute(rng.choice([
            f'DROP TABLE "{table}"',
            f'ALTER TABLE "{table}" RENAME TO other',
            f"CREATE TRIGGER planted AFTER INSERT ON history BEGIN DELETE FROM \"{table}\"; END",
            f"ALTER TABLE \"{table}\" ADD COLUMN more TEXT DEFAULT 'x'",
        ]))  # fmt: skip
    raw.close()


def by_place(folder, rng, precious):
    path = folder / rng.choice(FILES)
    if path.exists():
        path.unlink() if path.is_file() else shutil.rmtree(path)
    make = rng.choice(["link", "dangling", "pipe", "folder", "empty", "json"])
    if make == "link":
        path.symlink_to(precious / rng.choice(["file", "folder"]))
    elif make == "dangling":
        path.symlink_to(precious / "new")
    elif make == "pipe":
        os.mkfifo(path)
    elif make == "folder":
        path.mkdir()
    elif make == "empty":
        path.touch()
    else:
        path.write_text(json.dumps(rng.choice([v for v in WRONG if v != "\ud800"])))


WAYS = [by_manifest, by_bytes, by_row, by_schema, by_place]


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))
    }


@pytest.mark.timeout(3600)
def test_hostile_folders_end_in_one_line_and_reach_nothing_outside(
    good, tmp_path, request, capsys, monkeypatch, tiny
):
    monkeypatch.setattr("indexer.case_index.load_encoder", lambda *_: tiny)
    asked = []
    monkeypatch.setattr("socket.socket.connect", lambda *a: asked.append(a))
    precious = tmp_path / "precious"
    (precious / "folder").mkdir(parents=True)
    (precious / "file").write_text("precious")
    (precious / "folder" / "image").write_text("precious")
    before = contents(precious)
    index = tmp_path / "index"
    verbs = [
        ["info"], ["info", "--cases", "--failures"], ["info", "--check"], ["verify"], ["verify", "--repair"],
        ["remove", "P-1"], ["compact"], ["query", str(good.parent / "mri" / "P-0" / "P-0_t1.nii"), "-k", "3"],
        ["eval"], ["index", str(good.parent / "mri")],
    ]  # fmt: skip
    rng = random.Random(0)
    wrong = []
    for number in range(request.config.getoption("--folders")):
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(good, index)
        ways = [rng.choice(WAYS) for _ in range(rng.choice([1, 1, 2]))]
        for way in ways:
            try:
                way(index, rng, precious)
            except (sqlite3.Error, OSError, ValueError, KeyError, TypeError):
                continue  # an earlier one has left nothing to work on
        for verb in [*rng.sample(verbs, 3), ["copy"]]:
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            last = [str(index), str(tmp_path / "copy")] if verb == ["copy"] else ["--index", str(index)]
            try:
                code = run([*verb, *last])
            except BaseException as error:
                wrong.append(
                    (number, [w.__name__ for w in ways], verb[0], f"{type(error).__name__}: {error}")
                )
                continue
            told = capsys.readouterr()
            if "Traceback" in told.err or (code and not (told.err or told.out).strip()):
                wrong.append((number, [way.__name__ for way in ways], verb[0], told.err[-200:]))
        assert contents(precious) == before, (number, ways)
    assert not asked
    assert not wrong, "\n".join(map(str, wrong))
