"""Do hits of the query's own class look like it? Lesions of BraTS, each asked by the network of its fold.

What a lesion looks like is known of those whose crop was found in an outlined plane
(:mod:`benchmarks.crops`): its area, the enhancing and necrotic shares of it, and the mean of FLAIR and T2
inside. A ranking's *likeness* is how far its ten first of the query's class differ from the query in each
of these, over how far all others of the class do: 1 by chance, 0 where nothing differs.

    python -m benchmarks.resemblance
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from benchmarks import cohorts, crops, results
from indexer import discovery, readers
from indexer.composite import groups
from indexer.encoder import Encoder, TrainedEncoder, imagenet
from indexer.labels import load_tables
from indexer.measures import NAMES, measure
from indexer.preprocess import Prepared, prepared_composite
from indexer.sequences import CHANNELS
from retrieval.agreement import with_agreement
from retrieval.baselines import cosine_similarity, predicted_class_similarity
from retrieval.evaluation import evaluate
from retrieval.ranking import Ranking

TOLD = ("size", "enhancing", "necrotic", "flair", "t2")
"""What is compared, of :data:`indexer.measures.NAMES`."""

FIRST = 10
EVERY = 4
"""Planes of a crop for each that the baselines see."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lesions:
    """Lesions whose looks are known.

    Attributes
    ----------
    ready : list of Prepared
    truth : ndarray, shape (n, 5)
        As the outlines tell :data:`TOLD`.
    patients, grades, folds : ndarray of str, shape (n,)
    """

    ready: list[Prepared]
    truth: Floats
    patients: NDArray[np.str_]
    grades: NDArray[np.str_]
    folds: NDArray[np.str_]

    @classmethod
    def load(cls) -> Lesions:
        """All whose crop was found in an outlined plane."""
        tables = load_tables(crops.CROPS / "lesions.tsv")
        found = discovery.discover(crops.CROPS, tables)
        ready, truth, rows = [], [], []
        for source in found.sources:
            if planes := crops.found().get(source.path.name):
                ready += [
                    prepared_composite(group.scans, 160, standardised=True)
                    for group in groups(readers.read(source), 160)
                ]
                truth.append(told(np.asarray(nib.load(source.path).dataobj, float)[:, :, :, 0], planes))
                row = found.joined.labels.of(source.patient_id)
                rows.append((source.patient_id, row["grade_group"], row["fold"]))
        return cls(ready, np.array(truth), *(np.array(column) for column in zip(*rows, strict=True)))


def told(voxels: Floats, planes: dict[str, list[list[int]]]) -> list[float]:
    """What outlined planes tell of a lesion: mean diameter in mm, and means over all their cells."""
    labels = np.stack([np.array(plane) for plane in planes.values()], -1)
    shown = voxels[:, :, [int(z) for z in planes]][labels > 0]
    area = np.count_nonzero(labels) / len(planes) * crops.VOXEL**2
    inside = labels[labels > 0]
    return [
        float(2 * np.sqrt(area / np.pi)),
        float((inside == 4).mean()),
        float((inside == 1).mean()),
        *(float(shown[:, CHANNELS.index(name)].mean()) for name in ("flair", "t2")),
    ]


def distances(vectors: Floats) -> Floats:
    """Euclidean, each column standardised by its own spread; what is not known is taken for the mean."""
    spread = np.nanstd(vectors, 0)
    z = np.nan_to_num((vectors - np.nanmean(vectors, 0)) / np.where(spread > 0, spread, 1))
    return np.sqrt(np.maximum(((z[:, None] - z[None]) ** 2).sum(-1), 0))


def likeness(similarity: Floats, truth: Floats, classes: Sequence[str], patients: Sequence[str]) -> Floats:
    """How far the first of the own class differ from the query, over how far the whole class does.

    Parameters
    ----------
    similarity : ndarray, shape (n, n)
        Of each that asks (rows) to each that answers.
    truth : ndarray, shape (n, measures)
    classes, patients : sequence of str, length n

    Returns
    -------
    ndarray, shape (measures,)
        Sums over all who ask; a person does not answer its own question.
    """
    spread = np.maximum(truth.std(0), 1e-9)
    mine, persons = np.asarray(classes), np.asarray(patients)
    near, all_of_class = np.zeros(truth.shape[1]), np.zeros(truth.shape[1])
    for i in range(len(truth)):
        others = np.flatnonzero((mine == mine[i]) & (persons != persons[i]))
        if len(others) < 2 * FIRST:
            continue
        first = others[np.argsort(-similarity[i, others], kind="stable")[:FIRST]]
        near += (np.abs(truth[first] - truth[i]) / spread).mean(0)
        all_of_class += (np.abs(truth[others] - truth[i]) / spread).mean(0)
    return np.asarray(near / all_of_class)


def of_folds(lesions: Lesions, seen: Callable[[str], Floats]) -> Floats:
    """A table of similarity of which each row is by the network of its fold."""
    table = np.full((len(lesions.ready),) * 2, -np.inf)
    for fold in np.unique(lesions.folds):
        mine = lesions.folds == fold
        table[mine] = seen(str(fold))[mine]
    return table


