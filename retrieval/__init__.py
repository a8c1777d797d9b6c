"""Ask a case index: ``from retrieval import open_index``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.answer import Answer, Evidence, Hit, Query
    from retrieval.search import Index, open_index, open_reference

__all__ = ["Answer", "Evidence", "Hit", "Index", "Query", "open_index", "open_reference"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``cbir --help`` waits for no library."""
    if name not in __all__:
        raise AttributeError(f"module 'retrieval' has no attribute {name!r}")
    from retrieval import answer, search

    return getattr(search if name in ("Index", "open_index", "open_reference") else answer, name)
