"""Process settings that decide how fast the network runs on a CPU."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Parameters of mallopt(3), from glibc's malloc.h."""


@functools.cache
def prepare() -> None:
    """Set how OpenMP waits and how the heap grows; to be called before torch is imported.

    Waiting OpenMP threads sleep instead of spinning (a spinning thread beside one busy process
    made a forward pass about a hundred times slower), unless the user has chosen otherwise by
    ``OMP_WAIT_POLICY``. On glibc, the memory of one layer stays in the heap for the next instead of
    going back to the system, which would have to clear every page again: half of the time of a
    batch. All threads share that heap, because a heap of their own is too small for a layer.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 64 * 2**20)
        mallopt(M_ARENA_MAX, 1)


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage in this context, and none of all it made right after: for what is short, or
    keeps what it makes."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.freeze()
            gc.unfreeze()  # into the oldest generation, which is searched seldom
            gc.enable()


def trim() -> None:
    """Give heap memory that nobody uses back to the system; for processes that live long.

    With the settings of :func:`prepare` the heap keeps all it ever had. It comes back when it is
    needed, at the price of clearing it, so this is for once in a while.
    """
    if sys.platform == "linux" and (release := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        release(0)
