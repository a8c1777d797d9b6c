"""Headers of DICOM files: the elements that the reader needs, parsed once and kept without what identifies.

The encoding is that of PS3.5 (7.1 elements, 7.5 sequences) and PS3.10 (7.1 file meta information). Only the
elements listed here are ever kept; names, birth dates and the like stay in the file. Descriptions are
looked at for the words that name a sequence, and then dropped.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword

from indexer import watch
from indexer.errors import CbirError, ReadError
from indexer.readers.limits import MAX_VOXELS
from indexer.readers.sequences import Words, words_of

EXPORT = "export the whole series again"

_KEYWORDS = """
    TransferSyntaxUID MediaStorageSOPClassUID SpecificCharacterSet
    ImageType SOPClassUID SOPInstanceUID Modality SeriesDescription PatientID ContrastBolusAgent
    ContrastBolusAgentSequence ScanningSequence SequenceName MRAcquisitionType SliceThickness RepetitionTime
    EchoTime InversionTime EchoNumbers SpacingBetweenSlices ProtocolName TriggerTime FlipAngle
    DiffusionBValue DiffusionGradientOrientation StudyInstanceUID SeriesInstanceUID SeriesNumber
    AcquisitionNumber InstanceNumber ImagePositionPatient ImageOrientationPatient FrameOfReferenceUID
    TemporalPositionIdentifier TemporalPositionIndex ConcatenationUID InConcatenationTotalNumber
    ImagesInAcquisition NumberOfSeriesRelatedInstances NumberOfSlices SamplesPerPixel
    PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns PixelSpacing BitsAllocated
    BitsStored HighBit PixelRepresentation RescaleIntercept RescaleSlope ModalityLUTSequence
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence ComplexImageComponent
    AcquisitionContrast FrameType EffectiveEchoTime InversionTimes EchoPulseSequence
    NominalCardiacTriggerDelayTime FrameAcquisitionNumber
    ExtendedOffsetTable ExtendedOffsetTableLengths
