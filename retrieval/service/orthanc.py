"""A small client of Orthanc's REST interface: what the service asks of the PACS."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from indexer.errors import CbirError

# httpx logs addresses, which hold the ids of resources
logging.getLogger("httpx").setLevel(logging.WARNING)

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")
_PAGE = 1000


class PacsError(CbirError):
    """The PACS does not answer, or not as it should."""


class NotInPacs(PacsError):
    """The PACS has no such resource (any more)."""


@dataclass(frozen=True)
class Series:
    """What Orthanc says of a series.

    Attributes
    ----------
    id : str
        Orthanc's own identifier.
    modality : str
    stable : bool
        Whether no image has come for `StableAge` seconds.
    updated : str
        When its last image came; changes with every one.
    instances : list of str
    """

    id: str
    modality: str
    stable: bool
    updated: str
    instances: list[str]


@dataclass(frozen=True)
class Change:
    """A line of Orthanc's change log."""

    number: int
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
    """

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        parts = urlsplit(url)
        self.name = f"the PACS at {parts.hostname}:{parts.port}" if parts.port else f"the PACS at {parts.hostname}"
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
            If the PACS does not answer.
        """
        files = []
        for number, instance in enumerate(self.describe(self.find(which)).instances):
            file = folder / f"{number:05}.dcm"
            with self._asking("GET", f"/instances/{instance}/file") as response, file.open("wb") as out:
                try:
                    for block in response.iter_raw():
                        out.write(block)
                except httpx.HTTPError as error:
                    raise self._silent(error) from None
            files.append(file)
        return files

    def find(self, which: str) -> str:
        """Orthanc's identifier of a series.

        Raises
        ------
        NotInPacs
            If there is no such series.
        """
        if _ID.fullmatch(which):
            return which
        if len(which) <= 64 and _UID.fullmatch(which):
            found = self._json("POST", "/tools/lookup", content=which)
            series = [str(entry["ID"]) for entry in found if entry["Type"] == "Series"]
            if series:
                return series[0]
        raise self._unknown()

    def describe(self, series: str) -> Series:
        """What Orthanc says of a series.

        Raises
        ------
        NotInPacs
            If there is no such series (any more).
        """
        answer = self._json("GET", f"/series/{quote(series, safe='')}")
        tags = answer.get("MainDicomTags", {})
        return Series(
            id=series,
            modality=str(tags.get("Modality", "")),
            stable=bool(answer.get("IsStable")),
            updated=str(answer.get("LastUpdate", "")),
            instances=[str(instance) for instance in answer["Instances"]],
        )

    def store(self, dicom: bytes) -> str:
        """Store an object; returns Orthanc's identifier of it.

        Raises
        ------
        PacsError
            If the PACS refuses it.
        """
        return str(self._json("POST", "/instances", content=dicom)["ID"])

    # ---- what there is, and what comes ---------------------------------------------------------

    def all_series(self) -> list[str]:
        """Identifiers of all series."""
        return [str(series) for series in self._json("GET", "/series")]

    def last_change(self) -> int:
        """Number of the newest line of the change log."""
        return int(self._json("GET", "/changes?last")["Last"])

    def changes(self, since: int) -> tuple[list[Change], int, bool]:
        """Lines of the change log after a number.

        Orthanc does not log deletions, and drops the lines of what is deleted.

        Returns
        -------
        (changes, last, done)
            Where to go on, and whether that is the end.
        """
        answer = self._json("GET", f"/changes?since={since}&limit={_PAGE}")
        lines = [
            Change(int(line["Seq"]), str(line["ChangeType"]), str(line["ID"])) for line in answer["Changes"]
        ]
        return lines, int(answer["Last"]), bool(answer["Done"])

    # ---- requests ------------------------------------------------------------------------------

    def _json(self, method: str, path: str, content: str | bytes | None = None) -> Any:
        with self._asking(method, path, content) as response:
            try:
                response.read()
                return response.json()
            except (httpx.HTTPError, ValueError) as error:
                raise self._silent(error) from None

    @contextmanager
    def _asking(self, method: str, path: str, content: str | bytes | None = None) -> Iterator[httpx.Response]:
        ...
