"""Write the tables of results and the command line's help into the documents, from what was measured.

A block between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` belongs to this module.
``--check`` writes nothing and fails where a block is stale.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import results

DOCUMENTS = ("README.md", "docs/evaluation.md", "docs/cli.md")
VERBS = ("index", "query", "eval", "info", "verify", "remove", "compact", "demo", "train", "serve", "token")
METHODS = (
    "frozen ImageNet",
    "rank by predicted class",
    "random weights",
    "raw pixels",
)
COMBINATIONS = ("frozen ImageNet", "slices combined: unweighted", "slices combined: mean vector")
METRICS = ("P@1", "P@5", "P@10", "R-precision", "mAP", "MAP@R", "nDCG@10")


def markdown(rows: list[list[str]]) -> str:
    """A table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def figure(entry: dict[str, Any], metric: str, average: str) -> str:
    """A value with its interval."""
    found = entry["metrics"][metric][average]
    span = "" if found["low"] is None else f" ({found['low']:.3f}–{found['high']:.3f})"
    return f"{found['value']:.3f}{span}"


def origin(content: dict[str, Any]) -> str:
    """One line that says where figures come from."""
    p = content["provenance"]
    return f"Commit {p['commit']}, {p['date']}, encoder {p['encoder']}, {p['machine']}."


def baseline(metrics: tuple[str, ...], averages: tuple[str, ...], methods: tuple[str, ...]) -> str:
    """Tables of the baseline benchmark, one a task."""
    content = results.load("baseline")
    parts = []
    for task, table in content["results"].items():
        first = table["frozen ImageNet"]
        columns = [(m, a) for m in metrics for a in averages]
        rows = [["method", *(f"{m} {a.replace('_', ' ')}" for m, a in columns)]]
        for method in methods:
            if method in table:
                rows.append([method, *(figure(table[method], m, a) for m, a in columns)])
        if len(rows) == 2 and len(methods) > 1:
            continue
        chance = [f"{first['metrics'][m][a]['chance']:.3f}" for m, a in columns]
        rows.append(["chance", *chance])
        head = f"**{task}** ({first['queries']} queries, {first['patients']} patients)"
        parts += [head, "", markdown(rows), ""]
    return "\n".join([*parts, origin(content)])


def canary() -> str:
    """Precision with labels shuffled between patients, beside chance."""
    table = results.load("baseline")["results"]
    rows = [["task", "P@10, labels shuffled between patients", "chance"]]
    for task, entry in table.items():
        rows.append([task, f"{entry['canary']['P@10']:.3f}", f"{entry['canary']['chance']:.3f}"])
    return markdown(rows)


def ingest() -> str:
    """Speed and memory of indexing."""
    content = results.load("ingest")
    rows = [["cohort", "slices", "`cbir index`, slices/s", "encoder alone, slices/s", "ratio"]]
    for name, r in content["results"]["speed"].items():
        rows.append(
            [name, str(r["slices"]), str(r["index_rate"]), str(r["encoder_rate"]), f"{r['ratio']:.2f}"]
        )
    memory = [["files", "slices", "peak memory, MB"]]
    for r in content["results"]["memory"]:
        memory.append([str(r["files"]), str(r["slices"]), str(r["peak_mb"])])
    return "\n".join([markdown(rows), "", markdown(memory), "", origin(content)])


def help_of(verb: str = "") -> str:
    """What ``cbir VERB --help`` prints, 100 columns wide and without colour."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    environment.pop("CBIR_INDEX", None)
    command = [sys.executable, "-m", "retrieval.cli", *verb.split(), "--help"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return "\n".join(line.rstrip() for line in out.strip().splitlines())


def cli_help() -> str:
    """The help of all verbs."""
    parts = [f"```text\n{help_of()}\n```"]
    parts += [f"## cbir {verb}\n\n```text\n{help_of(verb)}\n```" for verb in VERBS]
    return "\n\n".join(parts)


def sample() -> str:
    """The session on the synthetic cohort."""
    session = results.load("sample")["results"]["session"]
    steps = [f"$ {step['command']}\n{step['output']}" for step in session]
    return "```console\n" + "\n".join(steps) + "\n```"


BLOCKS: dict[str, Callable[[], str]] = {
    "baseline": lambda: baseline(("mAP", "P@10"), ("micro", "macro"), METHODS),
    "baseline in full": lambda: baseline(METRICS, ("macro",), METHODS),
    "combination": lambda: baseline(("mAP", "P@5"), ("macro",), COMBINATIONS),
    "canary": canary,
    "ingest": ingest,
    "help": cli_help,
    "sample": sample,
}


def rewritten(text: str) -> str:
    """The document with all its blocks made anew."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- begin {name} -->\n{BLOCKS[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin ([a-z ]+) -->\n.*?<!-- end \1 -->", block, text, flags=re.DOTALL)


def stale() -> list[str]:
    """Documents whose blocks are not what the results say."""
    return [name for name in DOCUMENTS if rewritten(_text(name)) != _text(name)]


def _text(name: str) -> str:
    return Path(results.ROOT / name).read_text("utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say what is stale, and fail")
    check = parser.parse_args().check
    for name in stale():
        print(f"{name} {'is stale: run `make docs`' if check else 'rewritten'}")
        if not check:
            (results.ROOT / name).write_text(rewritten(_text(name)), "utf-8")
    if check and stale():
        sys.exit(1)


if __name__ == "__main__":
    main()
