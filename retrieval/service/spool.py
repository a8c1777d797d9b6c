"""Images that came over the network are kept as what is needed to look at them: NIfTI without identifiers.

A series is filed under the pseudonym of its SeriesInstanceUID, so the same series has the same file,
and is new only if its voxels are.
"""

from __future__ import annotations

import gzip
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from indexer.case_index import CaseIndex
from indexer.encoder import Encoder
from indexer.files import needing_room, sha256, written_whole
from indexer.ingest import remove_sources
from indexer.readers import Source
from indexer.scan import Scan
from retrieval.service.images import write_voxels
from retrieval.service.private import is_own, opened, own_folder

SPOOL = "spool"
"""Folder in the index folder."""

_OWN = re.compile(r"(?P<stem>[0-9a-z-]+)(\.region)?\.nii\.gz(?P<unfinished>(\.new)?(\.\d+\.part)?)")
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")


def spool(index: CaseIndex, scans: Sequence[Scan]) -> list[Source]:
    """Keep scans in the index folder.

    Parameters
    ----------
    index : CaseIndex
    scans : sequence of Scan
        Whole series: of a series that is spooled again, what is not among them is taken out.

    Returns
    -------
    list of Source
        For :func:`indexer.ingest.ingest_sources`; one a scan, with its ids.

    Raises
    ------
    CbirError
        If the folder is none of ours, or the disk is full.
    WriterBusyError
        If something has to be taken out and another process writes.
    """
    folder = own_folder(index.folder / SPOOL)
    sources, seen = [], Counter[str]()
    for scan in scans:
        name = _name(index, scan)
        number = seen[name]
        seen[name] += 1
        stem = f"{name}-{number}" if number else name
        path = folder / f"{stem}.nii.gz"
        with _replaced_if_new(path) as stream:
            write_voxels(scan, stream)
        region = folder / f"{stem}.region.nii.gz"
        if scan.region is None:
            region.unlink(missing_ok=True)
        else:
            with _replaced_if_new(region) as stream:
                write_voxels(scan, stream, scan.region.astype(np.uint8))
        sources.append(
            Source(
                path=path,
                kind="nifti",
                files=(path,),
                patient_id=scan.patient_id,
                study_id=scan.study_id,
                series_id=scan.series_id,
                sequence=scan.sequence,
                region_files=() if scan.region is None else (region,),
                modality=scan.modality,
                frame=index.pseudonym("frame", scan.frame) if scan.frame else "",
            )
        )
    kept = {source.path for source in sources}
    gone = [path for name in seen for path in _of_series(folder, name) if path not in kept]
    if gone:
        with index.writing("remove"):
            names = [str(path) for path in gone]
            together = index.catalog.composites_of(
                index.catalog.cases_of(names)
            )  # what is filed next makes them anew
            index.catalog.remove_sources([*names, *together])
        for path in gone:
            _unlink(path)
    return sources


def unspool(index: CaseIndex, series: str, encoder: Encoder) -> int:
    """Take a series out of the index and its images off the disk; its visit is composed anew.

    Parameters
    ----------
    index : CaseIndex
    series : str
        Pseudonym of its SeriesInstanceUID.
    encoder : Encoder
        That made the index.

    Returns
    -------
    int
        Scans there were.

    Raises
    ------
    WriterBusyError
        If another process writes.
    """
    return take_out(index, _of_series(index.folder / SPOOL, series), encoder)


def settle(index: CaseIndex) -> None:
    """Take up the images of an index folder that was moved or restored (the caller is the writer).

    The catalog names images by their whole paths.
    """
    folder = index.folder / SPOOL
    if not is_own(folder) or not any(_unknown(index, folder).values()):
        return
    moved = {
        path: str(folder / Path(path).name)
        for path in index.catalog.fingerprints()
        if Path(path).parent.name == SPOOL
        and Path(path).parent != folder
        and not Path(path).exists()
        and (folder / Path(path).name).exists()
    }
    if moved:
        index.catalog.rename_sources(moved)


def sweep(index: CaseIndex) -> None:
    """Take images off the disk that the index does not hold (the caller is the writer).

    These are the scans of cases that were removed and of jobs that failed, outlines without a scan, and
    what a process that was killed had begun to write. What has no name of ours is left alone, and so is a
    folder that is a link.
    """
    if not is_own(index.folder / SPOOL):
        return
    unknown = _unknown(index, index.folder / SPOOL)
    # of a folder that was moved and is not settled yet the catalog has other paths
    held = {Path(path).name for path in index.catalog.fingerprints()} if any(unknown.values()) else ()
    for path, image in unknown.items():
        if image not in held:
            path.unlink(missing_ok=True)


def _unknown(index: CaseIndex, folder: Path) -> dict[Path, str]:
    """Files with a name of ours, by the name of their image, that the index does not hold by that path.

    The name is empty for what was being written.
    """
    with os.scandir(folder) as entries:
        own = [match for entry in entries if (match := _OWN.fullmatch(entry.name))]
    images = {match.string: f"{match['stem']}.nii.gz" for match in own}
    held = index.catalog.fingerprints_of({str(folder / image) for image in images.values()})
    return {
        folder / match.string: "" if match["unfinished"] else images[match.string]
        for match in own
        if match["unfinished"] or str(folder / images[match.string]) not in held
    }


def take_out(index: CaseIndex, paths: Sequence[Path], encoder: Encoder) -> int:
    """Take spooled scans out of the index and off the disk; returns how many the index had.

    Raises
    ------
    WriterBusyError
        If another process writes.
    """
    gone = remove_sources(index, [str(path) for path in paths], encoder) if paths else 0
    for path in paths:
        _unlink(path)
    return gone


def is_uid(series_id: str) -> bool:
    """Whether a series' id is a DICOM UID, which no other series in the world has."""
    return _UID.fullmatch(series_id) is not None


def _name(index: CaseIndex, scan: Scan) -> str:
    if is_uid(scan.series_id):
        return index.pseudonym("series", scan.series_id)
    # a file's name is no unique id: two patients' files may have the same
    return index.pseudonym("series", "\0".join((scan.patient_id, scan.study_id, scan.series_id)))


def _of_series(folder: Path, name: str) -> list[Path]:
    scan = re.compile(rf"{re.escape(name)}(-\d+)?\.nii\.gz")
    return sorted(path for path in folder.glob("*.nii.gz") if scan.fullmatch(path.name))


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name(path.name.removesuffix(".nii.gz") + ".region.nii.gz").unlink(missing_ok=True)


@contextmanager
def _replaced_if_new(path: Path) -> Iterator[IO[bytes]]:
    """A gzipped file to write; equal content leaves the old file, and its times, as they are."""
    new = path.with_name(f"{path.name}.new")
    try:
        with (
            needing_room(path),
            os.fdopen(opened(new, os.O_WRONLY | os.O_TRUNC), "wb") as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=1, mtime=0) as stream,
        ):
            yield stream  # type: ignore[misc]
        if not path.exists() or sha256(new) != sha256(path):
            with written_whole(path) as aside:
                new.replace(aside)
    finally:
        new.unlink(missing_ok=True)
