"""What a column of labels is to the training: a set of classes, each a unit vector that slices are led to.

All that would change for labels of another type, such as a grade's order or an age, is here: how
values become targets, how often each is drawn, what is learnt from them, and how that is judged.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from indexer.learning.recipe import Recipe

UNKNOWN = -1
"""Target of a sample whose label is not known."""


def classes_of(values: Collection[str]) -> tuple[str, ...]:
    """The classes among the values of a column, in order; an empty value is unknown."""
    return tuple(sorted(set(values) - {""}))


def coded(values: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Targets: the place of each value among the classes, `UNKNOWN` if it is none of them."""
    place = {name: i for i, name in enumerate(classes)}
    return np.array([place.get(value, UNKNOWN) for value in values], np.int64)


def balanced(target: NDArray[np.int64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of samples with known targets, so that all classes weigh the same; their sum is 1."""
    per_class = np.bincount(target, share)
    return np.asarray(share / per_class[target] / np.count_nonzero(per_class))


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
            `UNKNOWN` where the class is unknown.
        """
        loss, known = embeddings.sum() * 0, 0
        for head, vectors in zip(self.heads, self.vectors, strict=True):
            if count := int((targets[head] >= 0).sum()):
                loss = loss + count * cosine_loss(embeddings, vectors, targets[head], self.recipe)
                known += count
        return loss / max(known, 1)


def cosine_loss(embeddings: Tensor, vectors: Tensor, target: Tensor, recipe: Recipe) -> Tensor:
    """Cross-entropy of scale · (cosine − margin at the own class), over rows whose class is known.

    Wang et al., *CosFace*, CVPR 2018.
    """
    known = target >= 0
    cosines = embeddings[known] @ nn.functional.normalize(vectors).T
    own = nn.functional.one_hot(target[known], len(vectors))
    logits = recipe.scale * (cosines - recipe.margin * own)
    return nn.functional.cross_entropy(logits, target[known], label_smoothing=recipe.smoothing)


def precision(
    asked: NDArray[np.int64], answers: NDArray[np.int64], similarity: NDArray[np.float32], k: int
) -> float:
    """How many of the k nearest answers have the class of who asks: mean over the classes' means.

    Parameters
    ----------
    asked, answers : ndarray of int64, shapes (q,) and (n,)
        Known targets.
    similarity : ndarray of float32, shape (q, n)
    k : int
    """
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    hits = (answers[order] == asked[:, None]).mean(1)
    return float(np.mean([hits[asked == c].mean() for c in np.unique(asked)]))
