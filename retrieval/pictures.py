"""Slices as they are looked at: windowed, true to size, outlines drawn, and what explains them laid over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, map_coordinates

from indexer.alignment import same_grid
from indexer.scan import Scan, Slice, displayed
from retrieval.parsing import Box

PIXELS = 480
"""Longer side of a picture in its own pixels: finer than it is shown, for print and dense screens."""
WINDOW = (0.5, 99.5)
"""Percentiles of a slice that are shown black and white."""
OUTLINE, BOX = (255, 196, 0), (0, 209, 255)
REACHED = 0.3
"""Share of a slice that another scan has to reach for its picture to tell anything."""
HEAT = ((255, 60, 20), (255, 225, 120))
"""Colours of an explanation, from where little comes from to where the most does."""


@dataclass(frozen=True)
class Picture:
    """A slice ready to be shown, or the reason why there is none.

    Attributes
    ----------
    jpeg : bytes
        Empty where the slice cannot be shown.
    left : str
        What lies at the left edge: ``R``, ``A`` or nothing where the image has no orientation.
    reason : str
        Why there is no picture.
    """

    jpeg: bytes = b""
    left: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Plane:
    """Where a displayed slice lies in the patient, and the part of it that is shown.

    Attributes
    ----------
    grid : Scan
        The slice's scan, without its voxels.
    position : int
    field : tuple of slice
        Rows and columns.
    """

    grid: Scan
    position: int
    field: tuple[slice, slice]

    @classmethod
    def of(cls, scan: Scan, position: int) -> Plane:
        """Of a slice as :func:`picture` shows it."""
        grid = replace(scan, voxels=np.broadcast_to(np.uint8(0), scan.voxels.shape), region=None)
        return cls(grid, position, _field(scan, None))

    def picture(self, scan: Scan) -> Picture | None:
        """What another scan shows at the same place of the patient; None where it does not reach it.

        Places are those that the headers say, so scans of other frames of reference, or without a place,
        are no use, unless they lie on the very same grid.
        """
        axis, flat = self.grid.axis, list(self.grid.voxels.shape)
        flat[axis] = 1
        if same_grid(self.grid, scan) and self.grid.frame == scan.frame:
            values = np.take(scan.voxels, [self.position], axis=axis)
        elif self.grid.affine is None or scan.affine is None or self.grid.frame != scan.frame:
            return None
        else:
            voxels = np.stack(np.meshgrid(*map(np.arange, flat), indexing="ij"), -1).reshape(-1, 3)
            voxels[:, axis] = self.position
            to = np.linalg.inv(scan.affine) @ self.grid.affine
            at = voxels @ to[:3, :3].T + to[:3, 3]
            inside = ((at >= -0.5) & (at <= np.array(scan.voxels.shape) - 0.5)).all(axis=1)
            if inside.mean() < REACHED:
                return None
            dark = scan.voxels[0, 0, 0]
            values = np.full(len(at), dark, np.float32)
            values[inside] = map_coordinates(scan.voxels, at[inside].T, order=1, mode="nearest")
            values = values.reshape(flat)
        plane = replace(self.grid, voxels=values, sequence=scan.sequence)
        with BytesIO() as out:
            image = _sized(
                Image.fromarray(windowed(displayed(values, axis, 0))[self.field]),
                plane,
                PIXELS // 2,
                Image.Resampling.BICUBIC,
            )
            image.save(out, "JPEG", quality=88, optimize=True)
            return Picture(out.getvalue())


def picture(scan: Scan, position: int, box: Box | None = None) -> Picture:
    """A slice as it is looked at: windowed, true to size, without empty margins, outlines drawn.

    Parameters
    ----------
    scan : Scan
    position : int
        The slice.
    box : (x0, y0, x1, y1), optional
        A marked box in pixels of the displayed slice, end exclusive.

    Raises
    ------
    IndexError
        If `position` is not in the scan.
    """
    with BytesIO() as out:
        shown(scan, position, PIXELS, box).save(out, "JPEG", quality=90, subsampling=0, optimize=True)
        jpeg = out.getvalue()
    left = "" if scan.spacing is None else "A" if scan.axis == 0 else "R"
    return Picture(jpeg, left)


def shown(scan: Scan, position: int, pixels: int, box: Box | None = None) -> Image.Image:
    """The image of :func:`picture`, `pixels` long on its longer side."""
    plane = scan.slice(position)
    marked = _boxed(plane, box)
    rows, columns = _field(scan, marked)
    grey = windowed(plane.pixels)[rows, columns]
    image = _sized(Image.fromarray(grey), scan, pixels, Image.Resampling.BICUBIC).convert("RGB")
    for region, colour in ((plane.region, OUTLINE), (marked, BOX)):
        if region is not None and region.any():
            _draw(image, region[rows, columns], colour)
    return image


def overlay(
    scan: Scan, position: int, values: NDArray[np.float32], box: Box | None = None, pixels: int = PIXELS
) -> bytes:
    """Values over a slice as a PNG that covers its :func:`picture`: the less, the more transparent.

    Parameters
    ----------
    scan : Scan
    position : int
        The slice.
    values : ndarray of float32, shape (rows, columns)
        0…1 over the displayed slice.
    box : (x0, y0, x1, y1), optional
        As for the picture.
    pixels : int
        Longer side.
    """
    part = np.rint(values[_field(scan, _boxed(scan.slice(position), box))] * 255).astype(np.uint8)
    image = _sized(Image.fromarray(part), scan, pixels, Image.Resampling.BILINEAR)
    # few colours: half of the bytes, and no step that is seen
    image = image.point([round(level / 8) for level in range(256)])
    share = np.linspace(0, 1, 33)[:, None]
    image.putpalette(np.rint((1 - share) * HEAT[0] + share * HEAT[1]).astype(np.uint8).tobytes())
    with BytesIO() as out:
        opacity = np.rint(180 * share**0.75).astype(np.uint8).tobytes()
        image.save(out, "PNG", transparency=opacity, optimize=True)
        return out.getvalue()


def _sized(image: Image.Image, scan: Scan, pixels: int, how: Image.Resampling) -> Image.Image:
    """Part of a slice true to size, `pixels` long on its longer side."""
    across, down = (1.0, 1.0)
    if scan.spacing is not None:
        across, down = (s for axis, s in enumerate(scan.spacing) if axis != scan.axis)
    wide, tall = image.width * across, image.height * down
    scale = pixels / max(wide, tall)
    return image.resize((max(1, round(wide * scale)), max(1, round(tall * scale))), how)


def windowed(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey values from black to white between two percentiles of the slice.

    Examples
    --------
    >>> windowed(np.array([[0.0, 50.0, 100.0, np.nan]]))
    array([[  0, 128, 255,   0]], dtype=uint8)
    """
    values = np.asarray(pixels, np.float64)
    known = np.isfinite(values)
    finite = values[known]
    low, high = np.percentile(finite, WINDOW) if finite.size else (0.0, 0.0)
    if high <= low:
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    shown = np.clip((np.where(known, values, low) - low) / max(high - low, 1e-12), 0, 1)
    grey: NDArray[np.uint8] = np.rint(255 * shown).astype(np.uint8)
    return grey


