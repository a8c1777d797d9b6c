"""The real cohorts as they are trained on, and the networks of their five folds.

One recipe learns from all of them at once. For fold K every person is left out who is in fold K of
any cohort, so that the same five networks may be judged on each. `--final` leaves nobody out: these
are the weights that the package ships.

    python -m benchmarks.cohorts --fold 1     train the network of a fold, or go on with it
    python -m benchmarks.cohorts              all five, one after the other
    python -m benchmarks.cohorts --final      the weights to ship
    python -m benchmarks.cohorts --validate NAME --epochs 6 …
                                              try a recipe on a fifth of fold 1's training patients
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks import results
from indexer import readers
from indexer.encoder import SHIPPED, TrainedEncoder, load_weights
from indexer.labels import load_tables
from indexer.learning import network
from indexer.learning.cohort import Cohort, validation
from indexer.learning.fitting import held_out_precision, save
from indexer.learning.pack import load, load_composites
from indexer.learning.recipe import Recipe
from indexer.learning.samples import Samples
from indexer.learning.tasks import CompositeTask, SliceTask
from indexer.learning.training import Epoch, train
from indexer.readers import Source
from indexer.scan import Scan, stacked

FIGSHARE = results.DATA / "figshare"
NETWORKS = results.CACHE / "networks"
FOLDS = ("1", "2", "3", "4", "5")
HELD_OUT = 0.2
"""Share of the training patients that settings may be chosen on."""

RECIPE = Recipe(draws=3000)
EVENLY = 24
LESION_SLICES, OTHER_SLICES = 12, 4
"""At most so many slices of a stack are trained on, evenly spaced: neighbours say the same."""


# ---- what is read ----------------------------------------------------------------------------------


@functools.cache
def borders() -> dict[str, list[list[float]]]:
    """Outline of the tumour on each figshare slice, x and y in pixels."""
    found: dict[str, list[list[float]]] = json.loads((FIGSHARE / "borders.json").read_text())
    return found


def outlined(source: Source) -> list[Scan]:
    """A figshare slice with the tumour as its region."""
    (scan,) = readers.read(source)
    columns, rows, _ = scan.voxels.shape
    mask = Image.new("1", (columns, rows))
    ImageDraw.Draw(mask).polygon([(x, y) for x, y in borders()[source.path.stem]], fill=1)
    return [dataclasses.replace(scan, region=stacked(np.asarray(mask, bool)[None]))]


def thinned(source: Source) -> list[Scan]:
    """The scans of a source with some of their slices only."""
    found = []
    for scan in readers.read(source):
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
    """All cohorts. Most draws are of figshare, whose labels say the most; grades 2 and 3 the least."""
    data = results.DATA
    version = f"thinned {LESION_SLICES} {OTHER_SLICES}"
    return load(
        [
            Cohort(FIGSHARE / "images", load_tables(FIGSHARE / "slices.tsv"), ("tumour",), outlined, "1", 3),
            Cohort(
                data / "brats-lesions",
                load_tables(data / "brats-lesions" / "lesions.tsv"),
                ("grade_group", "who_grade"),
                thinned,
                version,
                0.75,
            ),
            Cohort(
                data / "tcga-lgg",
                load_tables(data / "tcga-lgg" / "participants.tsv"),
                ("who_grade",),
                thinned,
                version,
                0.5,
            ),
        ],
        network.INPUT,
        results.CACHE,
    )


def composites() -> Samples:
    """Composites of BraTS lesions. Those of TCGA-LGG would teach grades 2 and 3, which do not come across."""
    root = results.DATA / "brats-lesions"
    version = f"thinned {LESION_SLICES} {OTHER_SLICES}"
    cohort = Cohort(root, load_tables(root / "lesions.tsv"), ("grade_group",), thinned, version)
    found = load_composites([cohort], network.VIEW, results.CACHE)
    assert found is not None
    return found


def volumes() -> Samples:
    """Full volumes, most of them skull-stripped: nothing is learnt from them but that they exist."""
    labels = load_tables(results.DATA / "volumes" / "participants.tsv")
    cohort = Cohort(results.DATA / "volumes", labels, ("who_grade",), evenly, f"evenly {EVENLY}")
    return load([cohort], network.INPUT, results.CACHE)


def evenly(source: Source) -> list[Scan]:
    """The scans of a source with evenly spaced slices only, and no outline."""
    found = []
    for scan in readers.read(source):
        planes = np.moveaxis(scan.voxels, scan.axis, 0).any((1, 2))
        part = (slice(None),) * scan.axis + (spaced(np.flatnonzero(planes), EVENLY),)
        found.append(dataclasses.replace(scan, voxels=scan.voxels[part], region=None))
    return found


def without_fold(data: Samples, fold: str) -> Samples:
    """The samples of persons who are in no cohort's fold of this name."""
    inside = np.array([row.get("fold") == fold for row in data.labels], bool)
    return data.chosen(~np.isin(data.patients, data.patients[inside]))


# ---- networks --------------------------------------------------------------------------------------


def weights(name: str) -> Path:
    """Where a network lies: ``fold-1``, ``final``, …."""
    return NETWORKS / f"{name}.safetensors"


def trained(data: Samples, name: str, recipe: Recipe = RECIPE) -> TrainedEncoder:
    """The network on some samples: from the cache, taken up where it stopped, or trained anew."""
    path = weights(name)
    if not path.exists():
        start = time.perf_counter()

        def finished(epoch: Epoch, _: network.RetrievalNetwork) -> None:
            minutes = (time.perf_counter() - start) / 60
            losses = ", ".join(f"{n} {value:.3f}" for n, value in epoch.losses.items())
            print(f"{name}: epoch {epoch.number}/{recipe.epochs}, {losses}, {minutes:.1f} min", flush=True)

        checkpoint = path.with_suffix(".checkpoint")
        net = train(SliceTask(data, recipe), checkpoint=checkpoint, resume=True, finished=finished)
        several, also = composites(), volumes()
        several, also = (part.chosen(np.isin(part.patients, data.patients)) for part in (several, also))
        composite = train(CompositeTask(several, recipe))
        save(path, net, data, recipe, "cbir" if name == "final" else name, [also], composite)
        checkpoint.unlink()
    return load_weights(path)


def fold_networks(folds: Sequence[str] = FOLDS) -> dict[str, TrainedEncoder]:
    """Those of the folds' networks that are trained."""
    return {fold: load_weights(weights(f"fold-{fold}")) for fold in folds if weights(f"fold-{fold}").exists()}


def validate(data: Samples, recipe: Recipe, name: str) -> None:
    """Train on most of fold 1's training patients, and ask with the others."""
    data = without_fold(data, "1")
    held = np.isin(data.patients, list(validation(data.patients.tolist(), HELD_OUT)))
    encoder = trained(data.chosen(~held), f"validation-{name}", recipe)
    print({head: round(p, 4) for head, p in held_out_precision(encoder, data, held).items()})


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
        validate(data, recipe, arguments["validate"])
    elif arguments["final"]:
        trained(data, "final", recipe)
        shutil.copyfile(weights("final"), SHIPPED)
        digest = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
        SHIPPED.with_suffix(".sha256").write_text(f"{digest}  {SHIPPED.name}\n")
    else:
        for fold in [arguments["fold"]] if arguments["fold"] else FOLDS:
            trained(without_fold(data, fold), f"fold-{fold}", recipe)


if __name__ == "__main__":
    main()
