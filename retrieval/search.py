"""Query an index: read, embed, search slices, rank cases, gather the evidence."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec

import numpy as np
from numpy.typing import NDArray

from indexer import reference, remote, sandbox
from indexer.case_index import CaseIndex, Snapshot
from indexer.catalog import Contents
from indexer.composite import COMPOSITE, composite, groups
from indexer.encoder import Encoder, look
from indexer.errors import QueryError, ReadError, StaleError
from indexer.learning.strangeness import LIMIT
from indexer.preprocess import Preprocessing, prepared, prepared_composite, with_region
from indexer.reading import input_hash
from indexer.scan import Scan
from indexer.vectors import EXACT_BELOW
from retrieval.answer import Answer, Evidence, Hit, Query
from retrieval.calibration import SIMILARITY, TYPICALITY, Calibration, familiarity
from retrieval.evidence import class_columns, vote
from retrieval.ranking import Matches, compared, fuse

SHORTLIST = 100
"""Cases that the approximate search proposes for exact ranking, at least."""
DEPTH = 64
"""Slices that the approximate search fetches for each query slice."""
WHOLE, REGION = 0, 1
Asked = ParamSpec("Asked")
STRANGE = "nothing similar here: this scan is unlike almost every one that is known"


@dataclass(frozen=True)
class QueryScan:
    """One scan of the query, embedded.

    Attributes
    ----------
    source : str
    sequence : str, optional
    positions : ndarray of int64, shape (n,)
    weights : ndarray of float32, shape (n,)
    embeddings : ndarray of float32, shape (n, dimension)
    strangeness : float
        Distance from what the encoder was trained on; NaN where it cannot say.
    """

    source: str
    sequence: str | None
    positions: NDArray[np.int64]
    weights: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    strangeness: float


def _again(
    question: Callable[Concatenate[Index, Asked], Answer],
) -> Callable[Concatenate[Index, Asked], Answer]:
    """Ask once more, of the new state, where another process has changed the index in between."""

    @wraps(question)
    def ask(index: Index, /, *args: Asked.args, **kwargs: Asked.kwargs) -> Answer:
        try:
            return question(index, *args, **kwargs)
        except StaleError:
            index.refresh()
            return question(index, *args, **kwargs)

    return ask


class Index:
    """An index open for questions. Safe to share between threads; a context manager.

    It answers from the state that was committed when it was opened or last refreshed.
    """

    def __init__(
        self, case_index: CaseIndex, encoder: Encoder | None = None, recall: float | None = None
    ) -> None:
        self.case_index = case_index
        self._encoder = encoder
        self._recall = recall
        self.refresh()

    def refresh(self) -> None:
        """Take up what has been committed since."""
        snapshot = self.case_index.snapshot()
        near = snapshot.vectors.partition
        if self._recall is not None and near is not None:
            snapshot.vectors.partition = near.at(self._recall)
        self._state = _State(snapshot, Calibration.load(self.case_index))

    def close(self) -> None:
        """Release the files."""
        self.case_index.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def contents(self) -> Contents:
        """What is in the index, as questions see it now."""
        return self._state.contents

    @property
    def encoder(self) -> Encoder:
        """The encoder that made the index (loaded at the first use).

        Raises
        ------
        EncoderError
            If it is not installed, or not in the version that made the index.
        """
        if self._encoder is None:
            self._encoder = self.case_index.load_encoder()
        self.case_index.require(self._encoder)
        return self._encoder

    # ---- questions -----------------------------------------------------------------------------

    def query(
        self,
        source: str | os.PathLike[str],
        k: int = 10,
        *,
        where: Mapping[str, str] | None = None,
        region: tuple[int, int, int, int] | None = None,
        region_slice: int | None = None,
        mask: str | os.PathLike[str] | None = None,
        exclude_patient: str | Sequence[str] | None = None,
        all_cases: bool = False,
    ) -> Answer:
        """The cases most similar to a scan.

        Parameters
        ----------
        source : path
            A file or folder that cbir reads: one patient's scan, or several of its sequences.
        k : int
            How many hits at most.
        where : mapping, optional
            Labels that hits must have.
        region : (x0, y0, x1, y1), optional
            Box in pixels of the displayed slice, columns and rows from the top left, end exclusive.
        region_slice : int, optional
            The slice the box is on; the middle one if not given.
        mask : path, optional
            Image on the same grid whose non-zero voxels are the region.
        exclude_patient : str or sequence of str, optional
            A patient that no hit may belong to, by the id in the files or in the index.
        all_cases : bool
            Several cases of a patient may be hits.

        Returns
        -------
        Answer

        Raises
        ------
        ReadError
            If the query cannot be read.
        QueryError
            If it holds several patients, or the filter or region fits nothing.
        EncoderError
            If the index was made by another encoder.
        """
        path = Path(source)
        return self.ask(
            sandbox.read(path),
            k,
            source=str(path),
            where=where,
            region=region,
            region_slice=region_slice,
            mask=mask,
            exclude_patient=exclude_patient,
            all_cases=all_cases,
        )

    @_again
    def ask(
        self,
        scans: Sequence[Scan],
        k: int = 10,
        *,
        source: str,
        where: Mapping[str, str] | None = None,
        region: tuple[int, int, int, int] | None = None,
        region_slice: int | None = None,
        mask: str | os.PathLike[str] | None = None,
        exclude_patient: str | Sequence[str] | None = None,
        all_cases: bool = False,
    ) -> Answer:
        """The cases most similar to scans that have been read already.

        Parameters
        ----------
        scans : sequence of Scan
            Of one patient.
        source : str
            What the answer calls them.

        The others, what is returned and what is raised are as in :meth:`query`.
        """
        state = self._state  # one state for the whole question, whatever is committed meanwhile
        scans = _one_patient(source, scans)
        notes: list[str] = []
        if mask is not None:
            volume = sandbox.read_mask(Path(mask), scans[0])
            scans = [replace(scan, region=volume) for scan in scans if scan.voxels.shape == volume.shape]
        elif region is not None:
            scans = [with_region(scan, region, region_slice) for scan in scans]
        else:
            scans = [replace(scan, region=None) for scan in scans]
        view = WHOLE if mask is None and region is None else REGION

        embedded, identical = self._embed(state, scans, view, notes)
        if identical:
            whose = sorted({state.contents.case_ids[i] for i in identical})
            notes.append(
                f"the query itself is in the index (case {', '.join(whose)}): "
                "that patient has no vote in the evidence"
            )
        asked = Query(
            source=source,
            sequence=_sequences(embedded),
            slices=_slices(embedded),
            region=region,
            region_slice=int(embedded[0].positions[0]) if region is not None else None,
        )
        return self._answer(
            state,
            asked,
            embedded,
            view,
            k,
            where=where,
            excluded=self._named(exclude_patient),
            silent={state.contents.patient_ids[i] for i in identical},
            all_cases=all_cases,
            notes=notes,
        )

    @_again
    def like(
        self,
        case_ids: str | Sequence[str],
        k: int = 10,
        *,
        where: Mapping[str, str] | None = None,
        exclude_patient: str | Sequence[str] | None = None,
        all_cases: bool = False,
    ) -> Answer:
        """The cases most similar to one or several in the index, other patients only.

        Several cases ask together, as the sequences of one scan do: the score is the mean over theirs.

        Raises
        ------
        QueryError
            If the index has no such case.
        """
        state = self._state
        names = list(dict.fromkeys([case_ids] if isinstance(case_ids, str) else case_ids))
        known = state.contents.case_ids
        for name in names:
            if name not in known:
                raise QueryError(name, "the index has no such case", "list them with `cbir info --cases`")
        cases = [known.index(name) for name in names]
        embedded = [scan for case in cases for scan in state.stored(case)]
        asked = Query(
            source=f"case {', '.join(names)}",
            sequence=_sequences(embedded),
            slices=_slices(embedded),
        )
        own = {state.contents.patient_ids[case] for case in cases}
        return self._answer(
            state,
            asked,
            embedded,
            WHOLE,
            k,
            where=where,
            excluded=own | self._named(exclude_patient),
            silent=set(),
            all_cases=all_cases,
            notes=[],
        )

    def read(self, source: str | os.PathLike[str]) -> list[Scan]:
        """The scans of a hit's or a query's source, for pictures; the latter without an outline beside it.

        Raises
        ------
        ReadError
            If the file is gone or cannot be read.
        """
        path = Path(source)
        if reference.is_reference(str(path)):
            raise ReadError(path, "a reference case comes without pictures: see its collection and id")
        record = self.case_index.catalog.record(str(source))
        if record is not None:
            with remote.held(str(source), record).local() as here:
                return [scan for part in here.parts or (here,) for scan in sandbox.read(part)]
        # a series that shares its folder with others has a name of its own
        scans = sandbox.read(path if path.exists() else path.parent)
        return [replace(scan, region=None) for scan in scans if path.exists() or scan.source == path]

    def vector(
        self, source: str, sequence: str | None, position: int, view: int = WHOLE
    ) -> tuple[NDArray[np.float32], int] | None:
        """The embedding of a filed slice, with its view.

        Parameters
        ----------
        source : str
            Of its scan, as a hit names it.
        sequence : str, optional
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
        state = self._state
        contents = state.contents
        scans = [
            scan
            for scan, held in enumerate(zip(contents.scan_source, contents.scan_sequence, strict=True))
            if held == (source, sequence)
        ]
        rows = np.flatnonzero(np.isin(contents.slice_scan, scans) & (contents.slice_position == position))
        views = contents.slice_view[rows]
        for wanted in dict.fromkeys((view, WHOLE)):
            if (views == wanted).any():
                row = rows[views == wanted][:1]
                return state.vectors.gather(contents.slice_ids[row])[0], wanted
        return None

    def has_patient(self, patient: str) -> bool:
        """Whether a patient is in the index, by the id in the files or in the index."""
        return not self._named(patient).isdisjoint(self._state.contents.patient_ids)

    # ---- steps ---------------------------------------------------------------------------------

    def _embed(
        self, state: _State, scans: Sequence[Scan], view: int, notes: list[str]
    ) -> tuple[list[QueryScan], set[int]]:
        encoder, embedded, identical = self.encoder, [], set()
        how = Preprocessing.of(encoder)
        asking = [(scan, prepared(scan, how)) for scan in scans]
        if how.composite_size and COMPOSITE in state.sequences:
            for group in groups(scans, how.composite_size):
                asking.append((composite(group), prepared_composite(group.scans, how.composite_size)))
                notes += group.notes
        for scan, ready in asking:
            identical |= state.cases_with(self.case_index.catalog.scans_of(input_hash(ready)))
            rows = np.flatnonzero(ready.views == view)
            if not len(rows):
                raise QueryError(scan.source, "the region is empty", "mark a part of the image")
            vectors, weights, strange = look(
                encoder, ready.pixels[rows], ready.boxes[rows], ready.weights[rows]
            )
            embedded.append(
                QueryScan(
                    source=str(scan.source),
                    sequence=scan.sequence,
                    positions=ready.positions[rows].astype(np.int64),
                    weights=weights,
                    embeddings=vectors,
                    strangeness=float(np.average(strange, weights=weights)),
                )
            )
        return embedded, identical

    def _named(self, patients: str | Sequence[str] | None) -> set[str]:
        names = [patients] if isinstance(patients, str) else patients or []
        return {name for patient in names for name in (patient, self.case_index.patient(patient))}

    def _answer(
        self,
        state: _State,
        asked: Query,
        embedded: Sequence[QueryScan],
        view: int,
        k: int,
        *,
        where: Mapping[str, str] | None,
        excluded: set[str],
        silent: set[str],
        all_cases: bool,
        notes: list[str],
    ) -> Answer:
        if k < 1:
            raise QueryError("k", f"{k} hits cannot be shown", "ask for at least 1")
        contents = state.contents
        if not contents.case_ids:
            raise QueryError(self.case_index.folder, "the index is empty", "fill it with `cbir index FOLDER`")
        where = {name: str(value) for name, value in (where or {}).items()}
        for name, value in where.items():
            held = {row[name] for row in contents.labels if name in row}
            if value not in held:
                columns = {column for row in contents.labels for column in row}
                known = ", ".join(sorted(held or columns)[:10]) or "no labels"
                what = "no case has this value" if held else "there is no such label"
                raise QueryError(f"{name}={value}", what, f"the index has: {known}")
        eligible = np.array([p not in excluded for p in contents.patient_ids], bool)
        matching = eligible & np.array(
            [all(row.get(n) == v for n, v in where.items()) for row in contents.labels], bool
        )
        depth = max(SHORTLIST, 5 * k)
        cases, scores, pairs = state.rank(embedded, view, matching, depth, notes)
        chosen = range(len(cases)) if all_cases else _first_of_each([contents.patient_ids[c] for c in cases])
        hits: list[Hit] = []
        for place in list(chosen)[:k]:
            query, row, query_row = pairs(place)
            case, scan = int(cases[place]), int(contents.slice_scan[row])
            hits.append(
                Hit(
                    rank=len(hits) + 1,
                    score=round(float(scores[place]), 6),
                    case_id=contents.case_ids[case],
                    patient_id=contents.patient_ids[case],
                    labels=contents.labels[case],
                    sequence=contents.scan_sequence[scan],
                    source=contents.scan_source[scan],
                    slice=int(contents.slice_position[row]),
                    query_slice=int(query.positions[query_row]),
                    query_source=query.source,
                    query_sequence=query.sequence,
                )
            )
        if where:  # a filter on one label would make the vote on it a foregone conclusion
            cases, scores, pairs = state.rank(embedded, view, eligible, SHORTLIST, [])
        silent = silent | excluded
        strange = state.strange(embedded, pairs.matches, silent, view)
        if strange:
            notes.append(STRANGE)
        evidence = _evidence(state, cases, scores, silent, len(embedded), view, strange=bool(strange))
        return Answer(asked, hits, evidence, notes, familiar=None if strange is None else not strange)


