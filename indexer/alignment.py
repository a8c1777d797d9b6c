"""Sequences of one study on one grid, wherever their planes lie.

A scanner sends each sequence on a grid of its own; its header says where in the patient's frame of
reference that grid lies. So the others are sampled at the voxels of a leading sequence. Where the
frames differ, or the heads do not overlap as the heads of one patient should (the patient moved), a
rigid registration is tried and taken only if it explains one image by the other better than the
headers do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer import registration
from indexer.errors import ReadError
from indexer.preprocess import Background, background_of, window_of
from indexer.scan import Scan

FINER = 2.0
"""Pixels across the leading scan's field of view, over the side of the image that is made of it: the
head fills two thirds of the field, and the image is reduced with an antialiasing filter."""

COVERED = 0.5
"""A scan that shows less than this share of what the leading one shows is a part of the body too many."""

STEP = 4.0
"""A motion of so many millimetres, or degrees about the middle of the head, is looked for on both sides of
where the headers put a scan; images are compared at points that far apart."""

BETTER = 0.01
"""Share by which a motion must add to the mutual information (above that of nothing in common)."""

LEAST_SHOWN = 0.01
"""Share of what lies around a voxel that has to show something, for it not to be background."""

FWHM = 2 * np.sqrt(2 * np.log(2))
"""Full width at half maximum of a normal distribution, in standard deviations."""


@dataclass(frozen=True)
class Alignment:
    """Scans on one grid.

    Attributes
    ----------
    scans : dict of str to Scan
        By sequence; all of one shape and affine.
    left_out : dict of str to str
        Sequences that could not be brought to the grid, and why.
    """

    scans: Mapping[str, Scan]
    left_out: Mapping[str, str] = field(default_factory=dict)


def same_grid(one: Scan, other: Scan) -> bool:
    """Whether the voxels of two scans lie on each other (to a thousandth of a millimetre)."""
    if one.voxels.shape != other.voxels.shape or (one.affine is None) != (other.affine is None):
        return False
    return one.affine is None or other.affine is None or np.allclose(one.affine, other.affine, atol=1e-3)


def aligned(scans: Sequence[Scan], leaders: Sequence[str], side: int) -> Alignment:
    """Bring scans of one study to the grid of a leading one.

    Parameters
    ----------
    scans : sequence of Scan
        With affines, and with sequences among `leaders`. Of several of one sequence the one is taken
        that shows most of what the leading scan shows, of equals the finest.
    leaders : sequence of str
        Sequences in the order in which they may lead; a scan of axial planes goes before others.
    side : int
        Of the images that will be made of the planes, in pixels; a finer grid than they need is not made.

    Raises
    ------
    ReadError
        If the leading scan shows nothing.
    """
    leading = min(scans, key=lambda scan: (scan.axis != 2, leaders.index(scan.sequence or "")))
    leader = coarsened(leading, side)
    shown = foreground(leader)
    found: dict[str, Scan] = {str(leader.sequence): leader}
    left_out: dict[str, str] = {}
    for sequence in leaders:
        candidates = [s for s in scans if s.sequence == sequence and s is not leading]
        if sequence in found or not candidates:
            continue
        ranked = sorted(candidates, key=lambda s: (-round(coverage(leader, shown, s), 2), volume(s)))
        try:
            found[sequence] = _brought(leader, shown, ranked[0])
        except ReadError as error:
            left_out[sequence] = error.reason
    return Alignment(found, left_out)


def _brought(leader: Scan, shown: NDArray[np.bool_], scan: Scan) -> Scan:
    """One scan on the leader's grid."""
    if same_grid(leader, scan):
        return scan
    share = coverage(leader, shown, scan)
    apart = bool(leader.frame and scan.frame and leader.frame != scan.frame)
    if not apart and share < COVERED:
        raise ReadError(scan.source, f"shows {share:.0%} of what the {leader.sequence} shows")
    likeness = _Likeness(leader, shown)
    if not apart and not likeness.moved(scan):
        return resampled(scan, leader)
    why = "lies in another frame of reference" if apart else "was taken after the patient moved"
    if importlib.util.find_spec("SimpleITK") is None:
        raise ReadError(scan.source, why, "install what registers it: pip install 'cbir[register]'")
    assert scan.affine is not None
    moved = replace(scan, affine=registration.rigid(scan, leader) @ scan.affine)
    before = 1.0 if apart else likeness.of(scan)
    if likeness.of(moved) - before < BETTER * (before - 1) or likeness.moved(moved):
        raise ReadError(scan.source, f"{why}, and no registration brings it back")
    return resampled(moved, leader)


