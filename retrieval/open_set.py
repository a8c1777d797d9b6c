"""Is a query of a kind that the index holds? Open-set recognition, learnt from the index itself.

A vote names what the index holds and nothing else: a glioblastoma that is asked of grades 2 and 3 becomes
one of them. So every scan of a query is measured by its nearness to whole cases, the mean cosine with the
nearest patients who have the label; each sequence by what is usual in it, and several scans by their mean.
Where too few reach what all but :data:`REFUSED` of the known patients do, the query may be of another kind,
and the vote on that label is not taken.

Where that is, is learnt by leaving each value out in turn, with all its patients, who ask the others. If
they stay well below the known ones, the limit lies half-way: a scan from elsewhere is farther off, too, and
shall not be refused for it. If most of them would get an answer all the same (features that were trained for
something else, or kinds that images do not tell apart), distance tells nothing, nobody is refused, and the
answer says that it cannot know. (Rules that were learnt to tell the left-out kinds from the others, from
several such distances, told a kind worse that no rule had seen.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.sequences import is_composite
from retrieval.conformal import Floats, lowest_usual, shares
from retrieval.leave_one_out import NEAREST, LeaveOneOut

REFUSED = 0.05
"""Share of known patients who may be refused."""
BELOW = 0.9
"""Share of each left-out kind that is below the limit where it lies half-way."""
TELLS = 0.5
"""Nobody is refused where more than this of the left-out kinds would get an answer, on average."""
LEAST = 1e-3
"""Of a deviation: cosines that agree better differ by rounding."""


@dataclass(frozen=True)
class OpenSet:
    """How near to known cases a query with a known value of a label is.

    Attributes
    ----------
    patients : int
        Who asked.
    usual : dict of str to (float, float)
        Mean and deviation of the nearness of a scan of each sequence; ``""`` stands for all together.
    edge : float
        The :meth:`score` that all but :data:`REFUSED` of the known patients reach.
    lowest : float
        That from which a query is of a known kind.
    answered : dict of str to float
        For each value the share of its patients who got an answer while it was left out.
    composite_weight : float
        See :class:`retrieval.ranking.Ranking`.
    """

    patients: int
    usual: dict[str, tuple[float, float]]
    edge: float
    lowest: float
    answered: dict[str, float]
    composite_weight: float

    @classmethod
    def of(cls, questions: LeaveOneOut, column: str, values: Sequence[str], *, joint: bool) -> OpenSet | None:
        """Learn from questions of one scan each; None where nothing can be compared.

        Parameters
        ----------
        questions : LeaveOneOut
        column : str
        values : sequence of str
            Of the column; two at least, each of several patients.
        joint : bool
            The scans of a patient ask together, with their composites, else each alone.
        """
        truth = np.array([row.get(column, "") for row in questions.labels], object)
        asks = np.isin(truth, list(values))
        found = cls._learnt(questions, column, values, asks, joint)
        if found is None:
            return None
        left: dict[str, tuple[Floats, Floats, float]] = {}
        for value in values:
            others = [other for other in values if other != value]
            without = cls._learnt(questions, column, others, asks & (truth != value), joint)
            if without is None:
                continue
            near = nearest(questions, column, others)
            rows = np.flatnonzero((truth == value) & ~np.isnan(near))
            scores, weights, _ = without._scores(questions, near, rows, joint)
            if len(scores):  # as they lie below or above those who are known then
                left[value] = scores - without.edge, weights, _quantile(scores - without.edge, weights)
        gap = max((edge for _, _, edge in left.values()), default=0.0)
        lower = min(gap, 0.0) / 2
        answered = {v: float(w @ (scores >= lower) / w.sum()) for v, (scores, w, _) in left.items()}
        return replace(found, lowest=found.edge + lower, answered=answered)

    @classmethod
    def _learnt(
        cls,
        questions: LeaveOneOut,
        column: str,
        values: Sequence[str],
        asks: NDArray[np.bool_],
        joint: bool,
    ) -> OpenSet | None:
        """What is usual for those who ask, among items with these values."""
        near = nearest(questions, column, values)
        rows = np.flatnonzero(asks & ~np.isnan(near))
        if not len(rows):
            return None
        names, weights = np.array(questions.sequences, object)[rows], shares(questions.patients[rows])
        usual = {"": _usual(near[rows], weights)}
        for name in sorted(set(names) - {""}):
            mine = names == name
            if len(np.unique(questions.patients[rows[mine]])) > 2 * NEAREST:
                usual[name] = _usual(near[rows[mine]], shares(questions.patients[rows[mine]]))
        patients, weight = len(np.unique(questions.patients[rows])), questions.ranking.composite_weight
        bare = cls(patients, usual, 0.0, 0.0, {}, weight)
        scores, weights, _ = bare._scores(questions, near, rows, joint)
        edge = lowest_usual(scores, weights, REFUSED)
        return replace(bare, edge=edge, lowest=edge)

    def _scores(
        self, questions: LeaveOneOut, near: Floats, rows: NDArray[np.int64], joint: bool
    ) -> tuple[Floats, Floats, NDArray[Any]]:
        """Of the scans that ask alone, or of the patients: scores, weights, and who asks."""
        told = [(questions.sequences[row], float(near[row])) for row in rows]
        who = questions.patients[rows]
        if not joint:
            scores = np.array([self.score([one]) for one in told], np.float64)
            return scores, shares(who), who
        patients = np.unique(who)
        groups = [[told[i] for i in np.flatnonzero(who == patient)] for patient in patients]
        return np.array([self.score(group) for group in groups], np.float64), np.ones(len(patients)), patients

    def scores(
        self, questions: LeaveOneOut, column: str, values: Sequence[str], *, joint: bool
    ) -> tuple[Floats, Floats, NDArray[Any]]:
        """The :meth:`score` of questions that are asked of items with these values.

        Returns
        -------
        scores, weights, patients
            An entry a scan, or a patient where scans ask together; a patient's weights sum to 1.
        """
        near = nearest(questions, column, values)
        return self._scores(questions, near, np.flatnonzero(~np.isnan(near)), joint)

    @property
    def missed(self) -> float | None:
        """Share of a left-out kind that gets an answer all the same, on average; None where unknown."""
        return float(np.mean(list(self.answered.values()))) if self.answered else None

    @property
    def tells(self) -> bool:
        """Whether it notices most of what it does not know."""
        return self.missed is not None and self.missed <= TELLS

    def score(self, scans: Sequence[tuple[str | None, float]]) -> float:
        """How near scans are, given sequence and nearness of each: in deviations from the usual; NaN if none.

        Examples
        --------
        >>> learnt = OpenSet(40, {"": (0.8, 0.1), "t1": (0.9, 0.05)}, -2.0, -2.0, {}, 8.0)
        >>> round(learnt.score([("t1", 0.8), ("t2", 0.8)]), 3)  # −2 and 0
        -1.0
        """
        kept = [(name, value) for name, value in scans if not np.isnan(value)]
        if not kept:
            return float("nan")
        levels = [self.usual.get(name or "", self.usual[""]) for name, _ in kept]
        away = [(value - mean) / sd for (_, value), (mean, sd) in zip(kept, levels, strict=True)]
        weights = [self.composite_weight if is_composite(name) else 1.0 for name, _ in kept]
        return float(np.average(away, weights=weights))

    def refuses(self, scans: Sequence[tuple[str | None, float]]) -> bool:
        """Whether scans may be of a kind that is not there."""
        return self.tells and self.score(scans) < self.lowest

    def plausible(self) -> bool:
        """Whether its numbers are such as are learnt."""
        levels = list(self.usual.values())
        numbers = [self.edge, self.lowest, self.composite_weight, *self.answered.values(), *chain(*levels)]
        return (
            type(self.patients) is int
            and "" in self.usual
            and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
            and all(len(level) == 2 and level[1] > 0 for level in levels)
        )

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> OpenSet:
        """From JSON."""
        return cls(**{**told, "usual": {name: tuple(level) for name, level in told["usual"].items()}})


def nearest(questions: LeaveOneOut, column: str, values: Sequence[str]) -> Floats:
    """Mean cosine of each question with the nearest patients who have one of the values, shape (q,).

    Of up to :data:`~retrieval.leave_one_out.NEAREST` other patients, each by its nearest item; NaN where
    there is none.
    """
    found = np.full(len(questions.patients), np.nan)
    names = np.array([row.get(column, "") for row in questions.gallery.labels], object)
    items = np.flatnonzero(np.isin(names, list(values)))
    if questions.nearness is None or not len(items):
        return found
    items = items[np.argsort(questions.gallery.patients[items], kind="stable")]
    patients, starts = np.unique(questions.gallery.patients[items], return_index=True)
    for block in np.array_split(np.arange(len(found)), len(found) * len(items) // 2**24 + 1):
        near = questions.nearness[np.ix_(block, items)].astype(np.float64)
        best = np.maximum.reduceat(near, starts, axis=1)
        best[questions.patients[block, None] == patients] = -np.inf
        most = min(NEAREST, best.shape[1])
        top = -np.partition(-best, most - 1, axis=1)[:, :most]
        some = np.isfinite(top)
        total = np.where(some, top, 0).sum(axis=1)
        found[block] = np.where(some.any(axis=1), total / np.maximum(some.sum(axis=1), 1), np.nan)
    return found


def _quantile(values: Floats, weights: Floats) -> float:
    """The value below which :data:`BELOW` of them are."""
    order = np.argsort(values, kind="stable")
    place = int(np.searchsorted(np.cumsum(weights[order]), BELOW * weights.sum() - 1e-9))
    return float(values[order[min(place, len(order) - 1)]])


def _usual(values: Floats, weights: Floats) -> tuple[float, float]:
    mean = float(np.average(values, weights=weights))
    return mean, max(float(np.sqrt(np.average((values - mean) ** 2, weights=weights))), LEAST)
