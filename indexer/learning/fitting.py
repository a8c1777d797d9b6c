"""From folders to a file of weights: what ``cbir train`` runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.encoder import SUFFIX, Encoder
from indexer.encoder.batch import IMAGES_AT_ONCE
from indexer.encoder.weights import load_weights, write_weights
from indexer.errors import CbirError, EncoderError
from indexer.files import refuse_folder
from indexer.learning.cohort import Cohort
from indexer.learning.cohort import validation as chosen_patients
from indexer.learning.looks import analyse
from indexer.learning.network import INPUT, VIEW, CompositeNetwork, RetrievalNetwork
from indexer.learning.pack import load, load_composites
from indexer.learning.recipe import Recipe
from indexer.learning.samples import Samples
from indexer.learning.strangeness import TrainingDistribution
from indexer.learning.targets import precision
from indexer.learning.tasks import CompositeTask, SliceTask
from indexer.learning.training import Epoch, epoch_generator, train

TYPICAL = 1000
"""Draws from each cohort that say what it looks like."""


@dataclass(frozen=True)
class Report:
    """What a training was and came to.

    Attributes
    ----------
    weights : Path
    patients, slices, composites : int
        Trained on; 0 composites where no source has several sequences.
    labels : dict of str to tuple of str
        Heads and their classes.
    losses : dict of str to float
        Of the last epoch.
    validation : dict of str to float
        For each head :func:`held_out_precision`; empty where nobody was held out.
    failed : tuple of (str, str)
        Sources that could not be read, with the reason.
    """

    weights: Path
    patients: int
    slices: int
    composites: int
    labels: dict[str, tuple[str, ...]]
    losses: dict[str, float]
    validation: dict[str, float]
    failed: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``cbir train --json`` (schema 1)."""
        failed = [{"source": source, "reason": reason} for source, reason in self.failed]
        return {"schema": 1, **vars(self), "weights": str(self.weights), "failed": failed}


def fit(
    cohorts: Sequence[Cohort],
    out: Path,
    recipe: Recipe,
    *,
    cache: Path,
    name: str | None = None,
    without: Sequence[tuple[str, str]] = (),
    validation: float = 0.0,
    resume: bool = False,
    read: Callable[[int, int], None] = lambda done, total: None,
    progress: Callable[[int, int, int], None] = lambda epoch, step, steps: None,
    finished: Callable[[Epoch], None] = lambda epoch: None,
) -> Report:
    """Train on folders and write an encoder. What ``cbir train`` runs.

    Checkpoints lie beside the weights, ending in ``.checkpoint``, until they are written.

    Parameters
    ----------
    cohorts : sequence of Cohort
    out : Path
        Ends in ``.safetensors``.
    recipe : Recipe
    cache : Path
        Folder for the prepared slices.
    name : str, optional
        Of the encoder; default the file's.
    without : sequence of (str, str)
        Labels whose patients are left out, such as a fold.
    validation : float
        Share of the patients that is left out and asks at the end, to choose settings on.
    resume : bool
        Go on from a checkpoint.
    read, progress, finished : callable
        Called with sources prepared of all; as `progress` of the loop; with each epoch.

    Raises
    ------
    ReadError, LabelsError, EncoderError, CbirError
        As :func:`indexer.learning.pack.load` and :func:`indexer.learning.training.train`; if no image
        has a label, the name has another ending, or the training was interrupted and `resume` is not
        set.
    """
    if out.suffix != SUFFIX:
        raise EncoderError(out, "is not a name for weights", f"let it end in {SUFFIX}")
    refuse_folder(out)
    checkpoint = out.with_suffix(".checkpoint")
    if checkpoint.exists() and not resume:
        raise CbirError(checkpoint, "a training was interrupted", "go on with --resume, or remove it")
    every = load(cohorts, INPUT, cache, read)
    for column, value in without:
        every = every.without(column, value)
    held = np.zeros(len(every), bool)
    if validation:
        held = np.isin(every.patients, list(chosen_patients(every.patients.tolist(), validation)))
    samples, losses = every.chosen(~held), {}

    def note(epoch: Epoch, _: RetrievalNetwork) -> None:
        losses.update(epoch.losses)
        finished(epoch)

    net = train(
        SliceTask(samples, recipe),
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
        finished=note,
    )
    composites, several = load_composites(cohorts, VIEW, cache, read), None
    if composites is not None:
        mine = np.isin(composites.patients, samples.patients)
        composites = composites.chosen(composites.labelled & mine)
    of_composites = out.with_suffix(".composites.checkpoint")
    if composites:
        task = CompositeTask(composites, recipe)
        several = train(task, checkpoint=of_composites, resume=resume, progress=progress)
    save(out, net, samples, recipe, name or out.stem, composite=several)
    for path in (checkpoint, of_composites):
        path.unlink(missing_ok=True)
    return Report(
        weights=out,
        patients=len(set(samples.patients.tolist())),
        slices=len(samples),
        composites=len(composites) if composites else 0,
        labels=samples.classes,
        losses=losses,
        validation=held_out_precision(load_weights(out), every, held) if held.any() else {},
        failed=samples.failed,
    )


