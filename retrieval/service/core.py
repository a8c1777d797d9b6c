"""What the service holds, without HTTP: one index, one writer, the queries of the last minutes, one audit."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from cbir import create_index, open_index
from indexer.case_index import CaseIndex
from indexer.catalog import Contents
from indexer.encoder import Encoder
from indexer.errors import CaseIndexError, WriterBusyError
from indexer.files import there
from indexer.manifest import MANIFEST
from indexer.runtime import trim
from indexer.scan import Scan, ScanRef
from retrieval.evidence import class_columns
from retrieval.service.audit import Audit, AuditError
from retrieval.service.changes import Changes
from retrieval.service.jobs import Jobs
from retrieval.service.pictures import Pictures
from retrieval.service.private import opened as opened_own
from retrieval.service.queries import Kept, Queries
from retrieval.service.questions import Questions
from retrieval.service.scratch import Scratch
from retrieval.service.settings import Settings
from retrieval.service.spool import settle, sweep

TRIMMED = 30.0
"""Seconds after which memory that is not used is given back."""
REST = 10
"""The state is renewed at most so often that it takes a tenth of the time."""


class Service:
    """An index that is asked and filled at the same time.

    Parameters
    ----------
    settings : Settings
    encoder : Encoder, optional
        Instead of the installed one that the index names.

    Attributes
    ----------
    index : Index
        As questions see it.
    questions : Questions
    pictures : Pictures
    changes : Changes
    queries : Queries
    jobs : Jobs
    audit : Audit
    scratch : Scratch

    Raises
    ------
    CbirError
        If the index cannot be opened, or another service holds it.
    """

    def __init__(self, settings: Settings, encoder: Encoder | None = None) -> None:
        self.settings = settings
        if not there(settings.index / MANIFEST, CaseIndexError):
            create_index(settings.index, encoder=encoder).close()
        with ExitStack() as opened:
            _hold(settings.index, opened)
            self.scratch = Scratch()
            opened.callback(self.scratch.close)
            self.queries = Queries(self.scratch.queries, settings.keep)
            self.audit = Audit(settings.audit or settings.index / "audit")
            opened.callback(self.audit.close)
            self._writer = opened.enter_context(open_index(settings.index, encoder, lazy=True))
            with suppress(WriterBusyError), self._writer.case_index.writing("serve"):
                settle(self._writer.case_index)
                sweep(self._writer.case_index)
            self.index = opened.enter_context(open_index(settings.index, encoder))
            encoder = self.index.encoder
            encoder.encode(np.zeros((32, encoder.size, encoder.size), np.uint8))  # warm
            self._revision = self._writer.case_index.catalog.revision
            self._calibrated = -1  # the revision at which that was last thought of
            self._renewed = self._trimmed = time.monotonic()
            self._cost = 0.0
            self._about: tuple[Contents, dict[str, Any]] | None = None
            self.jobs = Jobs(settings.queue, idle=self._idle)
            opened.callback(self.jobs.close)
            self.pictures = Pictures(self.index)
            self.questions = Questions(settings, self.index, self.pictures, self.queries, self.scratch)
            self.changes = Changes(
                settings,
                self.index,
                self._writer,
                self.pictures,
                self.jobs,
                self.audit,
                lambda now: self._renew(now=now),
            )
            self.changes.resume()
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Let the running job end; remove what was temporary."""
        self._opened.close()

    def read(self, source: str, kept: Kept | None) -> list[Scan]:
        """The scans of a hit's or a query's source, for a report."""
        number = None if kept is None else kept.number(ScanRef(source, 0))
        return self.index.scans(source) if kept is None or number is None else [kept.scan(number)]

    def about(self) -> dict[str, Any]:
        """What is in the index, as questions see it: counts, provenance, and the values of each label.

        It is counted once a state, not once a request.
        """
        contents = self.index.contents
        if self._about is None or self._about[0] is not contents:
            self._about = contents, _told(self.index.case_index, contents)
        return dict(self._about[1])

    # ---- in the writer's thread ----------------------------------------------------------------

    def _renew(self, *, now: bool = True) -> None:
        """Let questions see what has been committed."""
        if not now and time.monotonic() - self._renewed < REST * self._cost:
            return
        start = time.monotonic()
        revision = self._writer.case_index.catalog.revision
        self.index.refresh()
        self._revision = revision
        self._renewed = time.monotonic()
        self._cost = self._renewed - start
        self._trim()

    def _trim(self) -> None:
        if time.monotonic() - self._trimmed > TRIMMED:
            trim()
            self._trimmed = time.monotonic()

    def _idle(self) -> None:
        self.queries.sweep()
        with suppress(AuditError):  # which was told when it was to be written
            self.audit.settle()
        self._trim()
        if self._writer.case_index.catalog.revision != self._revision:  # another process wrote
            self._renew(now=False)
        elif self._calibrated != self._revision:
            self._calibrated = self._revision
            if self.index.calibration_due:
                self.index.calibrate()


def _told(index: CaseIndex, contents: Contents) -> dict[str, Any]:
    """What of an index is the business of clients: nothing of paths and servers."""
    rows = list(dict(zip(contents.patient_ids, contents.labels, strict=True)).values())
    about = {name: value for name, value in index.about().items() if name not in ("vectors", "catalog")}
    labels = {name: sorted({row[name] for row in rows if name in row}) for name in class_columns(rows)}
    return {**about, "labels": labels}


def _hold(index: Path, opened: ExitStack) -> None:
    """Be the one service on an index.

    Raises
    ------
    CaseIndexError
        If another one runs on it.
    """
    path = index / "service.lock"
    try:
        os.close(opened_own(path, os.O_RDWR))
        lock = filelock.FileLock(path, thread_local=False)
        opened.enter_context(lock.acquire(timeout=0))
    except filelock.Timeout:
        raise CaseIndexError(index, "another service runs on this index", "stop it") from None
    except OSError as error:
        reason = f"its lock cannot be taken ({error.strerror or error})"
        raise CaseIndexError(index, reason, "see what lies at service.lock") from error
