"""Slices in MATLAB v7.3 files as figshare 1512427 has them, read by h5py (``cbir[formats]``).

Each holds a struct ``cjdata`` with the image, the patient's id (``PID``), the outline (``tumorMask``) and
the label (1 meningioma, 2 glioma, 3 pituitary tumour): Cheng et al., PLoS ONE 10 (2015) e0140381. All are
T1-weighted with contrast. HDF5 holds MATLAB's columns as rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from indexer import watch
from indexer.errors import ReadError
from indexer.readers.limits import MAX_VOXELS, refuse_ratio, refuse_size, refuse_values
from indexer.readers.source import Source
from indexer.scan import Scan, stacked

TUMOURS = {"1": "meningioma", "2": "glioma", "3": "pituitary tumour"}

MOST_LETTERS = 64
"""Of a patient's id."""

_SIGNATURE = b"MATLAB 7.3 MAT-file"


def claims(file: Path) -> bool:
    """Whether a file is called ``.mat`` and begins like MATLAB 7.3.

    Raises
    ------
    OSError
        If it cannot be opened.
    """
    if file.suffix.lower() != ".mat":
        return False
    with file.open("rb") as stream:
        return stream.read(len(_SIGNATURE)) == _SIGNATURE


def series(files: Sequence[Path], _root: Path) -> tuple[list[Source], list[ReadError]]:
    """One source a file, of the patient whom it names."""
    sources, failures = [], []
    for file in files:
        try:
            patient = _patient(file)
        except ReadError as error:
            failures.append(error)
        else:
            sources.append(Source(file, "matlab", (file,), patient, "", file.stem, "t1ce", modality="MR"))
    return sources, failures


def labels(source: Source) -> dict[str, str]:
    """The tumour that a file names, by number and by name."""
    found = _held(source.files[0], "label")
    if found.size != 1 or not np.isfinite(found).all():
        return {}
    number = str(int(found.item()))
    return {"label": number, **({"tumour": TUMOURS[number]} if number in TUMOURS else {})}


def scans(source: Source) -> list[Scan]:
    """One scan of one slice, with the tumour outlined.

    Raises
    ------
    ReadError
        If the file is not of this layout.
    """
    file = source.files[0]
    image = _held(file, "image")
    if image.ndim != 2:
        raise ReadError(file, f"its image has {image.ndim} axes, not 2", "save it as NIfTI")
    refuse_size(file, image.shape)
    refuse_values(file, image)
    mask = _held(file, "tumorMask").T != 0
    return [
        Scan(
            voxels=stacked(np.ascontiguousarray(image.T[np.newaxis])),
            source=source.path,
            sequence=source.sequence,
            modality="MR",
            patient_id=source.patient_id,
            study_id=source.study_id,
            series_id=source.series_id,
            region=stacked(mask[np.newaxis]) if mask.shape == image.T.shape and mask.any() else None,
        )
    ]


def _patient(file: Path) -> str:
    letters = _held(file, "PID")
    if letters.size > MOST_LETTERS or letters.dtype.kind not in "ui":
        raise ReadError(file, "names no patient (cjdata/PID)", "save it as NIfTI")
    return "".join(chr(letter) for letter in letters.ravel().tolist() if 0 < letter < 2**16)


def _held(file: Path, name: str) -> Any:
    watch.at(file)
    try:
        import h5py
    except ImportError:
        raise ReadError(
            file, "needs a package that is not installed", "install it: pip install 'cbir[formats]'"
        ) from None
    try:
        with h5py.File(file, "r") as held:
            for path in ("cjdata", f"cjdata/{name}"):  # HDF5 would follow links into any file of the disk
                if not isinstance(held.get(path, getlink=True), h5py.HardLink | None):
                    raise ReadError(file, "refers to other files", "save it as NIfTI")
            found = held["cjdata"][name]
            if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
                raise ReadError(file, "refers to other files", "save it as NIfTI")
            if found.dtype.kind not in "iufb":
                raise ReadError(file, f"its {name} is no array of numbers", "save it as NIfTI")
            if found.size > MAX_VOXELS:
                raise ReadError(file, f"declares {found.size:,} values", "save it as NIfTI")
            refuse_ratio(file, found.size * found.dtype.itemsize, file.stat().st_size)
            return np.asarray(found)
    except ReadError:
        raise
    except KeyError as error:
        raise ReadError(
            file, f"holds no cjdata/{name}, as figshare 1512427 has it", "save it as NIfTI"
        ) from error
    except Exception as error:
        raise ReadError(
            file, f"is damaged or truncated ({type(error).__name__})", "check the file"
        ) from error
