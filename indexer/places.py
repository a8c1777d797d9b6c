"""Servers and stores that this user has named, and which an index may therefore send us to.

An index folder says where its vectors and its catalog are, and where images lie. It may come from somebody
else, so a host is contacted, and gets credentials, only where the user has named it: on the command line or
to Python (when an index is made or copied, or images are indexed), which is remembered in ``trusted`` in
the user's folder of settings (``$XDG_CONFIG_HOME/cbir``, else ``~/.config/cbir``), or in the variable
``CBIR_TRUST``. Both are lists of addresses, separated by white space. An address is trusted if it is there
as it is, or below one that is: ``s3://bucket`` covers ``s3://bucket/mri/a.nii``.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from indexer.errors import CaseIndexError
from indexer.files import PRIVATE, content, opened
from indexer.text import printable

VARIABLE = "CBIR_TRUST"
FILE = "trusted"
MOST = 2**20
"""Bytes of the file, at most."""

_named: set[str] = set()
"""What was named to this process: the folder of settings need not be there, nor writable."""


def settings() -> Path:
    """The user's folder of settings for cbir, which need not be there."""
    above = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (above if above.is_absolute() else Path("~/.config").expanduser()) / "cbir"


def name(address: str) -> None:
    """The user has named an address: it is trusted from now on."""
    if " " in address or not address.isprintable() or trusted(address):
        return
    _named.add(address)
    path = settings() / FILE
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, PRIVATE)
            file.write(f"{address}\n")


def trusted(address: str) -> bool:
    """Whether the user has named an address, or one that it lies below."""
    return any(_covers(one, address) for one in {*_named, *_listed()})


def require(address: str, where: str | os.PathLike[str], what: str) -> None:
    """Refuse an address that the user has not named.

    Parameters
    ----------
    address : str
    where : path
        What says that the address should be contacted.
    what : str
        What is said to be there.

    Raises
    ------
    CaseIndexError
    """
    if not trusted(address):
        shown = printable(address)
        raise CaseIndexError(
            where,
            f"says that its {what} is at {shown}, which you have not named",
            f"if you trust it, name it in the variable {VARIABLE} or in {settings() / FILE}",
        )


def place(address: str) -> str:
    """The host or bucket of an address, which is what is trusted when images in it are named.

    Examples
    --------
    >>> place("s3://bucket/mri/a.nii")
    's3://bucket'
    >>> place("file:///mri/a.nii")
    'file:///mri/a.nii'
    """
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc and not parts.query else address


def _covers(trusted: str, address: str) -> bool:
    if address == trusted:
        return True
    below = address.startswith(trusted.rstrip("/") + "/") and "://" in trusted
    # what follows might lead elsewhere: parameters of a database name other hosts, and dots go up
    return below and not re.search(r"[?#@\\\s]|(^|/)\.\.?(/|$)", address[len(trusted) :])


def _listed() -> list[str]:
    listed = os.environ.get(VARIABLE, "").split()
    with suppress(OSError, ValueError):
        listed += content(settings() / FILE, MOST).decode().split()
    return listed
