"""``cbir index``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from indexer.errors import CaseIndexError, CbirError
from indexer.files import there
from retrieval.cli.options import (
    DEFAULT_INDEX,
    CatalogOption,
    EngineOption,
    IndexOption,
    JsonOption,
    UriOption,
    engines,
)
from retrieval.cli.printing import say, show, show_json, show_table
from retrieval.cli.progress import ingest_bar, spinner

if TYPE_CHECKING:
    from cbir import Index
    from indexer.encoder import Encoder
    from indexer.ingest import Workers
    from indexer.labels import Table


def index(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH…", help="Files or folders of images, or s3://… and the like."),
    ],
    index: IndexOption = DEFAULT_INDEX,
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE[:COLUMN]",
            help="Labels (csv, tsv, xlsx, JSON) beside those found with the data, and the column that names "
            "whose they are, if that is in doubt; repeatable.",
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be taken as what; nothing is written.")
    ] = False,
    all_images: Annotated[
        bool | None,
        typer.Option(
            "--all-images/--no-all-images",
            help="Take maps and copies in another preparation, too; remembered for the next run.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Index images. A second run reads only what is new or changed.

    Example: `cbir index ./mri --labels grades.csv`
    """
    from indexer import places, sandbox
    from indexer.manifest import MANIFEST
    from indexer.remote import is_address
    from indexer.stores import LOCAL

    sandbox.begin()
    named = engines(engine, uri, catalog)
    tables = [table for path in labels or () for table in sandbox.load_tables(path)]
    roots = [path if is_address(path) else Path(path).absolute() for path in paths]
    for path, root in zip(paths, roots, strict=True):
        if isinstance(root, Path) and not there(root) and not prune:
            raise CbirError(path, "does not exist", "name a file or folder of images")
    if dry_run:
        held = index if there(index / MANIFEST, CaseIndexError) else None
        _show_plan(roots, tables, held, all_images=all_images, as_json=as_json)
        return
    for address in named.values():
        if address not in (None, LOCAL):
            places.name(address)
    with (
        _opened(index, encoder, keep_ids=keep_ids, with_reference=with_reference, named=named, ray=ray) as (
            opened,
            workers,
        ),
        ingest_bar() as progress,
    ):
        try:
            report = opened.add(
                roots,
                labels=tables,
                prune=prune,
                all_images=all_images,
                with_reference=with_reference,
                calibrate=False,
                workers=workers,
                progress=progress,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("what was committed stays, run it again to go on") from None
        learnt = None
        if opened.calibration_due:
            with spinner("learning what the votes are worth"):
                learnt = opened.calibrate()
    for failure in report.failed:
        say(f"not indexed: {failure['source']}: {failure['reason']}")
    for note in report.notes:
        say(note)
    if as_json:
        show_json(report.to_dict())
    else:
        taken = ", ".join(f"{n} {what}" for what, n in report.taken.items() if n)
        show(f"found     {taken}")
        counts = f"{report.indexed} new or changed, {report.unchanged} unchanged, {len(report.failed)} failed"
        show(f"indexed   {counts}")
        if prune:
            show(f"pruned    {report.pruned}")
        if with_reference:
            show(f"reference {report.reference} cases that come with cbir")
        show(f"index     {index}: {report.cases} cases, {report.slices} slices")
        if learnt:
            show(f"evidence  {learnt}")
        rate = f" ({report.embedded / report.seconds:.0f} slices/s)" if report.embedded else ""
        show(f"time      {report.seconds:.1f} s{rate}")
    nothing = report.indexed + report.unchanged + report.pruned == 0
    raise typer.Exit(1 if nothing or (strict and report.failed) else 0)


@contextmanager
def _opened(
    folder: Path,
    encoder: str | None,
    *,
    keep_ids: bool,
    with_reference: bool,
    named: Mapping[str, str | None],
    ray: str | None,
) -> Iterator[tuple[Index, Workers | None]]:
    """The index that was asked for, made where there is none, and who reads and embeds for it."""
    from cbir import create_index, open_index
    from indexer import reference
    from indexer.encoder import DEFAULT, load_encoder
    from indexer.manifest import MANIFEST

    if there(folder / MANIFEST, CaseIndexError):
        with open_index(folder, load_encoder(encoder) if encoder else None, lazy=True) as opened:
            _agree(opened, folder, keep_ids=keep_ids, named=named)
            with _workers(ray, opened.encoder) as workers:
                yield opened, workers
        return
    model = load_encoder(encoder or DEFAULT)
    if with_reference:
        reference.require(model)
    chosen: dict[str, Any] = {option: wanted for option, wanted in named.items() if wanted is not None}
    with (
        _workers(ray, model) as workers,  # before there is a folder
        create_index(folder, encoder=model, keep_ids=keep_ids, **chosen) as made,
    ):
        yield made, workers


def _agree(opened: Index, folder: Path, *, keep_ids: bool, named: Mapping[str, str | None]) -> None:
    """Refuse what an index that is there was not made with."""
    manifest = opened.case_index.manifest
    if keep_ids and not manifest.keep_ids:
        raise CaseIndexError(folder, "was made without --keep-ids", "index again into another folder")
    for option, wanted in named.items():
        held = getattr(manifest, option)
        if wanted not in (None, held):
            raise CaseIndexError(
                folder, f"was made with {option} {held or 'none'}, not {wanted}", "move it with `cbir copy`"
            )


def _show_plan(
    roots: Sequence[Path | str],
    labels: Sequence[Table],
    held: Path | None,
    *,
    all_images: bool | None,
    as_json: bool,
) -> None:
    """What ``cbir index`` would do."""
    from cbir import Plan, plan
    from indexer.case_index import CaseIndex
    from indexer.roots import takes_all

    plans = []
    for root in roots:
        every = bool(all_images)
        if all_images is None and held is not None:
            with CaseIndex.open(held) as opened:
                every = takes_all(opened, root)
        plans.append(plan([root], labels, all_images=every))
    for found in plans:
        for failure in found.failures:
            say(f"not read: {failure}")
        for note in found.notes:
            say(note)
    whole = Plan([e for p in plans for e in p.entries], [], [])
    for warning in whole.warnings:
        say(f"warning: {warning}")
    if as_json:
        show_json(whole.to_dict())
    else:
        show_table(["what", "number", "example"], [list(row) for row in whole.table(Path.cwd())])


@contextmanager
def _workers(address: str | None, encoder: Encoder) -> Iterator[Workers | None]:
    """Those of a Ray cluster, if one is named."""
    if address is None:
        yield None
        return
    from indexer.cluster import cluster

    with cluster(address, encoder) as workers:
        yield workers
