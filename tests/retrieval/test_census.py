"""A census that is kept up as an index grows and shrinks is one that is taken anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.catalog.contents import Contents, nothing
from indexer.measures import NAMES
from indexer.view import LENGTH
from retrieval.census import Census
from retrieval.evidence import Population
from retrieval.likeness import Lesions

LABELS = st.dictionaries(st.sampled_from(("who_grade", "tumour")), st.sampled_from("234"), max_size=2)


def said(population: Population, silent: list[object]) -> object:
    return population.classes(silent), [population.values(name) for name in ("who_grade", "tumour", "x")]


def check(census: Census) -> None:
    """Against the definitions."""
    contents = census.contents
    whose = contents.patient_ids
    assert census.cases_of == {p: [i for i, q in enumerate(whose) if q == p] for p in whose}
    by_patient = Population(dict(zip(whose, contents.labels, strict=True)))
    by_case = Population(dict(enumerate(contents.labels)))
    for silent in ([], whose[:1], whose[:3]):
        assert said(census.patients, silent) == said(by_patient, silent)
    for name in ("who_grade", "tumour", "x"):
        assert census.cases.values(name) == by_case.values(name)
    names = {number: name for name, number in census.sequences.items()}
    looks = Lesions.of(contents)
    np.testing.assert_array_equal(census.lesions.measures, looks.measures)
    np.testing.assert_array_equal(census.lesions.lobes, looks.lobes)
    np.testing.assert_array_equal(census.lesions.spread, looks.spread)
    assert [names[number] for number in census.scan_sequence.tolist()] == contents.scan_sequence


@st.composite
def next_of(draw: st.DrawFn, old: Contents) -> Contents:
    """Contents with cases and scans more, labels that are others, and now and then cases less."""
    n = len(old.case_ids)
    labels = list(old.labels)
    for place in draw(st.sets(st.integers(0, n - 1), max_size=3)) if n else ():
        labels[place] = draw(LABELS)
    kept = [i for i in range(n) if draw(st.integers(0, 4))] if draw(st.booleans()) else list(range(n))
    new = draw(st.integers(0, 3))
    last = int(old.case_rows[-1]) if n else 0
    cases = len(kept) + new
    scans = draw(st.lists(st.sampled_from((None, "t1", "t2", "composite")), max_size=4)) if cases else []
    whose = [draw(st.integers(0, cases - 1)) for _ in scans]
    measured = np.random.default_rng(draw(st.integers(0, 99))).random((len(scans), len(NAMES)), np.float32)
    measured[measured < 0.3] = np.nan
    lobes = np.array([draw(st.integers(0, 3)) for _ in scans], np.uint8)
    stays = slice(None) if len(kept) == n else slice(0, 0)  # with cases scans go: here all of them
    first = int(old.scan_ids[-1]) + 1 if len(old.scan_ids) else 1
    return replace(
        old,
        case_rows=np.append(old.case_rows[kept], last + 1 + np.arange(new)),
        case_ids=[old.case_ids[i] for i in kept] + [f"c{last + i}" for i in range(new)],
        patient_ids=[old.patient_ids[i] for i in kept] + [draw(st.sampled_from("pqrs")) for _ in range(new)],
        labels=[labels[i] for i in kept] + [draw(LABELS) for _ in range(new)],
        scan_ids=np.append(old.scan_ids[stays], first + np.arange(len(scans))),
        scan_sequence=[*old.scan_sequence[stays], *scans],
        scan_case=np.append(old.scan_case[stays], np.array(whose, np.int64)),
        scan_measures=np.concatenate([old.scan_measures[stays], measured]),
        scan_views=np.full((len(old.scan_ids[stays]) + len(scans), LENGTH), np.nan, np.float16),
        scan_lobes=np.append(old.scan_lobes[stays], lobes),
    )


@given(st.data())
def test_it_is_kept_up(data: st.DataObject) -> None:
    contents, census = nothing(), None
    for _ in range(6):
        contents = data.draw(next_of(contents))
        census = Census.of(contents, census)
        check(census)
        assert Census.of(contents, census) is census
