"""What a child process answers with: an object in a piece of memory, whose arrays are not copied again.

A child may have been taken over by what it read, so of what comes from it only plain values, arrays and
the records of this package are made (see *Restricting Globals* in the documentation of `pickle`).
"""

from __future__ import annotations

import builtins
import dataclasses
import enum
import fcntl
import importlib
import io
import mmap
import os
import pickle
import struct
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer import errors
from indexer.readers.source import Source

SMALL = 2**20
"""Bytes below which an answer is copied: mapped, it would hold a file open."""

APART = 2**12
"""Bytes from which an array lies by itself; smaller ones are copied with the rest."""

_ALIGN = 64
_NUMBER = struct.Struct("<Q")
_SAFE = {
    "builtins": {"set", "frozenset", "complex", "slice", "range", "bytearray"},
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "datetime": {"date", "datetime", "time", "timedelta"},
    "numpy": {"dtype", "ndarray"},
    "_codecs": {"encode"},
    __name__: {"turned", "uniform"},
}
_NUMPY = {"_frombuffer", "scalar", "_reconstruct"}
"""How numpy makes arrays and numbers again, in whatever of its own modules that is."""


_found: dict[tuple[str, str], Any] = {}
"""What was allowed before: to look it up again costs more than to read a small picture's answer."""


class Malformed(Exception):
    """An answer that is none."""


def uniform(shape: tuple[int, ...], value: NDArray[Any]) -> NDArray[Any]:
    """An array of one value, which takes no memory."""
    return np.broadcast_to(value, shape)


def turned(array: NDArray[Any], flips: tuple[int, ...], axes: tuple[int, ...]) -> NDArray[Any]:
    """An array with some axes turned round and all in another order: it is not copied."""
    return np.flip(array, flips).transpose(axes)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray and obj.size:
            if obj.ndim and not any(obj.strides):
                return uniform, (obj.shape, obj[(0,) * obj.ndim].reshape(()).copy())
            if not (obj.flags.c_contiguous or obj.flags.f_contiguous):
                # as it lies in memory: to gather a volume that was turned takes long
                flips = tuple(axis for axis, stride in enumerate(obj.strides) if stride < 0)
                order = np.argsort([-abs(stride) for stride in obj.strides], kind="stable")
                stored = np.ascontiguousarray(np.flip(obj, flips).transpose(order))
                there = tuple(i for i, axis in enumerate(order) if axis in flips)
                return turned, (stored, there, tuple(np.argsort(order).tolist()))
        if type(obj) is Source and obj.parsed:  # as quickly parsed again as sent
            return dataclasses.replace(obj, parsed=()).__reduce_ex__(5)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _found:
            _found[module, name] = self._allowed(module, name)
        return _found[module, name]

    def _allowed(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in _NUMPY and "numpy" in sys.modules:
            return super().find_class(module, name)
        if name in _SAFE.get(module, ()):
            return getattr(builtins if module == "builtins" else importlib.import_module(module), name)
        if module.partition(".")[0] == "indexer" and module in sys.modules:
            found = getattr(sys.modules[module], name, None)
            if isinstance(found, type) and (
                dataclasses.is_dataclass(found)
                or issubclass(found, enum.Enum | errors.CbirError)
                or hasattr(found, "_fields")
            ):
                return found
        raise Malformed(f"{module}.{name}")


def packed(value: Any) -> int:
    """A file descriptor of memory that holds a value."""
    buffers: list[pickle.PickleBuffer] = []

    def within(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < APART:
            return True
        buffers.append(buffer)
        return False

    stream = io.BytesIO()
    _Pickler(stream, 5, buffer_callback=within).dump(value)
    parts = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    sizes = [part.nbytes for part in parts]
    memory = _memory()
    try:
        head = b"".join(map(_NUMBER.pack, (len(sizes), *sizes)))
        _write(memory, memoryview(head), 0)
        places = _places(sizes)
        os.ftruncate(memory, next(places))
        for part, place in zip(parts, places, strict=True):
            _write(memory, part, place)
    except BaseException:
        os.close(memory)
        raise
    return memory


def unpacked(memory: int, most: int) -> Any:
    """The value that memory holds; the descriptor is closed.

    Raises
    ------
    Malformed
        If it holds none, or more than `most` bytes.
    """
    try:
        _seal(memory)
        length = os.fstat(memory).st_size
        if not 2 * _NUMBER.size <= length <= most:
            raise Malformed("length")
        if length <= SMALL:
            content: Any = bytearray(length)
            if os.preadv(memory, [content], 0) != length:
                raise Malformed("short")
        else:
            content = mmap.mmap(memory, length, access=mmap.ACCESS_COPY)
        view = memoryview(content)
        (count,) = _NUMBER.unpack_from(view)
        if not 1 <= count <= length // _NUMBER.size - 1:
            raise Malformed("count")
        sizes = [_NUMBER.unpack_from(view, _NUMBER.size * (i + 1))[0] for i in range(count)]
        places = _places(sizes)
        if next(places) != length:
            raise Malformed("sizes")
        parts = [view[place : place + size] for place, size in zip(places, sizes, strict=True)]
        return _Unpickler(io.BytesIO(parts[0]), buffers=parts[1:]).load()
    except Malformed:
        raise
    except Exception as error:  # whatever false bytes lead to
        raise Malformed(type(error).__name__) from error
    finally:
        os.close(memory)


def _places(sizes: list[int]) -> Iterator[int]:
    """The length of it all, then where each part begins."""
    starts, end = [], _NUMBER.size * (len(sizes) + 1)
    for size in sizes:
        end = -(-end // _ALIGN) * _ALIGN
        starts.append(end)
        end += size
    yield end
    yield from starts


def _memory() -> int:
    """Memory without a name: it is gone with the last process that holds it, however that ends."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("cbir", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _seal(memory: int) -> None:
    """Nobody may cut off what is about to be mapped."""
    if hasattr(fcntl, "F_ADD_SEALS") and hasattr(os, "memfd_create"):
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


def _write(memory: int, part: memoryview, place: int) -> None:
    part = part.cast("B")
    while part.nbytes:
        done = os.pwrite(memory, part, place)
        part, place = part[done:], place + done
