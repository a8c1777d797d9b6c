"""The real cohorts as they are trained on, and the networks of their five folds.

One recipe learns from all of them at once. For fold K every person is left out who is in fold K of
any cohort, so that the same five networks may be judged on each. `--final` leaves nobody out: these
are the weights that the package ships.

Slices are learnt in two stages. In the first each cohort's grades are a matter of its own, and whole
brains teach where a lesion is and no grade, so that no folder stands for one. In the second, which is
short, one head of high and low grade is learnt over crops, whole slices, volumes and whole heads together.
Nobody outlined the glioblastomas among the heads: they are learnt where the network of the first stage
sees a lesion.

    python -m benchmarks.cohorts --fold 1     train the network of a fold, or go on with it
    python -m benchmarks.cohorts              all five, one after the other
    python -m benchmarks.cohorts --final      the weights to ship
    python -m benchmarks.cohorts --validate NAME --epochs 6 …
                                              try a recipe on a fifth of fold 1's training patients
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks import crops, results
from indexer import readers
from indexer.encoder import SHIPPED, TrainedEncoder, load_weights
from indexer.encoder.weights import load_networks
from indexer.labels import Table, load_tables
from indexer.learning import network
from indexer.learning.cohort import CORE, TISSUES, Cohort, validation
from indexer.learning.fitting import held_out_precision, save
from indexer.learning.pack import load, load_composites
from indexer.learning.recipe import Recipe
from indexer.learning.samples import Samples
from indexer.learning.tasks import CompositeTask, Network, SliceTask, Task
from indexer.learning.training import Epoch, train
from indexer.readers import Source
from indexer.scan import Scan, stacked

FIGSHARE = results.DATA / "figshare"
PLANES = Path(__file__).with_name("planes_of_figshare.tsv")
NETWORKS = results.CACHE / "networks"
FOLDS = ("1", "2", "3", "4", "5")
HELD_OUT = 0.2
"""Share of the training patients that settings may be chosen on."""

RECIPE = Recipe(draws=3000)
OF_COMPOSITES = Recipe(epochs=16, draws=3000, tissues=2)
OF_GRADES = Recipe(epochs=5, draws=3000, rate=6e-4)
BELIEVED = 0.3
"""Slices of whole heads are learnt that show a lesion with more than this chance, to the first stage."""
EVENLY = 24
LESION_SLICES, OTHER_SLICES = 12, 4
"""At most so many slices of a stack are trained on, evenly spaced: neighbours say the same."""


# ---- what is read ----------------------------------------------------------------------------------


@functools.cache
def borders() -> dict[str, list[list[float]]]:
    """Outline of the tumour on each figshare slice, x and y in pixels."""
    found: dict[str, list[list[float]]] = json.loads((FIGSHARE / "borders.json").read_text())
    return found


@functools.cache
def planes() -> list[str]:
    """The plane of each figshare slice, by their numbers: told by eye, for the publishers say none."""
    with PLANES.open(newline="", encoding="utf-8") as file:
        runs = list(csv.DictReader(file, delimiter="\t"))
    return [run["plane"] for run in runs for _ in range(int(run["first"]), int(run["last"]) + 1)]


def outlined(source: Source) -> list[Scan]:
    """A figshare slice with the tumour as its region."""
    (scan,) = readers.read(source)
    columns, rows, _ = scan.voxels.shape
    mask = Image.new("1", (columns, rows))
    ImageDraw.Draw(mask).polygon([(x, y) for x, y in borders()[source.path.stem]], fill=1)
    return [dataclasses.replace(scan, region=stacked(np.asarray(mask, bool)[None]))]


def thinned(source: Source) -> list[Scan]:
    """The scans of a source with some of their slices only."""
    return _thinned(readers.read(source))


def volumes_told_apart(source: Source) -> list[Scan]:
    """The same of volumes whose outlines tell tissues apart; nothing of others."""
    if source.kind == "raster" or not source.region_files:
        return []
    mask = nib.as_closest_canonical(nib.load(source.region_files[0]))
    labels = np.asarray(mask.dataobj).astype(np.uint8)
    return _thinned([dataclasses.replace(scan, region=labels) for scan in readers.read(source)])


def outlined_volumes(source: Source) -> list[Scan]:
    """The scans of volumes that are outlined."""
    return thinned(source) if source.region_files else []


def slices_told_apart(source: Source) -> list[Scan]:
    """Single slices of FLAIR, whose outlines tell tissues apart."""
    if source.kind != "raster" or source.sequence != "flair":
        return []
    labels = stacked(np.asarray(Image.open(source.region_files[0]), np.uint8)[None])
    return [dataclasses.replace(scan, region=labels) for scan in readers.read(source)]


def outlined_t1ce(source: Source) -> list[Scan]:
    """The single slices of T1 after contrast agent."""
    return readers.read(source) if source.sequence == "t1ce" and source.kind == "raster" else []


def healthy(source: Source) -> list[Scan]:
    """A volume that shows no tumour, outlined as such."""
    if source.kind == "raster":
        return []
    scans = _thinned(readers.read(source))
    return [dataclasses.replace(scan, region=np.zeros(scan.voxels.shape, bool)) for scan in scans]


def of_contrast_agent(source: Source) -> list[Scan]:
    """A figshare slice with the tumour as its region, called what it is."""
    return [dataclasses.replace(scan, sequence="t1ce") for scan in outlined(source)]


def _thinned(scans: list[Scan]) -> list[Scan]:
    found = []
    for scan in scans:
        planes = np.moveaxis(scan.voxels, scan.axis, 0)
        some = planes.any((1, 2))
        if scan.region is None:
            keep = spaced(np.flatnonzero(some), LESION_SLICES)
        else:
            lesion = np.moveaxis(scan.region, scan.axis, 0).any((1, 2))
            keep = np.concatenate(
                [
                    spaced(np.flatnonzero(lesion), LESION_SLICES),
                    spaced(np.flatnonzero(some & ~lesion), OTHER_SLICES),
                ]
            )
        keep.sort()
        part = (slice(None),) * scan.axis + (keep,)
        region = None if scan.region is None else scan.region[part]
        found.append(dataclasses.replace(scan, voxels=scan.voxels[part], region=region))
    return found


def spaced(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, evenly spaced, the ends left out.

    Examples
    --------
    >>> spaced(np.arange(20), 4).tolist()
    [2, 7, 12, 17]
    """
    if len(rows) <= most:
        return rows
    return rows[((np.arange(most) + 0.5) * len(rows) / most).astype(np.int64)]


