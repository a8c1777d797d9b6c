"""The command line."""

import atexit
import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    """Run ``cbir`` and leave: 0 done, 1 refused, 2 wrong usage, 130 stopped by Ctrl-C."""
    try:
        from indexer.runtime import prepare

        prepare()  # before anything imports torch
        from retrieval.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # who presses it again does not want to wait
        from retrieval.cli.printing import say

        say("; ".join(["cbir: stopped", *map(str, stop.args)]))
        exec("")  # else Python, where this came out of an exec, ends by the signal instead of the code
        code = 130
    sys.exit(code)


def command() -> None:
    """:func:`main` in a process of its own.

    Where it has asked it ends at once: somebody waits, and to take torch apart takes some tenths of a second.
    """
    try:
        main()
    except SystemExit as end:
        if sys.argv[1:2] != ["query"] or not isinstance(end.code, int):
            raise
        atexit._run_exitfuncs()
        with suppress(OSError):  # what could not be written was said
            sys.stdout.flush()
        os._exit(end.code)
