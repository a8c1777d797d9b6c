"""``cbir query`` and ``cbir eval``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from indexer.errors import ReadError
from indexer.files import there
from indexer.runtime import uncollected
from retrieval.cli.options import DEFAULT_INDEX, MOST, IndexOption, JsonOption, WhereOption, usage
from retrieval.cli.printing import say, show, show_json, show_table
from retrieval.cli.progress import spinner
from retrieval.parsing import parse_by, parse_region, parse_where

if TYPE_CHECKING:
    from retrieval.answer import Answer

LAST_RANK = 10_000
"""To cut at in ``cbir eval``."""


@uncollected()  # it imports a lot, answers once, and ends
def query(
    context: typer.Context,
    source: Annotated[Path | None, typer.Argument(metavar="FILE|DIR", help="The scan to ask with.")] = None,
    index: IndexOption = DEFAULT_INDEX,
    k: Annotated[int, typer.Option("-k", min=1, max=MOST, help="Hits to show.")] = 10,
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
    visit: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of a folder with several visits, the one that asks.", show_default="newest"
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="class|appearance|similarity",
            help="Order hits by the likely class, above all by how the lesion looks, or by score alone.",
            show_default="class, then appearance",
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
    if (source is None) == (not like):
        raise typer.BadParameter("ask with a file or folder, or with --like: one of them")
    if region and mask:
        raise typer.BadParameter("give --region or --mask, not both")
    if like and (region or mask):
        raise typer.BadParameter("--region and --mask go with a file, not with --like")
    with usage("--region"):
        box, box_slice = parse_region(region) if region else (None, None)
    with usage("--where"):
        wanted = parse_where(where or ())
    with usage("--by"):
        order = parse_by(by)
    if source is not None and not there(source, ReadError):
        raise ReadError(source, "does not exist", "name a file or folder to ask with")
    from indexer import sandbox

    if source is not None:
        sandbox.begin()  # while this process imports the rest
    from cbir import open_index, reference_index
    from indexer import reference

    unnamed = getattr(context.get_parameter_source("index"), "name", "") == "DEFAULT"
    with ExitStack() as held:
        lent = unnamed and reference.available()
        own = None if lent and not there(index) else held.enter_context(open_index(index, recall=recall))
        if own is None or (lent and not own.contents.case_ids):  # a first index that found nothing is empty
            opened = held.enter_context(reference_index())
        else:
            opened = own
        borrowed = opened is not own
        for patient in exclude_patient or []:
            if not opened.has_patient(patient):
                shown = opened.case_index.shown(patient)
                say(f"note: --exclude-patient: {shown} is no patient of the index; nobody is left out for it")
        if like:
            answer = opened.like(
                like, k, where=wanted, exclude_patient=exclude_patient, all_cases=all_cases, by=order
            )
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
                visit=visit,
                by=order,
            )
        if borrowed:
            known = "; ".join(f"{name}: {', '.join(e.prior)}" for name, e in answer.evidence.items())
            answer.notes.insert(
                0,
                f"no {'index' if own is None else 'cases'} in ./{index}: answered from the "
                f"{len(opened.contents.case_ids)} reference cases that come with cbir ({known}; no others); "
                "`cbir index FOLDER` makes your own",
            )
        if report:
            opened.report(answer, report, name="the reference cases of cbir" if borrowed else str(index))
    for note in answer.notes:
        say(f"note: {note}")
    if as_json:
        show_json(answer.to_dict())
    else:
        show_answer(answer)
    if report:
        say(f"report: {report}")
    raise typer.Exit(0 if answer.hits else 1)


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
    bootstrap: Annotated[
        int, typer.Option(min=0, max=MOST, help="Resamples of patients for the interval.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png|svg", help="Draw precision at k.")] = None,
    as_json: JsonOption = False,
) -> None:
    """How often hits share the query's label, each case asking for those of other patients.

    Example: `cbir eval --label tumour --by scan --folds fold --plot precision.svg`
    """
    from cbir import open_index
    from retrieval.figures import comparison

    try:
        ks = tuple(sorted({int(part) for part in k.split(",")}))
    except ValueError:
        raise typer.BadParameter(f"{k!r} is not a list of ranks such as 1,5,10") from None
    if not 1 <= ks[0] <= ks[-1] <= LAST_RANK:
        raise typer.BadParameter(f"ranks go from 1 to {LAST_RANK}")
    if by not in ("case", "scan"):
        raise typer.BadParameter("--by is case or scan")
    with open_index(index, lazy=True) as opened, spinner("comparing all with all"):
        found = opened.evaluate(label, by=by, ks=ks, folds=folds, bootstrap=bootstrap, seed=seed)
    result = found.ranking
    for note in found.notes:
        say(note)
    if found.asked_in_sample:
        say(
            f"the encoder was trained on {found.asked_in_sample} of the {result.patients} patients who ask: "
            "these figures are in-sample and say nothing about a new patient"
        )
    if plot:
        result.plot(plot)
    if as_json:
        show_json(found.to_dict())
        return
    split = "each fold among the others" if folds else "among all other patients"
    show(f"{label}: {len(result.queries)} {by}s of {result.patients} patients ask, {split}")
    if found.in_sample and not found.asked_in_sample:
        show(f"{found.in_sample} {by}s of patients whom the encoder was trained on answer, and do not ask")
    for reason, n in result.excluded.items():
        if n:
            show(f"left out: {n} {reason}")
    tables = [
        result.table(),
        result.class_table(),
        comparison({by: result, "predicted class": found.by_class}),
    ]
    for table in tables:
        show()
        show_table(list(table[0]), [list(row) for row in table[1:]])


def show_answer(answer: Answer) -> None:
    """The hits as a table, then the vote."""
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
    show_table(header, rows)
    for hit in answer.hits:
        if hit.likeness:
            show(f"{hit.rank}: {'; '.join(hit.likeness)}")
    for name, evidence in answer.evidence.items():
        if evidence.abstain:
            show(f"{name}: {evidence.reason or 'no labelled neighbours'}; {evidence.holdings}")
            continue
        shares = ", ".join(
            f"{value} {p:.0%} (prior {evidence.prior.get(value, 0):.0%})"
            for value, p in sorted(evidence.probabilities.items(), key=lambda item: -item[1])
        )
        kind = "not calibrated"
        if evidence.calibrated:
            told = f"{' or '.join(evidence.set)} plausible" if evidence.set else "less clear than for 9 in 10"
            kind = f"calibrated on {evidence.calibrated_on} known patients: {told}"
        show(f"{name}: {shares}; {evidence.neighbours} neighbours, {kind}; {evidence.holdings}")
    noticed = dict.fromkeys(evidence.others for evidence in answer.evidence.values() if evidence.others)
    for others in noticed:
        names = [name for name, evidence in answer.evidence.items() if evidence.others == others]
        show(f"{', '.join(names)}: {others}")
    show(answer.notice)


def _near(path: str) -> str:
    """A path as it is shortest to type from here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
