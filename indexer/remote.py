"""Images in a store that fsspec knows, such as ``s3://bucket/mri``: listed here, read through copies.

Discovery walks stand-ins: local files with the names, sizes and times of those in the store, empty but
for what discovery looks into (labels tables, ``cbir.json``, and the beginning of what may be DICOM).
What is to be read is copied, source by source, by whoever reads it, and the copy is dropped afterwards.
The catalog holds the addresses.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from indexer import places, readers
from indexer.discovery.config import CONFIG
from indexer.errors import CbirError, ReadError
from indexer.files import FULL, disk_full
from indexer.labels import MOST_BYTES, PARTICIPANTS, is_table
from indexer.readers import Source

HEAD = 2**16
"""Bytes at the beginning of a DICOM file within which its series is named."""
CONNECTIONS = 16
"""Files whose beginnings are asked for at a time."""
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+:/{2,})(.*)", re.IGNORECASE | re.DOTALL)
_MODIFIED = ("LastModified", "last_modified", "mtime", "updated", "created")
"""What stores call the time of a file's last change."""


def is_address(path: str) -> bool:
    """Whether a path names a store (``protocol://…``) and no local file."""
    return _ADDRESS.fullmatch(path) is not None


@dataclass(frozen=True)
class RemoteSource(Source):
    """A source in a store. Its paths lie below `home`, where nothing has to be.

    Attributes
    ----------
    home : Path
        Stands for the store.
    prefix : str
        What an address has instead of it, such as ``s3://``.
    """

    home: Path = Path("/")
    prefix: str = ""

    @property
    def name(self) -> str:
        """Its address."""
        return self._address(self.path)

    def _address(self, path: Path) -> str:
        return self.prefix + path.relative_to(self.home).as_posix()

    @contextmanager
    def local(self) -> Iterator[Source]:
        """The source in copies of its files, which are there as long as the context.

        Raises
        ------
        ReadError
            If a file cannot be copied; or whatever the context raises, with the address for the copy.
        DiskFullError
            If there is no room for the copies.
        """
        with tempfile.TemporaryDirectory(prefix="cbir-") as name:
            folder = Path(name).resolve()

            def moved(path: Path) -> Path:
                return folder / path.relative_to(self.home)

            with _renamed({folder: self.prefix}):
                for file in (*self.files, *self.region_files):
                    _copy(self._address(file), moved(file))
                yield _relocated(self, moved)


def _relocated(source: Source, moved: Callable[[Path], Path]) -> Source:
    """The source with other paths, in no store."""
    return replace(
        Source(**{field.name: getattr(source, field.name) for field in fields(Source)}),
        path=moved(source.path),
        files=tuple(map(moved, source.files)),
        region_files=tuple(map(moved, source.region_files)),
        parts=tuple(_relocated(part, moved) for part in source.parts),
    )


def held(path: str, record: Mapping[str, Any]) -> Source:
    """The source that the catalog holds under a path or an address, as :meth:`Source.from_record`.

    Raises
    ------
    CaseIndexError
        If it is in a store that the user has not named (:mod:`indexer.places`).
    """
    match = _ADDRESS.fullmatch(path)
    if match is None:
        return Source.from_record(Path(path), record)
    places.require(path, "the index", "image")
    home, prefix = Path("/"), match[1]
    source = Source.from_record(home / match[2], record)
    parts = tuple(RemoteSource(**vars(part), home=home, prefix=prefix) for part in source.parts)
    return RemoteSource(**vars(replace(source, parts=parts)), home=home, prefix=prefix)


