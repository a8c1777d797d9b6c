"""Retrieval of tumours on the figshare slices: the official five folds, patients never split.

A fold's slices ask, and those of the other four answer, embedded by the network that was trained
without that fold (:mod:`benchmarks.cohorts`). Settings were not chosen on a test fold.

    python -m benchmarks.figshare
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks import cohorts, results
from indexer.encoder import TrainedEncoder
from indexer.learning import network
from indexer.learning.looks import frames, frames_again, looked_at, proposed
from indexer.learning.samples import Samples
from retrieval.agreement import with_agreement
from retrieval.baselines import predicted_class_similarity, shuffled_labels
from retrieval.evaluation import evaluate
from retrieval.figures import Evaluation
from retrieval.items import Similarity

CUTS = (1, 5, 10, 20)
FOUND = ("Cheng et al. 2016", 0.9468), ("Swati et al. 2019", 0.9613), ("Haroun et al. 2026", 0.9774)
CANARIES = 5


@dataclass(frozen=True)
class Looks:
    """Embeddings of all slices by one network, each look for itself.

    Attributes
    ----------
    whole : ndarray of float32, shape (n, dimension)
    outlined, proposed : ndarray of float32, shape (n, dimension)
        Of the region of the outline, and of the region that the network proposes.
    boxes : ndarray of float32, shape (n, 4)
        The proposed regions.
    """

    whole: NDArray[np.float32]
    outlined: NDArray[np.float32]
    proposed: NDArray[np.float32]
    boxes: NDArray[np.float32]

    def fused(self, task: str) -> NDArray[np.float32]:
        """What the encoder gives: the unit sum of the whole and a region, ``outlined`` or ``proposed``."""
        return unit(self.whole + getattr(self, task))


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@torch.inference_mode()
def looks(encoder: TrainedEncoder, data: Samples) -> Looks:
    """Look at all slices, once for each network.

    Raises
    ------
    SystemExit
        If the parts do not add up to what the encoder gives.
    """
    path = cohorts.NETWORKS / f"looks-{encoder.version}.npz"
    if not path.exists():
        parts: list[tuple[NDArray[np.float32], ...]] = []
        for rows in np.array_split(np.arange(len(data)), max(1, len(data) // 32)):
            pixels = np.asarray(data.pixels[data.rows[rows]])
            x = torch.from_numpy(pixels.astype(np.float32))[:, None].div_(127.5).sub_(1)
            whole, logits = encoder.network(nn.functional.avg_pool2d(x, network.INPUT // network.VIEW))
            boxes = proposed(logits.sigmoid().numpy())
            given, found = (frames(torch.from_numpy(where)) for where in (data.boxes[rows], boxes))
            again = [encoder.network(looked_at(x, frame))[0] for frame in (given, *frames_again(given))]
            outlined = nn.functional.normalize(torch.stack(again).sum(0)).numpy()
            region = encoder.network(looked_at(x, found))[0].numpy()
            parts.append((whole.numpy(), outlined, region, boxes))
        seen = Looks(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        few = slice(0, 32)
        given = encoder.analyse(np.asarray(data.pixels[data.rows[few]]), data.boxes[few]).embeddings
        if not np.allclose(given, seen.fused("outlined")[few], atol=1e-3):
            sys.exit("the looks do not add up to what the encoder gives")
        np.savez(path, **vars(seen))
    with np.load(path) as held:
        return Looks(**held)


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of boxes, shape (n,)."""
    inner = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(1)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    return np.asarray(inner / (areas[0] + areas[1] - inner))


