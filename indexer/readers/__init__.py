"""From files to scans: what there is below a folder, and how each kind of it is read.

A format is one module and one line in `FORMATS`. The first format that claims a file gets it.
"""

from __future__ import annotations

import functools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ReadError
from indexer.labels import PARTICIPANTS, Joined, Mentioned, Table, find_tables, join, mentions, renamed
from indexer.readers import dicom, nifti, raster
from indexer.readers.names import CONFIG, region_of
from indexer.readers.source import Source
from indexer.scan import Scan

__all__ = ["FORMATS", "Discovery", "Format", "Source", "discover", "read", "read_mask"]

Found = tuple[list[Source], list[ReadError]]


@dataclass(frozen=True)
class Format:
    """How one format is found and read.

    Attributes
    ----------
    kinds : mapping
        The kinds of source (`Source.kind`) it makes, and what a summary calls them.
    claims : callable
        Whether a file is its own; may look into it.
    sources : callable
        ``(files, regions, root, mentioned) -> (sources, failures)`` for all files claimed: images, and
        region files beside them; and what labels tables speak of (see :func:`indexer.labels.mentions`).
        Reads headers at most.
    read : callable
        A source to its scans.
    """

    kinds: Mapping[str, str]
    claims: Callable[[Path], bool]
    sources: Callable[[Sequence[Path], Sequence[Path], Path, Mentioned], Found]
    read: Callable[[Source], list[Scan]]


