"""Is the lesion found? On whole slices and volumes of patients whom the network of their fold has not seen.

A lesion is *hit* where the most suspicious cell lies inside its outline; beside it stands how far the box
that is found overlaps the outline's. Single slices are looked at by the first network, what has several
sequences by the tissue head. Of planes without a lesion the share is counted in which one is found.

*No lesion found* is an answer where no slice of a scan shows one with the chance that all but a few scans of
unseen patients reach somewhere (`LEAST`); beside it stands how often the planes without a lesion alone, as if
they were all of their patient, stay below it. `benchmarks.cohorts --final` puts that chance into the weights.

    python -m benchmarks.regions
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import cohorts, results
from benchmarks.figshare import overlap
from indexer.encoder import TrainedEncoder
from indexer.learning.looks import proposed
from indexer.learning.samples import Samples
from indexer.measures import SURE

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

LEAST = 0.005
"""Share of the scans that show a lesion of which it may be said that none was found."""

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


def least_lesion(samples: Samples, encoders: dict[str, TrainedEncoder]) -> dict[str, Any]:
    """The chance of a lesion that nearly all scans with one reach, and how many without one do not.

    A flat image is a scan; of a stack the planes of a patient with a lesion are one, and those without are.
    """
    fold = np.array([row.get("fold", "") for row in samples.labels])
    flat = np.isin(samples.cohort, [SLICES.index("figshare/images"), SLICES.index("brats-slices")])
    known = samples.outlined & np.isin(samples.cohort, [SLICES.index(folder) for folder in WHOLE_SLICES])
    chance = np.full(len(samples), np.nan, np.float32)
    for name, encoder in encoders.items():
        mine = np.flatnonzero(known & (fold == name))
        for rows in np.array_split(mine, max(1, len(mine) // AT_ONCE)):
            chance[rows] = encoder.analyse(np.asarray(samples.pixels[samples.rows[rows]])).weights
    there, asked = np.isfinite(samples.boxes[:, 0]), np.isfinite(chance)
    _, patient = np.unique(samples.patients, return_inverse=True)
    # every flat image by itself
    scan = np.where(flat, np.arange(len(samples)), len(samples) + patient * len(SLICES) + samples.cohort)
    highest = {
        shown: [chance[asked & (there == shown) & (scan == one)].max() for one in np.unique(scan[rows])]
        for shown in (True, False)
        if (rows := np.flatnonzero(asked & (there == shown))).size
    }
    least = float(np.quantile(highest[True], LEAST))
    return {
        "least": least,
        "scans": len(highest[True]),
        "without": len(highest[False]),
        "of these nothing found": float(np.mean(np.array(highest[False]) < least)),
    }


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
    table["no lesion"] = least_lesion(cohorts.samples(), encoders)
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
