"""The parent's side: workers that are asked, watched, and ended when they take too much."""

from __future__ import annotations

import atexit
import json
import mmap
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.errors import CbirError, PoisonError, ReadError
from indexer.sandbox.protocol import COMMAND, END, FORK, NAME, NUMBER, PAGE, Request, exactly
from indexer.sandbox.wire import Malformed, unpacked

IN_PROCESS = "CBIR_READ_IN_PROCESS"
"""Environment variable that lets strangers' bytes be read in this process."""

BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
BOOT += "from indexer.sandbox.child import main; main(int(sys.argv[2]))"

QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""No threads in the children: they are forked, and memory of threads counts."""

CHECK = "check the file, or export it again"
LATE = "takes longer to read than it may"

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Have what is read in this context end when so many seconds are over."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def refuse_late(where: str) -> None:
    """Refuse to go on in a context whose time is over (see :func:`within`); for work that is done here.

    Parameters
    ----------
    where : str
        What takes so long.

    Raises
    ------
    ReadError
    """
    until = _deadline.get()
    if until is not None and time.monotonic() > until:
        raise ReadError(where, LATE)


@dataclass(frozen=True)
class Limits:
    """What reading one source may take.

    Attributes
    ----------
    memory : int
        Bytes, beyond what a worker needs to be there.
    seconds : float
        Of the processor, for whatever source.
    rate : float
        Bytes of a source that are worth another second.
    patience : float
        How much longer than its processor time a source may take, as a factor: files may be far away.
    """

    memory: int = 6 * 2**30
    seconds: float = 60.0
    rate: float = 2.0**20
    patience: float = 10.0

    def processor(self, size: int) -> float:
        """Seconds of the processor for a source of so many bytes."""
        return self.seconds + size / self.rate


class Sandbox:
    """Child processes that read for this one. It can be shared between threads.

    Parameters
    ----------
    limits : Limits
    most : int, optional
        Workers at a time; default one a processor, and two at least.
    """

    def __init__(self, limits: Limits | None = None, most: int | None = None) -> None:
        self.limits = limits or Limits()
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(most or max(2, os.cpu_count() or 2))
        self._idle: list[_Worker] = []
        self._nursery: _Nursery | None = None

    def call(self, operation: str, *arguments: Any, where: Path, size: int) -> Any:
        """Have a function of :mod:`indexer.sandbox.child` called.

        Parameters
        ----------
        operation : str
        arguments
            Its own.
        where : Path
            What it reads, for errors.
        size : int
            Bytes that there are to be read.

        Raises
        ------
        PoisonError
            If the process that read it has ended, or took more than it may.
        CbirError
            As the function raises it.
        """
        seconds = self.limits.processor(size)
        request = Request(operation, arguments, _here(), str(where), seconds)
        value, death = self._ask(request, self.limits.patience * seconds)
        if death is not None:
            raise PoisonError(where, death.reason, CHECK)
        return value

    def discover(self, operation: str, root: Path, *arguments: Any) -> Any:
        """The same for a discovery, in which each file may take as much; one that does more is refused."""
        refused: dict[str, str] = {}
        while True:
            request = Request(
                operation,
                (root, *arguments),
                _here(),
                str(root),
                self.limits.seconds,
                anew=True,
                refused=refused,
            )
            value, death = self._ask(request, None)
            if death is None:
                return value
            if death.file is None or death.file in refused or death.late:
                raise PoisonError(death.file or root, death.reason, CHECK)
            refused[death.file] = death.reason

    def begin(self) -> None:
        """Have the readers imported, without waiting for it."""
        with self._lock:
            self._nursery = self._nursery or _Nursery()

    def close(self) -> None:
        """End all of it. What is asked afterwards begins anew."""
        with self._lock:
            idle, self._idle = self._idle, []
            nursery, self._nursery = self._nursery, None
        for worker in idle:
            worker.close()
            if nursery is not None:
                with suppress(OSError, EOFError):
                    nursery.end(worker.number)
        if nursery is not None:
            nursery.close()

    # ---- steps -----------------------------------------------------------------------------------

    def _ask(self, request: Request, patience: float | None) -> tuple[Any, _Death | None]:
        until = _deadline.get()
        if patience is not None:
            own = time.monotonic() + patience
            until = own if until is None else min(until, own)
        with self._places:
            worker = self._worker()
            try:
                if worker.answered(request, until):
                    kind, value = worker.answer(self.limits.memory)
                    with self._lock:
                        self._idle.append(worker)
                else:
                    return None, self._ended(worker, request, late=True)
            except (OSError, EOFError, Malformed):
                return None, self._ended(worker, request, late=False)
            except BaseException:
                self._ended(worker, request, late=False)
                raise
        if kind == "error":
            raise value
        return value, None

    def _worker(self) -> _Worker:
        with self._lock:
            if os.getpid() != self._owner:  # a fork of the process that the workers answer to
                self._owner, self._idle, self._nursery = os.getpid(), [], None
            while self._idle:
                if (worker := self._idle.pop()).waits():
                    return worker
                worker.close()  # ended by somebody else meanwhile
            for tries in (1, 0):
                if self._nursery is None:
                    self._nursery = _Nursery()
                try:
                    return self._nursery.fork(self.limits.memory)
                except (OSError, EOFError):
                    self._nursery.close()
                    self._nursery = None
                    if not tries:
                        raise CbirError("reader", "no process can be started", _REMEDY) from None
            raise AssertionError

    def _ended(self, worker: _Worker, request: Request, late: bool) -> _Death:
        """End a worker, and say what it died of."""
        file = worker.file()
        worker.close()
        try:
            with self._lock:
                status = None if self._nursery is None else self._nursery.end(worker.number)
        except (OSError, EOFError):  # the nursery is gone, too
            status = None
        return _Death(_reason(status, request, late), file, late)


def _here() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # it was removed
        return "/"


@dataclass(frozen=True)
class _Death:
    """Why a worker is no more, and at which file that was."""

    reason: str
    file: str | None
    late: bool


def _reason(status: int | None, request: Request, late: bool) -> str:
    if late:
        return LATE
    number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None
    if number == signal.SIGXCPU:
        return f"takes more than {request.seconds:.0f} s of the processor to read"
    if number in (None, signal.SIGKILL):
        return "ended the process that read it (is there too little memory?)"
    return f"ended the process that read it ({signal.Signals(number).name})"


_REMEDY = f"see whether this system lets processes be started, or set {IN_PROCESS}=1"


class _Worker:
    """One process, while it is somebody's."""

    def __init__(self, number: int, connection: socket.socket, page: mmap.mmap) -> None:
        self.number, self._connection, self._page = number, connection, page

    def waits(self) -> bool:
        """Whether it is there, and silent."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return not poll.poll(0)

    def answered(self, request: Request, until: float | None) -> bool:
        """Ask, and wait for the answer until a moment of the monotonic clock."""
        self._page[: NUMBER.size] = NUMBER.pack(0)
        content = pickle.dumps(request, 5)
        self._connection.sendall(NUMBER.pack(len(content)) + content)
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        left = None if until is None else max(0.0, until - time.monotonic()) * 1000
        return bool(poll.poll(left))

    def answer(self, most: int) -> tuple[str, Any]:
        """What a value or an error it is, and that.

        Raises
        ------
        EOFError, OSError, Malformed
            If the worker is gone, or answers nothing that can be understood.
        """
        _, handles, *_ = socket.recv_fds(self._connection, 1, 1)
        if len(handles) != 1:
            raise EOFError
        answer = unpacked(handles[0], most)
        if not isinstance(answer, tuple) or len(answer) != 2 or answer[0] not in ("value", "error"):
            raise Malformed("answer")
        if isinstance(answer[1], CbirError) != (answer[0] == "error"):
            raise Malformed("error")
        return answer

    def file(self) -> str | None:
        """The file that it looked at last."""
        (length,) = NUMBER.unpack_from(self._page)
        return os.fsdecode(self._page[NUMBER.size :][:length]) if 0 < length <= NAME else None

    def close(self) -> None:
        self._connection.close()
        self._page.close()


class _Nursery:
    """The process that workers are forked from."""

    def __init__(self) -> None:
        if not hasattr(socket, "send_fds") or not hasattr(os, "fork"):
            raise CbirError("reader", "this system cannot hand files to child processes", _REMEDY)
        here, there = socket.socketpair()
        path = [str(Path(__file__).parents[2]), *(p for p in sys.path if isinstance(p, str))]
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOT, json.dumps(path), str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders quote what they read
                pass_fds=[there.fileno()],
                env=os.environ | QUIET,
            )
        self._control = here
        self._ready = False

    def fork(self, memory: int) -> _Worker:
        if not self._ready:
            self._number()  # it has imported the readers
            self._ready = True
        with tempfile.TemporaryFile() as file:
            file.truncate(PAGE)
            page = mmap.mmap(file.fileno(), PAGE)
            here, there = socket.socketpair()
            with there:
                socket.send_fds(self._control, [COMMAND.pack(FORK, memory)], [there.fileno(), file.fileno()])
        return _Worker(self._number(), here, page)

    def end(self, number: int) -> int:
        """End a worker, dead or alive, and get its wait status."""
        self._control.sendall(COMMAND.pack(END, number))
        return self._number()

    def _number(self) -> int:
        content = exactly(self._control, NUMBER.size)
        if content is None:
            raise EOFError
        return int(NUMBER.unpack(content)[0])

    def close(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()


_shared: Sandbox | None = None
_making = threading.Lock()


def shared() -> Sandbox:
    """The one of this process, which is made when it is first asked for."""
    global _shared
    with _making:
        if _shared is None:
            _shared = InProcess() if os.environ.get(IN_PROCESS) == "1" else Sandbox()
            atexit.register(_shared.close)
        return _shared


@contextmanager
def using(sandbox: Sandbox) -> Iterator[Sandbox]:
    """Have another one be the :func:`shared` one in this context, for all threads; it is closed after."""
    global _shared
    with _making:
        before, _shared = _shared, sandbox
    try:
        yield sandbox
    finally:
        with _making:
            _shared = before
        sandbox.close()


class InProcess(Sandbox):
    """No sandbox at all, where that is wanted."""

    def call(self, operation: str, *arguments: Any, where: Path, size: int) -> Any:
        """See :meth:`Sandbox.call`."""
        from indexer.sandbox.child import OPERATIONS

        return OPERATIONS[operation](*arguments)

    def begin(self) -> None:
        """See :meth:`Sandbox.begin`."""

    def discover(self, operation: str, root: Path, *arguments: Any) -> Any:
        """See :meth:`Sandbox.discover`."""
        return self.call(operation, root, *arguments, where=root, size=0)