def samples() -> Samples:
    """All cohorts. Most draws are of figshare, whose labels say the most; grades 2 and 3 the least.

    Whole slices of BraTS, volumes and scans without a tumour teach where a lesion is, and no label: no
    folder is to stand for a grade.
    """
    data, version = results.DATA, f"thinned {LESION_SLICES} {OTHER_SLICES}"
    lesions = load_tables(data / "brats-lesions" / "lesions.tsv")
    grades = ("grade_group", "who_grade")
    return load(
        [
            Cohort(FIGSHARE / "images", load_tables(FIGSHARE / "slices.tsv"), ("tumour",), outlined, "1", 3),
            Cohort(data / "brats-lesions", lesions, grades, thinned, version, 0.75),
            Cohort(
                data / "tcga-lgg",
                load_tables(data / "tcga-lgg" / "participants.tsv"),
                ("who_grade",),
                thinned,
                version,
                0.5,
            ),
            Cohort(data / "brats-slices", lesions, (), thinned, version, 2),
            Cohort(data / "volumes-2mm", lesions, (), outlined_volumes, version, 2),
            Cohort(data / "no-glioma", lesions, (), healthy, version),
            Cohort(data / "dicom-t1", [], (), healthy, version),
        ],
        network.INPUT,
        results.CACHE,
    )


def graded() -> tuple[Samples, NDArray[np.bool_]]:
    """What the second stage learns: tumours as before, and high and low grade of all cohorts in one head.

    Draws are 40 % of figshare, and 12 to 15 % each of crops, whole slices, whole heads of TCGA-LGG, and
    whole heads of TCGA-GBM.

    Returns
    -------
    samples : Samples
    heads : ndarray of bool, shape (n,)
        Those of TCGA-GBM, which nobody outlined.
    """
    data, version = results.DATA, f"thinned {LESION_SLICES} {OTHER_SLICES}"
    lesions, grade = load_tables(data / "brats-lesions" / "lesions.tsv"), ("grade_group",)
    low = [*lesions, *map(of_low_grade, load_tables(data / "tcga-lgg" / "participants.tsv"))]
    high = [*lesions, *load_tables(data / "tcga-gbm" / "participants.tsv")]
    learnt = [
        Cohort(FIGSHARE / "images", load_tables(FIGSHARE / "slices.tsv"), ("tumour",), outlined, "1", 3),
        Cohort(data / "brats-lesions", lesions, grade, thinned, version, 1.67),
        Cohort(data / "tcga-lgg", low, grade, thinned, version, 1.7),
        Cohort(data / "brats-slices", lesions, grade, thinned, version, 25),
        Cohort(data / "volumes-2mm", lesions, grade, outlined_volumes, version, 1.3),
        Cohort(data / "no-glioma", lesions, (), healthy, version),
        Cohort(data / "dicom-t1", [], (), healthy, version),
        Cohort(data / "tcga-gbm", high, grade, evenly, f"evenly {EVENLY}", 68),
    ]
    found = load(learnt, network.INPUT, results.CACHE)
    code = sorted({str(cohort.root) for cohort in learnt}).index(str(data / "tcga-gbm"))
    return found, found.cohort == code


