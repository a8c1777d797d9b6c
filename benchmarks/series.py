"""DICOM series of every shape that scanners send, written small: what readers are compared on.

Each shape is a function of a folder and a size, named in `SHAPES`; `LARGE` names those whose reading is
timed. Values tell where a voxel lies, so that no two slices are alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.96, 0.28, 0.0, -0.27, 0.925714286, 0.264575131)


def pixels(rows: int, columns: int, place: int, volume: int = 0, top: int = 4095) -> NDArray[np.uint16]:
    """A picture that no other place or volume has."""
    r, c = np.mgrid[:rows, :columns]
    return ((r * 7 + c * 3 + place * 131 + volume * 517 + (r * c) % 11) % (top + 1)).astype(np.uint16)


def image(
    place: int,
    number: int,
    *,
    volume: int = 0,
    size: tuple[int, int] = (24, 20),
    gap: float = 3.0,
    orientation: Sequence[float] = AXIAL,
    slant: float = 0.0,
    bits: int = 12,
    signed: bool = False,
    **tags: Any,
) -> Dataset:
    """One MR image, `place` gaps along the normal of its plane, moved by `slant` mm a gap along a column."""
    row, column = np.array(orientation).reshape(2, 3)
    position = np.array([-40.0, -35.0, 10.0]) + place * (gap * np.cross(row, column) + slant * column)
    values = pixels(*size, place, volume, top=2**bits - 1).astype(np.int64) - (
        2 ** (bits - 1) if signed else 0
    )
    dataset = Dataset()
    for keyword, value in {
        "SOPClassUID": uid.MRImageStorage,
        "SOPInstanceUID": uid.generate_uid(entropy_srcs=[str(place), str(number), str(volume), repr(tags)]),
        "StudyDate": "20200101",
        "StudyTime": "120000",
        "Modality": "MR",
        "Manufacturer": "none",
        "PatientID": "GENERATED",
        "PatientName": "GENERATED",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "FrameOfReferenceUID": "1.2.3.5",
        "SeriesNumber": 3,
        "AcquisitionNumber": 1,
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
        "ScanningSequence": "SE",
        "MRAcquisitionType": "2D",
        "RepetitionTime": 2500,
        "EchoTime": 20,
        "SliceThickness": gap,
        "SpacingBetweenSlices": gap,
        "InstanceNumber": number,
        "ImagePositionPatient": [f"{x:.6f}" for x in position],
        "ImageOrientationPatient": [f"{x:.9f}" for x in orientation],
        "PixelSpacing": [1.25, 1.5],
        "Rows": size[0],
        "Columns": size[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 if bits <= 8 else 16,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(signed),
        "PixelData": values.astype(("<i" if signed else "<u") + ("1" if bits <= 8 else "2")).tobytes(),
        **tags,
    }.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return dataset


def save(folder: Path, datasets: Iterable[Dataset]) -> None:
    """Write images under names that say nothing of their order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = random.Random(0)
    for dataset in datasets:
        dataset.save_as(folder / f"{names.getrandbits(48):012x}.dcm", enforce_file_format=True)


def stack(n: int = 8, **tags: Any) -> list[Dataset]:
    """One volume."""
    return [image(i, i + 1, **tags) for i in range(n)]


def series(n: int, times: int, by_place: bool = False, **tags: Any) -> list[Dataset]:
    """Volumes told apart by the order of their instance numbers alone, volume by volume or place by place."""
    order = [(i, t) for i in range(n) for t in range(times)]
    if not by_place:
        order.sort(key=lambda pair: pair[1])
    return [image(i, number, volume=t, **tags) for number, (i, t) in enumerate(order, start=1)]


def compressed(syntax: uid.UID, **tags: Any) -> list[Dataset]:
    """One volume in another transfer syntax."""
    datasets = stack(**tags)
    for dataset in datasets:
        dataset.compress(syntax, generate_instance_uid=False)
    return datasets


def recoded(syntax: uid.UID) -> list[Dataset]:
    """One volume uncompressed in another transfer syntax."""
    datasets = stack()
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = syntax
    return datasets


def echoes(n: int = 6) -> list[Dataset]:
    """Two echoes, image by image in turn."""
    return [
        image(i, 2 * i + e + 1, volume=e, EchoNumbers=e + 1, EchoTime=20 + 60 * e)
        for i in range(n)
        for e in range(2)
    ]


def times(n: int = 6, count: int = 4) -> list[Dataset]:
    """Time points that a tag tells apart."""
    return [
        image(i, t * n + i + 1, volume=t, TemporalPositionIdentifier=t + 1, NumberOfTemporalPositions=count)
        for t in range(count)
        for i in range(n)
    ]


