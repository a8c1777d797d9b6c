"""Bars on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ingest_bar() -> Iterator[Callable[[int, int, int], None]]:
    """Sources done and slices a second."""
    if not sys.stderr.isatty():
        yield lambda done, total, slices: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("indexing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("indexing", total=None, rate="")

        def advance(done: int, total: int, slices: int) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = f"{slices / elapsed:.0f} slices/s" if elapsed else ""
            bar.update(task, completed=done, total=total, rate=rate)

        yield advance


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """One thing after the other."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    progress.update(task, visible=False)
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total)

        yield advance


@contextmanager
def spinner(what: str) -> Iterator[None]:
    """What is going on, for as long as it does."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
