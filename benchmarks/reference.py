"""The reference cases that the package brings: public graded cases whose terms allow handing them on.

    python -m benchmarks.reference        with the encoder that the package ships
    python -m benchmarks.reference --encoder FILE.safetensors --out FOLDER
                                          with another one, elsewhere
    python -m benchmarks.reference --calibrate
                                          learn how their votes are to be read

All of them were trained on, so that they cannot tell what their votes are worth for a new patient. The
networks of the folds (:mod:`benchmarks.cohorts`) can: each asks with the patients it has not seen, those
that it has seen answer, and what is learnt from all these questions is put beside the cases.

WHO grades 2, 3 and 4 are among them, as single sequences and as composites of four: whole heads of
TCGA-LGG and TCGA-GBM, and what of BraTS was released with terms that allow it: the patients of TCGA
(BraTS-TCGA-GBM, BraTS-TCGA-LGG; Bakas et al. 2017) and of UCSF-PDGM. Of all others of BraTS nothing is
handed on. Embeddings, measures, labels and public ids; no pixels.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import cohorts, results
from benchmarks.cohorts import FIGSHARE, of_low_grade, outlined, spaced
from cbir import open_index
from indexer import discovery, readers, reference
from indexer.catalog import Contents, EmbeddedScan, Entry
from indexer.composite import composite, groups
from indexer.encoder import Encoder, TrainedEncoder, load_encoder, look
from indexer.labels import Table, load_tables
from indexer.measures import Measures, measure
from indexer.preprocess import Prepared, Preprocessing, prepared, prepared_composite
from indexer.readers import Source
from indexer.reading import input_hash
from indexer.scan import Scan
from indexer.sequences import CHANNELS
from indexer.view import AXES
from retrieval.calibration import TYPICALITY, Calibration
from retrieval.learning import leave_one_out
from retrieval.leave_one_out import LeaveOneOut, joined

LESION_SLICES, OTHER_SLICES = 8, 4
"""At most so many slices of a stack, which keeps all below the size."""
HEAD_SLICES = 12
"""The same of a whole head that nobody outlined."""
CROP_SLICES = 4
"""The same of a lesion's crop, all of whose slices show it."""
LARGEST = 12_000_000
"""Bytes that the package has for them."""
HEADS = results.DATA / "tcga-gbm"
SEED = 0
PLAIN = ("figshare", "TCGA-LGG")
"""Collections whose cases are called like the patients."""
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
    permits : callable
        From a patient's row of the table to the terms on which it may be handed on; "" where it may not.
    slices : int
        At most so many of a stack that show the lesion.
    completed : callable
        From its table to one that says, too, what is so of all its patients.
    plane : callable
        From a source to the plane of its slices, where they have no geometry to say it; else "".
    """

    name: str
    root: Path
    table: Path
    labels: tuple[str, ...]
    read: Callable[[Source], Sequence[Scan]]
    first: Callable[[Source], int]
    permits: Callable[[Mapping[str, str]], str]
    slices: int = LESION_SLICES
    completed: Callable[[Table], Table] = lambda table: table
    plane: Callable[[Source], str] = lambda source: ""

    def tables(self) -> list[Table]:
        """Its labels."""
        return [self.completed(table) for table in load_tables(self.table)]

    def terms(self) -> dict[str, str]:
        """Patients who may be handed on, and on what terms."""
        with self.table.open(newline="", encoding="utf-8") as file:
            rows = {row["participant_id"]: row for row in csv.DictReader(file, delimiter="\t")}
        return {patient: terms for patient, row in rows.items() if (terms := self.permits(row))}


def all_on(terms: str) -> Callable[[Mapping[str, str]], str]:
    """Terms that are the same for all patients of a collection."""
    return lambda row: terms


def of_brats(row: Mapping[str, str]) -> str:
    """Terms of a patient of BraTS, whose id says where it comes from."""
    patient = row["participant_id"]
    if patient.startswith("TCGA-"):
        return "BraTS-TCGA-GBM/LGG (TCIA, Bakas et al. 2017, CC BY 3.0)"
    if patient.startswith("UCSF-PDGM-"):
        return "UCSF-PDGM (TCIA, CC BY 4.0)"
    return ""


def post_contrast(source: Source) -> list[Scan]:
    """A figshare slice with its outline: all of them are T1-weighted with contrast agent."""
    return [dataclasses.replace(scan, sequence="t1ce") for scan in outlined(source)]


def acquired(source: Source) -> list[Scan]:
    """The scans of a TCGA-LGG stack without the copies of FLAIR that stand for missing sequences."""
    scans = readers.read(source)
    (flair,) = (scan for scan in scans if scan.sequence == "flair")
    return [scan for scan in scans if scan is flair or not _same(scan, flair)]


def named_by_eye(source: Source) -> list[Scan]:
    """A stack of TCGA-GBM, whose files do not say of which sequence they are."""
    return [
        dataclasses.replace(scan, sequence=_of_heads("sequence")[source.patient_id])
        for scan in readers.read(source)
    ]


@functools.cache
def _of_heads(column: str) -> dict[str, str]:
    with (HEADS / "participants.tsv").open(newline="", encoding="utf-8") as file:
        return {row["participant_id"]: row[column] for row in csv.DictReader(file, delimiter="\t")}


def _same(scan: Scan, other: Scan) -> bool:
    return bool(np.corrcoef(scan.voxels.ravel(), other.voxels.ravel())[0, 1] > SAME)


COLLECTIONS = (
    Collection(
        "figshare",
        FIGSHARE / "images",
        FIGSHARE / "slices.tsv",
        ("tumour",),
        post_contrast,
        lambda source: int(source.path.stem),  # each image has a number
        all_on("figshare 1512427 (Cheng et al., CC BY 4.0)"),
        plane=lambda source: cohorts.planes()[int(source.path.stem) - 1],
    ),
    Collection(
        "TCGA-LGG",
        results.DATA / "tcga-lgg",
        results.DATA / "tcga-lgg" / "participants.tsv",
        ("tumour", "grade_group", "who_grade"),
        acquired,
        lambda source: 0,
        all_on("TCGA-LGG (TCIA, CC BY 3.0)"),
        completed=of_low_grade,
        plane=lambda source: "axial",
    ),
    Collection(
        "TCGA-GBM",
        HEADS,
        HEADS / "participants.tsv",
        ("tumour", "grade_group", "who_grade"),
        named_by_eye,
        lambda source: 0,
        all_on("TCGA-GBM (TCIA, CC BY 3.0)"),
        HEAD_SLICES,
        plane=lambda source: _of_heads("plane")[source.patient_id],
    ),
    Collection(
        "BraTS-volumes",
        results.DATA / "volumes-2mm",
        results.DATA / "volumes-2mm" / "participants.tsv",
        ("tumour", "grade_group", "who_grade"),
        readers.read,
        lambda source: 0,
        of_brats,
    ),
    Collection(
        "BraTS-lesions",
        results.DATA / "brats-lesions",
        results.DATA / "brats-lesions" / "lesions.tsv",
        ("tumour", "grade_group", "who_grade"),
        readers.read,
        lambda source: 0,
        of_brats,
        CROP_SLICES,
    ),
)


def chosen(ready: Prepared, most: int = LESION_SLICES) -> NDArray[np.int64]:
    """Rows of a scan that are handed on: of a stack some slices, evenly spaced, with their outlines.

    Where nobody outlined anything, any slice may show the lesion.
    """
    whole, marked = (set(ready.positions[ready.views == view].tolist()) for view in (0, 1))
    lesion, other = (np.array(sorted(part), np.int64) for part in (whole & marked, whole - marked))
    kept = np.concatenate([spaced(lesion, most), spaced(other, OTHER_SLICES if len(lesion) else most)])
    return np.flatnonzero(np.isin(ready.positions, kept))


Seen = tuple[Scan, Prepared, tuple[str | None, ...]]
"""A scan as the encoder takes it, with the sequences of its channels."""


def seen(encoder: Encoder, scans: Sequence[Scan]) -> list[Seen]:
    """Scans one by one, and those of four sequences together."""
    how = Preprocessing.of(encoder)
    found: list[Seen] = [(scan, prepared(scan, how), (scan.sequence,)) for scan in scans]
    if how.composite_size:
        for group in groups(scans, how.composite_size):
            if all(scan is not None for scan in group.scans):
                ready = prepared_composite(group.scans, how.composite_size, how.apart, how.standardised)
                found.append((composite(group), ready, CHANNELS))
    return found


def embedded(
    encoder: Encoder, collection: Collection, patient: str, sources: Sequence[Source]
) -> list[EmbeddedScan]:
    """The scans of a patient."""
    scans = [(scan, source) for source in sources for scan in collection.read(source)]
    numbered = {str(scan.source): collection.first(source) for scan, source in scans}
    planes = {str(scan.source): collection.plane(source) for scan, source in scans}
    # what one file holds goes together; single sequences in files of their own do, too
    apart = [[scan for scan, of in scans if of is source] for source in sources]
    several = apart if any(len(group) > 1 for group in apart) else [[scan for scan, _ in scans]]
    taken = [one for group in several for one in seen(encoder, group)]
    rows = [chosen(ready, collection.slices) for _, ready, _ in taken]
    found = []
    for (scan, ready, channels), kept, looked in zip(taken, rows, looks(encoder, taken, rows), strict=True):
        embeddings, weights, strange = looked
        whole = ready.views[kept] == 0
        found.append(
            EmbeddedScan(
                case_id=case_of(collection, patient),
                patient_id=patient,
                series_id=f"{collection.name}/{patient}",
                sequence=scan.sequence,
                modality="MR",
                shape=scan.voxels.shape,
                spacing=scan.spacing,
                input_hash=input_hash(ready),  # of all slices: a query with them is known by it
                positions=ready.positions[kept] + numbered[str(scan.source)],
                views=ready.views[kept],
                weights=weights,
                embeddings=embeddings,
                strangeness=float(np.average(strange[whole], weights=weights[whole])),
                in_sample=True,  # they are among what the shipped encoder is trained on
                measures=lying(measure(ready, channels, encoder), planes[str(scan.source)]).as_vector(),
            )
        )
    return found


def lying(measured: Measures, plane: str) -> Measures:
    """Measures of a scan whose plane is known otherwise, where its geometry does not say."""
    view = measured.view.copy()
    if plane and np.isnan(view[0]) and np.isfinite(view[1:]).all():
        view[0] = AXES.index(plane)
    return dataclasses.replace(measured, view=view)


def looks(
    encoder: Encoder, taken: Sequence[Seen], rows: Sequence[NDArray[np.int64]]
) -> list[tuple[NDArray[np.float32], ...]]:
    """What :func:`indexer.encoder.look` gives of some rows of each scan, as many at once as go together."""
    found: dict[int, tuple[NDArray[np.float32], ...]] = {}
    for kind in {ready.pixels.ndim for _, ready, _ in taken}:
        places = [place for place, (_, ready, _) in enumerate(taken) if ready.pixels.ndim == kind]
        pixels, boxes, weights = (
            np.concatenate([getattr(taken[place][1], part)[rows[place]] for place in places])
            for part in ("pixels", "boxes", "weights")
        )
        ends = np.cumsum([len(rows[place]) for place in places])[:-1]
        parts = (np.split(part, ends) for part in look(encoder, pixels, boxes, weights))
        found |= zip(places, zip(*parts, strict=True), strict=True)
    return [found[place] for place in range(len(taken))]


def case_of(collection: Collection, patient: str) -> str:
    """What a patient's images in a collection are called: crops and whole heads are no one case."""
    return patient if collection.name in PLAIN else f"{patient}/{collection.name}"