def of_low_grade(table: Table) -> Table:
    """The table of a cohort whose tumours are all of WHO grade 2 or 3, as BraTS calls them."""
    rows = tuple((line, (*cells, "LGG")) for line, cells in table.rows)
    return dataclasses.replace(table, header=(*table.header, "grade_group"), rows=rows)


def believed(data: Samples, heads: NDArray[np.bool_], encoder: TrainedEncoder) -> Samples:
    """The samples, but of the heads those where the encoder sees a lesion, with a box where it does."""
    rows = np.flatnonzero(heads)
    seen = encoder.analyse(data.pixels[data.rows[rows]])
    boxes, keep = data.boxes.copy(), np.ones(len(data), bool)
    boxes[rows], keep[rows] = seen.boxes, seen.weights > BELIEVED
    return dataclasses.replace(data, boxes=boxes).chosen(keep)


def composites() -> Samples:
    """Composites of BraTS teach the grade, and whatever is outlined teaches the tissues of a lesion.

    Composites of TCGA-LGG would teach grades 2 and 3, which do not come across.
    """
    data = results.DATA
    version = f"thinned {LESION_SLICES} {OTHER_SLICES}"
    lesions = load_tables(data / "brats-lesions" / "lesions.tsv")
    grade = ("grade_group",)
    found = load_composites(
        [
            Cohort(data / "brats-lesions", lesions, grade, thinned, version),
            Cohort(data / "brats-lesions", lesions, (), crops.labelled, "1", 4, TISSUES),
            Cohort(data / "brats-slices", lesions, (), volumes_told_apart, version, 4, TISSUES),
            Cohort(data / "brats-slices", lesions, (), slices_told_apart, version, 1, TISSUES),
            Cohort(data / "brats-slices", lesions, (), outlined_t1ce, version, 1),
            Cohort(data / "volumes", lesions, (), volumes_told_apart, version, 4, TISSUES),
            Cohort(data / "volumes-2mm", lesions, grade, volumes_told_apart, version, 4, TISSUES),
            Cohort(
                data / "tcga-lgg",
                load_tables(data / "tcga-lgg" / "participants.tsv"),
                (),
                thinned,
                version,
                1.5,
            ),
            Cohort(
                FIGSHARE / "images", load_tables(FIGSHARE / "slices.tsv"), (), of_contrast_agent, "1", 1, CORE
            ),
            Cohort(data / "no-glioma", lesions, (), healthy, version, 2),
            Cohort(data / "dicom-t1", [], (), healthy, version, 2),
        ],
        network.VIEW,
        results.CACHE,
    )
    assert found is not None
    return found


def unlearnt() -> Samples:
    """Whole heads and volumes as the clinic has them: nothing is learnt from them but that they exist."""
    version = f"evenly {EVENLY}"
    return load(
        [
            Cohort(results.DATA / name, [], (), evenly, version)
            for name in ("volumes", "volumes-2mm", "tcga-gbm")
        ],
        network.INPUT,
        results.CACHE,
    )


def evenly(source: Source) -> list[Scan]:
    """The scans of a source with evenly spaced slices only, and no outline."""
    found = []
    for scan in readers.read(source):
        planes = np.moveaxis(scan.voxels, scan.axis, 0).any((1, 2))
        part = (slice(None),) * scan.axis + (spaced(np.flatnonzero(planes), EVENLY),)
        found.append(dataclasses.replace(scan, voxels=scan.voxels[part], region=None))
    return found


def persons_in(data: Samples, fold: str) -> frozenset[str]:
    """Who is in any cohort's fold of this name."""
    inside = [row.get("fold") == fold for row in data.labels]
    return frozenset(data.patients[np.array(inside, bool)].tolist())


def without(data: Samples, persons: Collection[str]) -> Samples:
    """The samples of all others."""
    return data.chosen(~np.isin(data.patients, list(persons)))


# ---- networks --------------------------------------------------------------------------------------


def weights(name: str) -> Path:
    """Where a network lies: ``fold-1``, ``final``, …."""
    return NETWORKS / f"{name}.safetensors"


