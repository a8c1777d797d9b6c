"""Many values, so many at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

NAMED = 500
"""Values that a condition names, at most: databases limit how many may be bound."""

T = TypeVar("T")


def blocks(values: Iterable[T], size: int = NAMED) -> Iterator[list[T]]:
    """Values, so many at a time."""
    block: list[T] = []
    for value in values:
        block.append(value)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
