"""The command line: parses, calls, prints. Data go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from indexer.errors import CbirError

if TYPE_CHECKING:
    from retrieval.answer import Answer

app = typer.Typer(
    name="cbir",
    help="Find the known, graded cases that look like a new scan. Research use only, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

IndexOption = Annotated[
    Path,
    typer.Option("--index", envvar="CBIR_INDEX", metavar="DIR", help="The index folder.", show_default=True),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="LABEL=VALUE", help="Only cases with this label; repeatable."),
]
DEFAULT_INDEX = Path("cbir-index")


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit code 1."""
    try:
        app(prog_name="cbir")
    except CbirError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@app.command()
def index(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="Files or folders of images.")],
    index: IndexOption = DEFAULT_INDEX,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Labels (csv, tsv); else participants.tsv beside or above the data."
        ),
    ] = None,
    keep_ids: Annotated[bool, typer.Option("--keep-ids", help="Store patient ids as they are.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Take out what is gone from these paths.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if a file could not be read.")] = False,
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="Encoder of a new index.", show_default="imagenet")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Index images. A second run reads only what is new or changed.

    Example: `cbir index ./mri --labels grades.csv`
    """
    from indexer.case_index import CaseIndex
    from indexer.encoder import DEFAULT, load_encoder
    from indexer.errors import CaseIndexError
    from indexer.ingest import ingest
    from indexer.labels import load_labels

    table = load_labels(labels) if labels else None
    for path in paths:
        if not path.exists():
            raise CbirError(path, "does not exist", "name a file or folder of images")
    exists = (index / "manifest.json").exists()
    if exists:
        case_index = CaseIndex.open(index)
        if keep_ids and not case_index.manifest.keep_ids:
            raise CaseIndexError(index, "was made without --keep-ids", "index again into another folder")
        model = load_encoder(encoder or case_index.manifest.encoder)
    else:
        model = load_encoder(encoder or DEFAULT)
        case_index = CaseIndex.create(index, model, keep_ids=keep_ids)
    with case_index, _progress() as progress:
        try:
            report = ingest(
                case_index,
                [path.absolute() for path in paths],
                model,
                labels=table,
                prune=prune,
                progress=progress,
            )
        except KeyboardInterrupt:
            _say("cbir: stopped; what was committed stays, run it again to go on")
            raise typer.Exit(130) from None
    for failure in report.failed:
        _say(f"not indexed: {failure['source']}: {failure['reason']}")
    for note in report.notes:
        _say(note)
    if as_json:
        _print_json(report.to_dict())
    else:
        taken = ", ".join(f"{n} {what}" for what, n in report.taken.items() if n)
        print(f"found     {taken}")
        counts = f"{report.indexed} new or changed, {report.unchanged} unchanged, {len(report.failed)} failed"
        print(f"indexed   {counts}")
        if prune:
            print(f"pruned    {report.pruned}")
        print(f"index     {index}: {report.cases} cases, {report.slices} slices")
        rate = f" ({report.embedded / report.seconds:.0f} slices/s)" if report.embedded else ""
        print(f"time      {report.seconds:.1f} s{rate}")
    nothing = report.indexed + report.unchanged == 0
    raise typer.Exit(1 if nothing or (strict and report.failed) else 0)


@app.command()
def query(
    source: Annotated[Path | None, typer.Argument(metavar="FILE|DIR", help="The scan to ask with.")] = None,
    index: IndexOption = DEFAULT_INDEX,
    k: Annotated[int, typer.Option("-k", min=1, help="Hits to show.")] = 10,
    region: Annotated[
        str | None,
        typer.Option(metavar="X0,Y0,X1,Y1[@SLICE]", help="Look only at this box (pixels from the top left)."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Look only where this image is not zero.")
    ] = None,
    where: WhereOption = None,
    like: Annotated[
        str | None, typer.Option(metavar="CASE_ID", help="Ask with a case of the index instead of a file.")
    ] = None,
    exclude_patient: Annotated[
        str | None, typer.Option(metavar="ID", help="A patient that no hit may belong to.")
    ] = None,
    all_cases: Annotated[
        bool, typer.Option("--all-cases", help="Several cases of a patient may be hits.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="OUT.html", help="Write a report with the pictures.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the cases most similar to a scan.

    Example: `cbir query scan.nii -k 5 --report hits.html`
    """
    from retrieval.search import open_index

    if (source is None) == (like is None):
        raise typer.BadParameter("name a file or folder, or a case with --like")
    if region and mask:
        raise typer.BadParameter("give --region or --mask, not both")
    if like and (region or mask):
        raise typer.BadParameter("--region and --mask go with a file, not with --like")
    box, box_slice = _parse_region(region) if region else (None, None)
    if source is not None and not source.exists():
        raise CbirError(source, "does not exist", "name a file or folder to ask with")
    with open_index(index) as opened:
        if like:
            answer = opened.like(
                like, k, where=_parse_where(where), exclude_patient=exclude_patient, all_cases=all_cases
            )
        else:
            assert source is not None
            answer = opened.query(
                source,
                k,
                where=_parse_where(where),
                region=box,
                region_slice=box_slice,
                mask=mask,
                exclude_patient=exclude_patient,
                all_cases=all_cases,
            )
        if report:
            from retrieval.report import write_report

            write_report(answer, report, load=opened.read, index=str(index))
    for note in answer.notes:
        _say(f"note: {note}")
    if as_json:
        _print_json(answer.to_dict())
    else:
        _print_answer(answer)
    if report:
        _say(f"report: {report}")
    raise typer.Exit(0 if answer.hits else 1)


