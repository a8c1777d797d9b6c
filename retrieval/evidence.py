"""The neighbours' vote on each label: similarity-weighted shares, with the prior shown beside.

Neighbours are weighted after Dudani (1976, "The distance-weighted k-nearest-neighbor rule",
https://doi.org/10.1109/TSMC.1976.5408784): the nearest counts 1, the one just beyond the last 0,
linearly in similarity between them. One prior's worth of votes is added, so that few or undecided
neighbours pull towards the prior and not towards certainty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.answer import Evidence
from retrieval.ranking import Ranking

FEW = 12
"""A column with more distinct values is no class label."""
PROTOCOL_COLUMNS = {"fold", "split", "collection"}
"""Columns that say how an evaluation is organised or where a case is from, and nothing of a patient."""
SCALES = {"who_grade": ("2", "3", "4"), "grade_group": ("LGG", "HGG")}
"""Values that labels of gliomas of adults may have (WHO 2021): what an index lacks of them is said."""
RANKING = Ranking()


def class_columns(labels: Sequence[Mapping[str, str]]) -> list[str]:
    """Columns with few distinct values (two at least), given one mapping a patient.

    Examples
    --------
    >>> class_columns([{"who_grade": "2", "age": "31"}, {"who_grade": "4", "age": "60"},
    ...                {"who_grade": "4"}])
    ['age', 'who_grade']
    """
    return sorted(Population(dict(enumerate(labels))).classes())


class Population:
    """Labels of patients, counted once: what a question asks of them does not depend on how many there are.

    Parameters
    ----------
    rows : mapping
        A patient to labels.
    """

    def __init__(self, rows: Mapping[Any, Mapping[str, str]]) -> None:
        self._rows = rows
        self._counts: dict[str, Counter[str]] = {}
        for row in rows.values():
            for name, value in row.items():
                self._counts.setdefault(name, Counter())[value] += 1
        self._totals = {name: counts.total() for name, counts in self._counts.items()}

    def changed(self, rows: Mapping[Any, Mapping[str, str]]) -> Population:
        """The same but for the labels of some patients, whom it may know or not."""
        found = Population(rows)
        found._rows = {**self._rows, **rows}
        counts = {name: held.copy() for name, held in self._counts.items()}
        for patient in rows:
            for name, value in self._rows.get(patient, {}).items():
                counts[name][value] -= 1
        for name, held in found._counts.items():
            counts.setdefault(name, Counter()).update(held)
        found._counts = {name: held for name, held in ((n, +c) for n, c in counts.items()) if held}
        found._totals = {name: held.total() for name, held in found._counts.items()}
        return found

    def classes(self, silent: Collection[Any] = ()) -> dict[str, dict[str, int]]:
        """Columns with few distinct values, two at least, and how many patients have each of these.

        Parameters
        ----------
        silent : collection
            Patients who do not count.
        """
        less: dict[str, Counter[str]] = {}
        for patient in silent:
            for name, value in self._rows.get(patient, {}).items():
                less.setdefault(name, Counter())[value] += 1
        found = {}
        for name in sorted(self._counts):
            counts, gone = self._counts[name], less.get(name, Counter())
            distinct = len(counts) - sum(counts[value] == n for value, n in gone.items())
            total = self._totals[name] - gone.total()
            few = 2 <= distinct <= 3 or 2 <= distinct <= min(FEW, total / 2)
            if few and name.lower() not in PROTOCOL_COLUMNS:
                found[name] = {v: n - gone[v] for v, n in sorted(counts.items()) if n > gone[v]}
        return found

    def values(self, name: str) -> dict[str, int]:
        """What there is of a label, and how many have it."""
        return dict(sorted(self._counts.get(name, {}).items()))


def vote(
    scores: NDArray[np.float32],
    values: Sequence[str | None],
    prior: Mapping[str, float],
    ranking: Ranking = RANKING,
) -> Evidence:
    """Share of each value among the nearest patients.

    Parameters
    ----------
    scores : ndarray, shape (n,)
        Similarity of distinct patients, best first.
    values : sequence of str or None
        Each patient's label, None where unknown.
    prior : mapping
        Value to its share among all patients.
    ranking : Ranking
        How many vote, what the prior weighs, and what the set holds.

    Examples
    --------
    Two neighbours of grade 4 and one of grade 2; the least similar only marks where weights end:

    >>> e = vote(np.array([.9, .8, .7, .5], np.float32), ["4", "4", "2", "2"], {"2": .5, "4": .5})
    >>> {value: round(p, 3) for value, p in e.probabilities.items()}
    {'2': 0.308, '4': 0.692}
    """
    known = [(float(s), v) for s, v in zip(scores, values, strict=True) if v is not None]
    voters, floor = known[: ranking.neighbours], known[ranking.neighbours : ranking.neighbours + 1]
    if not floor and len(voters) > 1:
        voters, floor = voters[:-1], voters[-1:]
    low = floor[0][0] if floor else 0.0
    top = voters[0][0] if voters else 0.0
    votes = dict.fromkeys(sorted(prior), 0.0)
    for score, value in voters:
        votes[value] = votes.get(value, 0.0) + ((score - low) / (top - low) if top > low else 1.0)
    mass = ranking.prior_mass if voters else 1.0  # there is nothing else to say
    total = sum(votes.values()) + mass
    probabilities = {value: (v + mass * prior.get(value, 0.0)) / total for value, v in votes.items()}
    chosen: list[str] = []
    for value, p in sorted(probabilities.items(), key=lambda item: -item[1]):
        if sum(probabilities[v] for v in chosen) >= ranking.set_mass:
            break
        if p > 0:
            chosen.append(value)
    return Evidence(
        probabilities=probabilities,
        prior=dict(prior),
        set=sorted(chosen),
        abstain=not voters,
        neighbours=len(voters),
    )
