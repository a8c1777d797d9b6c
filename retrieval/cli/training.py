"""``cbir train``, and ``cbir demo``, the cohort to try it with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from indexer.errors import CbirError
from indexer.files import there
from retrieval.cli.options import MOST, JsonOption
from retrieval.cli.printing import say, show, show_json
from retrieval.cli.progress import bars


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
    epochs: Annotated[int, typer.Option(min=1, max=MOST, help="How often the images are gone through.")] = 12,
    draws: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Images of an epoch; default as many as there are.")
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
    from indexer import sandbox
    from indexer.errors import LabelsError
    from indexer.learning.cohort import cohorts
    from indexer.learning.fitting import fit
    from indexer.learning.recipe import Recipe

    pairs = [pair.partition("=") for pair in without or []]
    if not all(name and equals and value for name, equals, value in pairs):
        raise typer.BadParameter("--without takes LABEL=VALUE")
    if labels and len(labels) not in (1, len(folders)):
        raise typer.BadParameter("give --labels once, or once for each folder")
    for folder in folders:
        if not there(folder):
            raise CbirError(folder, "does not exist", "name a folder of images")
    sandbox.begin()
    named = [sandbox.load_tables(path) for path in labels or []]
    tables = [
        named[i % len(named)] if named else sandbox.find_tables(folder)[0] for i, folder in enumerate(folders)
    ]
    for folder, table in zip(folders, tables, strict=True):
        if not table:
            raise LabelsError(folder, "has no labels table", "name a labels table with --labels")
    with bars() as bar:
        try:
            report = fit(
                cohorts(folders, tables, label),
                out,
                Recipe(epochs=epochs, draws=draws, seed=seed),
                cache=cache,
                without=[(name, value) for name, _, value in pairs],
                validation=validation,
                resume=resume,
                read=lambda done, total: bar("reading", done, total),
                progress=lambda epoch, step, steps: bar(f"epoch {epoch + 1} of {epochs}", step, steps),
                finished=lambda epoch: say(
                    f"epoch {epoch.number}: "
                    + ", ".join(f"loss of {name} {loss:.3f}" for name, loss in epoch.losses.items())
                ),
            )
        except KeyboardInterrupt:
            how = "repeat the command with --resume to go on after the last whole epoch"
            raise KeyboardInterrupt(how) from None
    for source, reason in report.failed:
        say(f"not read: {source}: {reason}")
    if as_json:
        show_json(report.to_dict())
        return
    together = f" and {report.composites} composites" if report.composites else ""
    show(f"trained on   {report.slices} slices{together} of {report.patients} patients")
    for head, classes in report.labels.items():
        show(f"learnt       {head}: {', '.join(classes)}")
    for head, value in report.validation.items():
        show(f"held out     {head}: precision at 10, mean over classes {value:.3f}")
    show(f"weights      {report.weights}")


def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.")],
    patients: Annotated[int, typer.Option(min=3, max=100_000, help="Patients in the cohort.")] = 24,
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
        show_json({"schema": 1, "folder": str(written.folder), "grades": written.grades})
    else:
        show(f"{written.folder}: {patients} synthetic patients")
