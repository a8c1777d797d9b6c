"""Stored values of pixels, whatever they are coded in, and the real values they stand for.

What pydicom's decoders leave is cut to the bits that are stored (PS3.5 8.1.1): a codec may hand through
what else was in the cell, such as an overlay, and knows no sign.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from indexer.errors import ReadError
from indexer.readers.dicom.headers import EXPORT, Header, guarded, inflated
from indexer.readers.dicom.planes import Plane
from indexer.readers.limits import refuse_ratio

_UNDEFINED = 0xFFFFFFFF
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_FLOATS = {"FloatPixelData": "f4", "DoubleFloatPixelData": "f8"}
_RECODE = {
    **dict.fromkeys((*uid.JPEGLSTransferSyntaxes,), "dcmdjpls"),
    **dict.fromkeys((*uid.JPEGTransferSyntaxes,), "dcmdjpeg"),
    **dict.fromkeys((*uid.RLETransferSyntaxes,), "dcmdrle"),
    **dict.fromkeys((*uid.JPEG2000TransferSyntaxes,), "gdcmconv --raw"),
}
"""Well-known programs that store pixels uncompressed, by what they were compressed with."""


def frames(header: Header, wanted: Collection[int] | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
    """Decode a file's frames.

    Parameters
    ----------
    header : Header
    wanted : collection of int, optional
        Numbers of the frames to decode, counted from 0; all if not given.

    Yields
    ------
    number : int
    pixels : ndarray, shape (rows, columns) or (rows, columns, 3)
        Stored values, or RGB.

    Raises
    ------
    ReadError
        If there are fewer or more pixels than the header declares, or they cannot be decoded.
    """
    file, elements = header.file, header.elements
    count = elements.count("NumberOfFrames", 1) or 1
    numbers = range(count) if wanted is None else sorted(wanted)
    syntax = uid.UID(header.syntax)
    name = syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"
    recode = _RECODE.get(syntax)
    remedy = f"store it uncompressed, e.g. with {recode}" if recode else EXPORT
    with guarded(file, f"its pixel data cannot be decoded as {name}", remedy):
        stored, high = _bits(header)
        if syntax.is_encapsulated:
            yield from _encapsulated(header, syntax, count, numbers, stored, high)
        else:
            yield from _native(header, syntax, count, numbers, stored, high)


def _bits(header: Header) -> tuple[int, int]:
    """BitsStored and HighBit."""
    elements = header.elements
    if header.pixels is not None and header.pixels[0] in _FLOATS:
        return 0, 0
    allocated = elements.count("BitsAllocated")
    stored = elements.count("BitsStored") or allocated
    high = elements.number("HighBit")
    top = stored - 1 if high is None else int(high)
    if not 1 <= stored <= top + 1 <= allocated:
        reason = f"its header contradicts itself: {stored} bits stored, bit {top} the highest of {allocated}"
        raise ReadError(header.file, reason, EXPORT)
    return stored, top


def _options(header: Header) -> dict[str, Any]:
    """What pydicom's decoders need to know of one frame."""
    elements = header.elements
    samples = elements.count("SamplesPerPixel", 1)
    return {
        "rows": elements.count("Rows"),
        "columns": elements.count("Columns"),
        "samples_per_pixel": samples,
        "number_of_frames": 1,
        "bits_allocated": elements.count("BitsAllocated"),
        "bits_stored": elements.count("BitsStored") or elements.count("BitsAllocated"),
        "pixel_representation": elements.count("PixelRepresentation"),
        "photometric_interpretation": elements.text("PhotometricInterpretation"),
        "pixel_keyword": "PixelData",
        **({"correct_unused_bits": False} if samples == 1 else {}),  # that is done here, whatever decodes
        **({"planar_configuration": elements.count("PlanarConfiguration")} if samples > 1 else {}),
    }


