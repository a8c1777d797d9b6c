"""Volumes: planes brought together where the headers prove it, or refused with the reason.

A volume is planes of one orientation, on one grid, with even gaps, no place held twice. A series may hold
several: echoes, time points, diffusion weightings. They are told apart only where some place is held twice,
or where all planes together lie unevenly.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer import watch
from indexer.errors import ReadError
from indexer.readers.dicom.headers import EXPORT
from indexer.readers.dicom.planes import Geometry, Plane
from indexer.readers.limits import SHEARED, volumes_kept

SORT = "keep one acquisition in a series, or convert it to NIfTI with a tool made for its vendor"

GAP_TOLERANCE = 0.05
"""Gaps between slices may differ from their mean by this share of it (positions are rounded in headers)."""

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes run to the patient's Left, Posterior, Superior

# What tells images at the same place apart.
_KEYS: tuple[Callable[[Plane], Hashable], ...] = (
    lambda plane: plane.kind,
    lambda plane: plane.text("EchoNumbers"),
    lambda plane: plane.b_value,
    lambda plane: plane.text("TemporalPositionIndex", "TemporalPositionIdentifier"),
    lambda plane: plane.text("EffectiveEchoTime", "EchoTime"),
    lambda plane: plane.text("InversionTimes", "InversionTime"),
    lambda plane: plane.text("FlipAngle"),
    lambda plane: plane.text("NominalCardiacTriggerDelayTime", "TriggerTime"),
    lambda plane: plane.text("DiffusionGradientOrientation"),
    lambda plane: plane.text("FrameAcquisitionNumber", "AcquisitionNumber"),
)
_STACKS = 3
"""The first of `_KEYS`, by which whole stacks differ, whatever places each of them covers."""


@dataclass(frozen=True)
class Volume:
    """Planes in order along their normal.

    Attributes
    ----------
    planes : list of Plane
    affine : ndarray, shape (4, 4)
        Of (column, row, plane) to RAS+ millimetres.
    """

    planes: list[Plane]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class Incomplete:
    """A series has fewer images than its headers announce."""

    found: int
    announced: int

    def error(self, where: Path) -> ReadError:
        """Its refusal."""
        reason = f"holds {self.found} of the {self.announced} images that its headers announce"
        return ReadError(where, reason, EXPORT)

    def explained(self, lacking: int, size: int) -> bool:
        """Whether a last volume lacks so many planes of its `size`, and maybe whole volumes more."""
        return lacking > 0 and (self.announced - self.found - lacking) % size == 0


def volumes(where: Path, planes: list[Plane], incomplete: Incomplete | None = None) -> list[Volume]:
    """The volumes of a series that are scans, in the order of their first planes.

    Of many volumes of one kind of image and echo, a time series or a diffusion series, those are scans that
    :func:`indexer.readers.limits.volumes_kept` names.

    Parameters
    ----------
    where : Path
        The series, for messages.
    planes : list of Plane
        In the order of their instance numbers.
    incomplete : Incomplete, optional
        Refused, unless what is missing is the rest of a last volume that was interrupted.

    Raises
    ------
    ReadError
        If they are no volumes.
    """
    split = _Split(where, planes)
    groups = split.groups()
    if incomplete and not incomplete.explained(split.lacking, split.size):
        raise incomplete.error(where)
    kinds: dict[Hashable, list[list[Plane]]] = {}
    for group in groups:
        first = group[0]
        kind = first.component, first.kind, first.text("EchoNumbers"), first.text("EffectiveEchoTime")
        kinds.setdefault(kind, []).append(group)
    kept = [group for several in kinds.values() for group in several[: volumes_kept(len(several))]]
    return [_ordered(where, group) for group in sorted(kept, key=lambda group: groups.index(group))]


@dataclass
class _Split:
    """Planes of a series, parted where they have to be."""

    where: Path
    planes: list[Plane]
    places: NDArray[np.int64] = field(init=False)
    distances: NDArray[np.float64] = field(init=False)
    lacking: int = 0
    """Planes that a last volume would have needed to be whole."""
    size: int = 1
    """Planes of a volume."""

    def __post_init__(self) -> None:
        geometries = [_geometry(plane) for plane in self.planes]
        orientation = geometries[0].orientation
        if not np.allclose(orientation @ orientation.T, np.eye(2), atol=1e-3):
            raise ReadError(self.where, "its image orientation is not two perpendicular directions", EXPORT)
        every = np.array([geometry.orientation for geometry in geometries])
        if np.abs(every - orientation).max() > 1e-3:
            raise ReadError(
                self.where, "its images have several orientations (is a localizer among them?)", SORT
            )
        positions = np.array([geometry.position for geometry in geometries])
        self.distances = positions @ np.cross(*orientation)
        self.places = clustered(self.distances, _apart(self.planes[0]))

    def groups(self) -> list[list[Plane]]:
        parts = _parted(range(len(self.planes)), lambda i: self.planes[i].component)
        groups = [group for part in parts for group in self._resolved(part)]
        return [[self.planes[i] for i in group] for group in sorted(groups, key=min)]

    def _resolved(self, part: list[int]) -> list[list[int]]:
        """Groups of planes in each of which no place is held twice."""
        found = self._separated(part)
        if found is None:
            extra = len(part) - len(self._covered(part))
            raise ReadError(
                self.where,
                f"{extra} of its images lie where another one lies, and no tag tells them apart",
                SORT,
            )
        return found

    def _separated(self, part: list[int]) -> list[list[int]] | None:
        covered = self._covered(part)
        if len(covered) == len(part):
            return [part] if self._even(part) else self._stacks(part) or [part]
        for key in _KEYS:
            parts = _parted(part, lambda i, key=key: key(self.planes[i]))  # type: ignore[misc]
            if len(parts) > 1 and (whole := self._whole(parts, covered)):
                return self._each(whole)
        if whole := self._whole(self._by_number(part, len(covered)), covered):
            return self._each(whole)
        return self._piles(part)

    def _each(self, parts: list[list[int]]) -> list[list[int]] | None:
        found = [self._separated(part) for part in parts]
        return None if None in found else [group for groups in found if groups for group in groups]

    def _whole(self, parts: list[list[int]], covered: set[int]) -> list[list[int]]:
        """The parts, if each covers all places; the last one may be broken off, and is left out."""
        *complete, last = sorted(parts, key=min)
        if not complete or any(self._covered(part) != covered for part in complete):
            return []
        if (there := self._covered(last)) == covered:
            return [*complete, last]
        if len(complete) < 2 or len(there) < len(last):
            return []
        self.lacking, self.size = len(covered) - len(there), len(covered)
        watch.say(
            f"its last volume, number {len(parts)}, was interrupted ({len(there)} of {len(covered)} slices) "
            "and is left out"
        )
        return complete

    def _by_number(self, part: list[int], places: int) -> list[list[int]]:
        """Parted where places repeat periodically in the order of instance numbers.

        Either volume comes after volume, or all images of a place before those of the next.
        """
        order = [(self.planes[i].number("InstanceNumber"), self.planes[i].frame) for i in part]
        if len(set(order)) < len(part) or any(number is None for number, _ in order):
            return [part]
        blocks = [part[i : i + places] for i in range(0, len(part), places)]
        last = places - 1
        if all(
            is_sweep(self._ranks(block, part), last if len(block) == places else None) for block in blocks
        ):
            return blocks
        times, rest = divmod(len(part), places)
        runs = [part[i : i + times] for i in range(0, len(part), times)]
        if rest == 0 and all(len(self._covered(run)) == 1 for run in runs):
            return [part[i::times] for i in range(times)]
        return [part]

    def _ranks(self, block: list[int], part: list[int]) -> list[int]:
        """Which of the places of a part each plane has, in order along the normal."""
        ranks: list[int] = np.searchsorted(sorted(self._covered(part)), self.places[block]).tolist()
        return ranks

    def _stacks(self, part: list[int]) -> list[list[int]] | None:
        """Planes that lie unevenly together, as several even stacks of one kind each, if they are that.

        Pieces of one stack are told by lying beside one another with the same gaps.
        """
        for key in _KEYS[:_STACKS]:
            parts = _parted(part, lambda i, key=key: key(self.planes[i]))  # type: ignore[misc]
            if len(parts) > 1 and all(map(self._even, parts)) and not self._pieces(parts):
                return parts
        return None

    def _piles(self, part: list[int]) -> list[list[int]] | None:
        """Stacks of one kind each that cover different places, each of which shares some with another."""
        for key in _KEYS[:_STACKS]:
            parts = _parted(part, lambda i, key=key: key(self.planes[i]))  # type: ignore[misc]
            covers = [self._covered(p) for p in parts]
            if len(parts) > 1 and all(
                any(cover & other for n, other in enumerate(covers) if n != m)
                for m, cover in enumerate(covers)
            ):
                return self._each(parts)
        return None

    def _pieces(self, parts: list[list[int]]) -> bool:
        spans = sorted((self.distances[part].min(), self.distances[part].max()) for part in parts)
        return all(before[1] < after[0] for before, after in pairwise(spans))

    def _covered(self, part: Sequence[int]) -> set[int]:
        return set(self.places[part].tolist())

    def _even(self, part: Sequence[int]) -> bool:
        return _evenness(self.distances[part]) is not None


def is_sweep(ranks: Sequence[int], last: int | None) -> bool:
    """Whether slices come in an order in which a scanner acquires a volume, from its beginning.

    That is one after the other, or every k-th in k passes, up or down. Without this, volumes whose first
    slices are missing would be taken for others, each half of one and half of the next.

    Parameters
    ----------
    ranks : sequence of int
        Places in the order of acquisition, counted along the normal.
    last : int or None
        The last place; None for a volume that was interrupted.

    Examples
    --------
    >>> is_sweep([0, 2, 4, 1, 3], 4), is_sweep([2, 3, 4, 0, 1], 4)
    (True, False)
    """
    if len(set(ranks)) < len(ranks):
        return False
    if last is None or last == 0:
        return True
    down = [last - rank for rank in ranks]
    return any(_in_passes(order, step, last) for step in range(1, (last + 3) // 2) for order in (ranks, down))


def _in_passes(ranks: Sequence[int], step: int, last: int) -> bool:
    """Whether places come in passes upwards, each with every `step`-th from one end to the other."""
    passes: list[list[int]] = []
    for rank in ranks:
        if passes and rank == passes[-1][-1] + step:
            passes[-1].append(rank)
        else:
            passes.append([rank])
    return all(p[0] < step and p[-1] + step > last for p in passes)


def clustered(distances: NDArray[np.float64], apart: float) -> NDArray[np.int64]:
    """A number for each place along a line: what lies within `apart` of its neighbour is at one place."""
    order = np.argsort(distances)
    places = np.empty(len(distances), np.int64)
    places[order] = np.cumsum(np.diff(distances[order], prepend=-np.inf) > apart) - 1
    return places


def _apart(plane: Plane) -> float:
    """How far apart in mm two planes may lie at one place; far less than slices do, even in microscopy."""
    gap = abs(plane.number("SpacingBetweenSlices", "SliceThickness") or 0.5)
    return min(0.02 * gap, 0.05)


def _evenness(distances: NDArray[np.float64]) -> float | None:
    """The gap between slices, if all are like their mean."""
    gaps = np.diff(np.sort(distances))
    if not len(gaps):
        return 0.0
    mean = float(gaps.mean())
    return mean if np.abs(gaps - mean).max() <= GAP_TOLERANCE * mean else None


def _ordered(where: Path, planes: list[Plane]) -> Volume:
    """The planes of one volume in order."""
    first = planes[0]
    origin, orientation, spacing = _geometry(first)
    if len({plane.shape for plane in planes}) > 1:
        raise ReadError(where, "its images differ in size", SORT)
    if not np.allclose([_geometry(plane).spacing for plane in planes], spacing, rtol=1e-3):
        raise ReadError(where, "its images differ in pixel spacing", SORT)
    if len({plane.text("FrameOfReferenceUID") for plane in planes}) > 1:
        raise ReadError(where, "its images have several frames of reference", SORT)
    echoes = [plane.echo or 0 for plane in planes]
    if max(echoes) > 1.1 * min(echoes):
        raise ReadError(where, "its images have several echo times", SORT)

    thickness = abs(first.number("SliceThickness") or 0)
    declared = abs(first.number("SpacingBetweenSlices") or 0)
    normal = np.cross(*orientation)
    if len(planes) == 1:
        if not (gap := thickness or declared):
            raise ReadError(where, "one image on its own, without slice thickness", EXPORT)
    else:
        positions = np.array([_geometry(plane).position for plane in planes])
        distances = positions @ normal
        even = _evenness(distances)
        if not even:
            raise ReadError(where, _unevenness(distances), SORT)
        gap = even
        order = np.argsort(distances)
        planes = [planes[i] for i in order]
        positions = positions[order]
        origin = positions[0]
        grid = origin + np.arange(len(planes))[:, None] * gap * normal
        if np.linalg.norm(positions - grid, axis=1).max() > spacing.min() / 2:
            raise ReadError(where, *SHEARED)
        _refuse_gaps(where, gap, thickness, declared, first.text("MRAcquisitionType") == "3D")
    affine = np.eye(4)
    affine[:3] = np.column_stack(
        [orientation[0] * spacing[1], orientation[1] * spacing[0], normal * gap, origin]
    )
    return Volume(planes, _TO_RAS @ affine)


def _geometry(plane: Plane) -> Geometry:
    assert plane.geometry is not None  # no others are taken for volumes
    return plane.geometry


def _unevenness(distances: NDArray[np.float64]) -> str:
    """Why slices at these distances along their normal are no volume."""
    gaps = np.diff(np.sort(distances))
    gap = f"{gaps.min():.2f} to {gaps.max():.2f} mm"
    return f"its slices lie {gap} apart (is one missing, or are stacks mixed?)"


def _refuse_gaps(where: Path, gap: float, thickness: float, declared: float, solid: bool) -> None:
    """Refuse even gaps that are wider than declared: slices are missing regularly.

    Slices that touch by their thickness leave nothing out, whatever SpacingBetweenSlices says (some
    software always writes 1 there). It is from centre to centre; some scanners write the empty space
    between slices, which is told by a value below the thickness that adds up to the gap with it.
    """
    empty_space = declared < 0.9 * thickness and np.isclose(gap, thickness + declared, rtol=GAP_TOLERANCE)
    limit = declared if declared and not empty_space else thickness if solid else 0.0
    if limit and gap > 1.5 * limit and gap > (1 + GAP_TOLERANCE) * thickness:
        raise ReadError(where, f"its slices lie {gap:.2f} mm apart, the headers say {limit:.2f}", EXPORT)


def _parted(items: Sequence[int] | range, key: Callable[[int], Any]) -> list[list[int]]:
    parts: dict[Hashable, list[int]] = {}
    for item in items:
        parts.setdefault(key(item), []).append(item)
    return list(parts.values())
