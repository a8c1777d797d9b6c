"""The command line: parses, calls, prints."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from indexer.errors import CbirError
from indexer.files import FULL, disk_full
from retrieval.cli.asking import evaluate, query
from retrieval.cli.care import compact, copy, info, remove, verify
from retrieval.cli.indexing import index
from retrieval.cli.printing import say, show
from retrieval.cli.serving import serve, token
from retrieval.cli.training import demo, train

app = typer.Typer(
    name="cbir",
    help="Find the known, graded cases that look like a new scan. Research use only, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        show(version("cbir"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the known, graded cases that look like a new scan. Research use only, not a medical device."""


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit code 1."""
    try:
        app(prog_name="cbir")
    except CbirError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in FULL:
            raise
        _fail(str(disk_full(Path(error.filename or "output"))))


def _fail(line: str) -> NoReturn:
    say(f"cbir: {line}")
    sys.exit(1)


for verb in (index, query, evaluate, info, verify, remove, compact, copy, train, demo, serve, token):
    app.command(name="eval" if verb is evaluate else None)(verb)
