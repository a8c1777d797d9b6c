"""Is the lesion found? On whole slices and volumes of patients whom the network of their fold has not seen.

A lesion is *hit* where the most suspicious cell lies inside its outline; beside it stands how far the box
that is found overlaps the outline's. Single slices are looked at by the first network, what has several
sequences by the tissue head. Of planes without a lesion the share is counted in which one is found. In
volumes and stacks, of which all sequences and planes are put together, foci are counted: which of the
outlined ones are touched, and how far all together overlap (Dice).

*No lesion found* is an answer where what asks shows one with a lower chance than nearly all unseen patients
with a lesion reach (`LEAST`, :func:`retrieval.conformal.lowest_usual`): flat images, stacks, and every set of
sequences that enough patients have, for FLAIR shows a lesion more surely than T1 does. Copies of FLAIR that
stand for other sequences do not ask. Beside it stands how often the planes without a lesion alone, as if they
were all of their stack, stay below it.
`benchmarks.cohorts --final` puts these chances into the weights.

    python -m benchmarks.regions
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import cohorts, results
from benchmarks.figshare import overlap
from benchmarks.reference import acquired, named_by_eye
from indexer import discovery, readers
from indexer.composite import groups
from indexer.encoder import ANY_STACK, FLAT, STACK, TrainedEncoder, chance_of_lesion, who_asks
from indexer.labels import load_tables
from indexer.learning import network
from indexer.learning.cohort import LESION
from indexer.learning.looks import proposed
from indexer.learning.pack import composites_of
from indexer.learning.samples import Samples
from indexer.measures import SURE, foci
from indexer.preprocess import Preprocessing, prepared
from indexer.readers import Source
from indexer.scan import Scan
from retrieval.conformal import lowest_usual, shares

FOLDERS = ("brats-lesions", "brats-slices", "dicom-t1", "figshare/images", "no-glioma", "tcga-lgg")
SLICES, TOGETHER = (*FOLDERS, "volumes-2mm"), (*FOLDERS, "volumes", "volumes-2mm")
"""Folders in the order of the numbers of their cohorts."""

WHOLE = ("brats-slices", "figshare/images", "tcga-lgg", "volumes", "volumes-2mm")
"""Those with outlined whole slices."""

WHOLE_SLICES = tuple(folder for folder in WHOLE if folder in SLICES)
"""Those of them that the first network sees."""

INSIDE = 0.25
"""Share of a cell that the outline covers at least, for it to be a hit."""

AT_ONCE = 64

LEAST = 1 / 80
"""Share of the patients with a lesion of whom it may be said that none was found; fewer than 79 cannot place
so rare a chance."""

STACKS: dict[Path, Callable[[Source], list[Scan]]] = {
    results.DATA / "tcga-lgg": acquired,
    results.DATA / "tcga-gbm": named_by_eye,
    results.DATA / "volumes-2mm": readers.read,
}
"""Whole stacks and how they are read, all of patients with a lesion; those of TCGA-GBM are not outlined."""

VOLUMES = tuple(results.DATA / name for name in ("volumes", "volumes-2mm", "tcga-lgg"))
HALF = 128
"""A cell is outlined that may be healthy by less, in 255ths."""

Chances = dict[str, list[float]]
"""Of a lesion, in all that asks of a patient."""

Visit = dict[str | None, list[float]]
"""The chance of a lesion in each stack of a sequence."""

Looks = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Maps of the chance of a lesion, and the boxes that are found."""


def alone(encoder: TrainedEncoder, images: NDArray[np.uint8]) -> Looks:
    """What the first network sees in slices."""
    found = encoder.analyse(images)
    return found.maps, found.boxes


def together(encoder: TrainedEncoder, images: NDArray[np.uint8]) -> Looks:
    """What the tissue head sees in composites."""
    maps = encoder.segment(images).sum(1)
    return maps, proposed(maps)


