"""The images that a hit or a query means, read again from where they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from indexer import reference, remote, sandbox
from indexer.case_index import CaseIndex
from indexer.composite import groups
from indexer.errors import ReadError
from indexer.files import there
from indexer.scan import Scan, ScanRef
from indexer.sequences import is_composite
from retrieval.state import State

CHANGED = "index it again"


def scans_of(case_index: CaseIndex, state: State, source: str, side: Callable[[], int]) -> list[Scan]:
    """The scans of a source, in the order of reading: the number of a :class:`ScanRef` is a place in it.

    A composite is shown by the sequence that leads it. The scan of a query, which is not in the index,
    has no outline.

    Parameters
    ----------
    case_index : CaseIndex
    state : State
        Of the index, which says what was indexed.
    source : str
        Of a hit, or of a query.
    side : callable
        Gives the side of the images of composites, which their grid depends on.

    Raises
    ------
    ReadError
        If the files are gone, cannot be read, or are not those that were indexed.
    """
    if reference.is_reference(source):
        raise ReadError(source, "a reference case comes without pictures: see its collection and id")
    path = Path(source)
    # a series that shares its folder with others has a name of its own
    above = path if there(path, ReadError) else path.parent
    record = case_index.catalog.record(source)
    if record is None:
        scans = sandbox.read(above)
        return [replace(scan, region=None) for scan in scans if scan.source == path]
    with remote.held(source, record).local() as here:
        several = is_composite(here.kind)
        scans = []
        for part in here.parts or (here,):
            with suppress(ReadError) if several else nullcontext():  # as it was filed
                scans += sandbox.read(part)
    if ScanRef(source, 0 if several else len(scans)) in state.places:
        shown = [group.leader for group in groups(scans, side())]
        scans = shown if several else [*scans, *shown]
    for number, scan in enumerate(scans):
        place = state.places.get(ScanRef(source, number))
        shape = scan.voxels.shape if place is None else state.contents.scan_shape[place]
        if scan.voxels.shape != shape:
            was, now = ("×".join(map(str, s)) for s in (shape, scan.voxels.shape))
            raise ReadError(source, f"has changed since it was indexed ({was} voxels, now {now})", CHANGED)
    return scans


def scan_of(case_index: CaseIndex, state: State, ref: ScanRef, side: Callable[[], int]) -> Scan:
    """One scan.

    Raises
    ------
    ReadError
        As :func:`scans_of`; and if the source holds no such scan any more.
    """
    return chosen(scans_of(case_index, state, ref.source, side), ref)


def chosen(scans: Sequence[Scan], ref: ScanRef) -> Scan:
    """The scan that is meant, of those of its source."""
    if ref.number >= len(scans):
        raise ReadError(ref.source, f"has no scan {ref.number} any more", CHANGED)
    return scans[ref.number]
