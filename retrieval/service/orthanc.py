"""A small client of Orthanc's REST interface: what the service asks of the PACS."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx

from indexer.errors import CbirError
from indexer.files import needing_room
from retrieval.service.settings import Settings
from retrieval.service.uploads import TooLarge

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")
_PAGE = 1000
ANSWER = 8 * 2**20
"""Bytes of an answer that is no image, at most: a series of 100,000 images, a thousand changes."""
MOST_SERIES = 2_000_000
"""Series of a PACS at most; their identifiers are taken from the list while it comes."""
_ENTRY = re.compile(rb'\s*(\[|,)\s*"([^"\\]{1,64})"')
_LONGEST = 2**16
"""Bytes that an entry of the list may lie apart from the next."""
T = TypeVar("T")


class PacsError(CbirError):
    """The PACS does not answer, or not as it should."""


class NotInPacs(PacsError):
    """The PACS has no such resource (any more)."""


@dataclass(frozen=True)
class Series:
    """What Orthanc says of a series.

    Attributes
    ----------
    uid : str
        SeriesInstanceUID.
    modality : str
    stable : bool
        Whether no image has come for `StableAge` seconds.
    instances : list of str
        Orthanc's identifiers of its images.
    version : str
        Another one whenever an image comes or goes.
    original : str, optional
        Orthanc's identifier of the series that this is an anonymised copy of.
    """

    uid: str
    modality: str
    stable: bool
    instances: list[str]
    version: str
    original: str | None = None


@dataclass(frozen=True)
class Limits:
    """What is taken of one series, at most.

    Attributes
    ----------
    bytes, files : int
    seconds : float
    """

    bytes: int = 4 * 2**30
    files: int = 20_000
    seconds: float = 600.0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Those of an upload."""
        return cls(settings.max_unpacked, settings.max_files)


@dataclass(frozen=True)
class Change:
    """A line of Orthanc's change log."""

    kind: str
    id: str


