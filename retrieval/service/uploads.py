"""What clients send: received within limits, unpacked without harm.

A name in an upload is a hint for the readers (sequence, patient, order), never a place: files lie in a
folder of the service's own, below which every part of a name is checked.
"""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from indexer import sandbox
from indexer.errors import CbirError
from retrieval.service.settings import Settings

RATIO = 250
"""An archive may grow by this factor; images grow by 2 to 10."""
SMALL = 64 * 2**20
"""Bytes below which no factor is too much."""
BLOCK = 2**20
ENTRY = 512
"""Bytes of an archive's directory a file, at most; more is not read into memory."""

NAME = 128
"""Bytes of a file's name, at most."""

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"RIFF", ".webp"),
    (b"\x5c\x01\0\0", ".nii"),
    (b"\0\0\x01\x5c", ".nii"),
    (b"\x1c\x02\0\0", ".nii"),
    (b"\0\0\x02\x1c", ".nii"),
    (b"\x1f\x8b", ".nii.gz"),
)
_KNOWN = (".nii.gz", ".nii", ".dcm", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


class TooLarge(CbirError):
    """More than the service takes."""


class Unreadable(CbirError):
    """An upload that is no image, or an archive that cannot be trusted."""


def unpack(upload: IO[bytes], name: str, folder: Path, settings: Settings) -> None:
    """Put an uploaded file, or the files of an uploaded archive, into a folder.

    Parameters
    ----------
    upload : binary file
        Can be read at any place.
    name : str
        As the client calls it.
    folder : Path
        Exists and is empty.
    settings : Settings

    Raises
    ------
    TooLarge
        If an archive holds too many files or too many bytes.
    Unreadable
        If it is damaged, encrypted, or one of its names leads elsewhere.
    """
    upload.seek(0)
    head = upload.read(8)
    upload.seek(0)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        _unzip(upload, folder, settings)
        return
    with (folder / _plain(name, head)).open("wb") as file:
        shutil.copyfileobj(upload, file, BLOCK)


def _plain(name: str, head: bytes) -> str:
    """A file's name as the client says it, harmless and no longer than a file's name may be."""
    plain = re.sub(r"[^\w. +-]", "_", PurePosixPath(name.replace("\\", "/")).name).strip(". ")
    end = next((end for end in _KNOWN if plain.lower().endswith(end)), "")
    stem, found = plain[: len(plain) - len(end)], plain[len(plain) - len(end) :]
    if not end:
        found = next((end for start, end in _SIGNATURES if head.startswith(start)), "")
    while len((stem + found).encode("utf-8", "replace")) > NAME:
        stem = stem[1:]  # its end says which sequence it is
    return (stem.strip(". ") or "scan") + found


# ---- archives ------------------------------------------------------------------------------------


def _unzip(upload: IO[bytes], folder: Path, settings: Settings) -> None:
    try:
        with zipfile.ZipFile(_Bounded(upload, settings.max_files * ENTRY)) as archive:
            members = list(_members(archive, settings))
            left = settings.max_unpacked
            for info, path in members:
                sandbox.refuse_late("upload")
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as packed, target.open("xb") as file:
                    while block := packed.read(BLOCK):
                        sandbox.refuse_late("upload")
                        left -= len(block)
                        if left < 0:
                            raise TooLarge("upload", "the archive is too large when unpacked", "split it")
                        file.write(block)
    except CbirError:
        raise
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise Unreadable("upload", "two files of the archive have one name", "pack it again") from None
    except OSError as error:
        raise Unreadable("upload", f"the archive cannot be unpacked ({error.strerror})") from None
    except Exception as error:  # zipfile and its decoders raise whatever damaged bytes lead them to
        reason = f"the archive is damaged ({type(error).__name__})"
        raise Unreadable("upload", reason, "pack it again") from None


def _members(archive: zipfile.ZipFile, settings: Settings) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The files of an archive and where they go, after all of them have been judged by what they declare."""
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(infos) > settings.max_files:
        reason = f"the archive holds {len(infos)} files, more than the limit of {settings.max_files}"
        raise TooLarge("upload", reason, "split it")
    size = sum(info.file_size for info in infos)
    packed = sum(info.compress_size for info in infos)
    if size > settings.max_unpacked or (size > SMALL and size > RATIO * packed):
        reason = f"the archive holds {size:,} bytes when unpacked, more than this service takes"
        raise TooLarge("upload", reason, "split it")
    folders: set[PurePosixPath] = set()
    for info in infos:
        path = _safe(info)
        folders.update(path.parents)
        if len(infos) + len(folders) > 2 * settings.max_files:
            raise TooLarge("upload", "the archive holds too many folders", "split it")
        if path.suffix.lower() != ".zip":  # an archive in an archive is no image
            yield info, path


def _safe(info: zipfile.ZipInfo) -> PurePosixPath:
    """Where a member goes, below the folder."""
    name = info.orig_filename.replace("\\", "/")
    path = PurePosixPath(name)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if (
        path.is_absolute()
        or not path.parts
        or any(part == ".." or len(part.encode("utf-8", "replace")) > 255 for part in path.parts)
        or re.match(r"[A-Za-z]:", name)
        or re.search(r"[\x00-\x1f\x7f]", name)
        or len(path.parts) > 32
    ):
        raise Unreadable("upload", "the archive holds a file whose name leads elsewhere", "pack it again")
    if kind not in (0, stat.S_IFREG):
        raise Unreadable("upload", "the archive holds a link or a device", "pack the files themselves")
    if info.flag_bits & 0x1:
        raise Unreadable("upload", "the archive is encrypted", "pack it without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Unreadable("upload", "the archive is packed by an unusual method", "pack it as plain ZIP")
    return path


class _Bounded:
    """A file of which no single read takes more than a limit: `zipfile` reads a directory at once."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file = file
        self._limit = max(limit, BLOCK)

    def read(self, size: int = -1) -> bytes:
        if size > self._limit:
            raise TooLarge("upload", "the archive's directory is too large", "split it")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
