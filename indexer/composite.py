"""Several sequences of one place, seen together.

What enhances and what swells shows in the difference of sequences. Where a source holds several of
them on one grid, they are laid over each other, a channel a sequence, and these *composites* are
embedded beside the sequences themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from indexer.readers.names import sequence_of
from indexer.readers.source import Source
from indexer.scan import Scan

CHANNELS = ("t1", "t1ce", "t2", "flair")
"""Sequences that a composite may hold, in the order of its channels."""

LEADERS = ("flair", "t2", "t1ce", "t1")
"""Of these sequences, the first that there is says where the lesion is, and is shown of a composite."""

LEADING = tuple(CHANNELS.index(name) for name in LEADERS)

COMPOSITE = "composite"
"""What a composite has for a sequence."""


def is_composite(name: str | None) -> bool:
    """Whether a sequence, or a kind of source, is a composite's."""
    return name == COMPOSITE


def leader(scans: Iterable[Scan | None]) -> Scan | None:
    """The one of several scans that is shown of their composite; see :data:`LEADERS`."""
    by_sequence = {scan.sequence: scan for scan in scans if scan is not None}
    return next((by_sequence[name] for name in LEADERS if name in by_sequence), None)


def groups(scans: Iterable[Scan]) -> Iterator[list[Scan | None]]:
    """Scans to lay over each other, one a channel and None for a channel that there is none of.

    They are of one patient and study, lie on the same grid, and are of two sequences at least. Of
    several of one sequence the first is taken.
    """
    grids: dict[object, dict[str, Scan]] = {}
    for scan in scans:
        if scan.sequence in CHANNELS:
            affine = None if scan.affine is None else (scan.affine.round(3) + 0.0).tobytes()  # no -0
            grid = scan.patient_id, scan.study_id, scan.voxels.shape, affine
            grids.setdefault(grid, {}).setdefault(scan.sequence, scan)
    for found in grids.values():
        if len(found) > 1:
            yield [found.get(channel) for channel in CHANNELS]


def beside(sources: Sequence[Source]) -> list[Source]:
    """What single files of several sequences are together: a source more for each patient's in a folder.

    It is called like the files without their sequences, and "composite".
    """
    members: dict[tuple[Path, str, str, str], list[Source]] = {}
    for source in sources:
        if source.kind == "nifti" and source.sequence in CHANNELS and not source.channels:
            _, rest = sequence_of(source.path.name)
            key = source.path.parent, rest, source.patient_id, source.study_id
            members.setdefault(key, []).append(source)
    found = []
    for (folder, rest, *_), several in members.items():
        if len({source.sequence for source in several}) > 1:
            found.append(
                replace(
                    several[0],
                    path=folder / "_".join(filter(None, (rest, COMPOSITE))),
                    kind=COMPOSITE,
                    files=tuple(source.files[0] for source in several),
                    channels=tuple(source.sequence or "" for source in several),
                    sequence=None,
                    region_files=tuple(dict.fromkeys(f for s in several for f in s.region_files)),
                )
            )
    return found


def parts(source: Source) -> list[Source]:
    """The files that a source of :func:`beside` is of, each by itself."""
    return [
        replace(source, path=file, kind="nifti", files=(file,), channels=(), sequence=sequence)
        for file, sequence in zip(source.files, source.channels, strict=True)
    ]


def composite(group: list[Scan | None]) -> Scan:
    """What stands for a group in an index: its first scan, called a composite."""
    first = next(scan for scan in group if scan is not None)
    return replace(first, sequence=COMPOSITE)
