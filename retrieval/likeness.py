"""How alike lesions look: a distance of measures and views, for the order of hits, and words about them.

What the embedding tells is the class; among cases of one class it ranks hardly better by size, tissues and
brightness than chance. So hits are ordered by their similarity less a share of this distance (see
:class:`retrieval.ranking.Ranking`), which decides where similarities are close. Votes are not touched.

The unit is the spread of the index's own cases: a random case differs by 1.13 of it on average. What is
unknown of a case counts as much; what is unknown of the query does not count at all.

A hit shows one slice beside the query's, and both should show the patient from the same side. Where geometry
says so of both, their planes are the same or not; else their gists (:mod:`indexer.view`) are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.atlas import LOBES
from indexer.catalog import Contents
from indexer.measures import NAMES
from indexer.sequences import COMPOSITE, LEADERS
from indexer.view import AXES, mirrored

RANDOM = 2 / math.sqrt(math.pi)
"""Mean distance of two draws of a normal distribution, in its standard deviations."""
FEW = 10
"""Of fewer cases the spread of a measure is not known, and it has no part in the distance."""
BY_SEQUENCE: tuple[str | None, ...] = (COMPOSITE, *LEADERS)
"""Which scan of a case is believed first where several say how large a lesion is, or where."""
ERROR = {"size": 0.1, "enhancing": 0.1, "necrotic": 0.1, "oedema": 0.1}
"""What a measure may be wrong by: of the size the logarithm, of the others the share."""
SIDE, BRIGHTNESS = 0.1, 0.3
"""The same of a coordinate, and of a brightness."""
PLACE = ("right_left", "posterior_anterior", "inferior_superior")
SAME, OTHER = 0.12, 0.3
"""Gists that are nearer than the first are of the same view; a quarter of those of different views are nearer
than the second. Nearness is one less their cosine."""
UNSEEN = 0.7
"""How far a random case's view is, and so one that is unknown."""
VIEW, REACH = 4.5, 0.4
"""Weight of another view, over that of a measure: it moves hits towards those less similar than the best one
by so much. Those beyond are told apart by class, and stay where they are."""
ALIKE = 3
"""So many scans that look the same tell of a flat image along which axis it lies."""
SIDES = (("right", "left"), ("posterior", "anterior"), ("lower", "upper"))
TISSUES = {"necrotic": "necrosis", "enhancing": "enhancement", "oedema": "oedema"}
SEQUENCES = {"t1": "T1", "t1ce": "T1 after contrast agent", "t2": "T2", "flair": "FLAIR"}

Floats = NDArray[np.float32]


def scaled(vectors: Floats) -> Floats:
    """Measures, shape (..., n), as they are compared: of the size the logarithm; no lesion has no size.

    Examples
    --------
    >>> from indexer.measures import Measures
    >>> scaled(np.array([Measures(size=1.0, necrotic=0.25).numbers]))[0, :3]
    array([0.  ,  nan, 0.25], dtype=float32)
    """
    found: Floats = np.array(vectors, np.float32)
    size = found[..., NAMES.index("size")]
    found[..., NAMES.index("size")] = np.log(np.where(size > 0, size, np.nan))
    return found


def together(sequences: Sequence[str | None], vectors: Floats) -> Floats:
    """The measures of scans of one lesion as one, shape (n,): each from the scan that is believed first.

    Parameters
    ----------
    sequences : sequence of str or None
        Of each scan.
    vectors : ndarray of float32, shape (scans, n)
        NaN where they are unknown.
    """
    found: Floats = of_cases(sequences, vectors, np.zeros(len(vectors), np.int64), 1)[0]
    return found


def of_cases(sequences: Sequence[str | None], vectors: Floats, cases: NDArray[np.int64], n: int) -> Floats:
    """As :func:`together`, for each of `n` cases, given the case of each scan; means of equal sequences."""
    found = np.full((n, len(NAMES)), np.nan, np.float32)
    ranks = _ranks(sequences)
    for which in range(len(BY_SEQUENCE) + 1):
        rows = np.flatnonzero(ranks == which)
        known = np.isfinite(vectors[rows])
        sums, counts = np.zeros(found.shape), np.zeros(found.shape)
        np.add.at(sums, cases[rows], np.where(known, vectors[rows], 0))
        np.add.at(counts, cases[rows], known)
        mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        found = np.where(np.isnan(found), mean, found).astype(np.float32)
    return found


def lobes_of_cases(
    sequences: Sequence[str | None], lobes: NDArray[np.uint8], cases: NDArray[np.int64], n: int
) -> NDArray[np.uint8]:
    """The lobe of each of `n` cases, from the scan that is believed first; 0 where none says."""
    found = np.zeros(n, np.uint8)
    known = np.flatnonzero(lobes)
    last_first = known[np.argsort(-_ranks(sequences)[known], kind="stable")]
    found[cases[last_first]] = lobes[last_first]
    return found


