"""A call of the system fails, at any write, fsync, rename or unlink: one line, nothing left, state right."""

from __future__ import annotations

import errno
import os
import random

import pytest

from indexer.case_index import CaseIndex
from retrieval.cli.app import run

pytestmark = pytest.mark.slow

CALLS = ("open", "write", "fsync", "replace", "rename", "unlink", "fchmod", "mkdir")


class Faults:
    """Count calls that change the disk below a folder; the chosen one fails."""

    def __init__(self, patch, folder, at, error):
        self.left, self.error, self.folder = at, error, str(folder)
        for name in CALLS:
            patch.setattr(os, name, self.wrapped(name, getattr(os, name)))

    def wrapped(self, name, call):
        def called(*args, **kwargs):
            here = isinstance(args[0], int) or os.fspath(args[0]).startswith(self.folder)
            writes = name != "open" or (len(args) > 1 and args[1] & (os.O_WRONLY | os.O_RDWR))
            if here and writes:
                self.left -= 1
                if self.left == 0:
                    raise OSError(
                        self.error, os.strerror(self.error), None if name == "write" else str(args[0])
                    )
            return call(*args, **kwargs)

        return called


def test_an_error_of_the_disk_is_one_line_and_the_next_run_ends_right(
    tmp_path, tiny, cohort, request, capsys, monkeypatch, in_process
):
    for module in ("indexer.case_index", "indexer.encoder"):
        monkeypatch.setattr(f"{module}.load_encoder", lambda *_: tiny)
    # what is captured here is no file that could be let go
    monkeypatch.setattr("retrieval.cli.app._drop_output", lambda: None)
    roots = [cohort(3), cohort(5, folder="more")]
    rng = random.Random(0)
    wrong = []
    for number in range(request.config.getoption("--faults")):
        folder = tmp_path / f"index-{number}"
        index = ["--index", str(folder)]
        done = [["index", str(roots[0]), "--keep-ids", *index]]
        verb = rng.choice(["index", "more", "remove", "compact", "repair", "copy"])
        verbs = {
            "index": done[0],
            "more": ["index", str(roots[1]), *index],
            "remove": ["remove", "P-01", *index],
            "compact": ["compact", *index],
            "repair": ["verify", "--repair", *index],
            "copy": ["copy", str(folder), str(tmp_path / f"copy-{number}")],
        }
        if verb != "index":
            assert run(done[0]) == 0
        capsys.readouterr()
        at, error = rng.randrange(1, 30), rng.choice([errno.ENOSPC, errno.EIO])
        case = (number, verb, at, errno.errorcode[error])
        with monkeypatch.context() as patch:
            Faults(patch, tmp_path, at, error)
            try:
                code = run(verbs[verb])
            except BaseException as raised:
                wrong.append((*case, f"{type(raised).__name__}: {raised}"))
                continue
        told = capsys.readouterr()
        lines = [line for line in told.err.splitlines() if line.startswith("cbir:")]
        if code and len(lines) != 1:
            wrong.append((*case, told.err))
        again = run(verbs[verb])
        capsys.readouterr()
        if again and not (code == 0 and verb in ("remove", "copy")):
            wrong.append((*case, f"the next run ends with {again}"))
            continue
        with CaseIndex.open(folder) as opened:
            if problems := [problem for problem in opened.verify() if not problem.sound]:
                wrong.append((*case, str(problems)))
        left = [p.name for p in (*folder.iterdir(), *tmp_path.iterdir()) if p.name.endswith(".part")]
        left += [
            p.name for p in folder.iterdir() if p.name in ("writer.json", "removing.json", "copying.json")
        ]
        if left:
            wrong.append((*case, str(left)))
    assert not wrong, "\n".join(map(str, wrong))


def test_a_removal_that_was_killed_is_gone_on_with(tmp_path, tiny, cohort, monkeypatch, capsys):
    monkeypatch.setattr("indexer.case_index.load_encoder", lambda *_: tiny)
    monkeypatch.setattr("indexer.encoder.load_encoder", lambda *_: tiny)
    index = ["--index", str(tmp_path / "index")]
    assert run(["index", str(cohort(4)), "--keep-ids", *index]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(CaseIndex, "file_vectors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(["remove", "P-01", *index])
    assert run(["remove", "P-01", *index]) == 0
    assert "removed 1 cases" in capsys.readouterr().out
    assert run(["remove", "P-01", *index]) == 1
    with CaseIndex.open(tmp_path / "index") as opened:
        assert opened.verify() == []
