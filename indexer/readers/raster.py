"""PNG, JPEG, TIFF and WebP images, read by Pillow: single images, and folders of numbered slices.

Slices are ordered by the last number in their names. A stack in which a number is missing or comes twice,
or whose slices differ in size or type, is refused: nobody can know what its third axis means. A
multi-page TIFF is a scan by itself. Which images are slices of one scan, :mod:`indexer.discovery.stacks`
decides.

**Grey and colour.** Grey images keep their type: 8 bits, 16 bits, or float32 for all wider ones. A colour
image is turned into luminance, unless ``cbir.json`` names three channels: then red, green and blue become
a scan each (one with the same value everywhere holds no image and is left out). Discovery says where
channels are unlike and nothing names them (:mod:`indexer.discovery.colour`). Colour has 8 bits a
channel: Pillow reduces deeper ones. Transparent parts are black, EXIF orientation is applied, palettes are
looked up.

**Masks.** ``X_mask.png``, or X.png in a folder of masks, outlines X.png or X.jpg: what is not black is
inside. In a JPEG, which is never exact, it is what is brighter than half.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from indexer import watch
from indexer.errors import ReadError
from indexer.readers.limits import MAX_PAGES, refuse_ratio, refuse_size, refuse_values
from indexer.readers.quiet import quiet
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


def outlined(files: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """The mask of each file: of those that are called like it and more, the first of the longest match."""
    found: dict[Path, Path] = {}
    for mask in masks:
        name = mask.stem.lower()
        owners = [file for file in files if _begins(name, file.stem.lower())]
        if owners:
            found.setdefault(max(owners, key=lambda file: len(file.stem)), mask)
    return found


def _begins(name: str, start: str) -> bool:
    """Whether a name is another one, or goes on behind it with a new word."""
    return name.startswith(start) and not name[len(start) : len(start) + 1].isalnum()


def _planes(source: Source) -> NDArray[Any]:
    """All planes of a source, shape (n, rows, columns, channels)."""
    planes: list[NDArray[Any]] = []
    for file in source.files:
        held = pages(file, split=len(source.channels) > 1, files=len(source.files))
        if source.kind == "stack" and len(held) > 1:
            raise ReadError(
                file, f"has {len(held)} pages, but is one slice of a stack", "save its pages apart"
            )
        first = (planes or held)[0]
        for page in held:
            if (page.shape, page.dtype) != (first.shape, first.dtype):
                reason = f"is {_described(page)}, but the first slice is {_described(first)}"
                raise ReadError(file, reason, "give all slices one size and type")
        planes += held
    return np.stack(planes)


def _described(page: NDArray[Any]) -> str:
    rows, columns, channels = page.shape
    return f"{columns}×{rows} {'grey' if channels == 1 else 'colour'} {page.dtype}"


def pages(file: Path, split: bool, files: int = 1) -> list[NDArray[Any]]:
    """The pages of an image file, each (rows, columns, channels).

    Parameters
    ----------
    file : Path
    split : bool
        Keep the channels of a colour image apart.
    files : int
        Number of such files that are to be held in memory together.

    Raises
    ------
    ReadError
        With the reason for which it cannot be read.
    """
    watch.at(file)
    try:
        # opened here: Pillow maps a file it opens, and misplaces the rows of a TIFF that lies on its side
        with (
            quiet(),
            file.open("rb") as stream,
            Image.open(stream, formats=sorted(set(FORMATS.values()))) as image,
        ):
            count = 1 if image.format == "MPO" else _count(file, image)
            length = file.stat().st_size
            if count > 1 and image.format != "TIFF":
                raise ReadError(file, f"is an animation of {count} frames", "save its frames as slices")
            found = []
            for page in range(count):
                image.seek(page)
                if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                    raise Image.DecompressionBombError
                bands = len(image.getbands())
                refuse_size(file, (image.height, image.width), bands * count * files)
                width = _BYTES.get(image.mode, 1) * bands
                refuse_ratio(file, image.height * image.width * width * count, length)
                found.append(_pixels(image, split))
            return found
    except ReadError:
        raise
    except UnidentifiedImageError as error:
        kinds = "PNG, JPEG, TIFF or WebP"
        raise ReadError(
            file, f"is not a {kinds} image, whatever its name says", "check what it holds"
        ) from error
    except Image.DecompressionBombError as error:
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
    masks = outlined(source.files, source.region_files)
    planes = np.zeros(shape, dtype=bool)
    each = shape[0] // len(source.files)
    for i, file in enumerate(source.files):
        if (mask := masks.get(file)) is None:
            continue
        values = np.stack(pages(mask, split=True, files=len(source.files)))
        block = planes[i * each : (i + 1) * each]
        if values.shape[:3] != block.shape:
            reason = (
                f"has {values.shape[2]}×{values.shape[1]}×{len(values)} pixels, unlike its image {file.name}"
            )
            raise ReadError(mask, reason, "mend it, or move it away")
        block[:] = (values > (127 if mask.suffix.lower() in (".jpg", ".jpeg") else 0)).any(axis=3)
    return stacked(planes) if planes.any() else None
