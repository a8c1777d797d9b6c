"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd), the formats of ITK and 3D Slicer.

SimpleITK would read them, but no process that imports it can use FAISS any more: both are wrapped by SWIG,
and share a table of types.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import indexer.readers.metaimage as metaimage
import indexer.readers.nrrd as nrrd
from indexer.readers.source import Source
from indexer.readers.volumes import Volumes, read, turned
from indexer.scan import Scan

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""ITK's axes run to the patient's Left, Posterior and Superior (SimpleITK, "Fundamental Concepts")."""

_VOXELS = (".raw", ".raw.gz", ".raw.bz2", ".zraw", ".gz", ".img", ".bin")
"""Endings of files of voxels beside a header, as ITK, Slicer and teem write them."""


def claims(file: Path) -> bool:
    """Whether a file is NRRD or MetaImage, by its name."""
    return file.name.lower().endswith((".nrrd", ".nhdr", ".mha", ".mhd"))


def files(file: Path) -> tuple[Path, ...]:
    """The file, and after a header the voxels that are called like it."""
    if file.suffix.lower() not in (".nhdr", ".mhd"):
        return (file,)
    beside = (file.with_name(file.stem + ending) for ending in _VOXELS)
    return (file, *(voxels for voxels in beside if voxels.is_file()))


def scans(source: Source) -> list[Scan]:
    """See :func:`indexer.readers.volumes.read`."""
    return read(source, load)


def load(file: Path, channels: Sequence[str] = ()) -> Volumes:
    """The volumes of a file.

    Raises
    ------
    ReadError
        If it cannot be read or understood, or pynrrd is not installed.
    """
    of = nrrd if file.suffix.lower() in (".nrrd", ".nhdr") else metaimage
    voxels, affine = of.load(file, channels)
    return turned(file, voxels, _TO_RAS @ affine)
