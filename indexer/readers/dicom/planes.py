"""Planes: single images, whether each has a file of its own or is a frame of one."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import uid

from indexer.errors import ReadError
from indexer.readers.dicom.headers import EXPORT, Elements, Header
from indexer.readers.limits import MAX_RATIO, refuse_size
from indexer.readers.sequences import Facts, name

_PHASE = {"P", "PHASE", "PHASE MAP", "VELOCITY", "VELOCITY MAP"}
_COMPONENTS = {"R": "real", "REAL": "real", "I": "imaginary", "IMAGINARY": "imaginary"} | dict.fromkeys(
    _PHASE, "phase"
)


class Geometry(NamedTuple):
    """Where a plane lies in the patient, in mm; DICOM's axes run to the Left, Posterior and Superior.

    Attributes
    ----------
    position : ndarray, shape (3,)
        Centre of the first pixel.
    orientation : ndarray, shape (2, 3)
        Directions along a row and along a column.
    spacing : ndarray, shape (2,)
        Between rows, and between columns.
    """

    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    spacing: NDArray[np.float64]


class Plane(Elements):
    """One frame of one file, with what the header says of this frame, of all frames, and of the file.

    Attributes
    ----------
    header : Header
    frame : int
        Counted from 0.
    """

    def __init__(self, header: Header, frame: int) -> None:
        own = (header.frames[frame], header.shared) if header.frames else (header.shared,)
        super().__init__(header.file, *filter(None, own), header.values)
        self.header = header
        self.frame = frame

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        elements = self.header.elements
        return elements.count("Rows"), elements.count("Columns")

    @cached_property
    def geometry(self) -> Geometry | None:
        """Where it lies; None if position, orientation or pixel spacing are missing."""
        position = self.vector("ImagePositionPatient", 3)
        orientation = self.vector("ImageOrientationPatient", 6)
        spacing = self.vector("PixelSpacing", 2)
        if position is None or orientation is None or spacing is None or spacing.min() <= 0:
            return None
        return Geometry(position, orientation.reshape(2, 3), spacing)

    @property
    def kind(self) -> tuple[str, ...]:
        """What the image type says beyond original or derived, primary or secondary."""
        return self.texts("FrameType", "ImageType")[2:]

    @property
    def component(self) -> str:
        """Magnitude, phase, real or imaginary."""
        said = (*self.kind, self.text("ComplexImageComponent"))
        return next((_COMPONENTS[word.upper()] for word in said if word.upper() in _COMPONENTS), "magnitude")

    @property
    def b_value(self) -> float | None:
        """Diffusion weighting in s/mm², in the standard's element or the vendor's."""
        value = self.number("DiffusionBValue", "SiemensBValue", "PhilipsBValue", "UIHBValue", "GEBValue")
        return None if value is None else value % 1e9 if value >= 1e9 else value  # GE adds 10⁹

    @property
    def echo(self) -> float | None:
        """Echo time in ms."""
        return self.number("EffectiveEchoTime", "EchoTime")

    @property
    def sequence(self) -> str | None:
        """What MR sequence it is of; None for other modalities, and where nothing says."""
        if self.text("Modality") != "MR":
            return None
        return name(
            Facts(
                words=self.header.words,
                kind=(*self.kind, self.text("AcquisitionContrast")),
                technique=self.text("ScanningSequence") + self.text("EchoPulseSequence"),
                b_value=self.b_value,
                repetition=self.number("RepetitionTime"),
                echo=self.echo,
                inversion=self.number("InversionTimes", "InversionTime"),
            )
        )


def planes_of(header: Header) -> list[Plane]:
    """The frames of a file, after its declared size has been checked.

    Raises
    ------
    ReadError
        If the size is nothing or too large, the pixels are missing, or the frames are not told one by one.
    """
    file, elements = header.file, header.elements
    frames = elements.count("NumberOfFrames", 1) or 1
    refuse_size(file, (elements.count("Columns"), elements.count("Rows"), frames))
    if header.pixels is None:
        raise ReadError(file, "has no pixel data, or ends before it", EXPORT)
    _refuse_frames(header, frames)
    refuse_mosaic(header, frames)
    if header.frames and len(header.frames) != frames:
        raise ReadError(file, f"declares {frames} frames and describes {len(header.frames)}", EXPORT)
    return [Plane(header, frame) for frame in range(frames)]


def _refuse_frames(header: Header, frames: int) -> None:
    """Refuse more frames than there can be in the bytes that are there, before something is made for each."""
    assert header.pixels is not None
    elements, syntax = header.elements, uid.UID(header.syntax)
    there = header.stamp[0] - header.pixels[1]
    if syntax.is_transfer_syntax and syntax.is_encapsulated:
        least = 8 * frames  # tag and length of an item (PS3.5 A.4)
    elif syntax == uid.DeflatedExplicitVRLittleEndian:
        least, there = frames, header.stamp[0] * MAX_RATIO
    else:
        rows, columns, bits = (elements.count(k, 1) for k in ("Rows", "Columns", "BitsAllocated"))
        least = frames * rows * columns * bits // 8
    if frames > 1 and least > there:
        reason = f"declares {frames:,} frames; its pixel data is shorter than its header says"
        raise ReadError(header.file, reason, EXPORT)


def refuse_mosaic(header: Header, frames: int) -> None:
    """Refuse a volume whose slices are tiles of one picture; where they lie is in the vendor's elements.

    Siemens says so in ImageType, in (0019,100A), or both; United Imaging in (0065,1050) or (0065,1051).
    ImageType goes on saying it where a later software has taken the tiles apart into frames.
    """
    if frames > 1:
        return
    elements = header.elements
    tiles = max(elements.number(k) or 0 for k in ("SiemensImagesInMosaic", "UIHImagesInMosaic"))
    if tiles > 1 or "MOSAIC" in elements.texts("ImageType") or elements.get("UIHFrames"):
        raise ReadError(
            header.file, "holds a volume as a mosaic of tiles", "convert it to NIfTI with dcm2niix"
        )