def of_folds(vectors: dict[str, NDArray[np.float32]], fold: NDArray[np.str_]) -> Any:
    """Similarities where each query is embedded, and compared, by its own fold's network."""

    def similarity(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        scores = np.full((len(rows), len(fold)), -np.inf, np.float32)  # a fold without a network says nothing
        for name, v in vectors.items():
            mine = fold[rows] == name
            scores[mine] = v[rows[mine]] @ v.T
        return scores

    return similarity


def ordered(
    scores: Similarity, tumour: Sequence[str | None], patients: NDArray[np.str_], fold: NDArray[np.str_]
) -> Similarity:
    """As hits are ordered, where the patients of other folds vote."""
    return with_agreement(scores, {"tumour": tumour}, patients.tolist(), folds=fold.tolist())


def mr_numbers(patients: NDArray[np.str_]) -> NDArray[np.str_]:
    """Patient ids without the letter that tells several entries of one MR number apart."""
    return np.array([re.sub(r"(?<=\d)[A-Z]$", "", p) for p in patients])


def kept(evaluation: Evaluation) -> dict[str, Any]:
    """The part of an evaluation that the tables show."""
    whole = evaluation.to_dict()
    names = ("queries", "patients", "metrics", "classes", "excluded", "split_patients")
    return {name: whole[name] for name in names}


def judged(data: Samples, encoders: dict[str, TrainedEncoder]) -> dict[str, Any]:
    """All figures of the folds that have a network."""
    tumour = [row["tumour"] for row in data.labels]
    fold = np.array([row["fold"] for row in data.labels])
    asks = np.isin(fold, list(encoders))
    persons = mr_numbers(data.patients)
    alone = np.array([len(set(fold[persons == p])) == 1 for p in persons])
    seen = {name: looks(encoder, data) for name, encoder in encoders.items()}
    iou = np.concatenate([overlap(seen[f].boxes, data.boxes)[fold == f] for f in encoders])
    table: dict[str, Any] = {"proposed region": {"mean IoU": float(iou.mean())}}
    table["proposed region"]["share of IoU above 0.5"] = float((iou > 0.5).mean())
    areas = np.log((data.boxes[:, 2:] - data.boxes[:, :2]).prod(1))
    size = evaluate(
        np.asarray(-np.abs(areas[:, None] - areas), np.float32),
        tumour,
        data.patients.tolist(),
        label="tumour",
        ks=CUTS,
        folds=fold.tolist(),
        queries=asks,
    )
    for task in ("outlined", "proposed"):
        scores = of_folds({name: look.fused(task) for name, look in seen.items()}, fold)
        similarity = ordered(scores, tumour, data.patients, fold)
        common: dict[str, Any] = {"label": "tumour", "ks": CUTS, "folds": fold.tolist()}
        whole = evaluate(similarity, tumour, data.patients.tolist(), queries=asks, **common)
        by_fold = {
            name: evaluate(
                similarity, tumour, data.patients.tolist(), queries=fold == name, bootstrap=0, **common
            )
            for name in encoders
        }
        by_class = predicted_class_similarity(scores, tumour, data.patients.tolist(), folds=fold.tolist())
        dealt = [shuffled_labels(tumour, data.patients.tolist(), seed) for seed in range(CANARIES)]
        canary = [
            evaluate(
                ordered(scores, labels, data.patients, fold),
                labels,
                data.patients.tolist(),
                queries=asks,
                folds=fold.tolist(),
                bootstrap=0,
            ).figures["P@10"]["micro"]
            for labels in dealt
        ]
        table[task] = {
            **kept(whole),
            "folds": {
                name: {m: f["micro"].value for m, f in e.figures.items()} for name, e in by_fold.items()
            },
            "mean of folds": {
                m: float(np.mean([e.figures[m]["micro"].value for e in by_fold.values()]))
                for m in whole.figures
            },
            "rank by predicted class": kept(
                evaluate(by_class, tumour, data.patients.tolist(), queries=asks, **common)
            ),
            "by similarity alone": kept(
                evaluate(scores, tumour, data.patients.tolist(), queries=asks, **common)
            ),
            "MR numbers of one fold": kept(
                evaluate(
                    ordered(scores, tumour, persons, fold),
                    tumour,
                    persons.tolist(),
                    queries=asks & alone,
                    **common,
                )
            ),
            "canary": {"P@10": [p.value for p in canary], "chance": [p.chance for p in canary]},
        }
    table["outlined"]["size of the outline"] = kept(size)
    return table


def slices_and_networks() -> tuple[Samples, dict[str, TrainedEncoder]]:
    """The figshare samples, and the networks of the folds.

    Raises
    ------
    SystemExit
        If none is trained, or one has seen a patient of its fold.
    """
    encoders = cohorts.fold_networks()
    if not encoders:
        sys.exit("nothing is trained yet: python -m benchmarks.cohorts")
    whole = cohorts.samples()
    data = whole.chosen(whole.targets["tumour"] >= 0)
    fold = np.array([row["fold"] for row in data.labels])
    for name, encoder in encoders.items():
        if any(encoder.trained_on(patient) for patient in set(data.patients[fold == name].tolist())):
            sys.exit(f"the network of fold {name} has seen a patient of that fold")
    return data, encoders


def main() -> None:
    data, encoders = slices_and_networks()
    table = judged(data, encoders)
    for task in ("outlined", "proposed"):
        print(task, {m: f"{value:.4f}" for m, value in table[task]["mean of folds"].items()})
        print({f: {m: f"{v:.4f}" for m, v in values.items()} for f, values in table[task]["folds"].items()})
        print("by predicted class", table[task]["rank by predicted class"]["metrics"]["mAP"])
    print(table["proposed region"])
    path = results.save(
        "figshare",
        table,
        data=f"figshare, official folds {', '.join(encoders)} of {len(cohorts.FOLDS)}",
        encoder={name: encoder.version for name, encoder in encoders.items()},
        recipe=next(iter(encoders.values())).about["recipe"],
        published=dict(FOUND),
        bootstrap=1000,
        seed=0,
    )
    print(path.relative_to(results.ROOT))


if __name__ == "__main__":
    main()
