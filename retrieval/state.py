"""One committed state of an index, as questions and calibration see it: pools, ranking, strangeness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from indexer.case_index import Snapshot
from indexer.learning.strangeness import LIMIT
from indexer.policy import SearchPolicy
from indexer.scan import ScanRef
from indexer.sequences import is_composite
from retrieval.calibration import POLICY, SIMILARITY, TYPICALITY, Calibration
from retrieval.evidence import RANKING, Population
from retrieval.leave_one_out import NEAREST, familiarity
from retrieval.likeness import Looks
from retrieval.ranking import Matches, Ranking, Stacks, grouped, nearness, shown_pair

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
    """

    scan: ScanRef
    sequence: str | None
    positions: NDArray[np.int64]
    weights: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    strangeness: float


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
    """

    def __init__(
        self,
        snapshot: Snapshot,
        ranking: Ranking = RANKING,
        policy: SearchPolicy = POLICY,
        calibration: Calibration | None = None,
        stale: str | None = None,
    ) -> None:
        self.contents, self.vectors = snapshot.contents, snapshot.vectors
        self.ranking, self.policy = ranking, policy
        self.calibration, self.stale = calibration, stale
        contents = self.contents
        self.slice_case = contents.slice_case
        names = {name: n for n, name in enumerate(dict.fromkeys(contents.scan_sequence))}
        self.sequences = names
        codes = np.array([names[s] for s in contents.scan_sequence], np.int64)
        self.slice_sequence = codes[contents.slice_scan]
        composites = np.array([is_composite(name) for name in names], bool)
        self.slice_single = ~composites[self.slice_sequence]
        self.has_composites = bool(composites.any())
        self.has_measures = bool(np.isfinite(contents.scan_measures).any())
        self.cases_of: dict[str, list[int]] = {}
        for case, patient in enumerate(contents.patient_ids):
            self.cases_of.setdefault(patient, []).append(case)
        self.population = Population(dict(zip(contents.patient_ids, contents.labels, strict=True)))
        alone = len(self.cases_of) == len(contents.case_ids)  # no patient has two cases
        self.cases = self.population if alone else Population(dict(enumerate(contents.labels)))
        # of those who ask all: slices that are compared, and what was noted
        self._pools: dict[tuple[str | None, int], tuple[NDArray[np.bool_], list[str]]] = {}

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
        rows = np.flatnonzero((contents.slice_scan == place) & (contents.slice_position == position))
        views = contents.slice_view[rows]
        for wanted in dict.fromkeys((view, WHOLE)):
            if (views == wanted).any():
                row = rows[views == wanted][:1]
                return self.vectors.gather(contents.slice_ids[row])[0], wanted
        return None

    def scans_of(self, cases: Sequence[int], view: int = WHOLE) -> dict[int, list[tuple[int, QueryScan]]]:
        """Filed cases as queries: of each that has slices of this view its scans, with their places."""
        contents = self.contents
        rows = np.flatnonzero((contents.slice_view == view) & np.isin(self.slice_case, cases))
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
            )
            found.setdefault(int(contents.scan_case[place]), []).append((place, scan))
        return found

    @cached_property
    def looks(self) -> Looks:
        """What the lesions of the cases look like."""
        return Looks.of(self.contents)

    # ---- ranking -------------------------------------------------------------------------------

    def pool(
        self, sequence: str | None, view: int, eligible: NDArray[np.bool_], notes: list[str]
    ) -> NDArray[np.bool_]:
        """Slices that a query slice of this sequence and view is compared with, of those that may be."""
        everyone = bool(eligible.all())
        if everyone and (sequence, view) in self._pools:
            pool, said = self._pools[sequence, view]
            notes += said
            return pool
        before = len(notes)
        of_view = self.contents.slice_view == view
        same = self.slice_sequence == self.sequences.get(sequence, -1)
        if sequence is None:
            same = self.slice_single
        elif not (same & eligible).any() and not is_composite(sequence):
            notes.append(f"no other case has {sequence}: compared with all sequences")
            same = self.slice_single
        if view == REGION and not (of_view & same & eligible).any():
            notes.append("the index has no outlined regions: the region is compared with whole slices")
            of_view = self.contents.slice_view == WHOLE
        pool = np.asarray(of_view & same & eligible)
        if everyone:
            self._pools[sequence, view] = pool, notes[before:]
        return pool

    def rank(
        self, queries: Sequence[QueryScan], view: int, eligible: NDArray[np.bool_], shortlist: int = 0
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
        """
        notes: list[str] = []
        pools = [self.pool(q.sequence, view, eligible[self.slice_case], notes) for q in queries]
        if max(int(pool.sum()) for pool in pools) > self.policy.exact_below:
            short = np.zeros(len(eligible), bool)
            for query, pool in zip(queries, pools, strict=True):
                short[self._propose(query, pool, max(shortlist, self.policy.shortlist))] = True
            pools = [pool & short[self.slice_case] for pool in pools]
        matches, rows = [], []
        for query, pool in zip(queries, pools, strict=True):
            row = np.flatnonzero(pool)
            stored = self.vectors.gather(self.contents.slice_ids[row])
            cases, stacks = grouped(stored, self.contents.slice_weight[row], self.slice_case[row])
            asking = Stacks.one(query.embeddings, query.weights)
            scores, near = self.ranking.scores(asking, stacks)[0], nearness(asking, stacks)[0]
            matches.append(Matches(cases, scores, near))
            rows.append(row)
        fused = self.ranking.fuse(matches, [query.sequence for query in queries])
        return Ranked(*fused, queries, matches, rows, list(dict.fromkeys(notes)))

    def pair(self, ranked: Ranked, place: int) -> tuple[QueryScan, int, int]:
        """The slices to show for the case at a place of a ranking.

        Returns
        -------
        (query, query row, row)
            The query's scan, which of its slices, and the case's slice as a row of the contents.
        """
        which = int(ranked.shown[place])
        query, rows = ranked.queries[which], ranked.rows[which]
        rows = rows[self.slice_case[rows] == ranked.cases[place]]
        stored = self.vectors.gather(self.contents.slice_ids[rows])
        asking, row = shown_pair(query.embeddings, query.weights, stored)
        return query, asking, int(rows[row])

    def _propose(self, query: QueryScan, pool: NDArray[np.bool_], shortlist: int) -> NDArray[np.int64]:
        keep = None if pool.all() else self.contents.slice_ids[pool]
        scores, ids = self.vectors.search(query.embeddings, self.policy.depth, keep)
        found = ids >= 0
        cases = self.slice_case[np.searchsorted(self.contents.slice_ids, ids[found])]
        # a case that a query slice did not find scores the worst that slice found
        floor = np.where(found, scores, np.inf).min(axis=1, keepdims=True)
        gain = np.zeros((len(query.weights), len(self.contents.case_ids)), np.float32)
        slices = np.nonzero(found)[0]
        np.maximum.at(gain, (slices, cases), (scores - floor)[found])
        total = query.weights @ gain
        best = np.argsort(-total, kind="stable")[:shortlist]
        return best[total[best] > 0] if (total > 0).any() else np.unique(cases)

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