class _State:
    """A snapshot with what every query needs of it worked out once."""

    def __init__(self, snapshot: Snapshot, calibration: Calibration | None = None) -> None:
        self.contents, self.vectors = snapshot.contents, snapshot.vectors
        self.calibration = calibration
        contents = self.contents
        self.slice_case = contents.scan_case[contents.slice_scan]
        names = {name: n for n, name in enumerate(dict.fromkeys(contents.scan_sequence))}
        self.sequences = names
        codes = np.array([names[s] for s in contents.scan_sequence], np.int64)
        self.slice_sequence = codes[contents.slice_scan]

    def cases_with(self, scan_ids: Sequence[int]) -> set[int]:
        places = np.searchsorted(self.contents.scan_ids, scan_ids)
        return {
            int(self.contents.scan_case[p])
            for p, i in zip(places, scan_ids, strict=True)
            if p < len(self.contents.scan_ids) and self.contents.scan_ids[p] == i
        }

    def stored(self, case: int) -> list[QueryScan]:
        """A filed case as a query."""
        contents = self.contents
        scans = []
        for scan in np.flatnonzero(contents.scan_case == case):
            rows = np.flatnonzero((contents.slice_scan == scan) & (contents.slice_view == WHOLE))
            scans.append(
                QueryScan(
                    source=contents.scan_source[scan],
                    sequence=contents.scan_sequence[scan],
                    positions=contents.slice_position[rows],
                    weights=contents.slice_weight[rows],
                    embeddings=self.vectors.gather(contents.slice_ids[rows]),
                    strangeness=float(contents.scan_strangeness[scan]),
                )
            )
        return scans

    def pool(
        self, sequence: str | None, view: int, eligible: NDArray[np.bool_], notes: list[str]
    ) -> NDArray[np.bool_]:
        """Slices that a query slice of this sequence and view is compared with, of those that may be."""
        of_view = self.contents.slice_view == view
        every = self.slice_sequence != self.sequences.get(COMPOSITE, -1)
        same = every if sequence is None else self.slice_sequence == self.sequences.get(sequence, -1)
        if not (same & eligible).any() and sequence != COMPOSITE:
            notes.append(f"no other case has {sequence}: compared with all sequences")
            same = every
        if view == REGION and not (of_view & same & eligible).any():
            notes.append("the index has no outlined regions: the region is compared with whole slices")
            of_view = self.contents.slice_view == WHOLE
        return np.asarray(of_view & same & eligible)

    def rank(
        self,
        queries: Sequence[QueryScan],
        view: int,
        eligible: NDArray[np.bool_],
        depth: int,
        notes: list[str],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], _Pairs]:
        """Cases best first, their scores, and the pair of slices for each.

        Where many slices are eligible, an approximate search proposes `depth` cases and these are
        ranked exactly; else all are.
        """
        pools = [self.pool(q.sequence, view, eligible[self.slice_case], notes) for q in queries]
        notes[:] = list(dict.fromkeys(notes))
        if max(int(pool.sum()) for pool in pools) > EXACT_BELOW:
            short = np.zeros(len(eligible), bool)
            for query, pool in zip(queries, pools, strict=True):
                short[self._propose(query, pool, depth)] = True
            pools = [pool & short[self.slice_case] for pool in pools]
        matches, rows = [], []
        for query, pool in zip(queries, pools, strict=True):
            row = np.flatnonzero(pool)
            stored = self.vectors.gather(self.contents.slice_ids[row])
            weights = self.contents.slice_weight[row]
            matches.append(compared(query.embeddings, query.weights, stored, weights, self.slice_case[row]))
            rows.append(row)
        cases, scores, best = fuse(matches, [query.sequence for query in queries])
        return cases, scores, _Pairs(queries, matches, rows, cases, best)

    def strange(
        self, queries: Sequence[QueryScan], matches: Sequence[Matches], silent: set[str], view: int
    ) -> bool | None:
        """Whether a query is unlike what the index knows; None where nothing can tell.

        What the index has learnt of its own patients decides; where it has learnt nothing, what the
        encoder was trained on.
        """
        typical = [(q.sequence, -q.strangeness) for q in queries]
        near = [
            (q.sequence, self.nearest(m, silent))
            for q, m in zip(queries, matches, strict=True)
            if q.sequence != COMPOSITE  # which says what kind of case it is, whatever it shows
        ]
        signals = {SIMILARITY: near, TYPICALITY: typical}
        learnt = self.calibration
        found = learnt.strange(signals, region=view == REGION) if learnt else None
        if learnt and learnt.tells(TYPICALITY):
            return found
        values = [value for _, value in typical if not np.isnan(value)]
        foreign = bool(np.mean(values) < -LIMIT) if values else None
        return found if foreign is None else bool(found) or foreign

    def nearest(self, matches: Matches, silent: set[str]) -> float:
        """The familiarity of a query's scan, without some patients."""
        patients = self.contents.patient_ids
        places = np.argsort(-matches.scores, kind="stable")
        ranked = [patients[case] for case in matches.cases[places]]
        voters = [place for place in _first_of_each(ranked) if ranked[place] not in silent]
        return familiarity(matches.scores[places][voters])

    def _propose(self, query: QueryScan, pool: NDArray[np.bool_], depth: int) -> NDArray[np.int64]:
        keep = None if pool.all() else self.contents.slice_ids[pool]
        scores, ids = self.vectors.search(query.embeddings, DEPTH, keep)
        found = ids >= 0
        cases = self.slice_case[np.searchsorted(self.contents.slice_ids, ids[found])]
        # a case that a query slice did not find scores the worst that slice found
        floor = np.where(found, scores, np.inf).min(axis=1, keepdims=True)
        gain = np.zeros((len(query.weights), len(self.contents.case_ids)), np.float32)
        slices = np.nonzero(found)[0]
        np.maximum.at(gain, (slices, cases), (scores - floor)[found])
        total = query.weights @ gain
        best = np.argsort(-total, kind="stable")[:depth]
        return best[total[best] > 0] if (total > 0).any() else np.unique(cases)


