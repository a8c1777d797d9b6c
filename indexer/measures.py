"""What a lesion looks like in numbers: size, tissues, brightness of each sequence, place; and its view.

They are taken from where an encoder sees tissues of a lesion (:class:`indexer.encoder.Segmenter`); for
another encoder from plain rules on the brightness of the sequences, which are cruder. Index and query
go through the one function :func:`measure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.atlas import LOBES, lobe
from indexer.components import components
from indexer.encoder.protocols import Encoder, Segmenter
from indexer.preprocess import Prepared
from indexer.sequences import CHANNELS, STANDARD
from indexer.view import AXES, PACKED, packed, unknown, unpacked, view_of

VERSION = 2
"""Counts the changes of what :meth:`Measures.as_vector` holds. Version 1 held neither view nor lobe."""

HEAD = 80.0
"""Millimetres that a head measures at least: what is less is a crop, and says no place."""

SURE = 0.5
"""Chance of being of a lesion above which a cell is counted."""

FOCUS = 0.1
"""Share of the largest focus that another is at least, to be counted: less is a speck."""

SWOLLEN, ENHANCED, DARK = 1.0, 1.0, -0.5
"""By the rules: FLAIR (else T2) above the first is lesion; T1 after contrast agent above the second
enhances, and below the third is necrotic. In standard deviations of the brain."""

PLANES = 3.0
"""Millimetres between the planes that are measured, at least: those between say the same."""

SIDE = 80
"""Cells along each side in which the rules look, at most."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Measures:
    """A lesion in numbers; NaN where nothing says.

    Attributes
    ----------
    size : float
        Diameter in mm of the sphere of its volume; where there is one plane, or the distance of planes
        is unknown, of the circle of its largest area. 0 where no lesion is found.
    enhancing, necrotic, oedema : float
        Shares of the lesion, 0 to 1.
    t1, t1ce, t2, flair : float
        Mean inside the lesion, in standard deviations above the mean of the brain.
    right_left, posterior_anterior, inferior_superior : float
        Its middle in the box of the head, from -1 (right, posterior, inferior) to 1.
    view : ndarray of float32
        From where the scan shows it (:mod:`indexer.view`).
    lobe : str
        One of :data:`indexer.atlas.LOBES`: where its middle is, if the scan lies in an atlas' space.
    """

    size: float = np.nan
    enhancing: float = np.nan
    necrotic: float = np.nan
    oedema: float = np.nan
    t1: float = np.nan
    t1ce: float = np.nan
    t2: float = np.nan
    flair: float = np.nan
    right_left: float = np.nan
    posterior_anterior: float = np.nan
    inferior_superior: float = np.nan
    view: Floats = field(default_factory=unknown, compare=False, kw_only=True)
    lobe: str = field(default="", kw_only=True)

    @property
    def place(self) -> tuple[float, float, float]:
        """Its middle in the box of the head: right to left, posterior to anterior, inferior to superior."""
        return self.right_left, self.posterior_anterior, self.inferior_superior

    @property
    def numbers(self) -> Floats:
        """All but view and lobe, in the order of :data:`NAMES`."""
        return np.array([getattr(self, name) for name in NAMES], np.float32)

    def as_vector(self) -> Floats:
        """The version, the :attr:`numbers`, the number of the lobe, and the view as :func:`packed` has it."""
        parts = ([VERSION], self.numbers, [LOBES.index(self.lobe)], packed(self.view))
        return np.concatenate([np.array(part, np.float32) for part in parts])

    @classmethod
    def from_vector(cls, vector: Floats) -> Measures:
        """What :meth:`as_vector` gave, of this version or of one before.

        Raises
        ------
        ValueError
            If it is of another version, or holds what none does.
        """
        version = vector[0] if vector.size else 0
        lengths = {1: 1 + len(NAMES), VERSION: 2 + len(NAMES) + PACKED}
        if vector.shape != (lengths.get(version),):
            raise ValueError(f"these are no measures of version {VERSION}")
        numbers, lobes, view = np.split(vector[1:], [len(NAMES), len(NAMES) + 1])
        seen = unpacked(view) if len(view) else unknown()
        if not (np.isnan(seen[0]) or seen[0] in range(len(AXES))):
            raise ValueError(f"planes do not lie along an axis {seen[0]:g}")
        if not np.isin(lobes, range(len(LOBES))).all():
            raise ValueError(f"there is no lobe {lobes[0]:g}")
        known = np.where(np.isfinite(numbers), numbers, np.nan)
        return cls(*known.tolist(), view=seen, lobe=LOBES[int(lobes.sum())])


NAMES = tuple(measure.name for measure in fields(Measures) if not measure.kw_only)
"""The measures, in the order in which a vector holds them."""


def measure(
    ready: Prepared, sequences: Sequence[str | None] = CHANNELS, encoder: Encoder | None = None
) -> Measures:
    """Measure the lesion that prepared images show, and say from where they show it.

    Where the images have regions (views of 1), only these are looked at.

    Parameters
    ----------
    ready : Prepared
        A scan or a composite.
    sequences : sequence of str or None
        One a channel of the images: `CHANNELS` for a composite, the one sequence of a scan.
    encoder : Encoder, optional
        A :class:`~indexer.encoder.Segmenter` says where the tissues are; for others, rules do.

    Returns
    -------
    Measures
        All but the view NaN where no channel is of a known sequence.
    """
    return replace(_of_lesion(ready, sequences, encoder), view=view_of(ready))


