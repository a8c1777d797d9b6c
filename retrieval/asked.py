"""What a file or folder asks with: what an index would take of it, of one patient and one visit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from indexer import sandbox
from indexer.discovery import Discovery
from indexer.discovery.visits import day
from indexer.errors import CbirError, QueryError, ReadError
from indexer.labels import Table
from indexer.readers import Source
from indexer.scan import Scan


def asked(
    path: Path,
    visit: str | None = None,
    tables: Sequence[Table] = (),
    *,
    all_images: bool = False,
    top: Path | None = None,
) -> tuple[list[Scan], list[str]]:
    """The scans that a path asks with.

    Parameters
    ----------
    path : Path
        Of one patient.
    visit : str, optional
        Which of several visits asks, by its name or its day; else the newest.
    tables : sequence of Table
        Labels tables, beside those that lie with the data: they may say who is who.

    all_images : bool
        Whether maps and copies ask, too, as they do where the index takes them.
    top : Path, optional
        A folder around it that was indexed: what tells people apart may be seen from farther above only.

    Returns
    -------
    scans : list of Scan
    notes : list of str
        What was chosen, what was left out and why.

    Raises
    ------
    ReadError
        If nothing can be read.
    QueryError
        If it holds several patients, or not the visit.
    """
    found = _found(path, path, tables, all_images=all_images)
    for wider in path.absolute().parents:
        if top is None or not wider.is_relative_to(top) or len(_patients(found)) < 2:
            break
        found = _found(path, wider, tables, all_images=all_images)
    sources, notes = _one_visit(path, found, visit)
    notes += [*found.unlike, *_left_out(found)]
    scans: list[Scan] = []
    failures: list[CbirError] = list(found.failures)
    for source in sources:
        try:
            scans += sandbox.read(source, notes)
        except ReadError as error:
            failures.append(error)
    if not scans:
        raise failures[0]
    if failures:
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        notes.append(f"not asked with, since it cannot be read: {failures[0]}{more}")
    return scans, notes


def _found(path: Path, seen_from: Path, tables: Sequence[Table], *, all_images: bool) -> Discovery:
    """What lies at or below a path, as it looks from there or from above."""
    given = sandbox.find_tables(seen_from, given=tables)[0]
    found = sandbox.discover(seen_from, given, all_images=all_images)
    if seen_from != path:
        here = path.resolve()
        found.sources = [s for s in found.sources if all(f.is_relative_to(here) for f in s.files)]
        found.ignored = [p for p in found.ignored if all(f.is_relative_to(here) for f in p.files)]
        found.failures = [f for f in found.failures if Path(f.where).is_relative_to(here)]
    return found


def _patients(found: Discovery) -> set[str]:
    return {source.patient_id for source in found.sources}


def _one_visit(path: Path, found: Discovery, visit: str | None) -> tuple[list[Source], list[str]]:
    patients = _patients(found)
    if len(patients) > 1:
        raise QueryError(
            path,
            f"holds {len(patients)} patients",
            "a query is one patient's scan: name a file or a subfolder",
        )
    visits = sandbox.in_time(found.sources)
    named = [name or "without a name" for name in visits]
    if visit is not None:
        chosen = [v for v in visits if v == visit or (v and day(visit) is not None and day(v) == day(visit))]
        if not chosen:
            known = ", ".join(name for name in visits if name) or "none by name"
            raise QueryError(path, f"holds no visit {visit}", f"it holds: {known}")
        return [source for source in found.sources if source.study_id == chosen[0]], []
    if len(visits) < 2:
        return found.sources, []
    note = f"{len(visits)} visits ({', '.join(named)}): the newest, {named[-1]}, asks; --visit chooses"
    return [source for source in found.sources if source.study_id == visits[-1]], [note]


def _left_out(found: Discovery) -> list[str]:
    """What of a folder does not ask, by reason."""
    reasons = Counter((each.reason or "").partition(" (")[0] for each in found.ignored)
    if not reasons or not found.sources:
        return []
    return ["not asked with: " + ", ".join(f"{n} × {reason}" for reason, n in sorted(reasons.items()))]
