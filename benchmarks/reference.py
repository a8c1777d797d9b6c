"""The reference cases that the package brings: public graded cases whose terms allow handing them on.

    python -m benchmarks.reference        with the encoder that the package ships
    python -m benchmarks.reference --encoder FILE.safetensors --out FOLDER
                                          with another one, elsewhere
    python -m benchmarks.reference --calibrate
                                          learn how their votes are to be read

All of them were trained on, so that they cannot tell what their votes are worth for a new patient. The
networks of the folds (:mod:`benchmarks.cohorts`) can: each asks with the patients it has not seen, those
that it has seen answer, and what is learnt from all these questions is put beside the cases.

Embeddings, labels and public ids; no pixels. BraTS is not among them, because its terms do not allow
handing it on.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import cohorts, results
from benchmarks.cohorts import FIGSHARE, outlined, spaced
from cbir import open_index
from indexer import discovery, readers, reference
from indexer.catalog import EmbeddedScan, Entry
from indexer.encoder import Encoder, TrainedEncoder, load_encoder, look
from indexer.labels import load_tables
from indexer.preprocess import Prepared, Preprocessing, prepared
from indexer.readers import Source
from indexer.reading import input_hash
from indexer.scan import Scan
from retrieval.calibration import TYPICALITY, Calibration
from retrieval.learning import leave_one_out
from retrieval.leave_one_out import LeaveOneOut, joined

LESION_SLICES, OTHER_SLICES = 8, 4
"""At most so many slices of a stack, which keeps all below the size."""
LARGEST = 8_000_000
"""Bytes that the package has for them."""
SEED = 0
SAME = 0.99
"""TCGA-LGG repeats FLAIR where a sequence is missing: such a copy correlates with it by more than this."""


@dataclasses.dataclass(frozen=True)
class Collection:
    """Public cases.

    Attributes
    ----------
    name : str
        In the source of a case.
    terms : str
        What its label ``collection`` says.
    root, table : Path
        Where its images and labels lie.
    labels : tuple of str
        Columns that are handed on.
    read : callable
        From a source to its scans.
    first : callable
        From a source to the number that the collection gives to its first slice.
    """

    name: str
    terms: str
    root: Path
    table: Path
    labels: tuple[str, ...]
    read: Callable[[Source], Sequence[Scan]]
    first: Callable[[Source], int]


def post_contrast(source: Source) -> list[Scan]:
    """A figshare slice with its outline: all of them are T1-weighted with contrast agent."""
    return [dataclasses.replace(scan, sequence="t1ce") for scan in outlined(source)]


def acquired(source: Source) -> list[Scan]:
    """The scans of a TCGA-LGG stack without the copies of FLAIR that stand for missing sequences."""
    scans = readers.read(source)
    (flair,) = (scan for scan in scans if scan.sequence == "flair")
    return [scan for scan in scans if scan is flair or not _same(scan, flair)]


def _same(scan: Scan, other: Scan) -> bool:
    return bool(np.corrcoef(scan.voxels.ravel(), other.voxels.ravel())[0, 1] > SAME)


COLLECTIONS = (
    Collection(
        "figshare",
        "figshare 1512427 (Cheng et al., CC BY 4.0)",
        FIGSHARE / "images",
        FIGSHARE / "slices.tsv",
        ("tumour",),
        post_contrast,
        lambda source: int(source.path.stem),  # each image has a number
    ),
    Collection(
        "TCGA-LGG",
        "TCGA-LGG (TCIA, CC BY 3.0)",
        results.DATA / "tcga-lgg",
        results.DATA / "tcga-lgg" / "participants.tsv",
        ("tumour", "who_grade"),
        acquired,
        lambda source: 0,
    ),
)


def chosen(ready: Prepared) -> NDArray[np.int64]:
    """Rows of a scan that are handed on: of a stack some slices, evenly spaced, with their outlines."""
    whole, marked = (set(ready.positions[ready.views == view].tolist()) for view in (0, 1))
    lesion, other = (np.array(sorted(part), np.int64) for part in (whole & marked, whole - marked))
    kept = np.concatenate([spaced(lesion, LESION_SLICES), spaced(other, OTHER_SLICES)])
    return np.flatnonzero(np.isin(ready.positions, kept))


def embedded(
    encoder: Encoder, collection: Collection, patient: str, sources: Sequence[Source]
) -> list[EmbeddedScan]:
    """The scans of a patient."""
    taken = []
    for source in sources:
        for scan in collection.read(source):
            ready = prepared(scan, Preprocessing.of(encoder))
            rows = chosen(ready)
            numbers = ready.positions[rows] + collection.first(source)
            taken.append((scan, ready, rows, numbers))
    pixels, boxes, weights = (
        np.concatenate([getattr(ready, part)[rows] for _, ready, rows, _ in taken])
        for part in ("pixels", "boxes", "weights")
    )
    ends = np.cumsum([len(rows) for _, _, rows, _ in taken])[:-1]
    looks = zip(*(np.split(part, ends) for part in look(encoder, pixels, boxes, weights)), strict=True)
    found = []
    for (scan, ready, rows, numbers), (embeddings, weights, strange) in zip(taken, looks, strict=True):
        whole = ready.views[rows] == 0
        found.append(
            EmbeddedScan(
                case_id=patient,
                patient_id=patient,
                series_id=f"{collection.name}/{patient}",
                sequence=scan.sequence,
                modality="MR",
                shape=scan.voxels.shape,
                spacing=scan.spacing,
                input_hash=input_hash(ready),  # of all slices: a query with them is known by it
                positions=numbers,
                views=ready.views[rows],
                weights=weights,
                embeddings=embeddings,
                strangeness=float(np.average(strange[whole], weights=weights[whole])),
                in_sample=True,  # they are among what the shipped encoder is trained on
            )
        )
    return found


def cases(encoder: Encoder, collection: Collection) -> tuple[list[Entry], dict[str, dict[str, str]]]:
    """The cases of a collection, one a patient, and their labels."""
    found = discovery.discover(collection.root, load_tables(collection.table))
    of_patient: dict[str, list[Source]] = {}
    for source in found.sources:
        of_patient.setdefault(source.patient_id, []).append(source)
    entries, labels = [], {}
    for patient, sources in sorted(of_patient.items()):
        known = found.joined.labels.of(patient)
        labels[patient] = {name: known[name] for name in collection.labels if name in known}
        labels[patient][reference.COLLECTION] = collection.terms
        path = f"{reference.PREFIX}{collection.name}/{patient}"
        scans = embedded(encoder, collection, patient, sources)
        entries.append(reference.entry(path, encoder, scans, labels[patient]))
        print(f"\r{collection.name}: {len(entries)}/{len(of_patient)}", end="", flush=True)
    print()
    return entries, labels


def made(encoder: Encoder, folder: Path) -> None:
    """Write the cases as an encoder sees them."""
    entries: list[Entry] = []
    labels: dict[str, dict[str, str]] = {}
    for collection in COLLECTIONS:
        found, known = cases(encoder, collection)
        entries += found
        labels |= known
    reference.write(folder, encoder, entries, labels)


def asked_by(
    fold: str, encoder: TrainedEncoder
) -> dict[str, tuple[LeaveOneOut, dict[str, NDArray[np.float32]]]]:
    """What the patients ask whom a fold's network has not seen, of those it has, with their typicality."""
    folder = results.CACHE / f"reference-{encoder.version}"
    if not (folder / "manifest.json").exists():
        made(encoder, folder)
    with open_index(folder, encoder) as index:
        contents = index.contents
        seen = np.array([encoder.trained_on(patient) for patient in contents.patient_ids])
        questions = leave_one_out(index.state, np.flatnonzero(~seen).tolist(), np.random.default_rng(SEED))
    print(f"fold {fold}: {np.count_nonzero(~seen)} patients ask, {np.count_nonzero(seen)} answer", flush=True)
    return {
        kind: (
            q.among(seen),
            {TYPICALITY: -contents.scan_strangeness[q.scans]},
        )
        for kind, q in questions.items()
    }


