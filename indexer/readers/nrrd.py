"""NRRD (.nrrd, .nhdr), read by pynrrd (``cbir[formats]``).

Axes in space have a direction; of the others one may hold volumes or components, wherever it stands.
Format: teem, "Definition of NRRD File Format" (https://teem.sourceforge.net/nrrd/format.html).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from indexer import watch
from indexer.errors import ReadError
from indexer.readers.limits import refuse_ratio
from indexer.readers.volumes import Volumes, beside, kept

SPACES = {
    "left-posterior-superior": (1.0, 1.0, 1.0),
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "lps": (1.0, 1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
"""What turns axes of a named space into those of LPS; one without a name is taken for LPS, as ITK does."""

_DATA = ("data file", "datafile")
_SKIPS = ("line skip", "lineskip")

_IN_SPACE = {"domain", "space", "none", "???", "time"}
"""Kinds of axes that ITK takes for axes of the image."""


def load(file: Path, channels: Sequence[str] = ()) -> Volumes:
    """The volumes of a file, as they are stored: shape (x, y, z, volumes), and the affine to LPS+ mm.

    Raises
    ------
    ReadError
        If it cannot be read or understood, or pynrrd is not installed.
    """
    watch.at(file)
    nrrd = _nrrd(file)
    try:
        with file.open("rb") as stream:
            header = nrrd.read_header(stream)
            size = tuple(map(int, header["sizes"]))
            axes, rest = _axes(file, header, size)
            x, y, z, count = kept(
                file, (*(*(size[i] for i in axes), 1)[:3], *(size[i] for i in rest)), channels
            )
            if header["type"] == "block":
                raise ReadError(file, "holds blocks of bytes", "save one real number a voxel")
            stored = _stored(nrrd, file, stream, header, size)
    except ReadError:
        raise
    except Exception as error:  # pynrrd raises whatever odd headers lead it to, and quotes them
        reason = f"is damaged or truncated ({type(error).__name__})"
        raise ReadError(file, reason, "check the file") from error
    voxels = stored.transpose(*axes, *rest).reshape(x, y, z, -1, order="F")
    return voxels[..., :count], _affine(file, header, axes)


def _stored(
    nrrd: Any, file: Path, stream: IO[bytes], header: Mapping[str, Any], size: Sequence[int]
) -> NDArray[Any]:
    """The values of a file, or of that beside it which it names: opened here, so that no other one is."""
    names = {str(header[field]) for field in _DATA if field in header}
    if len(names) > 1:
        raise ReadError(file, "names two files of voxels", "mend its header")
    where = beside(file, names.pop()) if names else file
    refuse_ratio(file, 8 * math.prod(size), where.stat().st_size)
    if any(header.get(field, 0) > where.stat().st_size for field in _SKIPS):
        raise ReadError(file, "skips more lines than there are", "mend its header")
    inside = {field: value for field, value in header.items() if field not in _DATA}
    if where == file:
        return np.asarray(nrrd.read_data(inside, stream))
    with where.open("rb") as data:
        return np.asarray(nrrd.read_data(inside, data))


def _axes(file: Path, header: Mapping[str, Any], size: Sequence[int]) -> tuple[list[int], list[int]]:
    """Which axes are those of space, and which one holds volumes."""
    if header["dimension"] != len(size):
        raise ReadError(file, f"has {len(size)} sizes, but {header['dimension']} axes", "mend its header")
    directions = header.get("space directions")
    kinds = header.get("kinds", ["domain"] * len(size))
    inside = [i for i in range(len(size)) if str(kinds[i]).lower() in _IN_SPACE]
    if directions is not None:
        inside = [i for i in range(len(size)) if np.isfinite(np.asarray(directions[i], float)).all()]
    if len(inside) not in (2, 3, 4):
        raise ReadError(file, f"has {len(inside)} axes in space", "save a 3-D image")
    axes = inside[:3]
    return axes, [i for i in range(len(size)) if i not in axes]


def _affine(file: Path, header: Mapping[str, Any], axes: Sequence[int]) -> NDArray[np.float64]:
    n = len(axes)
    affine = np.eye(4)
    directions, origin = header.get("space directions"), header.get("space origin")
    if directions is not None:
        affine[:n, :n] = np.array([np.asarray(directions[i], float)[:n] for i in axes]).T
    elif (spacings := header.get("spacings")) is not None:
        affine[range(n), range(n)] = np.nan_to_num(np.asarray([spacings[i] for i in axes]), nan=1.0)
    if origin is not None:
        affine[:n, 3] = np.asarray(origin, float)[:n]
    units = {str(unit).strip('"').lower() for unit in header.get("space units", ())} - {"", "mm"}
    if units:
        raise ReadError(file, f"is measured in {min(units)}", "save it in mm")
    space = str(header.get("space", "lps")).lower()
    if space not in SPACES:
        raise ReadError(file, f"lies in the space {space}", "save it in LPS or RAS")
    return np.diag((*SPACES[space], 1.0)) @ affine


def _nrrd(file: Path) -> Any:
    try:
        import nrrd
    except ImportError:
        raise ReadError(
            file, "needs a package that is not installed", "install it: pip install 'cbir[formats]'"
        ) from None
    return nrrd
