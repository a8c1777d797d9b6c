"""What nothing here reads: formats by their endings, and pictures of programs and pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from indexer.discovery.config import CONFIG
from indexer.discovery.plan import Discovery
from indexer.discovery.tokens import split, stem
from indexer.labels import PARTICIPANTS

PROGRAMS = {".exe", ".dll", ".jar", ".js", ".css", ".inf", ".app", ".ico"}
"""Endings of files beside which pictures belong to a program or a page."""

_CLUTTER = {"logo", "icon", "thumb", "thumbnail", "thumbnails", "preview", "screenshot", "favicon", "banner"}

KNOWN = {
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mgz": "FreeSurfer",
    ".mgh": "FreeSurfer",
    ".mnc": "MINC",
    ".par": "Philips PAR/REC",
    ".rec": "Philips PAR/REC",
    ".brik": "AFNI",
    ".head": "AFNI",
    ".img": "Analyze",
    ".hdr": "Analyze",
    ".bz2": "bzip2",
    ".zst": "Zstandard",
    ".mat": "MATLAB",
    ".npy": "NumPy",
    ".npz": "NumPy",
    ".h5": "HDF5",
    ".zip": "ZIP archive",
    ".tgz": "archive",
    ".tar": "archive",
    ".7z": "archive",
    ".rar": "archive",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jp2": "JPEG 2000",
    ".svs": "whole-slide image",
    ".ima": "DICOM",
    ".v": "ECAT",
    ".pfile": "GE raw",
    ".dat": "raw data",
}
"""Endings of images and archives that are named if nothing reads them."""


def is_clutter(file: Path, programs: Collection[Path]) -> bool:
    """Whether a picture belongs to a viewer or a page, and is no patient's."""
    words = {token.text for token in split(stem(file.name))}
    return bool(words & _CLUTTER) or file.parent in programs


def tell_unread(rest: Iterable[Path], tables: Collection[Path], found: Discovery) -> None:
    """Files of no format here; known image formats are counted by their ending."""
    ignored = 0
    unread: Counter[str] = Counter()
    for file in rest:
        if file.name in (CONFIG, PARTICIPANTS) or file in tables:
            continue
        ending = file.suffix.lower()
        if ending == ".gz":
            ending = Path(file.stem).suffix.lower()
        if ending in KNOWN:
            unread[ending] += 1
        ignored += 1
    found.unread = dict(unread)
    found.taken["ignored files"] = ignored
    found.notes += [
        f"{n} {KNOWN[ending]} files ({ending}) are not read" for ending, n in sorted(unread.items())
    ]
