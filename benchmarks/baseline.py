"""What frozen ImageNet features reach, beside raw pixels, random weights and the predicted class.

Each real cohort is indexed as `cbir index` does, and judged as `cbir eval` does, on the folds as
given: a query ranks the cases (or images) of the other folds. Nothing is fitted.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.encoders import Pixels, random_network
from indexer.case_index import CaseIndex
from indexer.encoder import Encoder, load_encoder
from indexer.ingest import ingest
from indexer.labels import load_tables
from retrieval.baselines import shuffled_labels
from retrieval.crossmatch import CrossMatch
from retrieval.evaluation import evaluate
from retrieval.figures import Evaluation


@dataclass(frozen=True)
class Task:
    """A cohort and the question asked of it."""

    folder: str
    label: str
    by: str
    labels: str | None = None


TASKS = {
    "figshare, image": Task("figshare", "tumour", "scan", "slices.tsv"),
    "figshare, patient": Task("figshare", "tumour", "case", "slices.tsv"),
    "tcga-lgg, patient": Task("tcga-lgg", "who_grade", "case"),
    "brats-lesions, patient": Task("brats-lesions", "grade_group", "case", "lesions.tsv"),
}
CANARIES = 5


def indexed(task: Task, encoder: Encoder) -> CaseIndex:
    """The cohort's index by this encoder, made once and kept in the cache."""
    root = results.DATA / task.folder
    folder = results.CACHE / f"{task.folder}-{encoder.name}"
    if not (folder / "manifest.json").exists():
        CaseIndex.create(folder, encoder, keep_ids=True).close()
    index = CaseIndex.open(folder)
    report = ingest(index, [root], encoder, labels=load_tables(root / task.labels) if task.labels else ())
    print(
        f"{folder.name}: {report.indexed} indexed, {report.unchanged} unchanged, {len(report.failed)} failed"
    )
    return index


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """The part of an evaluation that the tables show."""
    whole = evaluation.to_dict()
    kept = ("queries", "patients", "metrics", "classes", "excluded", "split_patients")
    return {name: whole[name] for name in kept}


def combined(items: CrossMatch, how: str) -> CrossMatch:
    """The same items with slices combined otherwise than by their weighted mean."""
    if how == "late interaction":
        return replace(items, ranking=replace(items.ranking, rule="late-interaction"))
    unweighted = [
        replace(each, stacks=replace(each.stacks, weights=np.ones_like(each.stacks.weights)))
        for each in items.sequences
    ]
    return replace(items, sequences=unweighted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="index again instead of using the cache")
    if parser.parse_args().fresh:
        shutil.rmtree(results.CACHE, ignore_errors=True)
    encoders = {
        "frozen ImageNet": load_encoder("imagenet"),
        "random weights": random_network(),
        "raw pixels": Pixels(),
    }
    table: dict[str, dict[str, Any]] = {name: {} for name in TASKS}
    for name, task in TASKS.items():
        for method, encoder in encoders.items():
            with indexed(task, encoder) as index:
                items = CrossMatch.of(index.snapshot(), task.by).unordered
            ranking, by_class = items.evaluate(task.label, folds="fold")
            table[name][method] = figures(ranking)
            print(f"{name}, {method}: mAP {ranking.figures['mAP']['macro']}", flush=True)
            if method != "frozen ImageNet":
                continue
            table[name]["rank by predicted class"] = figures(by_class)
            for how in ("late interaction", "unweighted"):
                if task.by == "case":
                    other, _ = combined(items, how).evaluate(task.label, folds="fold")
                    table[name][f"slices combined: {how}"] = figures(other)
            precision = [
                evaluate(
                    items.similarities,
                    shuffled_labels(items.column(task.label), items.patients, seed),
                    items.patients,
                    folds=items.column("fold"),
                    bootstrap=0,
                ).figures["P@10"]["micro"]
                for seed in range(CANARIES)
            ]
            table[name]["canary"] = {
                "P@10": float(np.mean([p.value for p in precision])),
                "chance": float(np.mean([p.chance for p in precision])),
            }
    path = results.save(
        "baseline",
        table,
        data="figshare (official folds), tcga-lgg, brats-lesions: folds as given",
        encoder=encoders["frozen ImageNet"].version,
        bootstrap=1000,
        seed=0,
    )
    print(Path(path).relative_to(results.ROOT))


if __name__ == "__main__":
    main()
