"""Which slices a query's are compared with, against masks over all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexer.case_index import Snapshot
from indexer.catalog.contents import Contents, nothing
from indexer.measures import NAMES
from indexer.policy import SearchPolicy
from indexer.scan import ScanRef
from indexer.sequences import COMPOSITE, is_composite
from indexer.stores.faiss.vectors import Vectors
from indexer.view import LENGTH
from retrieval.state import REGION, WHOLE, QueryScan, State
from tests.indexer.test_vectors import unit

SEQUENCES = (None, "t1", "t2", COMPOSITE)


@st.composite
def filled(draw: st.DrawFn, in_order: bool = True) -> Contents:
    """Cases with scans that have slices of both views; some have none."""
    scans = draw(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(SEQUENCES)), max_size=12))
    views = [draw(st.lists(st.sampled_from((WHOLE, REGION)), max_size=4)) for _ in scans]
    slice_scan = np.repeat(np.arange(len(scans)), [len(own) for own in views])
    if not in_order:
        slice_scan = np.array(draw(st.permutations(slice_scan.tolist())), np.int64)
    n = len(slice_scan)
    return replace(
        nothing(),
        case_rows=np.arange(6),
        case_ids=[f"c{i}" for i in range(6)],
        patient_ids=[f"p{i // 2}" for i in range(6)],
        visits=[None] * 6,
        labels=[{} for _ in range(6)],
        in_sample=np.zeros(6, bool),
        scan_ids=np.arange(len(scans)),
        scan_case=np.array([case for case, _ in scans], np.int64),
        scan_sequence=[sequence for _, sequence in scans],
        scan_source=[f"s{i}" for i in range(len(scans))],
        scan_number=np.zeros(len(scans), np.int64),
        scan_shape=[(1, 1, 1)] * len(scans),
        scan_strangeness=np.zeros(len(scans), np.float32),
        scan_measures=np.full((len(scans), len(NAMES)), np.nan, np.float32),
        scan_views=np.full((len(scans), LENGTH), np.nan, np.float16),
        scan_lobes=np.zeros(len(scans), np.uint8),
        slice_ids=np.arange(n) * 3 + 1,
        slice_scan=slice_scan.astype(np.int64),
        slice_position=np.arange(n),
        slice_view=np.array([view for own in views for view in own], np.uint8),
        slice_weight=np.ones(n, np.float32),
    )


def masked(
    contents: Contents, sequence: str | None, view: int, eligible: NDArray[np.bool_]
) -> tuple[list[int], list[str]]:
    """Rows and notes, worked out over all slices."""
    notes = []
    own = [contents.scan_sequence[scan] for scan in contents.slice_scan]
    may = eligible[contents.scan_case[contents.slice_scan]]
    of_view = contents.slice_view == view
    single = np.array([not is_composite(name) for name in own], bool)
    same = single if sequence is None else np.array([name == sequence for name in own], bool)
    if sequence is not None and not (same & may).any() and not is_composite(sequence):
        notes.append(f"no other case has {sequence}: compared with all sequences")
        same = single
    elif sequence is not None and not is_composite(sequence):
        same = same | np.array([name is None for name in own], bool)  # which may be of this sequence, too
    if view == REGION:  # of scans that are not outlined whole slices stand for regions
        outlined = set(contents.slice_scan[of_view].tolist())
        of_view = np.array(
            [
                slice_view == (REGION if scan in outlined else WHOLE)
                for scan, slice_view in zip(contents.slice_scan.tolist(), contents.slice_view, strict=True)
            ],
            bool,
        )
        compared = of_view & same & may
        cases = contents.scan_case[contents.slice_scan]
        whole = len(set(cases[compared & (contents.slice_view == WHOLE)].tolist()))
        marked = len(set(cases[compared & (contents.slice_view == REGION)].tolist()))
        if whole:
            which = f"{whole} of {whole + marked} cases have" if marked else "the index has"
            notes.append(f"{which} no outlined regions: the region is compared with whole slices there")
    return np.flatnonzero(of_view & same & may).tolist(), notes


def state_of(contents: Contents, policy: SearchPolicy = SearchPolicy()) -> State:  # noqa: B008
    x = unit(np.random.default_rng(0).normal(size=(len(contents.slice_ids), 4)) + 1e-3)
    return State(Snapshot(contents, Vectors.build(contents.slice_ids, x)), policy=policy)


@given(filled(), st.data())
def test_a_pool_is_what_masks_over_all_slices_say(contents: Contents, data: st.DataObject) -> None:
    state = state_of(contents)
    for _ in range(3):  # what is remembered of one question changes nothing of another
        sequence = data.draw(st.sampled_from((*SEQUENCES, "flair")))
        view = data.draw(st.sampled_from((WHOLE, REGION)))
        eligible = np.array(data.draw(st.lists(st.booleans(), min_size=6, max_size=6)), bool)
        notes: list[str] = []
        pool = state.pool(sequence, view, eligible, notes)
        rows, told = masked(contents, sequence, view, eligible)
        assert (pool.rows.tolist(), notes, len(pool)) == (rows, told, len(rows))
        everything = np.arange(len(contents.slice_ids))
        assert everything[pool.holds(everything)].tolist() == rows


@given(st.booleans().flatmap(lambda ordered: filled(ordered)), st.sets(st.integers(0, 5)))
def test_rows_of_cases_and_scans(contents: Contents, chosen: set[int]) -> None:
    own = [int(contents.scan_case[scan]) for scan in contents.slice_scan]
    of_cases = [row for row, case in enumerate(own) if case in chosen]
    assert contents.rows_of_cases(np.array(sorted(chosen), np.int64)).tolist() == of_cases
    scans = np.array(sorted(chosen), np.int64)
    assert contents.rows_of(scans).tolist() == [r for r, s in enumerate(contents.slice_scan) if s in chosen]
    rows = np.arange(len(contents.slice_ids))
    assert contents.cases_of(rows).tolist() == own


@pytest.mark.parametrize("out", [0, 1, 5])
@given(filled())
def test_who_is_proposed_is_ranked_exactly(out: int, contents: Contents) -> None:
    eligible = np.arange(6) >= out
    exact, proposed = state_of(contents), state_of(contents, SearchPolicy(exact_below=0, depth=100))
    x = unit(np.random.default_rng(1).normal(size=(3, 4)))
    queries = [
        QueryScan(ScanRef("q", 0), sequence, np.arange(3), np.ones(3, np.float32), x, 0.0)
        for sequence in ("t1", "t2")
    ]
    one, other = (state.rank(queries, WHOLE, eligible) for state in (exact, proposed))
    assert one.notes == other.notes
    scores = dict(zip(one.cases.tolist(), one.scores.tolist(), strict=True))
    assert bool(len(one.cases)) == bool(len(other.cases))
    for case, score in zip(other.cases.tolist(), other.scores.tolist(), strict=True):
        assert eligible[case]
        assert score == pytest.approx(scores[case], abs=1e-6)
