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

from indexer.errors import CbirError, QueryError
from indexer.files import FULL, disk_full
from retrieval.parsing import parse_region, parse_where

if TYPE_CHECKING:
    from indexer.encoder import Encoder
    from indexer.ingest import Workers
    from retrieval.answer import Answer

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

        print(version("cbir"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the known, graded cases that look like a new scan. Research use only, not a medical device."""


IndexOption = Annotated[
    Path,
    typer.Option("--index", envvar="CBIR_INDEX", metavar="DIR", help="The index folder.", show_default=True),
]
EngineOption = Annotated[
    str | None,
    typer.Option(metavar="faiss|milvus", help="What holds the vectors of a new index.", show_default="faiss"),
]
UriOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The Milvus server; its token is read from CBIR_MILVUS_TOKEN."),
]
CatalogOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="A PostgreSQL database for the catalog of a new index, without password.",
        show_default="a file in the folder",
    ),
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
    except OSError as error:
        if error.errno not in FULL:
            raise
        _fail(str(disk_full(Path(error.filename or "output"))))


@app.command()
def index(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH…", help="Files or folders of images, or s3://… and the like."),
    ],
    index: IndexOption = DEFAULT_INDEX,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Labels (csv, tsv); else participants.tsv beside or above the data."
        ),
    ] = None,
    keep_ids: Annotated[bool, typer.Option("--keep-ids", help="Store patient ids as they are.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Take out what is gone from these paths.")] = False,
    with_reference: Annotated[
        bool, typer.Option("--with-reference", help="Add the public graded cases that come with cbir.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if a file could not be read.")] = False,
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="Encoder of a new index.", show_default="cbir")
    ] = None,
    engine: EngineOption = None,
    uri: UriOption = None,
    catalog: CatalogOption = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Read and embed on this Ray cluster: auto, ray://HOST:PORT, local."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Index images. A second run reads only what is new or changed.

    Example: `cbir index ./mri --labels grades.csv`
    """
    from indexer import reference
    from indexer.case_index import CaseIndex
    from indexer.encoder import DEFAULT, load_encoder
    from indexer.errors import CaseIndexError
    from indexer.ingest import ingest
    from indexer.labels import load_labels
    from indexer.remote import is_address
    from retrieval.calibration import calibrate, due
    from retrieval.search import Index

    named = _engines(engine, uri, catalog)
    table = load_labels(labels) if labels else None
    roots = [path if is_address(path) else Path(path).absolute() for path in paths]
    for path, root in zip(paths, roots, strict=True):
        if isinstance(root, Path) and not root.exists() and not prune:
            raise CbirError(path, "does not exist", "name a file or folder of images")
    existing = CaseIndex.open(index) if (index / "manifest.json").exists() else None
    if existing:
        if keep_ids and not existing.manifest.keep_ids:
            raise CaseIndexError(index, "was made without --keep-ids", "index again into another folder")
        for option, wanted in named.items():
            held = getattr(existing.manifest, option)
            if wanted not in (None, held):
                raise CaseIndexError(
                    index,
                    f"was made with {option} {held or 'none'}, not {wanted}",
                    "move it with `cbir copy`",
                )
        model = load_encoder(encoder) if encoder else existing.load_encoder()
    else:
        model = load_encoder(encoder or DEFAULT)
        if with_reference:  # before there is a folder
            reference.require(model)
    chosen = {option: wanted for option, wanted in named.items() if wanted is not None}
    with (
        _workers(ray, model) as workers,  # before there is a folder
        existing or CaseIndex.create(index, model, keep_ids=keep_ids, **chosen) as case_index,
        _progress() as progress,
    ):
        try:
            report = ingest(
                case_index,
                roots,
                model,
                labels=table,
                prune=prune,
                with_reference=with_reference,
                workers=workers,
                progress=progress,
            )
        except KeyboardInterrupt:
            _say("cbir: stopped; what was committed stays, run it again to go on")
            raise typer.Exit(130) from None
        learnt = None
        if due(case_index):
            with _spinner("learning what the votes are worth"):
                learnt = calibrate(Index(case_index, model))
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
        if with_reference:
            print(f"reference {report.reference} cases that come with cbir")
        print(f"index     {index}: {report.cases} cases, {report.slices} slices")
        if learnt:
            print(f"evidence  {learnt}")
        rate = f" ({report.embedded / report.seconds:.0f} slices/s)" if report.embedded else ""
        print(f"time      {report.seconds:.1f} s{rate}")
    nothing = report.indexed + report.unchanged + report.pruned == 0
    raise typer.Exit(1 if nothing or (strict and report.failed) else 0)


@app.command()
def query(
    context: typer.Context,
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
        list[str] | None,
        typer.Option(metavar="CASE_ID", help="Ask with a case of the index instead of a file; repeatable."),
    ] = None,
    exclude_patient: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A patient that no hit may belong to; repeatable.")
    ] = None,
    all_cases: Annotated[
        bool, typer.Option("--all-cases", help="Several cases of a patient may be hits.")
    ] = False,
    recall: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of the nearest slices to find in a large index.", show_default="0.99"
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="OUT.html", help="Write a report with the pictures.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the cases most similar to a scan.

    Before there is an index, the public graded cases that come with cbir answer.

    Example: `cbir query scan.nii -k 5 --report hits.html`
    """
    from indexer import reference
    from retrieval.search import open_index, open_reference

    if (source is None) == (not like):
        raise typer.BadParameter("ask with a file or folder, or with --like: one of them")
    if region and mask:
        raise typer.BadParameter("give --region or --mask, not both")
    if like and (region or mask):
        raise typer.BadParameter("--region and --mask go with a file, not with --like")
    with _usage("--region"):
        box, box_slice = parse_region(region) if region else (None, None)
    with _usage("--where"):
        wanted = parse_where(where or ())
    if source is not None and not source.exists():
        raise CbirError(source, "does not exist", "name a file or folder to ask with")
    unnamed = getattr(context.get_parameter_source("index"), "name", "") == "DEFAULT"
    borrowed = unnamed and not index.exists() and reference.available()
    with open_reference() if borrowed else open_index(index, recall=recall) as opened:
        for patient in exclude_patient or []:
            if not opened.has_patient(patient):
                _say(f"note: no patient {patient} is in the index: nobody is left out for it")
        if like:
            answer = opened.like(like, k, where=wanted, exclude_patient=exclude_patient, all_cases=all_cases)
        else:
            assert source is not None
            answer = opened.query(
                source,
                k,
                where=wanted,
                region=box,
                region_slice=box_slice,
                mask=mask,
                exclude_patient=exclude_patient,
                all_cases=all_cases,
            )
        if borrowed:
            known = "; ".join(f"{name}: {', '.join(e.prior)}" for name, e in answer.evidence.items())
            answer.notes.insert(
                0,
                f"no index in ./{index}: answered from the {len(opened.contents.case_ids)} reference cases "
                f"that come with cbir ({known}; no others); `cbir index FOLDER` makes your own",
            )
        if report:
            from retrieval.explain import explanation
            from retrieval.report import write_report

            why = explanation(opened, answer, mask)
            name = "the reference cases of cbir" if borrowed else str(index)
            write_report(answer, report, load=opened.read, index=name, explain=why)
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
    seen = items.asked_in_sample(result.queries)
    if seen:
        _say(
            f"the encoder was trained on {seen} of the {result.patients} patients who ask: "
            "these figures are in-sample and say nothing about a new patient"
        )
    if plot:
        result.plot(plot)
    if as_json:
        baseline = by_class.to_dict()["metrics"]
        found = {**result.to_dict(), "by": by, "in_sample_patients": seen}
        _print_json({**found, "rank_by_predicted_class": baseline})
        return
    split = "each fold among the others" if folds else "among all other patients"
    print(f"{label}: {len(result.queries)} {by}s of {result.patients} patients ask, {split}")
    if not seen and (n := int(items.in_sample.sum())):
        print(f"{n} {by}s of patients whom the encoder was trained on answer, and do not ask")
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
    from indexer.case_index import CaseIndex
    from indexer.reference import leave

    if not (case_ids or patient or reference):
        raise typer.BadParameter("name cases, a patient with --patient, or --reference")
    with CaseIndex.open(index) as opened, opened.writing("remove"):
        contents = opened.catalog.contents()
        wanted = set(case_ids or [])
        unknown = wanted - set(contents.case_ids)
        if unknown:
            raise QueryError(
                ", ".join(sorted(unknown)), "the index has no such case", "see `cbir info --cases`"
            )
        for name in patient or []:
            ids = {name, opened.patient(name)}
            found = {c for c, p in zip(contents.case_ids, contents.patient_ids, strict=True) if p in ids}
            if not found:
                raise QueryError(name, "the index has no such patient", "see `cbir info --cases`")
            wanted |= found
        removed = opened.catalog.remove_cases(wanted)
        if reference:
            removed += leave(opened)
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
    from indexer.case_index import CaseIndex
    from indexer.transfer import transfer

    named = _engines(engine, uri, catalog)
    chosen = {option: wanted for option, wanted in named.items() if wanted is not None}
    with CaseIndex.open(index) as opened, _spinner("copying"):
        transfer(opened, to.absolute(), **chosen)
    with CaseIndex.open(to) as opened:
        about = opened.about()
    if as_json:
        _print_json({"schema": 1, "index": str(to), **about})
    else:
        print(f"{to}: {about['cases']} cases, {about['slices']} slices")
        print(f"vectors   {about['vectors']}")
        print(f"catalog   {about['catalog']}")


@app.command()
def train(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER…", help="Folders of labelled images.")],
    label: Annotated[list[str], typer.Option(metavar="COLUMN", help="What to learn; repeatable.")],
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="Where to write the weights.")],
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="One table for all folders, or one each; else their participants.tsv."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often the images are gone through.")] = 12,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Images of an epoch; default as many as there are.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=VALUE", help="Leave these patients out, such as a fold; repeatable."),
    ] = None,
    validation: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Share of the patients to leave out and ask with at the end."),
    ] = 0.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    cache: Annotated[
        Path, typer.Option(metavar="DIR", help="Keeps the prepared images for the next training.")
    ] = Path(".cache"),
    as_json: JsonOption = False,
) -> None:
    """Train the encoder on labelled images; `cbir index --encoder FILE.safetensors` uses it.

    Example: `cbir train ./mri --label who_grade --without fold=3 --out grades.safetensors`
    """
    from indexer.errors import LabelsError
    from indexer.labels import find_labels, load_labels
    from indexer.learning.cohort import cohorts
    from indexer.learning.fitting import fit
    from indexer.learning.recipe import Recipe

    pairs = [pair.partition("=") for pair in without or []]
    if not all(name and equals and value for name, equals, value in pairs):
        raise typer.BadParameter("--without takes LABEL=VALUE")
    if labels and len(labels) not in (1, len(folders)):
        raise typer.BadParameter("give --labels once, or once for each folder")
    for folder in folders:
        if not folder.exists():
            raise CbirError(folder, "does not exist", "name a folder of images")
    named = [load_labels(path) for path in labels or []]
    tables = [named[i % len(named)] if named else find_labels(folder) for i, folder in enumerate(folders)]
    for folder, table in zip(folders, tables, strict=True):
        if table is None:
            raise LabelsError(folder, "has no participants.tsv", "name a labels table with --labels")
    with _bar() as bar:
        try:
            report = fit(
                cohorts(folders, [table for table in tables if table], label),
                out,
                Recipe(epochs=epochs, draws=draws, seed=seed),
                cache=cache,
                without=[(name, value) for name, _, value in pairs],
                validation=validation,
                resume=resume,
                read=lambda done, total: bar("reading", done, total),
                progress=lambda epoch, step, steps: bar(f"epoch {epoch + 1} of {epochs}", step, steps),
                finished=lambda epoch: _say(
                    f"epoch {epoch.number}: "
                    + ", ".join(f"loss of {name} {loss:.3f}" for name, loss in epoch.losses.items())
                ),
            )
        except KeyboardInterrupt:
            _say("cbir: stopped; repeat the command with --resume to go on after the last whole epoch")
            raise typer.Exit(130) from None
    for source, reason in report.failed:
        _say(f"not read: {source}: {reason}")
    if as_json:
        _print_json(report.to_dict())
        return
    together = f" and {report.composites} composites" if report.composites else ""
    print(f"trained on   {report.slices} slices{together} of {report.patients} patients")
    for head, classes in report.labels.items():
        print(f"learnt       {head}: {', '.join(classes)}")
    for head, value in report.validation.items():
        print(f"held out     {head}: precision at 10, mean over classes {value:.3f}")
    print(f"weights      {report.weights}")


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


@app.command()
def serve(
    index: IndexOption = DEFAULT_INDEX,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0 takes a free one.")] = 8043,
    tokens: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Tokens made by `cbir token`; needed beyond this machine."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Name by which a proxy in front is called; repeatable."),
    ] = None,
    pacs: Annotated[
        str | None, typer.Option(metavar="URL", help="An Orthanc to follow, such as http://127.0.0.1:8042.")
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Series to take from the PACS; repeatable.", show_default="MR"),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the audit trail; else `audit` in the index folder."),
    ] = None,
    max_upload: Annotated[int, typer.Option(metavar="MIB", min=1, help="Largest request.")] = 512,
    max_unpacked: Annotated[
        int, typer.Option(metavar="MIB", min=1, help="Largest archive, unpacked.")
    ] = 4096,
    workers: Annotated[int, typer.Option(min=1, help="Queries that run at a time.")] = 2,
    queue: Annotated[int, typer.Option(min=0, help="Queries that wait at most.")] = 32,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="For an upload, a query.")] = 120,
) -> None:
    """Answer over HTTP, with a viewer in the browser.

    Example: `cbir serve --port 8043`
    """
    with _extra("serve"):
        from retrieval.service.app import serve as run
    from retrieval.service.settings import Settings

    run(
        Settings(
            index=index.absolute(),
            host=host,
            port=port,
            tokens=tokens,
            pacs=pacs,
            modalities=tuple(modality or ("MR",)),
            audit=audit,
            names=tuple(name or ()),
            max_upload=max_upload * 2**20,
            max_unpacked=max_unpacked * 2**20,
            workers=workers,
            queue=queue,
            timeout=timeout,
        )
    )


@app.command()
def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will hold it.")],
    tokens: Annotated[Path, typer.Option(metavar="FILE", help="The token file; made if it is missing.")],
    role: Annotated[str, typer.Option(metavar="read|write|admin", help="What it allows.")] = "read",
    as_json: JsonOption = False,
) -> None:
    """Make a token for `cbir serve`: it is printed once, the file keeps its hash.

    Example: `cbir token reading-room --role read --tokens tokens.jsonl`
    """
    from retrieval.service.tokens import add_token

    secret = add_token(tokens, name, role)
    if as_json:
        _print_json({"schema": 1, "name": name, "role": role, "token": secret})
    else:
        print(secret)
        _say(f"the token of {name} ({role}); it cannot be shown again")


# ---- parsing and printing ------------------------------------------------------------------------


def _engines(engine: str | None, uri: str | None, catalog: str | None) -> dict[str, str | None]:
    """What was said about where an index lies; an address of Milvus says that it is Milvus."""
    engine = engine or ("milvus" if uri else None)
    if engine not in (None, "faiss", "milvus"):
        raise typer.BadParameter(f"--engine is faiss or milvus, not {engine}")
    if (engine == "milvus") != bool(uri):
        raise typer.BadParameter("--engine milvus and --uri go together")
    return {"engine": engine, "uri": uri, "catalog": catalog}


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Packages that only some need."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("indexer", "retrieval"):
            raise
        # with this very Python: where cbir is not installed, pip would look for somebody else's
        remedy = f"install what this needs: {sys.executable} -m pip install 'cbir[{name}]'"
        raise CbirError(error.name, "is not installed", remedy) from None


@contextmanager
def _workers(address: str | None, encoder: Encoder) -> Iterator[Workers | None]:
    """Those of a Ray cluster, if one is named."""
    if address is None:
        yield None
        return
    from indexer.cluster import cluster

    with cluster(address, encoder) as workers:
        yield workers


@contextmanager
def _usage(option: str) -> Iterator[None]:
    """A value that cannot be understood is wrong usage."""
    try:
        yield
    except QueryError as error:
        raise typer.BadParameter(error.explanation, param_hint=option) from None


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, ensure_ascii=False, default=str))


def _print_answer(answer: Answer) -> None:
    columns = list(dict.fromkeys(name for hit in answer.hits for name in hit.labels))
    shown = [name for name in columns if name in answer.evidence] or columns[:3]
    shown += [name for name in ("collection",) if name in columns and name not in shown]
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
            print(f"{name}: {evidence.reason or 'no labelled neighbours'}")
            continue
        shares = ", ".join(
            f"{value} {p:.0%} (prior {evidence.prior.get(value, 0):.0%})"
            for value, p in sorted(evidence.probabilities.items(), key=lambda item: -item[1])
        )
        kind = "not calibrated"
        if evidence.calibrated:
            told = f"{' or '.join(evidence.set)} plausible" if evidence.set else "less clear than for 9 in 10"
            kind = f"calibrated on {evidence.calibrated_on} known patients: {told}"
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
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on a terminal, for one thing after the other; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    progress.update(task, visible=False)
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total)

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
