"""Several sequences of one place, seen together.

What enhances and what swells shows in the difference of sequences. Where a source holds several of
them on one grid, they are laid over each other, a channel a sequence, and these *composites* are
embedded beside the sequences themselves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from indexer.discovery.roles import understood
from indexer.discovery.tokens import stem
from indexer.readers.formats import formats
from indexer.readers.source import Source
from indexer.scan import Scan

CHANNELS = ("t1", "t1ce", "t2", "flair")
"""Sequences that a composite may hold, in the order of its channels."""

LEADERS = ("flair", "t2", "t1ce", "t1")
"""Of these sequences, the first that there is says where the lesion is, and is shown of a composite."""

LEADING = tuple(CHANNELS.index(name) for name in LEADERS)

COMPOSITE = "composite"
"""What a composite has for a sequence."""


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
    """What single files of several sequences are together: a source more for each visit.

    Of several files of a sequence, the first is taken. It is called like the files without what differs,
    and "composite", and lies in the deepest folder that holds them all.
    """
    single = [format for format in formats() if not format.pictures and format.series is None]
    volumes = {kind for format in single for kind in format.kinds}
    members: dict[tuple[str, str], dict[str, Source]] = {}
    for source in sources:
        if source.kind in volumes and source.sequence in CHANNELS and not source.channels:
            held = members.setdefault((source.patient_id, source.study_id), {})
            held.setdefault(source.sequence, source)
    found = []
    for (patient, study), of_sequence in members.items():
        several = list(of_sequence.values())
        if len(several) > 1:
            found.append(
                replace(
                    several[0],
                    path=_home(several) / _called(several, patient, study),
                    kind=COMPOSITE,
                    files=tuple(source.files[0] for source in several),
                    channels=tuple(source.sequence or "" for source in several),
                    sequence=None,
                    region_files=tuple(dict.fromkeys(f for s in several for f in s.region_files)),
                )
            )
    return found


def _home(sources: Sequence[Source]) -> Path:
    """The deepest folder that holds all files."""
    return Path(os.path.commonpath([source.path.parent for source in sources]))


def _called(sources: Sequence[Source], patient: str, study: str) -> str:
    """The words that the files' names begin with; whose they are, where each begins with another."""
    names = [stem(source.path.name) for source in sources]
    words = zip(*(re.findall(r"[^\W_]+|[\W_]+", name) for name in names), strict=False)
    shared = takewhile(lambda same: len(set(same)) == 1, words)
    name = "".join(word for word, *_ in shared).rstrip("_-. ")
    if not name and any(understood(each).id for each in names):
        name = "_".join(filter(None, (patient, study))).replace(os.sep, "_")
    return "_".join(filter(None, (name, COMPOSITE)))


def parts(source: Source) -> list[Source]:
    """The files that a source of :func:`beside` is of, each by itself."""
    return [
        replace(
            source,
            path=file,
            kind=next(format.kind for format in formats() if format.claims(file)),
            files=(file,),
            channels=(),
            sequence=sequence,
        )
        for file, sequence in zip(source.files, source.channels, strict=True)
    ]


def composite(group: list[Scan | None]) -> Scan:
    """What stands for a group in an index: its first scan, called a composite."""
    first = next(scan for scan in group if scan is not None)
    return replace(first, sequence=COMPOSITE)
