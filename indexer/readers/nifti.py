"""NIfTI-1 and NIfTI-2 files (.nii, also .gz, .bz2 and .zst), read by nibabel.

Every image is brought to RAS+ by permuting and flipping axes, never by resampling
(as :func:`nibabel.as_closest_canonical` does). ``scl_slope`` and ``scl_inter`` are applied; values keep
their type where it is a small integer and unscaled, and are float32 otherwise.

What lies beyond the third axis:

* as many volumes as ``cbir.json`` names channels: each is a scan of its own sequence;
* without names, :func:`indexer.readers.limits.volumes_kept` says how many of them are scans, of the sequence
  that the file's name tells, if any;
* two axes longer than one (time and channels): refused;
* vectors, tensors and the like (by intent, or on the fifth axis), such as a displacement field: refused.

A channel with the same value everywhere holds no image and is left out; an image that has nothing else
is refused. Non-finite voxels, complex numbers, colour triples and files without a usable voxel size or
orientation are refused.
"""

from __future__ import annotations

import bz2
import gzip
import logging
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
from numpy.typing import NDArray

import indexer.readers.volumes as volumes
from indexer import watch
from indexer.errors import ReadError
from indexer.readers.limits import (
    MAX_RATIO,
    MAX_VOXELS,
    SHEARED,
    is_sheared,
    refuse_affine,
    refuse_size,
    volumes_kept,
)
from indexer.readers.source import Source
from indexer.scan import Scan

nib: Any = nibabel  # only partly typed

MOST_BYTES = 8 * MAX_VOXELS + 2**20
"""That an unpacked file may declare where its packing sets no limit."""

_VECTORS = {
    1004: "matrices",
    1005: "tensors",
    1006: "displacements",
    1007: "vectors",
    1008: "points",
    1009: "triangles",
    1010: "quaternions",
}
"""Intent codes (nifti1.h) of files whose numbers belong together by voxel: they are no images."""

_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_QUIET = logging.Logger("nibabel header checks", logging.CRITICAL + 1)


def claims(file: Path) -> bool:
    """Whether a file is to be read as NIfTI, by its name."""
    return file.name.lower().endswith((".nii", ".nii.gz", ".nii.bz2", ".nii.zst"))


def read(source: Source) -> list[Scan]:
    """One scan a volume.

    The first of the source's region files that lies on the image's own grid becomes the scans' region;
    one on another grid is left aside.

    Raises
    ------
    ReadError
        With the reason for which the file, or a region file, cannot be read.
    """
    return volumes.read(source, load)


def load(path: Path, channels: Sequence[str] = ()) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The volumes of a file in RAS+.

    Returns
    -------
    voxels : ndarray, shape (x, y, z, volumes)
    affine : ndarray, shape (4, 4)
        Voxel indices to RAS+ millimetres.

    Raises
    ------
    ReadError
        If the file is no NIfTI file, is damaged, too large, or says too little about its grid.
    """
    watch.at(path)
    try:
        with _opened(path) as (stream, longest):
            header = _header(path, stream)
            shape = _shape(path, header)
            dtype, start = header.get_data_dtype(), header.get_data_offset()
            if dtype.kind not in "iuf":
                label = header.get_value_label("datatype")
                raise ReadError(path, f"holds {label} values", "save one real number a voxel")
            end = start + math.prod(shape) * dtype.itemsize
            _refuse_vectors(path, header, named=shape[3] == len(channels))
            if shape[3] != len(channels):
                shape = (*shape[:3], volumes_kept(shape[3]))
            refuse_size(path, shape[:3], shape[3])
            if end > longest:
                raise ReadError(path, f"is truncated: it declares {end:,} bytes", "copy it again")
            affine = _affine(path, header, shape)
            if is_sheared(affine, shape[:3]):
                raise ReadError(path, *SHEARED)
            slope, inter = header.get_slope_inter()
            scaling = (1.0 if slope is None else slope, 0.0 if inter is None else inter)
            proxy = nib.arrayproxy.ArrayProxy(stream, (shape, dtype, start, *scaling), mmap=False)
            if scaling == (1.0, 0.0) and dtype.kind in "iu" and dtype.itemsize <= 2:
                voxels = proxy.get_unscaled().astype(dtype.newbyteorder("="), copy=False)
            else:
                with np.errstate(
                    over="ignore", invalid="ignore"
                ):  # an overflow becomes infinite, and is refused as such
                    voxels = np.asarray(proxy, dtype=np.float32)
            if isinstance(stream, gzip.GzipFile):
                _finish(path, stream, end)
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        OverflowError,
        MemoryError,
        nib.spatialimages.HeaderDataError,
    ) as error:
        system = getattr(error, "strerror", None)
        reason = f"cannot be read ({system})" if system else f"is damaged or truncated ({error})"
        raise ReadError(path, reason.replace("\n", ""), "check the file") from error
    orientation = nib.io_orientation(affine)
    canonical = affine @ nib.orientations.inv_ornt_aff(orientation, shape[:3])
    return nib.apply_orientation(voxels, orientation), canonical


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, int]]:
    """The file's bytes, unzipped where they are zipped, and the most there can be of them."""
    with path.open("rb") as file:
        length = path.stat().st_size
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            yield gzip.GzipFile(fileobj=file), length * MAX_RATIO
        elif start[:3] == b"BZh":
            with bz2.BZ2File(file) as stream:
                yield stream, MOST_BYTES
        elif start == b"\x28\xb5\x2f\xfd":
            with _zstd(path).ZstdFile(file) as stream:
                yield stream, MOST_BYTES
        else:
            yield file, length