class _Likeness:
    """How much the images of other scans tell about the leader's, at points of its field of view."""

    def __init__(self, leader: Scan, shown: NDArray[np.bool_]) -> None:
        assert leader.affine is not None
        assert leader.spacing is not None
        every = [max(1, round(STEP / mm)) for mm in leader.spacing]
        places = np.stack(
            np.meshgrid(
                *(np.arange(0, n, k) for n, k in zip(leader.voxels.shape, every, strict=True)), indexing="ij"
            ),
            axis=-1,
        ).reshape(-1, 3)
        self._points = _at(leader.affine, places)
        self._values = _smooth(leader)[tuple(places.T)]
        inside = shown[tuple(places.T)]
        self._middle = self._points[inside].mean(axis=0) if inside.any() else self._points.mean(axis=0)

    def moved(self, scan: Scan) -> bool:
        """Whether a small motion of the scan would make it more like the leader."""
        smooth = _smooth(scan)
        unmoved = self._of(scan, smooth, np.eye(4))
        least = unmoved + BETTER * (unmoved - 1)
        return any(self._of(scan, smooth, motion) > least for motion in _motions())

    def of(self, scan: Scan) -> float:
        """Normalised mutual information where both scans see."""
        return self._of(scan, _smooth(scan), np.eye(4))

    def _of(self, scan: Scan, smooth: NDArray[np.float32], motion: NDArray[np.float64]) -> float:
        from scipy.ndimage import map_coordinates  # where all lie on one grid, none is needed

        assert scan.affine is not None
        points = _at(motion, self._points - self._middle) + self._middle
        places = _at(np.linalg.inv(scan.affine), points)
        seen = ((places >= -0.5) & (places <= np.array(smooth.shape) - 0.5)).all(axis=1)
        found = map_coordinates(smooth, places[seen].T, order=1, mode="nearest")
        return mutual_information(self._values[seen], found)


def _at(affine: NDArray[Any], points: NDArray[Any]) -> NDArray[np.float64]:
    """Where an affine puts points, shape (..., 3)."""
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3])


