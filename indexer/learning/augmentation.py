"""What a scanner, a protocol or a head could have changed: random views of a batch of slices."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from indexer.learning.looks import CONTEXT, LEAST

TURN = 20.0
"""Rotation, up to so many degrees either way."""

WHOLE, REGION, PART = 1.15, 1.3, (0.45, 1.0)
"""Whole slices and regions are scaled by up to this factor either way; a view of a slice without an
outline shows a part of it of a side in this range."""

CROP = (0.6, 1.1)
"""The same for a view of a lesion's crop."""

ASPECT = 1.12
"""One side may be stretched against the other by up to this factor."""

SHIFT = 0.08
"""Views move by up to this share of their side."""

WHOLES = 0.35
"""Share of the views for tissues that show the whole slice."""

GAMMA, CONTRAST, BRIGHTNESS, SHADING, NOISE = 1.6, 1.3, 0.1, 0.15, 0.05
"""Greatest exponent, gain, offset, slope of the shading across the view, and deviation of the noise."""

BLURRED = 0.25
"""Share of the views that are smoothed."""


def uniform(low: float, high: float, n: int, generator: Generator) -> Tensor:
    """Shape (n,), between two bounds."""
    return torch.rand(n, generator=generator) * (high - low) + low


def _factor(most: float, n: int, generator: Generator) -> Tensor:
    """Between 1 / most and most, as often above 1 as below."""
    return torch.exp(uniform(-math.log(most), math.log(most), n, generator))


def _matrix(width: Tensor, upright: bool, generator: Generator, turn: float = TURN) -> Tensor:
    """Random rotation, stretch and mirror images of views of some width, shape (n, 2, 2)."""
    n = len(width)
    angle = uniform(-math.radians(turn), math.radians(turn), n, generator)
    stretch = torch.sqrt(_factor(ASPECT, n, generator))
    mirrored = torch.randint(0, 2, (2, n), generator=generator) * 2.0 - 1
    across, down = width * stretch * mirrored[0], width / stretch
    if not upright:
        down = down * mirrored[1]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * across, -sin * down, sin * across, cos * down], 1).view(n, 2, 2)


def whole_frames(n: int, generator: Generator) -> Tensor:
    """Affine maps, shape (n, 2, 3), from a view to the whole slice."""
    matrix = _matrix(_factor(WHOLE, n, generator), True, generator)
    return torch.cat([matrix, uniform(-2 * SHIFT, 2 * SHIFT, n * 2, generator).view(n, 2, 1)], 2)


def region_frames(boxes: Tensor, generator: Generator) -> Tensor:
    """Affine maps, shape (n, 2, 3), from a view to the square around a box, or to some part of the slice.

    Parameters
    ----------
    boxes : Tensor, shape (n, 4)
        x0, y0, x1, y1 as shares of the side; NaN where nothing is outlined.
    generator : Generator
    """
    n = len(boxes)
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    width = (longer * CONTEXT).clamp(LEAST, 1) * _factor(REGION, n, generator)
    part = uniform(*PART, n, generator)
    shift = uniform(-1, 1, n * 2, generator).view(n, 2)
    centre = boxes[:, :2] + boxes[:, 2:] - 1 + 2 * SHIFT * width[:, None] * shift
    known = torch.isfinite(longer)
    width = torch.where(known, width, part)
    centre = torch.where(known[:, None], centre, (1 - part)[:, None] * shift)
    return torch.cat([_matrix(width, False, generator), centre[:, :, None]], 2)


def lesion_frames(boxes: Tensor, generator: Generator) -> Tensor:
    """Affine maps, shape (n, 2, 3), from a view, turned at will, to the square around a box.

    Parameters
    ----------
    boxes : Tensor, shape (n, 4)
        As for :func:`region_frames`; slices without one are taken for crops of a lesion, and the view
        shows most of them.
    generator : Generator
    """
    n = len(boxes)
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    known = torch.isfinite(longer)
    width = (longer * CONTEXT).clamp(LEAST, 1) * _factor(REGION, n, generator)
    width = torch.where(known, width, uniform(*CROP, n, generator))
    shift = uniform(-2 * SHIFT, 2 * SHIFT, n * 2, generator).view(n, 2)
    centre = torch.where(known[:, None], boxes[:, :2] + boxes[:, 2:] - 1 + shift * width[:, None], shift)
    return torch.cat([_matrix(width, False, generator, 180.0), centre[:, :, None]], 2)


def tissue_frames(boxes: Tensor, generator: Generator) -> Tensor:
    """Affine maps, shape (n, 2, 3), from a view, turned at will, to anything between a region and all.

    Parameters
    ----------
    boxes : Tensor, shape (n, 4)
        As for :func:`region_frames`; slices without one are seen whole or in part.
    generator : Generator
    """
    n = len(boxes)
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    known = torch.isfinite(longer)
    least = torch.where(known, (longer * CONTEXT / REGION).clamp(LEAST, 1), PART[0])
    share = torch.rand(n, generator=generator) ** 2  # regions more often than all
    share = torch.where(torch.rand(n, generator=generator) < WHOLES, 1.0, share)
    width = least ** (1 - share) * WHOLE ** (2 * torch.rand(n, generator=generator) - 1)
    shift = uniform(-1, 1, n * 2, generator).view(n, 2)
    off = torch.where(known[:, None], 2 * SHIFT * width[:, None], (1 - width[:, None]).clamp(min=0)) * shift
    middle = torch.where(known[:, None], boxes[:, :2] + boxes[:, 2:] - 1, 0)
    # the nearer to all, the less it lies around the region
    return torch.cat(
        [_matrix(width, False, generator, 180.0), ((1 - share)[:, None] * middle + off)[:, :, None]], 2
    )


def recoloured(views: Tensor, generator: Generator, strength: float = 1.0) -> Tensor:
    """Other contrast, brightness, shading, noise and sharpness; background stays background.

    Parameters
    ----------
    views : Tensor, shape (n, 1, h, w)
        0 (background) to 1.
    generator : Generator
    strength : float
        Of all but the sharpness; 1 as the constants say.
    """
    n, _, height, width = views.shape

    def drawn(low: float, high: float) -> Tensor:
        return uniform(low, high, n, generator).view(n, 1, 1, 1).to(views.device)

    foreground = (views > 1e-3).to(views.dtype)
    blurred = uniform(0, 1, n, generator).view(n, 1, 1, 1).to(views.device) < BLURRED
    kernel = torch.tensor([1.0, 2.0, 1.0], device=views.device) / 4
    smooth = nn.functional.conv2d(views, torch.outer(kernel, kernel)[None, None], padding=1)
    x = torch.where(blurred, smooth, views)
    x = x.clamp(min=1e-6) ** _factor(GAMMA**strength, n, generator).view(n, 1, 1, 1).to(views.device)
    slope = strength * drawn(-SHADING, SHADING) * torch.linspace(-1, 1, width, device=views.device)
    slope = (
        slope
        + strength * drawn(-SHADING, SHADING) * torch.linspace(-1, 1, height, device=views.device)[:, None]
    )
    gain = _factor(CONTRAST**strength, n, generator).view(n, 1, 1, 1).to(views.device)
    x = x * (1 + slope)
    mean = (x * foreground).sum((1, 2, 3), True) / foreground.sum((1, 2, 3), True).clamp(min=1)
    x = (x - mean) * gain + mean + strength * drawn(-BRIGHTNESS, BRIGHTNESS)
    noise = torch.randn(views.shape, generator=generator).to(views.device)
    return (x + strength * drawn(0, NOISE) * noise).clamp(0, 1) * foreground
