"""Reading series: headers, then geometry, then pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from indexer.errors import ReadError
from indexer.readers.dicom.headers import EXPORT, Header, guarded, parse
from indexer.readers.dicom.pixels import frames, intensities
from indexer.readers.dicom.planes import Plane, planes_of
from indexer.readers.dicom.volumes import Incomplete, volumes
from indexer.readers.limits import MAX_VOXELS, refuse_values
from indexer.readers.quiet import quiet
from indexer.readers.source import Source
from indexer.scan import Scan, stacked

SECTIONAL = {"MR", "CT", "PT"}
"""Modalities whose images are planes in the patient: without a position they are not read."""


@quiet()
def read(source: Source) -> list[Scan]:
    """The volumes of a series; of images without a place in the patient (X-ray, ultrasound) its pictures.

    Several echoes, time points, diffusion weightings or acquisitions in one series become a scan each
    where they cover the same places and a tag, or the order of their instance numbers, tells them apart;
    otherwise the series is refused. Of many volumes the first is taken (see `limits.MAX_VOLUMES`). A last
    volume that was interrupted is left out; a note says so (:func:`indexer.watch.say`).

    A series is also refused if its headers announce more images than are there:
    NumberOfSeriesRelatedInstances, InConcatenationTotalNumber, for PET NumberOfSlices, and
    ImagesInAcquisition, which is copied into derived images and therefore believed only in original ones.
    Instance numbers that do not begin at 1 or have holes are accepted: scanners go on counting from one
    series to the next, and exports renumber. That every second slice is missing is told by
    SpacingBetweenSlices or, in 3-D acquisitions, whose slices have no gaps, by SliceThickness.

    Parameters
    ----------
    source : Source
        As found by :func:`indexer.readers.dicom.series.series`.

    Returns
    -------
    list of Scan
        Voxels are float32 after the modality transform: HU for CT. Colour becomes luminance. A single
        plane is one slice of its SliceThickness, or a picture where that is unknown.

    Raises
    ------
    ReadError
        If anything is missing, damaged, contradictory or too large.
    """
    planes: list[Plane] = []
    voxels = 0
    for header in _instances(source):
        with guarded(header.file, "its DICOM header is damaged", EXPORT):
            found = planes_of(header)
            planes += found
            voxels += len(found) * found[0].shape[0] * found[0].shape[1]
        if voxels > MAX_VOXELS:
            raise ReadError(source.path, f"declares more voxels than the limit of {MAX_VOXELS:,}", "split it")
    with guarded(source.path, "its DICOM headers are damaged", EXPORT):
        planes.sort(key=lambda plane: (plane.number("InstanceNumber") or 0, plane.file, plane.frame))
        _refuse_mixed(source.path, planes)
        incomplete = _incomplete(planes)
        placed = [plane.geometry is not None for plane in planes]
        if all(placed) and (len(planes) > 1 or planes[0].number("SliceThickness")):
            return _volumes(source, planes, incomplete)
        if incomplete:
            raise incomplete.error(source.path)
        if len(planes) > 1 and any(placed):
            raise ReadError(source.path, "only some of its images say where in the patient they lie", EXPORT)
        if not any(placed) and planes[0].text("Modality") in SECTIONAL:
            raise ReadError(
                source.path, "its headers lack position, orientation or pixel spacing of the images", EXPORT
            )
        return _pictures(source, planes)


def _instances(source: Source) -> Iterator[Header]:
    """The headers of a series, parsed at discovery or now. A file that repeats another one is passed over."""
    seen: dict[str, Header] = {}
    size = 0
    for number, file in enumerate(source.files):
        header = source.parsed[number].at(file) if source.parsed else parse(file)
        if (size := size + header.stamp[0]) > 4 * MAX_VOXELS:
            raise ReadError(source.path, f"its files hold more than {4 * MAX_VOXELS:,} bytes", "split it")
        first = seen.setdefault(header.elements.text("SOPInstanceUID") or str(file), header)
        if first is header:
            yield header
        elif not _same(first, header):
            raise ReadError(
                file, "has the SOPInstanceUID of another file but other content", "keep one of them"
            )


def _same(one: Header, other: Header) -> bool:
    """Whether two files hold the same image."""
    told = [(h.values, h.frames, h.shared, h.words, h.pixels and h.pixels.keyword) for h in (one, other)]
    if told[0] != told[1] or one.pixels is None or other.pixels is None:
        return False
    return one.file.read_bytes()[one.pixels.start :] == other.file.read_bytes()[other.pixels.start :]


def _refuse_mixed(where: Path, planes: list[Plane]) -> None:
    for keyword, what in (("PatientID", "patients"), ("StudyInstanceUID", "studies")):
        if len({plane.text(keyword) for plane in planes}) > 1:
            raise ReadError(where, f"one series holds images of several {what}", "separate them")


def _incomplete(planes: list[Plane]) -> Incomplete | None:
    """What is wrong with a series whose headers agree on more images than there are."""
    files = {plane.file: plane for plane in planes}.values()
    claims = [("NumberOfSeriesRelatedInstances", len(files))]
    if all("DERIVED" not in plane.texts("ImageType") for plane in files):
        claims.append(("ImagesInAcquisition", len(planes)))
    if planes[0].text("Modality") == "PT":
        claims.append(("NumberOfSlices", len(planes)))
    if len({plane.text("ConcatenationUID") for plane in files}) == 1:
        claims.append(("InConcatenationTotalNumber", len(files)))
    for keyword, found in claims:
        announced = {plane.number(keyword) for plane in files}
        if len(announced) == 1 and (count := int(announced.pop() or 0)) > found:
            return Incomplete(found, count)
    return None


def _volumes(source: Source, planes: list[Plane], incomplete: Incomplete | None) -> list[Scan]:
    ordered = volumes(source.path, planes, incomplete)
    arrays = [np.empty((len(volume.planes), *volume.planes[0].shape), np.float32) for volume in ordered]
    targets: dict[Path, dict[int, tuple[Plane, NDArray[np.float32]]]] = {}
    for volume, array in zip(ordered, arrays, strict=True):
        for plane, target in zip(volume.planes, array, strict=True):
            targets.setdefault(plane.file, {})[plane.frame] = plane, target
    for wanted in targets.values():
        header = next(iter(wanted.values()))[0].header
        for number, pixels in frames(header, wanted):
            plane, target = wanted[number]
            target[...] = intensities(pixels, plane)
    scans = []
    for volume, array in zip(ordered, arrays, strict=True):
        voxels = array.transpose(2, 1, 0)
        turn = io_orientation(volume.affine)  # type: ignore[no-untyped-call]
        affine = volume.affine @ inv_ornt_aff(turn, voxels.shape)  # type: ignore[no-untyped-call]
        x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        voxels = apply_orientation(voxels, turn)  # type: ignore[no-untyped-call]
        scans.append(_scan(source, volume.planes[0], voxels, (x, y, z), affine))
    return scans


def _pictures(source: Source, planes: list[Plane]) -> list[Scan]:
    """Each file as it is displayed, its frames as slices."""
    members: dict[Path, list[Plane]] = {}
    for plane in planes:
        members.setdefault(plane.file, []).append(plane)
    scans = []
    for each in members.values():
        array = np.empty((len(each), *each[0].shape), dtype=np.float32)
        for number, pixels in frames(each[0].header):
            array[number] = intensities(pixels, each[number])
        scans.append(_scan(source, each[0], stacked(array)))
    return scans


def _scan(
    source: Source,
    plane: Plane,
    voxels: NDArray[Any],
    spacing: tuple[float, float, float] | None = None,
    affine: NDArray[np.float64] | None = None,
) -> Scan:
    refuse_values(source.path, voxels)
    return Scan(
        voxels,
        source.path,
        spacing,
        affine,
        sequence=plane.sequence,
        modality=plane.text("Modality") or None,
        patient_id=source.patient_id,
        study_id=source.study_id,
        series_id=source.series_id,
        frame=plane.text("FrameOfReferenceUID"),
    )
