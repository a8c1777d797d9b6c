"""DICOM series: found by their headers, brought together as volumes in RAS+, or refused with the reason.

A volume is built only where the headers prove it: every plane of one orientation, on one grid with even
gaps, no place held twice, no slice missing that the headers tell of. Only the tags listed here are ever
read; names, birth dates and the like stay in the file. Descriptions are looked at for the sequence and
then dropped.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from pydicom.pixels import apply_color_lut, apply_modality_lut, iter_pixels
from pydicom.tag import BaseTag, Tag

from indexer.errors import CbirError, ReadError
from indexer.readers.limits import MAX_VOXELS, refuse_size, refuse_values
from indexer.readers.source import Source
from indexer.scan import Scan, stacked

# pydicom warns of every oddity that it repairs; what matters here is checked here.
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")

EXPORT = "export the whole series again"
SORT = "keep one acquisition in a series, or convert it to NIfTI with a tool made for its vendor"

GAP_TOLERANCE = 0.05
"""Gaps between slices may differ from their mean by this share of it (positions are rounded in headers)."""

SECTIONAL = {"MR", "CT", "PT"}
"""Modalities whose images are planes in the patient: without a position they are not read."""

_SERIES_TAGS = [
    Tag(name)
    for name in "SOPClassUID PatientID StudyInstanceUID SeriesInstanceUID AcquisitionNumber InstanceNumber".split()
]

_IMAGE_TAGS = [
    Tag(name)
    for name in """
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
    """.split()
]

# What never belongs into one volume together, and what tells volumes at the same place apart.
_KINDS = (("FrameType", "ImageType"), ("EchoNumbers",), ("DiffusionBValue",))
_REPEATS = (
    ("TemporalPositionIndex", "TemporalPositionIdentifier"),
    ("EffectiveEchoTime", "EchoTime"),
    ("InversionTimes", "InversionTime"),
    ("FlipAngle",),
    ("NominalCardiacTriggerDelayTime", "TriggerTime"),
    ("DiffusionGradientOrientation",),
    ("AcquisitionNumber", "FrameAcquisitionNumber"),
)

_DEFLATED = pydicom.uid.DeflatedExplicitVRLittleEndian
_DEFLATE_RATIO = 1032  # the most that DEFLATE can shrink
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes run to the patient's Left, Posterior, Superior


# --- finding series -----------------------------------------------------------------------------------


def is_dicom(path: Path) -> bool:
    """Whether a file begins like DICOM: ``DICM`` after the preamble, or an element of group 0002 or 0008.

    False for a file that cannot be opened.
    """
    try:
        with path.open("rb") as stream:
            return _begins_like_dicom(stream.read(132))
    except OSError:
        return False


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
                header = _header(file, _SERIES_TAGS, lambda tag, vr, length: tag > _SERIES_TAGS[-1])
                if not _is_image(header):
                    continue
                uid, study = (_text(header, name) for name in ("SeriesInstanceUID", "StudyInstanceUID"))
                if not uid:
                    raise ReadError(file, "its header has no SeriesInstanceUID, or ends before it", EXPORT)
                number = _text(header, "InstanceNumber")
                groups[uid].append((int(number) if number.lstrip("+-").isdecimal() else 0, file))
                ids.setdefault(uid, (_text(header, "PatientID") or study, study))
        except ReadError as failure:
            failures.append(failure)

    holds = Counter(
        folder
        for members in groups.values()
        for folder in {f for parent in {file.parent for _, file in members} for f in (parent, *parent.parents)}
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
        sources.append(Source(path, "dicom", paths, *ids[uid], series_id=uid))
    return sorted(sources, key=lambda source: source.path), failures


def _begins_like_dicom(head: bytes) -> bool:
    if head[128:132] == b"DICM":
        return True
    if len(head) < 12:
        return False
    group, element, vr, short, long = struct.unpack_from("<HH2sH", head) + struct.unpack_from("<I", head, 4)
    if group not in (0x0002, 0x0008) or element > 0x0070:
        return False
    explicit = vr in (b"UI", b"UL", b"CS", b"DA", b"TM", b"LO", b"SH", b"OB") and short <= 64
    return explicit or long <= 64


def _header(
    file: Path, tags: list[BaseTag], stop: Callable[[BaseTag, str | None, int], bool] | None = None
) -> FileDataset:
    """The listed elements of a file, the others skipped."""
    with file.open("rb") as stream:
        head = stream.read(1024)
        if not _begins_like_dicom(head):
            raise ReadError(file, "is not DICOM", "rename or remove it")
        if _DEFLATED.encode() in head and file.stat().st_size > MAX_VOXELS // _DEFLATE_RATIO:
            raise ReadError(file, "is deflated and might be too large in memory", "store it uncompressed")
        stream.seek(0)
        return read_partial(stream, stop, force=True, specific_tags=list(tags))


def _is_image(header: Dataset) -> bool:
    name = pydicom.uid.UID(_text(header, "SOPClassUID")).name
    return "Image Storage" in name and "Secondary Capture" not in name and "Microscop" not in name


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()


@contextmanager
def _guarded(where: Path, reason: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever damaged bytes raise into one line. Nothing of the message is kept: it may quote a header."""
    try:
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
    """One frame of one file, and the datasets that describe it, the nearest first."""

    file: Path
    dataset: FileDataset
    frame: int
    described: tuple[Dataset, ...]

    def get(self, *keywords: str) -> Any:
        """The first of the elements that is there and not empty, else None."""
        for keyword in keywords:
            for dataset in self.described:
                value = dataset.get(keyword)
                if value is not None and value != "" and value != []:
                    return value
        return None

    def text(self, *keywords: str) -> str:
        return str(self.get(*keywords) or "")

    def numbers(self, keyword: str, count: int = 1) -> NDArray[np.float64] | None:
        """The value as `count` finite numbers, else None."""
        value = self.get(keyword)
        if value is None:
            return None
        array = np.atleast_1d(np.array(value, dtype=np.float64))
        return array if array.shape == (count,) and np.isfinite(array).all() else None

    def number(self, *keywords: str) -> float | None:
        for keyword in keywords:
            if (value := self.numbers(keyword)) is not None:
                return float(value[0])
        return None

    def key(self, *keywords: str) -> str:
        """A value to compare planes by."""
        value = self.get(*keywords)
        if value is not None and keywords == ("FrameType", "ImageType"):
            return str(list(value)[2:])  # the first two tell original from derived, not one contrast from another
        return str(value)

    @property
    def placed(self) -> bool:
        return (
            self.numbers("ImagePositionPatient", 3) is not None
            and self.numbers("ImageOrientationPatient", 6) is not None
            and self.numbers("PixelSpacing", 2) is not None
        )


