"""What is in an index, is it sound, take out, tidy, copy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from retrieval.cli.options import (
    DEFAULT_INDEX,
    CatalogOption,
    EngineOption,
    IndexOption,
    JsonOption,
    UriOption,
    engines,
)
from retrieval.cli.printing import say, show, show_json
from retrieval.cli.progress import spinner


def info(
    index: IndexOption = DEFAULT_INDEX,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the search with exact search, describe the partition.")
    ] = False,
    cases: Annotated[bool, typer.Option("--cases", help="List the cases.")] = False,
    failures: Annotated[bool, typer.Option("--failures", help="List what could not be read.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What is in the index.

    Example: `cbir info --check`
    """
    from cbir import open_index

    with open_index(index, lazy=True) as opened:
        about = opened.info(check=check, cases=cases, failures=failures)
    if as_json:
        show_json({"schema": 1, **about})
        return
    listed, failed = about.pop("cases_list", []), about.pop("failures", [])
    for name, value in about.items():
        show(f"{name.replace('_', ' '):24}{_plain(value)}")
    for row in listed:
        labels = " ".join(f"{name}={value}" for name, value in row["labels"].items())
        show(f"{row['case_id']}  {labels}")
    for row in failed:
        show(f"{row['source']}: {row['reason']}")


def verify(
    index: IndexOption = DEFAULT_INDEX,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Is the index sound? Checks every checksum, row and vector.

    Example: `cbir verify --repair`
    """
    from cbir import open_index

    with open_index(index, lazy=True) as opened:
        problems = opened.verify(repair=repair)
    unsound = [p for p in problems if not (p.sound or p.mended)]
    if as_json:
        show_json({"schema": 1, "sound": not unsound, "problems": [vars(p) for p in problems]})
    else:
        for problem in problems:
            state = "note" if problem.sound else "mended" if problem.mended else "damaged"
            show(f"{state}: {problem.where}: {problem.what}")
        if not unsound:
            show("sound")
        elif not repair:
            say("mend it with `cbir verify --repair`")
    raise typer.Exit(1 if unsound else 0)


def remove(
    case_ids: Annotated[
        list[str] | None, typer.Argument(metavar="CASE_ID…", help="Cases to take out.")
    ] = None,
    index: IndexOption = DEFAULT_INDEX,
    patient: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Take out all cases of a patient; repeatable.")
    ] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Take out all cases that come with cbir.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take cases out of the index (files stay where they are).

    Example: `cbir remove c-0123456789abcdef`
    """
    from cbir import open_index

    if not (case_ids or patient or reference):
        raise typer.BadParameter("name cases, a patient with --patient, or --reference")
    with open_index(index, lazy=True) as opened:
        removed = opened.remove(case_ids or (), patients=patient or (), reference_cases=reference)
    if as_json:
        show_json({"schema": 1, "removed": removed})
    else:
        show(f"removed {removed} cases")


def compact(index: IndexOption = DEFAULT_INDEX, as_json: JsonOption = False) -> None:
    """Fit the partition anew and free unused space.

    Example: `cbir compact`
    """
    from cbir import open_index

    with open_index(index, lazy=True) as opened:
        before, after = opened.compact()
    if as_json:
        show_json({"schema": 1, "bytes_before": before, "bytes_after": after})
    else:
        show(f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB now")


def copy(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="The index folder.")],
    to: Annotated[Path, typer.Argument(metavar="TO", help="Folder of the copy; must not exist.")],
    engine: EngineOption = None,
    uri: UriOption = None,
    catalog: CatalogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy an index to another engine, and verify it there. It is whole in the end, or not there.

    Example: `cbir copy cbir-index big-index --engine milvus --uri http://host:19530`
    """
    from cbir import open_index

    named = engines(engine, uri, catalog)
    chosen: dict[str, Any] = {option: wanted for option, wanted in named.items() if wanted is not None}
    with open_index(index, lazy=True) as opened, spinner("copying"):
        about = opened.copy(to, **chosen)
    if as_json:
        show_json({"schema": 1, "index": str(to), **about})
    else:
        show(f"{to}: {about['cases']} cases, {about['slices']} slices")
        show(f"vectors   {about['vectors']}")
        show(f"catalog   {about['catalog']}")


def _plain(value: Any) -> str:
    """A setting or a dict of them, numbers with four digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
