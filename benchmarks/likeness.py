"""Do hits look like the query, beside sharing its label?

Of the hits that share the query's label, how much less the ten first differ from it than all of them do
(:func:`retrieval.metrics.likeness`), measure by measure, for each order that can be asked for, and for an
oracle that orders by the measures themselves. Precision beside it, because likeness must not cost it. Each
fold's cases ask the other folds'; measures are those of the index, so the oracle shares their errors.

    python -m benchmarks.likeness
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import cohorts, results
from benchmarks.calibration import filled
from indexer.encoder import Encoder, load_encoder
from indexer.measures import NAMES
from retrieval.agreement import with_agreement
from retrieval.crossmatch import CrossMatch
from retrieval.evaluation import evaluate
from retrieval.metrics import likeness
from retrieval.ranking import APPEARANCE

COHORT, LABEL = "brats-lesions", "grade_group"
JUDGED = ("size", "enhancing", "necrotic", "flair", "t2")
"""Those of issue and table; all others are given beside."""
WEIGHTS = {"class": 0.0, "0.05": 0.05, "0.1": 0.1, "0.2": 0.2, "0.3": 0.3, "0.5": 0.5}


def matched(encoders: dict[str, Encoder]) -> tuple[CrossMatch, dict[str, NDArray[np.float32]]]:
    """The cases, and by order their similarities, each fold's by its own network."""
    tables: dict[str, NDArray[np.float32]] = {}
    of_fold: dict[str, CrossMatch] = {}
    for fold, encoder in encoders.items():
        with filled(COHORT, encoder) as index:
            of_fold[fold] = CrossMatch.of(index.snapshot())
    first = next(iter(of_fold.values()))
    asks = {
        fold: np.flatnonzero([not fold or row.get("fold") == fold for row in first.labels])
        for fold in of_fold
    }
    n = len(first.names)
    scores = np.full((n, n), -np.inf, np.float32)
    for fold, items in of_fold.items():
        scores[asks[fold]] = items.unordered.similarity(asks[fold])
    agreed = with_agreement(scores, first.classes, first.patients, folds=first.column("fold"))
    for name, weight in {**WEIGHTS, "appearance": APPEARANCE * first.ranking.likeness}.items():
        tables[name] = np.full((n, n), -np.inf, np.float32)
        for fold, items in of_fold.items():
            how = replace(items, ranking=replace(items.ranking, likeness=weight))
            tables[name][asks[fold]] = how.similarity(asks[fold], None if name == "appearance" else agreed)
    tables["similarity"] = scores
    assert first.lesions is not None
    measures = first.lesions.measures / first.lesions.spread
    away = np.abs(measures[:, None] - measures[None])
    known = np.isfinite(away)
    oracle = -np.where(known, away, 0).sum(axis=2) / np.maximum(known.sum(axis=2), 1)
    tables["oracle"] = oracle.astype(np.float32)
    return first, tables


def judged(items: CrossMatch, similarity: NDArray[np.float32]) -> dict[str, Any]:
    """Precision, and likeness within the query's class."""
    assert items.lesions is not None
    labels, folds, patients = items.column(LABEL), items.column("fold"), np.array(items.patients)
    found = evaluate(
        similarity, labels, items.patients, label=LABEL, ks=(1, 5, 10), folds=folds, bootstrap=1000
    )
    label, fold = np.array(labels, object), np.array(folds, object)
    first, every = [], []
    for row in range(len(label)):
        alike = np.flatnonzero((label == label[row]) & (fold != fold[row]) & (patients != patients[row]))
        order = alike[np.argsort(-similarity[row, alike], kind="stable")]
        pair = likeness(items.lesions.measures[order], items.lesions.measures[row])
        first.append(pair[0])
        every.append(pair[1])
    near, far = np.nansum(first, axis=0), np.nansum(every, axis=0)
    ratios = {name: float(near[i] / far[i]) for i, name in enumerate(NAMES) if far[i] > 0}
    return {
        "P@10": {how: found.figures["P@10"][how].value for how in ("micro", "macro")},
        "mAP": {how: found.figures["mAP"][how].value for how in ("micro", "macro")},
        "likeness": float(np.mean([ratios[name] for name in JUDGED if name in ratios])),
        "by measure": ratios,
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    folds: dict[str, Encoder] = {**cohorts.fold_networks()}
    methods: dict[str, dict[str, Encoder]] = {
        **({"networks of the folds": folds} if folds else {}),
        "frozen ImageNet": {"": load_encoder("imagenet")},
        "shipped (in-sample)": {"": load_encoder("cbir")},
    }
    table: dict[str, Any] = {}
    for method, encoders in methods.items():
        items, tables = matched(encoders)
        for order, similarity in tables.items():
            table.setdefault(method, {})[order] = found = judged(items, similarity)
            shown = {what: round(v, 3) for what, v in found["P@10"].items()}
            print(method, order, shown, f"likeness {found['likeness']:.3f}", flush=True)
    versions = {
        f"{method} {fold}".strip(): e.version for method, of in methods.items() for fold, e in of.items()
    }
    path = results.save(
        "likeness", table, data=f"{COHORT}, folds as given", encoder=versions, label=LABEL, seed=0
    )
    print(path.relative_to(results.ROOT))


if __name__ == "__main__":
    main()
