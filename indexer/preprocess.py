"""From a scan to the network's input: the one place where intensities and sizes change.

1. *Background.* The level of the edges is the median over the edges of all slices. Where it lies at
   the dark or the bright end of the scan and most of the edges are near it (noisy air, JPEG
   artefacts, zeros around a stripped skull), all that is as dark or as bright is background.
   Otherwise, patches of the edges' commonest value are background, if many of the edges have it (a
   z-scored image padded with zeros). Otherwise there is none (a photo, a crop out of tissue).
2. *Crop.* All slices are cut to the scan's one foreground box, so that their sizes stay comparable.
   Slices that are empty beside the fullest one are skipped, and so are those between which others lie
   near enough, if the encoder says how near that is.
3. *Scale.* The scan's darkest and brightest foreground (percentiles) become 1 and 255; background
   becomes 0. Of a scan that was resampled they are those that it had before.
4. *Size.* Pixels are made square in millimetres; the longer side of the box fills the image, and the
   shorter one is centred on background.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indexer.atlas import space_of
from indexer.encoder import Analyser, Composer, Encoder, Segmenter, Sparse
from indexer.errors import QueryError, ReadError
from indexer.scan import Scan, displayed
from indexer.sequences import STANDARD

SCHEME = 1
"""Counts the changes of the method that the settings below do not show."""

NEAR = 0.08
"""Background reaches this far from its level towards the brightest (or darkest) foreground."""

COMMON = 0.1
"""Share of the edges that have exactly one value, if that value pads the image."""

PATCH = 3
"""Side of the least square of that value that is background: tissue has it, too, here and there."""

SPECK = 0.01
"""Rows and columns with less foreground than this share of the fullest one are not in the box."""

EMPTY = 0.1
"""A slice with less foreground than this share of the scan's fullest slice is skipped."""

WINDOW = (1.0, 99.5)
"""Percentiles of the foreground that become the darkest and the brightest grey."""

CONTEXT = 1.6
"""Side of a region's crop over the longer side of the region."""

LEAST = 32
"""Least side of a region's crop, in pixels of the finer axis of the plane."""

SAMPLE = 2**14
"""Percentiles are taken over a regular grid of at most about this many voxels."""

AIR = -1000.0
"""Hounsfield units of air; smaller CT values fill what the scanner did not see."""

LARGEST = 1e38
"""Greater values are as good as infinite: their differences do not fit into 32 bits."""

Box = tuple[slice, slice]
"""Rows and columns of a displayed plane."""


@dataclass(frozen=True)
class Preprocessing:
    """How slices are prepared.

    Attributes
    ----------
    size : int
        Side of the prepared images, in pixels.
    crops : bool
        Whether the image of a region is a crop around it. An encoder that finds its own way to a
        region takes the whole slice instead, and the region's box.
    composite_size : int
        Side of composites (:mod:`indexer.composite`), in pixels; 0 where there are to be none.
    apart : float
        Distance in mm that slices may have of each other: those between are skipped. 0 to take all.
    standardised : bool
        Whether the greys of composites are standard deviations of the brain, as `STANDARD` says, and not
        from the darkest to the brightest of each scan.
    """

    size: int
    crops: bool = True
    composite_size: int = 0
    apart: float = 0.0
    standardised: bool = False

    @classmethod
    def of(cls, encoder: Encoder) -> Preprocessing:
        """As an encoder takes it."""
        composite_size = encoder.composite_size if isinstance(encoder, Composer) else 0
        apart = encoder.apart if isinstance(encoder, Sparse) else 0.0
        standardised = isinstance(encoder, Segmenter) and encoder.standardised
        return cls(encoder.size, not isinstance(encoder, Analyser), composite_size, apart, standardised)

    def as_in(self, version: str) -> Preprocessing:
        """The same with slices as far apart as another `version` has them: both can be compared."""
        found = _APART.search(version)
        return replace(self, apart=float(found[1]) if found else 0.0)

    @property
    def version(self) -> str:
        """Differs where the same scan would be prepared otherwise."""
        method = (SCHEME, NEAR, COMMON, PATCH, SPECK, EMPTY, *WINDOW, CONTEXT, LEAST, SAMPLE, AIR)
        whole = () if self.crops else ("whole",)
        composites = (f"together {self.composite_size}",) if self.composite_size else ()
        standard = ("to".join(map(str, STANDARD)),) if self.standardised else ()
        apart = (f"every {self.apart:g} mm",) if self.apart else ()
        return "-".join(map(str, (self.size, *method, *whole, *composites, *standard, *apart)))