class Orthanc:
    """An Orthanc server.

    Parameters
    ----------
    url : str
        Base address, such as ``http://127.0.0.1:8042``; may hold a user and a password.
    timeout : float
        Seconds for each step of a request.
    limits : Limits
    """

    def __init__(self, url: str, timeout: float = 30.0, limits: Limits = Limits()) -> None:
        self._limits = limits
        parts = urlsplit(url)
        self.name = f"the PACS at {parts.netloc.rpartition('@')[2]}"
        # compressed by Orthanc, 155 slices take 1 s instead of 0.06 s
        self._http = httpx.Client(
            base_url=url, timeout=timeout, trust_env=False, headers={"Accept-Encoding": "identity"}
        )

    def close(self) -> None:
        """Release the connections."""
        self._http.close()

    def __enter__(self) -> Orthanc:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- images --------------------------------------------------------------------------------

    def series(self, which: str, folder: Path) -> list[Path]:
        """Download the images of a series.

        Parameters
        ----------
        which : str
            A SeriesInstanceUID or Orthanc's own identifier.
        folder : Path
            An existing folder; files are numbered.

        Returns
        -------
        list of Path
            DICOM files.

        Raises
        ------
        NotInPacs
            If there is no such series.
        PacsError
            If the PACS does not answer, or takes too long.
        TooLarge
            If it sends more than the limits allow.
        """
        return self._download("series", self.describe(self.find(which)).instances, folder)

    def study(self, which: str, folder: Path, modalities: Collection[str]) -> list[Path]:
        """Download the images of a study, all series of some modalities.

        Parameters
        ----------
        which : str
            A StudyInstanceUID or Orthanc's own identifier.
        folder : Path
            An existing folder; files are numbered.
        modalities : collection of str

        Returns
        -------
        list of Path
            DICOM files.

        Raises
        ------
        NotInPacs
            If there is no such study, or none of its series is of these modalities.
        PacsError, TooLarge
            As :meth:`series`.
        """
        address = f"/studies/{quote(self.find(which, 'study'), safe='')}"
        series = self._json("GET", address, lambda study: list(map(str, study["Series"])))
        held = [each for each in map(self.describe, series) if each.modality in modalities]
        if not held:
            reason = f"has no series of {', '.join(sorted(modalities))} in this study"
            raise NotInPacs(self.name, reason, "name another study")
        return self._download("study", [image for each in held for image in each.instances], folder)

    def _download(self, what: str, instances: Sequence[str], folder: Path) -> list[Path]:
        """Images, all of them within the limits."""
        if len(instances) > self._limits.files:
            raise TooLarge(what, f"it has more than {self._limits.files:,} images")
        files, left, end = [], self._limits.bytes, time.monotonic() + self._limits.seconds
        for number, instance in enumerate(instances):
            file = folder / f"{number:05}.dcm"
            address = f"/instances/{quote(instance, safe='')}/file"
            with self._asking("GET", address) as response, needing_room(file), file.open("wb") as out:
                for block in response.iter_raw():
                    left -= len(block)
                    if left < 0:
                        raise TooLarge(what, f"it has more than {self._limits.bytes:,} bytes")
                    if time.monotonic() > end:
                        raise PacsError(self.name, f"takes too long to send a {what}", "see its log")
                    out.write(block)
            files.append(file)
        return files

    def find(self, which: str, what: str = "series") -> str:
        """Orthanc's identifier of a series or a study.

        Raises
        ------
        NotInPacs
            If there is no such series or study.
        """
        if _ID.fullmatch(which):
            return which
        if len(which) <= 64 and _UID.fullmatch(which):
            named = self._json(
                "POST",
                "/tools/lookup",
                lambda found: [str(entry["ID"]) for entry in found if entry["Type"] == what.capitalize()],
                content=which,
            )
            if named:
                return named[0]
        raise NotInPacs(self.name, f"has no such {what}", "check its UID")

    def describe(self, series: str) -> Series:
        """What Orthanc says of a series.

        Raises
        ------
        NotInPacs
            If there is no such series (any more).
        """
        return self._json("GET", f"/series/{quote(series, safe='')}", _series)

    def sop_class(self, instance: str) -> str:
        """The SOP class UID of an image."""
        with self._asking("GET", f"/instances/{quote(instance, safe='')}/metadata/SopClassUid") as response:
            return _within(self._in_time(response), ANSWER).decode("ascii", "replace").strip()

    def store(self, dicom: bytes) -> str:
        """Store an object; returns Orthanc's identifier of it.

        Raises
        ------
        PacsError
            If the PACS refuses it.
        """
        return self._json("POST", "/instances", lambda stored: str(stored["ID"]), content=dicom)

    # ---- what there is, and what comes ---------------------------------------------------------

    def all_series(self) -> list[str]:
        """Identifiers of all series.

        Raises
        ------
        PacsError
            If there are more than :data:`MOST_SERIES`, too: half a list would be taken for the whole.
        """
        with self._asking("GET", "/series") as response:
            found: list[str] = []
            for series in _entries(self._in_time(response)):
                found.append(series)
                if len(found) > MOST_SERIES:
                    raise PacsError(
                        self.name, f"holds more than {MOST_SERIES:,} series", "follow a smaller one"
                    )
        return found

    def last_change(self) -> int:
        """Number of the newest line of the change log."""
        return self._json("GET", "/changes?last", lambda answer: int(answer["Last"]))

    def changes(self, since: int) -> tuple[list[Change], int, bool]:
        """Lines of the change log after a number.

        Orthanc does not log deletions, and drops the lines of what is deleted.

        Returns
        -------
        (changes, last, done)
            Where to go on, and whether that is the end.
        """
        return self._json("GET", f"/changes?since={since}&limit={_PAGE}", _changes)

    # ---- requests ------------------------------------------------------------------------------

    def _json(
        self, method: str, path: str, take: Callable[[Any], T], content: str | bytes | None = None
    ) -> T:
        """What `take` makes of an answer."""
        with self._asking(method, path, content) as response:
            return take(json.loads(_within(self._in_time(response), ANSWER)))

    def _in_time(self, response: httpx.Response) -> Iterator[bytes]:
        """The body of an answer, which may come in many pieces, but not for ever."""
        end = time.monotonic() + self._limits.seconds
        for block in response.iter_bytes():
            if time.monotonic() > end:
                raise PacsError(self.name, "takes too long to answer", "see its log")
            yield block

    @contextmanager
    def _asking(self, method: str, path: str, content: str | bytes | None = None) -> Iterator[httpx.Response]:
        """A response that is being read; what goes wrong is told without the address."""
        try:
            with self._http.stream(method, path, content=content) as response:
                if response.status_code == 404:
                    what = "study" if path.startswith("/studies/") else "series"
                    raise NotInPacs(self.name, f"has no such {what}", "check its UID")
                if response.status_code in (401, 403):
                    raise PacsError(self.name, "refuses us", "give its address with user and password")
                if not response.is_success:
                    raise PacsError(self.name, f"answers with status {response.status_code}", "see its log")
                yield response
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = f"does not answer ({type(error).__name__})"
            raise PacsError(self.name, reason, "check that it runs and that --pacs names it") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise PacsError(self.name, f"answers unlike Orthanc ({type(error).__name__})") from None


def _entries(blocks: Iterable[bytes]) -> Iterator[str]:
    """The names in a JSON list of names, each as soon as it has come."""
    rest, opening = b"", b"["
    for block in blocks:
        rest += block
        at = 0
        while (found := _ENTRY.match(rest, at)) is not None:
            if found[1] != opening:
                raise ValueError("no list of names")
            yield found[2].decode("ascii")
            at, opening = found.end(), b","
        rest = rest[at:]
        if len(rest) > _LONGEST:
            raise ValueError("no list of names")
    if b"".join(rest.split()) != (b"]" if opening == b"," else b"[]"):
        raise ValueError("no whole list")


def _within(blocks: Iterable[bytes], limit: int) -> bytes:
    """The body of an answer."""
    body = bytearray()
    for block in blocks:
        body += block
        if len(body) > limit:
            raise ValueError("too long")
    return bytes(body)


def _series(answer: Any) -> Series:
    tags, instances = answer["MainDicomTags"], sorted(map(str, answer["Instances"]))
    held = "\0".join([str(answer["LastUpdate"]), *instances])
    return Series(
        uid=str(tags["SeriesInstanceUID"]),
        modality=str(tags.get("Modality", "")),
        stable=bool(answer["IsStable"]),
        instances=instances,
        version=hashlib.sha256(held.encode()).hexdigest()[:32],
        original=answer.get("AnonymizedFrom"),
    )


def _changes(answer: Any) -> tuple[list[Change], int, bool]:
    lines = [Change(str(line["ChangeType"]), str(line["ID"])) for line in answer["Changes"]]
    return lines, int(answer["Last"]), bool(answer["Done"])
