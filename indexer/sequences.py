"""Sequences that are seen together as one image, and what that image has for a sequence itself."""

from __future__ import annotations

CHANNELS = ("t1", "t1ce", "t2", "flair")
"""Sequences that a composite may hold, in the order of its channels."""

LEADERS = ("flair", "t2", "t1ce", "t1")
"""Of these sequences, the first that there is says where the lesion is, and is shown of a composite."""

LEADING = tuple(CHANNELS.index(name) for name in LEADERS)

STANDARD = (-2.5, 5.5)
"""Standard deviations of the brain that become the darkest and the brightest grey of a composite."""

COMPOSITE = "composite"
"""What a composite has for a sequence, and its source for a kind."""


def is_composite(name: str | None) -> bool:
    """Whether a sequence, or a kind of source, is a composite's."""
    return name == COMPOSITE