def _ranks(sequences: Sequence[str | None]) -> NDArray[np.int64]:
    rank = {name: place for place, name in enumerate(BY_SEQUENCE)}
    return np.array([rank.get(name, len(rank)) for name in sequences], np.int64)


def turned(asked: Floats, views: NDArray[np.floating[Any]]) -> Floats:
    """How far others' views are from one: 0 for the same, 1 for another, or as far as the gists say.

    Parameters
    ----------
    asked : ndarray of float32, shape (n,)
    views : ndarray of float, shape (views, n)
        As :mod:`indexer.view` has them. A view and its mirror image are the same. What looks the same as
        some whose axis is known lies along it, too.

    Returns
    -------
    ndarray of float32, shape (views,)
        :data:`UNSEEN` where a view is unknown; 0 for all where the one that asks is.
    """
    if np.isnan(asked).all():
        return np.zeros(len(views), np.float32)
    apart = _gists_apart(asked, views)
    axis = asked[0] if np.isfinite(asked[0]) else _axis(apart, views[:, 0])
    by_gist = np.clip((apart - SAME) / (OTHER - SAME), 0, 1)
    by_axis = np.where(np.isfinite(views[:, 0] + axis), views[:, 0] != axis, by_gist)
    return np.where(np.isfinite(by_axis), by_axis, UNSEEN).astype(np.float32)


def _axis(apart: Floats, axes: NDArray[np.floating[Any]]) -> float:
    """The axis of those that look the same and whose geometry says it; NaN where they are few or disagree.

    A crop is of the plane of a whole head though their gists are not alike.
    """
    told = axes[(apart < SAME) & np.isfinite(axes)]
    return float(told[0]) if len(told) >= ALIKE and (told == told[0]).all() else math.nan


def _gists_apart(asked: Floats, views: NDArray[np.floating[Any]]) -> Floats:
    cosines = views[:, 1:].astype(np.float32) @ np.stack([asked, mirrored(asked)])[:, 1:].T
    return np.asarray(1 - cosines.max(axis=1), np.float32)


def less_views(scores: Floats, away: Floats, weight: float, best: Floats | None = None) -> Floats:
    """Similarities, less what views take.

    Parameters
    ----------
    scores : ndarray of float32, shape (..., n)
        Of the cases.
    away : ndarray of float32, shape (..., n)
        As :func:`turned` has them.
    weight : float
        Of likeness.
    best : ndarray of float32, shape (..., 1), optional
        The score of the best hit, where not all cases may be hits.

    Examples
    --------
    The first is seen from another side; the last is of another kind.

    >>> less_views(np.array([0.9, 0.8, 0.2]), np.array([1, 0, 1]), 0.2).round(2)
    array([0.54, 0.8 , 0.2 ], dtype=float32)
    """
    best = scores.max(axis=-1, keepdims=True, initial=-np.inf) if best is None else best
    share = min(weight * VIEW, 1.0)
    return np.asarray(scores - share * away * np.clip(scores - best + REACH, 0, REACH), np.float32)


def view_words(asked: Floats, view: NDArray[np.floating[Any]]) -> list[str]:
    """Whether two scans show the patient from the same side, beside each other: nothing where it is unsure.

    Examples
    --------
    >>> from indexer.view import LENGTH
    >>> axial, sagittal = np.full((2, LENGTH), np.nan, np.float32)
    >>> axial[0], sagittal[0] = 2, 0
    >>> view_words(axial, sagittal), view_words(axial, axial)
    (['sagittal, not axial'], [])
    """
    if np.isfinite(asked[0] + view[0]):
        return [] if asked[0] == view[0] else [f"{AXES[int(view[0])]}, not {AXES[int(asked[0])]}"]
    apart = float(_gists_apart(asked, view[None])[0])
    return ["same view"] if apart < SAME else []


