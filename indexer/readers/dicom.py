"""DICOM series: found by their headers, brought together as volumes in RAS+, or refused with the reason.

A volume is built only where the headers prove it: every plane of one orientation, on one grid with even
gaps, no place held twice, no slice missing that the headers tell of. Only the tags listed here are ever
read; names, birth dates and the like stay in the file. Descriptions are looked at for the sequence and
then dropped.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import struct
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from highdicom.spatial import get_volume_positions
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_partial
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.tag import BaseTag, Tag

from indexer.errors import CbirError, ReadError
from indexer.readers import watch
from indexer.readers.limits import MAX_VOXELS, refuse_ratio, refuse_size, refuse_values
from indexer.readers.source import Source
from indexer.scan import Scan, stacked

# pydicom's warnings and log quote header values, which must not reach a terminal or a log file.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")

EXPORT = "export the whole series again"
SORT = "keep one acquisition in a series, or convert it to NIfTI with a tool made for its vendor"

GAP_TOLERANCE = 0.05
"""Gaps between slices may differ from their mean by this share of it (positions are rounded in headers)."""

SECTIONAL = {"MR", "CT", "PT"}
"""Modalities whose images are planes in the patient: without a position they are not read."""


def _tags(keywords: str) -> list[BaseTag | int]:
    return [Tag(keyword) for keyword in keywords.split()]


_SERIES_TAGS = _tags("SOPClassUID PatientID StudyInstanceUID SeriesInstanceUID InstanceNumber")
_IMAGE_TAGS = _tags(
    """
    ImageType SOPClassUID SOPInstanceUID Modality SeriesDescription PatientID ContrastBolusAgent
    ContrastBolusAgentSequence ScanningSequence MRAcquisitionType SliceThickness RepetitionTime EchoTime
    InversionTime EchoNumbers SpacingBetweenSlices ProtocolName TriggerTime FlipAngle DiffusionBValue
    EchoPulseSequence DiffusionGradientOrientation StudyInstanceUID SeriesInstanceUID AcquisitionNumber
    InstanceNumber ImagePositionPatient ImageOrientationPatient FrameOfReferenceUID
    TemporalPositionIdentifier ConcatenationUID InConcatenationTotalNumber ImagesInAcquisition
    NumberOfSeriesRelatedInstances NumberOfSlices SamplesPerPixel PhotometricInterpretation
    PlanarConfiguration NumberOfFrames Rows Columns PixelSpacing BitsAllocated BitsStored HighBit
    PixelRepresentation RescaleIntercept RescaleSlope ModalityLUTSequence
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor
    BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData
    BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData
    SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
    ExtendedOffsetTable ExtendedOffsetTableLengths PixelData
    """
)

# What tells images at the same place apart, where the kind of image does not.
_REPEATS = (
    ("TemporalPositionIndex", "TemporalPositionIdentifier"),
    ("EffectiveEchoTime", "EchoTime"),
    ("InversionTimes", "InversionTime"),
    ("FlipAngle",),
    ("NominalCardiacTriggerDelayTime", "TriggerTime"),
    ("DiffusionGradientOrientation",),
    ("FrameAcquisitionNumber", "AcquisitionNumber"),
)

_DEFLATED = pydicom.uid.DeflatedExplicitVRLittleEndian
_UNWRAPPED = {
    (True, True): pydicom.uid.ImplicitVRLittleEndian,
    (False, True): pydicom.uid.ExplicitVRLittleEndian,
    (False, False): pydicom.uid.ExplicitVRBigEndian,
}
"""Transfer syntax of a file without file meta information, by implicit VR and little endian."""
_DEFLATE_RATIO = 1032  # the most that DEFLATE can shrink
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes run to the patient's Left, Posterior, Superior


# --- finding series -----------------------------------------------------------------------------------


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
        return _begins_like_dicom(stream.read(132))


def series(files: Sequence[Path], root: Path) -> tuple[list[Source], list[ReadError]]:
    """Group DICOM files by SeriesInstanceUID, whatever their folder, name and order. Reads no pixels.

    Files that are DICOM but no image of a patient (reports, segmentations, presentation states, secondary
    captures, ``DICOMDIR``) are in neither list.

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

    Returns
    -------
    sources : list of Source
        Sorted by path; files in the order of their instance numbers.
    failures : list of ReadError
        One for each file whose header cannot be read.
    """
    groups: defaultdict[str, list[tuple[int, Path]]] = defaultdict(list)
    ids: dict[str, tuple[str, str]] = {}
    failures = []
    for file in files:
        try:
            with _guarded(file, "its DICOM header is damaged", EXPORT):
                header = _header(file, _SERIES_TAGS, last=_SERIES_TAGS[-1])
                kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
                if kind and not _is_image(kind):
                    continue
                uid, study = (_text(header, name) for name in ("SeriesInstanceUID", "StudyInstanceUID"))
                if not uid:
                    raise ReadError(file, "its header names no series, or ends before it does", EXPORT)
                number = _text(header, "InstanceNumber")
                patient = _text(header, "PatientID") or study  # before it counts as one of its series
                groups[uid].append((int(number) if number.lstrip("+-").isdecimal() else 0, file))
                ids.setdefault(uid, (patient, study))
        except ReadError as failure:
            failures.append(failure)

    holds = Counter(
        folder
        for members in groups.values()
        for folder in {f for parent in {file.parent for _, file in members} for f in _folders(parent, root)}
    )
    sources = []
    for uid, members in groups.items():
        paths = tuple(file for _, file in sorted(members))
        home = Path(os.path.commonpath([file.parent for file in paths]))
        if len(paths) == 1:
            path = paths[0]
        elif holds[home] == 1:
            path = home
        else:
            path = home / f"series-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"
        source = Source(path, "dicom", paths, *ids[uid], series_id=uid)
        with suppress(ReadError):  # what is wrong with it is said when it is read
            source = _described(source)
        sources.append(source)
    return sorted(sources, key=lambda source: source.path), failures


def _described(source: Source) -> Source:
    """The source with what its first image says of the kind of image it is."""
    file = source.files[0]
    with _guarded(file, "its DICOM header is damaged", EXPORT):
        header = _header(file, [tag for tag in _IMAGE_TAGS if tag != _IMAGE_TAGS[-1]], last=_IMAGE_TAGS[-2])
        shared = _flat((header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
        own = _flat((header.get("PerFrameFunctionalGroupsSequence") or [Dataset()])[0])
        kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
        image_type = header.get("ImageType") or ()
        return replace(
            source,
            sequence=_sequence(_Plane(file, header, 0, own, shared)),
            modality=_text(header, "Modality") or None,
            object=str(kind.name) if kind else "",
            image_type=tuple(image_type) if isinstance(image_type, MultiValue) else (str(image_type),),
        )


def _folders(folder: Path, root: Path) -> Iterator[Path]:
    """A folder and those above it, up to `root`."""
    yield folder
    if folder != root and folder.is_relative_to(root):
        yield from _folders(folder.parent, root)


def _begins_like_dicom(head: bytes) -> bool:
    if head[128:132] == b"DICM":
        return True
    if len(head) < 12:
        return False
    group, element, vr, short, long = struct.unpack_from("<HH2sH", head) + struct.unpack_from("<I", head, 4)
    if group not in (0x0002, 0x0008) or element > 0x0070:
        return False
    explicit = vr in (b"UI", b"UL", b"CS", b"DA", b"TM", b"LO", b"SH", b"OB") and short <= 64
    return bool(explicit or long <= 64)


def _header(file: Path, tags: list[BaseTag | int], last: BaseTag | int | None = None) -> FileDataset:
    """The listed elements of a file up to the `last`, the others skipped."""
    stop = None if last is None else lambda tag, vr, length: tag > last
    with file.open("rb") as stream:
        head = stream.read(1024)
        if not _begins_like_dicom(head):
            raise ReadError(file, "is not DICOM", "rename or remove it")
        if _DEFLATED.encode() in head and file.stat().st_size > MAX_VOXELS // _DEFLATE_RATIO:
            raise ReadError(file, "is deflated and might be too large in memory", "store it uncompressed")
        stream.seek(0)
        return read_partial(stream, stop, force=True, specific_tags=tags)


def _is_image(sop_class: pydicom.uid.UID) -> bool:
    name = str(sop_class.name)
    return "Image Storage" in name and "Secondary Capture" not in name and "Microscop" not in name


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()


@contextmanager
def _guarded(where: Path, reason: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever damaged bytes raise into one line, without the message: it may quote a header."""
    try:
        watch.at(where)
        yield
    except CbirError:
        raise
    except OSError as error:
        raise ReadError(where, f"cannot be read ({error.strerror or type(error).__name__})") from None
    except Exception as error:
        raise ReadError(where, f"{reason} ({type(error).__name__})", remedy) from None


