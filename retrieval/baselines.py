"""What a ranking is compared with: the predicted class, raw pixels, any vectors, shuffled labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from retrieval.items import Items, Similarity, blocks

NEIGHBOURS = 10
"""Votes of the baseline that ranks by predicted class."""


def predicted_class_similarity(
    similarity: Similarity,
    labels: Sequence[str | None],
    patients: Sequence[str],
    *,
    folds: Sequence[str | None] | None = None,
    database: ArrayLike | None = None,
    neighbours: int = NEIGHBOURS,
) -> Similarity:
    """The baseline "rank by predicted class": the nearest items vote, and the likeliest class comes first.

    A query's allowed neighbours (as in :func:`~retrieval.evaluation.evaluate`: other patients, other
    folds) vote with their labels; every item is then as similar to the query as its own label has
    votes. On few classes this beats most rankings in mAP, while its P@1 is no more than a classifier's
    accuracy.

    Parameters
    ----------
    similarity, labels, patients, folds, database
        As in :func:`retrieval.evaluation.evaluate`.
    neighbours : int
        Votes. Equally similar items at the last place share what is left.

    Returns
    -------
    callable
        A :data:`Similarity`.
    """
    items = Items.of(labels, patients, folds, database)
    classes = (items.label[:, None] == np.arange(len(items.classes))) & items.known[:, None]
    votes = np.zeros((len(items), len(items.classes)))
    for rows, scores in blocks(similarity, items, np.flatnonzero(items.known)):
        k = min(neighbours, scores.shape[1])
        border = -np.partition(-scores, k - 1, axis=1)[:, k - 1, None]
        above = scores > border
        level = (scores == border) & (scores > -np.inf)
        left = k - above.sum(axis=1, keepdims=True)
        votes[rows] = (above + level * (left / np.maximum(level.sum(axis=1, keepdims=True), 1))) @ classes
    return lambda rows: votes[rows][:, items.label]


def cosine_similarity(vectors: ArrayLike) -> Similarity:
    """Cosines between vectors, block by block; a zero vector is similar to nothing.

    Parameters
    ----------
    vectors : array_like, shape (n, d)

    Returns
    -------
    callable
        A :data:`Similarity`.
    """
    v = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(v, axis=1, keepdims=True)
    unit = v / np.where(norms > 0, norms, 1)
    return lambda rows: unit[rows] @ unit.T


def pixel_similarity(images: ArrayLike) -> Similarity:
    """The baseline "raw pixels": correlation of images of one size, blind to brightness and contrast.

    Parameters
    ----------
    images : array_like, shape (n, ...)

    Returns
    -------
    callable
        A :data:`Similarity`.
    """
    pixels = np.asarray(images, dtype=np.float32)
    pixels = pixels.reshape(len(pixels), -1)
    return cosine_similarity(pixels - pixels.mean(axis=1, keepdims=True))


def shuffled_labels(labels: Sequence[str | None], patients: Sequence[str], seed: int = 0) -> list[str | None]:
    """The canary: labels dealt anew among patients, so that nothing true is left to be found.

    Each patient receives the whole labels of one patient, drawn without replacement: a patient of
    one label has one label again. With these labels an evaluation must score chance; where it
    does not, a query reaches its own patient. Judge by P@k, whose expected value over the shuffles
    is chance exactly when each patient has one label; a single shuffle falls outside its 95 %
    interval now and then, the mean of several does not stray. The AP metrics come out a little
    above chance even so: chance is that of a random order of items, and the items of one patient,
    which share a label, stand close together.

    Parameters
    ----------
    labels, patients : sequence of str, length n
    seed : int

    Returns
    -------
    list of str, length n
    """
    owned: dict[str, list[int]] = {}
    for i, patient in enumerate(patients):
        owned.setdefault(patient, []).append(i)
    holders = list(owned.values())
    dealt: list[str | None] = [None] * len(labels)
    for taker, giver in enumerate(np.random.default_rng(seed).permutation(len(holders))):
        mine, theirs = holders[taker], holders[giver]
        for place, i in enumerate(mine):
            dealt[i] = labels[theirs[place * len(theirs) // len(mine)]]
    return dealt
