"""Queries of the last minutes: their pixels wait on the disk to be looked at, or asked with again."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from indexer import sandbox
from indexer.catalog import FiledScan
from indexer.files import needing_room
from indexer.readers import Source
from indexer.scan import Scan, ScanRef
from retrieval.service.images import write_voxels

MOST = 2**30
"""Bytes that are kept at most; the query that was used the longest ago goes first."""


@dataclass(frozen=True)
class Kept:
    """A query that can be asked again.

    Attributes
    ----------
    id : str
    who : str
        Name of the token that asked; nobody else gets it.
    folder : Path
    patient : str
        Pseudonym of its patient.
    excluded : str or None
        The index's id of a patient who is left out of its hits.
    sources : list of Source
        One a scan: its voxels as NIfTI.
    about : list of FiledScan
        One a scan; a raster scan has no spacing.
    size : int
        Bytes on the disk.
    """

    id: str
    who: str
    folder: Path
    patient: str
    excluded: str | None
    sources: list[Source]
    about: list[FiledScan]
    size: int

    def scan(self, number: int) -> Scan:
        """One of its scans, without identifiers.

        Raises
        ------
        IndexError
            If there is no such scan.
        ReadError
            If its time is over.
        """
        (scan,) = sandbox.read(self.sources[number])
        spatial = self.about[number].spacing is not None
        return scan if spatial else replace(scan, spacing=None, affine=None)

    def scans(self) -> list[Scan]:
        """All of its scans."""
        return [self.scan(number) for number in range(len(self.sources))]

    def number(self, ref: ScanRef) -> int | None:
        """Which of its scans a hit's query side is."""
        return place_of(self.about, ref)


def place_of(scans: Sequence[FiledScan], ref: ScanRef) -> int | None:
    """Which of some scans is meant; None if it is not among them."""
    return next((place for place, scan in enumerate(scans) if scan.ref == ref), None)


class Queries:
    """A folder of queries, bounded in time and size.

    Parameters
    ----------
    folder : Path
        Its own; it must exist.
    seconds : float
        How long a query is kept after its last use.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder = folder
        self._seconds = seconds
        self._kept: OrderedDict[str, tuple[Kept, float]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, scans: Sequence[Scan], who: str, patient: str, excluded: str | None = None) -> Kept:
        """Write the voxels of a query's scans down.

        Raises
        ------
        DiskFullError
            If there is no room for them; none is left behind.
        """
        id = secrets.token_urlsafe(16)
        folder = self._folder / id
        sources, about, size = [], [], 0
        try:
            folder.mkdir(mode=0o700)
            for number, scan in enumerate(scans):
                path = folder / f"{number}.nii"
                with needing_room(path), path.open("wb") as stream:
                    write_voxels(scan, stream)
                size += path.stat().st_size
                sources.append(
                    Source(
                        path,
                        "nifti",
                        (path,),
                        sequence=scan.sequence,
                        modality=scan.modality,
                        frame=scan.frame,
                    )
                )
                about.append(
                    FiledScan(str(path), 0, scan.sequence, scan.modality, scan.voxels.shape, scan.spacing)
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        kept = Kept(id, who, folder, patient, excluded, sources, about, size)
        with self._lock:
            self._kept[id] = (kept, time.monotonic())
        self.sweep()
        return kept

    def get(self, id: str, who: str) -> Kept | None:
        """A query that is still kept and that this token asked."""
        with self._lock:
            kept, _ = self._kept.get(id, (None, 0.0))
            if kept is None or kept.who != who:
                return None
            self._kept[id] = (kept, time.monotonic())
            self._kept.move_to_end(id)
        return kept

    def drop(self, kept: Kept) -> None:
        """Let a query go."""
        with self._lock:
            self._kept.pop(kept.id, None)
        shutil.rmtree(kept.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Let go what is too old or too much."""
        now = time.monotonic()
        with self._lock:
            size = sum(kept.size for kept, _ in self._kept.values())
            gone = []
            for kept, used in list(self._kept.values())[:-1]:  # never the one that was used last
                if size > MOST or now - used > self._seconds:
                    gone.append(self._kept.pop(kept.id)[0])
                    size -= kept.size
            if self._kept:
                kept, used = next(reversed(self._kept.values()))
                if now - used > self._seconds:
                    gone.append(self._kept.pop(kept.id)[0])
        for kept in gone:
            shutil.rmtree(kept.folder, ignore_errors=True)