def _of_lesion(ready: Prepared, sequences: Sequence[str | None], encoder: Encoder | None) -> Measures:
    found = [(CHANNELS.index(s), i) for i, s in enumerate(sequences) if s in CHANNELS]
    boxes, rows = _boxes(ready)
    images = ready.pixels[rows] if ready.pixels.ndim == 4 else ready.pixels[rows][:, None]
    found = [(channel, i) for channel, i in found if images[:, i].any()]
    if not found:
        return Measures()
    levels = np.full((len(CHANNELS), 2), np.nan, np.float32)
    laid = np.zeros((len(images), len(CHANNELS), *images.shape[2:]), np.uint8)
    for channel, i in found:
        laid[:, channel], levels[channel] = images[:, i], ready.frame.levels[i]
    if isinstance(encoder, Segmenter) and encoder.segments:
        greys = _standardised(laid, levels) if encoder.standardised else laid
        tissues = encoder.segment(_reduced(greys, encoder.composite_size), boxes)
        values = _values(laid, levels, tissues.shape[-1])
    else:
        values = _values(laid, levels, _side(laid.shape[-1]))
        tissues = _by_rule(values)
    if boxes is not None:
        tissues = tissues * _inside(boxes, tissues.shape[-1])[:, None]
    return _measured(tissues, values, ready, rows, images.shape[-1] / tissues.shape[-1])


def _side(pixels: int) -> int:
    """Cells of a whole number of pixels along the side of an image: the most up to :data:`SIDE`."""
    return next(side for side in range(min(SIDE, pixels), 0, -1) if pixels % side == 0)


def _boxes(ready: Prepared) -> tuple[Floats | None, NDArray[np.intp]]:
    """Regions, None where there is none, and the whole slices to look at: those with regions, spaced.

    Where planes are left out, those of regions need not be among those that are left whole: then a slice has
    the region that is nearest, up to half-way to the next slice.
    """
    whole, marked = np.flatnonzero(ready.views == 0), np.flatnonzero(ready.views == 1)
    if len(marked):
        at = ready.positions[whole]
        step = np.diff(at).min() if len(at) > 1 else 1
        away = np.abs(ready.positions[marked] - at[:, None])
        seen = away.min(axis=1) <= step / 2
        whole, marked = whole[seen], marked[away.argmin(axis=1)[seen]]
    every = max(1, int(PLANES / ready.frame.thickness)) if ready.frame.thickness > 0 else 1
    if every < len(whole):
        whole, marked = whole[::every], marked[::every]
    return (ready.boxes[marked] if len(marked) else None), whole


def _inside(boxes: Floats, side: int) -> NDArray[np.bool_]:
    """The cells, shape (n, side, side), of a box of each slice; none where there is no box."""
    middle = (np.arange(side) + 0.5) / side
    x0, y0, x1, y1 = boxes[:, :, None].transpose(1, 0, 2)
    across, down = (middle >= x0) & (middle < x1), (middle >= y0) & (middle < y1)
    inside: NDArray[np.bool_] = down[:, :, None] & across[:, None, :]
    return inside


