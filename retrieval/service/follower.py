"""Follow a PACS: what becomes stable there is indexed here, what is deleted there is taken out here.

Orthanc's change log says which series have become stable, and where we are in it is kept in the index
folder. The log alone is not enough: it tells nothing of deletions, and a series whose images came
within ``StableAge`` before Orthanc was stopped never gets its line. So what was filed is compared with
what there is: at the start, after Orthanc was away, and from time to time.

Orthanc's identifiers and UIDs are kept as keyed hashes only.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.errors import ReadError
from retrieval.service.core import Service
from retrieval.service.inbox import GivenUp
from retrieval.service.jobs import Job
from retrieval.service.log import log, tell
from retrieval.service.orthanc import Limits, NotInPacs, Orthanc, PacsError, Series
from retrieval.service.pool import Busy
from retrieval.service.private import opened
from retrieval.service.settings import Settings
from retrieval.service.uploads import TooLarge, Unreadable

WHO = "pacs"
"""Name in the audit trail."""
LISTED = 60.0
"""Seconds after which the list of series is compared again."""
INSPECTED = 3600.0
"""Seconds after which every series is looked at again."""
LONGEST = 60.0
"""Seconds between two tries while Orthanc is away, at most."""
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

FILED, FAILED, IGNORED = "filed", "failed", "ignored"
BEGUN, AGAIN = "begun", "again"
"""It was begun once, or twice, and the service was ended each time before it knew what became of it."""
KILLING = "the service was ended each time while it read this series; it is tried again when it changes"


class Stopped(Exception):
    """The service is being stopped."""


class Follower:
    """A thread that keeps an index up to date with an Orthanc.

    Parameters
    ----------
    settings : Settings
        Which PACS, and which modalities; series of others are passed over.
    service : Service
    every : float
        Seconds between two looks into the change log; a nudge makes it look at once.
    """

    def __init__(self, settings: Settings, service: Service, every: float = 5.0) -> None:
        assert settings.pacs is not None
        self._service = service
        self._modalities = settings.modalities
        self._every = every
        self._pacs = Orthanc(settings.pacs, limits=Limits.of(settings))
        self._memory = Memory(settings.index / "pacs.sqlite", self._pacs.name)
        self._hash = service.index.case_index.pseudonym
        self._inspected = self._listed = float("-inf")
        self._fault: str | None = "not asked yet"
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was begun is taken up at the next start."""
        self._stop.set()
        self._wake.set()
        self._thread.join()
        self._pacs.close()
        self._memory.close()

    def nudge(self) -> None:
        """Something has changed in the PACS: look at once. Never waits."""
        self._listed = float("-inf")
        self._wake.set()

    def status(self) -> dict[str, Any]:
        """How it stands: whether the PACS answers, and what became of its series."""
        return {"answers": self._fault is None, "reason": self._fault, **self._memory.summary()}

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        wait = self._every
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self._catch_up()
            except Stopped:
                return
            except (PacsError, Busy) as error:
                reason = error.reason if isinstance(error, PacsError) else str(error)
                if self._fault != reason:
                    log.warning("following the PACS: %s", reason)
                self._fault, wait = reason, min(2 * wait, LONGEST)
                self._inspected = float("-inf")  # what happened meanwhile is not known
            except Exception as error:  # the thread must live on; the next round begins where this one stood
                tell(error)
                self._fault, wait = f"an error inside cbir ({type(error).__name__})", LONGEST
                self._inspected = float("-inf")
            else:
                self._fault, wait = None, self._every
            self._wake.wait(wait)

    def _catch_up(self) -> None:
        now = time.monotonic()
        inspect = now - self._inspected > INSPECTED
        if inspect:
            newest, cursor = self._pacs.last_change(), self._memory.cursor
            if cursor is None or cursor > newest:  # another log: what it does not tell, the comparison finds
                self._memory.cursor = newest
        done = False
        while not done:
            changes, last, done = self._pacs.changes(self._memory.cursor or 0)
            for series in dict.fromkeys(change.id for change in changes if change.kind == "StableSeries"):
                self._file(series)
            self._memory.cursor = last
        if inspect or now - self._listed > LISTED:
            self._listed = now
            self._compare(thoroughly=inspect)
        if inspect:
            self._inspected = now

    def _compare(self, *, thoroughly: bool) -> None:
        """Take up what is new in the PACS, and take out what is gone from it."""
        there = {self._hash("orthanc", series): series for series in self._pacs.all_series()}
        held = self._memory.all()
        for key in held.keys() - there.keys():
            self._remove(key, held[key])
        for key, series in there.items():
            if key not in held or (thoroughly and held[key].state != IGNORED):
                self._file(series)

    def _file(self, series: str) -> None:
        """Index a series if it is stable, and new or changed."""
        key = self._hash("orthanc", series)
        held = self._memory.get(key)
        try:
            now = self._pacs.describe(series)
            same = held is not None and held.version == now.version
            if not now.stable or (same and held is not None and held.state not in (BEGUN, AGAIN)):
                return
            name = self._hash("series", now.uid)
            if self._is_foreign(now):
                self._memory.put(key, Held(name, now.version, IGNORED))
                return
            if same and held is not None and held.state == AGAIN:
                self._memory.put(key, Held(name, now.version, FAILED, KILLING))
                return
            self._memory.put(key, Held(name, now.version, AGAIN if same else BEGUN))
            try:
                reason = self._index(series)
            except BaseException:  # the PACS is away, or we are stopped in order: that is not its fault
                self._memory.put(key, held) if held is not None else self._memory.forget(key)
                raise
        except NotInPacs:
            return  # deleted meanwhile: the next comparison takes it out
        if reason is None:
            self._memory.put(key, Held(name, now.version, FILED))
        else:
            self._take_out(key, name)  # what was filed of it before is no longer what the PACS has
            self._memory.put(key, Held(name, now.version, FAILED, reason))

    def _index(self, series: str) -> str | None:
        """File the images of a series; returns the reason where they cannot be read, now or ever."""
        try:
            changes = self._service.changes
            job = changes.index_files(lambda folder: self._pacs.series(series, folder), who=WHO)
        except TooLarge as error:
            return error.explanation
        return self._done(job)

    def _is_foreign(self, series: Series) -> bool:
        """Whether a series is no scan, or one that the PACS holds already under its patient's name."""
        if series.modality not in self._modalities:
            return True
        if self._pacs.sop_class(series.instances[0]).startswith(SECONDARY_CAPTURE):
            return True
        if series.original is None:
            return False
        with contextlib.suppress(NotInPacs):
            self._pacs.describe(series.original)
            return True
        return False

    def _remove(self, key: str, held: Held) -> None:
        if held.state not in (FAILED, IGNORED):
            self._take_out(key, held.name)
        self._memory.forget(key)

    def _take_out(self, key: str, name: str) -> None:
        """Remove a series, unless the PACS holds it under another patient, too."""
        if not self._memory.is_filed(name, besides=key):
            self._done(self._service.changes.remove_series(name, who=WHO))

    def _done(self, job: Job) -> str | None:
        """Wait for a job; returns the reason where the images cannot be read, now or ever.

        Raises
        ------
        Stopped
            If the service stops meanwhile.
        BaseException
            What it failed with, if not for its images.
        """
        while not job.wait(0.5):
            if self._stop.is_set():
                raise Stopped  # what it does is found done at the next start
        if job.error is None:
            return None
        if isinstance(job.error, ReadError | Unreadable | TooLarge | GivenUp):
            return job.error.explanation
        raise job.error