def composed(lesions: Lesions, encoder: TrainedEncoder) -> Floats:
    """Cosines of the lesions' mean composite embeddings."""
    vectors = []
    for ready in lesions.ready:
        rows = np.flatnonzero(ready.views == 0)[EVERY // 2 :: EVERY]
        found, weights = encoder.compose(ready.pixels[rows])
        mean = (found * weights[:, None]).sum(0)
        vectors.append(mean / np.linalg.norm(mean))
    return np.asarray(np.array(vectors) @ np.array(vectors).T, float)


def measured(lesions: Lesions, encoder: Encoder | None) -> Floats:
    """The measures that an encoder, or the rules, give; shape (n, 5)."""
    found = np.array([measure(ready, encoder=encoder).numbers for ready in lesions.ready])
    return found[:, [NAMES.index(name) for name in TOLD]]


def frozen(lesions: Lesions) -> Floats:
    """Cosines of mean features of the frozen network, over all sequences."""
    encoder, vectors = imagenet(), []
    for ready in lesions.ready:
        images = ready.pixels[EVERY // 2 :: 2 * EVERY].reshape(-1, *ready.pixels.shape[2:])
        side = encoder.size
        at = (np.arange(side) * images.shape[-1]) // side
        vectors.append(encoder.encode(np.ascontiguousarray(images[:, at][:, :, at])).mean(0))
    v = np.array(vectors, float)
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    return np.asarray(v @ v.T)


def intensities(ready: Prepared) -> list[float]:
    """Mean, spread and percentiles of what a crop shows, in each sequence, and how much it shows."""
    found = [float((ready.pixels[:, -1] > 0).mean())]
    for channel, (slope, offset) in enumerate(ready.frame.levels):
        grey = ready.pixels[:, channel]
        values = grey[grey > 0] * float(slope) + float(offset)
        found += [values.mean(), values.std(), *np.percentile(values, (10, 50, 90, 98))]
    return found


def judged(lesions: Lesions, encoders: dict[str, TrainedEncoder]) -> dict[str, Any]:
    """Likeness and P@10 of all rankings."""
    grades, patients, folds = lesions.grades.tolist(), lesions.patients.tolist(), lesions.folds.tolist()
    by_class = of_folds(lesions, lambda fold: composed(lesions, encoders[fold]))
    votes = predicted_class_similarity(by_class.astype(np.float32), grades, patients, folds=folds)
    predicted = np.asarray(votes(np.arange(len(grades))) if callable(votes) else votes, float)
    by_measures = of_folds(lesions, lambda fold: -distances(measured(lesions, encoders[fold])))
    pixels = np.array([ready.pixels[:, :, ::16, ::16].mean(0).ravel() for ready in lesions.ready])

    def within(similarity: Floats) -> Floats:
        """Whole classes in the order of the votes; similarity inside them."""
        lowest = similarity[np.isfinite(similarity)].min()
        return predicted + 1e-3 * np.where(np.isfinite(similarity), similarity / abs(lowest), -1)

    scores = by_class.astype(np.float32)
    agreed = with_agreement(scores, {"grade_group": grades}, patients, folds=folds)(np.arange(len(grades)))
    rankings = {
        "as hits are ordered": agreed + Ranking().likeness * by_measures,
        "class embedding": by_class,
        "rank by predicted class": predicted,
        "predicted class, then measures": within(by_measures),
        "measures alone": by_measures,
        "measures by rules": -distances(measured(lesions, None)),
        "measures of the given outline": -distances(lesions.truth),
        "intensities of the crop": -distances(np.array([intensities(ready) for ready in lesions.ready])),
        "raw pixels": cosine_similarity(pixels)(np.arange(len(pixels))),
        "frozen ImageNet": frozen(lesions),
    }
    table: dict[str, Any] = {}
    for name, similarity in rankings.items():
        ratios = likeness(similarity, lesions.truth, grades, patients)
        found = evaluate(
            np.asarray(similarity, np.float32),
            grades,
            patients,
            label="grade_group",
            ks=(FIRST,),
            folds=folds,
            bootstrap=0,
        ).figures
        table[name] = {
            "likeness": dict(zip(TOLD, ratios.tolist(), strict=True)) | {"mean": float(ratios.mean())},
            "P@10 macro": found["P@10"]["macro"].value,
            "mAP macro": found["mAP"]["macro"].value,
        }
    return table


def main() -> None:
    encoders = cohorts.fold_networks()
    if len(encoders) < len(cohorts.FOLDS):
        sys.exit("the networks of all folds are needed: python -m benchmarks.cohorts")
    lesions = Lesions.load()
    table = judged(lesions, encoders)
    for name, row in table.items():
        print(f"{name}:", {k: round(v, 3) for k, v in row["likeness"].items()}, round(row["P@10 macro"], 3))
    path = results.save(
        "resemblance",
        {"rankings": table, "lesions": len(lesions.truth), "patients": len(set(lesions.patients.tolist()))},
        data=f"brats-lesions, folds {', '.join(encoders)} of {len(cohorts.FOLDS)}",
        encoder={name: encoder.version for name, encoder in encoders.items()},
    )
    print(path.relative_to(results.ROOT))


if __name__ == "__main__":
    main()