@dataclass(frozen=True)
class Lesions:
    """What the lesions of an index look like.

    Attributes
    ----------
    measures : ndarray of float32, shape (cases, n)
        :func:`scaled`, in the order of :data:`indexer.measures.NAMES`; NaN where they are unknown.
    spread : ndarray of float32, shape (n,)
        Their standard deviations; NaN where too few are known, or all are the same.
    lobes : ndarray of uint8, shape (cases,)
        By their places in :data:`indexer.atlas.LOBES`.
    """

    measures: Floats
    spread: Floats
    lobes: NDArray[np.uint8]

    @classmethod
    def of(cls, contents: Contents) -> Lesions:
        """Those of the cases of an index."""
        measures = scaled(
            of_cases(
                contents.scan_sequence, contents.scan_measures, contents.scan_case, len(contents.case_ids)
            )
        )
        lobes = lobes_of_cases(
            contents.scan_sequence, contents.scan_lobes, contents.scan_case, len(contents.case_ids)
        )
        return cls(measures, spread(measures), lobes)

    @classmethod
    def of_scans(cls, contents: Contents) -> Lesions:
        """Those of the scans of an index."""
        measures = scaled(contents.scan_measures)
        return cls(measures, spread(measures), contents.scan_lobes)

    def distance(self, asked: Floats, cases: NDArray[np.int64]) -> Floats:
        """Mean difference of a query's measures (:func:`scaled`) from those of cases, in spreads.

        :data:`RANDOM` stands for what is unknown of a case; 0 for all cases where nothing is known of the
        query.
        """
        told = np.isfinite(asked) & np.isfinite(self.spread)
        if not told.any():
            return np.zeros(len(cases), np.float32)
        away = np.abs(self.measures[np.ix_(cases, np.flatnonzero(told))] - asked[told]) / self.spread[told]
        return np.asarray(np.where(np.isfinite(away), away, RANDOM).mean(axis=1), np.float32)

    def words(self, asked: Floats, case: int, lobe: str = "") -> list[str]:
        """What of a case's lesion agrees with the query's, and what differs: the case beside the query.

        Where the lobes of both are known (`lobe` is the query's), they say the place.

        Nothing is said of what is unknown, and nothing of what is neither alike nor clearly different:
        agreement ends at half a spread, and difference begins at a whole one, and at twice the error of
        measurement.
        """
        here = dict(zip(NAMES, zip(asked.tolist(), self.measures[case].tolist(), strict=True), strict=True))
        spreads = dict(zip(NAMES, self.spread.tolist(), strict=True))
        theirs = LOBES[self.lobes[case]]
        place = _lobes(lobe, theirs) if lobe and theirs else _place(here)
        return [*place, *_said(here, spreads)]


def spread(measures: Floats) -> Floats:
    """Standard deviations of the columns; NaN where fewer than :data:`FEW` are known, or all are the same."""
    known = np.isfinite(measures)
    counts = known.sum(axis=0)
    mean = np.where(known, measures, 0).sum(axis=0, dtype=np.float64) / np.maximum(counts, 1)
    square = np.where(known, (measures - mean) ** 2, 0).sum(axis=0, dtype=np.float64)
    found = np.sqrt(square / np.maximum(counts, 1))
    return np.where((counts >= FEW) & (found > 1e-6), found, np.nan).astype(np.float32)


Pairs = dict[str, tuple[float, float]]
"""By measure: the query's value and the case's."""


def _place(here: Pairs) -> Iterable[str]:
    """Where both lie, or how the case's lies elsewhere; the middle of the head is no side."""
    same, other = [], []
    for name, (low, high) in zip(PLACE, SIDES, strict=True):
        ours, theirs = here[name]
        if not (math.isfinite(ours) and math.isfinite(theirs)):
            continue
        if min(abs(ours), abs(theirs)) > SIDE and ours * theirs > 0:
            same.append(high if theirs > 0 else low)
        elif abs(theirs - ours) > 3 * SIDE:
            other.append((high if theirs > ours else low, name == PLACE[0], theirs))
    if same:
        yield f"{' '.join(same)} both"
    for side, lateral, theirs in other:
        if not lateral:
            yield {"upper": "higher", "lower": "lower"}.get(side, f"more {side}")
        elif abs(theirs) > SIDE:
            yield f"{side}, not {'left' if side == 'right' else 'right'}"
        else:
            yield "in the middle"


def _lobes(ours: str, theirs: str) -> Iterable[str]:
    """The same of lobes: sides and names apart, where they differ in one of them."""
    if ours == theirs:
        yield f"{ours} both"
        return
    (our_side, our_name), (side, name) = _parts(ours), _parts(theirs)
    if name == our_name and side and our_side:
        yield f"{name} both"
        yield f"{side}, not {our_side}"
    elif side == our_side and side:
        yield f"{side} both"
        yield f"{name}, not {our_name}"
    else:
        yield f"{theirs}, not {ours}"


def _parts(lobe: str) -> tuple[str, str]:
    side, _, name = lobe.partition(" ")
    return (side, name) if side in SIDES[0] else ("", lobe)


def _said(here: Pairs, spreads: dict[str, float]) -> Iterable[str]:
    alike: list[str] = []
    differ: list[str] = []
    for name, (ours, theirs) in here.items():
        error = ERROR.get(name, BRIGHTNESS)
        if name in PLACE or not all(map(math.isfinite, (ours, theirs, spreads[name]))):
            continue
        away = theirs - ours
        if abs(away) >= max(spreads[name], 2 * error):
            differ.append(_difference(name, more=away > 0))
        elif abs(away) <= max(spreads[name] / 2, error):
            alike += _agreement(name, max(ours, theirs))
    return [*alike, *differ]


def _difference(name: str, *, more: bool) -> str:
    if name == "size":
        return "larger" if more else "smaller"
    if name in TISSUES:
        return f"{'more' if more else 'less'} {TISSUES[name]}"
    return f"{'brighter' if more else 'darker'} in {SEQUENCES[name]}"


def _agreement(name: str, largest: float) -> list[str]:
    if name == "size":
        return ["similar size"]
    if name in TISSUES:
        return [f"{'no' if largest < ERROR[name] / 2 else 'similar'} {TISSUES[name]}"]
    return []  # of brightness only what differs is worth a word