# --- planes -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Plane:
    """One frame of one file, with what the header says of this frame, of all frames, and of the file."""

    file: Path
    dataset: FileDataset
    frame: int
    own: Mapping[str, Any]
    shared: Mapping[str, Any]

    def get(self, *keywords: str) -> Any:
        """The first of the elements that is there and not empty, else None."""
        for keyword in keywords:
            for described in (self.own, self.shared, self.dataset):
                value = described.get(keyword)
                if value is not None and value != "" and value != []:
                    return value
        return None

    def text(self, keyword: str) -> str:
        return str(self.get(keyword) or "").strip()

    def number(self, *keywords: str) -> float | None:
        value = self.get(*keywords)
        value = value[0] if isinstance(value, MultiValue) else value
        return None if value is None or not np.isfinite(float(value)) else float(value)

    def vector(self, keyword: str, size: int) -> NDArray[np.float64] | None:
        value = self.get(keyword)
        array = np.array(() if value is None else value, dtype=np.float64)
        return array if array.shape == (size,) and np.isfinite(array).all() else None

    @cached_property
    def geometry(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
        """Position (3), orientation (2 × 3) and spacing (of rows, of columns) in mm, if all are there."""
        position = self.vector("ImagePositionPatient", 3)
        orientation = self.vector("ImageOrientationPatient", 6)
        spacing = self.vector("PixelSpacing", 2)
        if position is None or orientation is None or spacing is None or spacing.min() <= 0:
            return None
        return position, orientation.reshape(2, 3), spacing

    @property
    def kind(self) -> tuple[str, ...]:
        """What the image type says beyond original or derived, primary or secondary."""
        value = self.get("FrameType", "ImageType")
        return tuple(value[2:]) if isinstance(value, MultiValue) else ()


def _planes(dataset: FileDataset) -> list[_Plane]:
    """The frames of a file, after its declared size has been checked."""
    file = _file(dataset)
    frames = int(dataset.get("NumberOfFrames") or 1)
    refuse_size(file, (int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0), frames))
    if "PixelData" not in dataset:
        raise ReadError(file, "has no pixel data, or ends before it", EXPORT)
    _refuse_frames(file, dataset, frames)
    if "MOSAIC" in (dataset.get("ImageType") or ()):
        raise ReadError(file, "holds a volume as a mosaic of tiles", "convert it to NIfTI")
    own = dataset.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * frames
    if len(own) != frames:
        raise ReadError(file, f"declares {frames} frames and describes {len(own)}", EXPORT)
    shared = _flat((dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
    return [_Plane(file, dataset, i, _flat(groups), shared) for i, groups in enumerate(own)]


def _refuse_frames(file: Path, dataset: FileDataset, frames: int) -> None:
    """Refuse more frames than there are bytes for, before something is made for each."""
    there, syntax = len(dataset.PixelData), dataset.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_encapsulated:
        least = 8 * frames  # the tag and the length of an item
    else:
        bits = int(dataset.get("BitsAllocated") or 1) * int(dataset.get("SamplesPerPixel") or 1)
        least = frames * dataset.Rows * dataset.Columns * bits // 8 // 2  # half, where colour is subsampled
    if least > there:
        raise ReadError(file, f"declares {frames:,} frames; its pixel data has {there:,} bytes", EXPORT)


def _file(dataset: FileDataset) -> Path:
    return Path(str(dataset.filename))


def _flat(groups: Dataset) -> dict[str, Any]:
    """The elements of nested functional groups by keyword; an outer one before an inner one."""
    flat: dict[str, Any] = {}
    inner = []
    for element in groups:
        if element.VR == "SQ":
            inner += element.value[:1]
        elif element.keyword:
            flat[element.keyword] = element.value
    for item in inner:
        flat = _flat(item) | flat
    return flat


# --- reading ------------------------------------------------------------------------------------------


def read(source: Source) -> list[Scan]:
    """The volumes of a series; of images without a place in the patient (X-ray, ultrasound) its pictures.

    Several echoes, time points, diffusion weightings or acquisitions in one series become a scan each
    where they cover the same places and a tag tells them apart; otherwise the series is refused.

    A series is also refused if its headers announce more images than are there:
    NumberOfSeriesRelatedInstances, InConcatenationTotalNumber, for PET NumberOfSlices, and
    ImagesInAcquisition, which is copied into derived images and therefore believed only in original ones.
    Instance numbers that do not begin at 1 or have holes are accepted: scanners go on counting from one
    series to the next, and exports renumber. That every second slice is missing is told by
    SpacingBetweenSlices or, in 3-D acquisitions, whose slices have no gaps, by SliceThickness.

    Parameters
    ----------
    source : Source
        As found by :func:`series`.

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
    with _guarded(source.path, "cannot be read"):
        if sum(file.stat().st_size for file in source.files) > 4 * MAX_VOXELS:
            raise ReadError(source.path, f"its files hold more than {4 * MAX_VOXELS:,} bytes", "split it")
    planes: list[_Plane] = []
    voxels = 0
    for dataset in _instances(source):
        with _guarded(_file(dataset), "its DICOM header is damaged", EXPORT):
            found = _planes(dataset)
        planes += found
        voxels += len(found) * dataset.Rows * dataset.Columns
        if voxels > MAX_VOXELS:
            raise ReadError(source.path, f"declares more voxels than the limit of {MAX_VOXELS:,}", "split it")
    with _guarded(source.path, "its DICOM headers are damaged", EXPORT):
        planes.sort(key=lambda plane: (plane.number("InstanceNumber") or 0, plane.file, plane.frame))
        _refuse_mixed(source.path, planes)
        _refuse_incomplete(source.path, planes)
        placed = [plane.geometry is not None for plane in planes]
        if all(placed) and (len(planes) > 1 or planes[0].number("SliceThickness")):
            return _volumes(source, planes)
        if len(planes) > 1 and any(placed):
            raise ReadError(source.path, "only some of its images say where in the patient they lie", EXPORT)
        if not any(placed) and planes[0].text("Modality") in SECTIONAL:
            raise ReadError(
                source.path, "its headers lack position, orientation or pixel spacing of the images", EXPORT
            )
        return _pictures(source, planes)


def _instances(source: Source) -> Iterator[FileDataset]:
    """The datasets of a series. A file that repeats another one is passed over."""
    seen: dict[str, FileDataset] = {}
    for file in source.files:
        with _guarded(file, "its DICOM header is damaged", EXPORT):
            dataset = _header(file, _IMAGE_TAGS)
            if "TransferSyntaxUID" not in dataset.file_meta:
                implicit, little = dataset.original_encoding
                dataset.file_meta.TransferSyntaxUID = _UNWRAPPED[bool(implicit), bool(little)]
            uid = _text(dataset, "SOPInstanceUID") or str(file)
            first = seen.setdefault(uid, dataset)
            if first != dataset:
                raise ReadError(
                    file, "has the SOPInstanceUID of another file but other content", "keep one of them"
                )
        if first is dataset:
            yield dataset


def _refuse_mixed(where: Path, planes: list[_Plane]) -> None:
    for keyword, what in (("PatientID", "patients"), ("StudyInstanceUID", "studies")):
        if len({plane.text(keyword) for plane in planes}) > 1:
            raise ReadError(where, f"one series holds images of several {what}", "separate them")


def _refuse_incomplete(where: Path, planes: list[_Plane]) -> None:
    """Refuse a series whose headers agree on more images than there are."""
    files = {plane.file: plane for plane in planes}.values()
    claims = [("NumberOfSeriesRelatedInstances", len(files))]
    if all("DERIVED" not in plane.text("ImageType") for plane in files):
        claims.append(("ImagesInAcquisition", len(planes)))
    if planes[0].text("Modality") == "PT":
        claims.append(("NumberOfSlices", len(planes)))
    if len({plane.text("ConcatenationUID") for plane in files}) == 1:
        claims.append(("InConcatenationTotalNumber", len(files)))
    for keyword, found in claims:
        announced = {plane.number(keyword) for plane in files}
        if len(announced) == 1 and (count := announced.pop() or 0) > found:
            raise ReadError(
                where, f"holds {found} of the {count:.0f} images that its headers announce", EXPORT
            )


def _volumes(source: Source, planes: list[_Plane]) -> list[Scan]:
    ordered = [_ordered(source.path, group) for group in _groups(source.path, planes)]
    shapes = [(len(group), group[0].dataset.Rows, group[0].dataset.Columns) for group, _ in ordered]
    arrays = [np.empty(shape, dtype=np.float32) for shape in shapes]
    targets = {
        (plane.file, plane.frame): (plane, target)
        for (group, _), array in zip(ordered, arrays, strict=True)
        for plane, target in zip(group, array, strict=True)
    }
    for dataset in {plane.file: plane.dataset for plane in planes}.values():
        for frame, pixels in enumerate(_frames(dataset)):
            plane, target = targets[_file(dataset), frame]
            target[...] = _intensities(pixels, plane)
    scans = []
    for (group, affine), array in zip(ordered, arrays, strict=True):
        volume = array.transpose(2, 1, 0)
        turn = io_orientation(affine)  # type: ignore[no-untyped-call]
        affine = affine @ inv_ornt_aff(turn, volume.shape)  # type: ignore[no-untyped-call]
        x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        voxels = apply_orientation(volume, turn)  # type: ignore[no-untyped-call]
        scans.append(_scan(source, group[0], voxels, (x, y, z), affine))
    return scans


def _pictures(source: Source, planes: list[_Plane]) -> list[Scan]:
    """Each file as it is displayed, its frames as slices."""
    scans = []
    for members in _parted(planes, lambda plane: plane.file):
        dataset = members[0].dataset
        array = np.empty((len(members), dataset.Rows, dataset.Columns), dtype=np.float32)
        for plane, target, pixels in zip(members, array, _frames(dataset), strict=True):
            target[...] = _intensities(pixels, plane)
        scans.append(_scan(source, members[0], stacked(array)))
    return scans


def _scan(
    source: Source,
    plane: _Plane,
    voxels: NDArray[np.float32],
    spacing: tuple[float, float, float] | None = None,
    affine: NDArray[np.float64] | None = None,
) -> Scan:
    refuse_values(source.path, voxels)
    return Scan(
        voxels,
        source.path,
        spacing,
        affine,
        sequence=_sequence(plane),
        modality=plane.text("Modality") or None,
        patient_id=source.patient_id,
        study_id=source.study_id,
        series_id=source.series_id,
    )


# --- geometry -----------------------------------------------------------------------------------------


def _groups(where: Path, planes: list[_Plane]) -> list[list[_Plane]]:
    """The planes of each volume: of one kind of image, and no place held twice."""
    _, orientation, _ = _geometry(planes[0])
    if not np.allclose(orientation @ orientation.T, np.eye(2), atol=1e-3):
        raise ReadError(where, "its image orientation is not two perpendicular directions", EXPORT)
    if any(not np.allclose(_geometry(plane)[1], orientation, atol=1e-3) for plane in planes):
        raise ReadError(where, "its images have several orientations (is a localizer among them?)", SORT)
    kinds = _parted(planes, lambda p: (p.kind, str(p.get("EchoNumbers")), str(p.get("DiffusionBValue"))))
    normal = np.cross(*orientation)

    def place(plane: _Plane) -> float:
        return round(float(_geometry(plane)[0] @ normal), 2)

    return [group for kind in kinds for group in _separated(where, kind, place)]


def _separated(where: Path, planes: list[_Plane], place: Callable[[_Plane], float]) -> list[list[_Plane]]:
    """Split planes that share places by the tags that tell them apart, where each part covers all places."""
    places = Counter(map(place, planes))
    if max(places.values()) == 1:
        return [planes]
    for keywords in _REPEATS:
        parts = _parted(planes, lambda plane, keywords=keywords: str(plane.get(*keywords)))  # type: ignore[misc]
        if len(parts) > 1 and all(set(map(place, part)) == set(places) for part in parts):
            return [group for part in parts for group in _separated(where, part, place)]
    extra = len(planes) - len(places)
    raise ReadError(
        where, f"{extra} of its images lie where another one lies, and no tag tells them apart", SORT
    )


def _ordered(where: Path, planes: list[_Plane]) -> tuple[list[_Plane], NDArray[np.float64]]:
    """The planes of one volume in order, and the affine of (column, row, plane) to RAS+ millimetres.

    highdicom judges whether the gaps are even. No voxel may lie more than half a pixel off the grid.
    """
    first = planes[0]
    origin, orientation, spacing = _geometry(first)
    for plane in planes:
        if plane.dataset.Rows != first.dataset.Rows or plane.dataset.Columns != first.dataset.Columns:
            raise ReadError(where, "its images differ in size", SORT)
        if not np.allclose(_geometry(plane)[2], spacing, rtol=1e-3):
            raise ReadError(where, "its images differ in pixel spacing", SORT)
        if plane.text("FrameOfReferenceUID") != first.text("FrameOfReferenceUID"):
            raise ReadError(where, "its images have several frames of reference", SORT)
    echoes = [plane.number("EffectiveEchoTime", "EchoTime") or 0 for plane in planes]
    if max(echoes) > 1.1 * min(echoes):
        raise ReadError(where, "its images have several echo times", SORT)

    thickness = abs(first.number("SliceThickness") or 0)
    declared = abs(first.number("SpacingBetweenSlices") or 0)
    normal = np.cross(*orientation)
    if len(planes) == 1:
        if not (gap := thickness or declared):
            raise ReadError(where, "one image on its own, without slice thickness", EXPORT)
    else:
        positions = np.array([_geometry(plane)[0] for plane in planes])
        even, places = get_volume_positions(
            positions.tolist(), orientation.ravel().tolist(), rtol=GAP_TOLERANCE, perpendicular_tol=0.1
        )
        if even is None or places is None:
            raise ReadError(where, _unevenness(positions @ normal), SORT)
        gap = even
        order = np.argsort(places)
        planes = [planes[i] for i in order]
        positions = positions[order]
        origin = positions[0]
        normal = normal * np.sign((positions[-1] - origin) @ normal)
        grid = origin + np.arange(len(planes))[:, None] * gap * normal
        if np.linalg.norm(positions - grid, axis=1).max() > spacing.min() / 2:
            raise ReadError(
                where, "its slices are not stacked at right angles (tilted gantry)", "resample it"
            )
        _refuse_gaps(where, gap, thickness, declared, first.text("MRAcquisitionType") == "3D")
    affine = np.eye(4)
    affine[:3] = np.column_stack(
        [orientation[0] * spacing[1], orientation[1] * spacing[0], normal * gap, origin]
    )
    return planes, _TO_RAS @ affine


def _geometry(plane: _Plane) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    assert plane.geometry is not None  # read() takes no others for volumes
    return plane.geometry


def _unevenness(distances: NDArray[np.float64]) -> str:
    """Why slices at these distances along their normal are no volume."""
    gaps = np.diff(np.sort(distances))
    if gaps.max() > (1 + GAP_TOLERANCE) * gaps.min():
        gap = f"{gaps.min():.2f} to {gaps.max():.2f} mm"
        return f"its slices lie {gap} apart (is one missing, or are stacks mixed?)"
    return "its slices are not stacked at right angles (tilted gantry)"


def _refuse_gaps(where: Path, gap: float, thickness: float, declared: float, solid: bool) -> None:
    """Refuse even gaps that are wider than declared: slices are missing regularly.

    Slices that touch by their thickness leave nothing out, whatever SpacingBetweenSlices says (some
    software always writes 1 there). It is from centre to centre; some scanners write the empty space
    between slices, which is told by a value below the thickness that adds up to the gap with it.
    """
    empty_space = declared < 0.9 * thickness and np.isclose(gap, thickness + declared, rtol=GAP_TOLERANCE)
    limit = declared if declared and not empty_space else thickness if solid else 0.0
    if limit and gap > 1.5 * limit and gap > (1 + GAP_TOLERANCE) * thickness:
        raise ReadError(where, f"its slices lie {gap:.2f} mm apart, the headers say {limit:.2f}", EXPORT)


def _parted(planes: list[_Plane], key: Callable[[_Plane], Hashable]) -> list[list[_Plane]]:
    parts: dict[Hashable, list[_Plane]] = {}
    for plane in planes:
        parts.setdefault(key(plane), []).append(plane)
    return list(parts.values())


# --- pixels -------------------------------------------------------------------------------------------


def _frames(dataset: FileDataset) -> Iterator[NDArray[Any]]:
    """Decode a file's frames one by one; its pixel data is let go afterwards.

    Yields
    ------
    ndarray, shape (rows, columns) or (rows, columns, 3)
        Stored values, or RGB.
    """
    file = _file(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    shape = (dataset.Rows, dataset.Columns)
    frames = int(dataset.get("NumberOfFrames") or 1)
    with _guarded(file, f"its pixel data cannot be decoded as {syntax.name}", EXPORT):
        if syntax.is_encapsulated:
            size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
            for codestream in generate_frames(dataset.PixelData, number_of_frames=frames):
                refuse_ratio(file, size, len(codestream))
                if len(codestream) > 2 * size + 2**16 or _coded_shape(codestream) not in (None, shape):
                    raise ReadError(
                        file, "its compressed pixel data has another size than its header says", EXPORT
                    )
        count = 0
        for count, pixels in enumerate(iter_pixels(dataset), start=1):
            if pixels.shape[:2] != shape or count > frames:
                raise ReadError(file, "its pixel data has another size than its header says", EXPORT)
            yield pixels
        if count != frames:
            raise ReadError(file, f"holds {count} of the {frames} frames that its header declares", EXPORT)
        del dataset.PixelData


def _coded_shape(codestream: bytes) -> tuple[int, int] | None:
    """Rows and columns as a JPEG, JPEG-LS or JPEG 2000 codestream declares them; None for others.

    Markers as in ITU-T T.81 (B.2.2), T.87 (C.2.2) and T.800 (A.5.1).
    """
    if (start := codestream.find(b"\xff\x4f\xff\x51", 0, 4096)) >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", codestream, start + 8)
        return bottom - top, right - left
    if not codestream.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 <= len(codestream):
        marker, length, _, rows, columns = struct.unpack_from(">HHBHH", codestream, at)
        if marker == 0xFFF7 or (0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC)):
            return rows, columns
        at += 1 if marker == 0xFFFF else 2 + length
    return None


def _intensities(pixels: NDArray[Any], plane: _Plane) -> NDArray[np.float32]:
    """Real values of stored ones. MONOCHROME1 is inverted, except where values have a unit of their own."""
    dataset = plane.dataset
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        return pixels.astype(np.float32) @ _LUMINANCE
    if "ModalityLUTSequence" in dataset:
        values = apply_modality_lut(pixels, dataset).astype(np.float32)
        ends = 2.0 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    else:
        slope, intercept = (
            default if (value := plane.get(keyword)) is None else float(value)
            for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
        if slope == 0:
            raise ReadError(plane.file, "its rescale slope is 0", EXPORT)
        values = pixels.astype(np.float32)
        values *= np.float32(slope)
        values += np.float32(intercept)
        ends = slope * (-1 if dataset.PixelRepresentation else 2.0**dataset.BitsStored - 1) + 2 * intercept
    inverse = dataset.PhotometricInterpretation == "MONOCHROME1" and plane.text("Modality") not in (
        "CT",
        "PT",
    )
    return np.float32(ends) - values if inverse else values


# --- sequence -----------------------------------------------------------------------------------------

_WORDS = {
    "adc": r"[de]?adc",
    "swi": r"swi|swan|venobold",
    "dwi": r"dwi|dti|diff\w*|trace\w*|b ?\d{3,4}",
    "perf": r"perf\w*|dsc|dce|p?c?asl|r?cb[fv]|mtt|ttp|tmax",
    "bold": r"bold|fmri",
    "angio": r"tof|angio\w*|mr[av]|venogra\w*",
    "localizer": r"loc|locali[sz]er\w*|scout|survey|(?:3|three) ?-?plane\w*",
    "map": r"t[12] ?map\w*",
    "t2star": r"t2 ?(?:\*|star)\w*|hemo\w*",
    "stir": r"stir|tirm(?!.*dark)",
}
_WEIGHTS = {
    "t1": r"(?<![a-z0-9])(?:e|[23]d|ax|sag|cor|tra)*t1(?!\d)|mp2?rage|f?spgr|bravo|vibe|(?<![a-z])tfl",
    "t2": r"(?<![a-z0-9])(?:e|[23]d|ax|sag|cor|tra)*t2(?!\d)",
    "pd": r"(?<![a-z])(?:pd|proton)",
    "flair": r"flair|dark ?-?fluid",
}
_PLAIN = (
    r"(?<![a-z])(?:pre(?![a-z])|pre ?-?(?:contrast|gad|gd)|w ?/ ?o(?![a-z])|wo(?![a-z])|without|ohne|"
    r"non? ?-?(?:contrast|enhanced|gad)|unenhanced|nati[fv])"
)
_CONTRAST = (
    r"(?:(?<![a-z])|(?<=t1)|(?<=t1w))(?:gd|gad\w*|ce|km|mdc|contrast\w*|kontrast\w*|enhanced|"
    r"post(?! ?-?op)|post ?-?(?:contrast|gad|gd)\w*)(?![a-z])|"
    r"t1w?c(?![a-z])|\+ ?(?:c|gd|km)(?![a-z])|(?<![a-z])c ?\+"
)
_NO_AGENT = r"none|no|nil|n|n/?a|0|without.*|unknown|not .*"


def _sequence(plane: _Plane) -> str | None:
    """Sequence of an MR image: from its type, its description, or else its timing."""
    kind = {str(word).upper() for word in plane.kind}
    if plane.text("Modality") != "MR" or kind & {"P", "PHASE", "PHASE MAP", "VELOCITY MAP", "VELOCITY"}:
        return None
    if "ADC" in kind:
        return "adc"
    description, protocol = (
        plane.text(k).lower().replace("_", " ") for k in ("SeriesDescription", "ProtocolName")
    )
    sequence = _named(description) or _named(protocol) or _timed(plane)
    if sequence != "t1":
        return sequence
    # the protocol often names the whole examination ("w/o and w contrast"): only the series' own words count
    if re.search(_PLAIN, description):
        return "t1"
    agent = plane.text("ContrastBolusAgent").lower()
    given = plane.get("ContrastBolusAgentSequence") or (agent and not re.fullmatch(_NO_AGENT, agent))
    return "t1ce" if given or re.search(_CONTRAST, description) else "t1"


def _named(text: str) -> str | None:
    """The one sequence that a description names; None if none or several."""
    for sequence, words in _WORDS.items():
        if re.search(rf"(?<![a-z0-9])(?:{words})(?![a-z0-9])", text):
            return sequence
    weights = [sequence for sequence, words in _WEIGHTS.items() if re.search(words, text)]
    if "flair" in weights:
        return "t1" if "t1" in weights else "flair"  # T1-FLAIR is T1-weighted, T2-FLAIR is what FLAIR means
    return weights[0] if len(weights) == 1 else None


def _timed(plane: _Plane) -> str | None:
    """The weighting that repetition, echo and inversion time (ms) leave no doubt about: textbook ranges."""
    technique = plane.text("ScanningSequence") + plane.text("EchoPulseSequence")
    tr = plane.number("RepetitionTime")
    te = plane.number("EffectiveEchoTime", "EchoTime")
    ti = plane.number("InversionTimes", "InversionTime")
    if tr is None or te is None or "EP" in technique:
        return None
    if ti:
        if 1500 <= ti <= 3000 and tr > 4000 and te > 60:
            return "flair"
        return "t1" if 400 <= ti <= 1300 and te < 15 else None
    if "SE" not in technique and "SPIN" not in technique:
        return None
    if tr <= 1000 and te <= 30:
        return "t1"
    if tr >= 2000:
        return "t2" if te >= 70 else "pd" if te <= 35 else None
    return None