def _field(scan: Scan, marked: NDArray[np.bool_] | None) -> tuple[slice, slice]:
    """Rows and columns that hold anything in some slice: skull-stripped scans have wide margins."""
    filled = (scan.voxels != scan.voxels[0, 0, 0]).any(axis=scan.axis, keepdims=True)
    shown = displayed(filled, scan.axis, 0)
    if marked is not None:
        shown = shown | marked
    spans = []
    for axis in (1, 0):
        held = np.flatnonzero(shown.any(axis=axis))
        first, last = (held[0], held[-1]) if held.size else (0, shown.shape[1 - axis] - 1)
        margin = 2 + (last - first) // 25
        spans.append(slice(max(0, int(first - margin)), int(last + margin + 1)))
    return spans[0], spans[1]


def _boxed(plane: Slice, box: Box | None) -> NDArray[np.bool_] | None:
    if box is None:
        return None
    region = np.zeros(plane.pixels.shape, bool)
    region[max(0, box[1]) : box[3], max(0, box[0]) : box[2]] = True
    return region


def _draw(image: Image.Image, region: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    """Draw the edge of a region around it."""
    large = np.asarray(Image.fromarray(region.astype(np.uint8) * 255).resize(image.size)) > 127
    edge = binary_dilation(large, iterations=2) & ~large
    image.paste(colour, mask=Image.fromarray(edge.astype(np.uint8) * 255))