@dataclass(frozen=True)
class _Pairs:
    """The slice pair to show for the case at a place of the ranking."""

    queries: Sequence[QueryScan]
    matches: Sequence[Matches]
    rows: Sequence[NDArray[np.int64]]
    cases: NDArray[np.int64]
    best: NDArray[np.int64]

    def __call__(self, place: int) -> tuple[QueryScan, int, int]:
        which = int(self.best[place])
        matches = self.matches[which]
        at = int(np.searchsorted(matches.cases, self.cases[place]))
        return self.queries[which], int(self.rows[which][matches.rows[at]]), int(matches.query_rows[at])


def open_index(
    folder: str | os.PathLike[str], encoder: Encoder | None = None, *, recall: float | None = None
) -> Index:
    """Open an index folder for questions.

    Parameters
    ----------
    folder : path
    encoder : Encoder, optional
        Instead of the installed one that the index names; it must be the same.
    recall : float, optional
        Share of the nearest slices that a search through the partition's lists finds, 0 to 1; by default
        :data:`indexer.partition.RECALL`. Small collections and narrow filters are exact anyway.

    Returns
    -------
    Index

    Raises
    ------
    CaseIndexError
        If there is no index, or it is damaged or of another format.

    Examples
    --------
    >>> with open_index("cbir-index") as index:               # doctest: +SKIP
    ...     answer = index.query("scan.nii", k=10, where={"who_grade": "4"})
    ...     answer.hits[0].labels
    {'who_grade': '4'}
    """
    return Index(CaseIndex.open(Path(folder)), encoder, recall)