def _native(
    header: Header, syntax: uid.UID, count: int, numbers: Collection[int], stored: int, high: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    assert header.pixels is not None
    keyword, start, length, vr = header.pixels
    elements = header.elements
    rows, columns = elements.count("Rows"), elements.count("Columns")
    samples, bits = elements.count("SamplesPerPixel", 1), elements.count("BitsAllocated")
    bits = 8 * np.dtype(_FLOATS[keyword]).itemsize if keyword in _FLOATS else bits
    subsampled = elements.text("PhotometricInterpretation") == "YBR_FULL_422"
    bits_a_frame = rows * columns * (2 if subsampled else samples) * bits
    size = bits_a_frame // 8
    there = _length(header)
    if there * 8 < bits_a_frame * count:
        raise ReadError(header.file, "its pixel data is shorter than its header says", EXPORT)
    if there >= size * (count + 1):
        raise ReadError(header.file, "its pixel data has another size than its header says", EXPORT)
    if samples > 1 or bits % 8 or (header.big and bits == 8):
        options = _options(header) | {"number_of_frames": count, "pixel_vr": vr}
        decoded = get_decoder(syntax).iter_array(_bytes(header, start, length), **options)
        for number, (pixels, _) in enumerate(decoded):
            if number in numbers:
                yield number, _cut(pixels, stored, high) if samples == 1 and bits > 1 else pixels
        return
    order = ">" if header.big else "<"
    if keyword in _FLOATS:
        dtype = np.dtype(order + _FLOATS[keyword])
    else:
        dtype = np.dtype(f"{order}{'i' if elements.count('PixelRepresentation') else 'u'}{bits // 8}")
    for number, data in _chunks(header, start, size, numbers):
        pixels = np.frombuffer(data, dtype).reshape(rows, columns)
        yield number, pixels if keyword in _FLOATS else _cut(pixels, stored, high)


def _length(header: Header) -> int:
    """Bytes of pixel data that are there."""
    assert header.pixels is not None
    _, start, length, _ = header.pixels
    if header.syntax == uid.DeflatedExplicitVRLittleEndian:
        return len(_bytes(header, start, length))
    return min(length, header.stamp[0] - start)


def _chunks(header: Header, start: int, size: int, numbers: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """The bytes of single frames."""
    if header.syntax == uid.DeflatedExplicitVRLittleEndian:
        data = _bytes(header, start, -1)
        yield from ((number, data[number * size : (number + 1) * size]) for number in numbers)
        return
    with open(header.file, "rb") as stream:  # noqa: PTH123 (4 µs a file)
        for number in numbers:
            stream.seek(start + number * size)
            yield number, stream.read(size)


def _bytes(header: Header, start: int, length: int) -> bytes:
    with header.file.open("rb") as stream:
        if header.syntax == uid.DeflatedExplicitVRLittleEndian:
            data = inflated(header.file, stream)
            return data[start:] if length < 0 else data[start : start + length]
        stream.seek(start)
        return stream.read(-1 if length == _UNDEFINED else length)


def _encapsulated(
    header: Header, syntax: uid.UID, count: int, numbers: Collection[int], stored: int, high: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    assert header.pixels is not None
    elements, options = header.elements, _options(header)
    shape = options["rows"], options["columns"]
    size = shape[0] * shape[1] * options["samples_per_pixel"] * options["bits_allocated"] // 8
    grey = options["samples_per_pixel"] == 1
    if high != stored - 1 and syntax not in uid.RLETransferSyntaxes:
        # where a codec leaves the bits is not told
        reason = f"is compressed, and its highest bit is {high} of {stored} stored"
        raise ReadError(header.file, reason, "store it uncompressed")
    table = elements.get("ExtendedOffsetTable"), elements.get("ExtendedOffsetTableLengths")
    offsets = None
    if all(isinstance(part, tuple) for part in table):
        offsets = tuple(struct.pack(f"<{len(part)}Q", *part) for part in table)  # type: ignore[arg-type, misc]
    codestreams = list(
        generate_frames(
            _bytes(header, header.pixels.start, header.pixels.length),
            number_of_frames=count,
            extended_offsets=offsets,  # type: ignore[arg-type]
        )
    )
    other = ReadError(header.file, "its compressed pixel data has another size than its header says", EXPORT)
    own = (None, shape) if syntax in uid.RLETransferSyntaxes else (shape,)  # a decoder goes by the stream's
    if any(len(c) > 2 * size + 2**16 or coded_shape(c) not in own for c in codestreams):
        raise other
    if len(codestreams) > count:
        raise ReadError(header.file, "its pixel data has another size than its header says", EXPORT)
    if len(codestreams) < count:
        raise ReadError(
            header.file, f"holds {len(codestreams)} of the {count} frames that its header declares", EXPORT
        )
    for codestream in codestreams:
        refuse_ratio(header.file, size, len(codestream))
    decoder = get_decoder(syntax)
    for number in numbers:
        if grey and syntax == uid.RLELossless:
            pixels = _unpacked(codestreams[number], shape, options)
        else:
            pixels, _ = decoder.as_array(encapsulate([codestreams[number]]), **options)
        if pixels.shape[:2] != shape:
            raise other
        yield number, _cut(pixels, stored, high) if grey else pixels


def _unpacked(codestream: bytes, shape: tuple[int, int], options: dict[str, Any]) -> NDArray[Any]:
    """A grey RLE frame (PS3.5 annex G): a segment for each byte of a value, the highest first.

    pydicom's decoder, which also does colour, spends more time around a frame than in it.
    """
    size = options["bits_allocated"] // 8
    count, *offsets = struct.unpack_from("<16I", codestream)
    if count != size:
        raise ValueError("segments")
    pixels = shape[0] * shape[1]
    planes = []
    for start, end in zip(offsets[:count], [*offsets[1:count], len(codestream)], strict=True):
        plane, at, left = [], start, pixels
        while at < end and left > 0:
            head = codestream[at]
            left -= head + 1 if head < 128 else 257 - head if head > 128 else 0
            if head < 128:  # so many bytes and one more as they are
                plane.append(codestream[at + 1 : min(at + head + 2, end)])
                at += head + 2
            else:  # the next byte, repeated; 128 is nothing
                if head > 128:
                    plane.append(codestream[at + 1 : at + 2] * (257 - head))
                at += 2 if head > 128 else 1
        planes.append(np.frombuffer(b"".join(plane), np.uint8, count=pixels))
    values = np.stack(planes, axis=-1).view(f">{'i' if options['pixel_representation'] else 'u'}{size}")
    return values[:, 0].astype(values.dtype.newbyteorder("=")).reshape(shape)


def _cut(pixels: NDArray[Any], stored: int, high: int) -> NDArray[Any]:
    """Values of the bits that are stored alone, with their sign (PS3.5 8.1.1)."""
    width = 8 * pixels.dtype.itemsize
    if stored == width:
        return pixels
    cut: NDArray[Any] = np.right_shift(np.left_shift(pixels, width - 1 - high), width - stored)
    return cut


def coded_shape(codestream: bytes) -> tuple[int, int] | None:
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


def intensities(pixels: NDArray[Any], plane: Plane) -> NDArray[np.float32]:
    """Real values of stored ones. MONOCHROME1 is inverted, except where values have a unit of their own."""
    elements = plane.header.elements
    photometric = elements.text("PhotometricInterpretation")
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, _tables(plane.header))
    if pixels.ndim == 3:
        return pixels.astype(np.float32) @ _LUMINANCE
    if elements.get("ModalityLUTSequence"):
        dataset = _tables(plane.header)
        values = apply_modality_lut(pixels, dataset).astype(np.float32)
        ends = 2.0 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    else:
        slope, intercept = (
            default if (value := plane.number(keyword)) is None else value
            for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
        if slope == 0:
            raise ReadError(plane.file, "its rescale slope is 0", EXPORT)
        values = pixels.astype(np.float32)
        if (slope, intercept) != (1.0, 0.0):
            values *= np.float32(slope)
            values += np.float32(intercept)
        signed = elements.count("PixelRepresentation")
        ends = slope * (-1 if signed else 2.0 ** elements.count("BitsStored") - 1) + 2 * intercept
    inverse = photometric == "MONOCHROME1" and plane.text("Modality") not in ("CT", "PT")
    return np.float32(ends) - values if inverse else values


def _tables(header: Header) -> FileDataset:
    """The look-up tables of a file, which hardly any has."""
    return pydicom.dcmread(header.file, stop_before_pixels=True, force=True)
