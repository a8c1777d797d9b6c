"""A training as it stood after an epoch, to be taken up."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from indexer.errors import CbirError
from indexer.files import written_whole
from indexer.learning.recipe import Recipe
from indexer.learning.samples import Samples


def identity_of(samples: Samples, recipe: Recipe) -> str:
    """Digest of the recipe and of which slices with which targets are trained on."""
    digest = hashlib.sha256(json.dumps([asdict(recipe), samples.classes]).encode())
    arrays = [samples.rows, samples.boxes, samples.outlined, samples.importance, *samples.targets.values()]
    digest.update(b"".join(np.asarray(array).tobytes() for array in arrays))
    digest.update("\0".join(samples.patients).encode())
    digest.update(samples.pixels[samples.rows[:: max(1, len(samples) // 64)]].tobytes())
    return digest.hexdigest()


def keep(path: Path, identity: str, epoch: int, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole, with the states of its parts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: part.state_dict() for name, part in state.items()}
    held = io.BytesIO()  # given a path, torch hides what the disk said
    torch.save({"identity": identity, "epoch": epoch, **content}, held)
    with written_whole(path) as aside:
        aside.write_bytes(held.getbuffer())


def taken_up(path: Path, identity: str, state: dict[str, Any]) -> int:
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
