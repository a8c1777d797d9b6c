"""MetaImage (.mha, .mhd): a header of ``Key = value`` lines, then voxels, raw or deflated, or their file.

Format: MetaIO, "MetaImage" (https://itk.org/Wiki/ITK/MetaIO/Documentation). What it allows and is not
understood here is refused: voxels as text or in several files, rotations about another centre.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer import watch
from indexer.errors import ReadError
from indexer.readers.limits import refuse_ratio
from indexer.readers.volumes import Volumes, beside, kept

MOST_BYTES = 2**16
"""Of a header."""

TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # MetaIO writes 4 bytes, whatever the platform's long has
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def load(file: Path, channels: Sequence[str] = ()) -> Volumes:
    """The volumes of a file, as they are stored: shape (x, y, z, volumes), and the affine to LPS+ mm.

    Raises
    ------
    ReadError
        If it cannot be read or understood.
    """
    watch.at(file)
    try:
        header, end = _header(file)
        return _voxels(file, header, end, channels), _affine(header)
    except ReadError:
        raise
    except OSError as error:
        raise ReadError(file, f"cannot be read ({error.strerror})", "check the file") from error
    except (KeyError, ValueError, IndexError, OverflowError, zlib.error) as error:
        reason = f"is damaged or truncated ({type(error).__name__})"  # its text quotes the header
        raise ReadError(file, reason, "check the file") from error


def _header(file: Path) -> tuple[dict[str, str], int]:
    """The fields, and where in the file they end."""
    with file.open("rb") as stream:
        start = stream.read(MOST_BYTES)
    header: dict[str, str] = {}
    end = 0
    while "ElementDataFile" not in header:
        length = start[end:].find(b"\n") + 1
        line = start[end : end + length] if length else start[end:]
        key, equals, value = line.decode("ascii", "replace").partition("=")
        if not equals:
            raise ReadError(file, "is no MetaImage, whatever its name says", "check what it holds")
        header[key.strip()] = value.strip()
        end += len(line)
    if header.get("ObjectType", "Image").lower() != "image":
        raise ReadError(file, f"holds a {header['ObjectType']}, no image", "give its image")
    if not _is_true(header, "BinaryData", "True"):
        raise ReadError(file, "holds its voxels as text", "save them binary")
    center = _numbers(header, "CenterOfRotation")
    if any(center) and not np.allclose(_rotation(header), np.eye(len(center))):
        raise ReadError(file, "is rotated about a centre of its own", "resample it to a plain grid")
    return header, end


def _voxels(
    file: Path, header: Mapping[str, str], end: int, channels: Sequence[str]
) -> NDArray[np.number[Any]]:
    size = tuple(map(int, header["DimSize"].split()))
    if len(size) != int(header["NDims"]) or len(size) not in (2, 3, 4):
        raise ReadError(file, f"has {header['NDims']} axes of {header['DimSize']} voxels", "save a 3-D image")
    components = int(header.get("ElementNumberOfChannels", 1))
    volumes = size[3] if len(size) == 4 else 1
    if volumes > 1 and components > 1:
        raise ReadError(file, "has volumes of several components each", "save one axis of volumes")
    x, y, z, count = kept(file, (*(*size, 1)[:3], volumes * components), channels)
    if header["ElementType"] not in TYPES:
        raise ReadError(file, f"holds {header['ElementType']} values", "save one real number a voxel")
    big = _is_true(header, "BinaryDataByteOrderMSB") or _is_true(header, "ElementByteOrderMSB")
    dtype = np.dtype(TYPES[header["ElementType"]]).newbyteorder(">" if big else "<")
    needed = math.prod(size) * components * dtype.itemsize
    content = _content(file, header, end, needed)
    if len(content) < needed:
        raise ReadError(file, f"is truncated: {len(content):,} of {needed:,} bytes", "copy it again")
    stored = np.frombuffer(content, dtype, needed // dtype.itemsize)
    voxels = stored.reshape(volumes, z, y, x, components).transpose(3, 2, 1, 0, 4).reshape(x, y, z, -1)
    return voxels[..., :count]


def _content(file: Path, header: Mapping[str, str], end: int, needed: int) -> bytes:
    """The bytes of the voxels; fewer than needed if there are no more."""
    name = header["ElementDataFile"]
    if name.upper() == "LIST" or "%" in name:
        raise ReadError(file, "has its voxels in several files", "save it as one .mha")
    where = file if name.upper() == "LOCAL" else beside(file, name)
    skipped = end if where == file else int(header.get("HeaderSize", 0))
    length = where.stat().st_size
    packed = _is_true(header, "CompressedData")
    refuse_ratio(file, needed, max(length - max(skipped, 0), 0))
    if skipped < 0:  # all that lies before the voxels, which end with the file
        if packed:
            raise ReadError(file, "has packed voxels that begin nobody knows where", "save it as .mha")
        skipped = max(length - needed, 0)
    with where.open("rb") as stream:
        stream.seek(skipped)
        if not packed:
            return stream.read(needed)
        unpacked = zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib or gzip
        return unpacked.decompress(stream.read(), needed)


def _affine(header: Mapping[str, str]) -> NDArray[np.float64]:
    count = int(header["NDims"])
    n = min(count, 3)
    spacing = _numbers(header, "ElementSpacing") or _numbers(header, "ElementSize") or [1.0] * count
    origin = _numbers(header, "Offset", "Position", "Origin") or [0.0] * count
    affine = np.eye(4)
    affine[:n, :n] = _rotation(header)[:n, :n].T * np.array(spacing[:n])  # a row is the direction of an axis
    affine[:n, 3] = origin[:n]
    return affine


def _rotation(header: Mapping[str, str]) -> NDArray[np.float64]:
    """Directions of the axes, one a row."""
    count = int(header["NDims"])
    said = _numbers(header, "TransformMatrix", "Rotation", "Orientation")
    return np.array(said).reshape(count, count) if said else np.eye(count)


def _numbers(header: Mapping[str, str], *keys: str) -> list[float]:
    """The numbers of the first of these fields that is there."""
    return next(([float(n) for n in header[key].split()] for key in keys if key in header), [])


def _is_true(header: Mapping[str, str], key: str, default: str = "False") -> bool:
    return header.get(key, default).lower() in ("true", "1")