_APART = re.compile(r"-every (\d+(?:\.\d+)?) mm$")


@dataclass(frozen=True)
class Frame:
    """What greys, pixels and planes of prepared images are in the patient.

    Attributes
    ----------
    spacing : float
        Side of a pixel in mm; NaN where the scan does not say.
    thickness : float
        From plane to plane in mm; NaN where the scan does not say.
    axis : int, optional
        Along which the planes lie, 0 to 2 for sagittal, coronal, axial; None where nothing is known of
        their orientation.
    levels : ndarray of float32, shape (channels, 2)
        A pixel of grey g, which is no background, lies ``levels[c, 0] * g + levels[c, 1]`` standard
        deviations above the mean of what the scan shows. An image that was standardised by whoever
        cut it is left as it is, for it may show little but the lesion. NaN for a channel that lacks.
    affine : ndarray, shape (4, 4), optional
        Column, row and position of a slice to RAS+ millimetres; None where nothing is known of them.
    space : str, optional
        The atlas' space that the scan lies in (:mod:`indexer.atlas`).
    """

    spacing: float
    thickness: float
    axis: int | None
    levels: NDArray[np.float32]
    affine: NDArray[np.float64] | None = None
    space: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A scan as an encoder takes it: its whole slices in order, then its regions in order.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (n, size, size); of a composite, (n, channels, size, size)
        0 is background, 1…255 foreground.
    positions : ndarray of int64, shape (n,)
        Each image's slice in the scan.
    weights : ndarray of float32, shape (n,)
        How informative an image is, in (0, 1]: a whole slice's foreground over that of the fullest
        slice; for a region, its area over that of the scan's largest.
    views : ndarray of uint8, shape (n,)
        0 for a whole slice, 1 for its region.
    boxes : ndarray of float32, shape (n, 4)
        x0, y0, x1, y1 of a region as shares of the side of the whole slice's image; NaN for a whole
        slice.
    frame : Frame
        Of the images that are whole slices.
    """

    pixels: NDArray[np.uint8]
    positions: NDArray[np.int64]
    weights: NDArray[np.float32]
    views: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    frame: Frame


@dataclass(frozen=True)
class Background:
    """The intensities `low` to `high`, which show nothing; there are none where `low` exceeds `high`."""

    low: float
    high: float

    def foreground(self, plane: NDArray[Any]) -> NDArray[np.bool_]:
        """Where a plane, shape (rows, columns), shows something."""
        shown = plane > _least_exact(plane, math.floor, self.high)
        if self.low > -np.inf:
            shown |= plane < _least_exact(plane, math.ceil, self.low)
        return ~_patches(~shown) if self.low == self.high else shown


def _least_exact(plane: NDArray[Any], rounded: Callable[[float], int], bound: float) -> float:
    """A bound to compare a plane with in the plane's own type: integers need no conversion."""
    return rounded(bound) if plane.dtype.kind in "iu" and math.isfinite(bound) else bound


