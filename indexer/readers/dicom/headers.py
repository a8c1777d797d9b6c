"""Headers of DICOM files: the elements that the reader needs, parsed once and kept without what identifies.

The encoding is that of PS3.5 (7.1 elements, 7.5 sequences) and PS3.10 (7.1 file meta information). Only the
elements listed here are ever kept; names, birth dates and the like stay in the file. Descriptions are
looked at for the words that name a sequence, and then dropped.
"""

from __future__ import annotations

import functools
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

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
_PRIVATE = {keyword: tag for tag, (keyword, _) in _WANTED.items() if tag >> 16 & 1}
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

Value = bytes | tuple[float, ...]
"""Text as it is stored, or the numbers of a binary element."""


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
        """The first of the elements that is there; empty ones are not."""
        for keyword in keywords:
            for level in self.levels:
                if keyword in level:
                    return level[keyword]
        return None

    def texts(self, *keywords: str) -> tuple[str, ...]:
        """The values of an element as texts; empty if it is not there."""
        text = self.text(*keywords)
        return tuple([part.strip(" \0") for part in text.split("\\")]) if text else ()

    def text(self, *keywords: str) -> str:
        """The whole element as text; "" if it is not there."""
        value = self.get(*keywords)
        if value is None:
            return ""
        if isinstance(value, tuple):
            return "\\".join(f"{number:.15g}" for number in value)
        if value.isascii():
            return value.decode("ascii")
        charset = self.get("SpecificCharacterSet")
        names = charset.decode("ascii", "replace").split("\\") if isinstance(charset, bytes) else [""]
        return str(decode_bytes(value, convert_encodings([name.strip() for name in names]), set())).strip()

    def numbers(self, *keywords: str) -> tuple[float, ...]:
        """The values of an element as numbers; empty if it is not there or one of them is not finite.

        Raises
        ------
        ReadError
            If it holds something else. The message names the element, but does not quote it.
        """
        value = self.get(*keywords)
        if value is None:
            return ()
        if isinstance(value, bytes):
            text = value
            try:
                value = tuple([float(part.strip(b" \0") or b"nan") for part in text.split(b"\\")])
            except ValueError:
                keyword = next(k for k in keywords if self.get(k))
                raise self._not_numbers(keyword, text) from None
        for number in value:
            if number - number != 0:  # neither infinite nor not a number
                return ()
        return value

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


