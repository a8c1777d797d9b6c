"""Strangers' bytes are parsed and decoded here: in child processes, each with limits.

A file may crash its decoder, ask for more memory than there is, or for an hour. So whoever has files
read that somebody else wrote calls these functions, which do what those of the same names in
:mod:`indexer.readers` do, in a process that may end without harm: what ends it is a
:class:`~indexer.errors.PoisonError`, a kind of `ReadError`. Processes are kept and used again, and
arrays come back through memory that is shared, so that good files cost what they cost without this.

Set ``CBIR_READ_IN_PROCESS=1`` to do without child processes, where a system has none of them or to
debug a reader: then a crash of a decoder is a crash of the program.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer.errors import PoisonError
from indexer.readers.source import Source
from indexer.sandbox.pool import Limits, Sandbox, refuse_late, shared, within
from indexer.sequences import COMPOSITE

if TYPE_CHECKING:  # so that `begin` need not wait for them
    import numpy as np
    from numpy.typing import NDArray

    from indexer.discovery import Discovery
    from indexer.labels import Table
    from indexer.preprocess import Preprocessing
    from indexer.reading import Read
    from indexer.scan import Scan

__all__ = [
    "Limits",
    "Sandbox",
    "begin",
    "belonging",
    "discover",
    "find_tables",
    "in_time",
    "load_tables",
    "prepare",
    "read",
    "read_mask",
    "refuse_late",
    "shared",
    "within",
]


def begin() -> None:
    """Have what reads begin, without waiting for it: who will read something has other work meanwhile."""
    shared().begin()


def discover(root: Path, tables: Sequence[Table] = (), **options: Any) -> Discovery:
    """As :func:`indexer.discovery.discover`; a file whose header ends the process is one of the failures."""
    found: Discovery = shared().discover("discover", root, tables, options)
    return found


def find_tables(
    root: Path, top: Path | None = None, given: Sequence[Table] = ()
) -> tuple[list[Table], list[str]]:
    """As :func:`indexer.labels.find_tables`."""
    found: tuple[list[Table], list[str]] = shared().discover("tables", root, top, tuple(given))
    return found


def load_tables(path: Path) -> list[Table]:
    """As :func:`indexer.labels.load_tables`."""
    tables: list[Table] = shared().call("load_tables", path, where=path, size=_size([path]))
    return tables


def in_time(sources: Sequence[Source]) -> list[str]:
    """As :func:`indexer.discovery.visits.in_time`."""
    if not sources:
        return []
    visits: list[str] = shared().call("in_time", tuple(sources), where=sources[0].path, size=0)
    return visits


def belonging(files: Sequence[Path]) -> list[dict[str, str]]:
    """As :func:`indexer.readers.dicom.belonging.belonging`."""
    said: list[dict[str, str]] = shared().call(
        "belonging", tuple(files), where=files[0].parent, size=_size(files)
    )
    return said


def read(source: Source | Path, notes: list[str] | None = None) -> list[Scan]:
    """As :func:`indexer.discovery.read`; each source of a path has limits of its own.

    Parameters
    ----------
    source : Source or Path
    notes : list of str, optional
        To which is added what the user should know of it.
    """
    if isinstance(source, Source):
        scans: list[Scan]
        scans, said = shared().call(
            "read", source, where=source.path, size=_size([*source.files, *source.region_files])
        )
        if notes is not None:
            notes += said
        return scans
    found: Discovery = shared().discover("discover_labelled", source)
    if found.failures:
        raise found.failures[0]
    return [scan for each in found.sources for scan in read(each, notes)]


def read_mask(path: Path, scan: Scan) -> NDArray[np.bool_]:
    """As :func:`indexer.readers.read_mask`."""
    grid = scan.voxels.shape, scan.affine, scan.source
    inside: NDArray[np.bool_] = shared().call("mask", path, *grid, where=path, size=_size([path]))
    return inside


def prepare(source: Source, preprocessing: Preprocessing) -> Read:
    """As :func:`indexer.reading.read`: a source's scans, prepared for the network."""
    try:
        with source.local() as here:
            read: Read = shared().call(
                "prepare",
                here,
                preprocessing,
                where=here.path,
                size=_size([*here.files, *here.region_files]),
            )
            return read
    except PoisonError:
        if source.kind == COMPOSITE:  # each of the files has a source of its own, which says it
            from indexer.reading import Read

            return Read([], [])
        raise


def _size(files: Collection[Path]) -> int:
    """Bytes of files, as far as they are there."""
    return sum(os.path.getsize(file) for file in files if os.path.isfile(file))  # noqa: PTH113, PTH202 (any name)