def cases(encoder: Encoder, collection: Collection) -> tuple[list[Entry], dict[str, dict[str, str]]]:
    """The cases of a collection, one a patient, and their labels."""
    found = discovery.discover(collection.root, collection.tables())
    terms = collection.terms()
    of_patient: dict[str, list[Source]] = {}
    for source in found.sources:
        if source.patient_id in terms:
            of_patient.setdefault(source.patient_id, []).append(source)
    entries, labels = [], {}
    for patient, sources in sorted(of_patient.items()):
        known = found.joined.labels.of(patient)
        labels[patient] = {name: known[name] for name in collection.labels if name in known}
        labels[patient][reference.COLLECTION] = terms[patient]
        path = f"{reference.PREFIX}{collection.name}/{patient}"
        scans = embedded(encoder, collection, patient, sources)
        entries.append(reference.entry(path, encoder, scans, labels[patient]))
        print(f"\r{collection.name}: {len(entries)}/{len(of_patient)}", end="", flush=True)
    print()
    return entries, labels


def made(encoder: Encoder, folder: Path, collections: Iterable[Collection] = COLLECTIONS) -> None:
    """Write the cases as an encoder sees them.

    Raises
    ------
    SystemExit
        If two collections say different things of one patient.
    """
    entries: list[Entry] = []
    labels: dict[str, dict[str, str]] = {}
    for collection in collections:
        found, known = cases(encoder, collection)
        entries += found
        for patient, row in known.items():
            held = labels.setdefault(patient, {})
            for name, value in row.items():
                if name == reference.COLLECTION and held.get(name, value) != value:
                    value = f"{held[name]}; {value}"
                elif held.get(name, value) != value:
                    raise SystemExit(f"{patient}: {name} is {held[name]} and {value}")
                held[name] = value
    reference.write(folder, encoder, entries, labels)


