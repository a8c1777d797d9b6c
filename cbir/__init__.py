"""Content-based medical image retrieval: ask an index of known, graded cases with a new scan.

>>> import cbir
>>> with cbir.open_index("cbir-index") as index:                             # doctest: +SKIP
...     answer = index.query("scan.nii", k=10, where={"who_grade": "4"})
...     answer.hits[0].labels
{'who_grade': '4'}

This is the whole public interface; the command line and the service use it and nothing deeper. Names are
loaded when they are first used: importing this costs nothing. Research use only, not a medical device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbir.filling import Plan, plan
    from cbir.index import Index
    from cbir.opening import create_index, open_index, reference_index
    from indexer.errors import CbirError
    from indexer.policy import SearchPolicy
    from indexer.scan import Scan, ScanRef
    from retrieval.answer import Answer, Evidence, Hit, Query
    from retrieval.question import Question
    from retrieval.ranking import Ranking

    __version__: str

_HOMES = {
    "Answer": "retrieval.answer",
    "CbirError": "indexer.errors",
    "Evidence": "retrieval.answer",
    "Hit": "retrieval.answer",
    "Index": "cbir.index",
    "Plan": "cbir.filling",
    "Query": "retrieval.answer",
    "Question": "retrieval.question",
    "Ranking": "retrieval.ranking",
    "Scan": "indexer.scan",
    "ScanRef": "indexer.scan",
    "SearchPolicy": "indexer.policy",
    "create_index": "cbir.opening",
    "open_index": "cbir.opening",
    "plan": "cbir.filling",
    "reference_index": "cbir.opening",
}

__all__ = [
    "Answer",
    "CbirError",
    "Evidence",
    "Hit",
    "Index",
    "Plan",
    "Query",
    "Question",
    "Ranking",
    "Scan",
    "ScanRef",
    "SearchPolicy",
    "__version__",
    "create_index",
    "open_index",
    "plan",
    "reference_index",
]


def __getattr__(name: str) -> Any:
    """Load a name at its first use."""
    found: Any
    if name == "__version__":
        from importlib.metadata import version

        found = version("cbir")
    elif name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'cbir' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
