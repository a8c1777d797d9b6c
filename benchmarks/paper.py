"""The pipeline this project starts from, under a split by slice and under a split by patient.

D. K. Sudhish, L. R. Nair, S. Shailesh, "Content-based image retrieval for medical diagnosis using
fuzzy clustering and deep learning", Biomedical Signal Processing and Control, 2024,
doi:10.1016/j.bspc.2023.105620.

Published (title, keywords and abstract; neither the full text nor code was at hand): features of
pre-trained CNNs, "multi-level gain-based feature selection", an index of the features by clustering,
glioma grades on BraTS 2018 and 2020, five-fold cross-validation, mean average precision 0.9815 and
P@10 0.9762.

Presumed:

- folds of slices, not of patients: the abstract does not say. A query then finds the neighbouring
  slices of its own patient in the database;
- one network, EfficientNet-Lite0 as it comes from ImageNet, on the slices as they are;
- gain is the information gain about the label of a feature cut into tenths; a level keeps the
  features that reach the mean gain of those that the level before has left, and there are two levels;
- the clusters are those of scikit-fuzzy's c-means on the selected features, √n of them, with a
  fuzzifier below the collapse limit (:mod:`indexer.partition`; the textbook's 2 lies above it). A
  slice is filed in the cluster of its highest membership;
- a query looks into its clusters in the order of its memberships, and ranks inside by cosine. The
  nearest cluster answers first, and yet average precision has a full ranking to judge;
- which "mean average precision". Both are measured: Cheng's (full ranking, divided by all relevant
  slices), and that of the ten retrieved, divided by the hits among them, which is far higher. That
  the published mAP lies above the published P@10 suggests the latter.

In both splits selection and clusters are fitted on the database alone, anew for each fold, and no
setting was chosen by its result.

    nice python -m benchmarks.paper          a few minutes of one core
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import documents, results
from benchmarks.baseline import TASKS, indexed
from indexer.case_index import Snapshot
from indexer.encoder import load_encoder
from indexer.partition import Partition, Probing
from retrieval.baselines import shuffled_labels
from retrieval.evaluation import evaluate
from retrieval.metrics import average_precision

COHORTS = {
    "figshare": (TASKS["figshare, image"], None),
    "brats-lesions": (TASKS["brats-lesions, patient"], "t1ce"),
}
"""Cohorts and labels of the baseline, and the sequence whose slices are taken."""
MIDDLE = 8
"""Slices a scan, from its middle: neighbours, 1 to 2 mm apart in the lesion crops."""
OTHERWISE = (2, 4, 8, 16)
"""Slices a scan to compare, where scans have so many."""
FOLDS = 5
LEVELS = 2
BINS = 10
K = 10
RETRIEVED = f"AP of the {K} retrieved"
BOOTSTRAP = 1000
CANARIES = 3
PUBLISHED = {f"P@{K}": 0.9762, "mAP": 0.9815}

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Scores = NDArray[np.floating[Any]]
Method = Callable[["Slices", "Slices"], Scores]
"""From a database and queries to similarities, shape (queries, database)."""


@dataclass(frozen=True)
class Slices:
    """Labelled slices.

    Attributes
    ----------
    features : ndarray of float32, shape (n, d)
        Unit vectors.
    labels, patients, folds : ndarray of str, shape (n,)
        The folds keep patients together.
    """

    features: Floats
    labels: NDArray[np.str_]
    patients: NDArray[np.str_]
    folds: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> Slices:
        return Slices(self.features[rows], self.labels[rows], self.patients[rows], self.folds[rows])

    @classmethod
    def of(cls, snapshot: Snapshot, label: str, sequence: str | None, middle: int = MIDDLE) -> Slices:
        """The `middle` slices of each scan of one sequence that has a label and a fold."""
        contents = snapshot.contents
        case = contents.scan_case[contents.slice_scan]
        asked = np.array([s == sequence for s in contents.scan_sequence], bool)
        known = np.array([{label, "fold"} <= row.keys() for row in contents.labels], bool)
        usable = (contents.slice_view == 0) & asked[contents.slice_scan] & known[case]
        rows = np.flatnonzero(usable)
        rows = rows[np.lexsort((contents.slice_position[rows], contents.slice_scan[rows]))]
        _, starts = np.unique(contents.slice_scan[rows], return_index=True)
        scans = np.split(rows, starts[1:])
        skipped = [max(0, (len(scan) - middle) // 2) for scan in scans]
        rows = np.concatenate([s[skip : skip + middle] for s, skip in zip(scans, skipped, strict=True)])
        return cls(
            features=snapshot.vectors.gather(contents.slice_ids[rows]),
            labels=np.array([contents.labels[c][label] for c in case[rows]]),
            patients=np.array([contents.patient_ids[c] for c in case[rows]]),
            folds=np.array([contents.labels[c]["fold"] for c in case[rows]]),
        )

    def by_slice(self, seed: int = 0) -> Slices:
        """The same with random folds of equal size, which do not keep patients together."""
        order = np.random.default_rng(seed).permutation(len(self))
        return replace(self, folds=(order % FOLDS).astype(str))


def binned(features: Floats) -> Ints:
    """The tenth of its column that each value lies in; equal values share a bin.

    Parameters
    ----------
    features : ndarray, shape (n, d)

    Returns
    -------
    ndarray of int, shape (n, d)
        From 0 to ``BINS - 1``.
    """
    edges = np.quantile(features, np.arange(1, BINS) / BINS, axis=0)
    return np.asarray((features > edges[:, None]).sum(axis=0), np.int64)


def information_gain(bins: Ints, target: Ints) -> NDArray[np.float64]:
    """How many bits each binned feature tells about a target.

    IG(Y; X) = H(Y) − H(Y | X) = Σ p(x, y) log2(p(x, y) / (p(x) p(y))): Quinlan, "Induction of decision
    trees", Machine Learning 1, 1986.

    Parameters
    ----------
    bins : ndarray of int, shape (n, d)
        Below :data:`BINS`.
    target : ndarray of int, shape (n,)

    Returns
    -------
    ndarray, shape (d,)
    """
    is_bin = (bins[:, :, None] == np.arange(BINS)).reshape(len(bins), -1)
    is_class = target[:, None] == np.unique(target)
    counts = is_bin.T.astype(np.float32) @ is_class.astype(np.float32)
    joint = counts.reshape(bins.shape[1], BINS, -1).astype(np.float64) / len(bins)
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=2, keepdims=True)
    terms = joint * np.log2(np.where(joint > 0, joint / np.where(apart > 0, apart, 1), 1))
    return np.asarray(terms.sum(axis=(1, 2)))


def selected(database: Slices, levels: int) -> Ints:
    """Columns of the features that are left after some levels of selection.

    A level keeps those that reach the mean gain of what it is given.
    """
    gain = information_gain(binned(database.features), codes(database.labels))
    columns = np.arange(len(gain))
    for _ in range(levels):
        columns = columns[gain[columns] >= gain[columns].mean()]
    return columns


def nearest(levels: int) -> Method:
    """Rank by cosine of the features that so many levels of selection leave."""

    def scores(database: Slices, queries: Slices) -> Scores:
        columns = selected(database, levels)
        return np.asarray(unit(queries.features[:, columns]) @ unit(database.features[:, columns]).T)

    return scores


def clusters(n: int) -> int:
    """The square root of the number of vectors, 16 to 256."""
    return int(np.clip(round(np.sqrt(n)), 16, 256))


def clustered(database: Slices, queries: Slices) -> Scores:
    """The pipeline: rank by the query's membership in a slice's cluster, then by cosine."""
    columns = selected(database, LEVELS)
    x, q = unit(database.features[:, columns]), unit(queries.features[:, columns])
    partition = Partition.fit(x, lists=clusters(len(x)))
    every = len(partition.centroids)
    partition.probings = (Probing(uncovered=0, floor=every, ceiling=every),)
    place = np.argsort(partition.probes_for(q), axis=1)  # of each cluster in each query's order
    # cosines lie in −1 … 1, so a step of 3 keeps the clusters apart
    return np.asarray((q @ x.T).astype(np.float64) - 3.0 * place[:, partition.lists_for(x)[:, 0]])


ALL, PIPELINE = "all features, nearest", "both levels, fuzzy clusters"
METHODS: dict[str, Method] = {
    ALL: nearest(0),
    "first level, nearest": nearest(1),
    "both levels, nearest": nearest(LEVELS),
    PIPELINE: clustered,
}


def ranked(slices: Slices, method: Method) -> Scores:
    """Similarities of all slices, each fold's to the other folds; −inf inside a fold.

    Returns
    -------
    ndarray, shape (n, n)
    """
    scores = np.full((len(slices), len(slices)), -np.inf)
    for fold in np.unique(slices.folds):
        asks = slices.folds == fold
        scores[np.ix_(asks, ~asks)] = method(slices[~asks], slices[asks])
    return scores


def judged(slices: Slices, scores: Scores, bootstrap: int = BOOTSTRAP) -> dict[str, Any]:
    """P@10, mAP, AP of the ten retrieved, and how many of the ten are the query's own patient's.

    Only the folds decide which slices may answer: where they split a patient, its slices may answer
    each other. Intervals resample patients in any case.

    Parameters
    ----------
    slices : Slices
    scores : ndarray, shape (n, n)
        As from :func:`ranked`.
    bootstrap : int
        Resamples; 0 for no intervals.

    Returns
    -------
    dict
        ``metrics`` by metric and average, as the baseline's results, and ``own_patient``.
    """
    each_its_own = [str(i) for i in range(len(slices))]
    evaluation = evaluate(
        scores, list(slices.labels), each_its_own, folds=list(slices.folds), ks=(K,), bootstrap=0
    )
    asked = evaluation.queries
    top = np.argsort(-scores[asked], axis=1, kind="stable")[:, :K]
    reachable = slices.folds != slices.folds[asked, None]
    listed = np.take_along_axis(reachable, top, axis=1)  # fewer than ten answers leave places empty
    hits = (slices.labels[top] == slices.labels[asked, None]) & listed
    same = slices.labels == slices.labels[asked, None]
    share = (reachable & same).sum(axis=1) / reachable.sum(axis=1)
    values = {
        f"P@{K}": evaluation.values[f"P@{K}"],
        "mAP": evaluation.values["mAP"],
        RETRIEVED: np.nan_to_num(average_precision(hits)),  # no hit: 0
    }
    chance = {m: {a: f.chance for a, f in by.items()} for m, by in evaluation.figures.items()}
    queries = slices[asked]
    once = np.ones((1, len(asked)))
    chance[RETRIEVED] = {
        a: float(v[0]) for a, v in means(chance_retrieved(share), queries.labels, once).items()
    }
    _, patient = np.unique(queries.patients, return_inverse=True)
    n = int(patient.max()) + 1
    drawn = np.random.default_rng(0).integers(n, size=(bootstrap, n))
    weights = np.array([np.bincount(d, minlength=n)[patient] for d in drawn]).reshape(-1, len(asked))
    metrics: dict[str, Any] = {}
    for metric, of in values.items():
        point, resampled = means(of, queries.labels, once), means(of, queries.labels, weights)
        metrics[metric] = {
            average: {
                "value": float(point[average][0]),
                "low": float(np.nanpercentile(resampled[average], 2.5)) if bootstrap else None,
                "high": float(np.nanpercentile(resampled[average], 97.5)) if bootstrap else None,
                "chance": chance[metric][average],
            }
            for average in point
        }
    own = (slices.patients[top] == queries.patients[:, None]) & listed
    return {"metrics": metrics, "own_patient": float(own.sum() / listed.sum())}


def means(
    values: NDArray[np.float64], labels: NDArray[np.str_], weights: NDArray[Any]
) -> dict[str, NDArray[np.float64]]:
    """Weighted means over queries (micro), and over the classes' means (macro).

    Parameters
    ----------
    values, labels : ndarray, shape (q,)
    weights : ndarray, shape (b, q)

    Returns
    -------
    dict of str to ndarray, shape (b,)
        NaN in macro where a class has no weight.
    """

    def mean(of: NDArray[np.bool_]) -> NDArray[np.float64]:
        total = weights[:, of].sum(axis=1)
        return np.asarray(weights[:, of] @ values[of] / np.where(total > 0, total, np.nan))

    classes = [mean(labels == label) for label in np.unique(labels)]
    return {"micro": mean(np.ones(len(labels), bool)), "macro": np.mean(classes, axis=0)}


def chance_retrieved(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a random order scores in the average precision of the ten retrieved.

    The mean over all patterns of ten hits and misses, each as likely as independent draws make it
    (the databases are far larger than ten).

    Parameters
    ----------
    share : ndarray, shape (q,)
        Of the slices in reach that are relevant.
    """
    patterns = np.array(list(product((0, 1), repeat=K)))
    scored = np.nan_to_num(average_precision(patterns))
    found = patterns.sum(axis=1)
    likely = share[:, None] ** found * (1 - share[:, None]) ** (K - found)
    return np.asarray(likely @ scored)


