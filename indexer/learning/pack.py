"""Images of cohorts, prepared once: what a cache folder holds, and how it becomes samples.

Images lie in one file that is mapped into memory, so that an epoch reads what it needs and a set
may be larger than the memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer import sandbox
from indexer.composite import Group, beside, groups
from indexer.errors import LabelsError, ReadError
from indexer.files import written_whole
from indexer.learning.cohort import CORE, TISSUES, Cohort
from indexer.learning.network import TISSUE_CELL
from indexer.learning.network import TISSUES as TISSUE_NAMES
from indexer.learning.samples import Samples
from indexer.learning.targets import classes_of, coded
from indexer.preprocess import (
    Preprocessing,
    background_of,
    extent,
    pixel_spacing,
    prepared,
    prepared_composite,
    squared,
)
from indexer.readers import Source
from indexer.scan import Scan
from indexer.sequences import CHANNELS

BRATS = (1, 2, 4)
"""Labels of necrosis, oedema and enhancement in the masks of BraTS (Menze et al. 2015)."""

SWELLING = 2.0
"""Oedema that the outline of a core leaves out lies in a box so many times as large."""

FINER = 4
"""Pixels of the image, along each side, that share one value of the stored outline."""


def load(
    cohorts: Sequence[Cohort],
    size: int,
    cache: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Samples:
    """The slices of cohorts, prepared anew or taken from the cache.

    Parameters
    ----------
    cohorts : sequence of Cohort
    size : int
        Side of the prepared images.
    cache : Path
        Folder that keeps them; it holds pixels of the patients, and no ids.
    progress : callable
        Called with sources prepared and sources in all.

    Raises
    ------
    ReadError
        If a cohort holds nothing that can be read.
    LabelsError
        If a column is in no table, or has fewer than two values.
    """
    found, failed = _sources(cohorts)
    preprocessing = Preprocessing(size)

    def cut(_: Cohort, scans: Sequence[Scan]) -> list[_Cut]:
        return [slices_of(scan, preprocessing) for scan in scans]

    coarse = size // FINER
    pack = _packed(
        found,
        f"1 {preprocessing.version} {FINER}",
        cut,
        ((size, size), (coarse, coarse)),
        cache,
        failed,
        progress,
    )
    if not len(pack.source):
        where = found[0][0].root if found else "the folders"
        raise ReadError(where, "no image could be read", "see `cbir index` for the reasons")
    return replace(_labelled(pack, found), failed=tuple(failed))


def load_composites(
    cohorts: Sequence[Cohort],
    size: int,
    cache: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Samples | None:
    """The composites of cohorts (:mod:`indexer.composite`), or None where nothing has several sequences.

    Parameters and errors as of :func:`load`; a column that has fewer than two values among the
    composites is left out. What has one sequence alone is a composite here if it is outlined, for the
    tissues of a lesion are seen in each.
    """
    found, failed = _sources(cohorts)
    together: list[tuple[Cohort, Source]] = []
    for cohort in {id(of): of for of, _ in found}.values():
        mine = [source for of, source in found if of is cohort]
        several = beside(mine, _visit)
        parts = {part.path for source in several for part in source.parts}
        together += [(cohort, source) for source in (*mine, *several) if source.path not in parts]

    def cut(cohort: Cohort, scans: Sequence[Scan]) -> list[_Cut]:
        laid = list(groups(scans, size)) or [_alone(scan) for scan in scans if scan.sequence in CHANNELS]
        outlined = [any(s is not None and s.region is not None for s in group.scans) for group in laid]
        several = [sum(s is not None for s in group.scans) > 1 for group in laid]
        return [
            composites_of(group.scans, size, cohort.outlines)
            for group, region, many in zip(laid, outlined, several, strict=True)
            if region or many
        ]

    version = f"together 4 {Preprocessing(size, standardised=True).version} {TISSUE_CELL}"
    coarse = size // TISSUE_CELL
    shapes = ((len(CHANNELS), size, size), (1 + len(TISSUE_NAMES), coarse, coarse))
    found = together
    pack = _packed(found, version, cut, shapes, cache, failed, progress)
    if not len(pack.source):
        return None
    return replace(_labelled(pack, found, all_columns=False), failed=tuple(failed))


def _alone(scan: Scan) -> Group:
    return Group([scan if scan.sequence == channel else None for channel in CHANNELS])


def _visit(patient: str, study: str) -> str:
    return f"{patient}-{study}"


def _sources(cohorts: Sequence[Cohort]) -> tuple[list[tuple[Cohort, Source]], list[tuple[str, str]]]:
    """What cohorts hold, and what of it is no source."""
    found: list[tuple[Cohort, Source]] = []
    failed: list[tuple[str, str]] = []
    for cohort in cohorts:
        there = sandbox.discover(cohort.root, cohort.tables)
        cohort = replace(cohort, labels=there.joined.labels)
        failed += [(error.where, error.explanation) for error in there.failures]
        found += [(cohort, source) for source in there.sources]
    return found, failed


_Cut = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32], bool]
"""Images, their outlines, boxes, and whether there are outlines at all."""


@dataclass(frozen=True)
class _Pack:
    """What the cache holds."""

    pixels: NDArray[np.uint8]
    outlines: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    outlined: NDArray[np.bool_]
    source: NDArray[np.int64]


def _packed(
    found: Sequence[tuple[Cohort, Source]],
    version: str,
    cut: Callable[[Cohort, Sequence[Scan]], list[_Cut]],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    cache: Path,
    failed: list[tuple[str, str]],
    progress: Callable[[int, int], None],
) -> _Pack:
    """The images that are cut from all sources, in their order."""
    digest = hashlib.sha256(version.encode())
    for cohort, source in found:
        digest.update(
            f"\0{cohort.version}\0{cohort.outlines}\0{source.path}\0{source.fingerprint()}".encode()
        )
    folder = cache / f"samples-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "reasons.json").exists():
        boxes, outlined, rows, reasons = [np.empty((0, 4), np.float32)], [], [], []
        with (
            written_whole(folder / "pixels") as pixels_path,
            written_whole(folder / "outlines") as outlines_path,
            pixels_path.open("wb") as pixels,
            outlines_path.open("wb") as outlines,
        ):
            for i, (cohort, source) in enumerate(found):
                try:
                    several = source.parts or (source,)
                    ready = cut(cohort, [scan for each in several for scan in cohort.read(each)])
                except ReadError as error:
                    reasons.append((str(source.path), error.explanation))
                    continue
                for images, masks, places, known in ready:
                    pixels.write(images.tobytes())
                    outlines.write(masks.tobytes())
                    boxes.append(places)
                    outlined += [known] * len(images)
                    rows += [i] * len(images)
                progress(i + 1, len(found))
        with written_whole(folder / "slices.npz") as path, path.open("wb") as file:
            np.savez(file, boxes=np.concatenate(boxes), outlined=np.array(outlined, bool), source=rows)
        with written_whole(folder / "reasons.json") as path:
            path.write_text(json.dumps(reasons))
    failed += map(tuple, json.loads((folder / "reasons.json").read_text()))
    with np.load(folder / "slices.npz") as slices:
        return _Pack(
            pixels=_mapped(folder / "pixels", shapes[0]),
            outlines=_mapped(folder / "outlines", shapes[1], len(slices["source"])),
            boxes=slices["boxes"],
            outlined=slices["outlined"],
            source=slices["source"].astype(np.int64),
        )


def _mapped(path: Path, shape: tuple[int, ...], n: int = -1) -> NDArray[np.uint8]:
    """Images in a file; one without a byte cannot be mapped."""
    if not path.stat().st_size:
        return np.empty((max(n, 0), *shape), np.uint8)
    return np.memmap(path, np.uint8, "r").reshape(-1, *shape)


def composites_of(group: Sequence[Scan | None], size: int, outlines: str) -> _Cut:
    """The prepared composites of a group of scans, as :func:`slices_of` gives slices.

    Parameters
    ----------
    group : sequence of Scan or None
        One a channel of `CHANNELS`.
    size : int
        Side of the images.
    outlines : str
        What the scans' regions are of: see :class:`~indexer.learning.cohort.Cohort`.

    Returns
    -------
    tuple
        The outlines have the shape (n, 1 + tissues, size / 2, size / 2): how far a cell may be healthy, and
        of each tissue.
    """
    ready = prepared_composite(group, size, standardised=True)
    whole, marked = ready.views == 0, ready.views == 1
    boxes = np.full((np.count_nonzero(whole), 4), np.nan, np.float32)
    place, inside = np.searchsorted(ready.positions[whole], ready.positions[marked]), ready.boxes[marked]
    there = np.isin(ready.positions[marked], ready.positions[whole])
    boxes[place[there]] = inside[there]
    side = size // TISSUE_CELL
    maps = np.zeros((len(boxes), 1 + len(TISSUE_NAMES), side, side), np.uint8)
    scans = [scan for scan in group if scan is not None]
    outlined = next((scan for scan in scans if scan.region is not None), None)
    if outlined is None:
        return ready.pixels[whole], maps, boxes, False
    masks = [[background_of(scan).foreground(s.pixels) for s in scan.slices()] for scan in scans]
    part, _ = extent([np.logical_or.reduce(of_plane) for of_plane in zip(*masks, strict=True)])
    for place, position in zip(maps, ready.positions[whole], strict=True):
        region = outlined.slice(int(position)).region
        assert region is not None
        for covered, mask in zip(place[1:], _tissues(region[part], outlines), strict=True):
            fine = squared(mask.astype(np.uint8) * 255, pixel_spacing(outlined), size)
            covered[:] = fine.reshape(side, TISSUE_CELL, side, TISSUE_CELL).mean((1, 3))
        place[0] = 255 - (place[1:].sum(0).clip(0, 255) if outlines == TISSUES else place[1])
        if outlines == CORE:
            place[1 + TISSUE_NAMES.index("oedema")] = np.where(_around(place[1] > 0), place[0], 0)
    return ready.pixels[whole], maps, boxes, True


def _around(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The box of a mask, :data:`SWELLING` times as large."""
    found = np.zeros_like(mask)
    if mask.any():
        spans = [np.flatnonzero(mask.any(1 - axis))[[0, -1]] + (0, 1) for axis in (0, 1)]
        grown = [(start + stop + np.array([-1, 1]) * SWELLING * (stop - start)) / 2 for start, stop in spans]
        rows, columns = (slice(max(int(low), 0), math.ceil(high)) for low, high in grown)
        found[rows, columns] = True
    return found