def _reduced(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Images at another side, of which theirs is a multiple."""
    factor = images.shape[-1] // side
    n, channels = images.shape[:2]
    if factor == 1:
        return images
    cells = images.reshape(n, channels, side, factor, side, factor)
    return np.asarray(cells.mean((3, 5)), np.uint8)


def _standardised(images: NDArray[np.uint8], levels: Floats) -> NDArray[np.uint8]:
    """Images whose greys are standard deviations, as :data:`indexer.sequences.STANDARD` says."""
    low, high = STANDARD
    found = np.zeros_like(images)
    for channel in np.flatnonzero(np.isfinite(levels[:, 0])):
        deviations = np.arange(256) * levels[channel, 0] + levels[channel, 1]
        table = ((deviations - low) / (high - low) * 254 + 1).clip(1, 255).astype(np.uint8)
        table[0] = 0
        found[:, channel] = table[images[:, channel]]
    return found


def _values(images: NDArray[np.uint8], levels: Floats, side: int) -> Floats:
    """Mean in each cell in standard deviations of the brain, (n, channels, side, side); NaN outside it."""
    n, channels = images.shape[:2]
    factor = images.shape[-1] // side
    values = np.full((n, channels, side, side), np.nan, np.float32)
    for channel in np.flatnonzero(np.isfinite(levels).all(1)):
        shown = _sums(images[:, channel] != 0, side)
        mean = _sums(images[:, channel], side) / np.maximum(shown, 1)
        scaled = mean * levels[channel, 0] + levels[channel, 1]
        values[:, channel] = np.where(2 * shown >= factor**2, scaled, np.nan)
    return values


def _sums(images: NDArray[Any], side: int) -> NDArray[np.uint32]:
    """Sum of each cell, shape (n, side, side): first along rows, which takes a quarter of the time."""
    n, factor = len(images), images.shape[-1] // side
    rows = images.reshape(n, side, factor, -1).sum(2, dtype=np.uint32)
    return np.asarray(rows.reshape(n, side, side, factor).sum(3))


def _by_rule(values: Floats) -> Floats:
    """Necrosis, oedema and enhancement as :data:`SWOLLEN`, :data:`ENHANCED` and :data:`DARK` tell them."""
    _, t1ce, t2, flair = values.transpose(1, 0, 2, 3)
    swollen = np.where(np.isnan(flair), t2, flair) > SWOLLEN
    enhanced = t1ce > ENHANCED
    if np.isnan(flair).all() and np.isnan(t2).all():
        swollen = enhanced
    dark = swollen & (t1ce < DARK)
    enhancing = swollen & enhanced
    return np.stack([dark, swollen & ~dark & ~enhancing, enhancing], 1).astype(np.float32)


def _measured(
    tissues: Floats, values: Floats, ready: Prepared, rows: NDArray[np.intp], pixels: float
) -> Measures:
    """Sums over the cells that are of a lesion, in some of the slices; a cell is so many pixels wide."""
    frame = ready.frame
    lesion = foci(tissues.sum(1)) > 0
    areas = lesion.sum((1, 2))
    if not areas.any():
        return Measures(size=0.0)
    cell = pixels * frame.spacing
    if len(rows) > 1 and np.isfinite(frame.thickness):
        steps = np.diff(ready.positions[rows])
        volume = areas.sum() * cell**2 * frame.thickness * float(np.median(steps))
        size = (6 * volume / np.pi) ** (1 / 3)
    else:
        size = 2 * cell * np.sqrt(areas.max() / np.pi)
    inside = tissues.transpose(1, 0, 2, 3)[:, lesion]
    necrotic, oedema, enhancing = (inside / inside.sum(0)).mean(1)
    brightness = []
    for of_channel in values.transpose(1, 0, 2, 3):
        shown = of_channel[lesion]
        shown = shown[np.isfinite(shown)]
        brightness.append(float(shown.mean()) if shown.size else np.nan)
    t1ce, *swelling = (np.isfinite(values[:, CHANNELS.index(name)]).any() for name in ("t1ce", "t2", "flair"))
    if not (t1ce and any(swelling)):  # the others show what does not enhance
        enhancing = necrotic = oedema = np.nan
    place = _place(lesion, values, ready, rows, pixels)
    numbers = map(float, (size, enhancing, necrotic, oedema, *brightness, *place))
    return Measures(*numbers, lobe=_lobe(lesion, ready, rows, pixels))


def _lobe(lesion: NDArray[np.bool_], ready: Prepared, rows: NDArray[np.intp], pixels: float) -> str:
    """That in which the middle of the lesion lies."""
    if ready.frame.affine is None:
        return ""
    planes, down, across = np.nonzero(lesion)
    column, row = ((at.mean() + 0.5) * pixels - 0.5 for at in (across, down))
    middle = ready.frame.affine @ (column, row, ready.positions[rows][planes].mean(), 1)
    return lobe(middle[:3], ready.frame.space) or ""


def foci(chance: Floats) -> NDArray[np.intp]:
    """The foci of a lesion: cells connected across planes, without specks.

    Parameters
    ----------
    chance : ndarray of float32, shape (planes, rows, columns)

    Returns
    -------
    ndarray of int, shape (planes, rows, columns)
        The number of the focus of each cell; 0 where there is none.
    """
    parts = components(chance > SURE)
    sums = np.bincount(parts.ravel(), chance.ravel())
    sums[0] = 0
    counted = (sums >= FOCUS * sums.max()) & (sums > 0)
    return np.asarray(np.where(counted[parts], parts, 0))


def _place(
    lesion: NDArray[np.bool_], values: Floats, ready: Prepared, rows: NDArray[np.intp], pixels: float
) -> tuple[float, float, float]:
    """The middle of the lesion in the box of the head, -1 to 1 along each of the patient's axes."""
    frame = ready.frame
    head = np.logical_or.reduce(np.isfinite(values), 1)
    _, down, across = np.nonzero(head)
    spans = [(int(at.min()), int(at.max())) for at in (ready.positions[ready.views == 0], down, across)]
    extent = [(high - low + 1) * pixels * frame.spacing for low, high in spans[1:]]
    if frame.axis is None or not min(extent) >= HEAD:
        return np.nan, np.nan, np.nan
    planes, down, across = np.nonzero(lesion)
    plane, row, column = (
        2 * float(at.mean() - low) / max(float(high - low), 1.0) - 1
        for at, (low, high) in zip((ready.positions[rows][planes], down, across), spans, strict=True)
    )
    if spans[0][0] == spans[0][1]:
        plane = np.nan
    # planes are displayed with the patient's right, or front, at the left, and front or head at the top
    return ((-plane, -column, -row), (column, plane, -row), (column, -row, plane))[frame.axis]
