"""Hostile index folders, seeded: every verb ends in one line or works, and nothing outside is touched."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import socket
import sqlite3
import struct
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.faults.calls import Fault, watch
from tests.support.faults.fork import apart, command, here
from tests.support.images import phantom, write_nifti

WRONG = [
    None, True, -1, 0, 2**31, 2**63, 10**400, 1.5, 1e308, "", "x" * 5000, "../../precious", "/etc/passwd",
    "a\nb", "\x1b[2J", "\ud800", [], {}, [[]], {"a": None}, "s3://planted/x", "http://203.0.113.1/x",
    "cbir_0", "postgresql://me@203.0.113.1/x", "milvus+http://203.0.113.1:1",
]  # fmt: skip
VALUES = [None, -1, 0, 2**40, 2**63 - 1, 1.5, float("inf"), -1e308, "", "x", "a\nb", "../../precious", b"",
          b"\xff\xfe", "[]", "{}", "null", "[1e999]", '{"kind": 3}', "x" * 5000,
          "s3://planted/x", "postgresql://h/x"]  # fmt: skip
NUMBERS = [0, 1, -1, 3, 2**15, 2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1]
FILES = ["lock", "writer.json", "key", "catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm",
         "manifest.json", "calibration.json", "encoder.safetensors", "reading.jsonl", "copying.json",
         "removing.json", "spool", "catalog.sqlite-journal"]  # fmt: skip
MANY = 100_000
"""Fields or rows, where there should be few."""
ROOM = 3 * 2**30
"""Bytes of memory that a command may take beside what its parent had."""


def by_manifest(folder: Path, rng: random.Random, precious: Path) -> None:
    from indexer import sealed

    data, _ = sealed.load(folder / "manifest.json")
    at = data if rng.random() < 0.6 else data["vectors"]
    if rng.random() < 0.1:
        data |= {str(n): 0 for n in range(MANY)}
    else:
        at[rng.choice([*at, "more"])] = rng.choice(WRONG)
    text = json.dumps({**data, "sha256": sealed.seal(data)} if rng.random() < 0.7 else data)
    (folder / "manifest.json").write_text(text, errors="surrogatepass")


def by_bytes(folder: Path, rng: random.Random, precious: Path) -> None:
    path = rng.choice([p for p in sorted(folder.iterdir()) if p.is_file()])
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 8, 64])):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content[: rng.choice([len(content), len(content) // 2, 0, 100])])


def by_vectors(folder: Path, rng: random.Random, precious: Path) -> None:
    """Files of vectors with numbers that lie, and checksums that fit."""
    name, kept = rng.choice([("file", "sha256"), ("file", "sha256"), ("rows", "rows_sha256")])
    path = folder / _filed(folder)[name]
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(min(len(content) - 8, rng.choice([64, 400, 2000, 2**30])))
        number = struct.pack("<q", rng.choice(NUMBERS)) if rng.random() < 0.7 else rng.randbytes(8)
        content[at : at + rng.choice([4, 8])] = number[: rng.choice([4, 8])]
    path.write_bytes(content if rng.random() < 0.8 else content[: rng.randrange(len(content))])
    _reseal(folder, {kept: hashlib.sha256(path.read_bytes()).hexdigest()})


def by_partition(folder: Path, rng: random.Random, precious: Path) -> None:
    """A partition with values that no fit gives, and a checksum that fits."""
    path = folder / _filed(folder)["partition"]
    with np.load(path) as held:
        values = {name: held[name] for name in held.files}
    name = rng.choice(sorted(values))
    old = values[name]
    values[name] = rng.choice([
        lambda: np.full_like(old, rng.choice([0, 1])),
        lambda: np.full(old.shape, rng.choice([np.nan, np.inf, -np.inf, 1e30, -1.0])),
        lambda: np.full(old.shape, rng.choice(NUMBERS), dtype="i8"),
        lambda: np.zeros((0, *old.shape[1:]) if old.ndim else (0,), old.dtype),
        lambda: np.zeros((2, 3, 4)),
        lambda: np.array("x\ny" * rng.choice([1, 1000])),
        lambda: np.repeat(np.atleast_1d(old), 2, axis=0),
    ])()  # fmt: skip
    if rng.random() < 0.1:
        del values[name]
    (np.savez_compressed if rng.random() < 0.1 else np.savez)(path, **values)
    _reseal(folder, {"partition_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})


def by_calibration(folder: Path, rng: random.Random, precious: Path) -> None:
    """What was learnt, with values that nobody learns, and a checksum that fits."""
    from indexer import sealed

    path = folder / "calibration.json"
    data, _ = sealed.load(path)
    at: Any = data
    while True:
        name = rng.choice(sorted(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[name], dict | list) or not at[name] or rng.random() < 0.2:
            at[name] = rng.choice([*(v for v in WRONG if v != "\ud800"), [[3, 0.0]] * MANY])
            break
        at = at[name]
    path.write_text(json.dumps({**data, "sha256": sealed.seal(data)}))


def by_row(folder: Path, rng: random.Random, precious: Path) -> None:
    with sqlite3.connect(folder / "catalog.sqlite") as raw:
        tables = [t for (t,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = rng.choice(tables)
        column = rng.choice([row[1] for row in raw.execute(f'PRAGMA table_info("{table}")')])
        try:
            raw.execute(f'UPDATE "{table}" SET "{column}" = ?', [rng.choice(VALUES)])
        except sqlite3.Error:
            raw.execute(f'DELETE FROM "{table}"')
    raw.close()


def by_schema(folder: Path, rng: random.Random, precious: Path) -> None:
    with sqlite3.connect(folder / "catalog.sqlite") as raw:
        raw.execute("PRAGMA foreign_keys=OFF")
        chosen = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        table = rng.choice([name for (name,) in raw.execute(chosen)])
        column = rng.choice([row[1] for row in raw.execute(f'PRAGMA table_info("{table}")')])
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        raw.executescript(rng.choice([
            f'DROP TABLE "{table}"',
            f'ALTER TABLE "{table}" RENAME TO other',
            f"CREATE TRIGGER planted AFTER INSERT ON history BEGIN DELETE FROM \"{table}\"; END",
            f"CREATE TRIGGER planted BEFORE DELETE ON \"{table}\" BEGIN SELECT RAISE(IGNORE); END",
            f"ALTER TABLE \"{table}\" ADD COLUMN more TEXT DEFAULT 'x'",
            f'ALTER TABLE "{table}" ADD COLUMN more AS (randomblob(1000000000))',
            f'ALTER TABLE "{table}" RENAME TO other; CREATE VIEW "{table}" AS SELECT * FROM other',
            f'DROP TABLE "{table}"; CREATE VIEW "{table}" AS {endless}',
            f'CREATE INDEX planted ON "{table}" (length("{column}"))',
            f'CREATE INDEX planted ON "{table}" ("{column}") WHERE "{column}" IS NOT NULL',
            "CREATE VIRTUAL TABLE planted USING fts5(x)",
            f'DROP TABLE "{table}"; CREATE TABLE "{table}" ("{column}" TEXT CHECK (length("{column}") > 9))',
            f'DROP TABLE "{table}"; CREATE TABLE "{table}" ("{column}" BLOB)',
        ]))  # fmt: skip
    raw.close()


def by_journal(folder: Path, rng: random.Random, precious: Path) -> None:
    """A journal that makes SQLite take another file away."""
    name = os.fsencode(precious / "file")
    path = folder / "catalog.sqlite"
    begin = bytes.fromhex("d9d505f920a163d7")
    pages = path.stat().st_size // 4096
    head = (begin + struct.pack(">IIIII", 0, 0x1234, pages, 512, 4096)).ljust(512, b"\0")
    tail = struct.pack(">I", 0x40000000 // 4096 + 1) + name + struct.pack(">II", len(name), sum(name)) + begin
    (folder / "catalog.sqlite-journal").write_bytes(head + tail)


def by_place(folder: Path, rng: random.Random, precious: Path) -> None:
    filed = list(_filed(folder).values())
    path = folder / rng.choice([*FILES, *(v for v in filed if isinstance(v, str) and "-" in v)])
    if path.exists():
        path.unlink() if path.is_file() else shutil.rmtree(path)
    make = rng.choice(["link", "dangling", "hard", "hard", "pipe", "folder", "empty", "json", "socket"])
    if make == "link":
        path.symlink_to(precious / rng.choice(["file", "folder"]))
    elif make == "dangling":
        path.symlink_to(precious / "new")
    elif make == "hard":
        path.hardlink_to(precious / "file")
    elif make == "pipe":
        os.mkfifo(path)
    elif make == "folder":
        path.mkdir()
    elif make == "empty":
        path.touch()
    elif make == "socket":
        with socket.socket(socket.AF_UNIX) as planted:
            planted.bind(str(path))
    else:
        path.write_text(json.dumps(rng.choice([v for v in WRONG if v != "\ud800"])))


def by_link(folder: Path, rng: random.Random, precious: Path) -> None:
    """A whole file of the index is one of somebody else's, too."""
    path = rng.choice([p for p in sorted(folder.iterdir()) if p.is_file()])
    twin = precious / "twin"
    twin.unlink(missing_ok=True)
    twin.hardlink_to(path)


