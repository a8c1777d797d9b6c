"""FreeSurfer volumes (.mgz, .mgh) and pairs of header and voxels (.hdr and .img), read by nibabel.

Pairs are NIfTI or the older Analyze, each also gzipped. Analyze does not say which side is left: nibabel
takes its x axis to run from right to left, as SPM writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from indexer.errors import ReadError
from indexer.readers.source import Source
from indexer.readers.volumes import Volumes, kept, read, turned
from indexer.scan import Scan

nib: Any = nibabel  # only partly typed

_VOXELS = {".hdr": ".img", ".hdr.gz": ".img.gz"}


def is_freesurfer(file: Path) -> bool:
    """Whether a file is FreeSurfer's, by its name."""
    return file.name.lower().endswith((".mgz", ".mgh"))


def is_pair(file: Path) -> bool:
    """Whether a file is half of a pair of which the other half lies beside it."""
    return len(pair(file)) == 2


def pair(file: Path) -> tuple[Path, ...]:
    """Header and voxels of a pair; the file alone where the other half is missing."""
    name = file.name.lower()
    for header, voxels in _VOXELS.items():
        for ending, other in ((header, voxels), (voxels, header)):
            if name.endswith(ending):
                shown = file.name[-len(ending) :]
                there = file.with_name(
                    file.name[: -len(ending)] + (other.upper() if shown.isupper() else other)
                )
                if there.is_file():
                    return (file, there) if ending == header else (there, file)
    return (file,)


def scans(source: Source) -> list[Scan]:
    """See :func:`indexer.readers.volumes.read`."""
    return read(source, load)


def load(file: Path, channels: Sequence[str] = ()) -> Volumes:
    """The volumes of a file.

    Raises
    ------
    ReadError
        If it cannot be read.
    """
    try:
        image = nib.load(file)
        x, y, z, count = kept(file, image.shape, channels)
        voxels = np.asanyarray(image.dataobj[..., :count] if len(image.shape) > 3 else image.dataobj)
        affine = np.asarray(image.affine, np.float64)
    except ReadError:
        raise
    except Exception as error:  # damaged bytes lead nibabel to whatever they lead it to
        system = getattr(error, "strerror", None)
        reason = f"cannot be read ({system})" if system else f"is damaged or truncated ({error})"
        raise ReadError(file, " ".join(reason.split()), "check the file") from error
    return turned(file, voxels.reshape(x, y, z, count), affine)
