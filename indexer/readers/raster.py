"""PNG, JPEG, TIFF and WebP images, read by Pillow: single images, and folders of numbered slices.

**Which images are slices of one scan.** A folder with two or more images (masks and subfolders not
counted) is asked, and the first of these that knows decides for all of them:

1. ``"stack": true`` or ``false`` in the nearest ``cbir.json``, in the folder or above it;
2. the labels table: if it names one of the files, each image is a scan on its own; if one of its
   participants is called like the folder, they are one scan;
3. the file names: if each is the word ``slice`` and a number (``slice-001``, ``slice_2``, ``slice003``),
   they are one scan;
4. else each image is a scan on its own.

Slices are ordered by the last number in their names. A stack in which a number is missing or comes twice,
or whose slices differ in size or type, is refused: nobody can know what its third axis means. A
multi-page TIFF is a scan by itself.

**Grey and colour.** Grey images keep their type: 8 bits, 16 bits, or float32 for all wider ones. A colour
image is turned into luminance, unless ``cbir.json`` names three channels: then red, green and blue become
a scan each (one with the same value everywhere holds no image and is left out). Colour has 8 bits a
channel: Pillow reduces deeper ones. Transparent parts are black, EXIF orientation is applied, palettes are
looked up.

**Masks.** ``X_mask.png`` outlines X.png or X.jpg beside it: what is not black is inside. In a JPEG, which
is never exact, it is what is brighter than half.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from indexer import watch
from indexer.errors import ReadError
from indexer.labels import Labels
from indexer.readers.limits import MAX_PAGES, refuse_ratio, refuse_size, refuse_values
from indexer.readers.names import (
    SLICE,
    Config,
    find_config,
    patient_and_study,
    region_of,
    sequence_of,
    stem,
)
from indexer.readers.source import Source
from indexer.scan import Scan, stacked

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}


_BYTES = {"1": 1 / 8, "I": 4, "F": 4} | dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), 2)
"""Bytes of a value by Pillow's mode, where it is not one."""


def claims(file: Path) -> bool:
    """Whether a file is to be read as a raster image, by its name."""
    return file.suffix.lower() in FORMATS