def outlines(samples: Samples, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """How far each cell is outlined, shape (n, h, w)."""
    stored = samples.outlines[samples.rows[rows]].astype(np.float32) / 255
    return 1 - stored[:, 0] if stored.ndim == 4 else stored


def judged(
    samples: Samples,
    folders: tuple[str, ...],
    look: Callable[[TrainedEncoder, NDArray[np.uint8]], Looks],
    encoders: dict[str, TrainedEncoder],
) -> dict[str, Any]:
    """Hits, overlap and false finds of each folder, each patient by the network of its fold."""
    fold = np.array([row.get("fold", "") for row in samples.labels])
    found: dict[str, Any] = {}
    for number, folder in enumerate(folders):
        hits, overlaps, false, patients = [], [], [], set()
        for name, encoder in encoders.items():
            mine = np.flatnonzero((samples.cohort == number) & samples.outlined & (fold == name))
            for rows in np.array_split(mine, max(1, len(mine) // AT_ONCE)):
                if folder not in WHOLE or not len(rows):
                    continue
                maps, boxes = look(encoder, np.asarray(samples.pixels[samples.rows[rows]]))
                there = np.isfinite(samples.boxes[rows, 0])
                overlaps += overlap(boxes[there], samples.boxes[rows][there]).tolist()
                hits += hit(maps[there], outlines(samples, rows[there])).tolist()
                false += (maps[~there].max((1, 2)) > SURE).tolist()
                patients |= set(samples.patients[rows].tolist())
        if hits:
            found[folder] = {
                "planes": len(hits),
                "patients": len(patients),
                "hit": float(np.mean(hits)),
                "mean IoU": float(np.mean(overlaps)),
                "found where none is": float(np.mean(false)) if false else None,
                "planes without": len(false),
            }
    return found


def hit(maps: NDArray[np.float32], outlined: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the highest cell of each map, shape (n, h, w), is one that is outlined.

    Parameters
    ----------
    maps : ndarray of float32, shape (n, h, w)
    outlined : ndarray of float32, shape (n, k h, k w)
    """
    n, height, width = maps.shape
    k = outlined.shape[1] // height
    cells = outlined.reshape(n, height, k, width, k).mean((2, 4))
    highest = maps.reshape(n, -1).argmax(1)
    return np.asarray(cells.reshape(n, -1)[np.arange(n), highest] >= INSIDE)


def least_lesion(asked: dict[str, tuple[Chances, Chances]]) -> dict[str, Any]:
    """The chance of a lesion that nearly all with one reach, and how many without one do not; not of too few.

    Parameters
    ----------
    asked : dict of str to (dict, dict)
        By what asks: the chances of each patient in what shows a lesion, and in what does not.
    """
    found: dict[str, Any] = {}
    for name, (shown, free) in asked.items():
        each = len(shown) + 1  # with a further patient
        lower = int(each * LEAST)
        if not lower:
            continue
        patients = np.repeat([*shown], [len(chances) for chances in shown.values()])
        values = np.concatenate([*shown.values()])
        least = lowest_usual(values, shares(patients), strange=lower / each)
        below = [float(np.mean([chance < least for chance in chances])) for chances in free.values()]
        found[name] = {
            "least": least,
            "with": len(shown),
            "without": len(free),
            "of these nothing found": float(np.mean(below)) if below else None,
        }
    return found


def of_flat_images(samples: Samples, encoders: dict[str, TrainedEncoder]) -> tuple[Chances, Chances]:
    """The chance of a lesion in each outlined flat image; there is none without a lesion."""
    fold = np.array([row.get("fold", "") for row in samples.labels])
    flat = np.isin(samples.cohort, [SLICES.index("figshare/images"), SLICES.index("brats-slices")])
    found: Chances = {}
    for name, encoder in encoders.items():
        mine = np.flatnonzero(flat & samples.outlined & (fold == name) & np.isfinite(samples.boxes[:, 0]))
        for rows in np.array_split(mine, max(1, len(mine) // AT_ONCE)):
            chances = (
                encoder.analyse(np.asarray(samples.pixels[samples.rows[rows]])).weights if len(rows) else ()
            )
            for patient, chance in zip(samples.patients[rows].tolist(), chances, strict=True):
                found.setdefault(patient, []).append(float(chance))
    return found, {}


def of_stacks(
    encoders: dict[str, TrainedEncoder], roots: Mapping[Path, Callable[[Source], list[Scan]]] = STACKS
) -> dict[str, tuple[Chances, Chances]]:
    """The chance of a lesion in each stack, and in each visit by every set of its sequences.

    Without a lesion are the planes of a stack that show none, as if they were all.
    """
    asked: dict[str, tuple[Chances, Chances]] = {ANY_STACK: ({}, {})}
    for root, read in roots.items():
        found = discovery.discover(root, load_tables(root / "participants.tsv"))
        visits: dict[tuple[str, str], tuple[Visit, Visit]] = {}
        for source in found.sources:
            encoder = encoders.get(found.joined.labels.of(source.patient_id).get("fold", ""))
            visit = visits.setdefault((source.patient_id, source.study_id), ({}, {}))
            for scan in read(source) if encoder else ():
                ready = prepared(dataclasses.replace(scan, region=None), Preprocessing.of(encoder))
                chances = encoder.analyse(ready.pixels).weights
                lesion = np.ones(len(chances), bool)
                if scan.region is not None:
                    lesion = np.moveaxis(scan.region, scan.axis, 0).any((1, 2))[ready.positions]
                for held, planes in zip(visit, (chances, chances[~lesion]), strict=True):
                    if len(planes) >= STACK:
                        held.setdefault(scan.sequence, []).append(chance_of_lesion(planes))
        for (patient, _), visit in visits.items():
            for side, held in enumerate(visit):
                if held:
                    each = asked[ANY_STACK][side].setdefault(patient, [])
                    each += [chance for chances in held.values() for chance in chances]
                known = sorted(filter(None, held))
                for some in (some for n in range(len(known)) for some in combinations(known, n + 1)):
                    highest = max(chance for sequence in some for chance in held[sequence])
                    asked.setdefault(who_asks(some), ({}, {}))[side].setdefault(patient, []).append(highest)
    return asked


def in_volumes(encoders: dict[str, TrainedEncoder], root: Path) -> dict[str, Any]:
    """The foci of whole volumes with all their sequences, each patient by a network that has not seen it."""
    overlaps, hits, beside = [], [], []
    of_patient: dict[str, list[Source]] = {}
    for source in discovery.discover(root, load_tables(root / "participants.tsv")).sources:
        of_patient.setdefault(source.patient_id, []).append(source)
    for patient, sources in of_patient.items():
        unseen = (encoder for encoder in encoders.values() if not encoder.trained_on(patient))
        scans = [scan for source in sources for scan in readers.read(source)]
        encoder, group = next(unseen, None), next(groups(scans, network.VIEW), None)
        if encoder is None or group is None or all(s is None or s.region is None for s in group.scans):
            continue
        images, maps, _, _ = composites_of(group.scans, network.VIEW, LESION)
        dice, of_outlined, of_found = by_focus(encoder.segment(images).sum(1), maps[:, 0] < HALF)
        overlaps.append(dice)
        hits += of_outlined
        beside += [not touches for touches in of_found]
    return {
        "patients": len(overlaps),
        "Dice": float(np.mean(overlaps)),
        "foci": len(hits),
        "hit": float(np.mean(hits)),
        "found": len(beside),
        "of these beside": float(np.mean(beside)),
    }


def by_focus(
    chance: NDArray[np.float32], outlined: NDArray[np.bool_]
) -> tuple[float, list[bool], list[bool]]:
    """Dice of the foci that are found and those that are outlined, and which of each touch one of the others.

    Parameters
    ----------
    chance : ndarray of float32, shape (planes, rows, columns)
    outlined : ndarray of bool, shape (planes, rows, columns)
    """
    mine, theirs = foci(chance), foci(outlined.astype(np.float32))
    both = np.count_nonzero((mine > 0) & (theirs > 0))
    dice = 2 * both / max(1, np.count_nonzero(mine) + np.count_nonzero(theirs))
    touched = [
        [bool((other[one == number] > 0).any()) for number in np.unique(one[one > 0])]
        for one, other in ((theirs, mine), (mine, theirs))
    ]
    return dice, touched[0], touched[1]


def main() -> None:
    encoders = cohorts.fold_networks()
    if not encoders:
        sys.exit("nothing is trained yet: python -m benchmarks.cohorts")
    table = {
        "single slices": judged(cohorts.samples(), SLICES, alone, encoders),
        "sequences together": judged(cohorts.composites(), TOGETHER, together, encoders),
    }
    for how, found in table.items():
        for folder, row in found.items():
            print(how, folder, {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    table["foci"] = {root.name: in_volumes(encoders, root) for root in VOLUMES}
    print(table["foci"])
    flat = of_flat_images(cohorts.samples(), encoders)
    table["no lesion"] = least_lesion({FLAT: flat, **of_stacks(encoders)})
    table["one of"] = round(1 / LEAST)
    print(table["no lesion"])
    path = results.save(
        "regions",
        table,
        data=f"folds {', '.join(encoders)} of {len(cohorts.FOLDS)}",
        encoder={name: encoder.version for name, encoder in encoders.items()},
    )
    print(path.relative_to(results.ROOT))


if __name__ == "__main__":
    main()
