"""How the command line prints: data go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any


def show(line: str = "") -> None:
    """A line of data."""
    print(line)


def say(line: str) -> None:
    """A line about the work."""
    print(line, file=sys.stderr)


def show_json(data: dict[str, Any]) -> None:
    """One object on one line."""
    show(json.dumps(data, ensure_ascii=False, default=str))


def show_table(header: list[str], rows: list[list[str]]) -> None:
    """A table on a terminal, tab-separated lines in a pipe."""
    if not sys.stdout.isatty():
        for row in [header, *rows]:
            show("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)
