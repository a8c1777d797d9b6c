"""A source, read and prepared for the network, wherever that is done."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer import readers, watch
from indexer.composite import composite, groups
from indexer.errors import CbirError, ReadError
from indexer.preprocess import Prepared, Preprocessing, prepared, prepared_composite
from indexer.readers.source import Source
from indexer.scan import Scan
from indexer.sequences import COMPOSITE


@dataclass(frozen=True)
class ReadScan:
    """What is known of a scan that was read and prepared, beside its images.

    Attributes
    ----------
    scan : Scan
        With a stand-in for its voxels.
    digest : str
        See :func:`input_hash`.
    positions, views : ndarray
        As in :class:`indexer.preprocess.Prepared`.
    """

    scan: Scan
    digest: str
    positions: NDArray[np.int64]
    views: NDArray[np.uint8]


@dataclass(frozen=True)
class Read:
    """A source that was read.

    Attributes
    ----------
    scans : list of ReadScan
    images : list of Prepared
        One a scan; or what stands for the list where the workers keep it.
    notes : tuple of str
        What the user should know.
    """

    scans: list[ReadScan]
    images: Any
    notes: tuple[str, ...] = ()


def input_hash(ready: Prepared) -> str:
    """Digest of the network's input for the whole slices of a scan."""
    whole = np.ascontiguousarray(ready.pixels[ready.views == 0])
    return hashlib.sha256(repr(whole.shape).encode() + whole.tobytes()).hexdigest()


def read(source: Source, preprocessing: Preprocessing) -> Read:
    """Read and prepare a source, wherever that is done.

    Raises
    ------
    ReadError
        With the reason for which it cannot be read.
    CbirError
        If no source could be read now: there is no room for copies, or no package for their store.
    """
    several = source.kind == COMPOSITE
    try:
        with source.local() as here, watch.heard() as notes:
            scans = _scans(here)
            found = [] if several else [(scan, prepared(scan, preprocessing)) for scan in scans]
            if several:  # what is said of each of them, its own source says
                notes.clear()
            for group in groups(scans, preprocessing.composite_size) if preprocessing.composite_size else ():
                with suppress(ReadError):  # what shows too little beside the others is filed without them
                    ready = prepared_composite(
                        group.scans,
                        preprocessing.composite_size,
                        preprocessing.apart,
                        preprocessing.standardised,
                    )
                    found.append((composite(group), ready))
                    notes += group.notes
        told = [
            ReadScan(_without_voxels(scan), input_hash(ready), ready.positions, ready.views)
            for scan, ready in found
        ]
        return Read(told, [ready for _, ready in found], tuple(notes))
    except Exception as error:  # one odd file must not end the run; its text may hold identifiers
        if isinstance(error, CbirError) and not (several and isinstance(error, ReadError)):
            raise
        if several:  # each of the files has a source of its own, which says it
            return Read([], [])
        if isinstance(error, MemoryError):
            raise ReadError(source.name, "needs more memory than it may take", "crop or split it") from error
        raise ReadError(
            source.name, f"cannot be read ({type(error).__name__})", "please report its format"
        ) from error


def _scans(source: Source) -> list[Scan]:
    """The scans of a source; of several together, those of the parts that can be read."""
    if not source.parts:
        return readers.read(source)
    scans: list[Scan] = []
    for part in source.parts:
        with suppress(ReadError):
            scans += readers.read(part)
    return scans


def _without_voxels(scan: Scan) -> Scan:
    """The scan with a stand-in of the same shape that takes no memory."""
    return replace(scan, voxels=np.broadcast_to(np.uint8(0), scan.voxels.shape), region=None)
