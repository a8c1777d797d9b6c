"""What goes into an index: planned, filed, taken out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from indexer import reference, sandbox
from indexer.case_index import CaseIndex
from indexer.discovery import Planned, summary
from indexer.encoder import Encoder
from indexer.errors import CbirError, QueryError, ReadError
from indexer.files import there
from indexer.ingest import IngestReport, Options, ingest, ingest_sources
from indexer.labels import Labels, Table
from indexer.readers import Source
from indexer.remote import is_address

AnyPath = str | os.PathLike[str]
Rows = Labels | Mapping[str, Mapping[str, str]]
Tables = AnyPath | Sequence[AnyPath | Table]


@dataclass(frozen=True)
class Plan:
    """What paths would be taken as, before anything is read or embedded.

    Attributes
    ----------
    entries : list of Planned
        Images first, then outlines, and what is left out with the reason.
    failures : list of CbirError
        What cannot be read, as far as that shows without reading it.
    notes : list of str
        What the user should know.
    """

    entries: list[Planned]
    failures: list[CbirError]
    notes: list[str]

    @property
    def warnings(self) -> list[str]:
        """What should be looked at before the plan is believed."""
        return list(summary.warnings(self.entries))

    def table(self, here: Path) -> list[tuple[str, str, str]]:
        """Rows of what, how many, and an example, named from a folder."""
        return summary.table(self.entries, here)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``cbir index --dry-run --json`` (schema 1)."""
        return {"schema": 1, "sources": [entry.to_dict() for entry in self.entries]}


def plan(
    paths: AnyPath | Iterable[AnyPath],
    labels: Tables = (),
    *,
    all_images: bool = False,
) -> Plan:
    """What files and folders would be taken as by an index.

    Parameters
    ----------
    paths : path or iterable of path
    labels : path, or sequence of paths or tables, optional
        Beside those that lie below or beside each path (see :func:`indexer.labels.find_tables`).
    all_images : bool
        Take maps and copies in another preparation as scans, too.

    Raises
    ------
    ReadError
        If there is nothing below a path that could be an image.
    LabelsError
        If a table cannot be understood.
    CbirError
        If a path is in a store.
    """
    entries: list[Planned] = []
    failures: list[CbirError] = []
    notes: list[str] = []
    given = tables_of(labels)
    for root in roots(paths):
        if isinstance(root, str):
            raise CbirError(root, "cannot be planned: it is in a store", "plan a local copy of a part")
        tables, unread = sandbox.find_tables(root, given=given)
        found = sandbox.discover(root, tables, all_images=all_images)
        entries += found.planned()
        failures += found.failures
        notes += (*found.notes, *unread, *found.joined.notes)
    return Plan(entries, failures, notes)


def add(
    index: CaseIndex,
    encoder: Encoder,
    paths: AnyPath | Iterable[AnyPath | Source],
    labels: Tables | Rows,
    **options: Unpack[Options],
) -> IngestReport:
    """File images; the arguments are those of :meth:`cbir.Index.add`."""
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    sources = [source for source in given if isinstance(source, Source)]
    if sources and len(sources) == len(given):
        rows = labels if isinstance(labels, Mapping | Labels) else None
        return ingest_sources(index, sources, encoder, labels=rows)
    if sources or isinstance(labels, Mapping | Labels):
        raise CbirError(
            "add", "paths and sources, or their labels, are mixed", "file the one, then the other"
        )
    return ingest(
        index,
        roots(path for path in given if not isinstance(path, Source)),
        encoder,
        labels=tables_of(labels),
        **options,
    )


def remove(
    index: CaseIndex, case_ids: str | Iterable[str], patients: str | Iterable[str], *, reference_cases: bool
) -> int:
    """Take cases out; the arguments are those of :meth:`cbir.Index.remove`."""
    with index.writing("remove"):
        wanted = {case_ids} if isinstance(case_ids, str) else set(case_ids)
        # a removal that was killed is gone on with, whatever is asked now
        begun = index.begun_removing()
        unknown = wanted - index.catalog.cases_among(wanted) - begun
        if unknown:
            named = ", ".join(sorted(set(map(index.shown, unknown))))
            raise QueryError(named, "the index has no such case", "see `cbir info --cases`")
        for name in [patients] if isinstance(patients, str) else patients:
            found = index.catalog.cases_of_patients({name, index.patient(name)})
            if not found and not begun:
                raise QueryError(
                    index.shown(name), "the index has no such patient", "see `cbir info --cases`"
                )
            wanted |= found
        with index.removing(wanted | begun) as cases:
            removed = len(begun - index.catalog.cases_among(begun)) + index.catalog.remove_cases(cases)
            if reference_cases:
                removed += reference.leave(index)
            index.file_vectors()
            index.catalog.log("remove", {"cases": removed})
    return removed


def roots(paths: AnyPath | Iterable[AnyPath]) -> list[Path | str]:
    """Paths as an index remembers them: whole, and addresses in a store as they are.

    Raises
    ------
    ReadError
        If nothing can be at one of them; where nothing is, that is for who reads it to say.
    """
    named = [paths] if isinstance(paths, str | os.PathLike) else paths
    found: list[Path | str] = []
    for path in named:
        if is_address(name := os.fspath(path)):
            found.append(name)
        else:
            there(name, ReadError)
            found.append(Path(name).absolute())
    return found


def tables_of(labels: Tables) -> list[Table]:
    """Labels tables, read where only their files are named."""
    found: list[Table] = []
    for each in [labels] if isinstance(labels, str | os.PathLike) else labels:
        found += [each] if isinstance(each, Table) else sandbox.load_tables(Path(each))
    return found