@app.command(name="eval")
def evaluate(
    index: IndexOption = DEFAULT_INDEX,
    label: Annotated[
        str, typer.Option(metavar="COLUMN", help="The label that hits should share.")
    ] = "who_grade",
    k: Annotated[str, typer.Option("-k", metavar="K,K,…", help="Ranks to cut at.")] = "1,5,10",
    folds: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Rank each fold's cases among the other folds' only."),
    ] = None,
    by: Annotated[str, typer.Option(metavar="case|scan", help="What asks and is ranked.")] = "case",
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples of patients for the interval.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png|svg", help="Draw precision at k.")] = None,
    as_json: JsonOption = False,
) -> None:
    """How often hits share the query's label, each case asking for those of other patients.

    Example: `cbir eval --label tumour --by scan --folds fold --plot precision.svg`
    """
    from indexer.case_index import CaseIndex
    from retrieval.crossmatch import CrossMatch
    from retrieval.evaluation import comparison

    try:
        ks = tuple(sorted({int(part) for part in k.split(",")}))
    except ValueError:
        raise typer.BadParameter(f"{k!r} is not a list of ranks such as 1,5,10") from None
    if not ks or ks[0] < 1:
        raise typer.BadParameter("ranks start at 1")
    if by not in ("case", "scan"):
        raise typer.BadParameter("--by is case or scan")
    with CaseIndex.open(index) as opened, _spinner("comparing all with all"):
        items = CrossMatch.of(opened.snapshot(), by)
        result, by_class = items.evaluate(label, ks=ks, folds=folds, bootstrap=bootstrap, seed=seed)
    if plot:
        result.plot(plot)
    if as_json:
        baseline = by_class.to_dict()["metrics"]
        _print_json({**result.to_dict(), "by": by, "rank_by_predicted_class": baseline})
        return
    split = "each fold among the others" if folds else "among all other patients"
    print(f"{label}: {len(result.queries)} {by}s of {result.patients} patients ask, {split}")
    for reason, n in result.excluded.items():
        if n:
            print(f"left out: {n} {reason}")
    tables = [result.table(), result.class_table(), comparison({by: result, "predicted class": by_class})]
    for table in tables:
        print()
        _print_table(list(table[0]), [list(row) for row in table[1:]])


@app.command()
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
    from indexer.case_index import CaseIndex

    with CaseIndex.open(index) as opened:
        about = opened.about()
        if check:
            about |= opened.check()
        if cases:
            contents = opened.catalog.contents()
            about["cases_list"] = [
                {"case_id": case, "patient_id": patient, "labels": labels}
                for case, patient, labels in zip(
                    contents.case_ids, contents.patient_ids, contents.labels, strict=True
                )
            ]
        if failures:
            about["failures"] = opened.catalog.failed()
    if as_json:
        _print_json({"schema": 1, **about})
        return
    listed, failed = about.pop("cases_list", []), about.pop("failures", [])
    for name, value in about.items():
        print(f"{name.replace('_', ' '):24}{_plain(value)}")
    for row in listed:
        print(row["case_id"], " ".join(f"{n}={v}" for n, v in row["labels"].items()), sep="  ")
    for row in failed:
        print(f"{row['source']}: {row['reason']}")