def by_aside(folder: Path, rng: random.Random, precious: Path) -> None:
    """What is to be written aside is there already, and leads elsewhere."""
    path = folder / f"{rng.choice([*FILES, 'vectors-5.faiss'])}.0.part"
    rng.choice([path.symlink_to, path.hardlink_to])(precious / "file")


WAYS: list[Callable[[Path, random.Random, Path], None]] = [
    by_manifest, by_bytes, by_row, by_row, by_schema, by_schema, by_place, by_vectors, by_partition,
    by_calibration, by_journal, by_link, by_aside,
]  # fmt: skip


def _fitted(folder: Path) -> None:
    """Plant how votes on the grade are read, which so few patients do not teach."""
    from retrieval.calibration import Calibration, Fit

    held = Calibration.read(folder)
    assert held is not None
    asked = {
        grade: [(scan, scan / 10) for scan in range(first, 9, 2)] for grade, first in (("2", 1), ("3", 2))
    }
    fit = Fit(40, 1.25, {"2": 0.9, "3": 0.9}, asked)
    kinds = {name: replace(kind, columns={"grade": fit}) for name, kind in held.kinds.items()}
    replace(held, kinds=kinds).save(folder)


class Stand:
    """A sound index, and what must not be touched."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work, self.precious = folder, folder / "hostile", folder / "precious"
        self.good, self.images = folder / "good", folder / "images"
        for i in range(10):
            write_nifti(self.images / f"P-{i}" / f"P-{i}_t1.nii", phantom(i))
        grades = "".join(f"P-{i}\t{2 + i % 2}\n" for i in range(8))
        (self.images / "participants.tsv").write_text(f"participant_id\tgrade\n{grades}")
        made = command(["index", str(self.images), "--keep-ids", "--index", str(self.good)], folder)
        if made.status:
            raise RuntimeError(made.err)
        apart(lambda: _fitted(self.good))
        with sqlite3.connect(self.good / "catalog.sqlite") as raw:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        raw.close()
        (self.precious / "folder").mkdir(parents=True)
        (self.precious / "folder" / "image").write_text("precious")

    def verbs(self) -> list[list[str]]:
        one = str(self.images / "P-0" / "P-0_t1.nii")
        return [
            ["info"], ["info", "--cases", "--failures", "--json"], ["info", "--check"], ["verify"],
            ["verify", "--repair"], ["remove", "P-1"], ["remove", "--patient", "P-2", "--json"], ["compact"],
            ["query", one, "-k", "3"], ["query", one, "--json"], ["query", "--like", "P-1"],
            ["eval", "--label", "grade"], ["index", str(self.images)],
            ["index", str(self.images / "P-9"), "--prune"], ["copy"],
        ]  # fmt: skip

    def tried(self, number: int, seed: int, count: int) -> tuple[list[str], list[str], list[str]]:
        """Make a folder hostile and let verbs at it: the ways, the verbs, and what is wrong."""
        rng = random.Random(f"{seed} {number}")
        for path in (self.work, self.folder / "tmp"):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        index = self.work / "index"
        shutil.copytree(self.good, index)
        (self.precious / "twin").unlink(missing_ok=True)
        (self.precious / "file").unlink(missing_ok=True)
        (self.precious / "file").write_text("precious")
        ways = [rng.choice(WAYS) for _ in range(rng.choice([1, 1, 2]))]
        for way in ways:
            try:
                way(index, rng, self.precious)
            except (sqlite3.Error, OSError, LookupError, AttributeError, TypeError, ValueError):
                continue  # an earlier one has left nothing to work on
        before = _contents(self.precious)
        verbs = rng.sample(self.verbs(), count)
        handle = os.memfd_create("found")

        def work() -> None:
            limit = _size() + ROOM
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            with os.fdopen(handle, "w") as found:
                _tell_of_sockets(found)
                for verb in verbs:
                    print(f"began {verb[0]}", file=found, flush=True)
                    for line in self._ended(verb, index):
                        print(f"wrong {line!r}", file=found, flush=True)
                    print("ended", file=found, flush=True)
            os._exit(0)

        wrong = []
        try:
            watched = watch(work, self.folder, Fault(), 300, (self.work, self.folder / "tmp"))
            wrong += [f"acts outside: {call}" for call in watched.abroad]
            if watched.status:
                wrong.append(f"it ended with {watched.status}")
        except TimeoutError as error:
            wrong.append(str(error))
        os.lseek(handle, 0, os.SEEK_SET)
        with os.fdopen(handle) as file:
            lines = file.read().splitlines()
        wrong += [line for line in lines if not line.startswith(("began", "ended"))]
        if lines and lines[-1] != "ended":
            wrong.append(lines[-1])
        if _contents(self.precious) != before:
            wrong.append("what is precious was changed")
        return [way.__name__ for way in ways], [verb[0] for verb in verbs], wrong

    def _ended(self, verb: list[str], index: Path) -> list[str]:
        """What is wrong with how a verb ends."""
        shutil.rmtree(self.work / "copy", ignore_errors=True)
        last = [str(index), str(self.work / "copy")] if verb == ["copy"] else ["--index", str(index)]
        try:
            said = here([*verb, *last])
        except BaseException:
            return [f"{verb[0]}: {traceback.format_exc()[-1500:]}"]
        if "Traceback" in said.err or "Exception ignored" in said.err:
            return [f"{verb[0]}: {said.err[-1500:]}"]
        if said.status and not (said.err or said.out).strip():
            return [f"{verb[0]}: ends with {said.status} and says nothing"]
        lines = [line for line in said.err.splitlines() if line.startswith("cbir")]
        return [f"{verb[0]}: {said.err}"] if said.status == 1 and len(lines) > 1 else []


def run(
    folder: Path, count: int, seed: int, say: Callable[[str], None], *, first: int = 0, verbs: int = 4
) -> dict[str, Any]:
    """Let `count` commands at hostile folders, `verbs` at each."""
    stand = Stand(folder)
    tried: Counter[str] = Counter()
    by: Counter[str] = Counter()
    wrong = []
    for number in range(first, first + count // verbs):
        ways, commands, found = stand.tried(number, seed, verbs)
        tried.update(commands)
        by.update(ways)
        if found:
            wrong.append(f"{number}: {', '.join(ways)}: {' | '.join(found)}")
            say(wrong[-1])
    return {"trials": tried.total(), "seed": seed, "verbs": dict(tried), "ways": dict(by), "wrong": wrong}


def _filed(folder: Path) -> dict[str, Any]:
    from indexer import sealed

    found: dict[str, Any] = sealed.load(folder / "manifest.json")[0]["vectors"]
    return found


def _reseal(folder: Path, changed: dict[str, str]) -> None:
    from indexer import sealed

    data, _ = sealed.load(folder / "manifest.json")
    data["vectors"].update(changed)
    sealed.write(folder / "manifest.json", data)


def _contents(folder: Path) -> dict[str, Any]:
    return {
        str(p.relative_to(folder)): (p.lstat().st_mode, p.read_bytes() if p.is_file() else b"")
        for p in sorted(folder.rglob("*"))
    }


def _size() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _tell_of_sockets(file: Any) -> None:
    """Say where a connection would go, and make none."""

    def refused(*arguments: Any) -> None:
        print(f"wrong: contacts {arguments[1:]!r:.200}", file=file, flush=True)
        raise OSError("no network here")

    socket.socket.connect = refused  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = lambda *a, **_: refused(None, *a)  # type: ignore[assignment, misc]