def canary(slices: Slices, method: Method) -> dict[str, float]:
    """P@10 with labels dealt anew among patients, everything fitted again, beside chance."""
    found = []
    for seed in range(CANARIES):
        dealt = np.array(shuffled_labels(list(slices.labels), list(slices.patients), seed))
        shuffled = replace(slices, labels=dealt)
        found.append(judged(shuffled, ranked(shuffled, method), bootstrap=0)["metrics"][f"P@{K}"]["micro"])
    return {name: float(np.mean([f[name] for f in found])) for name in ("value", "chance")}


def codes(names: NDArray[Any]) -> Ints:
    """Each distinct name as a number."""
    return np.asarray(np.unique(names, return_inverse=True)[1], np.int64)


def unit(x: Floats) -> Floats:
    """Rows of length 1; a row of zeros stays as it is."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(lengths > 0, lengths, 1), np.float32)


def splits(slices: Slices) -> dict[str, Slices]:
    """The slices with both kinds of folds."""
    return {"by slice": slices.by_slice(), "by patient": slices}


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    encoder = load_encoder("imagenet")
    table: dict[str, Any] = {}
    for name, (task, sequence) in COHORTS.items():
        with indexed(task, encoder) as index:
            snapshot = index.snapshot()
        slices = Slices.of(snapshot, task.label, sequence)
        fitted_on = slices[slices.folds != np.unique(slices.folds)[0]]
        table[name] = {
            "label": task.label,
            "slices": len(slices),
            "patients": len(np.unique(slices.patients)),
            "features": [len(selected(fitted_on, level)) for level in range(LEVELS + 1)],
            "methods": {},
            "canary": {},
            "slices a scan": {},
        }
        for split, folded in splits(slices).items():
            table[name]["methods"][split] = {
                m: judged(folded, ranked(folded, of)) for m, of in METHODS.items()
            }
            table[name]["canary"][split] = {m: canary(folded, METHODS[m]) for m in (ALL, PIPELINE)}
            print(f"{name}, {split}: done", flush=True)
        for middle in OTHERWISE if sequence else ():
            other = splits(Slices.of(snapshot, task.label, sequence, middle))
            table[name]["slices a scan"][middle] = {
                split: judged(folded, ranked(folded, METHODS[ALL])) for split, folded in other.items()
            }
    path = results.save(
        "paper",
        {"published": PUBLISHED, "cohorts": table},
        data=f"figshare (official folds), brats-lesions (folds as given, {MIDDLE} middle slices a t1ce scan)",
        encoder=encoder.version,
        bootstrap=BOOTSTRAP,
        seed=0,
    )
    print(documents.paper())
    print(path.relative_to(results.ROOT))


if __name__ == "__main__":
    main()
