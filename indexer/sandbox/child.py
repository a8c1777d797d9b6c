"""What runs in the child processes: a nursery that has imported the readers, and workers forked from it.

The nursery reads nothing of a stranger's. A worker is ready at once, since all is imported, and has
limits of its own; it lives for many sources, as long as nothing goes wrong.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import pickle
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer import readers, reading, runtime, watch
from indexer.discovery import Discovery, discover
from indexer.discovery.visits import in_time
from indexer.errors import CbirError, ReadError
from indexer.labels import Table, find_tables, load_tables
from indexer.readers.dicom.belonging import belonging
from indexer.readers.source import Source
from indexer.sandbox.protocol import (
    ANSWER,
    COMMAND,
    END,
    FORK,
    NAME,
    NUMBER,
    PAGE,
    Request,
    exactly,
)
from indexer.sandbox.wire import packed
from indexer.scan import Scan

IDLE = 1000
"""Milliseconds after which a worker that nobody asks gives back the memory that it does not need."""

PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


def main(descriptor: int) -> None:
    """The nursery: forks workers and ends them, as it is told, until nobody is there to tell it."""
    runtime.prepare()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    control = socket.socket(fileno=descriptor)
    control.sendall(NUMBER.pack(os.getpid()))
    while True:
        message, handles, *_ = socket.recv_fds(control, COMMAND.size, 2)
        if len(message) < COMMAND.size:
            return
        command, number = COMMAND.unpack(message)
        if command == FORK:
            if (child := os.fork()) == 0:
                control.close()
                status = 1
                try:
                    _work(socket.socket(fileno=handles[0]), handles[1], number)
                    status = 0
                finally:
                    os._exit(status)
            for handle in handles:
                os.close(handle)
            control.sendall(NUMBER.pack(child))
        elif command == END:
            os.kill(number, signal.SIGKILL)
            control.sendall(NUMBER.pack(os.waitpid(number, 0)[1]))


def _work(connection: socket.socket, page: int, memory: int) -> None:
    """A worker: answers requests until nobody asks any more."""
    notes = mmap.mmap(page, PAGE)
    _limit(memory)
    request: Request | None = None

    def noted(file: Path) -> None:
        name = os.fsencode(file)[-NAME:]
        notes[: NUMBER.size + len(name)] = NUMBER.pack(len(name)) + name
        if request is not None:
            if str(file) in request.refused:
                raise ReadError(file, request.refused[str(file)])
            if request.anew:
                _allow(request.seconds)

    watch.listen(noted)
    while (request := _asked(connection)) is not None:
        _allow(request.seconds)
        answer = packed(_answered(request))
        socket.send_fds(connection, [ANSWER], [answer])
        os.close(answer)


def _asked(connection: socket.socket) -> Request | None:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    if not poll.poll(IDLE):
        runtime.trim()
    head = exactly(connection, NUMBER.size)
    if head is None:
        return None
    content = exactly(connection, NUMBER.unpack(head)[0])
    return None if content is None else pickle.loads(content)


def _answered(request: Request) -> tuple[str, Any]:
    """What a call returns, or the error that it raises."""
    try:
        with suppress(OSError):  # as it is for the parent
            os.chdir(request.folder)
        return "value", OPERATIONS[request.operation](*request.arguments)
    except CbirError as error:
        return "error", error
    except MemoryError:
        return "error", ReadError(request.where, "needs more memory than it may take", "crop or split it")
    except Exception as error:  # whatever odd bytes lead to; its text may hold identifiers
        reason = f"cannot be read ({type(error).__name__})"
        return "error", ReadError(request.where, reason, "please report its format")


def _limit(memory: int) -> None:
    """Bounds for a process that may read anything."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # not to outlive the nursery
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory is short, first this one goes
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory, memory))


def _allow(seconds: float) -> None:
    """Let the process run for so many seconds more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _discover_labelled(root: Path) -> Discovery:
    return discover(root, find_tables(root)[0])


def _discover(root: Path, tables: Sequence[Table], options: Mapping[str, Any]) -> Discovery:
    return discover(root, tables, **options)


def _read(source: Source) -> tuple[list[Scan], list[str]]:
    with watch.heard() as notes:
        return readers.read(source), notes


def _mask(path: Path, shape: tuple[int, ...], affine: NDArray[np.float64] | None, source: Path) -> Any:
    return readers.read_mask(path, Scan(np.broadcast_to(np.uint8(0), shape), source, affine=affine))


OPERATIONS: dict[str, Callable[..., Any]] = {
    "belonging": belonging,
    "discover": _discover,
    "discover_labelled": _discover_labelled,
    "in_time": in_time,
    "load_tables": load_tables,
    "mask": _mask,
    "prepare": reading.read,
    "read": _read,
    "tables": find_tables,
}
