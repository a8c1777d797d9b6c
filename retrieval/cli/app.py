"""The command line: parses, calls, prints."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from indexer.errors import CbirError
from indexer.files import FULL, disk_full
from retrieval.cli import log
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


def _log_all(wanted: bool) -> None:
    if wanted:
        log.start(verbose=True)


VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_log_all,
        is_eager=True,
        help="Log what is done, and how long it takes, on stderr.",
    ),
]


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
    verbose: VerboseOption = False,
) -> None:
    """Find the known, graded cases that look like a new scan. Research use only, not a medical device."""


def run(arguments: list[str]) -> int:
    """Do what the arguments say; a mistake ends in one line.

    Returns
    -------
    int
        The exit code.
    """
    log.start()
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except typer.TyperException as error:
        return _refused(error)
    except CbirError as error:
        say(f"cbir: {error}")
    except BrokenPipeError:  # the reader of our output has gone
        _drop_output()
    except OSError as error:
        say(f"cbir: {disk_full(Path(error.filename or 'output')) if error.errno in FULL else _told(error)}")
        if not error.filename:
            _drop_output()
    return 1


def _invoke(arguments: list[str]) -> int:
    try:
        with get_command(app).make_context("cbir", arguments) as context:
            context.command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _refused(error: typer.TyperException) -> int:
    """Say what is wrong with the arguments."""
    context = getattr(error, "ctx", None)
    name = context.command_path if context else "cbir"
    if message := error.format_message().rstrip("."):  # none where the help was printed instead
        say(f"{name}: {message}; see `{name} --help`")
    return error.exit_code


def _told(error: OSError) -> str:
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _drop_output() -> None:
    """What is still to be flushed would fail again at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_log(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with the option ``--verbose``, which all have."""

    @functools.wraps(verb)
    def run(*, verbose: bool, **options: Any) -> None:
        verb(**options)

    how = inspect.Parameter.KEYWORD_ONLY
    option = inspect.Parameter("verbose", how, default=False, annotation=VerboseOption)
    signature = inspect.signature(verb, eval_str=True)
    options = [*signature.parameters.values(), option]
    run.__dict__["__signature__"] = signature.replace(parameters=options)
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


for verb in (index, query, evaluate, info, verify, remove, compact, copy, train, demo, serve, token):
    app.command(name="eval" if verb is evaluate else None)(_with_log(verb))
