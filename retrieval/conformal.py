"""How probabilities are mended, and which values and which similarities are usual: formulas.

One **temperature** makes what is said with 80 % right in 80 % of the cases (Guo et al. 2017, "On
calibration of modern neural networks", https://arxiv.org/abs/1706.04599). A **conformal quantile** bounds
what a new patient's value will score (Vovk, Gammerman and Shafer 2005, "Algorithmic learning in a random
world"; Angelopoulos and Bates 2021, https://arxiv.org/abs/2107.07511).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MISSED = 0.1
"""Share of unseen patients whose value the set may miss."""
STRANGE = 0.01
"""Share of unseen patients of the known kind who may be called strangers."""
TEMPERATURES = (0.1, 10.0)


def temperature(probabilities: Floats, truth: NDArray[np.int64], weights: Floats | None = None) -> float:
    """The temperature T whose :func:`tempered` probabilities have the least log loss.

    L(T) = −Σ w_i log p_i,T(y_i): Guo et al. 2017, section 4.2, with the logarithms of the vote's
    shares as logits. One number cannot change which value is first, and cannot fit noise.

    Parameters
    ----------
    probabilities : ndarray, shape (n, c)
    truth : ndarray of int, shape (n,)
        Column of the true value.
    weights : ndarray, shape (n,), optional

    Examples
    --------
    Nine in ten are right where the vote says two thirds: too modest, T < 1.

    >>> p, y = np.tile([2 / 3, 1 / 3], (10, 1)), np.array([0] * 9 + [1])
    >>> round(temperature(p, y), 3)  # log 2 / log 9
    0.315
    """
    w = np.ones(len(truth)) if weights is None else weights
    rows = np.arange(len(truth))

    def loss(log_t: float) -> float:
        return float(-w @ np.log(np.maximum(tempered(probabilities, np.exp(log_t))[rows, truth], 1e-12)))

    from scipy.optimize import minimize_scalar  # a question needs none

    low, high = np.log(TEMPERATURES)

    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def tempered(probabilities: Floats, temperature: float) -> Floats:
    """p^(1/T) / Σ p^(1/T), along the last axis: softmax of log p / T (Guo et al. 2017).

    Examples
    --------
    >>> tempered(np.array([0.8, 0.2]), 0.5).round(3).tolist()  # 0.64 : 0.04
    [0.941, 0.059]
    """
    logits = np.log(np.maximum(probabilities, 1e-12)) / temperature
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def conformal_quantile(scores: Floats, weights: Floats | None = None, missed: float = MISSED) -> float:
    """The score that a new one does not exceed with probability 1 − `missed`, or 1 if none is safe.

    The ⌈(n + 1)(1 − missed)⌉-th smallest of n scores (Angelopoulos and Bates 2021, section 1), which
    holds for any distribution if the new one is exchangeable with them. Scores are 1 − p(true value)
    and so never above 1. Where a patient has several, their weights sum to 1, n counts patients, and
    the weights are added up in place of counting ("pooling CDFs", Dunn, Wasserman and Ramdas 2022,
    https://arxiv.org/abs/1809.07441).

    Examples
    --------
    Nine patients: ⌈10 · 0.9⌉ = the ninth; eight are too few to say anything.

    >>> conformal_quantile(np.arange(1, 10) / 10), conformal_quantile(np.arange(1, 9) / 10)
    (0.9, 1.0)
    """
    w = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    needed = (w.sum() + 1) * (1 - missed)
    place = int(np.searchsorted(np.cumsum(w[order]), needed - 1e-9))
    return float(scores[order[place]]) if place < len(scores) else 1.0


def lowest_usual(values: Floats, weights: Floats | None = None, strange: float = STRANGE) -> float:
    """The value below which a further patient is called a stranger.

    The k-th smallest of n patients' values with k = max(1, (n + 1) · `strange`), rounded up: a patient
    exchangeable with them is below it with probability k / (n + 1) at most. Fewer than 1 / `strange` − 1
    patients cannot place so rare a quantile; there it is no higher than the lower prediction bound of one
    more normal value, mean − t(1 − strange, n − 1) s √(1 + 1/n).

    Parameters
    ----------
    values : ndarray, shape (n,)
    weights : ndarray, shape (n,), optional
        Where a patient has several values, theirs sum to 1.

    Examples
    --------
    >>> lowest_usual(np.arange(299.0))  # k = 3
    2.0
    >>> round(lowest_usual(np.array([0.7, 0.8, 0.9])), 3)  # 0.8 − 6.965 · 0.1 · √(4/3)
    -0.004
    """
    from scipy.special import stdtrit  # a question needs none

    w = np.ones(len(values)) if weights is None else weights
    order = np.argsort(values, kind="stable")
    n = float(w.sum())
    place = int(np.searchsorted(np.cumsum(w[order]), max(1.0, (n + 1) * strange) - 1e-9))
    lowest = float(values[order[min(place, len(order) - 1)]])
    if strange * (n + 1) >= 1 or n <= 1:
        return lowest
    mean = w @ values / n
    spread = np.sqrt(w @ (values - mean) ** 2 / (n - 1))
    return min(lowest, float(mean - stdtrit(n - 1, 1 - strange) * spread * np.sqrt(1 + 1 / n)))


def shares(patients: NDArray[Any]) -> Floats:
    """Weights that give every patient one vote in all.

    Examples
    --------
    >>> shares(np.array(["a", "b", "a"])).tolist()
    [0.5, 1.0, 0.5]
    """
    _, place, count = np.unique(patients, return_inverse=True, return_counts=True)
    return np.asarray(1 / count[place])
