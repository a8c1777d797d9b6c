"""Are the probabilities right, do the sets cover, and does a stranger get no answer?

Each fold's patients ask the patients of the other folds, as the network sees them that was trained
without that fold (:mod:`benchmarks.cohorts`). Nested, by patient: a fold is judged with what the
questions of the other folds taught. Beside the error of calibration stands what perfectly calibrated
probabilities would score on as many patients, because it is not 0. Strangers ask each fold's cohort:
photographs, other body parts, phantoms, noise.

    python -m benchmarks.calibration
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks import cohorts, grades, results
from cbir import Index
from indexer.case_index import CaseIndex
from indexer.demo import write_cohort
from indexer.encoder import TrainedEncoder
from retrieval.calibration import SIMILARITY, TYPICALITY, Calibration, Fit, Kind, near_quantile
from retrieval.conformal import tempered
from retrieval.learning import leave_one_out
from retrieval.leave_one_out import LeaveOneOut, Votes, joined, votes
from retrieval.metrics import chance_calibration_error, expected_calibration_error

COHORTS = {
    "figshare": ("tumour",),
    "tcga-lgg": ("who_grade",),
    "brats-lesions": ("grade_group", "who_grade"),
}
RESAMPLES = 1000


def nested(
    questions: LeaveOneOut, column: str, of_question: NDArray[Any], of_item: NDArray[Any]
) -> dict[str, Any] | None:
    """Figures of the votes on a column, each fold judged with what the others taught.

    `of_question` and `of_item` are the folds, ``""`` where a patient has none and is known in all of them.
    """
    values = sorted({row[column] for row in questions.gallery.labels if row.get(column)})
    raw, after, sets, truth, weights, patients = [], [], [], [], [], []
    for fold in sorted(set(of_question) - {""}):
        known = of_item != fold
        taught = votes(questions.part(of_question != fold, known), column)
        fit = Fit.of(taught)
        judged = questions.part(of_question == fold)
        said = votes(judged.among(known), column)
        if fit is None or said.values != values:
            return None
        raw.append(said.probabilities)
        after.append(tempered(said.probabilities, fit.temperature))
        sets.append(near_sets(fit, taught, judged, column, after[-1]))
        truth.append(said.truth)
        weights.append(said.weights)
        patients.append(judged.patients[[bool(row.get(column)) for row in judged.labels]])
    y, w, p, held = (np.concatenate(x) for x in (truth, weights, after, sets))
    who = np.unique(np.concatenate(patients), return_inverse=True)[1]
    covered = held[np.arange(len(y)), y]
    before = np.concatenate(raw)
    return {
        "patients": int(who.max()) + 1,
        "questions": len(y),
        "accuracy": mean(p.argmax(axis=1) == y, w),
        "uncalibrated": errors(before, y, w),
        "calibrated": errors(p, y, w),
        "coverage": interval(covered, w, who),
        "coverage_by_value": {
            value: interval(covered[y == c], w[y == c], who[y == c]) for c, value in enumerate(values)
        },
        "set_size": mean(held.sum(axis=1), w),
        "empty_sets": mean(~held.any(axis=1), w),
    }


def near_sets(
    fit: Fit, taught: Votes, judged: LeaveOneOut, column: str, probabilities: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """The sets of the judged questions that have the label, shape (n, c), as answers have them.

    Of whom the fit was learnt, those tell who are most like the query (:func:`near_quantile`).
    """
    scores = 1 - tempered(taught.probabilities, fit.temperature)
    rows = [row for row, labels in enumerate(judged.labels) if labels.get(column)]
    items: dict[Any, list[int]] = {}
    for item, patient in enumerate(judged.gallery.patients.tolist()):
        items.setdefault(patient, []).append(item)
    held = []
    for p, row in zip(probabilities, rows, strict=True):
        like = {patient: judged.similarity[row][own].max() for patient, own in items.items()}
        likeness = np.array([like[patient] for patient in taught.patients.tolist()])
        near = dict(fit.quantiles)
        for c, value in enumerate(taught.values):
            has = taught.truth == c
            found = near_quantile(scores[has, c], taught.patients[has], likeness[has])
            near[value] = near[value] if found is None else found
        inside = replace(fit, quantiles=near).sets(taught.values, p)
        held.append(inside | (p == p.max()) if inside.any() else inside)
    return np.array(held)


def errors(p: NDArray[np.float64], y: NDArray[np.int64], w: NDArray[np.float64]) -> dict[str, float]:
    """Calibration error of the most likely value, what it would be at best, and log loss."""
    right = p.argmax(axis=1) == y
    return {
        "ece": expected_calibration_error(p.max(axis=1), right, weights=w),
        "ece_if_perfect": chance_calibration_error(p, weights=w),
        "log_loss": mean(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)), w),
    }


def mean(values: NDArray[Any], w: NDArray[np.float64]) -> float:
    """Every patient counts once."""
    return float(w @ values / w.sum())


def interval(values: NDArray[Any], w: NDArray[np.float64], who: NDArray[np.int64]) -> dict[str, float]:
    """A mean and its 95 % interval, bootstrap over patients."""
    _, place = np.unique(who, return_inverse=True)
    top, below = np.bincount(place, w * values), np.bincount(place, w)
    draws = np.random.default_rng(0).integers(len(top), size=(RESAMPLES, len(top)))
    low, high = np.percentile(top[draws].sum(axis=1) / below[draws].sum(axis=1), [2.5, 97.5])
    return {"value": mean(values, w), "low": float(low), "high": float(high)}


def abstained(
    singles: LeaveOneOut, typical: NDArray[np.float32], of_question: NDArray[Any], of_item: NDArray[Any]
) -> dict[str, Any]:
    """How many patients of the cohort would be called strangers, by single scans and by all of theirs."""
    alone, whole = [], []
    for fold in sorted(set(of_question) - {""}):
        known, others = of_item != fold, of_question != fold
        kind = Kind.of(singles.part(others, known), (), {TYPICALITY: typical[others]})
        judged = singles.part(~others, known)
        signals = {
            SIMILARITY: list(zip(judged.sequences, judged.nearest.tolist(), strict=True)),
            TYPICALITY: list(zip(judged.sequences, typical[~others].tolist(), strict=True)),
        }

        learnt = Calibration({"scan": kind}, "", 0, 0, 0, 0, 0, {})

        def strange(rows: Iterable[int], learnt: Calibration = learnt, signals: Any = signals) -> bool:
            own = {name: [values[i] for i in rows] for name, values in signals.items()}
            return bool(learnt.strange(own))

        alone += [strange([row]) for row in range(len(judged.patients))]
        whole += [strange(np.flatnonzero(judged.patients == p)) for p in np.unique(judged.patients)]
    return {
        "scans": float(np.mean(alone)),
        "patients": float(np.mean(whole)),
        "n_scans": len(alone),
        "n_patients": len(whole),
    }


# ---- strangers -----------------------------------------------------------------------------------


def strangers(folder: Path) -> Iterator[tuple[str, Path]]:
    """Images that are no brain tumours: what installed packages ship, and what can be drawn."""

    def save(name: str, pixels: NDArray[Any]) -> Path:
        low, high = np.percentile(pixels, [0.5, 99.5])
        grey = 255 * np.clip((pixels - low) / max(high - low, 1e-9), 0, 1)
        path = folder / f"{name}.png"
        Image.fromarray(grey.astype(np.uint8)).save(path)
        return path

    yield from _photographs(save)
    yield from _body_parts(save)
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    disc = 180.0 * (x**2 + y**2 < 0.7)
    yield "phantom", save("disc", disc)
    rods = disc.copy()
    for k in range(6):
        at = 0.5 * np.exp(1j * k * np.pi / 3)
        rods[(x - at.real) ** 2 + (y - at.imag) ** 2 < (0.03 + 0.015 * k) ** 2] = 20
    yield "phantom", save("rods", rods)
    stripes = (np.arange(256) // 12) % 2
    yield "phantom", save("grid", disc * (stripes[None] ^ stripes[:, None]))
    for name in write_cohort(folder / "drawn", 3).grades:
        yield "phantom", folder / "drawn" / name / f"{name}_t1ce.nii.gz"
    rng = np.random.default_rng(0)
    for i in range(3):
        yield "noise", save(f"noise{i}", rng.random((256, 256)))
    for sigma in (2, 8):
        yield "noise", save(f"smooth{sigma}", gaussian_filter(rng.normal(size=(256, 256)), sigma))


def _photographs(save: Callable[[str, NDArray[Any]], Path]) -> Iterator[tuple[str, Path]]:
    import matplotlib
    import sklearn

    images = Path(sklearn.__file__).parent / "datasets" / "images"
    sample = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    for path in (images / "china.jpg", images / "flower.jpg", sample):
        if path.exists():
            yield "photograph", save(path.stem, np.asarray(Image.open(path).convert("L"), float))


def _body_parts(save: Callable[[str, NDArray[Any]], Path]) -> Iterator[tuple[str, Path]]:
    """CT and MR of the trunk, bone scans, ultrasound; a CT of the head too, which is the nearest."""
    import pydicom

    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    names = (
        "693_J2KI",
        "CT_small",
        "JPEG2000",
        "examples_overlay",
        "examples_jpeg2k",
        "examples_palette",
        "examples_rgb_color",
        "J2K_pixelrep_mismatch",
    )
    for name in names:
        if (folder / f"{name}.dcm").exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pixels = pydicom.dcmread(folder / f"{name}.dcm").pixel_array.astype(float)
            yield "other body part", save(name, pixels.mean(axis=2) if pixels.ndim == 3 else pixels)


@dataclass(frozen=True)
class Cohort:
    """What the patients of a cohort ask, each by the network of a fold that has not seen them."""

    questions: dict[str, LeaveOneOut]
    typical: dict[str, NDArray[np.float32]]
    met: dict[str, list[tuple[str, bool]]]  # strangers: name, and whether there was no answer

    @classmethod
    def of(cls, name: str, encoders: dict[str, TrainedEncoder]) -> Cohort:
        parts: dict[str, list[tuple[LeaveOneOut, NDArray[np.float32]]]] = {}
        met: dict[str, list[tuple[str, bool]]] = {}
        for fold, encoder in encoders.items():
            with Index(filled(name, encoder), encoder) as index, tempfile.TemporaryDirectory() as scratch:
                contents = index.contents
                seen = np.array([encoder.trained_on(patient) for patient in contents.patient_ids])
                of_fold = np.array([row.get("fold") == fold for row in contents.labels])
                asking = np.flatnonzero(of_fold)
                if seen[asking].any():
                    sys.exit(f"{name}: the network of fold {fold} has seen that fold")
                for kind, one in leave_one_out(
                    index.state, asking.tolist(), np.random.default_rng(0)
                ).items():
                    known = one.among(seen)
                    parts.setdefault(kind, []).append((known, -contents.scan_strangeness[one.scans]))
                index.calibrate()
                for what, path in strangers(Path(scratch)):
                    answer = index.query(path, 3)
                    met.setdefault(what, []).append((path.name, answer.familiar is False))
            print(f"{name}, fold {fold}: {len(asking)} cases ask", flush=True)
        return cls(
            {kind: joined([one for one, _ in found]) for kind, found in parts.items()},
            {kind: np.concatenate([typical for _, typical in found]) for kind, found in parts.items()},
            met,
        )


def filled(cohort: str, encoder: TrainedEncoder) -> CaseIndex:
    """The cohort's index by a network, kept in the cache."""
    task = grades.TASKS.get(cohort) or grades.Task(cohort, "slices.tsv", COHORTS[cohort])
    grades.items_of(task, encoder)
    return CaseIndex.open(results.CACHE / f"{cohort}-{encoder.version}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    encoders = cohorts.fold_networks()
    if not encoders:
        sys.exit("nothing is trained yet: python -m benchmarks.cohorts")
    table: dict[str, Any] = {}
    for name, columns in COHORTS.items():
        cohort = Cohort.of(name, encoders)
        entry: dict[str, Any] = {"votes": {}, "abstained": {}}
        table[name] = entry
        for kind, one in cohort.questions.items():
            if kind == "composite":  # which asks as part of a case only
                continue
            folds = [
                np.array([row.get("fold", "") for row in rows]) for rows in (one.labels, one.gallery.labels)
            ]
            for column in columns:
                found = nested(one, column, *folds)
                if found:
                    entry["votes"][f"{column}, {kind}"] = found
                    print(name, column, kind, _line(found), flush=True)
            if kind == "scan":
                entry["abstained"]["unseen patients"] = abstained(one, cohort.typical[kind], *folds)
        for what, found in cohort.met.items():
            answered = sorted({stranger for stranger, abstains in found if not abstains})
            share = float(np.mean([abstains for _, abstains in found]))
            entry["abstained"][what] = {"n": len(found), "share": share, "answered": answered}
        print(name, "abstained:", entry["abstained"], flush=True)
    path = results.save(
        "calibration",
        table,
        data=f"figshare, tcga-lgg, brats-lesions, folds {', '.join(encoders)} of {len(cohorts.FOLDS)}",
        encoder={name: encoder.version for name, encoder in encoders.items()},
        bootstrap=RESAMPLES,
        seed=0,
    )
    print(path.relative_to(results.ROOT))


def _line(found: dict[str, Any]) -> str:
    """One result, short."""
    before, after, c = found["uncalibrated"], found["calibrated"], found["coverage"]
    by_value = ", ".join(f"{v} {x['value']:.2f}" for v, x in found["coverage_by_value"].items())
    return (
        f"ECE {before['ece']:.3f} → {after['ece']:.3f} (perfect {after['ece_if_perfect']:.3f}), "
        f"log loss {before['log_loss']:.3f} → {after['log_loss']:.3f}, "
        f"coverage {c['value']:.3f} ({c['low']:.3f}–{c['high']:.3f}; {by_value}), "
        f"set {found['set_size']:.2f}, empty {found['empty_sets']:.3f}"
    )


if __name__ == "__main__":
    main()