def calibrated() -> Calibration:
    """What the votes of the cases are worth, by the questions of all folds whose network is trained."""
    by_fold = [asked_by(fold, encoder) for fold, encoder in cohorts.fold_networks().items()]
    questions = {}
    for kind in dict.fromkeys(kind for found in by_fold for kind in found):
        parts = [found[kind] for found in by_fold if kind in found]
        signals = {TYPICALITY: np.concatenate([told[TYPICALITY] for _, told in parts])}
        questions[kind] = joined([q for q, _ in parts]), signals
    with reference.opened() as shipped:
        return Calibration.of(questions, shipped, shipped.catalog.contents(), SEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--encoder", default="cbir", help="name, or file of weights")
    parser.add_argument("--out", type=Path, default=reference.FOLDER, help="where to write them")
    parser.add_argument("--calibrate", action="store_true", help="only learn how their votes are to be read")
    arguments = parser.parse_args()
    if arguments.calibrate:
        learnt = calibrated()
        learnt.save(reference.FOLDER)
        print(learnt)
        return
    made(load_encoder(arguments.encoder), arguments.out)
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{arguments.out}: {size / 1e6:.1f} MB")
    if size > LARGEST:
        raise SystemExit(f"more than the {LARGEST / 1e6:.0f} MB that the package has for them")


if __name__ == "__main__":
    main()
