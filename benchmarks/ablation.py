"""What each part of the trained encoder is worth, on the figshare folds and on the grades.

Nothing is trained for it: looks, weights and dimensions are left out of the networks of the folds
(:mod:`benchmarks.cohorts`). Random and frozen ImageNet weights are in `results/baseline.json`.

    python -m benchmarks.ablation
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import cohorts, results
from benchmarks.baseline import figures
from benchmarks.figshare import Looks, looks, of_folds, ordered, slices_and_networks, unit
from benchmarks.grades import TASKS, Folds
from retrieval.crossmatch import CrossMatch
from retrieval.evaluation import evaluate
from retrieval.ranking import Stacks

SIZES = (64, 32, 16, 8)
SLICES = (1, 2, 4, 8)


def variants(look: Looks) -> dict[str, NDArray[np.float32]]:
    """Embeddings with parts left out."""
    whole, outlined = look.fused("proposed"), look.fused("outlined")
    found = {
        "whole and proposed region": whole,
        "whole and outlined region": outlined,
        "whole alone": look.whole,
        "proposed region alone": look.proposed,
        "outlined region alone": look.outlined,
    }
    for size in SIZES:
        found[f"whole and proposed region, {size} of {whole.shape[1]} dimensions"] = reduced(whole, size)
    return found


def reduced(vectors: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """The vectors' principal components; no label takes part."""
    mean = vectors.mean(0)
    _, _, axes = np.linalg.svd(vectors - mean, full_matrices=False)
    return unit((vectors - mean) @ axes[:size].T)


def fewer(items: CrossMatch, most: int) -> CrossMatch:
    """Cases with at most so many slices of each sequence, those that weigh the most."""
    sequences = []
    for sequence in items.sequences:
        held = sequence.stacks
        ends = np.append(held.starts[1:], len(held.weights))
        kept = [
            start + np.sort(np.argsort(-held.weights[start:end], kind="stable")[:most])
            for start, end in zip(held.starts, ends, strict=True)
        ]
        rows = np.concatenate(kept)
        starts = np.cumsum([0, *map(len, kept)])[:-1]
        sequences.append(replace(sequence, stacks=Stacks(held.embeddings[rows], held.weights[rows], starts)))
    return replace(items, sequences=sequences)


def main() -> None:
    data, encoders = slices_and_networks()
    tumour = [row["tumour"] for row in data.labels]
    fold = np.array([row["fold"] for row in data.labels])
    by_fold = {name: variants(looks(encoder, data)) for name, encoder in encoders.items()}
    table: dict[str, Any] = {"figshare": {}}
    for variant in next(iter(by_fold.values())):
        scores = of_folds({name: found[variant] for name, found in by_fold.items()}, fold)
        similarity = ordered(scores, tumour, data.patients, fold)
        found = evaluate(
            similarity,
            tumour,
            data.patients.tolist(),
            label="tumour",
            folds=fold.tolist(),
            queries=np.isin(fold, list(encoders)),
        )
        table["figshare"][variant] = figures(found)
        print(variant, {m: str(by["micro"]) for m, by in found.figures.items()}, flush=True)
    for name, task in TASKS.items():
        whole = Folds.of(task, encoders)
        for most in (*SLICES, None):
            some = (
                whole
                if most is None
                else replace(whole, items={fold: fewer(items, most) for fold, items in whole.items.items()})
            )
            for label in task.labels:
                found = evaluate(
                    some.ordered(),
                    whole.cases.column(label),
                    whole.cases.patients,
                    label=label,
                    folds=whole.fold,
                    queries=whole.asks(),
                )
                row = "all slices" if most is None else f"{most} slices of a sequence at most"
                table.setdefault(f"{name}, {label}", {})[row] = figures(found)
                print(name, label, row, {m: str(by["macro"]) for m, by in found.figures.items()}, flush=True)
    path = results.save(
        "ablation",
        table,
        data=f"figshare, brats-lesions, tcga-lgg, folds {', '.join(encoders)} of {len(cohorts.FOLDS)}",
        encoder={name: encoder.version for name, encoder in encoders.items()},
    )
    print(path.relative_to(results.ROOT))


if __name__ == "__main__":
    main()
