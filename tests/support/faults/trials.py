"""Kills, errors of the disk and Ctrl-C at any system call of a verb, and what is there afterwards."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.files import ASIDE
from tests.support.faults.calls import Fault
from tests.support.faults.fork import Said, apart, command, here
from tests.support.images import phantom, write_nifti

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
EARLIER = Path(__file__).parents[2] / "indexer" / "earlier" / "catalog-1-kept-ids.sql"
SHARED = re.compile(r"catalog\.sqlite-(wal|shm)$")
"""May be there or not."""


@dataclass(frozen=True)
class Verb:
    """A command that is tried.

    Attributes
    ----------
    start : str
        What is there before: a folder of :class:`Bench`; empty for nothing.
    arguments : list of str
    reads : bool
        Nothing is written.
    weight : float
        How often it is tried.
    serves : bool
        It goes on after an error, and prints what it promised to whom.
    """

    start: str
    arguments: list[str]
    reads: bool = False
    weight: float = 1
    serves: bool = False


@dataclass
class Seen:
    """What is in a folder after a command.

    Attributes
    ----------
    held : dict
        Of each index its sources with a checksum of all that is filed of them, and its patients with their
        labels; of other files a checksum, or what is wrong with them.
    unsound : list of str
        What `verify` says.
    files : set of str
        With numbers of revisions taken out of their names.
    """

    held: dict[str, str] = field(default_factory=dict)
    unsound: list[str] = field(default_factory=list)
    files: set[str] = field(default_factory=set)


class Bench:
    """A folder with cohorts, indexes to begin with, and one that verbs work in.

    Parameters
    ----------
    folder : Path
        Where there was nothing but what :func:`tests.support.faults.fork.warm` has made.
    only : sequence of str
        Verbs that are tried; all, if none is named.
    """

    def __init__(self, folder: Path, only: Sequence[str] = ()) -> None:
        self.only = only
        self.folder, self.work, self.starts = folder, folder / "work", folder / "starts"
        self.cohorts = {name: folder / "cohorts" / name for name in ("mri", "more", "less")}
        self._cohorts()
        index, work = self.work / "index", self.work
        at, (mri, more, less) = ["--index", str(index)], map(str, self.cohorts.values())
        small = ["--out", str(work / "trained.safetensors"), "--epochs", "1", "--draws", "4", "--resume"]
        self.verbs = {
            "index": Verb("", ["index", mri, "--keep-ids", *at], weight=2),
            "index more": Verb("index", ["index", more, *at], weight=2),
            "index --prune": Verb("pruned", ["index", less, "--prune", *at]),
            "index --with-reference": Verb(
                "index", ["index", mri, "--labels", str(folder / "labels.csv"), *at]
            ),
            "remove": Verb("index", ["remove", "P-01", *at]),
            "compact": Verb("index", ["compact", *at]),
            "verify --repair": Verb("damaged", ["verify", "--repair", *at]),
            "copy": Verb("index", ["copy", str(index), str(work / "copy")]),
            "info (migrates)": Verb("earlier", ["info", *at]),
            "query --report": Verb(
                "index", ["query", f"{mri}/P-02", "--report", str(work / "report.html"), *at]
            ),
            "token": Verb("tokens", ["token", "new", "--tokens", str(work / "tokens.jsonl")], weight=0.3),
            "demo": Verb("", ["demo", str(work / "demo"), "--patients", "3"], weight=0.1),
            "train": Verb(
                "", ["train", mri, "--label", "grade", *small, "--cache", str(work / "cache")], weight=0.1
            ),
            "serve": Verb("index", ["serve", "--port", "0", *at], weight=0.5, serves=True),
            "query": Verb("index", ["query", f"{mri}/P-02", *at], reads=True),
            "eval": Verb("index", ["eval", "--label", "grade", *at], reads=True),
            "info": Verb("index", ["info", "--check", *at], reads=True),
            "verify": Verb("index", ["verify", *at], reads=True),
            "index --dry-run": Verb("index", ["index", mri, "--dry-run", *at], reads=True),
        }
        self._indexes()
        self.before: dict[str, Seen] = {}
        self.after: dict[str, Seen] = {}
        self.calls: dict[tuple[str, bool], int] = {}

    def _cohorts(self) -> None:
        for name, patients in {"mri": range(8), "more": range(8, 14), "less": range(20, 26)}.items():
            lines = ["participant_id\tgrade"]
            for i in patients:
                person = f"P-{i:02}"
                write_nifti(self.cohorts[name] / person / f"{person}_t1.nii", phantom(i))
                lines.append(f"{person}\t{2 + i % 3}")
            (self.cohorts[name] / "participants.tsv").write_text("\n".join(lines) + "\n")
        lines = ["participant_id,side", *(f"P-{i:02},{'left' if i % 2 else 'right'}" for i in range(8))]
        (self.folder / "labels.csv").write_text("\n".join(lines) + "\n")
        from tests.support.faults.visitor import Visited  # after `warm` has put its policy in place

        Visited.scan = write_nifti(self.folder / "N-40_t1.nii", phantom(40))

    def _indexes(self) -> None:
        self.starts.mkdir()
        made = self.verbs["index"].arguments
        for start, arguments in {
            "index": made,
            "pruned": ["index", str(self.cohorts["less"]), *made[2:]],
        }.items():
            self.begin("")
            if command(arguments, self.work).status:
                raise RuntimeError(f"{start} cannot be made")
            shutil.copytree(self.work, self.starts / start)
        for i in (21, 23):
            shutil.rmtree(self.cohorts["less"] / f"P-{i}")
        shutil.copytree(self.starts / "index", self.starts / "damaged")
        apart(lambda: _damage(self.starts / "damaged" / "index"))
        apart(lambda: _earlier(self.starts / "index" / "index", self.starts / "earlier" / "index"))
        (self.starts / "tokens").mkdir()
        self.begin("tokens")
        for name in ("first", "second"):
            command(["token", name, "--tokens", str(self.work / "tokens.jsonl")], self.work)
        shutil.rmtree(self.starts / "tokens")
        shutil.copytree(self.work, self.starts / "tokens")

    def begin(self, start: str) -> None:
        """Work on what is there before a verb."""
        shutil.rmtree(self.work, ignore_errors=True)
        if start:
            shutil.copytree(self.starts / start, self.work)
        else:
            self.work.mkdir()
        temporary = self.folder / "tmp"
        for path in temporary.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def look(self) -> Seen:
        """What is there now."""
        return apart(lambda: _seen(self.work, self.folder / "tmp"))

    def expect(self, name: str, *, reading: bool = False) -> None:
        """Find out what a verb makes, and of how many calls, if nothing happens to it."""
        if (name, reading) in self.calls:
            return
        verb = self.verbs[name]
        self.begin(verb.start)
        self.before[name] = self.look()
        self.begin(verb.start)
        said = command(verb.arguments, self.work, Fault(reading=reading))
        if said.status:
            raise RuntimeError(f"{name}: {said.err}")
        self.calls[name, reading] = said.watched.calls
        self.after[name] = self.look()
        if self.after[name].unsound:
            raise RuntimeError(f"{name}: {self.after[name].unsound}")

    def drawn(self, rng: random.Random, *, reads: bool = False) -> str:
        """A verb; one with many calls more often than one with few."""
        names = [name for name, verb in self.verbs.items() if reads or not verb.reads]
        names = [name for name in names if name in (self.only or names)]
        return rng.choices(names, [self.verbs[name].weight for name in names])[0]

    def tried(self, name: str, fault: Fault) -> tuple[str, list[str]]:
        """Let a fault meet a verb; the call it met, and what is wrong with what followed."""
        self.expect(name, reading=fault.reading)
        verb = self.verbs[name]
        self.begin(verb.start)
        said = command(verb.arguments, self.work, fault)
        wrong = list(_of_service(said) if verb.serves else _of_message(said, fault))
        try:
            found, again, end = apart(lambda: self._gone_on_with(verb))
        except RuntimeError as error:
            return said.watched.met, [*wrong, str(error)]
        wrong += self._of_state(name, said, found)
        if verb.serves:
            wrong += _of_trail(self.work / "index" / "audit", said, again)
        done = found.held == self.after[name].held
        if again.status and not (done and name in ("remove", "copy", "token", "demo")):
            wrong.append(f"again: {again.status} {again.err or again.out}")
        if end.held != self.after[name].held:
            wrong.append(f"the second run ends otherwise: {_differ(end.held, self.after[name].held)}")
        wrong += end.unsound
        if left := end.files - self.after[name].files:
            wrong.append(f"left: {sorted(left)}")
        return said.watched.met, wrong

    def _gone_on_with(self, verb: Verb) -> tuple[Seen, Said, Seen]:
        """What is there, how the same verb ends after that, and what is there then."""
        found = _seen(self.work, self.folder / "tmp")
        return found, here(verb.arguments), _seen(self.work, self.folder / "tmp")

    def _of_state(self, name: str, said: Said, found: Seen) -> Iterator[str]:
        before, after = self.before[name].held, self.after[name].held
        done = "done" in said.out if self.verbs[name].serves else said.status == 0
        if done and found.held != after:
            yield f"said to be done, and is not: {_differ(found.held, after)}"
        for key, value in found.held.items():
            if value not in (before.get(key), after.get(key)):
                yield f"{key} is what it never was: {value[:200]}"
        for key, value in before.items():
            if value == after.get(key) and key not in found.held:
                yield f"{key} is lost"
        known = set(self.before[name].unsound)
        yield from (what for what in found.unsound if what not in known)


def _of_message(said: Said, fault: Fault) -> Iterator[str]:
    """What is wrong with how a command ended."""
    if "Traceback" in said.err or "Exception" in said.err:
        yield said.err[-1500:]
    lines = [line for line in said.err.splitlines() if line.startswith("cbir")]
    if fault.signal == signal.SIGKILL:
        if said.watched.met and said.status != -signal.SIGKILL:
            yield f"was killed, and ended with {said.status}"
    elif said.status and said.status != (130 if fault.signal else 1):
        yield f"ended with {said.status}: {said.err}"
    if said.status in (1, 130) and len(lines) != 1 and "Traceback" not in said.err:
        yield f"{len(lines)} lines: {said.err}{said.out}"


def _of_service(said: Said) -> Iterator[str]:
    """What is wrong with how a service ended: it goes on, or says in one line why not."""
    if "Traceback" in said.err or said.status not in (0, 1, 130, -signal.SIGKILL):
        yield f"ended with {said.status}: {said.err[-1500:]}"


def _of_trail(folder: Path, *said: Said) -> Iterator[str]:
    """Whether both forms of the trail say the same, and hold what was promised to those who asked."""
    lines = (folder / "audit.jsonl").read_bytes().splitlines()
    messages = (folder / "dicom-audit.xml").read_bytes().splitlines()
    if len(lines) != len(messages):
        yield f"the trail has {len(lines)} lines in one form and {len(messages)} in the other"
    told = [json.loads(line) for line in lines]
    answered = sum(line["event"] == "query" and line["outcome"] == "success" for line in told)
    if answered < sum("answered" in each.out for each in said):
        yield "an answer is not in the trail"
    for each in said:
        for act in re.findall(r"^done (\w+)$", each.out, re.MULTILINE):
            if [line["outcome"] for line in told if line.get("act") == act] != ["begun", "success"]:
                yield f"the trail does not say that {act} was done"


def kills(bench: Bench, rng: random.Random) -> tuple[str, Fault]:
    """A verb, and where it is killed; perhaps in the middle of a write."""
    name = bench.drawn(rng)
    bench.expect(name)
    at = rng.randint(1, bench.calls[name, False])
    return name, Fault(at=at, signal=signal.SIGKILL, torn=rng.random() < 0.5)


def errors(bench: Bench, rng: random.Random) -> tuple[str, Fault]:
    """A verb, and where a call of it fails: that one, or all from then on; perhaps after half of a write."""
    name = bench.drawn(rng)
    bench.expect(name)
    at, error = rng.randint(1, bench.calls[name, False]), rng.choice(ERRORS)
    torn = error in ERRORS[:2] and rng.random() < 0.3
    return name, Fault(at=at, error=error, lasting=torn or rng.random() < 0.5, torn=torn)


def interrupts(bench: Bench, rng: random.Random) -> tuple[str, Fault]:
    """A verb, and where Ctrl-C comes."""
    name = bench.drawn(rng, reads=True)
    bench.expect(name, reading=True)
    at = rng.randint(1, bench.calls[name, True])
    return name, Fault(at=at, signal=signal.SIGINT, reading=True)


KINDS: Mapping[str, Callable[[Bench, random.Random], tuple[str, Fault]]] = {
    "kills": kills,
    "errors": errors,
    "interrupts": interrupts,
}


def run(
    kind: str, bench: Bench, count: int, seed: int, say: Callable[[str], None], *, first: int = 0
) -> dict[str, Any]:
    """Try so many; how many met which call, and what went wrong."""
    met: Counter[str] = Counter()
    verbs: Counter[str] = Counter()
    wrong: list[str] = []
    for number in range(first, first + count):
        rng = random.Random(f"{kind} {seed} {number}")
        name, fault = KINDS[kind](bench, rng)
        call, found = bench.tried(name, fault)
        met[call or "none: it was over"] += 1
        verbs[name] += 1
        if found:
            wrong.append(f"{number}: {name}, {fault} ({call}): {' | '.join(found)}")
            say(wrong[-1])
    return {"trials": count, "seed": seed, "calls": dict(met), "verbs": dict(verbs), "wrong": wrong}


# ---- what is there -----------------------------------------------------------------------------


def _seen(work: Path, temporary: Path) -> Seen:
    found = Seen()
    for folder, names, files in os.walk(work):
        here = Path(folder).relative_to(work)
        if not (names or files):
            found.files.add(f"{here}/")
        for name in files:
            path = str(here / name)
            if not SHARED.search(path):
                found.files.add(re.sub(r"(vectors|partition)-[0-9-]+", r"\1", path))
    found.files |= {f"tmp/{path.name}" for path in temporary.iterdir()}
    for name in ("index", "copy"):
        if (work / name / "manifest.json").exists():
            _of_index(name, work / name, found)
    for path in (work / "tokens.jsonl", work / "report.html", work / "trained.safetensors"):
        if path.exists():
            found.held[path.name] = _of_file(path)
    for path in sorted((work / "demo").rglob("*")):
        if path.is_file() and path.suffix != ASIDE:
            found.held[str(path.relative_to(work))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _of_index(name: str, folder: Path, found: Seen) -> None:
    from indexer.case_index import CaseIndex

    with CaseIndex.open(folder) as index:
        found.unsound += [f"{name}: {p.where} {p.what}" for p in index.verify() if not p.sound]
        try:
            index.snapshot()
        except Exception as error:
            found.unsound.append(f"{name}: {error}")
        for entry in index.catalog.entries():
            # of what a service has spooled it tells when that was
            stamp = "" if "/spool/" in entry.path else entry.fingerprint
            told = hashlib.sha256(repr((stamp, sorted(entry.record.items()))).encode())
            for scan in entry.scans:
                for name_, value in vars(scan).items():
                    if name_ == "series_id":  # a new index has a new key
                        continue
                    told.update(value.tobytes() if hasattr(value, "tobytes") else repr(value).encode())
            found.held[f"{name}: {entry.path}"] = told.hexdigest()
        filed = index.manifest.vectors
        named = {filed.partition, *(file for file, _ in filed.files())} if filed else set()
        for kind in ("vectors-*", "partition-*"):
            found.files |= {f"{name}: unnamed {kind}" for path in folder.glob(kind) if path.name not in named}
        contents = index.catalog.contents()
        for patient, labels in zip(contents.patient_ids, contents.labels, strict=True):
            found.held[f"{name}: {patient}"] = json.dumps(labels, sort_keys=True)


def _of_file(path: Path) -> str:
    if path.suffix == ".safetensors":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    text = path.read_text()
    if path.suffix == ".html":
        return "whole" if text.rstrip().endswith("</html>") else f"torn: {text[-100:]!r}"
    from retrieval.service.tokens import _loaded

    return " ".join(token.name for token in _loaded(path))


def _differ(found: dict[str, str], expected: dict[str, str]) -> str:
    keys = sorted({key for key, _ in found.items() ^ expected.items()})
    return f"{len(keys)} differ, such as {keys[0]}"


# ---- indexes to begin with ---------------------------------------------------------------------


def _damage(folder: Path) -> None:
    """A vector and an embedding are not as they were written."""
    (path,) = folder.glob("vectors-*.rows")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with sqlite3.connect(folder / "catalog.sqlite") as raw:
        raw.execute("UPDATE slices SET embedding = zeroblob(256) WHERE id = (SELECT max(id) FROM slices)")
    raw.close()


def _earlier(like: Path, folder: Path) -> None:
    """An index whose catalog has the first format."""
    from dataclasses import replace

    from indexer.manifest import MANIFEST, Manifest
    from indexer.premises import CATALOG, KEY, check_of

    folder.mkdir(parents=True)
    key = secrets.token_bytes(32)
    (folder / KEY).write_bytes(key)
    (folder / KEY).chmod(0o600)
    with sqlite3.connect(folder / CATALOG) as raw:
        raw.executescript(EARLIER.read_text())
    raw.close()
    made = Manifest.load(like / MANIFEST)
    replace(made, dimension=4, vectors=None, key_check=check_of(key)).save(folder / MANIFEST)