def asked_by(
    fold: str, encoder: TrainedEncoder, shipped: Contents
) -> dict[str, tuple[LeaveOneOut, dict[str, NDArray[np.float32]]]]:
    """What the patients ask whom a fold's network has not seen, of those it has, with their typicality."""
    folder = results.CACHE / f"reference-{encoder.version}"
    if not (folder / "manifest.json").exists():
        made(encoder, folder)
    with open_index(folder, encoder) as index:
        contents = index.contents
        if contents.scan_source != shipped.scan_source or contents.scan_sequence != shipped.scan_sequence:
            raise SystemExit(f"fold {fold}: other scans than those that are shipped; remove {folder}")
        taught = np.array([encoder.trained_on(patient) for patient in contents.patient_ids])
        questions = leave_one_out(index.state, np.flatnonzero(~taught).tolist(), np.random.default_rng(SEED))
    print(
        f"fold {fold}: {np.count_nonzero(~taught)} cases ask, {np.count_nonzero(taught)} answer", flush=True
    )
    return {
        kind: (
            q.among(taught),
            {TYPICALITY: -contents.scan_strangeness[q.scans]},
        )
        for kind, q in questions.items()
    }


def calibrated() -> Calibration:
    """What the votes of the cases are worth, by the questions of all folds whose network is trained."""
    with reference.opened() as index:
        shipped = index.catalog.contents()
    by_fold = [asked_by(fold, encoder, shipped) for fold, encoder in cohorts.fold_networks().items()]
    questions = {}
    for kind in dict.fromkeys(kind for found in by_fold for kind in found):
        parts = [found[kind] for found in by_fold if kind in found]
        signals = {TYPICALITY: np.concatenate([told[TYPICALITY] for _, told in parts])}
        questions[kind] = joined([q for q, _ in parts]), signals
    with reference.opened() as index:
        return Calibration.of(questions, index, shipped, SEED)


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
