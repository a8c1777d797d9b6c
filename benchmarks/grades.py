"""Retrieval of glioma grades: whole stacks of TCGA-LGG, and lesions of BraTS, on the folds as given.

A fold's cases ask those of the other folds. Each fold has an index of its own, filled as `cbir index`
does by the network that was trained without that fold's persons (:mod:`benchmarks.cohorts`), and
ranked as `cbir query` ranks. Of BraTS every fourth plane of a lesion's crop is taken, as neighbours
say the same. Beside it stand ranks by the lesion's size alone, by the predicted class, and what is
in `benchmarks/results/baseline.json`.

    python -m benchmarks.grades
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from benchmarks import cohorts, results
from benchmarks.baseline import CANARIES, combined, figures
from indexer import discovery, readers
from indexer.case_index import CaseIndex
from indexer.encoder import TrainedEncoder
from indexer.ingest import ingest
from indexer.labels import load_tables
from indexer.sequences import COMPOSITE
from retrieval.agreement import with_agreement
from retrieval.baselines import predicted_class_similarity, shuffled_labels
from retrieval.crossmatch import CrossMatch
from retrieval.evaluation import evaluate
from retrieval.items import Similarity

EVERY = 4
"""Planes of a BraTS lesion's crop for each that is indexed."""


@dataclass(frozen=True)
class Task:
    """A cohort and the grades to find in it."""

    folder: str
    table: str
    labels: tuple[str, ...]


TASKS = {
    "tcga-lgg": Task("tcga-lgg", "participants.tsv", ("who_grade",)),
    "brats-lesions": Task("brats-lesions", "lesions.tsv", ("grade_group", "who_grade")),
}


