"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd), read by SimpleITK (``cbir[formats]``).

ITK's axes run to the patient's Left, Posterior and Superior (SimpleITK, "Fundamental Concepts").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from indexer.errors import ReadError
from indexer.readers.source import Source
from indexer.readers.volumes import Volumes, kept, read, turned
from indexer.scan import Scan

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def claims(file: Path) -> bool:
    """Whether a file is NRRD or MetaImage, by its name."""
    return file.name.lower().endswith((".nrrd", ".nhdr", ".mha", ".mhd"))


def scans(source: Source) -> list[Scan]:
    """See :func:`indexer.readers.volumes.read`."""
    return read(source, load)


def load(file: Path, channels: Sequence[str] = ()) -> Volumes:
    """The volumes of a file.

    Raises
    ------
    ReadError
        If it cannot be read, or SimpleITK is not installed.
    """
    sitk = _sitk(file)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        dimensions = reader.GetDimension()
        shape = (*reader.GetSize(), reader.GetNumberOfComponents())
        if dimensions == 2:
            shape = (*shape[:2], 1, shape[2])
        x, y, z, count = kept(file, shape, channels)
        array = sitk.GetArrayFromImage(reader.Execute())
        if reader.GetNumberOfComponents() == 1:
            array = array[..., np.newaxis]
        # (volumes,) z, y, x, components
        planes = np.moveaxis(array.reshape(-1, z, y, x, array.shape[-1]), (0, 4), (3, 4))
        voxels = planes.transpose(2, 1, 0, 3, 4).reshape(x, y, z, -1)[..., :count]
        affine = _affine(reader, dimensions)
    except ReadError:
        raise
    except Exception as error:  # SimpleITK raises RuntimeError with a page of text
        said = " ".join(str(error).split())[-160:]
        raise ReadError(file, f"is damaged or truncated ({said})", "check the file") from error
    return turned(file, voxels, affine)


def _affine(reader: Any, dimensions: int) -> Any:
    direction = np.array(reader.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    n = min(dimensions, 3)
    affine[:n, :n] = direction[:n, :n] * np.array(reader.GetSpacing()[:n])
    affine[:n, 3] = reader.GetOrigin()[:n]
    return _TO_RAS @ affine


def _sitk(file: Path) -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise ReadError(
            file, "needs a package that is not installed", "install it: pip install 'cbir[formats]'"
        ) from None
    return SimpleITK
