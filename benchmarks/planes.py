"""How far apart the planes of a volume may be taken: what the distance changes, of embeddings and of answers.

All planes of the shared volumes are embedded once, the sequences and the composites. Then planes are left
out as :mod:`indexer.preprocess` leaves them out, and each patient asks the others and the patients of
``brats-slices/``: with few planes an index that holds all, and one that holds as few. The shipped network
has seen most of these patients: what counts is the difference from the first row.

    python -m benchmarks.planes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from indexer import discovery
from indexer.composite import composite, groups
from indexer.encoder import Encoder, load_encoder, look
from indexer.labels import load_tables
from indexer.preprocess import Prepared, Preprocessing, prepared, prepared_composite
from indexer.scan import Scan
from indexer.sequences import CHANNELS, COMPOSITE
from retrieval.ranking import Ranking

COHORTS = ("volumes", "volumes-2mm", "brats-slices")
DISTANCES = (0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0)
LABEL = "grade_group"
K = 10
WEIGHT = Ranking().composite_weight

Vectors = dict[str, NDArray[np.float64]]
"""Sequence to the weighted mean embedding of a case."""


class Looked:
    """A scan, all of its planes embedded."""

    def __init__(self, scan: Scan, ready: Prepared, encoder: Encoder) -> None:
        self.sequence = str(scan.sequence)
        self._mm = scan.spacing[scan.axis] if scan.spacing and len(scan) > 1 else np.inf
        self._positions = ready.positions
        self._embeddings, self._weights, _ = look(encoder, ready.pixels, ready.boxes, ready.weights)

    def rows(self, apart: float) -> NDArray[np.int64]:
        """As :func:`indexer.preprocess.prepared` takes planes."""
        step = max(1, int(apart / self._mm + 1e-3))
        return np.flatnonzero((self._positions - self._positions[len(self._positions) // 2]) % step == 0)

    def sum(self, apart: float) -> NDArray[np.float64]:
        """The weighted sum of the embeddings, whatever the number of planes."""
        rows = self.rows(apart)
        scale = len(self._positions) / len(rows)
        return np.asarray(scale * self._weights[rows].astype(np.float64) @ self._embeddings[rows])


def looked(found: discovery.Discovery, folder: Path, encoder: Encoder) -> Iterator[tuple[str, Looked]]:
    """Patients and their scans of the four sequences, and composites."""
    how = replace(Preprocessing.of(encoder), crops=False, apart=0.0)
    for source in sorted(found.sources, key=lambda source: source.name):
        if source.kind != "nifti" or (folder.name == "brats-slices" and not source.channels):
            continue
        for scan in discovery.read(source):
            if scan.sequence in CHANNELS:
                yield source.patient_id, Looked(scan, prepared(_bare(scan), how), encoder)
        if source.channels:
            yield from _together(source.patient_id, discovery.read(source), how, encoder)
    if folder.name != "brats-slices":
        for patient in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from _together(patient.name, discovery.read(patient), how, encoder)


def _together(
    patient: str, scans: list[Scan], how: Preprocessing, encoder: Encoder
) -> Iterator[tuple[str, Looked]]:
    for group in groups(map(_bare, scans), how.composite_size):
        ready = prepared_composite(group.scans, how.composite_size, standardised=how.standardised)
        yield patient, Looked(composite(group), ready, encoder)


def _bare(scan: Scan) -> Scan:
    return Scan(**{**vars(scan), "region": None})


def case_vectors(scans: list[Looked], apart: float) -> Vectors:
    found: Vectors = {}
    for scan in scans:
        found[scan.sequence] = found.get(scan.sequence, 0) + scan.sum(apart)
    return {name: vector / np.linalg.norm(vector) for name, vector in found.items()}


def score(one: Vectors, other: Vectors) -> float:
    """As :class:`retrieval.ranking.Ranking` weighs sequences."""
    both = one.keys() & other.keys()
    weights = np.array([WEIGHT if name == COMPOSITE else 1.0 for name in both])
    return float(weights @ [one[name] @ other[name] for name in both] / weights.sum()) if both else -1.0


def precision(asking: dict[str, Vectors], held: dict[str, Vectors], labels: dict[str, str]) -> float:
    """Mean P@10 over those who ask, each without itself."""
    found = []
    for patient, vectors in asking.items():
        others = sorted(held.keys() - {patient}, key=lambda other: -score(vectors, held[other]))
        found.append(np.mean([labels[other] == labels[patient] for other in others[:K]]))
    return float(np.mean(found))


def main() -> None:
    encoder = load_encoder("cbir")
    labels: dict[str, str] = {}
    scans: dict[str, list[Looked]] = {}
    asking: list[str] = []
    for name in COHORTS:
        folder = results.DATA / name
        found = discovery.discover(folder, load_tables(folder / "participants.tsv"))
        labels |= {patient: row[LABEL] for patient, row in found.joined.labels.persons.items()}
        for patient, scan in looked(found, folder, encoder):
            if name != "brats-slices":
                asking = list(dict.fromkeys([*asking, patient]))
            elif patient in asking:
                continue  # nobody is there twice
            scans.setdefault(patient, []).append(scan)
        print(name, len(scans), flush=True)
    whole = {patient: case_vectors(held, 0.0) for patient, held in scans.items()}
    table: dict[str, Any] = {}
    for apart in DISTANCES:
        fewer = {patient: case_vectors(held, apart) for patient, held in scans.items()}
        same = [
            float(fewer[patient][name] @ whole[patient][name])
            for patient in asking
            for name in whole[patient]
        ]
        planes = [len(scan.rows(apart)) for patient in asking for scan in scans[patient]]
        table[f"{apart:g}"] = {
            "planes a scan": float(np.mean(planes)),
            "cosine with all planes": {"median": float(np.median(same)), "least": min(same)},
            "P@10, index of all planes": precision({p: fewer[p] for p in asking}, whole, labels),
            "P@10, index as sparse": precision({p: fewer[p] for p in asking}, fewer, labels),
        }
        print(apart, table[f"{apart:g}"], flush=True)
    results.save("planes", table, data=f"{len(asking)} patients ask {len(scans)}", encoder=encoder.version)


if __name__ == "__main__":
    main()