def held_out_precision(
    encoder: Encoder, samples: Samples, held: NDArray[np.bool_], k: int = 10
) -> dict[str, float]:
    """For each head, how many of a slice's k nearest have its class: mean over the classes' means.

    Parameters
    ----------
    encoder : Encoder
    samples : Samples
    held : ndarray of bool, shape (n,)
        Slices that ask; the others answer. They share no patient.
    k : int
    """
    vectors = np.concatenate(
        [
            encoder.encode(np.asarray(samples.pixels[rows]))
            for rows in np.array_split(samples.rows, max(1, len(samples) // 256))
        ]
    )
    found = {}
    for head, target in samples.targets.items():
        known = samples.shown & (target >= 0)
        asks, answers = np.flatnonzero(known & held), np.flatnonzero(known & ~held)
        found[head] = precision(target[asks], target[answers], vectors[asks] @ vectors[answers].T, k)
    return found


def distribution_of(net: RetrievalNetwork, sets: Sequence[Samples], seed: int = 0) -> TrainingDistribution:
    """What sets of slices look like to a network, some of each cohort, drawn as for the training."""
    net.eval()
    statistics: list[NDArray[np.float32]] = []
    cohorts: list[int] = []
    for samples in sets:
        for cohort in np.unique(samples.cohort):
            mine = np.flatnonzero(samples.cohort == cohort)
            shares = torch.from_numpy(samples.shares()[mine])
            drawn = torch.multinomial(shares, TYPICAL, replacement=True, generator=epoch_generator(seed, -1))
            rows = np.unique(mine[drawn.numpy()])
            statistics += [
                analyse(net, np.asarray(samples.pixels[samples.rows[part]]))[-1]
                for part in np.array_split(rows, max(1, len(rows) // IMAGES_AT_ONCE))
            ]
            cohorts += [len(set(cohorts))] * len(rows)
    return TrainingDistribution.of(np.concatenate(statistics), np.array(cohorts))


def save(
    path: Path,
    net: RetrievalNetwork,
    samples: Samples,
    recipe: Recipe,
    name: str,
    also: Sequence[Samples] = (),
    composite: CompositeNetwork | None = None,
    least_lesion: Mapping[str, float] | None = None,
    first: Recipe | None = None,
) -> None:
    """Write a trained network as an encoder that :func:`indexer.encoder.load_encoder` takes.

    Parameters
    ----------
    path : Path
        Ends in ``.safetensors``.
    net : RetrievalNetwork
    samples : Samples
        What it was trained on: labels and keyed hashes of the patients are kept.
    recipe : Recipe
    name : str
        Of the encoder, as an index states it.
    also : sequence of Samples
        What it was not trained on, and need not call strange.
    composite : CompositeNetwork, optional
        Trained on composites of the same patients.
    least_lesion : mapping of str to float, optional
        See :class:`indexer.encoder.protocols.Doubtful`.
    first : Recipe, optional
        Of an earlier stage of the training.
    """
    write_weights(
        path,
        net,
        distribution=distribution_of(net, [samples, *also], recipe.seed),
        name=name,
        labels={head: list(names) for head, names in samples.classes.items()},
        recipe=asdict(recipe) | ({"first": asdict(first)} if first else {}),
        patients=sorted(set(samples.patients.tolist())),
        composite=composite,
        least_lesion=least_lesion,
    )