def root(task: Task) -> Path:
    """The folder to index: the cohort itself, or a copy of BraTS with every fourth plane."""
    source = results.DATA / task.folder
    if task.folder != "brats-lesions":
        return source
    copy = results.CACHE / f"{task.folder}-every-{EVERY}"
    copy.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        target = copy / path.name
        if target.exists():
            continue
        if path.suffix == ".gz":
            image = nib.load(path)
            thin = image.slicer[:, :, EVERY // 2 :: EVERY]  # type: ignore[attr-defined]
            nib.save(thin, target)
        elif path.is_file():
            target.write_bytes(path.read_bytes())
    return copy


def items_of(task: Task, encoder: TrainedEncoder) -> CrossMatch:
    """A cohort's cases as a fold's network sees them; the index is kept in the cache."""
    folder = results.CACHE / f"{task.folder}-{encoder.version}"
    if not (folder / "manifest.json").exists():
        CaseIndex.create(folder, encoder, keep_ids=True).close()
    with CaseIndex.open(folder) as index:
        place = root(task)
        report = ingest(index, [place], encoder, labels=load_tables(place / task.table))
        print(f"{folder.name}: {report.indexed} indexed, {len(report.failed)} failed", flush=True)
        return CrossMatch.of(index.snapshot())


@dataclass(frozen=True)
class Folds:
    """The cases of a cohort, each fold's embedded by its own network."""

    items: dict[str, CrossMatch]
    fold: list[str | None]

    @classmethod
    def of(cls, task: Task, encoders: dict[str, TrainedEncoder]) -> Folds:
        """Index a cohort by all networks.

        Raises
        ------
        SystemExit
            If a network has seen a patient that is to ask.
        """
        items = {fold: items_of(task, encoder) for fold, encoder in encoders.items()}
        first = next(iter(items.values()))
        found = cls(items, first.column("fold"))
        for fold, of_fold in items.items():
            if of_fold.names != first.names or of_fold.in_sample[found.asks([fold])].any():
                sys.exit(f"{task.folder}: the network of fold {fold} has seen that fold, or other cases")
        return found

    @property
    def cases(self) -> CrossMatch:
        """Names, patients and labels, which are the same in all."""
        return next(iter(self.items.values()))

    def asks(self, folds: Sequence[str] | None = None) -> NDArray[np.bool_]:
        """The cases of some folds, default of all that have a network."""
        return np.isin(np.array([f or "" for f in self.fold]), list(folds or self.items))

    def of_sequences(self, names: Sequence[str | None]) -> Folds:
        """The cases as only some of their sequences show them."""
        items = {
            fold: replace(of_fold, sequences=[s for s in of_fold.sequences if s.name in names])
            for fold, of_fold in self.items.items()
        }
        return Folds(items, self.fold)

    @property
    def unordered(self) -> Folds:
        """The same by similarity alone."""
        return Folds({fold: items.unordered for fold, items in self.items.items()}, self.fold)

    def similarity(
        self,
        how: str | None = None,
        agreed: Callable[[NDArray[np.int64]], NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        """Rows by the networks of their folds; see :meth:`CrossMatch.similarity`."""
        n = len(self.fold)
        table = np.full((n, n), -np.inf, np.float32)
        for fold, items in self.items.items():
            rows = np.flatnonzero(self.asks([fold]))
            table[rows] = (combined(items, how) if how else items).similarity(rows, agreed)
        return table

    def ordered(
        self, how: str | None = None, columns: Mapping[str, Sequence[str | None]] | None = None
    ) -> Similarity:
        """As hits are ordered, where these columns are voted on: default those of the index."""
        cases = self.cases
        voted = cases.classes if columns is None else columns
        agreed = with_agreement(self.unordered.similarity(how), voted, cases.patients, folds=self.fold)
        return self.similarity(how, agreed)


def outvoted(
    similarity: Similarity, labels: Sequence[str | None], folds: Folds, asks: NDArray[np.bool_], k: int = 10
) -> NDArray[np.bool_]:
    """Cases whose label has no majority among the `k` labelled patients of other folds that rank first."""
    table = similarity if isinstance(similarity, np.ndarray) else similarity(np.arange(len(labels)))
    fold, label = np.array([f or "" for f in folds.fold]), np.array([one or "" for one in labels])
    scores = np.where((fold[:, None] != fold) & (label != ""), table, -np.inf)
    first = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return asks & (label != "") & ((label[first] == label[:, None]).mean(1) <= 0.5)


def sizes(task: Task, names: Sequence[str]) -> NDArray[np.float32]:
    """Similarity by nothing but the size of the lesion: minus the distance of logarithms."""
    volume = dict.fromkeys(names, 0.0)
    source = results.DATA / task.folder
    for found in discovery.discover(source, load_tables(source / task.table)).sources:
        scan = readers.read(found)[0]
        inside = scan.region if scan.region is not None else scan.voxels != 0
        spacing = scan.spacing or (1.0, 1.0, 1.0)
        volume[found.patient_id] += float(np.count_nonzero(inside)) * float(np.prod(spacing))
    logs = np.log1p(np.array([volume[name.split("/")[0]] for name in names]))
    return np.asarray(-np.abs(logs[:, None] - logs), np.float32)


def judged(task: Task, label: str, folds: Folds) -> dict[str, Any]:
    """All figures of one label."""
    cases = folds.cases
    labels = cases.column(label)
    common: dict[str, Any] = {"label": label, "ks": (1, 5, 10), "folds": folds.fold}
    similarity = folds.ordered()
    alone = folds.unordered.similarity()
    rankings = {
        "trained": similarity,
        "by similarity alone": alone,
        "rank by predicted class": predicted_class_similarity(
            alone, labels, cases.patients, folds=folds.fold
        ),
        "slices combined: late interaction": folds.ordered("late interaction"),
        "slices combined: unweighted": folds.ordered("unweighted"),
        "size of the lesion": sizes(task, cases.names),
    }
    names = [sequence.name for sequence in folds.cases.sequences]
    rankings["without composites"] = folds.of_sequences([n for n in names if n != COMPOSITE]).ordered()
    for name in names:
        rankings[f"{name} alone"] = folds.of_sequences([name]).ordered()
    asks = folds.asks()
    table: dict[str, Any] = {
        name: figures(evaluate(ranking, labels, cases.patients, queries=asks, **common))
        for name, ranking in rankings.items()
    }
    table["by fold"] = {
        fold: {
            m: f["macro"].value
            for m, f in evaluate(
                similarity, labels, cases.patients, queries=folds.asks([fold]), bootstrap=0, **common
            ).figures.items()
        }
        for fold in folds.items
    }
    seen = ["trained", "without composites", *(f"{name} alone" for name in names)]
    wrong = [outvoted(rankings[name], labels, folds, asks) for name in seen]
    never = np.flatnonzero(np.all(wrong, axis=0))
    table["never right"] = {
        "patients": {cases.patients[i]: labels[i] for i in never},
        "rankings": seen,
        "asked": int(np.count_nonzero(asks & np.array([bool(label) for label in labels]))),
    }
    dealt = [shuffled_labels(labels, cases.patients, seed) for seed in range(CANARIES)]
    canary = [
        evaluate(
            folds.ordered(columns={label: others}),
            others,
            cases.patients,
            queries=asks,
            folds=folds.fold,
            bootstrap=0,
        ).figures["P@10"]["micro"]
        for others in dealt
    ]
    table["canary"] = {
        "P@10": float(np.mean([p.value for p in canary])),
        "chance": float(np.mean([p.chance for p in canary])),
    }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", choices=TASKS, help="only this cohort")
    only = parser.parse_args().task
    encoders = cohorts.fold_networks()
    if not encoders:
        sys.exit("nothing is trained yet: python -m benchmarks.cohorts")
    table: dict[str, Any] = {}
    for name, task in TASKS.items():
        if only in (None, name):
            folds = Folds.of(task, encoders)
            for label in task.labels:
                table[f"{name}, {label}"] = found = judged(task, label, folds)
                for method, figure in found.items():
                    if "metrics" in figure:
                        shown = {m: figure["metrics"][m]["macro"]["value"] for m in ("P@5", "P@10", "mAP")}
                        print(f"{name} {label}, {method}:", {m: round(v, 4) for m, v in shown.items()})
                print(found["by fold"], found["canary"])
    if not only:
        path = results.save(
            "grades",
            table,
            data=f"tcga-lgg and brats-lesions, folds {', '.join(encoders)} of {len(cohorts.FOLDS)}",
            encoder={name: encoder.version for name, encoder in encoders.items()},
            recipe=next(iter(encoders.values())).about["recipe"],
            bootstrap=1000,
            seed=0,
        )
        print(path.relative_to(results.ROOT))


if __name__ == "__main__":
    main()
