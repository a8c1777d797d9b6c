"""Does an index notice a kind that it does not hold?

Each value of a label is left out in turn, with all its patients. What the others teach
(:mod:`retrieval.open_set`) judges both: how many patients of the left-out value get a vote all the same,
and how many of the known ones are refused. Nested, by patient: a fold is judged with what the questions of
the other folds taught, asked of the other folds' patients.

The networks of the folds (:mod:`benchmarks.cohorts`) have not seen who asks, but the kind that is left
out; frozen ImageNet features have seen neither; the shipped encoder was trained on all of them, so its
figures only say whether the method works at all.

    python -m benchmarks.open_set
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import cohorts, results
from benchmarks.calibration import COHORTS, filled, interval
from cbir import Index
from indexer.encoder import Encoder, TrainedEncoder, load_encoder
from retrieval.learning import leave_one_out
from retrieval.leave_one_out import LeaveOneOut, joined
from retrieval.open_set import OpenSet


def asked(cohort: str, encoders: Mapping[str, Encoder], *, seen: bool) -> dict[str, LeaveOneOut]:
    """What a cohort's patients ask, each fold's by its own network, or all by the one called ``""``.

    ``scan``: each scan alone; ``case``: those that ask together, with composites; ``region``: outlines.
    `seen` says that the network has been trained on who asks.
    """
    parts: dict[str, list[LeaveOneOut]] = {}
    for fold, encoder in encoders.items():
        with Index(filled(cohort, encoder), encoder) as index:
            contents = index.contents
            mine = [not fold or row.get("fold") == fold for row in contents.labels]
            taught = encoder.trained_on if isinstance(encoder, TrainedEncoder) else lambda patient: False
            known = np.array([taught(patient) for patient in contents.patient_ids])
            if known[mine].any() and not seen:
                raise SystemExit(f"{cohort}: the network of fold {fold} has seen that fold")
            found = leave_one_out(index.state, np.flatnonzero(mine).tolist(), np.random.default_rng(0))
        for kind, questions in found.items():
            parts.setdefault(kind, []).append(questions)
    whole = {kind: joined(several) for kind, several in parts.items()}
    together = [whole[kind] for kind in ("scan", "composite") if kind in whole]
    kinds = {"scan": whole["scan"], "case": joined(together)}
    return kinds | ({"region": whole["region"]} if "region" in whole else {})


def left_out(questions: LeaveOneOut, column: str, value: str, *, joint: bool) -> dict[str, Any] | None:
    """How many are refused of those who are known, and how many of a left-out value get an answer."""
    truth = np.array([row.get(column, "") for row in questions.labels], object)
    labels = np.array([row.get(column, "") for row in questions.gallery.labels], object)
    values = sorted(set(labels) - {"", value})
    of_question, of_item = (
        np.array([row.get("fold", "") for row in rows], object)
        for rows in (questions.labels, questions.gallery.labels)
    )
    known: list[tuple[NDArray[Any], ...]] = []
    unknown: list[tuple[NDArray[Any], ...]] = []
    for fold in sorted(set(of_question) - {""}):
        items = (of_item != fold) & np.isin(labels, values)
        rest = questions.part((of_question != fold) & np.isin(truth, values), items)
        learnt = OpenSet.of(rest, column, values, joint=joint)
        if learnt is None:
            return None
        for found, rows in ((known, np.isin(truth, values)), (unknown, truth == value)):
            part = questions.part((of_question == fold) & rows, items)
            if len(part.patients):
                scores, weights, who = learnt.scores(part, column, values, joint=joint)
                found.append((scores < learnt.edge, learnt.tells & (scores < learnt.lowest), weights, who))
    (edge, refused, by, who), (far, silent, by_left_out, left) = (
        tuple(np.concatenate(column) for column in zip(*parts, strict=True)) for parts in (known, unknown)
    )
    return {
        "known": len(np.unique(who)),
        "left out": len(np.unique(left)),
        "refused": interval(refused, by, who),
        "answered": interval(~silent, by_left_out, left),
        "beyond the edge": interval(edge, by, who),
        "within the edge": interval(~far, by_left_out, left),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    folds = cohorts.fold_networks()
    shipped = load_encoder("cbir")
    methods: dict[str, tuple[Mapping[str, Encoder], bool]] = {
        **({"networks of the folds": (folds, False)} if folds else {}),
        "frozen ImageNet": ({"": load_encoder("imagenet")}, False),
        "shipped (in-sample)": ({"": shipped}, True),
    }
    table: dict[str, Any] = {}
    for method, (encoders, seen) in methods.items():
        for cohort, columns in COHORTS.items():
            for kind, questions in asked(cohort, encoders, seen=seen).items():
                for column in columns:
                    for value in sorted({row[column] for row in questions.gallery.labels if row.get(column)}):
                        found = left_out(questions, column, value, joint=kind == "case")
                        if found:
                            name = f"{cohort}, {column}, {kind}"
                            table.setdefault(method, {}).setdefault(name, {})[value] = found
                            told = {w: round(v["value"], 3) for w, v in found.items() if isinstance(v, dict)}
                            print(method, name, "without", value, told, flush=True)
    path = results.save(
        "open_set",
        table,
        data="figshare, tcga-lgg, brats-lesions; folds as given",
        encoder={
            f"{method} {fold}".strip(): e.version
            for method, (of, _) in methods.items()
            for fold, e in of.items()
        },
        seed=0,
    )
    print(path.relative_to(results.ROOT))


if __name__ == "__main__":
    main()
