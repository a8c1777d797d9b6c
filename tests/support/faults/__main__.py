"""Try faults: ``python -m tests.support.faults kills --count 1000 --record``.

kills, errors, interrupts: at any system call of a verb it is killed, the call fails, or Ctrl-C comes.
folders: commands at hostile index folders. flips: bits of an index, so many in each of its files.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

UNSUPPORTED = 3
"""Exit code where the kernel is another."""


def main() -> int:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # before numpy is imported: who forks may have no thread beside its own
    from tests.support.faults import calls, flips, folders, fork, trials

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=[*trials.KINDS, "folders", "flips"])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument(
        "--verb", action="append", default=[], help="only this one, such as serve; repeatable"
    )
    parser.add_argument("--record", action="store_true", help="keep the figures with the benchmarks")
    options = parser.parse_args()
    if not calls.supported():
        print("the kernel does not ask about system calls here", file=sys.stderr)
        return UNSUPPORTED
    start = time.monotonic()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="cbir-faults-", dir=memory if memory.is_dir() else None) as name:
        folder = Path(name).resolve()
        settings = (options.count, options.seed, say)
        if options.kind == "flips":
            found = flips.run(folder, *settings)
        else:
            fork.warm(folder)
            if options.kind == "folders":
                found = folders.run(folder, *settings, first=options.first)
            else:
                found = trials.run(
                    options.kind, trials.Bench(folder, options.verb), *settings, first=options.first
                )
    found["seconds"] = round(time.monotonic() - start)
    if options.record:
        from benchmarks import results

        command = f"python -m tests.support.faults {options.kind} --count {options.count}"
        results.save(f"faults-{options.kind}", found, command=command)
    print(json.dumps(found))
    return 1 if found["wrong"] else 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
