"""What a folder is: one look at all of it, before anything is embedded.

Paths go through small functions that need no files: tokens of names (:mod:`tokens`), what their words say
(:mod:`roles`, :mod:`vocabulary`), who and when (:mod:`people`), what each file is (:mod:`layout`).
:mod:`walk`, :mod:`candidates`, :mod:`sidecars`, :mod:`stacks`, :mod:`series` and :mod:`content` know the
files; :mod:`outlines`, :mod:`classes` and :mod:`unread` say what goes with them; :mod:`survey` puts it
together into a :mod:`plan`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from indexer.discovery.plan import Discovery, Planned

if TYPE_CHECKING:
    from indexer.discovery.survey import discover, read

__all__ = ["Discovery", "Planned", "discover", "read"]


def __getattr__(name: str) -> Any:
    """`discover` and `read`, for which the libraries of the formats are needed; not for what they found."""
    if name in ("discover", "read"):
        return getattr(importlib.import_module("indexer.discovery.survey"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
