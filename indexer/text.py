"""Text of strangers, as it may be shown: one line, without characters that steer a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with its control characters, invisible marks and invalid Unicode spelled out.

    Examples
    --------
    >>> printable("a\\nb\\x1b[2J")
    'a\\\\nb\\\\x1b[2J'
    """
    if text.isprintable():
        return text
    text = text.encode(errors="surrogateescape").decode(errors="replace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