"""
_WANTED: dict[int, tuple[str, str]] = {
    tag: (keyword, dictionary_VR(tag))
    for keyword in _KEYWORDS.split()
    if (tag := tag_for_keyword(keyword)) is not None
}
"""Keyword and VR of the elements that are kept, by tag."""
_WANTED |= {
    # b-values and mosaics, where they are not in standard elements (conformance statements of the vendors)
    0x0019100A: ("SiemensImagesInMosaic", "US"),
    0x0019100C: ("SiemensBValue", "IS"),
    0x00431039: ("GEBValue", "IS"),
    0x20011003: ("PhilipsBValue", "FL"),
    0x00651009: ("UIHBValue", "FD"),
    0x00651050: ("UIHImagesInMosaic", "DS"),
    0x00651051: ("UIHFrames", "SQ"),
}
_CREATORS = {
    0x00190010: "SIEMENS MR HEADER",
    0x00430010: "GEMS_PARM_01",
    0x20010010: "Philips Imaging DD 001",
    0x00650010: "Image Private Header",
}
"""Who a private block has to belong to (PS3.5 7.8.1) for its elements to mean what they are taken for."""
_PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_DESCRIPTIONS = ("SeriesDescription", "ProtocolName", "SequenceName", "ContrastBolusAgent")
_NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "OV": "Q"}
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Value representations whose length has four bytes, after two that are reserved (PS3.5, table 7.1-1)."""
_SHORT = {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH"),
    *(b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_HEAD = 2**15
"""Bytes of a file that are looked at first; most headers end within them."""
_DEFLATE_RATIO = 1032  # the most that DEFLATE can shrink
_NUMBER = re.compile(r"[-+0-9.eE]+")

Value = bytes | tuple[float, ...] | list[dict[str, Any]]
"""Text as it is stored, numbers of binary elements, or the items of a sequence."""


class _Short(Exception):
    """The bytes at hand end before the element does."""


@contextmanager
def guarded(where: Path, reason: str, remedy: str = "") -> Iterator[None]:
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


class Elements:
    """Elements looked up by keyword, first in what is said of one frame, then of all, then of the file.

    Attributes
    ----------
    file : Path
        For the messages.
    """

    def __init__(self, file: Path, *levels: Mapping[str, Value]) -> None:
        self.file = file
        self.levels = levels

    def get(self, *keywords: str) -> Value | None:
        """The first of the elements that is there and not empty."""
        for keyword in keywords:
            for level in self.levels:
                if value := level.get(keyword):
                    return value
        return None

    def texts(self, *keywords: str) -> tuple[str, ...]:
        """The values of an element as texts; empty if it is not there."""
        value = self.get(*keywords)
        if value is None or isinstance(value, list):
            return ()
        if isinstance(value, tuple):
            return tuple(f"{number:.15g}" for number in value)
        return tuple(part.strip(" \0") for part in self._decoded(value).split("\\"))

    def _decoded(self, value: bytes) -> str:
        if value.isascii():
            return value.decode("ascii")
        charset = self.get("SpecificCharacterSet")
        names = charset.decode("ascii", "replace").split("\\") if isinstance(charset, bytes) else [""]
        return str(decode_bytes(value, convert_encodings([name.strip() for name in names]), set()))

    def text(self, *keywords: str) -> str:
        """The whole element as text; "" if it is not there."""
        return "\\".join(self.texts(*keywords)).strip()

    def numbers(self, *keywords: str) -> tuple[float, ...]:
        """The values of an element as numbers; empty if it is not there or one of them is not finite.

        Raises
        ------
        ReadError
            If it holds something else. The message names the element, but does not quote it.
        """
        value = self.get(*keywords)
        if value is None or isinstance(value, list):
            return ()
        if isinstance(value, bytes):
            text = value
            try:
                value = tuple(float(part.strip(b" \0") or b"nan") for part in text.split(b"\\"))
            except ValueError:
                keyword = next(k for k in keywords if self.get(k))
                raise self._not_numbers(keyword, text) from None
        return value if all(map(_finite, value)) else ()

    def _not_numbers(self, keyword: str, value: bytes) -> ReadError:
        if b"," in value and _NUMBER.sub("", value.decode("latin-1")).strip(" \0\\,") == "":
            return ReadError(
                self.file,
                f"its {keyword} is written with a decimal comma, which DICOM does not allow",
                "write a point",
            )
        return ReadError(self.file, f"its header is damaged: {keyword} is not a number", EXPORT)

    def number(self, *keywords: str) -> float | None:
        """The first of an element's numbers, if there is one and it is finite."""
        numbers = self.numbers(*keywords)
        return numbers[0] if numbers else None

    def count(self, keyword: str, default: int = 0) -> int:
        """A whole number."""
        number = self.number(keyword)
        return default if number is None else int(number)

    def vector(self, keyword: str, size: int) -> NDArray[np.float64] | None:
        """An element of `size` numbers; None if it has another size."""
        numbers = self.numbers(keyword)
        return np.array(numbers) if len(numbers) == size else None


def _finite(number: float) -> bool:
    return number - number == 0


@dataclass(eq=False, repr=False)
class Header:
    """What a file's header says.

    Attributes
    ----------
    file : Path
    syntax : str
        UID of the transfer syntax.
    values : dict
        Elements by keyword.
    frames : list of dict
        Elements of the functional groups of each frame, flattened; empty in classic objects.
    shared : dict
        Elements of the functional groups that all frames share.
    words : Words
        What the descriptions say.
    pixels : tuple, optional
        Keyword of the element that holds the pixels, where its value begins and how long it is
        (0xFFFFFFFF: undefined); None if the file ends before it.
    stamp : tuple
        Size and modification time of the file that was parsed.
    """

    file: Path
    syntax: str
    values: dict[str, Value]
    frames: list[dict[str, Value]]
    shared: dict[str, Value]
    words: Words
    pixels: tuple[str, int, int] | None
    stamp: tuple[int, int]
    big: bool = False

    @cached_property
    def elements(self) -> Elements:
        """The elements of the file, without those of single frames."""
        return Elements(self.file, self.values)

    @property
    def sop_class(self) -> uid.UID:
        """The SOP class; "" if the header names none."""
        return uid.UID(self.elements.text("SOPClassUID", "MediaStorageSOPClassUID"))

    @cached_property
    def is_image(self) -> bool:
        """Whether the object is an image of a patient: no report, no segmentation, no capture of a screen."""
        return is_image(self.sop_class)

    def at(self, file: Path) -> Header:
        """The same header for the same file at another path, parsed anew if the file is another one."""
        with guarded(file, "cannot be read"):
            stat = file.stat()
        if (stat.st_size, stat.st_mtime_ns) != self.stamp or file != self.file:
            return parse(file)
        return self


def is_image(sop_class: uid.UID) -> bool:
    """Whether a SOP class is an image of a patient."""
    if not sop_class:
        return True
    name = str(sop_class.name)
    return "Image Storage" in name and "Secondary Capture" not in name and "Microscop" not in name


def begins_like_dicom(head: bytes) -> bool:
    """Whether a file begins with ``DICM`` after a preamble, or with an element of group 0002 or 0008."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 12:
        return False
    group, element, vr, short, long = struct.unpack_from("<HH2sH", head) + struct.unpack_from("<I", head, 4)
    if group not in (0x0002, 0x0008) or element > 0x0070:
        return False
    explicit = vr in (b"UI", b"UL", b"CS", b"DA", b"TM", b"LO", b"SH", b"OB") and short <= 64
    return bool(explicit or long <= 64)


def parse(file: Path) -> Header:
    """Read a file's header up to its pixels.

    Raises
    ------
    ReadError
        If it cannot be read, is no DICOM, or is damaged.
    """
    with guarded(file, "its DICOM header is damaged", EXPORT), open(file, "rb") as stream:  # noqa: PTH123
        stat = os.fstat(stream.fileno())
        size = min(_HEAD, stat.st_size)
        data = stream.read(size)
        if not begins_like_dicom(data[:132]):
            raise ReadError(file, "is not DICOM", "rename or remove it")
        if uid.DeflatedExplicitVRLittleEndian.encode() in data[:1024]:
            data, size = inflated(file, stream, data), 0
        while True:
            try:
                return _parsed(
                    file, data, (stat.st_size, stat.st_mtime_ns), complete=size >= stat.st_size or not size
                )
            except _Short:
                more = stream.read(15 * size)
                data, size = data + more, size + max(len(more), 1)
                if not more:
                    size = stat.st_size


def inflated(file: Path, stream: IO[bytes], head: bytes = b"") -> bytes:
    """The bytes of a deflated file as if it had not been deflated (PS3.5 A.5)."""
    if os.fstat(stream.fileno()).st_size > MAX_VOXELS // _DEFLATE_RATIO:
        raise ReadError(file, "is deflated and might be too large in memory", "store it uncompressed")
    data = head + stream.read()
    start = _meta(data)[1]
    return data[:start] + zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:])


def _meta(data: bytes) -> tuple[dict[str, Value], int]:
    """File meta information, and where the dataset begins."""
    at = 132 if data[128:132] == b"DICM" else 0
    values: dict[str, Value] = {}
    while at + 8 <= len(data) and data[at : at + 2] == b"\x02\0":
        tag, _, length, start = _element(data, at, True, "<")
        if (known := _WANTED.get(tag)) is not None:
            values[known[0]] = _value(data, start, length, "UI", "<")
        at = start + length
    return values, at


def _element(data: bytes, at: int, explicit: bool, order: str) -> tuple[int, bytes, int, int]:
    """Tag, VR ("" if implicit), length and start of the value of an element."""
    if at + 8 > len(data):
        raise _Short
    if order == "<":
        group, element, vr, length = _LITTLE(data, at)
    else:
        group, element, vr, length = _BIG(data, at)
    tag = group << 16 | element
    if not explicit or group == 0xFFFE:
        return tag, b"", struct.unpack_from(order + "I", data, at + 4)[0], at + 8
    if vr in _SHORT:
        return tag, vr, length, at + 8
    if vr not in _LONG:
        raise ValueError("no value representation")
    if at + 12 > len(data):
        raise _Short
    return tag, vr, struct.unpack_from(order + "I", data, at + 8)[0], at + 12


_LITTLE, _BIG = struct.Struct("<HH2sH").unpack_from, struct.Struct(">HH2sH").unpack_from


def _parsed(file: Path, data: bytes, stamp: tuple[int, int], complete: bool) -> Header:
    values, at = _meta(data)
    syntax = Elements(file, values).text("TransferSyntaxUID")
    explicit = data[at + 4 : at + 6] in _LONG | _SHORT
    big = syntax == uid.ExplicitVRBigEndian or (
        not syntax and data[at : at + 1] == b"\0" and data[at + 1] != 0
    )
    order = ">" if big else "<"
    if not syntax:
        syntax = (
            uid.ExplicitVRBigEndian if big
            else uid.ExplicitVRLittleEndian if explicit
            else uid.ImplicitVRLittleEndian
        )  # fmt: skip
    groups: dict[str, tuple[int, int, bool]] = {}
    pixels = None
    try:
        for tag, vr, length, start in _walk(data, at, len(data), explicit, order):
            if tag in _PIXELS:
                pixels = (_PIXELS[tag], start, length)
                break
            if length == 0:
                continue
            if (known := _WANTED.get(tag)) is not None:
                keyword, usual = known
                kind = vr.decode() if vr not in (b"", b"UN") else usual
                if usual == "SQ":
                    groups[keyword] = (start, length, explicit and vr != b"UN")
                else:
                    values[keyword] = _value(data, start, length, kind, order)
            elif tag in _CREATORS:
                values[_CREATORS[tag]] = data[start : start + length]
    except _Short:
        if not complete:
            raise
    _drop_strangers(values)
    shared: dict[str, Value] = {}
    frames: list[dict[str, Value]] = []
    for keyword, (at, length, explicit) in groups.items():
        if keyword == "SharedFunctionalGroupsSequence":
            shared = next(_items(data, at, length, explicit, order), {})
        elif keyword == "PerFrameFunctionalGroupsSequence":
            frames = list(_items(data, at, length, explicit, order))
        else:
            values[keyword] = b"1"  # that it is there is all that is asked
    words = _words(Elements(file, values))
    for keyword in _DESCRIPTIONS:
        values.pop(keyword, None)
    return Header(file, syntax, values, frames, shared, words, pixels, stamp, big)


def _drop_strangers(values: dict[str, Value]) -> None:
    """Forget private elements of blocks that belong to someone else."""
    for tag, creator in _CREATORS.items():
        said = values.pop(creator, None)
        if not isinstance(said, bytes) or said.strip(b" \0").decode("latin-1").upper() != creator.upper():
            for private in (t for t in _WANTED if t >> 16 == tag >> 16):
                values.pop(_WANTED[private][0], None)


def _words(elements: Elements) -> Words:
    given = elements.get("ContrastBolusAgentSequence") is not None
    return words_of(*map(elements.text, _DESCRIPTIONS), given)


def _value(data: bytes, at: int, length: int, vr: str, order: str) -> Value:
    if (code := _NUMBERS.get(vr)) is not None:
        size = struct.calcsize(code)
        return struct.unpack_from(f"{order}{length // size}{code}", data, at)
    return data[at : at + length].strip(b" \0")


def _walk(
    data: bytes, at: int, end: int, explicit: bool, order: str
) -> Iterator[tuple[int, bytes, int, int]]:
    """The elements of a dataset: tag, VR, length and start of the value. Stops at the end of an item.

    Raises
    ------
    _Short
        If an element begins or ends behind the end of the bytes.
    """
    while at < end:
        tag, vr, length, start = _element(data, at, explicit, order)
        if tag == _ITEM_END:
            yield tag, vr, 0, start
            return
        if tag in _PIXELS:
            yield tag, vr, length, start
        if length == _UNDEFINED:
            past = _end(data, start, explicit and vr != b"UN", order)
            yield tag, vr, length, start
            at = past
        else:
            at = start + length
            if at > len(data):
                raise _Short
            yield tag, vr, length, start


def _end(data: bytes, at: int, explicit: bool, order: str) -> int:
    """Where a sequence of undefined length ends, beginning at its first item."""
    while True:
        tag, _, length, at = _element(data, at, explicit, order)
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise ValueError("no item")
        if length != _UNDEFINED:
            at += length
            continue
        for tag, _, _, start in _walk(data, at, len(data), explicit, order):  # noqa: B007
            at = start
        if tag != _ITEM_END:
            raise _Short


def _items(data: bytes, at: int, length: int, explicit: bool, order: str) -> Iterator[dict[str, Value]]:
    """The wanted elements of each item of a sequence, those of nested sequences behind those above them."""
    end = len(data) if length == _UNDEFINED else at + length
    while at + 8 <= end:
        tag, _, size, at = _element(data, at, explicit, order)
        if tag != _ITEM:
            return
        found: dict[str, Value] = {}
        inner: list[tuple[int, int, bool]] = []
        past = at + size
        for tag, vr, extent, start in _walk(
            data, at, end if size == _UNDEFINED else at + size, explicit, order
        ):
            if tag == _ITEM_END:
                past = start
            elif vr == b"SQ" or extent == _UNDEFINED or (vr in (b"", b"UN") and _is_sequence(tag)):
                inner.append((start, extent, explicit and vr != b"UN"))
            elif extent and (known := _WANTED.get(tag)) is not None:
                kind = vr.decode() if vr not in (b"", b"UN") else known[1]
                found[known[0]] = _value(data, start, extent, kind, order)
        for where, extent, spelled in inner:
            for nested in _items(data, where, extent, spelled, order):
                found = nested | found
                break
        at = past
        yield found


def _is_sequence(tag: int) -> bool:
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False
