"""From a question to its answer: read, embed, rank cases, gather the evidence."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer import roots, sandbox
from indexer.atlas import LOBES
from indexer.case_index import CaseIndex
from indexer.composite import Group, composite, groups
from indexer.encoder import STACK, Doubtful, Encoder, chance_of_lesion, least_chance, look
from indexer.errors import QueryError, ReadError
from indexer.files import there
from indexer.ingest import remembered_tables
from indexer.measures import Measures, measure
from indexer.preprocess import Prepared, Preprocessing, prepared, prepared_composite, with_region
from indexer.reading import input_hash
from indexer.scan import Scan, ScanRef
from indexer.sequences import CHANNELS, LEADERS, is_composite
from indexer.view import view_of
from retrieval.agreement import Lifts, agreement, gain, lifts
from retrieval.answer import Answer, Evidence, Hit, Query
from retrieval.asked import asked
from retrieval.evidence import SCALES, vote
from retrieval.likeness import REACH, VIEW, less_views, lobes_of_cases, scaled, together, view_words
from retrieval.open_set import OpenSet
from retrieval.question import Question
from retrieval.state import REGION, WHOLE, QueryScan, Ranked, State, first_of_each

_log = logging.getLogger(__name__)

UNHELD = "the index holds no case of the kind this may be"
NO_LESION = "no lesion found: nothing that was asked with looks as if it showed one"

STRANGE = "nothing similar here: this scan is unlike almost every one that is known"


@dataclass(frozen=True)
class Asking:
    """What asks, embedded.

    Attributes
    ----------
    query : Query
    scans : list of QueryScan
    view : int
        Which view of slices it is compared with.
    excluded : set of str
        Patients that are no hits and have no vote.
    silent : set of str
        Patients that may be hits and have no vote.
    notes : list of str
    measures : ndarray of float32, shape (n,)
        Of the lesion, as :func:`retrieval.likeness.scaled` gives them.
    lobe : str
        Where it is; one of :data:`indexer.atlas.LOBES`.
    healthy : bool
        Whether the encoder finds no lesion in it.
    same : frozenset of int
        Cases that hold the very scans, whose hits come first.
    """

    query: Query
    scans: list[QueryScan]
    view: int
    excluded: set[str]
    silent: set[str]
    notes: list[str]
    measures: NDArray[np.float32]
    lobe: str = ""
    healthy: bool = False
    same: frozenset[int] = frozenset()


def answered(
    question: Question, state: State, case_index: CaseIndex, encoder: Callable[[], Encoder]
) -> Answer:
    """The answer to a question.

    Parameters
    ----------
    question : Question
    state : State
        Of the index, as it is searched.
    case_index : CaseIndex
    encoder : callable
        Gives the encoder that made the index; not called where cases of the index ask.

    Raises
    ------
    ReadError
        If the query cannot be read.
    QueryError
        If it holds several patients, or the index, the filter or the region fits nothing.
    EncoderError
        If the index was made by another encoder.
    """
    start = time.perf_counter()
    if question.cases:
        asking = _filed(question, state, case_index)
    else:
        with ThreadPoolExecutor(1) as aside:  # other processes read meanwhile
            asking = _given(question, state, case_index, aside.submit(encoder).result)
    excluded = asking.excluded | _named(case_index, question.excluded)
    read = time.perf_counter()
    asking = replace(asking, excluded=excluded, notes=[*asking.notes, *roots.notes(case_index)])
    answer = _answer(question, asking, state, case_index.folder)
    _log.info(
        "%d slices asked of %d cases: %.3f s to read and embed, %.3f s to rank; %d hits",
        *(answer.query.slices, len(state.contents.case_ids), read - start),
        *(time.perf_counter() - read, len(answer.hits)),
    )
    return answer


def has_patient(case_index: CaseIndex, state: State, patient: str) -> bool:
    """Whether a patient is in the index, by the id in the files or in the index."""
    return not _named(case_index, [patient]).isdisjoint(state.census.cases_of)


# ---- what asks ---------------------------------------------------------------------------------


def _filed(question: Question, state: State, case_index: CaseIndex) -> Asking:
    """Cases of the index."""
    contents = state.contents
    for name in question.cases:
        if name not in contents.case_ids:
            raise QueryError(
                case_index.shown(name), "the index has no such case", "list them with `cbir info --cases`"
            )
    cases = [contents.case_ids.index(name) for name in question.cases]
    filed = state.scans_of(cases)
    scans = [scan for case in cases for _, scan in filed.get(case, [])]
    own = {contents.patient_ids[case] for case in cases}
    with warnings.catch_warnings(action="ignore"):  # what is known of none of the cases stays NaN
        measures = np.nanmean(state.census.lesions.measures[cases], axis=0)
    lobes = {LOBES[lobe] for lobe in state.census.lesions.lobes[cases]}
    lobe = lobes.pop() if len(lobes) == 1 else ""
    return Asking(_query(question, scans), scans, WHOLE, own, set(), [], measures, lobe)


def _given(question: Question, state: State, case_index: CaseIndex, encoder: Callable[[], Encoder]) -> Asking:
    """A scan, or several of a patient."""
    notes: list[str] = []
    if question.scans:
        scans = _one_patient(question, question.scans)
    else:
        path = Path(question.name)
        if not there(path, ReadError):
            raise ReadError(path, "does not exist", "name a file or folder to ask with")
        scans, notes = asked(
            path,
            question.visit,
            remembered_tables(case_index, path),
            all_images=roots.takes_all(case_index, path.absolute()),
            top=roots.top(case_index, path.absolute()),
        )
    refs = numbered(scans)
    if question.mask is not None:
        volume = sandbox.read_mask(Path(question.mask), scans[0])
        fits = [scan.voxels.shape == volume.shape for scan in scans]
        refs = [ref for ref, fit in zip(refs, fits, strict=True) if fit]
        scans = [replace(scan, region=volume) for scan, fit in zip(scans, fits, strict=True) if fit]
    elif question.region is not None:
        scans = [with_region(scan, question.region, question.region_slice) for scan in scans]
    else:
        scans = [replace(scan, region=None) for scan in scans]
    view = REGION if question.marked else WHOLE
    embedded, identical, measures, lobe = _embedded(scans, refs, view, state, case_index, encoder(), notes)
    query = _query(question, embedded)
    if question.region is not None:
        query = replace(query, region=question.region, region_slice=int(embedded[0].positions[0]))
    if identical:
        whose = sorted({state.contents.case_ids[i] for i in identical})
        notes.append(
            f"the query itself is in the index (case {', '.join(whose)}): "
            "that patient has no vote in the evidence"
        )
    silent = {state.contents.patient_ids[i] for i in identical}
    own: set[str] = set()
    if not question.scans:
        own = _named(case_index, sorted({scan.patient_id for scan in scans} - {""}))
        own = (own & state.census.cases_of.keys()) - silent
        if own:
            notes.append("the patient of the query is in the index, and is left out")
    healthy = view == WHOLE and _healthy(embedded, encoder())
    return Asking(query, embedded, view, own, silent, notes, measures, lobe, healthy, frozenset(identical))


def _healthy(scans: Sequence[QueryScan], encoder: Encoder) -> bool:
    """Whether none of these shows a lesion, for an encoder that can tell."""
    if not isinstance(encoder, Doubtful):
        return False
    single = [scan for scan in scans if not is_composite(scan.sequence)]
    stacks = [scan.sequence for scan in single if len(scan.positions) >= STACK]
    return max(scan.lesion for scan in single) < least_chance(encoder.least_lesion, stacks)


def numbered(scans: Sequence[Scan]) -> list[ScanRef]:
    """Which scans these are that reading some sources has given, in the order of reading."""
    count: Counter[str] = Counter()
    found = []
    for scan in scans:
        source = str(scan.source)
        found.append(ScanRef(source, count[source]))
        count[source] += 1
    return found


def _embedded(
    scans: Sequence[Scan],
    refs: Sequence[ScanRef],
    view: int,
    state: State,
    case_index: CaseIndex,
    encoder: Encoder,
    notes: list[str],
) -> tuple[list[QueryScan], set[int], NDArray[np.float32], str]:
    """The scans and their composites as queries, the cases that hold the very same, and measures and lobe."""
    how, held = Preprocessing.of(encoder), case_index.preprocessing(encoder)
    asking: list[tuple[Scan, ScanRef, Prepared]] = []
    digests: dict[tuple[str | None, str], ScanRef] = {}

    def take(scan: Scan, ref: ScanRef, prepare: Callable[[Preprocessing], Prepared]) -> None:
        ready = prepare(how)
        # an index of old may hold more planes, and be asked with fewer
        digest = input_hash(ready if held == how else prepare(held))
        if (first := digests.setdefault((scan.sequence, digest), ref)) != ref:
            notes.append(f"{ref} shows the same as {first}, which asks for both")
        else:
            asking.append((scan, ref, ready))

    for scan, ref in zip(scans, refs, strict=True):
        take(scan, ref, partial(prepared, scan))
    if how.composite_size and state.has_composites:
        for group in groups(scans, how.composite_size):
            take(composite(group), _planes_of(group, scans, refs), partial(_together, group))
            notes += group.notes
    filed = (case_index.catalog.scans_of(digest) for _, digest in digests)
    identical = {case for scans_of in filed for case in state.cases_with(scans_of)}
    of_composites = any(is_composite(scan.sequence) for scan, _, _ in asking)  # which tell more
    embedded, measured = [], []
    for scan, ref, ready in asking:
        channels = CHANNELS if is_composite(scan.sequence) else (scan.sequence,)
        if not state.has_measures or (of_composites and not is_composite(scan.sequence)):
            measured.append(Measures())
        else:
            measured.append(measure(ready, channels, encoder))
        rows = np.flatnonzero(ready.views == view)
        if not len(rows):
            raise QueryError(scan.source, "the region is empty", "mark a part of the image")
        vectors, weights, strange = look(encoder, ready.pixels[rows], ready.boxes[rows], ready.weights[rows])
        embedded.append(
            QueryScan(
                scan=ref,
                sequence=scan.sequence,
                positions=ready.positions[rows].astype(np.int64),
                weights=weights,
                embeddings=vectors,
                strangeness=float(np.average(strange, weights=weights)),
                lesion=chance_of_lesion(weights / ready.weights[rows]),
                view=view_of(ready),
            )
        )
    names = [scan.sequence for scan, _, _ in asking]
    measures = scaled(together(names, np.array([one.numbers for one in measured])))
    lobes = np.array([LOBES.index(one.lobe) for one in measured], np.uint8)
    (lobe,) = lobes_of_cases(names, lobes, np.zeros(len(names), np.int64), 1)
    return embedded, identical, measures, LOBES[lobe]


def _together(group: Group, how: Preprocessing) -> Prepared:
    return prepared_composite(group.scans, how.composite_size, how.apart, how.standardised)


def _planes_of(group: Group, scans: Sequence[Scan], refs: Sequence[ScanRef]) -> ScanRef:
    """The scan whose planes are those of a composite: it is on the grid of one of them, or a coarser one."""
    stands = composite(group)
    names = [scan.sequence for scan in group.scans if scan is not None]
    members = [(scan, ref) for scan, ref in zip(scans, refs, strict=True) if scan.sequence in names]
    members.sort(key=lambda member: LEADERS.index(str(member[0].sequence)))
    for scan, ref in members:
        if scan.axis == stands.axis and len(scan) == len(stands) and _same_planes(scan, stands):
            return ref
    return members[0][1]


def _same_planes(one: Scan, other: Scan) -> bool:
    """Whether the middles of the first and the last plane of two scans are the same places."""
    if one.affine is None or other.affine is None:
        return one.voxels.shape == other.voxels.shape
    return bool(np.allclose(_ends(one, one.affine), _ends(other, other.affine), atol=1e-2))


def _ends(scan: Scan, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    at = np.tile((np.array(scan.voxels.shape) - 1) / 2, (2, 1))
    at[:, scan.axis] = 0, len(scan) - 1
    return np.asarray(at @ affine[:3, :3].T + affine[:3, 3])


def _query(question: Question, scans: Sequence[QueryScan]) -> Query:
    own = [scan for scan in scans if not is_composite(scan.sequence)]
    names = dict.fromkeys(scan.sequence for scan in own)
    return Query(
        source=question.name,
        sequence="+".join(name for name in names if name) or None,
        slices=sum(len(scan.positions) for scan in own),
        mask=None if question.mask is None else os.fspath(question.mask),
        scans=[scan.scan for scan in own],
        by=question.by,
    )


def _one_patient(question: Question, scans: Sequence[Scan]) -> list[Scan]:
    patients = {scan.patient_id for scan in scans}
    if len(patients) > 1:
        raise QueryError(
            question.name,
            f"holds {len(patients)} patients",
            "a query is one patient's scan: name a file or a subfolder",
        )
    if question.visit is None:
        return list(scans)
    found = [scan for scan in scans if scan.study_id == question.visit]
    if not found:
        known = ", ".join(sorted({scan.study_id for scan in scans} - {""})) or "none by name"
        raise QueryError(question.name, f"holds no visit {question.visit}", f"it holds: {known}")
    return found


def _named(case_index: CaseIndex, patients: Sequence[str]) -> set[str]:
    return {name for patient in patients for name in (patient, case_index.patient(patient))}


# ---- what is answered --------------------------------------------------------------------------


def _answer(question: Question, asking: Asking, state: State, folder: Path) -> Answer:
    contents = state.contents
    if not contents.case_ids:
        raise QueryError(folder, "the index is empty", "fill it with `cbir index FOLDER`")
    where = {name: str(value) for name, value in (question.where or {}).items()}
    eligible = np.ones(len(contents.case_ids), bool)
    for patient in asking.excluded:
        eligible[state.census.cases_of.get(patient, [])] = False
    matching = eligible & _matching(state, where)
    others = eligible.copy()
    for patient in asking.silent:
        others[state.census.cases_of.get(patient, [])] = False
    ranked = heard = state.rank(asking.scans, asking.view, matching, 5 * question.k, others)
    if where:  # a filter on one label would make the vote on it a foregone conclusion
        heard = state.rank(asking.scans, asking.view, eligible, others=others)
    notes = [*asking.notes, *ranked.notes]
    silent = asking.silent | asking.excluded
    strange = state.strange(heard, silent, asking.view)
    doubt = NO_LESION if asking.healthy else STRANGE if strange else None
    if doubt:
        notes.append(doubt)
    votes = _votes(state, heard, silent, asking, doubt)
    evidence = _evidence(state, heard, silent, asking, votes)
    hits = _hits(question, asking, state, ranked, lifts(votes))
    if state.stale and evidence:
        notes.append(f"not calibrated: {state.stale}; `cbir index` learns it anew")
    return Answer(asking.query, hits, evidence, notes, familiar=None if strange is None else not strange)


def _matching(state: State, where: Mapping[str, str]) -> NDArray[np.bool_]:
    """Cases with all of these labels."""
    labels = state.contents.labels
    if not where:
        return np.ones(len(labels), bool)
    for name, value in where.items():
        held = {row[name] for row in labels if name in row}
        if value not in held:
            columns = {column for row in labels for column in row}
            known = ", ".join(sorted(held or columns)[:10]) or "no labels"
            what = "no case has this value" if held else "there is no such label"
            raise QueryError(f"{name}={value}", what, f"the index has: {known}")
    return np.array([all(row.get(n) == v for n, v in where.items()) for row in labels], bool)


def _hits(question: Question, asking: Asking, state: State, ranked: Ranked, gains: Lifts) -> list[Hit]:
    contents, lesions = state.contents, state.census.lesions
    weight, share = state.ranking.shares(question.by)
    turned, of_rows = state.turned(ranked)
    agree = agreement(gains, (contents.labels[case] for case in ranked.cases))
    agreed = ranked.scores + gain(ranked.scores, agree, share)
    away = weight * lesions.distance(asking.measures, ranked.cases)
    away[np.isin(ranked.cases, list(asking.same))] = -np.inf
    order = np.argsort(away - less_views(agreed, turned, weight), kind="stable")
    less = [weight * VIEW * REACH * one for one in of_rows]
    patients = [contents.patient_ids[case] for case in ranked.cases[order]]
    places = range(len(patients)) if question.all_cases else first_of_each(patients)
    hits = []
    for rank, place in enumerate(order[list(places)[: question.k]].tolist(), 1):
        query, query_row, row = state.pair(ranked, place, less)
        case, scan = int(ranked.cases[place]), int(contents.slice_scan[row])
        hits.append(
            Hit(
                rank=rank,
                score=round(float(ranked.scores[place]), 6),
                case_id=contents.case_ids[case],
                patient_id=contents.patient_ids[case],
                visit=contents.visits[case],
                labels=contents.labels[case],
                sequence=contents.scan_sequence[scan],
                scan=contents.scan_ref(scan),
                slice=int(contents.slice_position[row]),
                query_slice=int(query.positions[query_row]),
                query_scan=query.scan,
                query_sequence=query.sequence,
                likeness=[
                    *view_words(query.view, contents.scan_views[scan]),
                    *([] if asking.healthy else lesions.words(asking.measures, case, asking.lobe)),
                ],
            )
        )
    return hits


def _votes(
    state: State, ranked: Ranked, silent: set[str], asking: Asking, doubt: str | None
) -> dict[str, Evidence]:
    """What the nearest case of each patient says on each label that it has, as it is."""
    contents, learnt, marked = state.contents, state.calibration, asking.view == REGION
    patients = [contents.patient_ids[c] for c in ranked.cases]
    voters = [place for place in first_of_each(patients) if patients[place] not in silent]
    if doubt:  # whoever is nearest is not like the query: the prior is all there is to say
        voters = []
    votes = {}
    for name, counts in state.census.patients.classes(silent).items():
        prior = {value: n / sum(counts.values()) for value, n in counts.items()}
        known = learnt.open_set(name, len(asking.scans), region=marked) if learnt else None
        unheld = not doubt and known is not None and known.refuses(state.nearness(ranked, silent, name))
        able = [] if unheld else voters
        values = [contents.labels[ranked.cases[place]].get(name) for place in able]
        said = vote(ranked.scores[able], values, prior, state.ranking)
        votes[name] = replace(said, reason=doubt or UNHELD) if doubt or unheld else said
    return votes


def _evidence(
    state: State, ranked: Ranked, silent: set[str], asking: Asking, votes: Mapping[str, Evidence]
) -> dict[str, Evidence]:
    """The votes as they are to be read, with what the index holds of each label."""
    contents, learnt, marked = state.contents, state.calibration, asking.view == REGION
    heard = ranked.cases[[contents.patient_ids[case] not in silent for case in ranked.cases]]
    evidence = {}
    for name, said in votes.items():
        known = learnt.open_set(name, len(asking.scans), region=marked) if learnt else None
        fit = learnt.fit(name, len(asking.scans), region=marked) if learnt and not said.reason else None
        if fit:
            said = fit.near(name, contents, heard)(said)
        if state.stale and not said.abstain:
            said = replace(said, reason=f"not calibrated: {state.stale}")
        every = state.census.cases.values(name)
        evidence[name] = replace(
            said,
            values=list(every),
            held=state.census.patients.values(name),
            lacks=[value for value in SCALES.get(name.lower(), ()) if value not in every],
            others=_others(known),
        )
    return evidence


def _others(known: OpenSet | None) -> str:
    """Whether a case of a kind that the index does not hold would be noticed, in words."""
    if known is None or known.missed is None:
        return "whether it would notice a kind that it does not hold is not known"
    tried = f"with each kind left out in turn, {known.missed:.0%} of its cases got a vote"
    if known.tells:
        return f"it may notice a kind that it does not hold: {tried}"
    return f"it does not notice a kind that it does not hold: {tried}, so that nobody is refused"