def _sizes(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Millimetres between voxels along each of their axes."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def _motions() -> Iterator[NDArray[np.float64]]:
    """Shifts and turns by a step along and about each axis, both ways."""
    for axis in range(3):
        for step in (-STEP, STEP):
            shift, turn = np.eye(4), np.eye(4)
            shift[axis, 3] = step
            one, other = (i for i in range(3) if i != axis)
            angle = np.deg2rad(step)
            turn[[one, other], [one, other]] = np.cos(angle)
            turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
            yield shift
            yield turn


def _smooth(scan: Scan) -> NDArray[np.float32]:
    """The scan's voxels, each a mean over about half a step."""
    from scipy.ndimage import gaussian_filter

    assert scan.spacing is not None
    sigma = STEP / 2 / np.array(scan.spacing)
    return np.asarray(gaussian_filter(np.asarray(scan.voxels, np.float32), sigma), np.float32)


def coarsened(scan: Scan, side: int) -> Scan:
    """The scan with pixels no finer than images of `side` pixels need; its planes stay where they are."""
    assert scan.spacing is not None
    assert scan.affine is not None
    in_plane = [axis for axis in range(3) if axis != scan.axis]
    extent = max(scan.voxels.shape[axis] * scan.spacing[axis] for axis in in_plane)
    wanted = extent / (FINER * side)
    steps = np.array(
        [max(wanted / scan.spacing[axis], 1.0) if axis in in_plane else 1.0 for axis in range(3)]
    )
    if (steps < 1.5).all():
        return scan
    shape = np.maximum(np.round(scan.voxels.shape / steps), 1).astype(int)
    steps = scan.voxels.shape / shape
    affine = scan.affine @ np.diag([*steps, 1.0])
    affine[:3, 3] = _at(scan.affine, (steps - 1) / 2)
    return resampled(scan, replace(scan, voxels=np.broadcast_to(np.uint8(0), shape), affine=affine))


def resampled(scan: Scan, grid: Scan) -> Scan:
    """A scan at the voxels of another's grid, by cubic splines, which blur less between planes than lines do.

    Each voxel is a mean over about its own size in the plane. Splines swing beyond the edge of a lesion or a
    head; they are held within the scan's own intensities, and where nothing near is shown within those of its
    background.

    Parameters
    ----------
    scan, grid : Scan
        With affines. Where the grid reaches beyond the scan, background is put.
    """
    # imported late: no scan that asks alone, or on one grid with others, needs it
    import nibabel
    import nibabel.processing
    from scipy.ndimage import gaussian_filter

    nib: Any = nibabel  # only partly typed
    assert scan.affine is not None
    assert grid.affine is not None
    # what a pixel of the grid spans along the axes of the scan, in mm, so that nothing finer is skipped; of
    # its thickness the middle is taken, for a mean over it would blur the rim of a lesion in fine scans
    turn = np.linalg.inv(scan.affine[:3, :3] / _sizes(scan.affine)) @ grid.affine[:3, :3]
    spans, own = np.abs(np.delete(turn, grid.axis, axis=1)).max(axis=1), _sizes(scan.affine)
    sigma = np.sqrt(np.maximum(spans**2 - own**2, 0)) / FWHM / own

    def at_the_grid(values: NDArray[Any], order: int, nothing: float = 0) -> NDArray[Any]:
        image = nib.Nifti1Image(values, scan.affine)
        to = (grid.voxels.shape, grid.affine)
        return np.asarray(nib.processing.resample_from_to(image, to, order=order, cval=nothing).dataobj)

    def over_a_pixel(values: NDArray[np.float32]) -> NDArray[np.float32]:
        wide = (sigma > 0.3).any()
        return np.asarray(gaussian_filter(values, sigma, mode="nearest") if wide else values, np.float32)

    voxels = np.asarray(scan.voxels, np.float32)
    smooth = over_a_pixel(voxels)
    background = background_of(scan)
    nothing = _nothing(scan, background)
    out = np.clip(at_the_grid(smooth, 3, nothing), smooth.min(), smooth.max())
    shown = (voxels < background.low) | (voxels > background.high)
    hidden = at_the_grid(over_a_pixel(shown.astype(np.float32)), 1, 1) < LEAST_SHOWN
    out[hidden] = np.clip(out[hidden], background.low, background.high)
    sizes = _sizes(grid.affine)
    return replace(
        scan,
        voxels=out.astype(np.float32),
        affine=grid.affine,
        spacing=(float(sizes[0]), float(sizes[1]), float(sizes[2])),
        region=None if scan.region is None else at_the_grid(scan.region.astype(np.uint8), 0) > 0,
        window=window_of(scan),
    )


def _nothing(scan: Scan, background: Background) -> float:
    """An intensity of a scan's background; its darkest where it has none."""
    if background.low > background.high or background.low == -np.inf:
        return float(scan.voxels.min())
    return float(scan.voxels.max()) if background.high == np.inf else float(background.low)


def foreground(scan: Scan) -> NDArray[np.bool_]:
    """Where a scan shows something, shape of its voxels.

    Raises
    ------
    ReadError
        If it shows nothing.
    """
    background = background_of(scan)
    planes = np.moveaxis(scan.voxels, scan.axis, 0)
    return np.moveaxis(np.stack([background.foreground(plane) for plane in planes]), 0, scan.axis)


def coverage(leader: Scan, shown: NDArray[np.bool_], scan: Scan) -> float:
    """Share of what the leader shows that lies inside the field of view of another scan."""
    return float(_inside(leader, scan)[shown].mean()) if shown.any() else 0.0


def _inside(grid: Scan, scan: Scan) -> NDArray[np.bool_]:
    """Which voxels of a grid lie inside the field of view of a scan."""
    assert scan.affine is not None
    assert grid.affine is not None
    to = np.linalg.inv(scan.affine) @ grid.affine
    inside = np.ones(grid.voxels.shape, bool)
    ranges = [np.arange(n, dtype=np.float32) for n in grid.voxels.shape]
    for axis in range(3):
        x, y, z = (to[axis, i] * r for i, r in enumerate(ranges))
        place = x[:, None, None] + y[None, :, None] + z[None, None, :] + to[axis, 3]
        inside &= (place >= -0.5) & (place <= scan.voxels.shape[axis] - 0.5)
    return inside


def volume(scan: Scan) -> float:
    """Of a voxel, in mm³."""
    assert scan.affine is not None
    return float(abs(np.linalg.det(scan.affine[:3, :3])))


def mutual_information(one: NDArray[Any], other: NDArray[Any], bins: int = 32) -> float:
    """Normalised mutual information (H(A) + H(B)) / H(A, B), in 1…2.

    Studholme, Hill and Hawkes 1999, "An overlap invariant entropy measure of 3D medical image
    alignment", https://doi.org/10.1016/S0031-3203(98)00091-0.

    Examples
    --------
    >>> x = np.arange(64.0)
    >>> mutual_information(x, -x), mutual_information(x, np.zeros(64))
    (2.0, 1.0)
    """
    joint, _, _ = np.histogram2d(_ranks(one, bins), _ranks(other, bins), bins=bins, range=[[0, bins]] * 2)
    joint /= joint.sum()

    def entropy(p: NDArray[Any]) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    both = entropy(joint)
    return round((entropy(joint.sum(0)) + entropy(joint.sum(1))) / both, 6) if both else 1.0


def _ranks(values: NDArray[Any], bins: int) -> NDArray[np.float64]:
    """Intensities as bins between the 1st and 99th percentile of what is not the commonest value."""
    low, high = np.percentile(values, (1, 99))
    span = max(float(high - low), np.finfo(float).tiny)
    return np.asarray(np.clip((np.ravel(values) - low) / span * bins, 0, bins - 1e-6))
