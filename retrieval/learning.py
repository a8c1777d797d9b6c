"""An index learns what its votes are worth: its own patients ask, and the others answer.

They ask with what is filed of them, and are answered as a new patient would be, exactly where queries
are, else by the index's search.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np
from numpy.typing import NDArray

from indexer.case_index import CaseIndex
from indexer.catalog import Contents
from indexer.errors import WriterBusyError
from indexer.sequences import is_composite
from retrieval.calibration import ENOUGH, TYPICALITY, Calibration, patients_by_value
from retrieval.leave_one_out import Gallery, LeaveOneOut
from retrieval.ranking import Stacks, best_of_each, nearness
from retrieval.state import REGION, WHOLE, QueryScan, State

_log = logging.getLogger(__name__)

ASKING = 500
"""Patients that ask, at most."""
SCANS = 4
"""Scans that a patient asks with one by one, at most."""


def calibrate(
    case_index: CaseIndex,
    state: State,
    *,
    seed: int = 0,
    most: int = ASKING,
    signals: Mapping[str, NDArray[np.floating]] | None = None,
) -> Calibration | None:
    """Learn from an index's own patients how its votes are to be read, and keep it in the folder.

    The time is bounded by how many ask.

    Parameters
    ----------
    case_index : CaseIndex
        Nobody may be writing to it in this process.
    state : State
        Of the index.
    seed : int
        Which patients, cases and scans ask, where there are more than may.
    most : int
        Patients that ask, at most.
    signals : mapping of str to ndarray, shape (scans,), optional
        Further numbers of every scan in the contents, of which lower ones are stranger; NaN where
        unknown. The scans' :data:`retrieval.calibration.TYPICALITY` is always one.

    Returns
    -------
    Calibration or None
        None where the patients are too few, or another process writes.
    """
    start = time.perf_counter()
    contents = state.contents
    rng = np.random.default_rng(seed)
    asking = chosen(contents, rng, most)
    if len(asking) < ENOUGH:
        return None
    told = {TYPICALITY: -contents.scan_strangeness, **(signals or {})}
    questions = {
        name: (of_kind, {signal: values[of_kind.scans] for signal, values in told.items()})
        for name, of_kind in leave_one_out(state, asking, rng).items()
    }
    learnt = Calibration.of(questions, case_index, contents, seed, state.policy)
    try:
        with case_index.writing("calibrate"):
            learnt.save(case_index.folder)
    except WriterBusyError:  # the next run comes soon
        return None
    _log.info("%d patients asked for the calibration, in %.1f s", len(asking), time.perf_counter() - start)
    return learnt


def leave_one_out(state: State, cases: Sequence[int], rng: np.random.Generator) -> dict[str, LeaveOneOut]:
    """What some cases ask: each by single scans (``scan``), as a whole (``case``), by outlines (``region``).

    A ``case`` is of several scans, and a kind of question that nobody can ask is left out. Composites
    ask alone, too (``composite``): as parts of a case.
    """
    patients = np.unique(np.array(state.contents.patient_ids), return_inverse=True)[1]
    gallery = Gallery(patients, state.contents.labels)
    found = {}
    for view, single, joint in ((WHOLE, "scan", "case"), (REGION, "region", "")):
        filed = state.scans_of(cases, view)
        asks = [_CaseQuery(case, *map(list, zip(*scans, strict=True))) for case, scans in filed.items()]
        similarities = _Similarities(state, view, asks)
        kinds = {single: [one for ask in asks for one in ask.single(rng)]}
        if joint:
            kinds[joint] = [ask for ask in asks if len(ask.scans) > 1]
            kinds["composite"] = [one for ask in asks for one in ask.composites()]
        for name, questions in kinds.items():
            if questions:
                who = np.array([ask.case for ask in questions])
                found[name] = LeaveOneOut(
                    gallery,
                    patients[who],
                    [state.contents.labels[case] for case in who],
                    similarities(questions),
                    [ask.scans[0].sequence or "" for ask in questions],
                    np.array([ask.places[0] for ask in questions]),
                    state.ranking,
                    similarities.nearness(questions) if name != joint else None,
                )
    return found


@dataclass(frozen=True)
class _CaseQuery:
    """Scans of a case that ask as one question."""

    case: int
    places: list[int]  # of the scans in the contents
    scans: list[QueryScan]

    def single(self, rng: np.random.Generator) -> list[_CaseQuery]:
        """Some of the scans, each asking alone: of every sequence one, then of every sequence another."""
        by_sequence: dict[str | None, list[int]] = {}
        for row in rng.permutation(len(self.scans)).tolist():
            if not is_composite(self.scans[row].sequence):  # which is no scan of its own
                by_sequence.setdefault(self.scans[row].sequence, []).append(row)
        turns = [r for turn in zip_longest(*by_sequence.values()) for r in turn if r is not None]
        return [self._alone(r) for r in turns[:SCANS]]

    def composites(self) -> list[_CaseQuery]:
        """The composites, each alone."""
        return [self._alone(r) for r, scan in enumerate(self.scans) if is_composite(scan.sequence)][:SCANS]

    def _alone(self, row: int) -> _CaseQuery:
        return _CaseQuery(self.case, [self.places[row]], [self.scans[row]])


class _Similarities:
    """Of all cases with what asks."""

    def __init__(self, state: State, view: int, asks: Sequence[_CaseQuery]) -> None:
        self.state, self.view = state, view
        scans = {id(scan): scan for ask in asks for scan in ask.scans}
        self.pools = {
            s: state.pool(s, view, np.ones(len(state.contents.case_ids), bool), [])
            for s in {q.sequence for q in scans.values()}
        }
        self.near: dict[int, NDArray[np.float32]] = {}
        self.rows: dict[int, NDArray[np.float32]] | None = {}
        if max((len(pool) for pool in self.pools.values()), default=0) > state.policy.exact_below:
            self.rows = None
            return
        for sequence, pool in self.pools.items():
            self.rows |= self._exact([s for s in scans.values() if s.sequence == sequence], pool.rows)

    def _exact(self, scans: list[QueryScan], pool: NDArray[np.int64]) -> dict[int, NDArray[np.float32]]:
        """Scores (see :mod:`retrieval.ranking`) of many scans with all cases at once."""
        contents = self.state.contents
        parts, filed = self.state.grouped(self.state.vectors.gather(contents.slice_ids[pool]), pool)
        asking = Stacks(
            np.concatenate([scan.embeddings for scan in scans]),
            np.concatenate([scan.weights for scan in scans]),
            np.cumsum([0, *(len(scan.positions) for scan in scans)])[:-1],
        )
        rows: dict[int, NDArray[np.float32]] = {}
        items, *tables = best_of_each(
            parts, self.state.ranking.scores(asking, filed), nearness(asking, filed)
        )
        for scan, scores, near in zip(scans, *tables, strict=True):
            for kept, row, nothing in ((rows, scores, np.nan), (self.near, near, -np.inf)):
                kept[id(scan)] = np.full(len(contents.case_ids), nothing, np.float32)
                kept[id(scan)][items] = row
        return rows

    def __call__(self, asks: Sequence[_CaseQuery]) -> NDArray[np.float32]:
        """Shape (asks, cases): the :meth:`~retrieval.ranking.Ranking.fused` scores."""
        everyone = np.ones(len(self.state.contents.case_ids), bool)  # a search without a filter is quicker
        table = np.full((len(asks), len(everyone)), -np.inf, np.float32)
        patients = np.array(self.state.contents.patient_ids)
        for scores, ask in zip(table, asks, strict=True):
            others = patients != patients[ask.case]
            if self.rows is None:
                ranked = self.state.rank(ask.scans, self.view, everyone, others=others)
                scores[ranked.cases] = ranked.scores
                for scan, found in zip(ask.scans, ranked.matches, strict=True):
                    near = self.near[id(scan)] = np.full(len(everyone), -np.inf, np.float32)
                    near[found.cases] = found.nearness
            else:
                rows = np.array([self.rows[id(scan)] for scan in ask.scans])
                large = None
                if len(ask.scans) > 1:
                    typical = [self.state.typical(s, self.pools[s.sequence], others) for s in ask.scans]
                    large = np.array(typical, np.float32)[:, None]
                fused = self.state.ranking.fused(rows, [scan.sequence for scan in ask.scans], large)
                scores[:] = np.where(np.isnan(fused), -np.inf, fused)
        return table

    def nearness(self, asks: Sequence[_CaseQuery]) -> NDArray[np.float32]:
        """Of all cases to single scans that have asked, shape (asks, cases); −inf where it was not found."""
        return np.array([self.near[id(ask.scans[0])] for ask in asks])


def chosen(contents: Contents, rng: np.random.Generator, most: int = ASKING) -> list[int]:
    """A case of each patient who may ask; of too many, some of each value of each column first."""
    cases: dict[str, list[int]] = {}
    for case in np.flatnonzero(~contents.in_sample).tolist():
        cases.setdefault(contents.patient_ids[case], []).append(case)
    names = list(cases)
    one = {name: cases[name][rng.integers(len(cases[name]))] for name in names}
    if len(names) > most:
        names = [names[i] for i in rng.permutation(len(names))]
        groups = [
            [n for n in names if contents.labels[one[n]].get(column) == value]
            for column, counts in patients_by_value(contents).items()
            for value in counts
        ]
        in_turn = chain.from_iterable(zip_longest(*groups))
        first = list(dict.fromkeys(n for n in in_turn if n is not None))[: most // 4]
        names = list(dict.fromkeys([*first, *names]))[:most]
    return [one[name] for name in names]
