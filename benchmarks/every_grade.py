"""Does a glioma of any WHO grade meet its like among the reference cases?

The reference cases as the networks of the folds see them (:mod:`benchmarks.reference`): the cases of the
patients whom a network has not seen ask those whom it has, as `cbir query` asks, with all of their scans.
Counted are the hits of the right grade among ten, and the grade that the vote names first. A hit without a
WHO grade (other tumours; BraTS tells some of its patients only HGG or LGG) counts as a wrong one.

    python -m benchmarks.every_grade
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from benchmarks import cohorts, results
from benchmarks.reference import COLLECTIONS, made
from cbir import Index, open_index
from indexer import reference

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
                "collection": sources[case].removeprefix(reference.PREFIX).partition("/")[0],
                "patient": patient,
                "grade": grade,
                "hits": [hit.labels.get(LABEL, "") for hit in answer.hits],
                "first": "" if evidence.abstain else said,
                "prior": evidence.prior,
            }
        )
    return rows


def table_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By collection and grade: cases, hits of each grade among ten, votes naming each grade first."""
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
    table = table_of(rows)
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
