"""The command line."""

import gc
import signal
import sys


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
    gc.freeze()  # nothing is searched for garbage at the end, which all goes with the process
    sys.exit(code)