def _zstd(path: Path) -> Any:
    try:
        from backports import zstd
    except ImportError:
        raise ReadError(
            path, "needs a package that is not installed", "install it: pip install 'cbir[formats]'"
        ) from None
    return zstd


def _header(path: Path, stream: IO[bytes] | gzip.GzipFile) -> Any:
    """The header alone, without the extensions that may follow it."""
    block = stream.read(4)
    size = {int.from_bytes(block, order) for order in ("little", "big")} & _HEADERS.keys()
    if not size:
        raise ReadError(path, "is not a NIfTI file, whatever its name says", "check what it holds")
    kind = _HEADERS[size.pop()]
    block += stream.read(kind.sizeof_hdr - 4)
    if len(block) < kind.sizeof_hdr:
        raise ReadError(path, "is truncated within its header", "copy it again")
    header = kind(block, check=False)
    if header["magic"].item() != kind.single_magic:
        raise ReadError(path, "is half of a pair, or in the older Analyze format", "convert it to .nii.gz")
    pixdim = header["pixdim"].copy()
    header.check_fix(logger=_QUIET)
    header["pixdim"][1:4] = pixdim[1:4]  # nibabel would turn an unknown voxel size into 1 mm
    if header.get_data_offset() < kind.single_vox_offset:
        raise ReadError(path, "says that its voxels begin inside its header", "check the file")
    return header


def _shape(path: Path, header: Any) -> tuple[int, int, int, int]:
    """Shape as (x, y, z, volumes)."""
    declared = tuple(map(int, header.get_data_shape()))
    if min(declared, default=1) < 1:
        refuse_size(path, declared)
    beyond = [n for n in declared[3:] if n != 1]
    if len(beyond) > 1:
        size = "×".join(map(str, declared))
        raise ReadError(
            path, f"has {size} voxels: more than one axis beyond space", "save one axis of volumes"
        )
    x, y, z = (*declared, 1, 1, 1)[:3]
    return x, y, z, beyond[0] if beyond else 1


def _refuse_vectors(path: Path, header: Any, named: bool) -> None:
    """Refuse what holds a vector a voxel, by its intent or on the fifth axis, which is theirs.

    Some software also stores channels there, as vectors or as nothing in particular; names tell.
    """
    intent = int(header["intent_code"])
    fifth = int(header["dim"][0]) >= 5 and int(header["dim"][5]) > 1
    if intent in _VECTORS and not (named and intent == 1007):
        what = _VECTORS[intent]
    elif fifth and not named:
        what = "vectors"
    else:
        return
    remedy = "leave it out, or name its channels in cbir.json"
    raise ReadError(path, f"holds {what} (a displacement field?), and no image", remedy)


def _affine(path: Path, header: Any, shape: tuple[int, int, int, int]) -> NDArray[np.float64]:
    """Voxel indices to RAS+ millimetres: sform, else qform, else what nibabel assumes of the voxel size."""
    sizes = header["pixdim"][1:4]
    if header["sform_code"] == 0:
        sizes[(np.array(shape[:3]) == 1) & (sizes == 0)] = 1  # a single plane need not say how thick it is
        if not (np.isfinite(sizes) & (sizes > 0)).all():
            raise ReadError(path, f"gives no voxel size (pixdim {tuple(map(float, sizes))})", "set it")
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    refuse_affine(path, affine, "set its sform")
    return affine


def _finish(path: Path, stream: gzip.GzipFile, end: int) -> None:
    """Read on past the declared end, where a short stream and a wrong checksum show."""
    while stream.tell() <= end and stream.read(1 << 20):
        pass
    if stream.tell() < end:
        raise ReadError(path, f"is truncated: {stream.tell():,} of {end:,} bytes are there", "copy it again")
