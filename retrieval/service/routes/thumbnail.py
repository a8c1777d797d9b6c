"""A slice as a small picture, as a request asks for it."""

from __future__ import annotations

from collections.abc import Callable

from indexer.errors import QueryError
from indexer.scan import Scan
from retrieval.service import images
from retrieval.service.pictures import Missing

SIDES = (16, 1024)
"""Sizes of a thumbnail."""

Draw = Callable[[Scan], bytes]


def thumbnail(position: int | None, size: int) -> Draw:
    """Draws a slice of a scan, the middle one if none is named.

    Raises
    ------
    QueryError
        If the size is out of bounds.
    """
    if not SIDES[0] <= size <= SIDES[1]:
        raise QueryError("size", f"size is not from {SIDES[0]} to {SIDES[1]}")

    def draw(scan: Scan) -> bytes:
        try:
            return images.thumbnail(scan, len(scan) // 2 if position is None else position, size)
        except IndexError:
            raise Missing("slice", "the scan has no such slice") from None

    return draw