def _tissues(region: NDArray[Any], outlines: str) -> list[NDArray[np.bool_]]:
    """Where in the outline each of the tissues may be, as far as it tells them."""
    return [region == code for code in BRATS] if outlines == TISSUES else [region > 0] * len(BRATS)


def slices_of(scan: Scan, preprocessing: Preprocessing) -> _Cut:
    """The prepared whole slices of a scan with their outlines.

    Returns
    -------
    images : ndarray of uint8, shape (n, size, size)
    outlines : ndarray of uint8, shape (n, size / 4, size / 4)
    boxes : ndarray of float32, shape (n, 4)
    outlined : bool
        Whether the scan has outlines at all.

    Raises
    ------
    ReadError
        If the scan shows nothing.
    """
    size = preprocessing.size
    ready = prepared(replace(scan, region=None), preprocessing)
    outlines = np.zeros((len(ready.pixels), size // FINER, size // FINER), np.uint8)
    boxes = np.full((len(ready.pixels), 4), np.nan, np.float32)
    if scan.region is None:
        return ready.pixels, outlines, boxes, False
    background = background_of(scan)
    part, _ = extent([background.foreground(s.pixels) for s in scan.slices()])
    for i, position in enumerate(ready.positions):
        region = scan.slice(int(position)).region
        if region is None or not region[part].any():
            continue
        mask = squared(region[part].astype(np.uint8) * 255, pixel_spacing(scan), size)
        outlines[i] = mask.reshape(size // FINER, FINER, size // FINER, FINER).mean((1, 3))
        inside = [np.flatnonzero((mask > 127).any(axis)) for axis in (0, 1)]
        if inside[0].size:  # else it is thinner than a pixel
            (left, right), (top, bottom) = ((i[0], i[-1] + 1) for i in inside)
            boxes[i] = np.array([left, top, right, bottom]) / size
    return ready.pixels, outlines, boxes, True


def _labelled(pack: _Pack, found: Sequence[tuple[Cohort, Source]], *, all_columns: bool = True) -> Samples:
    """Patients, labels and heads of packed slices."""
    tables: dict[Path, list[str]] = {}
    for cohort, _ in found:
        unknown = set(cohort.columns) - set(cohort.labels.columns)
        if unknown:
            known = ", ".join(cohort.labels.columns) or "none"
            raise LabelsError(cohort.table, f"has no column {min(unknown)!r}", f"choose of: {known}")
        held = tables.setdefault(cohort.table, [])
        held += [column for column in cohort.columns if column not in held]
    names = [column for columns in tables.values() for column in columns]
    rows = [cohort.labels.of_case(source.patient_id, source.study_id) for cohort, source in found]
    targets, classes = {}, {}
    for path, columns in tables.items():
        for column in columns:
            head = column if names.count(column) == 1 else f"{path.parent.name}/{column}"
            values = [
                row.get(column, "") if cohort.table == path and column in cohort.columns else ""
                for (cohort, _), row in zip(found, rows, strict=True)
            ]
            present = classes_of([values[i] for i in np.unique(pack.source)])
            if len(present) < 2 and not all_columns:
                continue
            if len(present) < 2:
                raise LabelsError(path, f"{column!r} has fewer than two values", "choose another column")
            targets[head], classes[head] = coded(values, present)[pack.source], present
    return Samples(
        pixels=pack.pixels,
        outlines=pack.outlines,
        rows=np.arange(len(pack.source)),
        boxes=pack.boxes,
        outlined=pack.outlined,
        patients=np.array([source.patient_id for _, source in found])[pack.source],
        targets=targets,
        classes=classes,
        labels=tuple(rows[i] for i in pack.source),
        cohort=np.unique([str(cohort.root) for cohort, _ in found], return_inverse=True)[1][pack.source],
        importance=np.array([cohort.importance for cohort, _ in found], float)[pack.source],
    )
