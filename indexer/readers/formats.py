"""The formats that are read, each in one place; packages add theirs as entry points of ``cbir.formats``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import indexer.readers.dicom as dicom
import indexer.readers.itk as itk
import indexer.readers.matlab as matlab
import indexer.readers.nibabel_images as nibabel_images
import indexer.readers.nifti as nifti
import indexer.readers.raster as raster
from indexer.errors import ReadError
from indexer.readers.source import Source
from indexer.scan import Scan

Found = tuple[list[Source], list[ReadError]]


def _alone(file: Path) -> tuple[Path, ...]:
    return (file,)


@dataclass(frozen=True)
class Format:
    """All there is to know of a format.

    Attributes
    ----------
    name : str
    kinds : mapping
        The kinds of source (`Source.kind`) it makes, and what a summary calls them; the first is that of
        a single file.
    claims : callable
        Whether a file is its own, by its name; where that cannot tell, it may look into it.
    read : callable
        A source to its scans.
    files : callable
        The files that make up the image of a file, in reading order.
    pictures : bool
        Its files are single planes: of many people, or slices of a stack.
    series : callable, optional
        ``(files, root) -> (sources, failures)``, where headers say what belongs together, and whose it is.
    labels : callable, optional
        What the files of a source say of its patient.
    """

    name: str
    kinds: Mapping[str, str]
    claims: Callable[[Path], bool]
    read: Callable[[Source], list[Scan]]
    files: Callable[[Path], tuple[Path, ...]] = _alone
    pictures: bool = False
    series: Callable[[Sequence[Path], Path], Found] | None = None
    labels: Callable[[Source], dict[str, str]] | None = None

    @property
    def kind(self) -> str:
        """The kind of source that a single file is."""
        return next(iter(self.kinds))


BUILT_IN = (
    Format("nifti", {"nifti": "NIfTI volumes"}, nifti.claims, nifti.read),
    Format(
        "freesurfer",
        {"freesurfer": "FreeSurfer volumes"},
        nibabel_images.is_freesurfer,
        nibabel_images.scans,
    ),
    Format(
        "pair",
        {"pair": "pairs of header and voxels"},
        nibabel_images.is_pair,
        nibabel_images.scans,
        files=nibabel_images.pair,
    ),
    Format("itk", {"itk": "NRRD and MetaImage volumes"}, itk.claims, itk.scans, files=itk.files),
    Format(
        "matlab",
        {"matlab": "MATLAB slices"},
        matlab.claims,
        matlab.scans,
        series=matlab.series,
        labels=matlab.labels,
    ),
    Format(
        "raster",
        {"raster": "single images", "stack": "folders of slices"},
        raster.claims,
        raster.read,
        pictures=True,
    ),
    Format("dicom", {"dicom": "DICOM series"}, dicom.is_dicom, dicom.read, series=dicom.series),
)
"""In this order; DICOM comes last, because it has to open what the names of the others leave over."""


@functools.cache
def installed_formats() -> tuple[Format, ...]:
    """The formats that are installed, those of other packages before DICOM."""
    others = tuple(point.load() for point in entry_points(group="cbir.formats"))
    return (*BUILT_IN[:-1], *others, BUILT_IN[-1])
