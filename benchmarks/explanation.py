"""Does the similarity come from where the explanation says? The deletion and insertion test.

A slice of a patient whom the network has not seen asks; its hit is the most similar slice of those it
was trained on. The query's cells are blurred one after the other, first those that the explanation
calls decisive, and the cosine to the hit's embedding is followed (deletion: it should fall fast); or
they are put back into the blurred slice (insertion: it should rise fast). The area under the curve
is compared with other orders of the same cells: at random, from the middle of the head outwards, and
by the lesion map, which knows the query but not the hit.

Petsiuk, Das and Saenko, *RISE*, BMVC 2018.

    python -m benchmarks.explanation                  the networks of the five folds, each on its fold
    python -m benchmarks.explanation --validate FILE  a network that was validated, fold 1 left out
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks import cohorts, figshare, results
from indexer.encoder import TrainedEncoder, load_weights
from indexer.learning import network
from indexer.learning.samples import Samples

CELLS = 20
"""Cells along each side of a slice; only those that show something are removed."""
STEPS = 10
BLUR = 1 / 16
"""Deviation of the Gaussian that a removed cell is blurred with, as a share of the side."""
PAIRS = 100
BOOTSTRAP = 1000

Curves = dict[str, dict[str, float]]
"""For each order the areas of one pair: deletion, insertion."""


def chosen(patients: NDArray[np.str_], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Positions of slices, drawn so that no patient has two more than another who has as many."""
    order = rng.permutation(len(patients))
    turn = np.empty(len(order), np.int64)
    seen: dict[str, int] = {}
    for i in order:
        turn[i] = seen[patients[i]] = seen.get(patients[i], -1) + 1
    return np.asarray(order[np.argsort(turn[order], kind="stable")][:count])


def blocks(images: NDArray[Any]) -> NDArray[Any]:
    """Images as cells, shape (…, cells, side of a cell, cells, side of a cell)."""
    side = images.shape[-1] // CELLS
    return images.reshape(*images.shape[:-2], CELLS, side, CELLS, side)


def orders(
    image: NDArray[np.uint8],
    explanation: NDArray[np.float32],
    lesion: NDArray[np.float32],
    rng: np.random.Generator,
) -> dict[str, NDArray[np.int64]]:
    """The cells that show something, in several orders."""
    inside = np.flatnonzero(blocks(image).any((1, 3)))
    at = np.stack(np.divmod(inside, CELLS), 1)
    rows = {
        "explanation": blocks(explanation).sum((1, 3)).ravel()[inside],
        "random": rng.random(len(inside)),
        "middle": -np.linalg.norm(at - at.mean(0), axis=1),
        "lesion map": lesion.ravel()[inside],
    }
    return {name: inside[np.argsort(-value, kind="stable")] for name, value in rows.items()}


def mixed(
    image: NDArray[np.uint8], blurred: NDArray[np.uint8], order: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """The image with none, some, … all of the cells blurred, in their order."""
    images = np.repeat(image[None], STEPS + 1, 0)
    for step, count in enumerate(np.linspace(0, len(order), STEPS + 1).round().astype(int)):
        rows, columns = np.divmod(order[:count], CELLS)
        blocks(images[step])[rows, :, columns] = blocks(blurred)[rows, :, columns]
    return images


def areas(
    cosines: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    image: NDArray[np.uint8],
    by: dict[str, NDArray[np.int64]],
) -> Curves:
    """Areas under the curves of the cosine, over the share of the cells."""
    blurred = gaussian_filter(image, BLUR * len(image))
    curves: Curves = {}
    for name, order in by.items():
        deleted = cosines(mixed(image, blurred, order))
        inserted = cosines(mixed(blurred, image, order))
        curves[name] = {
            test: float((curve[1:] + curve[:-1]).mean() / 2)
            for test, curve in (("deletion", deleted), ("insertion", inserted))
        }
    return curves


def tested(
    encoder: TrainedEncoder,
    data: Samples,
    embedded: NDArray[np.float32],
    queries: NDArray[np.int64],
    known: NDArray[np.int64],
    rng: np.random.Generator,
) -> list[Curves]:
    """The curves of slices that ask, each with its most similar slice of those that are known."""
    curves = []
    for query in queries:
        hit = embedded[known[(embedded[known] @ embedded[query]).argmax()]]
        image = np.asarray(data.pixels[data.rows[query]])
        explanation = encoder.explain(image[None], hit[None])[0]
        lesion = encoder.analyse(image[None]).maps[0]
        by = orders(image, explanation, lesion, rng)
        curves.append(areas(lambda images, hit=hit: encoder.encode(images) @ hit, image, by))  # type: ignore[misc]
    return curves


def interval(values: NDArray[np.float64], patients: list[str], seed: int = 0) -> dict[str, float]:
    """A mean over pairs, with its 95 % interval by a bootstrap over patients."""
    _, patient = np.unique(patients, return_inverse=True)
    sums, counts = np.bincount(patient, values), np.bincount(patient)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(BOOTSTRAP, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), (2.5, 97.5))
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def summary(curves: list[Curves], patients: list[str]) -> dict[str, Any]:
    """Mean areas of each order, and what the explanation's have less or more than the others'."""
    table: dict[str, Any] = {"pairs": len(curves), "patients": len(set(patients))}
    for test in ("deletion", "insertion"):
        value = {name: np.array([pair[name][test] for pair in curves]) for name in curves[0]}
        own = value["explanation"]
        table[test] = {
            name: {
                "area": interval(v, patients),
                **({} if v is own else {"explanation less this": interval(own - v, patients)}),
            }
            for name, v in value.items()
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--validate", type=Path, metavar="FILE", help="a network that has not seen fold 1")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--dry", action="store_true", help="print, and save nothing")
    arguments = parser.parse_args()
    whole = cohorts.samples()
    data = whole.chosen(whole.targets["tumour"] >= 0)
    fold = np.array([row["fold"] for row in data.labels])
    if arguments.validate:
        encoders = {"": load_weights(arguments.validate)}
    else:
        encoders = cohorts.fold_networks()
        if not encoders or (set(encoders) != set(cohorts.FOLDS) and not arguments.dry):
            sys.exit("not all folds are trained yet: python -m benchmarks.cohorts")
    rng = np.random.default_rng(0)
    curves: list[Curves] = []
    patients: list[str] = []
    for name, encoder in encoders.items():
        new = np.array([not encoder.trained_on(patient) for patient in data.patients])
        asks = new & (fold == name if name else fold != "1")
        queries = np.flatnonzero(asks)
        queries = queries[chosen(data.patients[queries], arguments.pairs // len(encoders), rng)]
        embedded = figshare.looks(encoder, data).fused("proposed")
        curves += tested(encoder, data, embedded, queries, np.flatnonzero(~new), rng)
        patients += data.patients[queries].tolist()
    table = summary(curves, patients)
    print(json.dumps(table, indent=1))
    if not arguments.dry and not arguments.validate:
        path = results.save(
            "explanation",
            table,
            data="figshare, official five folds, region proposed",
            encoder={name: encoder.version for name, encoder in encoders.items()},
            removal=f"Gaussian blur, deviation {BLUR * network.INPUT:.0f} of {network.INPUT} pixels, "
            f"{CELLS} x {CELLS} cells, {STEPS} steps",
            bootstrap=BOOTSTRAP,
            seed=0,
        )
        print(path.relative_to(results.ROOT))


if __name__ == "__main__":
    main()