def _patches(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask's part that squares of side `PATCH` can cover, which may reach over the edge."""
    beyond = PATCH - 1
    mask = np.pad(mask, beyond, constant_values=True)
    rows, columns = mask.shape[0] - beyond, mask.shape[1] - beyond
    shifts = [np.s_[i : i + rows, j : j + columns] for i, j in np.ndindex(PATCH, PATCH)]
    corners, covered = np.ones((rows, columns), bool), np.zeros_like(mask)
    for shift in shifts:
        corners &= mask[shift]
    for shift in shifts:
        covered[shift] |= corners
    return covered[beyond:-beyond, beyond:-beyond]


def prepared(scan: Scan, preprocessing: Preprocessing) -> Prepared:
    """The images of a scan that are worth an embedding.

    Raises
    ------
    ReadError
        If the scan shows nothing, or has values that are not finite.
    """
    planes = _Planes(scan)
    box, shares = extent(planes.masks)
    planes.scale(box)
    size, spacing = preprocessing.size, pixel_spacing(scan)
    whole, marked, areas = _taken(scan, shares, planes.regions, preprocessing.apart)
    pixels = [planes.image(i, box, spacing, size) for i in whole]
    boxes = [np.full(4, np.nan)] * len(whole)
    for i in marked:
        region = planes.regions[i]
        assert region is not None
        part = crop_box(region, spacing) if preprocessing.crops else box
        pixels.append(planes.image(i, part, spacing, size))
        boxes.append(_shares(region, box, spacing))
    return Prepared(
        np.stack(pixels),
        np.concatenate([whole, marked]),
        np.concatenate([shares[whole], areas[marked] / areas.max(initial=1)]).astype(np.float32),
        np.repeat(np.array([0, 1], np.uint8), (len(whole), len(marked))),
        np.array(boxes, np.float32),
        _frame(scan, box, size, [planes]),
    )


def _taken(
    scan: Scan,
    shares: NDArray[np.float64],
    regions: Sequence[NDArray[np.bool_] | None],
    apart: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Whole slices and outlined slices that are taken, and the area of each slice's outline."""
    areas = np.array([0 if region is None else np.count_nonzero(region) for region in regions], np.int64)
    shown, outlined = np.flatnonzero(shares >= EMPTY), np.flatnonzero(areas)
    step = 1 if scan.spacing is None else max(1, math.floor(apart / scan.spacing[scan.axis] + 1e-3))
    whole = shown[(shown - shown[len(shown) // 2]) % step == 0]
    return whole, outlined[(outlined - areas.argmax()) % step == 0], areas


def prepared_composite(
    scans: Sequence[Scan | None], size: int, apart: float = 0.0, standardised: bool = False
) -> Prepared:
    """Scans on one grid, laid over each other.

    Parameters
    ----------
    scans : sequence of Scan or None
        One a channel, at least one of them there; a channel that is None stays black.
    size : int
        Side of the images, in pixels.
    apart, standardised
        See :class:`Preprocessing`.

    Returns
    -------
    Prepared
        With pixels of shape (n, channels, size, size): all channels are cut to the one box that
        holds what any of them shows, and each is scaled by itself. Regions are those of the first
        scan that has any.

    Raises
    ------
    ReadError
        If a scan shows nothing, or has values that are not finite.
    """
    channels = [None if scan is None else _Planes(scan) for scan in scans]
    there = [planes for planes in channels if planes is not None]
    first = next(scan for scan in scans if scan is not None)
    spacing = pixel_spacing(first)
    box, shares = extent(
        [np.logical_or.reduce(masks) for masks in zip(*(p.masks for p in there), strict=True)]
    )
    for planes in there:
        planes.scale(box, standardised)

    def image(i: np.integer[Any] | int) -> NDArray[np.uint8]:
        black = np.zeros((size, size), np.uint8)
        return np.stack([black if c is None else c.image(i, box, spacing, size) for c in channels])

    regions = next(
        (p.regions for p in there if any(region is not None for region in p.regions)), there[0].regions
    )
    whole, marked, areas = _taken(first, shares, regions, apart)
    places = [_shares(region, box, spacing) for i in marked if (region := regions[i]) is not None]
    return Prepared(
        np.stack([image(i) for i in (*whole, *marked)]),
        np.concatenate([whole, marked]),
        np.concatenate([shares[whole], areas[marked] / areas.max(initial=1)]).astype(np.float32),
        np.repeat(np.array([0, 1], np.uint8), (len(whole), len(marked))),
        np.array([np.full(4, np.nan)] * len(whole) + places, np.float32),
        _frame(next(scan for scan in scans if scan is not None), box, size, channels),
    )


def _frame(scan: Scan, box: Box, size: int, channels: Sequence[_Planes | None]) -> Frame:
    lengths = [(part.stop - part.start) * mm for part, mm in zip(box, pixel_spacing(scan), strict=True)]
    levels = [(np.nan, np.nan) if planes is None else planes.levels for planes in channels]
    known = scan.spacing is not None
    return Frame(
        spacing=max(lengths) / size if known else np.nan,
        thickness=scan.spacing[scan.axis] if scan.spacing is not None else np.nan,
        axis=scan.axis if scan.affine is not None else None,
        levels=np.array(levels, np.float32),
        affine=None if scan.affine is None else scan.affine @ _to_voxels(scan, box, size),
        space=space_of(scan),
    )


def _to_voxels(scan: Scan, box: Box, size: int) -> NDArray[np.float64]:
    """From column, row and position in images that :func:`squared` makes of a box to the scan's voxels."""
    found = np.zeros((4, 4))
    found[scan.axis, 2] = found[3, 3] = 1
    of_columns, of_rows = (axis for axis in range(3) if axis != scan.axis)
    lengths = box[0].stop - box[0].start, box[1].stop - box[1].start
    inside = placed(lengths, pixel_spacing(scan), size)
    for place, axis, part, where in zip((1, 0), (of_rows, of_columns), box, inside, strict=True):
        step = (part.stop - part.start) / (where.stop - where.start)
        first = part.start - 0.5 + (0.5 - where.start) * step
        found[axis, place] = -step  # rows and columns are displayed in reverse
        found[axis, 3] = scan.voxels.shape[axis] - 1 - first
    return found


class _Planes:
    """A scan's planes, what of them is foreground, and the grey that their intensities become.

    Attributes
    ----------
    masks : list of ndarray of bool, shape (rows, columns)
    regions : list of ndarray of bool or None
    levels : tuple of float
        See :class:`Frame`; once they are scaled.
    """

    levels = (np.nan, np.nan)

    def __init__(self, scan: Scan) -> None:
        slices = list(scan.slices())
        self._source, self._dtype, self._window = scan.source, scan.voxels.dtype, scan.window
        self._planes = [s.pixels for s in slices]
        background = background_of(scan)
        self.masks = [background.foreground(plane) for plane in self._planes]
        self._padded = background.low == background.high or background.low > background.high
        self.regions = [s.region for s in slices]

    def scale(self, box: Box, standardised: bool = False) -> None:
        """Let the darkest and the brightest foreground in a box, or what `STANDARD` says, be 1 and 255."""
        shown = self._shown(box)
        darkest, self._brightest = np.array(self._window or np.percentile(shown, WINDOW), np.float32)
        # one value alone is bright
        self._darkest = min(darkest, np.nextafter(self._brightest, np.float32(-np.inf)))
        already = self._padded and float(shown.min()) < 0
        mean, deviation = (0.0, 1.0) if already else (float(shown.mean()), float(shown.std()) or 1.0)
        if standardised:
            self._darkest, self._brightest = (np.float32(mean + d * deviation) for d in STANDARD)
        step_up = (float(self._brightest) - float(self._darkest)) / 254 / deviation
        self.levels = (step_up, (float(self._darkest) - mean) / deviation - step_up)
        # small integers are looked up, which is several times faster
        small = self._dtype in (np.uint8, np.uint16)
        self._table = self._grey(np.arange(np.iinfo(self._dtype).max + 1)) if small else None

    def window(self) -> tuple[float, float]:
        """The darkest and the brightest foreground."""
        if self._window is not None:
            return self._window
        darkest, brightest = np.percentile(self._shown(extent(self.masks)[0]), WINDOW).tolist()
        return darkest, brightest

    def _shown(self, box: Box) -> NDArray[Any]:
        """Intensities of the foreground within a box, of some voxels."""
        every, step = _grid([plane[box] for plane in self._planes])
        thinned = tuple(slice(span.start, span.stop, step) for span in box)
        pairs = zip(self._planes[::every], self.masks[::every], strict=True)
        shown = np.concatenate([plane[thinned][mask[thinned]] for plane, mask in pairs])
        if not shown.size:
            raise ReadError(self._source, "it shows almost nothing", "leave it out")
        return shown

    def _grey(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        clipped = np.clip(values.astype(np.float32), self._darkest, self._brightest)
        span = self._brightest - self._darkest
        scaled: NDArray[np.uint8] = ((clipped - self._darkest) / span * 254 + 1).astype(np.uint8)
        return scaled

    def image(
        self, i: np.integer[Any] | int, part: Box, spacing: tuple[float, float], size: int
    ) -> NDArray[np.uint8]:
        """A part of a plane as a square image."""
        plane = self._planes[i][part]
        shades = self._grey(plane) if self._table is None else np.take(self._table, plane)
        return squared(shades * self.masks[i][part], spacing, size)


def window_of(scan: Scan) -> tuple[float, float]:
    """The intensities of a scan that become the darkest and the brightest grey.

    Raises
    ------
    ReadError
        If it shows nothing, or has values that are not finite.
    """
    return _Planes(scan).window()


def background_of(scan: Scan) -> Background:
    """What of a scan shows nothing, by the rule at the head of this file.

    Raises
    ------
    ReadError
        If the scan is constant, or has values that are not finite.
    """
    if not scan.voxels.size:
        raise ReadError(scan.source, "it has no voxels", "leave it out")
    planes = [s.pixels for s in scan.slices()]
    lowest = float(np.min([plane.min() for plane in planes]))  # NumPy's minimum keeps NaN
    highest = float(np.max([plane.max() for plane in planes]))
    if not (abs(lowest) < LARGEST and abs(highest) < LARGEST):  # false for NaN, too
        raise ReadError(scan.source, "it has voxels that are infinite or not a number", "repair the file")
    if np.float32(lowest) == np.float32(highest):
        raise ReadError(scan.source, f"it shows nothing: every voxel is {lowest:g}", "leave it out")
    edges = np.concatenate([edge for p in planes for edge in (p[0], p[-1], p[:, 0], p[:, -1])])
    every, step = _grid(planes)
    voxels = np.concatenate([p[::step, ::step].ravel() for p in planes[::every]])
    edges, voxels = edges.astype(np.float32), voxels.astype(np.float32)
    if scan.modality == "CT":
        edges, voxels = np.maximum(edges, AIR), np.maximum(voxels, AIR)
    level = float(np.percentile(edges, 50, method="lower"))
    rest = voxels[voxels != level]
    dark, bright = np.percentile(rest if rest.size else (lowest, highest), (0.5, 99.5)).tolist()
    near = NEAR * max(bright - level, level - dark)
    if np.mean(np.abs(edges - level) <= near) > 0.5:
        if dark >= level - near:
            return Background(-np.inf, level + near)
        if bright <= level + near:
            return Background(level - near, np.inf)
    values, counts = np.unique(edges, return_counts=True)
    if counts.max() > COMMON * edges.size:
        level = float(values[counts.argmax()])
        return Background(level, level)
    return Background(np.inf, -np.inf)


def extent(masks: Sequence[NDArray[np.bool_]]) -> tuple[Box, NDArray[np.float64]]:
    """Where in a scan something is shown.

    Parameters
    ----------
    masks : sequence of ndarray of bool, shape (rows, columns)
        The foreground of each plane.

    Returns
    -------
    box : tuple of slice
        The rows and columns that hold the foreground of all planes.
    shares : ndarray, shape (n,)
        Each plane's foreground over that of the fullest plane.
    """
    rows, columns = np.zeros(masks[0].shape[0]), np.zeros(masks[0].shape[1])
    sums = np.empty(len(masks))
    for i, mask in enumerate(masks):
        ones = mask.astype(np.float32)  # sums by matrix products are the fastest
        rows += ones @ np.ones(ones.shape[1], np.float32)
        columns += np.ones(ones.shape[0], np.float32) @ ones
        sums[i] = np.count_nonzero(mask)
    return (_span(rows), _span(columns)), sums / sums.max()


def _span(profile: NDArray[np.float64]) -> slice:
    inside = np.flatnonzero(profile >= SPECK * profile.max())
    return slice(int(inside[0]), int(inside[-1]) + 1)


def _grid(planes: Sequence[NDArray[Any]]) -> tuple[int, int]:
    """Steps from plane to plane, and along rows and columns, to take about `SAMPLE` voxels at most."""
    every = math.ceil(len(planes) / 64)
    return every, math.ceil(math.sqrt(math.ceil(len(planes) / every) * planes[0].size / SAMPLE))


def pixel_spacing(scan: Scan) -> tuple[float, float]:
    """Distance of the rows and of the columns of a displayed plane, in mm (1 where it is unknown)."""
    if scan.spacing is None:
        return 1.0, 1.0
    columns, rows = (s for i, s in enumerate(scan.spacing) if i != scan.axis)
    return rows, columns


def crop_box(region: NDArray[np.bool_], spacing: tuple[float, float]) -> Box:
    """The square around a region, with context; inside the plane, so it may come out oblong.

    Parameters
    ----------
    region : ndarray of bool, shape (rows, columns)
        Not empty.
    spacing : tuple of float
        Distance of rows and of columns, in mm.
    """
    spans = [np.flatnonzero(region.any(1 - axis))[[0, -1]] + (0, 1) for axis in (0, 1)]
    longer = max((stop - start) * mm for (start, stop), mm in zip(spans, spacing, strict=True))
    side = max(CONTEXT * longer, LEAST * min(spacing))
    rows, columns = (
        _centred(int(start + stop), round(side / mm), length)
        for (start, stop), mm, length in zip(spans, spacing, region.shape, strict=True)
    )
    return rows, columns


def _shares(region: NDArray[np.bool_], box: Box, spacing: tuple[float, float]) -> NDArray[np.float64]:
    """x0, y0, x1, y1 of a region as shares of the side of the square that a box is drawn into."""
    spans = [np.flatnonzero(region.any(1 - axis))[[0, -1]] + (0, 1) for axis in (0, 1)]
    lengths = [(part.stop - part.start) * mm for part, mm in zip(box, spacing, strict=True)]
    y, x = (
        0.5 + ((span - part.start) * mm - length / 2) / max(lengths)
        for span, part, mm, length in zip(spans, box, spacing, lengths, strict=True)
    )
    return np.array([x[0], y[0], x[1], y[1]]).clip(0, 1)


def _centred(twice_centre: int, side: int, length: int) -> slice:
    """The span of `side` pixels around a centre, shifted into 0…length."""
    side = min(max(side, 1), length)
    start = min(max((twice_centre - side) // 2, 0), length - side)
    return slice(start, start + side)


def squared(grey: NDArray[np.uint8], spacing: tuple[float, float], size: int) -> NDArray[np.uint8]:
    """An image resized (bilinear, antialiased) into the middle of a black square.

    Parameters
    ----------
    grey : ndarray of uint8, shape (rows, columns)
    spacing : tuple of float
        Distance of rows and of columns, in mm.
    size : int
        Side of the square in pixels, which the image's longer side fills.
    """
    rows, columns = place = placed((grey.shape[0], grey.shape[1]), spacing, size)
    square = np.zeros((size, size), np.uint8)
    shape = columns.stop - columns.start, rows.stop - rows.start
    square[place] = np.asarray(Image.fromarray(grey).resize(shape, Image.Resampling.BILINEAR))
    return square


def placed(shape: tuple[int, int], spacing: tuple[float, float], size: int) -> Box:
    """Rows and columns of the square that :func:`squared` gives to an image of this shape."""
    height, width = shape[0] * spacing[0], shape[1] * spacing[1]
    rows, columns = (max(1, round(length * size / max(height, width))) for length in (height, width))
    top, left = (size - rows) // 2, (size - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


def with_region(scan: Scan, box: tuple[int, int, int, int], position: int | None = None) -> Scan:
    """The scan with a box on one slice as its region.

    Parameters
    ----------
    scan : Scan
    box : tuple of int
        x0, y0, x1, y1 in pixels of the displayed slice: columns x0…x1 - 1, rows y0…y1 - 1.
    position : int, optional
        The slice; without it, the middle one of those that are not empty.

    Raises
    ------
    QueryError
        If the scan has no such slice, or the box does not lie inside it.
    ReadError
        If the scan shows nothing.
    """
    if position is None:
        planes = [s.pixels for s in scan.slices()]
        background = background_of(scan)
        shares = extent([background.foreground(plane) for plane in planes])[1]
        shown = np.flatnonzero(shares >= EMPTY)
        position = int(shown[len(shown) // 2])
    if not 0 <= position < len(scan):
        raise QueryError(scan.source, f"it has no slice {position}", f"choose one of 0…{len(scan) - 1}")
    region = np.zeros(scan.voxels.shape, bool)
    plane = displayed(region, scan.axis, position)
    (rows, columns), (x0, y0, x1, y1) = plane.shape, box
    if not (0 <= x0 < x1 <= columns and 0 <= y0 < y1 <= rows):
        raise QueryError(
            scan.source,
            f"the region {x0},{y0},{x1},{y1} is not inside its slices",
            f"give x0,y0,x1,y1 with 0 <= x0 < x1 <= {columns} and 0 <= y0 < y1 <= {rows}",
        )
    plane[y0:y1, x0:x1] = True
    return replace(scan, region=region)