def _planes(dataset: FileDataset) -> list[_Plane]:
    """The frames of a file, after its declared size has been checked."""
    file = Path(str(dataset.filename))
    frames = int(dataset.get("NumberOfFrames") or 1)
    refuse_size(file, (int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0), frames))
    if "PixelData" not in dataset:
        raise ReadError(file, "has no pixel data, or ends before it", EXPORT)
    if "MOSAIC" in (dataset.get("ImageType") or ()):
        raise ReadError(file, "holds a volume as a mosaic of tiles", "convert it to NIfTI")
    own = dataset.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * frames
    shared = _flat((dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
    if len(own) != frames:
        raise ReadError(file, f"declares {frames} frames and describes {len(own)}", EXPORT)
    return [_Plane(file, dataset, i, (*_flat(groups), *shared, dataset)) for i, groups in enumerate(own)]


def _flat(groups: Dataset) -> list[Dataset]:
    """The items of nested sequences, as functional groups hold them."""
    items = [item for element in groups if element.VR == "SQ" for item in element.value[:1]]
    return items + [inner for item in items for inner in _flat(item)]


# --- reading ------------------------------------------------------------------------------------------


def read(source: Source) -> list[Scan]:
    """The volumes of a series; or, for images without a place in the patient (X-ray, ultrasound), its pictures.

    Several echoes, time points, diffusion weightings or acquisitions in one series become a scan each,
    where they cover the same places and a tag tells them apart.

    A series is refused if its headers announce more images than are there (NumberOfSeriesRelatedInstances,
    InConcatenationTotalNumber, for PET NumberOfSlices, and ImagesInAcquisition, which is copied into
    derived images and therefore only believed in original ones). Instance numbers that do not begin at 1
    or have holes are accepted: many exports renumber. Every second slice missing is seen by
    SpacingBetweenSlices, or, in 3-D acquisitions, which have no gaps, by SliceThickness.

    Parameters
    ----------
    source : Source
        As found by :func:`series`.

    Returns
    -------
    list of Scan
        Voxels are float32 after the modality transform: HU for CT. Colour becomes luminance. A single
        plane is one slice thick; without a SliceThickness it is a picture.

    Raises
    ------
    ReadError
        If anything is missing, damaged, contradictory or too large.
    """
    with _guarded(source.path, "cannot be opened"):
        if sum(file.stat().st_size for file in source.files) > 4 * MAX_VOXELS:
            raise ReadError(source.path, f"its files hold more than {4 * MAX_VOXELS:,} bytes", "split it")
    planes = []
    for dataset in _instances(source):
        with _guarded(Path(str(dataset.filename)), "its DICOM header is damaged", EXPORT):
            planes += _planes(dataset)
        if sum(int(plane.dataset.Rows * plane.dataset.Columns) for plane in planes) > MAX_VOXELS:
            raise ReadError(source.path, f"declares more than the limit of {MAX_VOXELS:,} voxels", "split it")
    with _guarded(source.path, "its DICOM headers are damaged", EXPORT):
        _refuse_mixed(source.path, planes)
        _refuse_incomplete(source.path, planes)
        planes.sort(key=lambda plane: (plane.number("InstanceNumber") or 0, plane.file, plane.frame))
        if all(plane.placed for plane in planes) and (len(planes) > 1 or planes[0].number("SliceThickness")):
            return _volumes(source, planes)
        if any(plane.placed for plane in planes) and len(planes) > 1:
            raise ReadError(source.path, "only some of its images say where they lie in the patient", SORT)
        if not planes[0].placed and planes[0].text("Modality") in SECTIONAL:
            raise ReadError(
                source.path, "its headers do not say where the images lie (position, orientation, pixel spacing)", EXPORT
            )
        return _pictures(source, planes)


def _instances(source: Source) -> Iterator[FileDataset]:
    """The datasets of a series, each instance once."""
    seen: dict[str, FileDataset] = {}
    for file in source.files:
        with _guarded(file, "its DICOM header is damaged", EXPORT):
            dataset = _header(file, _IMAGE_TAGS)
            if "TransferSyntaxUID" not in dataset.file_meta:
                implicit, little = dataset.original_encoding
                dataset.file_meta.TransferSyntaxUID = (
                    pydicom.uid.ImplicitVRLittleEndian
                    if implicit
                    else pydicom.uid.ExplicitVRLittleEndian
                    if little
                    else pydicom.uid.ExplicitVRBigEndian
                )
            uid = _text(dataset, "SOPInstanceUID") or str(file)
            if uid in seen and seen[uid] != dataset:
                raise ReadError(file, "has the SOPInstanceUID of another file but not its content", SORT)
            new = uid not in seen
            seen[uid] = dataset
        if new:
            yield dataset


def _refuse_mixed(where: Path, planes: list[_Plane]) -> None:
    for keywords, what in ((("PatientID",), "patients"), (("StudyInstanceUID",), "studies")):
        if len({plane.key(*keywords) for plane in planes}) > 1:
            raise ReadError(where, f"one series holds images of several {what}", "separate them")


def _refuse_incomplete(where: Path, planes: list[_Plane]) -> None:
    """Refuse a series whose headers agree on more images than are there."""
    files = {plane.file: plane for plane in planes}
    parts = [plane for plane in files.values() if plane.get("ConcatenationUID")]
    original = all((plane.get("ImageType") or [""])[0] != "DERIVED" for plane in files.values())
    claims = [("NumberOfSeriesRelatedInstances", len(files)), ("ImagesInAcquisition", len(planes) if original else 0)]
    if planes[0].text("Modality") == "PT":
        claims.append(("NumberOfSlices", len(planes)))
    for uid in {plane.text("ConcatenationUID") for plane in parts}:
        claims.append(("InConcatenationTotalNumber", sum(p.text("ConcatenationUID") == uid for p in parts)))
    for keyword, found in claims:
        announced = {plane.number(keyword) for plane in files.values()}
        if found and len(announced) == 1 and (count := announced.pop()) is not None and count > found:
            raise ReadError(where, f"holds {found} of the {count:.0f} images that its headers announce", EXPORT)


def _volumes(source: Source, planes: list[_Plane]) -> list[Scan]:
    orientation = planes[0].numbers("ImageOrientationPatient", 6)
    assert orientation is not None
    rows, columns = orientation[:3], orientation[3:]
    if not np.allclose([rows @ rows, columns @ columns, rows @ columns], [1, 1, 0], atol=1e-3):
        raise ReadError(source.path, "its image orientation is not a pair of perpendicular directions", EXPORT)
    for plane in planes:
        if not np.allclose(plane.numbers("ImageOrientationPatient", 6), orientation, atol=1e-3):  # type: ignore[arg-type]
            raise ReadError(source.path, "its planes have several orientations (is a localizer among them?)", SORT)
    normal = np.cross(rows, columns)

    kinds = _parted(planes, lambda plane: tuple(plane.key(*keywords) for keywords in _KINDS))
    groups = [group for kind in kinds for group in _separated(source.path, kind, normal)]
    ordered = [_ordered(source.path, group, normal) for group in groups]
    arrays = [
        np.empty((len(group), int(group[0].dataset.Rows), int(group[0].dataset.Columns)), dtype=np.float32)
        for group, _ in ordered
    ]
    targets = {
        (plane.file, plane.frame): (plane, array[k])
        for (group, _), array in zip(ordered, arrays, strict=True)
        for k, plane in enumerate(group)
    }
    for dataset in {id(plane.dataset): plane.dataset for plane in planes}.values():
        for frame, pixels in enumerate(_frames(dataset)):
            plane, target = targets[plane_file(dataset), frame]
            target[...] = _intensities(pixels, plane)
        del dataset.PixelData

    scans = []
    for (group, affine), array in zip(ordered, arrays, strict=True):
        refuse_values(source.path, array)
        volume = array.transpose(2, 1, 0)
        turn = io_orientation(affine)
        affine = affine @ inv_ornt_aff(turn, volume.shape)
        scans.append(
            Scan(
                voxels=apply_orientation(volume, turn),
                source=source.path,
                spacing=tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist()),
                affine=affine,
                sequence=source.sequence or _sequence(group[0]),
                modality=group[0].text("Modality") or None,
                patient_id=source.patient_id,
                study_id=source.study_id,
                series_id=source.series_id,
            )
        )
    return scans
