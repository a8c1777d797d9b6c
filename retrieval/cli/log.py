"""The log of a process that is ours: what cbir did and how long it took, on stderr.

It tells counts, kinds and places in the program. Paths, ids, labels and texts of errors stay out of it,
since they may name a patient; what libraries log, and warn about, for the same reason.
"""

from __future__ import annotations

import logging
import os
import traceback
from typing import Any

from retrieval.cli.printing import say

OURS = ("cbir", "indexer", "retrieval", "pacs")
SERVER = "uvicorn.error"
"""Tells what broke the service from outside of its routes; and warns of each request that is no HTTP, which
anybody may send without end. Those are in the trail, counted by address."""


def start(verbose: bool = False) -> None:
    """Log warnings, or with `verbose` everything; again, to change which."""
    logging.captureWarnings(True)
    if not logging.root.handlers:
        logging.root.addHandler(logging.NullHandler())
    handler = _Handler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in (*OURS, SERVER):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.setLevel(logging.ERROR if name == SERVER else logging.DEBUG if verbose else logging.WARNING)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple):
            record = logging.makeLogRecord({**vars(record), "args": tuple(map(_without_path, record.args))})
        say(self.format(record).replace("\n", ": "))


def _without_path(value: object) -> object:
    return "…" if isinstance(value, os.PathLike) or (isinstance(value, str) and os.sep in value) else value


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:
        """The kind of an error and the lines it came by."""
        frames = traceback.extract_tb(ei[2])
        return f"{ei[0].__name__} in " + " < ".join(f"{f.name}:{f.lineno}" for f in reversed(frames))
