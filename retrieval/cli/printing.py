"""How the command line prints: data go to stdout, everything else to stderr.

Labels, ids and names of files come from strangers. All that is printed passes `printable`, so that none
of it can steer a terminal or make a line or a column of its own.
"""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

LONGEST = 2000
"""Characters of a line about the work; what is between both its ends is left out."""


def printable(text: str) -> str:
    r"""The text with everything that is no visible character escaped, as JSON escapes it.

    Examples
    --------
    >>> print(printable("4\n\x1b[31mred \u202eeht"))
    4\u000a\u001b[31mred \u202eeht
    """
    return "".join(char if char == " " or char.isprintable() else _escaped(char) for char in text)


def show(*cells: str) -> None:
    """A line of data; cells stand a tab apart."""
    _write("\t".join(map(printable, cells)), sys.stdout)


def say(line: str) -> None:
    """A line about the work."""
    line = printable(line)
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    _write(line, sys.stderr)


def show_json(data: dict[str, Any]) -> None:
    """One object on one line."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    show(json.dumps(data, ensure_ascii=not unicode, default=str))


def show_table(header: list[str], rows: list[list[str]]) -> None:
    """A table on a terminal, tab-separated lines in a pipe."""
    if not sys.stdout.isatty():
        for row in [header, *rows]:
            show(*row)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(Text(printable(name)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _write(line: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream)
