"""Retrieval of tumours on the figshare slices: the official five folds, patients never split.

For each fold a network is trained on the other four; its slices ask, and those of the other four
answer. Settings are those of `indexer.training.Recipe`; none was chosen on a test fold.

    python -m benchmarks.figshare --fold 1 --train   train the network of a fold, or go on with it
    python -m benchmarks.figshare --train            all five, one after the other, and judge them
    python -m benchmarks.figshare                    judge what is in the cache
    python -m benchmarks.figshare --validate         try a recipe on patients of the training folds
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks import results
from indexer import network, readers
from indexer.encoder import TrainedEncoder, load_weights
from indexer.labels import load_labels
from indexer.readers import Source
from indexer.samples import Cohort, Samples, load, validation
from indexer.scan import Scan, stacked
from indexer.training import Epoch, Recipe, save, train
from retrieval.evaluation import Evaluation, evaluate, predicted_class_similarity, shuffled_labels

ROOT = results.DATA / "figshare"
CACHE = results.CACHE / "figshare"
FOLDS = ("1", "2", "3", "4", "5")
CUTS = (1, 5, 10, 20)
FOUND = ("Cheng et al. 2016", 0.9468), ("Swati et al. 2019", 0.9613), ("Haroun et al. 2026", 0.9774)
CANARIES = 5
HELD_OUT = 0.2
"""Share of the training patients that settings may be chosen on."""


@functools.cache
def borders() -> dict[str, list[list[float]]]:
    """Each slice's tumour outline, x and y in pixels."""
    found: dict[str, list[list[float]]] = json.loads((ROOT / "borders.json").read_text())
    return found


def outlined(source: Source) -> list[Scan]:
    """The slice of a file, with the tumour as its region."""
    (scan,) = readers.read(source)
    columns, rows, _ = scan.voxels.shape
    mask = Image.new("1", (columns, rows))
    ImageDraw.Draw(mask).polygon([(x, y) for x, y in borders()[source.path.stem]], fill=1)
    return [dataclasses.replace(scan, region=stacked(np.asarray(mask, bool)[None]))]


def samples() -> Samples:
    """All slices."""
    cohort = Cohort(ROOT / "images", load_labels(ROOT / "slices.tsv"), ("tumour",), outlined, "borders 1")
    return load([cohort], network.INPUT, results.CACHE)


def weights(fold: str) -> Path:
    """Where the network of a fold lies."""
    return CACHE / f"fold-{fold}.safetensors"


def trained(data: Samples, name: str, recipe: Recipe) -> TrainedEncoder:
    """The network on some samples: from the cache, taken up where it stopped, or trained anew."""
    path = CACHE / f"{name}.safetensors"
    if not path.exists():
        start = time.perf_counter()

        def finished(epoch: Epoch, _: network.RetrievalNetwork) -> None:
            minutes = (time.perf_counter() - start) / 60
            losses = ", ".join(f"{n} {value:.3f}" for n, value in epoch.losses.items())
            print(f"{name}: epoch {epoch.number}/{recipe.epochs}, {losses}, {minutes:.1f} min", flush=True)

        checkpoint = path.with_suffix(".checkpoint")
        net = train(data, recipe, checkpoint=checkpoint, resume=True, finished=finished)
        save(path, net, data, recipe, f"figshare-{name}")
        checkpoint.unlink()
    return load_weights(path)


# ---- judging -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looks:
    """Embeddings of all slices by one network.

    Attributes
    ----------
    outlined, proposed : ndarray of float32, shape (n, dimension)
        With the region of the outline, and with the region that the network proposes.
    boxes : ndarray of float32, shape (n, 4)
        The proposed regions.
    """

    outlined: NDArray[np.float32]
    proposed: NDArray[np.float32]
    boxes: NDArray[np.float32]


