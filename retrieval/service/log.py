"""The service's log: what went wrong and where in the program, never a name, a path or an id."""

from __future__ import annotations

import logging
import traceback

log = logging.getLogger(__name__)


def tell(error: BaseException) -> None:
    """Log an unforeseen error: its type and the lines it came by; its text may quote a file."""
    frames = traceback.extract_tb(error.__traceback__)
    came = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    log.error("%s in %s", type(error).__name__, came)
