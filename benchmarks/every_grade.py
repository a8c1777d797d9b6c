"""Does a glioma of any WHO grade meet its like among the reference cases?

The reference cases as the networks of the folds see them (:mod:`benchmarks.reference`): the cases of the
patients whom a network has not seen ask those whom it has, as `cbir query` asks, with all of their scans.
Counted are the hits of the right grade among ten, and the grade that the vote names first. A hit without a
WHO grade (other tumours; BraTS tells some of its patients only HGG or LGG) counts as a wrong one. And the
sets of plausible grades, by what the patients of the other folds taught: whether they hold the right one.

    python -m benchmarks.every_grade
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from benchmarks import cohorts, results
from benchmarks.calibration import near_sets
from benchmarks.reference import COLLECTIONS, asked_by, made
from cbir import Index, open_index
from indexer import reference
from indexer.encoder import TrainedEncoder
from retrieval.calibration import Fit
from retrieval.conformal import tempered
from retrieval.leave_one_out import joined, votes

LABEL, GRADES = "who_grade", ("2", "3", "4")
K = 10


def asked(index: Index, unseen: list[str]) -> list[dict[str, Any]]:
    """What each case of a known grade of these patients meets: all others of them are left out."""
    contents = index.contents
    rows = []
    sources = dict(zip(contents.scan_case.tolist(), contents.scan_source, strict=True))
    for case, (name, patient) in enumerate(zip(contents.case_ids, contents.patient_ids, strict=True)):
        grade = contents.labels[case].get(LABEL)
        if patient not in unseen or grade not in GRADES:
            continue
        answer = index.like(name, K, exclude_patient=unseen)
        evidence = answer.evidence[LABEL]
        said = max(evidence.probabilities, key=lambda value: evidence.probabilities[value])
        rows.append(
            {
                "collection": collection_of(sources[case]),
                "patient": patient,
                "grade": grade,
                "hits": [hit.labels.get(LABEL, "") for hit in answer.hits],
                "first": "" if evidence.abstain else said,
                "prior": evidence.prior,
            }
        )
    return rows


def plausible(encoders: dict[str, TrainedEncoder]) -> dict[tuple[str, str], list[tuple[bool, int]]]:
    """By collection and grade: whether the set holds the grade, and its size, of each question.

    Cases of several scans ask with all of them, others with the one.
    """
    with reference.opened() as shipped:
        contents = shipped.catalog.contents()
    by_fold = {fold: asked_by(fold, encoder, contents) for fold, encoder in encoders.items()}
    found: dict[tuple[str, str], list[tuple[bool, int]]] = {}
    for kind in ("scan", "case"):
        for fold, questions in by_fold.items():
            judged = questions[kind][0]
            taught = votes(joined([other[kind][0] for name, other in by_fold.items() if name != fold]), LABEL)
            fit, said = Fit.of(taught), votes(judged, LABEL)
            if fit is None:
                raise SystemExit(f"fold {fold}: too few ask")
            sets = near_sets(fit, taught, judged, LABEL, tempered(said.probabilities, fit.temperature))
            together = set(contents.scan_case[questions["case"][0].scans].tolist())
            for scan, true, held in zip(said.scans, said.truth, sets, strict=True):
                if kind == "case" or int(contents.scan_case[scan]) not in together:
                    key = collection_of(contents.scan_source[scan]), said.values[true]
                    found.setdefault(key, []).append((bool(held[true]), int(held.sum())))
    return found


def collection_of(source: str) -> str:
    """Of a reference case."""
    return source.removeprefix(reference.PREFIX).partition("/")[0]


def table_of(
    rows: list[dict[str, Any]], sets: dict[tuple[str, str], list[tuple[bool, int]]]
) -> dict[str, Any]:
    """By collection and grade: cases, hits of each grade among ten, votes naming each grade first, sets."""
    found: dict[str, Any] = {}
    for collection in dict.fromkeys(c.name for c in COLLECTIONS):
        for grade in GRADES:
            mine = [row for row in rows if (row["collection"], row["grade"]) == (collection, grade)]
            if mine:
                found[f"{collection}, WHO {grade}"] = {
                    "cases": len(mine),
                    "hits": {g: float(np.mean([row["hits"].count(g) / K for row in mine])) for g in GRADES},
                    "first": {g: float(np.mean([row["first"] == g for row in mine])) for g in GRADES},
                    "abstained": float(np.mean([row["first"] == "" for row in mine])),
                    "prior": {g: float(np.mean([row["prior"].get(g, 0.0) for row in mine])) for g in GRADES},
                    "set holds it": float(np.mean([held for held, _ in sets[collection, grade]])),
                    "set size": float(np.mean([size for _, size in sets[collection, grade]])),
                }
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    encoders = cohorts.fold_networks()
    if not encoders:
        sys.exit("nothing is trained yet: python -m benchmarks.cohorts")
    rows: list[dict[str, Any]] = []
    for fold, encoder in encoders.items():
        folder = results.CACHE / f"reference-{encoder.version}"
        if not (folder / "manifest.json").exists():
            made(encoder, folder)
        with open_index(folder, encoder) as index:
            # whoever has no fold was seen by all networks, and does not ask
            unseen = sorted({p for p in index.contents.patient_ids if not encoder.trained_on(p)})
            rows += asked(index, unseen)
        print(f"fold {fold}: {len(rows)} cases have asked", flush=True)
    table = table_of(rows, plausible(encoders))
    for name, row in table.items():
        print(name, row)
    path = results.save(
        "every_grade",
        table,
        data=f"reference cases, folds {', '.join(encoders)} of {len(cohorts.FOLDS)}",
        encoder={name: encoder.version for name, encoder in encoders.items()},
    )
    print(path.relative_to(results.ROOT))


if __name__ == "__main__":
    main()
