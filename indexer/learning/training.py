"""The loop that trains a network: metric learning on labels, beside outlines where there are any.

Randomness comes from the seed and the number of the epoch alone, so a run that is taken up from a
checkpoint goes on bit for bit as if it had not stopped (on the same machine and thread count).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn

from indexer.learning.checkpoint import identity_of, keep, taken_up
from indexer.learning.recipe import Recipe
from indexer.learning.targets import ClassVectors
from indexer.learning.tasks import Task

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Epoch:
    """What an epoch has come to.

    Attributes
    ----------
    number : int
        Epochs done.
    losses : dict of str to float
        Mean over the epoch, by the names that the task gives them.
    """

    number: int
    losses: dict[str, float]


def train(
    task: Task[Network],
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    device: str | None = None,
    progress: Callable[[int, int, int], None] = lambda epoch, step, steps: None,
    finished: Callable[[Epoch, Network], None] = lambda epoch, net: None,
) -> Network:
    """Train the network of a task.

    Parameters
    ----------
    task : Task
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
    Module
        On the CPU, in evaluation mode, not fused.

    Raises
    ------
    CbirError
        If the checkpoint is damaged or of another training.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    samples, recipe = task.samples, task.recipe
    shares = torch.from_numpy(task.shares())
    steps = max(1, round((recipe.draws or int(samples.shown.sum())) / recipe.batch))
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        net = task.network()
        heads = ClassVectors({head: len(names) for head, names in samples.classes.items()}, recipe)
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        heads.to(device)
        optimiser = torch.optim.AdamW(_groups([net, heads], recipe), recipe.rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: _rate(step, recipe.epochs * steps, recipe.warmup)
        )
        state = {"network": net, "heads": heads, "optimiser": optimiser, "schedule": schedule}
        identity = identity_of(samples, recipe)
        done = taken_up(checkpoint, identity, state) if checkpoint and resume else 0
        for number in range(done, recipe.epochs):
            generator = epoch_generator(recipe.seed, number)
            torch.manual_seed(generator.initial_seed())  # of dropout and stochastic depth
            net.train()
            drawn = torch.multinomial(shares, steps * recipe.batch, replacement=True, generator=generator)
            sums = dict.fromkeys(task.weights, 0.0)
            for step, rows in enumerate(drawn.view(steps, recipe.batch).numpy()):
                losses = task.losses(net, heads, rows, number, generator, device)
                optimiser.zero_grad()
                _weighted(losses, task.weights).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                sums = {name: sums[name] + float(loss.detach()) for name, loss in losses.items()}
                progress(number, step + 1, steps)
            if checkpoint:
                keep(checkpoint, identity, number + 1, state)
            finished(Epoch(number + 1, {name: total / steps for name, total in sums.items()}), net)
    return net.cpu().eval()


def epoch_generator(seed: int, epoch: int) -> Generator:
    """The dice of one epoch."""
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _weighted(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


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
