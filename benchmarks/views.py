"""Do hits show the head from the side from which the query shows it? figshare slices know no geometry.

A slice asks and those of the other folds answer, as in :mod:`benchmarks.figshare`: by similarity alone, and
less what the views (:mod:`indexer.view`) take of it in the order of hits. Planes were told by eye, for the
publishers say none (``planes_of_figshare.tsv``: runs of the files). Nothing learns from them.

    python -m benchmarks.views
"""

from __future__ import annotations

import csv
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import cohorts, results
from benchmarks.figshare import looks, of_folds
from indexer.encoder import TrainedEncoder, load_encoder
from indexer.learning.samples import Samples
from indexer.view import gist
from retrieval.agreement import with_agreement
from retrieval.baselines import cosine_similarity
from retrieval.evaluation import evaluate
from retrieval.items import Similarity
from retrieval.likeness import less_views, turned
from retrieval.ranking import Ranking

EVERY = 10
"""Of so many pixels, along each side, the baseline of raw pixels takes one."""
FIGURES = (("plane", "P@1"), ("plane", "P@10"), ("tumour", "P@10"), ("tumour", "mAP"))


def planes(patients: list[str]) -> list[str]:
    """The plane of each slice, given the patient of each.

    Raises
    ------
    SystemExit
        If the slices are not in the order of their files.
    """
    with (cohorts.FIGSHARE / "slices.tsv").open() as lines:
        if [row["participant_id"] for row in csv.DictReader(lines, delimiter="\t")] != patients:
            sys.exit("the slices are not in the order of slices.tsv")
    return cohorts.planes()


def judged(data: Samples, rankings: dict[str, Similarity]) -> dict[str, dict[str, Any]]:
    """How many of the first hits show the query's plane, and its tumour: each ranking, and the baselines."""
    fold = [row["fold"] for row in data.labels]
    patients = data.patients.tolist()
    columns = {"plane": planes(patients), "tumour": [row["tumour"] for row in data.labels]}
    pixels = np.asarray(data.pixels[data.rows])
    views = np.array([[np.nan, *gist(image[None])] for image in pixels], np.float32)
    away = np.array([turned(view, views) for view in views])
    frozen = load_encoder("imagenet")
    at = np.arange(frozen.size) * pixels.shape[-1] // frozen.size
    small = np.ascontiguousarray(pixels[:, at][:, :, at])
    few = np.array_split(small, len(small) // 32)
    thinned = pixels[:, ::EVERY, ::EVERY].reshape(len(pixels), -1)
    every, folds = np.arange(len(pixels)), np.array(fold)
    others = folds[:, None] != folds
    baselines = {
        "frozen ImageNet": cosine_similarity(np.concatenate([frozen.encode(part) for part in few])),
        "raw pixels": cosine_similarity(thinned),
    }

    def found(scores: NDArray[np.float32]) -> dict[str, Any]:
        of = {
            label: evaluate(
                scores, values, patients, label=label, ks=(1, 10), folds=fold, bootstrap=0
            ).figures
            for label, values in columns.items()
        }
        micro = {f"{label}, {metric}": of[label][metric]["micro"] for label, metric in FIGURES}
        return {name: {"value": one.value, "chance": one.chance} for name, one in micro.items()}

    table = {"views": {"alone": found(-away)}}
    for name, similarity in (rankings | baselines).items():
        scores = np.asarray(similarity(every) if callable(similarity) else similarity, np.float32)
        best = np.where(others, scores, -np.inf).max(axis=1, keepdims=True)
        less = less_views(scores, away, Ranking().likeness, best)
        agreed = with_agreement(scores, {"tumour": columns["tumour"]}, patients, folds=fold)(every)
        best = np.where(others, agreed, -np.inf).max(axis=1, keepdims=True)
        ordered = less_views(agreed, away, Ranking().likeness, best)
        table[name] = {
            "by similarity": found(scores),
            "less views": found(less),
            "as hits are ordered": found(ordered),
        }
    return table


def main() -> None:
    data = cohorts.samples()
    data = data.chosen(data.targets["tumour"] >= 0)
    fold = np.array([row["fold"] for row in data.labels])
    encoders = cohorts.fold_networks()
    rankings: dict[str, Similarity] = {}
    if len(encoders) == len(cohorts.FOLDS):
        seen = {name: looks(encoder, data) for name, encoder in encoders.items()}
        for task, told in (("outlined", "outline given"), ("proposed", "no outline")):
            fused = {name: look.fused(task) for name, look in seen.items()}
            rankings[f"networks of the folds, {told}"] = of_folds(fused, fold)
    else:
        shipped = load_encoder("cbir")
        assert isinstance(shipped, TrainedEncoder)
        encoders = {"shipped": shipped}
        rankings["shipped (in-sample), no outline"] = cosine_similarity(
            looks(shipped, data).fused("proposed")
        )
    table = judged(data, rankings)
    for name, orders in table.items():
        for order, row in orders.items():
            print(f"{name}, {order}:", {what: round(told["value"], 4) for what, told in row.items()})
    path = results.save(
        "views",
        table,
        data=f"figshare, official folds, {len(data)} slices",
        encoder={name: encoder.version for name, encoder in encoders.items()},
        weight=Ranking().likeness,
    )
    print(path.relative_to(results.ROOT))


if __name__ == "__main__":
    main()