def open_reference(encoder: Encoder | None = None) -> Index:
    """Open the reference cases that come with cbir (see :mod:`indexer.reference`) for questions.

    Parameters
    ----------
    encoder : Encoder, optional
        Instead of the installed one that made them; it must be the same.

    Returns
    -------
    Index

    Raises
    ------
    CaseIndexError
        If there are none, or they are damaged.
    EncoderError
        If the encoder that made them is not installed.
    """
    cases = reference.opened()
    encoder = encoder or cases.load_encoder()
    reference.require(encoder)
    return Index(cases, encoder)


def _evidence(
    state: _State,
    cases: NDArray[np.int64],
    scores: NDArray[np.float32],
    silent: set[str],
    scans: int,
    view: int,
    *,
    strange: bool,
) -> dict[str, Evidence]:
    contents, learnt = state.contents, state.calibration
    by_patient = dict(zip(contents.patient_ids, contents.labels, strict=True))
    table = [row for patient, row in by_patient.items() if patient not in silent]
    patients = [contents.patient_ids[c] for c in cases]
    voters = [place for place in _first_of_each(patients) if patients[place] not in silent]
    if strange:  # whoever is nearest is not like the query: the prior is all there is to say
        voters = []
    evidence = {}
    for name in class_columns(table):
        counts = Counter(row[name] for row in table if name in row)
        prior = {value: n / counts.total() for value, n in sorted(counts.items())}
        values = [contents.labels[cases[place]].get(name) for place in voters]
        said = vote(scores[voters], values, prior)
        fit = learnt.fit(name, scans, region=view == REGION) if learnt else None
        evidence[name] = replace(said, reason=STRANGE) if strange else fit(said) if fit else said
    return evidence


def _sequences(scans: Sequence[QueryScan]) -> str | None:
    """The sequences that ask."""
    names = dict.fromkeys(scan.sequence for scan in scans if scan.sequence != COMPOSITE)
    return "+".join(name for name in names if name) or None


def _slices(scans: Sequence[QueryScan]) -> int:
    """How many slices ask."""
    return sum(len(scan.positions) for scan in scans if scan.sequence != COMPOSITE)


def _one_patient(source: str, scans: Sequence[Scan]) -> list[Scan]:
    patients = {scan.patient_id for scan in scans}
    if len(patients) > 1:
        raise QueryError(
            source,
            f"holds {len(patients)} patients",
            "a query is one patient's scan: name a file or a subfolder",
        )
    return list(scans)


def _first_of_each(names: Sequence[str]) -> list[int]:
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        first.setdefault(name, place)
    return list(first.values())
