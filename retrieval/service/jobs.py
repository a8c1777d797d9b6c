"""Changes of the index: one thread writes, a bounded queue waits for it."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from indexer.errors import CbirError, WriterBusyError
from retrieval.service.log import tell
from retrieval.service.pool import Busy

KEPT = 1000
"""Jobs that are remembered."""
AGAIN = 1.0
"""Seconds between two tries while another process writes to the index."""
PATIENCE = 600
"""Tries."""


@dataclass
class Job:
    """A change of the index that was asked for.

    Attributes
    ----------
    id : str
    what : str
        ``index`` or ``remove``.
    who : str
        Name of the token.
    state : str
        ``queued``, ``running``, ``done`` or ``failed``.
    done, total : int
        Progress, in sources.
    report : dict, optional
        What was done.
    error : Exception, optional
        Why it failed.
    created, ended : str
    """

    id: str
    what: str
    who: str
    state: str = "queued"
    done: int = 0
    total: int = 0
    report: dict[str, Any] | None = None
    error: Exception | None = None
    created: str = ""
    ended: str | None = None
    over: threading.Event = field(default_factory=threading.Event, repr=False)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is done or failed; False if the time was over first."""
        return self.over.wait(timeout)

    def advance(self, done: int, total: int) -> None:
        """Tell the progress."""
        self.done, self.total = done, total

    @property
    def reason(self) -> str | None:
        """Why it failed, in one line."""
        if self.error is None or isinstance(self.error, CbirError):
            return None if self.error is None else self.error.explanation
        if isinstance(self.error, Busy):
            return "the service was stopped; what was accepted is done when it is started again"
        return f"an error inside cbir ({type(self.error).__name__})"

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``GET /jobs/{id}``."""
        return {
            "job": self.id,
            "what": self.what,
            "state": self.state,
            "progress": {"done": self.done, "total": self.total},
            "report": self.report,
            "reason": self.reason,
            "created": self.created,
            "ended": self.ended,
        }


Work = Callable[[Job], dict[str, Any]]
"""Does the change, tells its progress to the job, returns the report. May be called again."""


class Room:
    """Room for one job in the queue, until the job begins or will not come."""

    def __init__(self, slots: threading.Semaphore) -> None:
        self._slots: threading.Semaphore | None = slots
        self.used = False

    def leave(self) -> None:
        """Somebody else may have it."""
        if self._slots is not None:
            self._slots.release()
            self._slots = None


@dataclass(frozen=True)
class _Entry:
    job: Job
    work: Work
    ended: Callable[[Job], None]
    room: Room | None
    lasting: bool


class Jobs:
    """The queue and the thread behind it.

    Parameters
    ----------
    limit : int
        Jobs that wait at most, beside those that were accepted before the service was started.
    idle : callable
        Called in the thread when nothing has been to do for a while.
    """

    def __init__(self, limit: int, idle: Callable[[], None] = lambda: None) -> None:
        self._waiting: queue.Queue[_Entry] = queue.Queue()
        self._slots = threading.BoundedSemaphore(max(1, limit))
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()
        self._idle = idle
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    @contextmanager
    def room(self) -> Iterator[Room]:
        """Room for a job, to be had before anything is promised; it is given back unless a job took it.

        Raises
        ------
        Busy
            If too many wait.
        """
        if self._stop.is_set() or not self._slots.acquire(blocking=False):
            raise Busy(after=10)
        room = Room(self._slots)
        try:
            yield room
        finally:
            if not room.used:
                room.leave()

    def submit(
        self,
        job: Job,
        work: Work,
        *,
        ended: Callable[[Job], None] = lambda job: None,
        room: Room | None = None,
        lasting: bool = False,
    ) -> Job:
        """Queue a change.

        Parameters
        ----------
        job : Job
        work : callable
        ended : callable
            Called when the job has ended, before anybody hears of it; a job for which it raises has failed.
        room : Room, optional
            What :meth:`room` gave; None for what was accepted before.
        lasting : bool
            What has not been done when the service is stopped has not ended: the next one does it.

        Returns
        -------
        Job

        Raises
        ------
        Busy
            If the service is being stopped.
        """
        with self._lock:
            if self._stop.is_set():
                raise Busy(after=10)
            self._waiting.put(_Entry(job, work, ended, room, lasting))
            if room is not None:
                room.used = True
            self._jobs[job.id] = job
            while len(self._jobs) > KEPT:
                self._jobs.popitem(last=False)
        return job

    def get(self, job: str) -> Job | None:
        """A job by its id."""
        with self._lock:
            return self._jobs.get(job)

    def all(self) -> list[Job]:
        """The jobs that are remembered, the newest first."""
        with self._lock:
            return list(reversed(self._jobs.values()))

    @property
    def full(self) -> bool:
        """Whether no job would be accepted now."""
        if not self._slots.acquire(blocking=False):
            return True
        self._slots.release()
        return False

    def close(self) -> None:
        """Let the running job end; those that wait are left, or have failed if they do not last."""
        with self._lock:
            self._stop.set()
        with suppress(queue.Empty):
            while True:
                self._end(self._waiting.get_nowait(), error=Busy())
        self._thread.join()

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                entry = self._waiting.get(timeout=AGAIN)
            except queue.Empty:
                self._quietly(self._idle)
                continue
            self._do(entry)

    def _do(self, entry: _Entry) -> None:
        job = entry.job
        job.state = "running"
        if entry.room is not None:
            entry.room.leave()
        report: dict[str, Any] | None = None
        error: Exception | None = None
        for _ in range(PATIENCE):
            try:
                report, error = entry.work(job), None
            except WriterBusyError as busy:  # `cbir index` in a shell, for example
                error = busy
                if not self._stop.wait(AGAIN):
                    continue
                error = Busy()
            except CbirError as refused:
                error = refused
            except Exception as unforeseen:  # the next job must not suffer for this one
                error = unforeseen
                tell(unforeseen)
            break
        self._end(entry, report, error)

    def _end(
        self, entry: _Entry, report: dict[str, Any] | None = None, error: Exception | None = None
    ) -> None:
        job = entry.job
        job.report, job.error, job.ended = report, error, _now()
        if not (entry.lasting and isinstance(error, Busy)):
            try:
                entry.ended(job)
            except Exception as untold:  # what could not be written down is no success
                tell(untold)
                job.error = job.error or untold
        job.state = "done" if job.error is None else "failed"
        job.over.set()

    @staticmethod
    def _quietly(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            tell(error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