def trained(
    data: Samples, persons: Collection[str], name: str, recipe: Recipe, of_composites: Recipe
) -> TrainedEncoder:
    """The networks that have seen all but some persons: from the cache, or trained, or trained on.

    The recipes are of the first stage (:data:`OF_GRADES` is the second's) and of composites.
    """
    path, first = weights(name), weights(f"first-{name}")
    also, final = without(unlearnt(), persons), name == "final"
    if not _held(first, dataclasses.asdict(recipe)):
        mine = without(data, persons)
        net = _trained(SliceTask(mine, recipe), path.with_suffix(".checkpoint"))
        several = CompositeTask(without(composites(), persons), of_composites)
        together = _trained(several, path.with_suffix(".composites.checkpoint"))
        save(first, net, mine, recipe, f"first-{name}", [also], together)
    if not _held(path, dataclasses.asdict(OF_GRADES) | {"first": dataclasses.asdict(recipe)}):
        begun, composite = load_networks(first)
        every, heads = graded()
        others = ~np.isin(every.patients, list(persons))
        mine = believed(every.chosen(others), heads[others], load_weights(first))
        task = SliceTask(mine, OF_GRADES, lambda net: _begun(net, begun))
        net = _trained(task, path.with_suffix(".grades.checkpoint"))
        least = _least_lesion() if final else None
        save(path, net, mine, OF_GRADES, "cbir" if final else name, [also], composite, least, recipe)
        for checkpoint in path.parent.glob(f"{name}.*checkpoint"):
            checkpoint.unlink()
    return load_weights(path)


def _held(path: Path, recipe: dict[str, Any]) -> bool:
    """Whether a network is in the cache; one of another recipe stands in the way of this one."""
    if path.exists() and load_weights(path).about["recipe"] != recipe:
        raise SystemExit(f"{path}: was trained by another recipe; remove it, or move it away")
    return path.exists()


def _begun(net: network.RetrievalNetwork, before: network.RetrievalNetwork) -> None:
    """Put the weights of the first stage into a network."""
    net.load_state_dict(before.state_dict())


def _least_lesion() -> dict[str, float]:
    """What the networks of the folds said of patients whom they had not seen (:mod:`benchmarks.regions`)."""
    found = results.load("regions")["results"]["no lesion"]
    return {name: row["least"] for name, row in found.items()}


def _trained(task: Task[Network], checkpoint: Path) -> Network:
    start = time.perf_counter()

    def finished(epoch: Epoch, _: Network) -> None:
        minutes = (time.perf_counter() - start) / 60
        losses = ", ".join(f"{n} {value:.3f}" for n, value in epoch.losses.items())
        print(
            f"{checkpoint.stem}: epoch {epoch.number}/{task.recipe.epochs}, {losses}, {minutes:.1f} min",
            flush=True,
        )

    return train(task, checkpoint=checkpoint, resume=True, finished=finished)


def fold_networks(folds: Sequence[str] = FOLDS) -> dict[str, TrainedEncoder]:
    """Those of the folds' networks that are trained."""
    return {fold: load_weights(weights(f"fold-{fold}")) for fold in folds if weights(f"fold-{fold}").exists()}


def validate(data: Samples, recipe: Recipe, of_composites: Recipe, name: str) -> None:
    """Train on most of fold 1's training patients, and ask with the others."""
    tested = persons_in(data, "1")
    data = without(data, tested)
    held = validation(data.patients.tolist(), HELD_OUT)
    encoder = trained(data, tested | held, f"validation-{name}", recipe, of_composites)
    asks = np.isin(data.patients, list(held))
    print({head: round(p, 4) for head, p in held_out_precision(encoder, data, asks).items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fold", choices=FOLDS, help="only this fold")
    parser.add_argument("--final", action="store_true", help="the network on all patients")
    parser.add_argument("--validate", metavar="NAME", help="keep the try under this name")
    parser.add_argument("--threads", type=int, help="processor cores to use")
    defaults = dataclasses.asdict(RECIPE)
    for setting, value in defaults.items():
        parser.add_argument(f"--{setting}", type=int if value is None else type(value), default=value)
    arguments = vars(parser.parse_args())
    recipe = Recipe(**{setting: arguments[setting] for setting in defaults})
    if arguments["threads"]:
        torch.set_num_threads(arguments["threads"])
    data = samples()
    if arguments["validate"]:
        validate(data, recipe, OF_COMPOSITES, arguments["validate"])
    elif arguments["final"]:
        _least_lesion()  # rather now than after the training
        trained(data, (), "final", recipe, OF_COMPOSITES)
        shutil.copyfile(weights("final"), SHIPPED)
        digest = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
        SHIPPED.with_suffix(".sha256").write_text(f"{digest}  {SHIPPED.name}\n")
    else:
        for fold in [arguments["fold"]] if arguments["fold"] else FOLDS:
            trained(data, persons_in(data, fold), f"fold-{fold}", recipe, OF_COMPOSITES)


if __name__ == "__main__":
    main()
