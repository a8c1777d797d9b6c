"""The README's example: what the two commands print on the synthetic cohort, as on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import results

COMMANDS = (
    "cbir demo cohort",
    "cbir demo new --patients 3 --seed 1",
    "cbir index cohort --keep-ids",
    "cbir query new/SYNTH-1-001 -k 5 --report report.html",
)
COLUMNS = "110"


def shown(command: str) -> str:
    """What a command prints on a terminal, without colours and progress."""
    arguments = [sys.executable, "-m", "retrieval.cli", *command.split()[1:]]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    printed = bytearray()
    with contextlib.suppress(OSError):  # Linux ends a terminal's output with an error
        while data := os.read(ours, 4096):
            printed += data
    os.close(ours)
    if process.wait():
        raise SystemExit(f"{command}: exit {process.returncode}\n{printed.decode()}")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.decode()).replace(f"{Path.cwd()}/", "")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return "\n".join(line for line in lines if line and not re.match("indexing |[\u2800-\u28ff]", line))


def main() -> None:
    os.environ |= {"COLUMNS": COLUMNS, "PYTHONPATH": str(results.ROOT), "TERM": "xterm"}
    os.environ.pop("CBIR_INDEX", None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        session = [{"command": command, "output": shown(command)} for command in COMMANDS]
        os.chdir(results.ROOT)
    for step in session:
        print(f"$ {step['command']}\n{step['output']}")
    results.save("sample", {"session": session})
    print(Path("benchmarks/results/sample.json"))


if __name__ == "__main__":
    main()
