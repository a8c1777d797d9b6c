"""Readers keep to themselves what headers hold, and leave the process as they found it.

pydicom, highdicom and Pillow warn about what they meet, and quote it: names of patients would reach a
terminal or a log file. How they warn is a setting of the whole process, which belongs to whoever runs it.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pydicom

_LOG = logging.getLogger("pydicom")
_QUOTING = r"(pydicom|highdicom|PIL)(\.|$)"
_lock = threading.Lock()
_inside = 0
_before = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Within, nothing is said about headers; afterwards all settings are what they were.

    For calls, not for generators. Several threads may be inside: the first to come makes it quiet, the
    last to go restores.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _make_quiet()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _before.close()


def _make_quiet() -> None:
    settings = pydicom.config.settings
    _before.enter_context(warnings.catch_warnings())
    _before.callback(setattr, settings, "_reading_validation_mode", settings._reading_validation_mode)
    _before.callback(setattr, _LOG, "disabled", _LOG.disabled)
    warnings.filterwarnings("ignore", module=_QUOTING)
    settings.reading_validation_mode = pydicom.config.IGNORE
    _LOG.disabled = True