def images(
    files: Sequence[Path], regions: Sequence[Path], labels: Labels | None
) -> tuple[list[Source], list[ReadError]]:
    """One source for each stack and each single image, by the rule above; no file is opened."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    masks: dict[Path, dict[str, Path]] = defaultdict(dict)
    for file in files:
        folders[file.parent].append(file)
    for region in regions:
        masks[region.parent].setdefault(region_of(region.name) or "", region)
    sources: list[Source] = []
    failures: list[ReadError] = []
    for folder, members in folders.items():
        try:
            config = find_config(folder)
            if is_stack(folder, members, config, labels):
                sources.append(_source(folder, "stack", in_order(folder, members), masks[folder], config))
            else:
                sources += [_source(file, "raster", (file,), masks[folder], config) for file in members]
        except ReadError as error:
            failures.append(error)
    return sources, failures


def is_stack(folder: Path, files: Sequence[Path], config: Config | None, labels: Labels | None) -> bool:
    """Whether the images of a folder are slices of one scan (the rule at the top of this module)."""
    if len(files) < 2:
        return False
    if config is not None and config.stack is not None:
        return config.stack
    if labels is not None:
        if any(labels.names_file(file) for file in files):
            return False
        if labels.names_folder(folder):
            return True
    return all(SLICE.fullmatch(stem(file.name)) for file in files)


def in_order(folder: Path, files: Sequence[Path]) -> tuple[Path, ...]:
    """Slices by their numbers.

    Raises
    ------
    ReadError
        If a slice has no number, or a number is missing or comes twice.
    """
    remedy = (
        'mend the names, or write {"stack": false} to a cbir.json there if they are not slices of one scan'
    )
    numbers: dict[Path, int] = {}
    for file in files:
        found = re.findall(r"\d+", stem(file.name))
        if not found:
            raise ReadError(folder, f"is a stack of slices, but {file.name} has no number", remedy)
        numbers[file] = int(found[-1])
    number, times = Counter(numbers.values()).most_common(1)[0]
    if times > 1:
        twice = " and ".join(sorted(file.name for file in files if numbers[file] == number))
        raise ReadError(folder, f"slice {number} comes {times} times ({twice})", remedy)
    there = sorted(numbers.values())
    gap = next((a for a, b in pairwise(there) if b != a + 1), None)
    if gap is not None:
        raise ReadError(folder, f"slice {gap + 1} is missing", remedy)
    return tuple(sorted(files, key=numbers.__getitem__))


def read(source: Source) -> list[Scan]:
    """One scan, or one for each channel that ``cbir.json`` names.

    Raises
    ------
    ReadError
        With the reason for which a file cannot be read, or does not fit the others.
    """
    planes = _planes(source)
    if source.channels and planes.shape[3] not in (1, len(source.channels)):
        reason = f"has {planes.shape[3]} channels, but cbir.json names {len(source.channels)}"
        raise ReadError(source.path, reason, "name as many channels as there are")
    refuse_values(source.path, planes)
    sequences = source.channels if planes.shape[3] == len(source.channels) else (source.sequence,)
    region = _region(source, planes.shape[:3])
    scans = [
        Scan(
            voxels=stacked(channel),
            source=source.path,
            sequence=sequence,
            patient_id=source.patient_id,
            study_id=source.study_id,
            series_id=source.series_id,
            region=region,
        )
        for channel, sequence in zip(np.moveaxis(planes, 3, 0), sequences, strict=True)
        if channel.min() < channel.max()
    ]
    if not scans:
        raise ReadError(source.path, "each of its channels has the same value everywhere")
    return scans


def _source(
    path: Path, kind: str, files: tuple[Path, ...], masks: Mapping[str, Path], config: Config | None
) -> Source:
    sequence, rest = sequence_of(path.name, folder=kind == "stack")
    patient, study = patient_and_study(rest, path.parent)
    return Source(
        path=path,
        kind=kind,
        files=files,
        patient_id=patient,
        study_id=study,
        series_id=stem(path.name) if kind == "raster" else path.name,
        sequence=sequence,
        channels=config.channels if config else (),
        region_files=tuple(masks[name] for name in map(_name, files) if name in masks),
        config=config.path if config else None,
    )


def _name(file: Path) -> str:
    return stem(file.name)


def _planes(source: Source) -> NDArray[Any]:
    """All planes of a source, shape (n, rows, columns, channels)."""
    planes: list[NDArray[Any]] = []
    for file in source.files:
        pages = _pages(file, split=len(source.channels) > 1, files=len(source.files))
        if source.kind == "stack" and len(pages) > 1:
            raise ReadError(
                file, f"has {len(pages)} pages, but is one slice of a stack", "save its pages apart"
            )
        first = (planes or pages)[0]
        for page in pages:
            if (page.shape, page.dtype) != (first.shape, first.dtype):
                reason = f"is {_described(page)}, but the first slice is {_described(first)}"
                raise ReadError(file, reason, "give all slices one size and type")
        planes += pages
    return np.stack(planes)


def _described(page: NDArray[Any]) -> str:
    rows, columns, channels = page.shape
    return f"{columns}×{rows} {'grey' if channels == 1 else 'colour'} {page.dtype}"


def _pages(file: Path, split: bool, files: int = 1) -> list[NDArray[Any]]:
    """The pages of an image file, each (rows, columns, channels).

    Parameters
    ----------
    file : Path
    split : bool
        Keep the channels of a colour image apart.
    files : int
        Number of such files that are to be held in memory together.
    """
    watch.at(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # opened here: Pillow maps a file it opens, and misplaces the rows of a TIFF that lies on its side
            with (
                file.open("rb") as stream,
                Image.open(stream, formats=sorted(set(FORMATS.values()))) as image,
            ):
                count = 1 if image.format == "MPO" else _count(file, image)
                length = file.stat().st_size
                if count > 1 and image.format != "TIFF":
                    raise ReadError(file, f"is an animation of {count} frames", "save its frames as slices")
                pages = []
                for page in range(count):
                    image.seek(page)
                    bands = len(image.getbands())
                    refuse_size(file, (image.height, image.width), bands * count * files)
                    width = _BYTES.get(image.mode, 1) * bands
                    refuse_ratio(file, image.height * image.width * width * count, length)
                    pages.append(_pixels(image, split))
                return pages
    except ReadError:
        raise
    except UnidentifiedImageError as error:
        kinds = "PNG, JPEG, TIFF or WebP"
        raise ReadError(
            file, f"is not a {kinds} image, whatever its name says", "check what it holds"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ReadError(file, "declares more pixels than Pillow's limit", "crop or split it") from error
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        system = getattr(error, "strerror", None)
        reason = f"cannot be read ({system})" if system else f"is damaged or truncated ({error})"
        raise ReadError(file, reason.replace("\n", " "), "check the file") from error


def _count(file: Path, image: Image.Image) -> int:
    """Frames of an image, which Pillow has to go through one by one."""
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1)
    for page in range(1, MAX_PAGES + 1):
        try:
            image.seek(page)
        except EOFError:
            return page
    raise ReadError(file, f"has more pages than the limit of {MAX_PAGES:,}", "split it")


def _pixels(image: Image.Image, split: bool) -> NDArray[Any]:
    """One page as (rows, columns, channels): one channel for grey, three for colour that is kept apart."""
    # TIFF 6.0, PhotometricInterpretation 0: white is zero. Pillow turns 8 bits round, not 16 or floats.
    white_is_zero = getattr(image, "tag_v2", {}).get(262) == 0
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        if image.mode.startswith("I;16"):
            values = np.asarray(image).astype(np.uint16)
            values = 65535 - values if white_is_zero else values
        else:
            values = np.asarray(image).astype(np.float32)
            values = -values if white_is_zero else values
        return values[..., np.newaxis]
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    if not grey:
        image = image.convert("RGB")
    values = np.asarray(image if split and not grey else image.convert("L"))
    return values[..., np.newaxis] if values.ndim == 2 else values


def _region(source: Source, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """The masks of a source's files on its grid; None where there is none, or all are empty."""
    masks = {region_of(mask.name): mask for mask in source.region_files}
    planes = np.zeros(shape, dtype=bool)
    pages = shape[0] // len(source.files)
    for i, file in enumerate(source.files):
        if (mask := masks.get(_name(file))) is None:
            continue
        values = np.stack(_pages(mask, split=True, files=len(source.files)))
        block = planes[i * pages : (i + 1) * pages]
        if values.shape[:3] != block.shape:
            reason = (
                f"has {values.shape[2]}×{values.shape[1]}×{len(values)} pixels, unlike its image {file.name}"
            )
            raise ReadError(mask, reason, "mend it, or move it away")
        block[:] = (values > (127 if mask.suffix.lower() in (".jpg", ".jpeg") else 0)).any(axis=3)
    return stacked(planes) if planes.any() else None