def looks(encoder: TrainedEncoder, data: Samples) -> Looks:
    """Embed all slices, once for each network."""
    path = CACHE / f"looks-{encoder.version}-{len(data)}.npz"
    if not path.exists():
        batches = np.array_split(np.arange(len(data)), max(1, len(data) // 256))
        pixels = [np.asarray(data.pixels[data.rows[rows]]) for rows in batches]
        given = [
            encoder.analyse(p, data.boxes[rows]).embeddings for p, rows in zip(pixels, batches, strict=True)
        ]
        own = [encoder.analyse(p) for p in pixels]
        np.savez(
            path,
            outlined=np.concatenate(given),
            proposed=np.concatenate([a.embeddings for a in own]),
            boxes=np.concatenate([a.boxes for a in own]),
        )
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
    for task in ("outlined", "proposed"):
        similarity = of_folds({name: getattr(look, task) for name, look in seen.items()}, fold)
        common: dict[str, Any] = {"label": "tumour", "ks": CUTS, "folds": fold.tolist()}
        whole = evaluate(similarity, tumour, data.patients.tolist(), queries=asks, **common)
        by_fold = {
            name: evaluate(
                similarity, tumour, data.patients.tolist(), queries=fold == name, bootstrap=0, **common
            )
            for name in encoders
        }
        by_class = predicted_class_similarity(similarity, tumour, data.patients.tolist(), folds=fold.tolist())
        canary = (
            [
                evaluate(
                    similarity,
                    shuffled_labels(tumour, data.patients.tolist(), seed),
                    data.patients.tolist(),
                    folds=fold.tolist(),
                    bootstrap=0,
                ).figures["P@10"]["micro"]
                for seed in range(CANARIES)
            ]
            if len(encoders) == len(FOLDS)
            else []
        )
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
            "MR numbers of one fold": kept(
                evaluate(similarity, tumour, persons.tolist(), queries=asks & alone, **common)
            ),
            "canary": {"P@10": [p.value for p in canary], "chance": [p.chance for p in canary]},
        }
    return table


def validate(data: Samples, recipe: Recipe, fold: str, name: str) -> None:
    """Train on most patients of a fold's training part, and ask with the others."""
    data = data.without("fold", fold)
    held = np.isin(data.patients, list(validation(data.patients.tolist(), HELD_OUT)))
    encoder = trained(data.chosen(~held), f"validation-{fold}-{name}", recipe)
    seen = looks(encoder, data)
    iou = overlap(seen.boxes, data.boxes)[held]
    print(f"{held.sum()} slices ask; proposed region: IoU {iou.mean():.3f}, {np.mean(iou > 0.5):.3f} > 0.5")
    tumour = [row["tumour"] for row in data.labels]
    for task in ("outlined", "proposed"):
        v = getattr(seen, task)
        found = evaluate(
            lambda rows, v=v: v[rows] @ v.T,  # type: ignore[misc]
            tumour,
            data.patients.tolist(),
            ks=CUTS,
            queries=held,
            database=~held,
        )
        print(task, {m: str(f["micro"]) for m, f in found.figures.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fold", choices=FOLDS, help="only this fold")
    parser.add_argument("--train", action="store_true", help="train what is not in the cache")
    parser.add_argument("--validate", metavar="NAME", help="keep the try under this name")
    parser.add_argument("--threads", type=int, help="processor cores to use")
    defaults = dataclasses.asdict(Recipe())
    for setting, value in defaults.items():
        parser.add_argument(f"--{setting}", type=int if value is None else type(value), default=value)
    arguments = vars(parser.parse_args())
    recipe = Recipe(**{setting: arguments[setting] for setting in defaults})
    if arguments["threads"]:
        torch.set_num_threads(arguments["threads"])
    data = samples()
    if arguments["validate"]:
        validate(data, recipe, arguments["fold"] or "1", arguments["validate"])
        return
    wanted = [arguments["fold"]] if arguments["fold"] else list(FOLDS)
    encoders: dict[str, TrainedEncoder] = {}
    for fold in wanted:
        if weights(fold).exists() or arguments["train"]:
            encoders[fold] = trained(data.without("fold", fold), f"fold-{fold}", recipe)
    if not encoders:
        sys.exit("nothing is trained yet: python -m benchmarks.figshare --train")
    table = judged(data, encoders)
    for task in ("outlined", "proposed"):
        print(task, {m: f"{value:.4f}" for m, value in table[task]["mean of folds"].items()})
        print({f: {m: f"{v:.4f}" for m, v in values.items()} for f, values in table[task]["folds"].items()})
    if set(encoders) == set(FOLDS):
        path = results.save(
            "figshare",
            table,
            data="figshare, official five folds",
            encoder={name: encoder.version for name, encoder in encoders.items()},
            recipe=encoders["1"].about["recipe"],
            published=dict(FOUND),
            bootstrap=1000,
            seed=0,
        )
        print(Path(path).relative_to(results.ROOT))


if __name__ == "__main__":
    main()
