"""A folder's plan: what each of its files is taken for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.discovery.layout import IMAGE
from indexer.errors import ReadError
from indexer.labels import Joined
from indexer.readers.source import Source
from indexer.sequences import COMPOSITE


@dataclass(frozen=True)
class Planned:
    """A scan, an outline, or something that is left out.

    Attributes
    ----------
    files : tuple of Path
    role : str
        ``image``, ``region``, ``ignored`` or ``composite``.
    patient, visit : str, optional
        As files name them; None of what belongs to nobody.
    sequence : str, optional
        Of several channels all, with ``+`` between them.
    reason : str, optional
        Why it is left out.
    labels : dict
    """

    files: tuple[Path, ...]
    role: str
    patient: str | None = None
    visit: str | None = None
    sequence: str | None = None
    reason: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The entry of ``cbir index --dry-run --json``."""
        return {
            "files": [str(file) for file in self.files],
            "patient": self.patient,
            "visit": self.visit or None,
            "sequence": self.sequence,
            "role": self.role,
            "reason": self.reason,
            "labels": dict(self.labels),
        }


@dataclass
class Discovery:
    """What there is to read.

    Attributes
    ----------
    sources : list of Source
        Sorted by path.
    failures : list of ReadError
        What cannot be read, as far as that shows without reading it.
    taken : dict
        How many there are of what, for a summary: ``{"NIfTI volumes": 24, "region files": 4, …}``.
    regions, ignored : list of Planned
        Outlines with their cases; what is left out, with the reason.
    labels : dict
        What class folders, and the files themselves, say of patients.
    notes : list of str
        What the user should know.
    unread : dict
        Files of known formats that nothing here reads, by ending.
    joined : Joined
        What labels tables say of the sources.
    alone : int
        Pictures that do not say whose they are: each counts as a patient of its own.
    unlike : list of str
        Those of the notes that tell of pictures whose channels are unlike.
    looked : dict
        What was seen of voxels, for the next discovery of the same root.
    """

    sources: list[Source] = field(default_factory=list)
    failures: list[ReadError] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=dict)
    regions: list[Planned] = field(default_factory=list)
    ignored: list[Planned] = field(default_factory=list)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)
    joined: Joined = field(default_factory=Joined)
    alone: int = 0
    unlike: list[str] = field(default_factory=list)
    looked: dict[str, str] = field(default_factory=dict)

    def planned(self) -> list[Planned]:
        """All of it, images first."""
        images = [
            Planned(
                source.files,
                COMPOSITE if source.kind == COMPOSITE else IMAGE,
                source.patient_id,
                source.study_id,
                "+".join(source.channels) or source.sequence,
                labels=self.labels_of(source),
            )
            for source in self.sources
        ]
        return images + self.regions + self.ignored

    def labels_of(self, source: Source) -> dict[str, str]:
        """What tables and the class folder say of a source's visit."""
        return self.labels.get(source.patient_id, {}) | self.joined.labels.of_case(
            source.patient_id, source.study_id
        )
