"""How a question is written, on the command line and over HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, cast, get_args

from indexer.errors import QueryError

Box = tuple[int, int, int, int]
"""``(x0, y0, x1, y1)`` in pixels of the displayed slice, from the top left, end exclusive."""

By = Literal["class", "appearance", "similarity"]
"""What hits are ordered by, where not by all together: see :meth:`retrieval.ranking.Ranking.shares`."""


def parse_region(text: str) -> tuple[Box, int | None]:
    """Box and slice of ``x0,y0,x1,y1`` or ``x0,y0,x1,y1@slice``.

    Raises
    ------
    QueryError

    Examples
    --------
    >>> parse_region("10,20,40,60@77")
    ((10, 20, 40, 60), 77)
    """
    box, at, position = text.partition("@")
    try:
        x0, y0, x1, y1 = (int(part) for part in box.split(","))
        return (x0, y0, x1, y1), int(position) if at else None
    except ValueError:
        raise QueryError("region", f"{text!r} is not X0,Y0,X1,Y1 or X0,Y0,X1,Y1@SLICE") from None


def parse_by(text: str | None) -> By | None:
    """What hits are ordered by; None for all together.

    Raises
    ------
    QueryError

    Examples
    --------
    >>> parse_by("appearance"), parse_by(None)
    ('appearance', None)
    """
    for known in get_args(By):
        if text == known:
            return cast(By, known)
    if text is not None:
        raise QueryError("by", f"{text!r} is none of {', '.join(get_args(By))}")
    return None


def parse_where(pairs: Iterable[str]) -> dict[str, str]:
    """Labels and values of ``label=value`` pairs.

    Raises
    ------
    QueryError

    Examples
    --------
    >>> parse_where(["who_grade=4", "sex=F"])
    {'who_grade': '4', 'sex': 'F'}
    """
    where = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise QueryError("where", f"{pair!r} is not LABEL=VALUE")
        where[name] = value
    return where