FORMATS = (
    Format({"nifti": "NIfTI volumes"}, nifti.claims, lambda f, r, *_: nifti.volumes(f, r), nifti.read),
    Format(
        {"stack": "folders of slices", "raster": "single images"},
        raster.claims,
        lambda f, r, _, mentioned: raster.images(f, r, mentioned),
        raster.read,
    ),
    Format(
        {"dicom": "DICOM series"}, dicom.is_dicom, lambda f, _, root, __: dicom.series(f, root), dicom.read
    ),
)
"""In this order; DICOM comes last, because it has to open what the names of the others leave over."""


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
    joined : Joined
        What labels tables say of the sources.
    """

    sources: list[Source] = field(default_factory=list)
    failures: list[ReadError] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=dict)
    joined: Joined = field(default_factory=Joined)


def discover(root: Path, tables: Sequence[Table] = (), *, without: Collection[Path] = ()) -> Discovery:
    """Find everything readable in a folder and below it, or in one file.

    Hidden files and folders and ``DICOMDIR`` are passed over. Links are followed; a folder that can be
    reached twice is entered once. NIfTI and raster files are not opened.

    Who the patient of a source is, the DICOM header or the names decide (see `names.patient_and_study`);
    two single files of the same name, in whatever folders, are one patient then. Labels tables may say
    otherwise (see :func:`indexer.labels.join`).

    Parameters
    ----------
    root : Path
        A folder or a file. A file is taken on its own, even if it is called like a slice of a stack.
    tables : sequence of Table
    without : collection of Path
        Folders to leave out.

    Raises
    ------
    ReadError
        If nothing below `root` could be an image.
    LabelsError
        If a table that the user named cannot be joined.
    """
    root = root.resolve() if root.is_dir() else root.parent.resolve() / root.name
    if not root.exists():
        raise ReadError(root, "does not exist", "check the path")
    if root.is_file() and region_of(root.name) is not None:
        raise ReadError(
            root, "is a region (its name ends in seg, dseg or mask), not a scan", "give its image"
        )
    found = Discovery()
    named = {table.path for table in tables}
    taken: Counter[str] = Counter()
    claimed: dict[int, tuple[list[Path], list[Path]]] = defaultdict(lambda: ([], []))
    for file in sorted(_files(root, found.failures, without)):
        try:
            number = next((i for i, f in enumerate(FORMATS) if f.claims(file)), None)
        except OSError as error:
            found.failures.append(ReadError(file, f"cannot be read ({error.strerror})"))
            continue
        if number is not None:
            is_region = region_of(file.name) is not None
            claimed[number][is_region].append(file)
            taken["region files"] += is_region
        elif file.name not in (CONFIG, PARTICIPANTS) and file not in named:
            taken["ignored files"] += 1
    paths: set[Path] = set()
    mentioned = mentions(tables)
    # last first: a DICOM series, not the pictures that were made of it, has the name of their folder
    for number, (files, regions) in sorted(claimed.items(), reverse=True):
        sources, failures = FORMATS[number].sources(files, regions, root, mentioned)
        found.failures += failures
        taken["ignored files"] += _left_out(files, sources, failures)
        for source in sources:
            if source.path in paths:
                reason = f"is one of the {FORMATS[number].kinds[source.kind]}, but holds another format too"
                found.failures.append(ReadError(source.path, reason, "give each a folder of its own"))
                continue
            paths.add(source.path)
            found.sources.append(source)
            taken[FORMATS[number].kinds[source.kind]] += 1
    found.failures = list({str(failure): failure for failure in found.failures}.values())  # a cbir.json, once
    if not found.sources and not found.failures:
        what = f"holds no image among its {taken.total()} files" if taken else "is empty"
        reason = "is not an image of a known format" if root.is_file() else what
        raise ReadError(root, reason, "give NIfTI, DICOM, PNG, JPEG, TIFF or WebP files")
    found.joined = join(tables, found.sources)
    found.sources = [_of_patient(source, found.joined.patients) for source in found.sources]
    found.sources.sort(key=lambda source: source.path)
    order = [name for format in FORMATS for name in format.kinds.values()] + ["region files", "ignored files"]
    found.taken = {name: taken[name] for name in order if taken[name]}
    return found


def read(source: Source | Path) -> list[Scan]:
    """The scans of a source: one for each channel or sequence it holds.

    Parameters
    ----------
    source : Source or Path
        A path is discovered first, with the labels tables found beside or above it, if any; a folder may
        hold several sources, whose scans are concatenated.

    Raises
    ------
    ReadError
        With the reason for which it cannot be read; for a path, the first reason met.
    LabelsError
        If a ``participants.tsv`` found for a path cannot be understood.
    """
    if isinstance(source, Source):
        return next(format for format in FORMATS if source.kind in format.kinds).read(source)
    found = discover(source, find_tables(source)[0])
    if found.failures:
        raise found.failures[0]
    return [scan for each in found.sources for scan in read(each)]


def read_mask(path: Path, scan: Scan) -> NDArray[np.bool_]:
    """Where a mask, whatever it is called, is not zero.

    Parameters
    ----------
    path : Path
        An image file on the grid of `scan`.
    scan : Scan

    Returns
    -------
    ndarray of bool, shape (x, y, z)

    Raises
    ------
    ReadError
        If it cannot be read, or lies on another grid.
    """
    if not path.is_file():
        raise ReadError(path, "is not a file", "give the mask's file")
    format = next((f for f in FORMATS if f.claims(path)), None)
    if format is None:
        raise ReadError(path, "is not an image of a known format", "give the mask as NIfTI, PNG or TIFF")
    sources, failures = format.sources([path], [], path.parent, mentions(()))
    if failures:
        raise failures[0]
    mask = format.read(sources[0])[0]
    placed = mask.affine is None or scan.affine is None or np.allclose(mask.affine, scan.affine, atol=1e-3)
    if mask.voxels.shape != scan.voxels.shape or not placed:
        raise ReadError(path, f"does not lie on the grid of {scan.source}", "resample it to the image")
    lossy = path.suffix.lower() in (".jpg", ".jpeg")
    return np.asarray(mask.voxels > (127 if lossy else 0), bool)


def _files(root: Path, failures: list[ReadError], without: Collection[Path]) -> Iterator[Path]:
    """All files below a folder; or one file, and the regions beside it that may be its own."""
    if root.is_file():
        yield root
        beside = _regions_in(root.parent, root.parent.stat().st_mtime_ns)
        yield from (file for file, owner in beside if root.name.startswith(owner))
        return
    seen: set[tuple[int, int]] = set()
    folders: list[Path] = [root]
    links: list[Path] = []
    while folders or links:
        # links last: a folder is named by its own path wherever that is below the root
        folder = folders.pop() if folders else links.pop(0)
        if folder in without:
            continue
        try:
            stat = folder.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(folder) as entries:
                members = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            failures.append(ReadError(folder, f"cannot be opened ({error.strerror})"))
            continue
        for entry in members:
            if entry.name.startswith(".") or entry.name.upper() == "DICOMDIR":
                continue
            path, link = Path(entry.path), entry.is_symlink()
            there = path if link else entry  # an entry knows what it is without asking again, a link does not
            if there.is_dir():
                (links if link else folders).append(path)
            elif there.is_file():
                yield path
            elif link:
                failures.append(ReadError(path, "cannot be read (a link that leads nowhere)"))


@functools.lru_cache(maxsize=8)
def _regions_in(folder: Path, _changed: int) -> tuple[tuple[Path, str], ...]:
    """Region files in a folder and the names they belong to; asked for once for all files of a folder."""
    owned = ((file, region_of(file.name)) for file in folder.iterdir())
    return tuple((file, owner) for file, owner in owned if owner is not None and file.is_file())


def _left_out(files: Sequence[Path], sources: Sequence[Source], failures: Sequence[ReadError]) -> int:
    """Files of a format that hold no image: DICOM reports, segmentations and the like."""
    used = {file for source in sources for file in source.files}
    refused = {Path(failure.where) for failure in failures}
    return sum(file not in used and refused.isdisjoint((file, *file.parents)) for file in files)


def _of_patient(source: Source, patients: Mapping[Path, str]) -> Source:
    """The source with the patient that a labels table says it is of."""
    patient = patients.get(source.path)
    if patient is None:
        return source
    return replace(source, patient_id=patient, study_id=renamed(source.study_id, source.patient_id, patient))
