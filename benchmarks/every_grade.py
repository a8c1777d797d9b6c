"""Does a glioma of any WHO grade meet its like among the reference cases?

The reference cases as the networks of the folds see them (:mod:`benchmarks.reference`): the cases of the
patients whom a network has not seen ask those whom it has, as `cbir query` asks, with all of their scans.
Counted are the hits of the right grade among ten, and the grade that the vote names first. A hit without a
WHO grade (other tumours; BraTS tells some of its patients only HGG or LGG) counts as a wrong one. And the
sets of plausible grades, by what the patients of the other folds taught: whether they hold the right one.

Whole heads of grade 4 and those of 2 and 3 are of two collections. Whether a network knows the collection and
not the grade shows where there is nothing to see: the planes of a head without a lesion ask, too, and by
them grade 4 should not be told.

    python -m benchmarks.every_grade
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import cohorts, results
from benchmarks.calibration import near_sets
from benchmarks.reference import COLLECTIONS, asked_by, made
from cbir import Index, open_index
from indexer import discovery, reference
from indexer.encoder import TrainedEncoder
from indexer.preprocess import Preprocessing, prepared
from indexer.scan import ScanRef
from indexer.sequences import CHANNELS, is_composite
from retrieval.calibration import Fit
from retrieval.conformal import tempered
from retrieval.evidence import vote
from retrieval.leave_one_out import joined, votes
from retrieval.state import WHOLE, QueryScan, first_of_each

LABEL, GRADES = "who_grade", ("2", "3", "4")
K = 10
HEADS = {"TCGA-GBM": True, "TCGA-LGG": False}
"""Collections of whole heads, and whether they are of grade 4."""
FREE = 0.1
"""Where nobody outlined a head, planes with less than this chance of a lesion are taken to show none."""
RESAMPLES = 1000


def asked(index: Index, unseen: list[str]) -> list[dict[str, Any]]:
    """What each case of a known grade of these patients meets: all others of them are left out."""
    contents = index.contents
    rows, shown = [], contents.scan_sequence
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
                "sequences": sorted(
                    str(s) for s, c in zip(shown, contents.scan_case, strict=True) if c == case
                ),
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


def by_planes(index: Index, encoder: TrainedEncoder, unseen: list[str]) -> list[dict[str, Any]]:
    """What the vote gives grade 4, for each sequence of an unseen whole head: by its planes with a lesion
    and by those without."""
    known, how = set(unseen), Preprocessing.of(encoder)
    rows = []
    for collection in (one for one in COLLECTIONS if one.name in HEADS):
        for source in discovery.discover(collection.root, collection.tables()).sources:
            for scan in collection.read(source) if source.patient_id in known else ():
                ready = prepared(dataclasses.replace(scan, region=None), how)
                found = encoder.analyse(ready.pixels)
                free = found.weights < FREE
                if scan.region is not None:
                    free = ~np.moveaxis(scan.region, scan.axis, 0).any((1, 2))[ready.positions]
                alike = np.ones_like(found.weights)
                for planes, mine, weights in (("with", ~free, found.weights), ("without", free, alike)):
                    if mine.any():
                        asking = QueryScan(
                            ScanRef(str(source.path), 0),
                            scan.sequence,
                            ready.positions[mine],
                            weights[mine],
                            found.embeddings[mine],
                            math.nan,
                        )
                        said = says_4(index, asking, unseen)
                        rows.append(
                            {"patient": source.patient_id, "planes": planes, "says 4": said}
                            | {"is 4": HEADS[collection.name]}
                        )
    return rows


def alone(index: Index, unseen: list[str]) -> list[dict[str, Any]]:
    """What the vote gives grade 4, for each single sequence of the unseen cases."""
    contents = index.contents
    sources = dict(zip(contents.scan_case.tolist(), contents.scan_source, strict=True))
    cases = [case for case, patient in enumerate(contents.patient_ids) if patient in unseen]
    rows = []
    for case, scans in index.state.scans_of(cases).items():
        grade = contents.labels[case].get(LABEL)
        for _, scan in scans:
            if grade in GRADES and not is_composite(scan.sequence):
                collection = collection_of(sources[case])
                rows.append(
                    {
                        "patient": contents.patient_ids[case],
                        "of": "whole heads" if collection in HEADS else collection,
                        "sequence": str(scan.sequence),
                        "is 4": grade == "4",
                        "says 4": says_4(index, scan, unseen),
                    }
                )
    return rows


def told_alone(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By what asks and its sequence, the area under the curve of grade 4 against 2 and 3."""
    table: dict[str, Any] = {}
    for of in dict.fromkeys(row["of"] for row in rows):
        for sequence in CHANNELS:
            mine = [row for row in rows if (row["of"], row["sequence"]) == (of, sequence)]
            truth, said = (np.array([row[name] for row in mine]) for name in ("is 4", "says 4"))
            if len(set(truth.tolist())) == 2:
                table.setdefault(of, {})[sequence] = {
                    "scans of 4": int(truth.sum()),
                    "scans of 2 and 3": int((~truth).sum()),
                    "area": area(truth, said, np.ones(len(said))),
                }
    return table


