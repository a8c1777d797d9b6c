"""Which outlines are of an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from indexer.discovery.candidates import Candidate
from indexer.discovery.layout import Decision
from indexer.discovery.tokens import split, stem
from indexer.discovery.vocabulary import Kind


def outlines_of(
    image: Candidate, decision: Decision, outlines: Sequence[tuple[Candidate, Decision]]
) -> tuple[Path, ...]:
    """The outlines of an image: those of its own sequence, then those of the case; drawn by hand first."""
    if image.format.pictures:
        names = {stem(file.name).lower() for file in image.source.files}
        files = [o.source.files[0] for o, _ in outlines]
        return tuple(sorted(f for f in files if outlined_by(f) in names))
    own = image.source.path.parent

    def rank(pair: tuple[Candidate, Decision]) -> tuple[object, ...]:
        outline, what = pair
        return (
            what.sequence != decision.sequence,
            what.automatic,
            outline.source.path.parent != own,
            -len(stem(outline.source.path.name)),
            outline.source.path,
        )

    fitting = [
        (outline, what)
        for outline, what in outlines
        if outline.format is image.format and what.sequence in (None, decision.sequence)
    ]
    return tuple(o.source.files[0] for o, _ in sorted(fitting, key=rank))


def outlined_by(file: Path) -> str:
    """The name (in lower case, without extension) of the picture that a picture outlines."""
    tokens = list(split(stem(file.name)))
    while len(tokens) > 1 and tokens[-1].kind in (Kind.REGION, Kind.TARGET, Kind.TISSUE):
        tokens.pop()
    return stem(file.name)[: tokens[-1].end].lower() if tokens else stem(file.name).lower()
