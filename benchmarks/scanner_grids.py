"""The same studies as one grid and as a scanner sends them, asked of the same index.

Volumes of the public cohorts have all sequences of a patient on one grid. A scanner's study has not: each
sequence has planes, tilt, field of view and resolution of its own. Each study asks in both forms, and the
difference is what bringing a study to one grid (:mod:`indexer.alignment`) loses. The shipped network has
seen most of these patients, so the figures themselves prove nothing: their difference is what counts.

    python -m benchmarks.scanner_grids [--encoder FILE]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from cbir import Index, create_index
from indexer import discovery
from indexer.composite import groups
from indexer.encoder import Encoder, load_encoder, look
from indexer.labels import load_tables
from indexer.preprocess import Preprocessing, prepared_composite

COHORTS = [results.DATA / name for name in ("volumes", "volumes-2mm")]
SLICES = results.DATA / "brats-slices"
TOOL = results.DATA.parent / "tools" / "as-the-scanner-sends"
LABEL = "grade_group"
K = 10
BOOTSTRAP = 2000


def composite_vector(study: Path, encoder: Encoder) -> NDArray[np.float64]:
    """The weighted mean embedding of a study's composite, of unit length; NaN where it has none."""
    how = Preprocessing.of(encoder)
    scans = (replace(scan, region=None) for scan in discovery.read(study))
    found = next(groups(scans, how.composite_size), None)
    if found is None:
        return np.full(encoder.dimension, np.nan)
    ready = prepared_composite(found.scans, how.composite_size, how.apart, how.standardised)
    embeddings, weights, _ = look(encoder, ready.pixels, ready.boxes, ready.weights)
    mean = weights @ embeddings.astype(np.float64)
    return np.asarray(mean / np.linalg.norm(mean))


def asked(index: Index, study: Path, patient: str, truth: str) -> dict[str, float]:
    """P@10 and the vote's share for the true class, own patient left out."""
    answer = index.query(study, K, exclude_patient=patient)
    found = [hit.labels.get(LABEL) for hit in answer.hits]
    share = answer.evidence[LABEL].probabilities.get(truth, 0.0) if LABEL in answer.evidence else 0.0
    return {"P@10": float(np.mean([value == truth for value in found])), "vote": share}


def held(place: Path) -> list[Path]:
    """What is indexed: the volumes on one grid, and the slices that show four sequences."""
    slices = place / "slices"
    slices.mkdir()
    for file in [*SLICES.glob("*.nii.gz"), SLICES / "cbir.json", SLICES / "participants.tsv"]:
        (slices / file.name).symlink_to(file)
    return [slices, *COHORTS]


def studies(sent: Path) -> Iterator[tuple[str, str, Path, Path]]:
    """Patient, true class, study on one grid, and the same as a scanner sends it."""
    for cohort in COHORTS:
        labels = discovery.discover(cohort, load_tables(cohort / "participants.tsv")).joined.labels
        subprocess.run([sys.executable, TOOL, cohort, sent / cohort.name], check=True, capture_output=True)
        for patient in sorted(labels.persons):
            yield patient, labels.of(patient)[LABEL], cohort / patient, sent / cohort.name / patient


def difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, float]:
    """Mean of `other` - `one`, with the 95 % interval of a bootstrap over patients."""
    rng = np.random.default_rng(0)
    each = other - one
    means = each[rng.integers(0, len(each), (BOOTSTRAP, len(each)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return {"value": float(each.mean()), "low": float(low), "high": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--encoder", default="cbir", help="name, or a file of weights")
    encoder = load_encoder(parser.parse_args().encoder)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with create_index(place / "index", encoder=encoder, keep_ids=True) as index:
            index.add(held(place))
            for patient, truth, whole, sent in studies(place):
                vectors = [composite_vector(study, encoder) for study in (whole, sent)]
                rows[patient] = {
                    "truth": truth,
                    "one grid": asked(index, whole, patient, truth),
                    "as the scanner sends it": asked(index, sent, patient, truth),
                    "cosine of the composites": float(vectors[0] @ vectors[1]),
                }
                print(patient, rows[patient], flush=True)
    figures: dict[str, Any] = {}
    for which in ("all", *sorted({row["truth"] for row in rows.values()})):
        chosen = [row for row in rows.values() if which in ("all", row["truth"])]
        figures[which] = {"patients": len(chosen)}
        for metric in ("P@10", "vote"):
            one, other = (
                np.array([row[form][metric] for row in chosen])
                for form in ("one grid", "as the scanner sends it")
            )
            figures[which][metric] = {
                "one grid": float(one.mean()),
                "as the scanner sends it": float(other.mean()),
                "difference": difference(one, other),
            }
        cosines = np.array([row["cosine of the composites"] for row in chosen])
        figures[which]["cosine"] = {
            "median": float(np.nanmedian(cosines)),
            "least": float(np.nanmin(cosines)),
            "without a composite": int(np.isnan(cosines).sum()),
        }
        print(which, figures[which])
    results.save("scanner_grids", {"patients": rows, "figures": figures}, encoder=encoder.version)


if __name__ == "__main__":
    main()