@dataclass(frozen=True)
class Held:
    """What became of a series of the PACS.

    Attributes
    ----------
    name : str
        Pseudonym of its SeriesInstanceUID, as in the spool.
    version : str
        Of the series when it was looked at.
    state : {"begun", "again", "filed", "failed", "ignored"}
    reason : str, optional
        Why it failed.
    """

    name: str
    version: str
    state: str
    reason: str | None = None


class Memory:
    """Where we are in the change log of a PACS, and what became of its series, in a file.

    Every change is on the disk when the call returns.
    """

    def __init__(self, path: Path, pacs: str) -> None:
        os.close(opened(path, os.O_RDWR))
        self._pacs = pacs
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.executescript(
            """
            PRAGMA synchronous = FULL;
            CREATE TABLE IF NOT EXISTS cursor (pacs TEXT PRIMARY KEY, number INTEGER NOT NULL);
            CREATE TABLE IF NOT EXISTS series (
                pacs TEXT, key TEXT, name TEXT NOT NULL, version TEXT NOT NULL, state TEXT NOT NULL,
                reason TEXT, PRIMARY KEY (pacs, key)
            );
            """
        )

    def close(self) -> None:
        """Release the file."""
        self._database.close()

    @property
    def cursor(self) -> int | None:
        """Number of the last line of the change log that was followed; None at first."""
        row = self._database.execute("SELECT number FROM cursor WHERE pacs = ?", (self._pacs,)).fetchone()
        return None if row is None else int(row[0])

    @cursor.setter
    def cursor(self, number: int) -> None:
        self._database.execute("REPLACE INTO cursor VALUES (?, ?)", (self._pacs, number))

    def all(self) -> dict[str, Held]:
        """What is known, by the hash of Orthanc's identifier."""
        rows = self._database.execute(
            "SELECT key, name, version, state, reason FROM series WHERE pacs = ?", (self._pacs,)
        )
        return {key: Held(*rest) for key, *rest in rows}

    def get(self, key: str) -> Held | None:
        """What is known of one series."""
        row = self._database.execute(
            "SELECT name, version, state, reason FROM series WHERE pacs = ? AND key = ?", (self._pacs, key)
        ).fetchone()
        return None if row is None else Held(*row)

    def put(self, key: str, held: Held) -> None:
        """Remember a series."""
        row = (self._pacs, key, held.name, held.version, held.state, held.reason)
        self._database.execute("REPLACE INTO series VALUES (?, ?, ?, ?, ?, ?)", row)

    def forget(self, key: str) -> None:
        """A series is gone."""
        self._database.execute("DELETE FROM series WHERE pacs = ? AND key = ?", (self._pacs, key))

    def is_filed(self, name: str, *, besides: str) -> bool:
        """Whether another series of the same UID is filed."""
        found = self._database.execute(
            "SELECT 1 FROM series WHERE name = ? AND key != ? AND state = ?", (name, besides, FILED)
        )
        return found.fetchone() is not None

    def summary(self) -> dict[str, Any]:
        """Counts by what became of the series, and the reasons of those that failed."""
        held = self.all()
        counts = {state: sum(h.state == state for h in held.values()) for state in (FILED, FAILED, IGNORED)}
        failed = [{"series": h.name, "reason": h.reason} for h in held.values() if h.state == FAILED]
        return {"series": counts, "failed": failed, "change": self.cursor}