def enhanced(n: int = 6, volumes: int = 1, size: tuple[int, int] = (24, 20)) -> list[Dataset]:
    """One multi-frame object."""
    frames = [(i, t) for t in range(volumes) for i in range(n)]
    dataset = image(0, 1, size=size, SOPClassUID=uid.EnhancedMRImageStorage, NumberOfFrames=len(frames))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, keyword)
    del dataset.SpacingBetweenSlices, dataset.EchoTime
    dataset.PixelPresentation, dataset.VolumetricProperties = "MONOCHROME", "VOLUME"
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [1.25, 1.5], 3, 3
    orientation.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for i, t in frames:
        place, content, echo, values, kind = (Dataset() for _ in range(5))
        place.ImagePositionPatient = [-40.0, -35.0, 10.0 + 3.0 * i]
        content.TemporalPositionIndex, content.StackID, content.InStackPositionNumber = t + 1, "1", i + 1
        content.DimensionIndexValues = [i + 1, t + 1]
        content.FrameAcquisitionDateTime, content.FrameAcquisitionNumber = f"20200101120{t % 10}00", t + 1
        echo.EffectiveEchoTime = 20.0
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, 0, "US"
        kind.FrameType, kind.PixelPresentation = ["ORIGINAL", "PRIMARY", "M", "NONE"], "MONOCHROME"
        group = Dataset()
        group.PlanePositionSequence, group.FrameContentSequence = [place], [content]
        group.MREchoSequence, group.PixelValueTransformationSequence = [echo], [values]
        group.MRImageFrameTypeSequence = [kind]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.PixelData = b"".join(pixels(*size, i, t).tobytes() for i, t in frames)
    return [dataset]


TEXTS = """
    InstitutionName ReferringPhysicianName StationName StudyDescription OperatorsName ManufacturerModelName
    PatientBirthDate PatientSex DeviceSerialNumber AcquisitionDate SoftwareVersions ProtocolName
    ReceiveCoilName TransmitCoilName PatientPosition
"""
NUMBERS = "NumberOfAverages ImagingFrequency MagneticFieldStrength PixelBandwidth SAR PatientWeight"


def as_scanners_write(datasets: list[Dataset]) -> list[Dataset]:
    """The same images with as much else in their headers as scanners write: some 200 elements, 30 kB."""
    for dataset in datasets:
        for keyword in TEXTS.split():
            setattr(dataset, keyword, "20200101" if "Date" in keyword else "X")
        for keyword in NUMBERS.split():
            setattr(dataset, keyword, 1.5)
        references = [Dataset() for _ in range(3)]
        for reference in references:
            reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = uid.MRImageStorage, "1.2.3"
        dataset.ReferencedImageSequence = references
        for group in (0x0009, 0x0021, 0x0051):
            block = dataset.private_block(group, "GENERATED", create=True)
            for element in range(50):
                block.add_new(element, "LO", f"something of {element}")
        blob = dataset.private_block(0x0029, "GENERATED", create=True)
        blob.add_new(0x10, "OB", bytes(24_000))
    return datasets


SHAPES: dict[str, Callable[[], list[Dataset]]] = {
    "one volume": stack,
    "sagittal": lambda: stack(orientation=SAGITTAL),
    "oblique": lambda: stack(orientation=OBLIQUE),
    "from head to foot": lambda: stack(gap=-3.0, SliceThickness=3, SpacingBetweenSlices=3),
    "8 bits": lambda: stack(bits=8),
    "16 bits": lambda: stack(bits=16),
    "12 bits, signed": lambda: stack(signed=True),
    "16 bits, signed": lambda: stack(bits=16, signed=True),
    "slope and intercept": lambda: stack(RescaleSlope=0.5, RescaleIntercept=-100),
    "implicit": lambda: recoded(uid.ImplicitVRLittleEndian),
    "RLE": lambda: compressed(uid.RLELossless),
    "JPEG-LS": lambda: compressed(uid.JPEGLSLossless),
    "JPEG-LS, 16 bits": lambda: compressed(uid.JPEGLSLossless, bits=16),
    "JPEG 2000": lambda: compressed(uid.JPEG2000Lossless, size=(64, 64)),
    "JPEG 2000, signed": lambda: compressed(uid.JPEG2000Lossless, size=(64, 64), signed=True),
    "echoes": echoes,
    "time points": times,
    "volumes, told by numbers alone": lambda: series(6, 3),
    "volumes, place by place": lambda: series(6, 3, by_place=True),
    "a time series": lambda: series(6, 12),
    "image type differs half-way": lambda: [
        image(i, i + 1, ImageType=["ORIGINAL", "PRIMARY", "M", "ND", *(["NORM"] if i < 4 else [])])
        for i in range(8)
    ],
    "enhanced": enhanced,
    "enhanced, time points": lambda: enhanced(volumes=4),
    "gantry tilt": lambda: stack(slant=0.9),
    "a slice is missing": lambda: [*stack()[:3], *stack()[4:]],
}

LARGE: dict[str, Callable[[], list[Dataset]]] = {
    "volume of 180 files, 256×256": lambda: as_scanners_write(stack(180, size=(256, 256), gap=1.0)),
    "volume of 24 files, 512×512": lambda: as_scanners_write(stack(24, size=(512, 512), gap=5.0)),
    "time series of 4,725 files": lambda: as_scanners_write(series(45, 105, size=(64, 64))),
    "time series of 4,725 files, short headers": lambda: series(45, 105, size=(64, 64)),
    "enhanced, 1 × 200 frames, 256×256": lambda: enhanced(200, size=(256, 256)),
    "enhanced, 60 × 36 frames, 64×64": lambda: enhanced(36, 60, size=(64, 64)),
    "JPEG-LS, 48 files, 256×256": lambda: compressed(uid.JPEGLSLossless, size=(256, 256), n=48),
    "RLE, 48 files, 256×256": lambda: compressed(uid.RLELossless, size=(256, 256), n=48),
}
