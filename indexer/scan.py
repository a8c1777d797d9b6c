"""A scan (one series or file) and its slices: the one form images have after reading."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import QueryError

THICK = 1.5
"""An axis this much coarser than the next one is the axis that slices were acquired along."""


@dataclass(frozen=True)
class Slice:
    """One image plane as it is displayed.

    Attributes
    ----------
    pixels : ndarray, shape (rows, columns)
        Intensities as stored in the scan. Volumes are shown in radiological convention: the
        patient's right (or, on sagittal planes, front) at the left, front or head at the top.
        Raster images are shown as they are.
    position : int
        Index of the plane along the scan's slice axis, counted from 0.
    region : ndarray of bool, shape (rows, columns), optional
        The outlined part of the plane, where the scan has an outline.
    """

    pixels: NDArray[Any]
    position: int
    region: NDArray[np.bool_] | None = None


@dataclass(frozen=True, order=True)
class ScanRef:
    """Which scan is meant: a source may hold several of one sequence.

    Written ``source#number``, as JSON and HTTP carry it.

    Attributes
    ----------
    source : str
        Name of the source: the file, the folder of the series, or an address.
    number : int
        Which of the source's scans, counted from 0 in the order in which they are read.

    Examples
    --------
    >>> str(ScanRef("mri/echoes#2", 1))
    'mri/echoes#2#1'
    >>> ScanRef.parse("mri/echoes#2#1")
    ScanRef(source='mri/echoes#2', number=1)
    """

    source: str
    number: int

    def __str__(self) -> str:
        return f"{self.source}#{self.number}"

    @classmethod
    def parse(cls, text: str) -> ScanRef:
        """Read what ``str`` wrote.

        Raises
        ------
        QueryError
            If it is no reference to a scan.
        """
        source, _, number = text.rpartition("#")
        if not source or not (number.isascii() and number.isdigit()):
            raise QueryError(text, "is no reference to a scan", "write it as source#number")
        return cls(source, int(number))


@dataclass(frozen=True)
class Scan:
    """One 3-D image of one sequence.

    Attributes
    ----------
    voxels : ndarray, shape (x, y, z)
        Real-valued intensities (HU for CT). Axes run to the patient's Right, Anterior, Superior
        (RAS+). Raster images have no orientation: x and y are the reversed columns and rows, so
        that :meth:`slices` shows them as they are.
    source : Path
        The file, or the folder of the series.
    spacing : tuple of float, optional
        Voxel size in mm along x, y, z; None for raster images.
    affine : ndarray, shape (4, 4), optional
        Voxel indices to RAS+ millimetres; None for raster images.
    sequence : str, optional
        ``t1``, ``t1ce``, ``t2``, ``flair``, …; None where nothing says.
    modality : str, optional
        DICOM modality code (``MR``, ``CT``), where known.
    patient_id, study_id, series_id : str
        Identifiers as found in or beside the file. They are pseudonymised before they are stored.
    frame : str
        Frame of reference that the affine is in (DICOM FrameOfReferenceUID); empty where nothing says.
    region : ndarray of bool, shape (x, y, z), optional
        Outlined part, from a mask on the same grid.
    window : (dark, bright), optional
        Intensities that are as dark and as bright as anything that matters, where the voxels were made of
        others: means of many are less bright than the brightest.
    """

    voxels: NDArray[Any]
    source: Path
    spacing: tuple[float, float, float] | None = None
    affine: NDArray[np.float64] | None = None
    sequence: str | None = None
    modality: str | None = None
    patient_id: str = ""
    study_id: str = ""
    series_id: str = ""
    frame: str = ""
    region: NDArray[np.bool_] | None = field(default=None, repr=False)
    window: tuple[float, float] | None = None

    @property
    def axis(self) -> int:
        """Axis along which the slices lie.

        The one with a single plane; else the coarsest one, or z (axial) where none stands out.
        """
        single = [axis for axis, n in enumerate(self.voxels.shape) if n == 1]
        if len(single) == 1:
            return single[0]
        if self.spacing is None:
            return 2
        coarsest = int(np.argmax(self.spacing))
        others = [s for i, s in enumerate(self.spacing) if i != coarsest]
        return coarsest if self.spacing[coarsest] >= THICK * max(others) else 2

    def __len__(self) -> int:
        return int(self.voxels.shape[self.axis])

    def slice(self, position: int) -> Slice:
        """One plane, oriented for display.

        Raises
        ------
        IndexError
            If `position` is not in the scan.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"slice {position} is not in 0…{len(self) - 1}")
        region = None if self.region is None else displayed(self.region, self.axis, position)
        return Slice(displayed(self.voxels, self.axis, position), position, region)

    def slices(self) -> Iterator[Slice]:
        """All planes in order."""
        return (self.slice(i) for i in range(len(self)))


def displayed(volume: NDArray[Any], axis: int, position: int) -> NDArray[Any]:
    """The plane of a RAS+ volume as rows and columns in radiological convention (a view)."""
    plane = volume[(slice(None),) * axis + (position,)]
    return plane[::-1, ::-1].T


def stacked(planes: NDArray[Any]) -> NDArray[Any]:
    """The inverse of :func:`displayed` for images shown as they are.

    Parameters
    ----------
    planes : ndarray, shape (n, rows, columns)

    Returns
    -------
    ndarray, shape (columns, rows, n)
    """
    return planes.transpose(2, 1, 0)[::-1, ::-1]
