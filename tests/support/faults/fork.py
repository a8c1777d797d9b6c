"""Commands in children of a process that has imported everything: one takes a fraction of a second."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.faults.calls import Fault, Watched, watch

PATIENCE = 600.0
"""Seconds after which a command hangs: a training on a busy machine takes two minutes."""
EARLY = 40
"""Slices from which on there is a partition."""


def warm(folder: Path) -> None:
    """Import what commands need, with a small encoder in the place of the installed ones.

    No thread lives afterwards: a child has none of its parent's, and would wait for them.

    Parameters
    ----------
    folder : Path
        An empty one: each verb is tried there, and so imports what it needs.
    """
    os.environ["CBIR_READ_IN_PROCESS"] = "1"
    os.environ["XDG_CONFIG_HOME"] = str(folder / "settings")
    tempfile.tempdir = str(folder / "tmp")
    (folder / "tmp").mkdir()
    from indexer.runtime import prepare

    prepare()
    import torch

    torch.set_num_threads(1)
    import indexer.case_index
    import indexer.encoder
    import indexer.ingest.filing
    import indexer.learning.fitting
    import retrieval.calibration
    from indexer.policy import SearchPolicy
    from retrieval.cli.app import run
    from tests.support.encoders import TinyEncoder
    from tests.support.images import phantom, write_nifti

    tiny, early = TinyEncoder(), SearchPolicy(exact_below=EARLY)
    indexer.encoder.load_encoder = indexer.case_index.load_encoder = lambda *_: tiny
    indexer.case_index.SearchPolicy = lambda: early  # there is a partition
    retrieval.calibration.POLICY = early
    indexer.ingest.filing.GROUP = 24  # and many commits
    import retrieval.service.server  # with that policy
    from tests.support.faults.visitor import Visited

    retrieval.service.server._Server = Visited

    for i in range(10):
        write_nifti(folder / "warm" / f"P-{i}" / f"P-{i}_t1.nii", phantom(i))
    (folder / "warm" / "participants.tsv").write_text("participant_id\tgrade\nP-0\t2\n")
    index, token = ["--index", str(folder / "warm-index")], ["--tokens", str(folder / "warm-tokens")]
    with open(os.devnull, "w") as out, redirect_stdout(out), redirect_stderr(out):  # noqa: PTH123
        for verb in (
            ["index", str(folder / "warm"), "--keep-ids", *index],
            ["info", "--cases", "--failures", "--check", *index],
            ["query", str(folder / "warm" / "P-0"), "--report", str(folder / "warm.html"), *index],
            ["eval", "--label", "grade", *index],
            ["remove", "P-0", *index],
            ["verify", "--repair", *index],
            ["compact", "--json", *index],
            ["copy", str(folder / "warm-index"), str(folder / "warm-copy")],
            ["token", "me", *token],
            ["demo", str(folder / "warm-demo"), "--patients", "3"],
        ):
            run(verb)
    for path in folder.glob("warm*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    gc.collect()
    gc.freeze()
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise RuntimeError("threads are alive, which no child would have")


@dataclass
class Said:
    """How a command ended.

    Attributes
    ----------
    status : int
        Its exit code; negative for a signal.
    out, err : str
    watched : Watched
    """

    status: int
    out: str
    err: str
    watched: Watched


def command(
    arguments: list[str], folder: Path, fault: Fault | None = None, seconds: float = PATIENCE
) -> Said:
    """Run ``cbir`` in a child; a fault may meet it at its calls in a folder."""
    handles = _outputs()

    def work() -> None:
        _redirect(handles)
        code = _main(arguments)
        os._exit(code)

    watched = watch(work, folder, fault, seconds) if fault else _unwatched(work, seconds)
    return Said(watched.status, *_texts(handles), watched)


def here(arguments: list[str]) -> Said:
    """Run ``cbir`` in this process, which is a child that does some more."""
    handles, before = _outputs(), (os.dup(1), os.dup(2))
    _redirect(handles)
    code = _main(arguments)
    _redirect(before)
    return Said(code, *_texts(handles), Watched())


def _outputs() -> tuple[int, int]:
    return os.memfd_create("out"), os.memfd_create("err")


def _texts(handles: tuple[int, int]) -> tuple[str, str]:
    found = []
    for handle in handles:
        os.lseek(handle, 0, os.SEEK_SET)
        with os.fdopen(handle, "rb") as file:
            found.append(file.read().decode(errors="replace"))
    return found[0], found[1]


def _main(arguments: list[str]) -> int:
    from retrieval.cli import main

    sys.argv = ["cbir", *arguments]
    try:
        main()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def apart(work: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What a function returns in a child.

    Raises
    ------
    RuntimeError
        With the traceback, if it raises.
    """
    answer = os.memfd_create("answer")

    def child() -> None:
        try:
            found = pickle.dumps((True, work()))
        except BaseException:
            found = pickle.dumps((False, traceback.format_exc()))
        os.write(answer, found)
        os._exit(0)

    _unwatched(child, seconds)
    os.lseek(answer, 0, os.SEEK_SET)
    with os.fdopen(answer, "rb") as file:
        content = file.read()
    done, found = pickle.loads(content) if content else (False, "it was ended")
    if not done:
        raise RuntimeError(found)
    return found


def _unwatched(work: Callable[[], None], seconds: float) -> Watched:
    child = os.fork()
    if child == 0:
        signal.alarm(int(seconds))
        try:
            work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)
        os._exit(0)
    return Watched(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _redirect(handles: tuple[int, int]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handles[0], 1)
    os.dup2(handles[1], 2)