class StandIns:
    """What stands for files in stores while they are discovered. A context manager."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # as a rule nothing is in a store
        self._homes: dict[Path, str] = {}

    def __enter__(self) -> StandIns:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def place(self, root: str) -> tuple[Path, Path, list[ReadError]]:
        """List an address.

        Returns
        -------
        root : Path
            The folder or file that stands for it.
        home : Path
            The folder that stands for the store.
        failures : list of ReadError
            Files that nothing can stand for.

        Raises
        ------
        CbirError
            If the store cannot be listed, or nothing is at the address. Whoever takes for gone what is
            not listed must not go on.
        """
        places.name(places.place(root))
        match = _ADDRESS.fullmatch(root)
        assert match is not None
        fs, top = _opened(root)
        home = next((home for home, prefix in self._homes.items() if prefix == match[1]), None)
        if home is None:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="cbir-")
            home = Path(self._folder.name).resolve() / str(len(self._homes))
            self._homes[home] = match[1]
            _write(home / CONFIG, b"{}", 2, 0)  # what lies above on this machine says nothing of the store
        with _explained(root):
            listing: dict[str, Mapping[str, Any]] = fs.find(top, detail=True)
            # what the store calls a file, and what it says of it, by the file's address
            found = {root + name[len(top) :]: (name, info) for name, info in listing.items()}
        if not found:
            raise CbirError(root, "there is nothing", "check the address, and what you may see there")
        for file in (
            f"{above}/{name}" for above in _above(root, match[1]) for name in (CONFIG, PARTICIPANTS)
        ):
            inside = _opened(file)[1]
            if fs.exists(inside):
                with _explained(file):
                    found[file] = inside, fs.info(inside)

        failures: list[ReadError] = []

        def stand_in(address: str) -> None:
            parts = address.removeprefix(match[1]).split("/")
            if parts[-1] == "" or any(part.startswith(".") and part.strip(".") for part in parts):
                return  # a key that stands for a folder; hidden files, as for `discover`
            try:
                if any(part in ("", ".", "..") for part in parts):
                    raise ReadError(address, "its name is no path", "rename it")
                with _explained(address):
                    _stand_in(fs, *found[address], home.joinpath(*parts))
            except ReadError as error:
                failures.append(error)

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(stand_in, sorted(found)))
        return home / root.removeprefix(match[1]), home, sorted(failures, key=str)

    def path(self, name: str) -> Path:
        """The file or folder of this name, or what stands for it."""
        for home, prefix in self._homes.items():
            if name.startswith(prefix):
                return home / name.removeprefix(prefix)
        return Path(name)

    def source(self, source: Source) -> Source:
        """A source that was discovered, in its store if it is in one."""
        for home, prefix in self._homes.items():
            if source.path.is_relative_to(home):
                return RemoteSource(**vars(source), home=home, prefix=prefix)
        return source

    def named(self, text: str) -> str:
        """A text with addresses for what stands for them."""
        return _named(text, self._homes)

    @contextmanager
    def renamed(self) -> Iterator[None]:
        """Let errors name addresses."""
        with _renamed(self._homes):
            yield


def _named(text: str, homes: Mapping[Path, str]) -> str:
    for home, prefix in homes.items():
        text = text.replace(f"{home}/", prefix)
    return text


@contextmanager
def _renamed(homes: Mapping[Path, str]) -> Iterator[None]:
    try:
        yield
    except CbirError as error:
        where, reason = _named(error.where, homes), _named(error.reason, homes)
        raise type(error)(where, reason, error.remedy) from error


def _opened(address: str) -> tuple[Any, str]:
    """The file system of an address, and what it calls what is there."""
    parts = urlsplit(address)
    if "@" in parts.netloc or (parts.query and parts.scheme.startswith("http")):
        raise CbirError(
            f"{parts.scheme}://{parts.hostname}",
            "the address holds a password or a signature",
            "put it where the store's client looks for it",
        )
    try:
        import fsspec

        fs, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:  # no fsspec; none of its stores; a package for this one
        raise CbirError(
            address,
            f"cannot be opened ({_line(error)})",
            "install what this needs: pip install 'cbir[remote]'",
        ) from None
    except Exception as error:
        raise CbirError(address, f"cannot be opened ({_line(error)})", "check the address") from error
    return fs, str(path)


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Say in one line what a store, or the network before it, answers."""
    try:
        yield
    except CbirError:
        raise
    except Exception as error:  # each store's client has errors of its own
        if isinstance(error, OSError) and error.errno in FULL:
            raise disk_full(Path(tempfile.gettempdir())) from error
        raise ReadError(
            address, f"cannot be read ({_line(error)})", "see that the store answers, and run it again"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _above(address: str, prefix: str) -> list[str]:
    """The folders above an address, the nearest first."""
    parts = address.removeprefix(prefix).split("/")
    return [prefix + "/".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def _copy(address: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    fs, path = _opened(address)
    with _explained(address):
        fs.get_file(path, str(to))


def _stand_in(fs: Any, name: str, info: Mapping[str, Any], file: Path) -> None:
    if info.get("size") is None:  # a listing over HTTP does not say
        info = fs.info(name)
    size = int(info.get("size") or 0)
    content = b""
    if file.name == CONFIG or (is_table(file.name) and size <= MOST_BYTES):
        content = fs.cat_file(name)
    elif size and not any(
        format.claims(file) for format in readers.installed_formats() if format.series is None
    ):
        content = fs.cat_file(name, start=0, end=min(HEAD, size))
    _write(file, content, size, next((_seconds(info[key]) for key in _MODIFIED if info.get(key)), 0.0))


def _write(file: Path, content: bytes, size: int, modified: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("xb") as out:
        out.write(content)
        out.truncate(max(size, len(content)))
    os.utime(file, (modified, modified))


def _seconds(time: datetime | str | float) -> float:
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return time.timestamp() if isinstance(time, datetime) else float(time)
