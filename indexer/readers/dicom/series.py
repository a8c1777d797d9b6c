"""Finding series: DICOM files grouped by what their headers say, whatever their folder, name and order."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from indexer.errors import ReadError
from indexer.readers.dicom.headers import EXPORT, Header, begins_like_dicom, guarded, parse
from indexer.readers.dicom.planes import Plane
from indexer.readers.quiet import quiet
from indexer.readers.source import Source

KEPT = 25_000
"""Headers of frames that a discovery keeps for the reader, some 4 kB each; others are parsed again."""


class Objects(NamedTuple):
    """What DICOM files hold.

    Attributes
    ----------
    images : list of Source
        Series of images, sorted by path; files in the order of their instance numbers.
    others : list of Source
        Objects that are no images of a patient: reports, segmentations, presentation states, captures of a
        screen. `Source.object` says which. They cannot be read.
    failures : list of ReadError
        One for each file whose header cannot be read.
    """

    images: list[Source]
    others: list[Source]
    failures: list[ReadError]


def is_dicom(path: Path) -> bool:
    """Whether a file is called ``.dcm`` or begins like DICOM, whatever its name.

    DICOM begins with ``DICM`` after the preamble or, where the preamble was stripped, with an element of
    group 0002 or 0008.

    Raises
    ------
    OSError
        If the file cannot be opened.
    """
    if path.suffix.lower() == ".dcm":
        return True
    with path.open("rb") as stream:
        return begins_like_dicom(stream.read(132))


def series(files: Sequence[Path], root: Path) -> tuple[list[Source], list[ReadError]]:
    """The images among :func:`objects`, and the failures."""
    found = objects(files, root)
    return found.images, found.failures


@quiet()
def objects(files: Sequence[Path], root: Path) -> Objects:
    """Group DICOM files by SeriesInstanceUID, whatever their folder, name and order. Reads no pixels.

    Some scanners give every slice a series of its own. So series of one image that lie parallel in one
    study, with one number of series and of one size, are one series.

    The path of a series is what a user would call it: the file, if it is a single one; else the deepest
    folder that holds all its files, if no other series has files in or below that folder; else
    ``series-`` and the first 8 hexadecimal digits of the SHA-256 of its SeriesInstanceUID, below that
    folder.

    Parameters
    ----------
    files : sequence of Path
        Files at or below `root`.
    root : Path
        Where the discovery began.
    """
    groups: defaultdict[tuple[bool, str], list[tuple[int, Path, Header]]] = defaultdict(list)
    failures = []
    for file in files:
        try:
            header = parse(file)
            with guarded(file, "its DICOM header is damaged", EXPORT):
                uid = header.elements.text("SeriesInstanceUID")
                if header.is_image and not uid:
                    raise ReadError(file, "its header names no series, or ends before it does", EXPORT)
                number = header.elements.text("InstanceNumber")
                order = int(number) if number.lstrip("+-").isdecimal() else 0
                groups[header.is_image, uid].append((order, file, header))
        except ReadError as failure:
            failures.append(failure)
    for members in groups.values():
        members.sort(key=lambda member: member[:2])
    images = {uid: members for (is_image, uid), members in groups.items() if is_image}
    others = {uid: members for (is_image, uid), members in groups.items() if not is_image}
    left = KEPT
    sources = []
    for uid, path, members in _named(_joined(images), root):
        left -= sum(max(len(header.frames), 1) for *_, header in members)
        sources.append(_source(uid, path, members, keep=left >= 0))
    rest = [_source(uid, path, members, keep=False) for uid, path, members in _named(others, root)]
    for found in (sources, rest):
        found.sort(key=lambda source: source.path)
    return Objects(sources, rest, failures)


_NOBODY = re.compile(
    r"|anon|anonym\w*|unknown|none|null|n/?a|de-?id\w*|removed|redacted|masked|no[ _-]?(?:id|name)|"
    r"patient[ _-]?(?:id)?|x{3,}",
    re.IGNORECASE,
)
"""What PatientID says where it was emptied: the same of all people, so that each study is one of its own."""


_Members = list[tuple[int, Path, Header]]


def _source(uid: str, path: Path, members: _Members, keep: bool) -> Source:
    first = members[0][2]
    elements = first.elements
    study = elements.text("StudyInstanceUID")
    sequence = None
    with suppress(ReadError):  # what is wrong with a header is said when it is read
        sequence = Plane(first, 0).sequence
    return Source(
        path,
        "dicom",
        tuple(file for _, file, _ in members),
        study if _NOBODY.fullmatch(elements.text("PatientID").strip()) else elements.text("PatientID"),
        study,
        series_id=uid,
        sequence=sequence,
        modality=elements.text("Modality") or None,
        object=str(first.sop_class.name),
        image_type=elements.texts("ImageType"),
        parsed=tuple(header for *_, header in members) if keep else (),
    )


def _named(groups: dict[str, _Members], root: Path) -> Iterator[tuple[str, Path, _Members]]:
    """Groups with the paths that they are called by."""
    parents = {uid: {file.parent for _, file, _ in members} for uid, members in groups.items()}
    holds = Counter(
        folder for each in parents.values() for folder in {f for p in each for f in _folders(p, root)}
    )
    for uid, members in groups.items():
        home = Path(os.path.commonpath(parents[uid]))
        if len(members) == 1:
            path = members[0][1]
        elif holds[home] == 1:
            path = home
        else:
            path = home / f"series-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"
        yield uid, path, members


def _folders(folder: Path, root: Path) -> Iterator[Path]:
    """A folder and those above it, up to `root`."""
    yield folder
    if folder != root and folder.is_relative_to(root):
        yield from _folders(folder.parent, root)


def _joined(groups: dict[str, _Members]) -> dict[str, _Members]:
    """The groups, with slices that have a series each brought together under the first one's UID."""
    single: defaultdict[Hashable, list[str]] = defaultdict(list)
    for uid, members in groups.items():
        if len(members) == 1 and (key := _stack_of(members[0][2])) is not None:
            single[key].append(uid)
    joined = dict(groups)
    for uids in single.values():
        members = sorted((member for uid in uids for member in groups[uid]), key=lambda member: member[:2])
        if len(uids) > 1 and _are_slices([header for *_, header in members]):
            first = next(uid for uid in uids if groups[uid][0] is members[0])
            for uid in uids:
                del joined[uid]
            joined[first] = members
    return joined


def _stack_of(header: Header) -> Hashable:
    """What slices of one volume have in common; None for what is no single slice."""
    plane = Plane(header, 0)
    try:
        geometry = plane.geometry
        if geometry is None or plane.header.elements.count("NumberOfFrames", 1) != 1:
            return None
        turned = tuple(np.round(geometry.orientation, 2).ravel() + 0.0)
        keys = ("StudyInstanceUID", "SeriesNumber", "Modality", "PatientID", "FrameOfReferenceUID")
        return (*map(plane.text, keys), plane.shape, plane.echo, plane.component, turned)
    except ReadError:
        return None


def _are_slices(headers: Sequence[Header]) -> bool:
    """Whether images have different instance numbers and lie at several places along their normal."""
    planes = [Plane(header, 0) for header in headers]
    if len({plane.text("InstanceNumber") for plane in planes}) < len(planes):
        return False
    geometries = [geometry for plane in planes if (geometry := plane.geometry) is not None]
    distances = np.array([g.position for g in geometries]) @ np.cross(*geometries[0].orientation)
    return bool(np.ptp(distances) > 0.01)