def says_4(index: Index, asking: QueryScan, unseen: list[str]) -> float:
    """The vote for grade 4 of the patients whom the network has seen."""
    contents, patients = index.contents, index.contents.patient_ids
    seen = ~np.isin(np.array(patients), unseen)
    ranked = index.state.rank([asking], WHOLE, seen)
    voters = first_of_each([patients[case] for case in ranked.cases])
    values = [contents.labels[ranked.cases[place]].get(LABEL) for place in voters]
    counts = index.state.census.patients.classes(unseen)[LABEL]
    prior = {value: count / sum(counts.values()) for value, count in counts.items()}
    return vote(ranked.scores[voters], values, prior).probabilities["4"]


def apart(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How surely the two kinds of heads are told apart: the area under the curve, with its interval."""
    table = {}
    for planes in ("with", "without"):
        mine = [row for row in rows if row["planes"] == planes]
        truth, said = (np.array([row[name] for row in mine]) for name in ("is 4", "says 4"))
        who = np.array([row["patient"] for row in mine])
        areas = []
        dice, persons = np.random.default_rng(0), np.unique(who)
        for _ in range(RESAMPLES):
            drawn = Counter(dice.choice(persons, len(persons)).tolist())
            areas.append(area(truth, said, np.array([drawn[patient] for patient in who], float)))
        low, high = np.nanpercentile(areas, (2.5, 97.5))
        table[f"planes {planes} a lesion"] = {
            "scans of 4": int(truth.sum()),
            "scans of 2 and 3": int((~truth).sum()),
            "area": area(truth, said, np.ones(len(said))),
            "low": float(low),
            "high": float(high),
            "says 4 of 4": float(said[truth].mean()),
            "says 4 of 2 and 3": float(said[~truth].mean()),
        }
    return table


def area(truth: NDArray[np.bool_], said: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Chance that one of the true is given more than one of the others, where equals count a half.

    Examples
    --------
    >>> area(np.array([True, True, False]), np.array([0.9, 0.4, 0.4]), np.ones(3))
    0.75
    """
    above = (said[truth][:, None] > said[~truth]) + 0.5 * (said[truth][:, None] == said[~truth])
    pairs = weights[truth][:, None] * weights[~truth]
    return float((above * pairs).sum() / pairs.sum()) if pairs.sum() else math.nan


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


def by_sequence(rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Of whole heads of grade 4, which are of one sequence each: votes naming 4 first, and how many asked."""
    found: dict[str, list[int]] = {}
    for row in rows:
        if HEADS.get(row["collection"]):
            right = found.setdefault("+".join(row["sequences"]), [0, 0])
            right[0] += row["first"] == "4"
            right[1] += 1
    return dict(sorted(found.items()))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    encoders = cohorts.fold_networks()
    if not encoders:
        sys.exit("nothing is trained yet: python -m benchmarks.cohorts")
    rows: list[dict[str, Any]] = []
    planes: list[dict[str, Any]] = []
    single: list[dict[str, Any]] = []
    for fold, encoder in encoders.items():
        folder = results.CACHE / f"reference-{encoder.version}"
        if not (folder / "manifest.json").exists():
            made(encoder, folder)
        with open_index(folder, encoder) as index:
            # whoever has no fold was seen by all networks, and does not ask
            unseen = sorted({p for p in index.contents.patient_ids if not encoder.trained_on(p)})
            rows += asked(index, unseen)
            planes += by_planes(index, encoder, unseen)
            single += alone(index, unseen)
        print(f"fold {fold}: {len(rows)} cases have asked", flush=True)
    table = table_of(rows, plausible(encoders))
    for name, row in table.items():
        print(name, row)
    heads = apart(planes)
    print(heads)
    path = results.save(
        "every_grade",
        {"cases": table, "heads": heads, "by sequence": by_sequence(rows), "alone": told_alone(single)},
        data=f"reference cases, folds {', '.join(encoders)} of {len(cohorts.FOLDS)}",
        encoder={name: encoder.version for name, encoder in encoders.items()},
    )
    print(path.relative_to(results.ROOT))


if __name__ == "__main__":
    main()