@app.command()
def verify(
    index: IndexOption = DEFAULT_INDEX,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Is the index sound? Checks every checksum, row and vector.

    Example: `cbir verify --repair`
    """
    from indexer.case_index import CaseIndex

    with CaseIndex.open(index) as opened:
        if repair:
            with opened.writing("verify --repair"):
                problems = opened.verify(repair=True)
        else:
            problems = opened.verify()
    unsound = [p for p in problems if not (p.sound or p.mended)]
    if as_json:
        _print_json({"schema": 1, "sound": not unsound, "problems": [vars(p) for p in problems]})
    else:
        for problem in problems:
            state = "note" if problem.sound else "mended" if problem.mended else "damaged"
            print(f"{state}: {problem.where}: {problem.what}")
        if not unsound:
            print("sound")
        elif not repair:
            _say("mend it with `cbir verify --repair`")
    raise typer.Exit(1 if unsound else 0)


@app.command()
def remove(
    case_ids: Annotated[
        list[str] | None, typer.Argument(metavar="CASE_ID…", help="Cases to take out.")
    ] = None,
    index: IndexOption = DEFAULT_INDEX,
    patient: Annotated[
        str | None, typer.Option(metavar="ID", help="Take out all cases of a patient.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take cases out of the index (files stay where they are).

    Example: `cbir remove c-0123456789abcdef`
    """
    from indexer.case_index import CaseIndex
    from indexer.errors import QueryError

    if not case_ids and not patient:
        raise typer.BadParameter("name cases, or a patient with --patient")
    with CaseIndex.open(index) as opened, opened.writing("remove"):
        contents = opened.catalog.contents()
        wanted = set(case_ids or [])
        unknown = wanted - set(contents.case_ids)
        if unknown:
            raise QueryError(
                ", ".join(sorted(unknown)), "the index has no such case", "see `cbir info --cases`"
            )
        if patient:
            of_patient = {patient, opened.patient(patient)}
            found = {
                c for c, p in zip(contents.case_ids, contents.patient_ids, strict=True) if p in of_patient
            }
            if not found:
                raise QueryError(patient, "the index has no such patient", "see `cbir info --cases`")
            wanted |= found
        removed = opened.catalog.remove_cases(wanted)
        opened.file_vectors()
        opened.catalog.log("remove", {"cases": removed})
    if as_json:
        _print_json({"schema": 1, "removed": removed})
    else:
        print(f"removed {removed} cases")


@app.command()
def compact(index: IndexOption = DEFAULT_INDEX, as_json: JsonOption = False) -> None:
    """Fit the partition anew and free unused space.

    Example: `cbir compact`
    """
    from indexer.case_index import CaseIndex

    with CaseIndex.open(index) as opened, opened.writing("compact"):
        before = _size(index)
        opened.compact()
        after = _size(index)
        opened.catalog.log("compact", {"bytes_before": before, "bytes_after": after})
    if as_json:
        _print_json({"schema": 1, "bytes_before": before, "bytes_after": after})
    else:
        print(f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB now")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.")],
    patients: Annotated[int, typer.Option(min=3, help="Patients in the cohort.")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the phantoms.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a small synthetic graded cohort to try things with.

    Another seed gives new patients to ask about.

    Example: `cbir demo cohort; cbir demo new --patients 3 --seed 1; cbir index cohort`
    """
    from indexer.demo import write_cohort

    written = write_cohort(folder, patients=patients, seed=seed)
    if as_json:
        _print_json({"schema": 1, "folder": str(written.folder), "grades": written.grades})
    else:
        print(f"{written.folder}: {patients} synthetic patients")


# ---- parsing and printing ------------------------------------------------------------------------


def _parse_region(text: str) -> tuple[tuple[int, int, int, int], int | None]:
    box, _, position = text.partition("@")
    try:
        x0, y0, x1, y1 = (int(part) for part in box.split(","))
        return (x0, y0, x1, y1), int(position) if position else None
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not X0,Y0,X1,Y1 or X0,Y0,X1,Y1@SLICE", param_hint="--region"
        ) from None


def _parse_where(pairs: list[str] | None) -> dict[str, str]:
    where = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise typer.BadParameter(f"{pair!r} is not LABEL=VALUE", param_hint="--where")
        where[name] = value
    return where


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, ensure_ascii=False, default=str))


def _print_answer(answer: Answer) -> None:
    columns = list(dict.fromkeys(name for hit in answer.hits for name in hit.labels))
    shown = [name for name in columns if name in answer.evidence] or columns[:3]
    header = ["#", "score", "case", *shown, "sequence", "slice", "source"]
    rows = [
        [
            str(hit.rank),
            f"{hit.score:.3f}",
            hit.case_id,
            *(hit.labels.get(name, "–") for name in shown),
            hit.sequence or "–",
            f"{hit.query_slice} ~ {hit.slice}",
            _near(hit.source),
        ]
        for hit in answer.hits
    ]
    _print_table(header, rows)
    for name, evidence in answer.evidence.items():
        if evidence.abstain:
            print(f"{name}: no labelled neighbours")
            continue
        shares = ", ".join(
            f"{value} {p:.0%} (prior {evidence.prior.get(value, 0):.0%})"
            for value, p in sorted(evidence.probabilities.items(), key=lambda item: -item[1])
        )
        kind = "calibrated" if evidence.calibrated else "not calibrated"
        print(f"{name}: {shares}; {evidence.neighbours} neighbours, {kind}")
    print(answer.notice)


def _plain(value: Any) -> str:
    """A setting or a dict of them, numbers with four digits."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _near(path: str) -> str:
    """A path as it is shortest to type from here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    """A table on a terminal, tab-separated lines in a pipe."""
    if not sys.stdout.isatty():
        for row in [header, *rows]:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
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
def _spinner(what: str) -> Iterator[None]:
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _fail(line: str) -> NoReturn:
    _say(f"cbir: {line}")
    sys.exit(1)


if __name__ == "__main__":
    main()
