"""How the service runs: one object, checked when it is made."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import CbirError
from retrieval.service.addresses import Address, parsed


@dataclass(frozen=True)
class Settings:
    """Settings of the service.

    Attributes
    ----------
    index : Path
        The index folder; an empty index is made where there is none.
    host, port
        Where to listen; port 0 takes a free one.
    tokens : Path, optional
        File of hashed tokens. Without it everybody who reaches the service may do everything, so it
        listens on loopback only.
    pacs : str, optional
        Base URL of an Orthanc to follow, such as ``http://127.0.0.1:8042``.
    modalities : tuple of str
        DICOM modality codes of the series that are taken from the PACS.
    audit : Path, optional
        Folder of the audit trail; ``audit`` in the index folder if not given.
    names : tuple of str
        Host names by which a proxy in front is called, beside those of loopback.
    proxies : tuple of str
        Addresses of proxies in front: they are believed where a request comes from (``X-Forwarded-For``), and
        may open as many connections as there is room for.
    strangers : int
        Requests without a valid token that an address may send at once; a tenth of them each second.
    max_upload, max_unpacked, max_files : int
        Most bytes of a request, of what an archive in it holds, and most files in that archive.
    workers, queue : int
        Queries that run at a time, and that wait for it; the next one is sent away with 503.
    timeout : float
        Seconds that an upload, and that a query, may take.
    keep : float
        Seconds for which a query can be asked again without being sent again.

    Raises
    ------
    CbirError
        If it would listen beyond loopback without tokens, or a proxy is no address.
    """

    index: Path
    host: str = "127.0.0.1"
    port: int = 8043
    tokens: Path | None = None
    pacs: str | None = None
    modalities: tuple[str, ...] = ("MR",)
    audit: Path | None = None
    names: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    strangers: int = 100
    max_upload: int = 512 * 2**20
    max_unpacked: int = 4 * 2**30
    max_files: int = 20_000
    workers: int = 2
    queue: int = 32
    timeout: float = 120.0
    keep: float = 900.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", self.index.absolute())
        if self.tokens is None and not self.loopback:
            raise CbirError(
                self.host,
                "without tokens the service listens on loopback only",
                "make tokens with `cbir token NAME --role read --tokens FILE` and give --tokens FILE",
            )

        for proxy in self.proxies:
            if parsed(proxy) is None:
                raise CbirError(proxy, "is no address of a proxy", "give its IP address")

    @property
    def trusted(self) -> frozenset[Address]:
        """The addresses of the proxies."""
        return frozenset(address for proxy in self.proxies if (address := parsed(proxy)) is not None)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
