"""Try faults: ``python -m tests.support.faults kills --count 1000 --record``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.support.faults import calls, folders, fork, trials


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=[*trials.KINDS, "folders"])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--record", action="store_true", help="keep the figures with the benchmarks")
    options = parser.parse_args()
    if not calls.supported():
        print("the kernel does not ask about system calls here", file=sys.stderr)
        return 3
    start = time.monotonic()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="cbir-faults-", dir=memory if memory.is_dir() else None) as name:
        folder = Path(name).resolve()
        fork.warm(folder)
        settings = (options.count, options.seed, say)
        if options.kind == "folders":
            found = folders.run(folder, *settings, first=options.first)
        else:
            found = trials.run(options.kind, trials.Bench(folder), *settings, first=options.first)
    found["seconds"] = round(time.monotonic() - start)
    if options.record:
        from benchmarks import results

        results.save(
            f"faults-{options.kind}",
            found,
            command=f"python -m tests.support.faults {' '.join(sys.argv[1:])}",
        )
    print(json.dumps({**found, "wrong": len(found["wrong"])}))
    return 1 if found["wrong"] else 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


sys.exit(main())
