"""One committed state of an index, as questions and calibration see it: pools, ranking, strangeness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from indexer.case_index import Snapshot
from indexer.ids import NONE, among
from indexer.learning.strangeness import LIMIT
from indexer.policy import SearchPolicy
from indexer.scan import ScanRef
from indexer.sequences import is_composite
from indexer.view import unknown
from retrieval.calibration import POLICY, SIMILARITY, TYPICALITY, Calibration
from retrieval.census import Census
from retrieval.evidence import RANKING
from retrieval.leave_one_out import NEAREST, familiarity
from retrieval.likeness import turned
from retrieval.ranking import (
    KEPT,
    WHOLES,
    Matches,
    Ranking,
    Stacks,
    at_large,
    best_of_each,
    grouped,
    nearness,
    shown_pair,
)

WHOLE, REGION = 0, 1
"""Views of a slice: as a whole, and its outlined part."""


@dataclass(frozen=True)
class QueryScan:
    """One scan of the query, embedded.

    Attributes
    ----------
    scan : ScanRef
        A composite's is the one of its scans that is shown.
    sequence : str, optional
    positions : ndarray of int64, shape (n,)
    weights : ndarray of float32, shape (n,)
    embeddings : ndarray of float32, shape (n, dimension)
    strangeness : float
        Distance from what the encoder was trained on; NaN where it cannot say.
    lesion : float
        Chance that it shows one, of the surest slice; 1 where that is known or nobody can tell.
    view : ndarray of float32
        From where it shows the patient (:mod:`indexer.view`).
    """

    scan: ScanRef
    sequence: str | None
    positions: NDArray[np.int64]
    weights: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    strangeness: float
    lesion: float = 1.0
    view: NDArray[np.float32] = field(default_factory=unknown)


@dataclass(frozen=True)
class Ranked:
    """Cases in order, and from which slices that comes.

    Attributes
    ----------
    cases : ndarray of int64, shape (c,)
        Best first.
    scores : ndarray of float32, shape (c,)
    shown : ndarray of int64, shape (c,)
        For each case the query's scan to show.
    queries : sequence of QueryScan
    matches : sequence of Matches
        What each of them found.
    rows : sequence of ndarray of int64
        Slices in the index's contents that each of them was compared with.
    notes : list of str
        What the user should know.
    """

    cases: NDArray[np.int64]
    scores: NDArray[np.float32]
    shown: NDArray[np.int64]
    queries: Sequence[QueryScan]
    matches: Sequence[Matches]
    rows: Sequence[NDArray[np.int64]]
    notes: list[str]


SINGLE, NOTHING = -1, -2
"""All sequences but composites, and one that is not there, where a sequence is meant by its number."""


@dataclass(frozen=True)
class Pool:
    """Slices that a query's are compared with, as rows of the contents.

    Attributes
    ----------
    filed : ndarray of int64
        Ascending. With their ids they stay the same from question to question, so that nothing has to be
        worked out of them again.
    ids : ndarray of int64
    but : ndarray of int64
        Rows among them that are left out; ascending, and few.
    kind, view : int
        Which sequence and view they are of.
    """

    filed: NDArray[np.int64]
    ids: NDArray[np.int64]
    but: NDArray[np.int64]
    kind: int
    view: int

    def __len__(self) -> int:
        return len(self.filed) - len(self.but)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Those that are compared; ascending."""
        if not len(self.but):
            return self.filed
        return np.delete(self.filed, np.searchsorted(self.filed, self.but))

    def holds(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some rows, ascending, are among them."""
        return among(rows, self.filed) & ~among(rows, self.but)


class State:
    """A snapshot with what every query needs of it worked out once.

    Parameters
    ----------
    snapshot : Snapshot
    ranking : Ranking
    policy : SearchPolicy
    calibration : Calibration, optional
        That was learnt from answers given so.
    stale : str, optional
        Why there is none, where there is one of other answers.
    census : Census, optional
        Of an earlier state: only what has changed since is counted.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        ranking: Ranking = RANKING,
        policy: SearchPolicy = POLICY,
        calibration: Calibration | None = None,
        stale: str | None = None,
        census: Census | None = None,
    ) -> None:
        self.contents, self.vectors = snapshot.contents, snapshot.vectors
        self.ranking, self.policy = ranking, policy
        self.calibration, self.stale = calibration, stale
        contents = self.contents
        self.census = Census.of(contents, census)
        self._composites = {n for name, n in self.census.sequences.items() if is_composite(name)}
        self._scan_single = ~np.isin(self.census.scan_sequence, list(self._composites))
        self.has_composites = bool(self._composites)
        self.has_measures = bool(np.isfinite(contents.scan_measures).any())
        self._filed: dict[tuple[int, int], Pool] = {}
        self._at_large: dict[tuple[int, int, bool], tuple[NDArray[np.int64], Stacks]] = {}

    def at(self, recall: float | None) -> State:
        """The same state, searched for so large a share of the nearest slices."""
        near = self.vectors.partition
        if recall is None or near is None:
            return self
        found = copy(self)
        found.vectors = copy(self.vectors)
        found.vectors.partition = near.at(recall)
        return found

    # ---- what is there -------------------------------------------------------------------------

    @cached_property
    def places(self) -> dict[ScanRef, int]:
        """Where in the contents each scan is."""
        return {self.contents.scan_ref(place): place for place in range(len(self.contents.scan_ids))}

    def beside(self, scan: ScanRef) -> list[ScanRef]:
        """Scans of other sequences of the same case, one of each; none where the scan is gone."""
        place = self.places.get(scan)
        if place is None:
            return []
        contents = self.contents
        own = contents.scan_sequence[place]
        first: dict[str | None, ScanRef] = {}
        for other in np.flatnonzero(contents.scan_case == contents.scan_case[place]):
            sequence = contents.scan_sequence[other]
            if sequence != own and not is_composite(sequence):
                first.setdefault(sequence, contents.scan_ref(int(other)))
        return list(first.values())

    def cases_with(self, scan_ids: Sequence[int]) -> set[int]:
        """Cases that hold scans, given by their ids in the catalog."""
        places = np.searchsorted(self.contents.scan_ids, scan_ids)
        return {
            int(self.contents.scan_case[p])
            for p, i in zip(places, scan_ids, strict=True)
            if p < len(self.contents.scan_ids) and self.contents.scan_ids[p] == i
        }

    def vector(
        self, scan: ScanRef, position: int, view: int = WHOLE
    ) -> tuple[NDArray[np.float32], int] | None:
        """The embedding of a filed slice, with its view.

        Parameters
        ----------
        scan : ScanRef
        position : int
            Of the slice.
        view : int
            `WHOLE` or `REGION`; the former takes its place where the slice has no outlined region.

        Returns
        -------
        embedding : ndarray of float32, shape (dimension,)
        view : int
            Or nothing, if the slice is not in the index any more.
        """
        place = self.places.get(scan)
        if place is None:
            return None
        contents = self.contents
        rows = contents.rows_of(np.array([place]))
        rows = rows[contents.slice_position[rows] == position]
        views = contents.slice_view[rows]
        for wanted in dict.fromkeys((view, WHOLE)):
            if (views == wanted).any():
                row = rows[views == wanted][:1]
                return self.vectors.gather(contents.slice_ids[row])[0], wanted
        return None

    def scans_of(self, cases: Sequence[int], view: int = WHOLE) -> dict[int, list[tuple[int, QueryScan]]]:
        """Filed cases as queries: of each that has slices of this view its scans, with their places."""
        contents = self.contents
        rows = contents.rows_of_cases(np.array(cases, np.int64))
        rows = rows[contents.slice_view[rows] == view]
        rows = rows[np.argsort(contents.slice_scan[rows], kind="stable")]
        vectors = self.vectors.gather(contents.slice_ids[rows])
        places, starts = np.unique(contents.slice_scan[rows], return_index=True)
        found: dict[int, list[tuple[int, QueryScan]]] = {}
        for place, part in zip(places.tolist(), np.split(np.arange(len(rows)), starts[1:]), strict=False):
            scan = QueryScan(
                scan=contents.scan_ref(place),
                sequence=contents.scan_sequence[place],
                positions=contents.slice_position[rows[part]],
                weights=contents.slice_weight[rows[part]],
                embeddings=vectors[part],
                strangeness=float(contents.scan_strangeness[place]),
                view=contents.scan_views[place].astype(np.float32),
            )
            found.setdefault(int(contents.scan_case[place]), []).append((place, scan))
        return found

    # ---- ranking -------------------------------------------------------------------------------

    def pool(self, sequence: str | None, view: int, eligible: NDArray[np.bool_], notes: list[str]) -> Pool:
        """Slices that a query slice of this sequence and view is compared with, of the cases that may be."""
        kind = SINGLE if sequence is None else self.census.sequences.get(sequence, NOTHING)
        there = self._held(kind, eligible)
        if not there and sequence is not None and not is_composite(sequence):
            notes.append(f"no other case has {sequence}: compared with all sequences")
            kind = SINGLE
        pool = self._of(kind, view, eligible)
        if view == REGION and (whole := len(self._cases_seen(pool, WHOLE))):
            outlined = len(self._cases_seen(pool, REGION))
            which = f"{whole} of {whole + outlined} cases have" if outlined else "the index has"
            notes.append(f"{which} no outlined regions: the region is compared with whole slices there")
        return pool

    def _held(self, kind: int, eligible: NDArray[np.bool_]) -> bool:
        """Whether a case that may be holds slices of a sequence, and not only of one that is unknown."""
        own = self._scan_single if kind == SINGLE else self.census.scan_sequence == kind
        return bool(np.any(own & self._scan_filled & eligible[self.contents.scan_case]))

    @cached_property
    def _scan_filled(self) -> NDArray[np.bool_]:
        return np.bincount(self.contents.slice_scan, minlength=len(self.contents.scan_ids)) > 0

    def _of(self, kind: int, view: int, eligible: NDArray[np.bool_]) -> Pool:
        """The slices of a sequence and a view, of the cases that may be."""
        contents = self.contents
        some = np.flatnonzero(eligible)
        if 2 * len(some) < len(eligible):
            rows = contents.rows_of_cases(some)
            rows = rows[self._scans_of_kind(kind)[contents.slice_scan[rows]]]
            rows = rows[self._compared(rows, view)]
            return Pool(rows, contents.slice_ids[rows], NONE, kind, view)
        filed = self._filed.get((kind, view))
        if filed is None:
            of_kind = self._scans_of_kind(kind)[contents.slice_scan]
            rows = np.flatnonzero(of_kind)
            rows = rows[self._compared(rows, view)]
            filed = self._filed[kind, view] = Pool(rows, contents.slice_ids[rows], NONE, kind, view)
        out = np.flatnonzero(~eligible)
        if not len(out):
            return filed
        but = contents.rows_of_cases(out)
        return replace(filed, but=but[among(but, filed.filed)])

    def _compared(self, rows: NDArray[np.int64], view: int) -> NDArray[np.bool_]:
        """Which slices are compared: of scans that have no outlined regions, whole ones stand for these."""
        contents = self.contents
        outlined = self._scan_outlined[contents.slice_scan[rows]] if view == REGION else False
        return np.asarray(contents.slice_view[rows] == np.where(outlined, REGION, WHOLE))

    @cached_property
    def _scan_outlined(self) -> NDArray[np.bool_]:
        contents = self.contents
        regions = contents.slice_scan[contents.slice_view == REGION]
        return np.bincount(regions, minlength=len(contents.scan_ids)) > 0

    def _cases_seen(self, pool: Pool, view: int) -> NDArray[np.int64]:
        """The cases of a pool that are compared by slices of a view."""
        rows = pool.rows
        return np.unique(self.contents.cases_of(rows[self.contents.slice_view[rows] == view]))

    def _scans_of_kind(self, kind: int) -> NDArray[np.bool_]:
        """With those whose sequence is unknown, which may be of this one, unless it is a composite."""
        if kind == SINGLE:
            return self._scan_single
        sequences = self.census.sequences
        alone = kind == NOTHING or kind in self._composites
        return np.isin(self.census.scan_sequence, (kind, kind if alone else sequences.get(None, kind)))

    def rank(
        self,
        queries: Sequence[QueryScan],
        view: int,
        eligible: NDArray[np.bool_],
        shortlist: int = 0,
        others: NDArray[np.bool_] | None = None,
    ) -> Ranked:
        """Cases best first.

        Where many slices are eligible, an approximate search proposes cases and these are ranked
        exactly; else all are.

        Parameters
        ----------
        queries : sequence of QueryScan
        view : int
        eligible : ndarray of bool, shape (cases,)
        shortlist : int
            Cases to propose, where the policy has fewer.
        others : ndarray of bool, shape (cases,), optional
            Those of other patients, whatever the filter; default the eligible ones.
        """
        notes: list[str] = []
        pools = [self.pool(q.sequence, view, eligible, notes) for q in queries]
        if max(map(len, pools)) > self.policy.exact_below:
            wide = max(shortlist, self.policy.shortlist)
            short = [self._propose(query, pool, wide) for query, pool in zip(queries, pools, strict=True)]
            rows = self.contents.rows_of_cases(np.concatenate(short))
            compared = [rows[pool.holds(rows)] for pool in pools]
        else:
            compared = [pool.rows for pool in pools]
        matches = []
        for query, row in zip(queries, compared, strict=True):
            stored = self.vectors.gather(self.contents.slice_ids[row])
            cases, stacks = self.grouped(stored, row)
            asking = Stacks.one(query.embeddings, query.weights)
            scores, near = self.ranking.scores(asking, stacks)[0], nearness(asking, stacks)[0]
            matches.append(Matches(*best_of_each(cases, scores, near)))
        typical = None
        if len(queries) > 1:
            others = eligible if others is None else others
            typical = [self.typical(q, pool, others) for q, pool in zip(queries, pools, strict=True)]
        fused = self.ranking.fuse(matches, [query.sequence for query in queries], typical)
        return Ranked(*fused, queries, matches, compared, list(dict.fromkeys(notes)))

    def typical(self, query: QueryScan, pool: Pool, others: NDArray[np.bool_]) -> float:
        """Mean score of cases at large, of other patients, with a query's scan; NaN where there are none."""
        whole = self.ranking.rule == WHOLES and len(query.positions) > 1
        key = pool.kind, pool.view, whole
        if (found := self._at_large.get(key)) is None:
            rows = self._of(pool.kind, pool.view, np.ones(len(self.contents.case_ids), bool)).rows
            some = at_large(np.unique(self.contents.cases_of(rows)))
            rows = rows[among(self.contents.cases_of(rows), some)]
            parts, stacks = self.grouped(self.vectors.gather(self.contents.slice_ids[rows]), rows)
            found = parts, Stacks.of_means(stacks.means) if whole else stacks
            if whole or len(rows) <= KEPT:
                self._at_large[key] = found
        parts, stacks = found
        asking = Stacks.one(query.embeddings, query.weights)
        cases, *best = best_of_each(parts, self.ranking.scores(asking, stacks)[0])
        counted = others[cases]
        return float(best[0][counted].mean()) if counted.any() else math.nan

    def grouped(
        self, stored: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Stacks]:
        """Slices of the contents, given with their embeddings: for each sequence of a case a stack."""
        scans = self.contents.slice_scan[rows]
        cases, n = self.contents.scan_case[scans], len(self.census.sequences)
        parts, stacks = grouped(
            stored, self.contents.slice_weight[rows], cases * n + self.census.scan_sequence[scans]
        )
        return parts // n, stacks

    def turned(self, ranked: Ranked) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """How far from the query's view the cases are (:func:`retrieval.likeness.turned`).

        Returns
        -------
        cases : ndarray of float32, shape (c,)
            Of the scan of each that is nearest, of the sequence to show.
        rows : list of ndarray of float32
            Of each of `ranked.rows`.
        """
        contents = self.contents
        cases, rows = np.zeros(len(ranked.cases), np.float32), []
        for which, (query, of_query) in enumerate(zip(ranked.queries, ranked.rows, strict=True)):
            scans, place = np.unique(contents.slice_scan[of_query], return_inverse=True)
            away = turned(query.view, contents.scan_views[scans])
            nearest = np.full(len(contents.case_ids), np.inf, np.float32)
            np.minimum.at(nearest, contents.scan_case[scans], away)
            shown = ranked.shown == which
            cases[shown] = nearest[ranked.cases[shown]]
            rows.append(away[place])
        return cases, rows

    def pair(
        self, ranked: Ranked, place: int, less: Sequence[NDArray[np.float32]] | None = None
    ) -> tuple[QueryScan, int, int]:
        """The slices to show for the case at a place of a ranking.

        Parameters
        ----------
        ranked : Ranked
        place : int
        less : sequence of ndarray, optional
            What each of `ranked.rows` is less worth showing, for its view.

        Returns
        -------
        (query, query row, row)
            The query's scan, which of its slices, and the case's slice as a row of the contents.
        """
        which = int(ranked.shown[place])
        query, rows = ranked.queries[which], ranked.rows[which]
        own = np.flatnonzero(self.contents.cases_of(rows) == ranked.cases[place])
        stored = self.vectors.gather(self.contents.slice_ids[rows[own]])
        asking, row = shown_pair(
            query.embeddings, query.weights, stored, None if less is None else less[which][own]
        )
        return query, asking, int(rows[own[row]])

    def _propose(self, query: QueryScan, pool: Pool, shortlist: int) -> NDArray[np.int64]:
        """The cases whose slices are nearest."""
        contents = self.contents
        keep = None if len(pool.filed) == len(contents.slice_ids) else pool.ids
        scores, ids = self.vectors.search(
            query.embeddings, self.policy.depth, keep, contents.slice_ids[pool.but]
        )
        found = ids >= 0
        rows = np.searchsorted(contents.slice_ids, ids[found])
        cases, places = np.unique(contents.cases_of(rows), return_inverse=True)
        # a case that a query slice did not find scores the worst that slice found
        floor = np.where(found, scores, np.inf).min(axis=1, keepdims=True)
        gain = np.zeros((len(query.weights), len(cases)), np.float32)
        slices = np.nonzero(found)[0]
        np.maximum.at(gain, (slices, places), (scores - floor)[found])
        total = query.weights @ gain
        best = np.argsort(-total, kind="stable")[:shortlist]
        return cases[best[total[best] > 0]] if (total > 0).any() else cases

    # ---- strangers -----------------------------------------------------------------------------

    def strange(self, ranked: Ranked, silent: set[str], view: int) -> bool | None:
        """Whether a query is unlike what the index knows; None where nothing can tell.

        What the index has learnt of its own patients decides; where it has learnt nothing, what the
        encoder was trained on.
        """
        typical = [(q.sequence, -q.strangeness) for q in ranked.queries]
        near = [
            (q.sequence, self._familiarity(m, silent))
            for q, m in zip(ranked.queries, ranked.matches, strict=True)
            if not is_composite(q.sequence)  # which says what kind of case it is, whatever it shows
        ]
        signals = {SIMILARITY: near, TYPICALITY: typical}
        learnt = self.calibration
        found = learnt.strange(signals, region=view == REGION) if learnt else None
        if learnt and learnt.tells(TYPICALITY):
            return found
        values = [value for _, value in typical if not np.isnan(value)]
        foreign = bool(np.mean(values) < -LIMIT) if values else None
        return found if foreign is None else bool(found) or foreign

    def nearness(self, ranked: Ranked, silent: set[str], label: str) -> list[tuple[str | None, float]]:
        """Sequence and nearness to the nearest patients with a label, of each scan of a query.

        As :func:`retrieval.open_set.nearest`; NaN where there is none.
        """
        contents = self.contents
        told = []
        for query, found in zip(ranked.queries, ranked.matches, strict=True):
            best: dict[str, float] = {}
            for place in np.argsort(-found.nearness, kind="stable"):
                case = found.cases[place]
                patient = contents.patient_ids[case]
                if label in contents.labels[case] and patient not in silent:
                    best.setdefault(patient, float(found.nearness[place]))
                if len(best) == NEAREST:
                    break
            told.append((query.sequence, float(np.mean(list(best.values()))) if best else math.nan))
        return told

    def _familiarity(self, matches: Matches, silent: set[str]) -> float:
        """That of a query's scan, without some patients."""
        patients = self.contents.patient_ids
        places = np.argsort(-matches.scores, kind="stable")
        ranked = [patients[case] for case in matches.cases[places]]
        voters = [place for place in first_of_each(ranked) if ranked[place] not in silent]
        return familiarity(matches.scores[places][voters])


def first_of_each(names: Sequence[str]) -> list[int]:
    """Places at which a name stands for the first time."""
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        first.setdefault(name, place)
    return list(first.values())
