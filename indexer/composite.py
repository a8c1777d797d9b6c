"""Several sequences of one place, seen together.

What enhances and what swells shows in the difference of sequences. Those of one visit are laid over
each other, a channel a sequence, brought to one grid where they lie on several
(:mod:`indexer.alignment`), and these *composites* are embedded beside the sequences themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from indexer.alignment import aligned
from indexer.discovery.tokens import split, stem
from indexer.discovery.vocabulary import Kind
from indexer.errors import ReadError
from indexer.readers.source import Source
from indexer.scan import Scan
from indexer.sequences import CHANNELS, COMPOSITE, LEADERS

FLAT = ("raster", "stack")
"""Kinds of source that have no place in the patient."""


@dataclass(frozen=True)
class Group:
    """Scans to lay over each other.

    Attributes
    ----------
    scans : list of Scan or None
        One a channel of `CHANNELS`, None for a channel that there is none of; all on one grid.
    left_out : dict of str to str
        Sequences of the same visit that could not be brought to that grid, and why.
    """

    scans: list[Scan | None]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def leader(self) -> Scan:
        """The one that is shown of them; see :data:`indexer.sequences.LEADERS`."""
        by_sequence = {scan.sequence: scan for scan in self.scans if scan is not None}
        return next(by_sequence[name] for name in LEADERS if name in by_sequence)

    @property
    def notes(self) -> list[str]:
        """What the user should know, a line each."""
        return [
            f"{sequence} is not seen together with the other sequences: {reason}"
            for sequence, reason in self.left_out.items()
        ]


def groups(scans: Iterable[Scan], side: int) -> Iterator[Group]:
    """Scans that show one place, of two sequences at least.

    They are of one patient and visit. What lies on one grid goes together as it is, of several of one
    sequence the first; where a visit has more sequences than any of its grids, all of them are brought
    to one.

    Parameters
    ----------
    scans : iterable of Scan
    side : int
        Of the images of composites, in pixels.
    """
    visits: dict[tuple[str, str], list[Scan]] = {}
    for scan in scans:
        if scan.sequence in CHANNELS:
            visits.setdefault((scan.patient_id, scan.study_id), []).append(scan)
    for visit in visits.values():
        grids = _on_one_grid(visit)
        left_out: Mapping[str, str] = {}
        placed = [scan for scan in visit if scan.affine is not None]
        if len({scan.sequence for scan in placed}) > max(map(len, grids)):
            with suppress(ReadError):  # what cannot lead may still lie on a grid with others
                brought = aligned(placed, LEADERS, side)
                if len(brought.scans) >= max(map(len, grids)):
                    grids = [dict(brought.scans)]
                    left_out = brought.left_out
        for found in grids:
            if len(found) > 1:
                yield Group([found.get(channel) for channel in CHANNELS], left_out)


def _on_one_grid(visit: Iterable[Scan]) -> list[dict[str, Scan]]:
    grids: dict[object, dict[str, Scan]] = {}
    for scan in visit:
        affine = None if scan.affine is None else (scan.affine.round(3) + 0.0).tobytes()  # no -0
        grids.setdefault((scan.voxels.shape, affine), {}).setdefault(str(scan.sequence), scan)
    return list(grids.values())


def beside(sources: Sequence[Source], name: Callable[[str, str], str]) -> list[Source]:
    """What single scans of several sequences are together: a source more for each visit.

    Files that differ in nothing but the sequence in their names are called like them without it, and
    "composite". Where those are not all sequences of a visit, the visit has one such source, in the folder
    that holds them all.

    Parameters
    ----------
    sources : sequence of Source
    name : callable
        What to call a visit, given its patient and study: it will be shown.
    """
    visits: dict[tuple[str, str], list[Source]] = {}
    for source in sources:
        if source.sequence in CHANNELS and not source.channels and source.kind not in (*FLAT, COMPOSITE):
            visits.setdefault((source.patient_id, source.study_id), []).append(source)
    found = []
    for (patient, study), visit in visits.items():
        places: dict[tuple[Path, str], list[Source]] = {}
        for source in visit:
            places.setdefault((source.path.parent, _before_sequence(source.path.name)), []).append(source)
        most = max(len({source.sequence for source in several}) for several in places.values())
        if len({source.sequence for source in visit}) > most:
            folder = Path(os.path.commonpath([source.path.parent for source in visit]))
            found.append(_together(visit, folder / f"{name(patient, study).replace('/', '-')}_{COMPOSITE}"))
            continue
        for (folder, rest), several in places.items():
            if len({source.sequence for source in several}) > 1:
                found.append(_together(several, folder / "_".join(filter(None, (rest, COMPOSITE)))))
    return found


def _before_sequence(name: str) -> str:
    """A file's name up to the word that says its sequence."""
    name = stem(name)
    at = next((token.start for token in split(name) if token.kind is Kind.SEQUENCE), len(name))
    return name[:at].rstrip("-_. ")


def _together(several: Sequence[Source], path: Path) -> Source:
    return replace(
        several[0],
        path=path,
        kind=COMPOSITE,
        files=tuple(file for source in several for file in source.files),
        parts=tuple(several),
        sequence=None,
        series_id="",
        region_files=tuple(dict.fromkeys(f for s in several for f in s.region_files)),
        object="",
        image_type=(),
    )


def composite(group: Group) -> Scan:
    """What stands for a group in an index: its first scan, called a composite."""
    first = next(scan for scan in group.scans if scan is not None)
    return replace(first, sequence=COMPOSITE)
