"""Changes of the index: one thread writes, a bounded queue waits for it."""

from __future__ import annotations

import queue
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
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
            return "the service was stopped"
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


class Jobs:
    """The queue and the thread behind it.

    Parameters
    ----------
    limit : int
        Jobs that wait at most.
    idle : callable
        Called in the thread when nothing has been to do for a while.
    """

    def __init__(self, limit: int, idle: Callable[[], None] = lambda: None) -> None:
        self._waiting: queue.Queue[tuple[Job, Work, Callable[[], None]]] = queue.Queue(max(1, limit))
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()
        self._idle = idle
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def submit(self, what: str, work: Work, *, who: str, after: Callable[[], None] = lambda: None) -> Job:
        """Queue a change.

        Parameters
        ----------
        what : str
        work : callable
        who : str
        after : callable
            Called when the job is over, or will never begin.

        Raises
        ------
        Busy
            If too many wait.
        """
        job = Job(secrets.token_hex(8), what, who, created=_now())
        try:
            with self._lock:
                if self._stop.is_set():
                    raise queue.Full
                self._waiting.put_nowait((job, work, after))
                self._jobs[job.id] = job
                while len(self._jobs) > KEPT:
                    self._jobs.popitem(last=False)
        except queue.Full:
            after()
            raise Busy(after=10) from None
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
        """Whether no job can be queued now."""
        return self._waiting.full()

    def close(self) -> None:
        """Let the running job end, drop those that wait."""
        with self._lock:
            self._stop.set()
        with suppress(queue.Empty):
            while True:
                job, _, after = self._waiting.get_nowait()
                self._end(job, after, error=Busy())
        self._thread.join()

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                entry = self._waiting.get(timeout=AGAIN)
            except queue.Empty:
                self._quietly(self._idle)
                continue
            self._do(*entry)

    def _do(self, job: Job, work: Work, after: Callable[[], None]) -> None:
        job.state = "running"
        report: dict[str, Any] | None = None
        error: Exception | None = None
        for _ in range(PATIENCE):
            try:
                report, error = work(job), None
            except WriterBusyError as busy:  # `cbir index` in a shell, for example
                error = busy
                if not self._stop.wait(AGAIN):
                    continue
            except CbirError as refused:
                error = refused
            except Exception as unforeseen:  # the next job must not suffer for this one
                error = unforeseen
                tell(unforeseen)
            break
        self._end(job, after, report, error)

    def _end(
        self,
        job: Job,
        after: Callable[[], None],
        report: dict[str, Any] | None = None,
        error: Exception | None = None,
    ) -> None:
        self._quietly(after)
        job.report, job.error, job.ended = report, error, _now()
        job.state = "done" if error is None else "failed"
        job.over.set()

    @staticmethod
    def _quietly(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            tell(error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
