"""Do the pictures of TCGA-LGG tell grade 2 from 3 at all? A plain classifier that is given the outlines.

Size, shape and place of the outlined tumour, and its intensities in each sequence relative to the rest
of the brain, 32 measures in all, by logistic regression with a ridge. Five folds by patient; the ridge
is chosen within the training folds. The area under the curve is 0.5 by chance.

    python -m benchmarks.radiomics
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from benchmarks import results
from indexer import discovery, readers
from indexer.labels import load_tables
from indexer.scan import Scan

COHORT = results.DATA / "tcga-lgg"
BRIGHT = 20
"""Grey values above this are the head."""
RIDGES = (0.01, 0.1, 1.0)
RESAMPLES = 1000
SEED = 0

Floats = NDArray[np.float64]


def measures(scans: dict[str | None, Scan]) -> list[float]:
    """What a radiomics paper would measure, in short; a lacking sequence is taken for FLAIR."""
    flair = scans["flair"]
    inside, head = flair.region, flair.voxels > BRIGHT
    assert inside is not None
    tumour, brain = np.argwhere(inside), np.argwhere(head)
    place = (tumour.mean(0) - brain.mean(0)) / brain.std(0)
    found = [np.log(len(tumour) + 1), np.log(len(brain)), np.count_nonzero(inside.any((0, 1)))]
    found += [abs(place[0]), *place[1:], *np.log(tumour.std(0) + 1)]
    for name in ("t1", "flair", "t1ce"):
        values = scans.get(name, flair).voxels.astype(float)
        rest = values[head & ~inside]
        relative = (values[inside] - np.median(rest)) / (rest.std() + 1)
        found += [relative.mean(), relative.std(), *np.percentile(relative, [5, 25, 75, 95, 99])]
    taken_up = scans.get("t1ce", flair).voxels.astype(float) - scans.get("t1", flair).voxels
    return [*map(float, found), float(taken_up[inside].mean()), float(np.percentile(taken_up[inside], 95))]


def fitted(x: Floats, y: Floats, ridge: float) -> Floats:
    """Weights of a logistic regression, the intercept first."""

    def loss(w: Floats) -> tuple[float, Floats]:
        z = x @ w[1:] + w[0]
        error = 1 / (1 + np.exp(-z)) - y
        value = np.mean(np.logaddexp(0, z) - y * z) + ridge * (w[1:] ** 2).sum()
        return float(value), np.append(error.mean(), x.T @ error / len(y) + 2 * ridge * w[1:])

    return np.asarray(minimize(loss, np.zeros(x.shape[1] + 1), jac=True).x)


def taught(x: Floats, y: Floats, asked: Floats, ridge: float) -> Floats:
    """Scores of some patients by what others teach."""
    mean, deviation = x.mean(0), x.std(0) + 1e-9
    weights = fitted((x - mean) / deviation, y, ridge)
    return np.asarray((asked - mean) / deviation @ weights[1:] + weights[0])


def scores(x: Floats, y: Floats, fold: NDArray[np.str_], ridge: float) -> Floats:
    """Each fold's scores by what the other folds teach."""
    found = np.zeros(len(y))
    for name in np.unique(fold):
        mine = fold == name
        found[mine] = taught(x[~mine], y[~mine], x[mine], ridge)
    return found


def area(score: Floats, y: Floats) -> float:
    """Area under the receiver's curve (Mann and Whitney 1947)."""
    high, low = score[y == 1][:, None], score[y == 0]
    return float(np.mean((high > low) + 0.5 * (high == low)))


def main() -> None:
    found = discovery.discover(COHORT, load_tables(COHORT / "participants.tsv"))
    rows = []
    for source in found.sources:
        row = found.joined.labels.of(source.patient_id)
        if row.get("who_grade") in ("2", "3"):
            scans = {scan.sequence: scan for scan in readers.read(source)}
            rows.append((measures(scans), row["who_grade"] == "3", row["fold"]))
    x, y, fold = (
        np.array([r[0] for r in rows]),
        np.array([r[1] for r in rows], float),
        np.array([r[2] for r in rows]),
    )
    score, by_fold = np.zeros(len(y)), {}
    for name in np.unique(fold):
        mine = fold == name
        inner = {ridge: area(scores(x[~mine], y[~mine], fold[~mine], ridge), y[~mine]) for ridge in RIDGES}
        score[mine] = taught(x[~mine], y[~mine], x[mine], max(inner, key=lambda r: inner[r]))
        by_fold[str(name)] = area(score[mine], y[mine])
    rng = np.random.default_rng(SEED)
    drawn = [rng.integers(len(y), size=len(y)) for _ in range(RESAMPLES)]
    spread = np.percentile([area(score[r], y[r]) for r in drawn if 0 < y[r].sum() < len(r)], [2.5, 97.5])
    table: dict[str, Any] = {
        "area": area(score, y),
        "interval": spread.tolist(),
        "by fold": by_fold,
        "patients": {"2": int((y == 0).sum()), "3": int(y.sum())},
        "measures": x.shape[1],
    }
    print(table)
    print(
        results.save(
            "radiomics", table, data="tcga-lgg, its outlines given, folds as given", encoder="none", seed=SEED
        )
    )


if __name__ == "__main__":
    main()