class Pixels(NamedTuple):
    """The element that holds a file's pixels.

    Attributes
    ----------
    keyword : str
        ``PixelData``, ``FloatPixelData`` or ``DoubleFloatPixelData``.
    start, length : int
        Of its value; a length of 0xFFFFFFFF is undefined. In a deflated file, as if it were not.
    vr : str
    """

    keyword: str
    start: int
    length: int
    vr: str


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
    pixels : Pixels, optional
        Where the pixels are; None if the file ends before them.
    stamp : tuple
        Size and modification time of the file that was parsed.
    """

    file: Path
    syntax: str
    values: dict[str, Value]
    frames: list[dict[str, Value]]
    shared: dict[str, Value]
    words: Words
    pixels: Pixels | None
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


@functools.cache
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
        data = stream.read(_HEAD)
        if not begins_like_dicom(data[:132]):
            raise ReadError(file, "is not DICOM", "rename or remove it")
        complete = False
        if uid.DeflatedExplicitVRLittleEndian.encode() in data[:1024]:
            data, complete = inflated(file, stream, data), True
        while True:
            complete = complete or len(data) >= stat.st_size
            try:
                return _parsed(file, data, (stat.st_size, stat.st_mtime_ns), complete)
            except (_Short, struct.error):
                if complete:
                    raise
            more = stream.read(15 * len(data))
            data, complete = data + more, not more


def inflated(file: Path, stream: IO[bytes], head: bytes = b"") -> bytes:
    """The bytes of a deflated file as if it had not been deflated (PS3.5 A.5)."""
    if os.fstat(stream.fileno()).st_size > MAX_VOXELS // _DEFLATE_RATIO:
        raise ReadError(file, "is deflated and might be too large in memory", "store it uncompressed")
    data = head + stream.read()
    start = _meta(data)[1]
    return data[:start] + zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:])


class _Coding(NamedTuple):
    """How elements are coded: with or without their VR, in which order of bytes."""

    explicit: bool
    order: str
    head: Callable[[bytes, int], tuple[int, int, bytes, int]]
    long: Callable[[bytes, int], tuple[int]]

    @classmethod
    def of(cls, explicit: bool, order: str = "<") -> _Coding:
        return cls(
            explicit,
            order,
            struct.Struct(order + "HH2sH").unpack_from,
            struct.Struct(order + "I").unpack_from,
        )

    def within(self, vr: bytes) -> _Coding:
        """Of the items of a sequence: those of an unknown VR are implicit (PS3.5 6.2.2)."""
        return self if vr != b"UN" else _IMPLICIT

    def element(self, data: bytes, at: int) -> tuple[int, bytes, int, int]:
        """Tag, VR ("" if implicit), length and start of the value of an element.

        Raises
        ------
        struct.error
            If the bytes end before.
        """
        group, element, vr, length = self.head(data, at)
        if self.explicit and group != 0xFFFE:
            if vr in _SHORT:
                return group << 16 | element, vr, length, at + 8
            if vr in _LONG:
                return group << 16 | element, vr, self.long(data, at + 8)[0], at + 12
            raise ValueError("no value representation")
        return group << 16 | element, b"", self.long(data, at + 4)[0], at + 8


_EXPLICIT, _IMPLICIT = _Coding.of(True), _Coding.of(False)
_EXPLICIT_BIG = _Coding.of(True, ">")


def _meta(data: bytes) -> tuple[dict[str, Value], int]:
    """File meta information, and where the dataset begins."""
    at = 132 if data[128:132] == b"DICM" else 0
    values: dict[str, Value] = {}
    while data[at : at + 2] == b"\x02\0":
        tag, _, length, start = _EXPLICIT.element(data, at)
        if (known := _WANTED.get(tag)) is not None:
            values[known[0]] = _value(data, start, length, "UI", "<")
        at = start + length
    return values, at


def _parsed(file: Path, data: bytes, stamp: tuple[int, int], complete: bool) -> Header:
    values, at = _meta(data)
    syntax = Elements(file, values).text("TransferSyntaxUID")
    explicit = data[at + 4 : at + 6] in _LONG | _SHORT
    big = syntax == uid.ExplicitVRBigEndian or (not syntax and data[at : at + 2] == b"\0\x08")
    coding = _EXPLICIT_BIG if big else _EXPLICIT if explicit else _IMPLICIT
    if not syntax:
        syntax = (
            uid.ExplicitVRBigEndian if big
            else uid.ExplicitVRLittleEndian if explicit
            else uid.ImplicitVRLittleEndian
        )  # fmt: skip
    groups: dict[str, tuple[int, int, _Coding]] = {}
    creators: dict[int, bytes] = {}
    pixels = None
    size, head, long = len(data), coding.head, coding.long
    try:
        while at < size:
            # as `_Coding.element`, written out: there are hundreds of elements in each of thousands of files
            group, element, vr, length = head(data, at)
            if not coding.explicit or group == 0xFFFE:
                vr, length, start = b"", long(data, at + 4)[0], at + 8
            elif vr in _SHORT:
                start = at + 8
            elif vr in _LONG:
                length, start = long(data, at + 8)[0], at + 12
            else:
                raise ValueError("no value representation")
            tag = group << 16 | element
            if tag in _PIXELS:
                pixels = Pixels(_PIXELS[tag], start, length, vr.decode() or "OW")
                break
            at = start + length if length != _UNDEFINED else _end(data, start, coding.within(vr))
            if at > size:
                raise _Short
            if length == 0 or tag not in _WANTED:
                if tag in _CREATORS:
                    creators[tag] = data[start : start + length]
                continue
            keyword, usual = _WANTED[tag]
            kind = vr.decode() if vr not in (b"", b"UN") else usual
            if usual == "SQ":
                groups[keyword] = (start, length, coding.within(vr))
            elif value := _value(data, start, length, kind, coding.order):
                values[keyword] = value
    except (_Short, struct.error):
        if not complete:
            raise _Short from None
    _drop_strangers(values, creators)
    shared: dict[str, Value] = {}
    frames: list[dict[str, Value]] = []
    for keyword, (start, length, within) in groups.items():
        if keyword == "SharedFunctionalGroupsSequence":
            shared = next(_items(data, start, length, within), {})
        elif keyword == "PerFrameFunctionalGroupsSequence":
            frames = list(_items(data, start, length, within))
        else:
            values[keyword] = b"1"  # that it is there is all that is asked
    words = _words(Elements(file, values))
    for keyword in _DESCRIPTIONS:
        values.pop(keyword, None)
    return Header(file, syntax, values, frames, shared, words, pixels, stamp, big)


def _drop_strangers(values: dict[str, Value], creators: Mapping[int, bytes]) -> None:
    """Forget private elements of blocks that belong to someone else."""
    for keyword, tag in _PRIVATE.items():
        if keyword in values:
            block = tag >> 16 << 16 | 0x10
            said = creators.get(block, b"").strip(b" \0").decode("latin-1")
            if said.upper() != _CREATORS[block].upper():
                del values[keyword]


def _words(elements: Elements) -> Words:
    given = elements.get("ContrastBolusAgentSequence") is not None
    return words_of(*map(elements.text, _DESCRIPTIONS), given)


def _value(data: bytes, at: int, length: int, vr: str, order: str) -> Value:
    if (code := _NUMBERS.get(vr)) is not None:
        size = struct.calcsize(code)
        return struct.unpack_from(f"{order}{length // size}{code}", data, at)
    return data[at : at + length].strip(b" \0")


def _end(data: bytes, at: int, coding: _Coding) -> int:
    """Where a sequence of undefined length ends, beginning at its first item."""
    while True:
        tag, _, length, at = coding.element(data, at)
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise ValueError("no item")
        if length != _UNDEFINED:
            at += length
            continue
        while tag != _ITEM_END:
            tag, vr, length, at = coding.element(data, at)
            at = at + length if length != _UNDEFINED else _end(data, at, coding.within(vr))


def _items(data: bytes, at: int, length: int, coding: _Coding) -> Iterator[dict[str, Value]]:
    """The wanted elements of each item of a sequence, those of nested sequences behind those above them."""
    end = len(data) if length == _UNDEFINED else at + length
    while at < end:
        tag, _, size, at = coding.element(data, at)
        if tag != _ITEM:
            return
        found: dict[str, Value] = {}
        inner: list[tuple[int, int, _Coding]] = []
        past = end if size == _UNDEFINED else at + size
        while at < past:
            tag, vr, extent, start = coding.element(data, at)
            if tag == _ITEM_END:
                at = start
                break
            at = start + extent if extent != _UNDEFINED else _end(data, start, coding.within(vr))
            if vr == b"SQ" or extent == _UNDEFINED or (vr in (b"", b"UN") and _is_sequence(tag)):
                inner.append((start, extent, coding.within(vr)))
            elif extent and (known := _WANTED.get(tag)) is not None:
                kind = vr.decode() if vr not in (b"", b"UN") else known[1]
                if value := _value(data, start, extent, kind, coding.order):
                    found[known[0]] = value
        for where, extent, within in inner:
            for nested in _items(data, where, extent, within):
                found = nested | found if nested else found
                break
        yield found


@functools.cache
def _is_sequence(tag: int) -> bool:
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False
