from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retrieval.likeness
from indexer.atlas import LOBES
from indexer.measures import NAMES, Measures
from retrieval.likeness import FEW, RANDOM, Lesions, lobes_of_cases, of_cases, scaled, spread, together


def row(**known: float) -> np.ndarray:
    return scaled(Measures(**known).numbers)


def looks(*rows: np.ndarray, **spreads: float) -> Lesions:
    wide = np.array([spreads.get(name, np.nan) for name in NAMES], np.float32)
    return Lesions(np.array(rows), wide, np.zeros(len(rows), np.uint8))


SPREADS = {"size": 0.3, "necrotic": 0.2, "enhancing": 0.2, "flair": 0.5, "right_left": 0.3}


def test_worked_examples_in_the_docstrings():
    assert doctest.testmod(retrieval.likeness).failed == 0


def test_two_draws_differ_as_much_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2, 200_000))
    assert np.abs(draws[0] - draws[1]).mean() == pytest.approx(RANDOM, abs=0.01)


def test_a_composite_is_believed_before_the_leading_sequence_and_equals_are_averaged():
    vectors = np.array(
        [
            Measures(size=10, t1=1.0).numbers,  # t1
            Measures(size=30, flair=2.0).numbers,  # two of FLAIR
            Measures(size=50, flair=4.0).numbers,
            Measures(necrotic=0.5).numbers,  # the composite
        ]
    )
    found = dict(zip(NAMES, together(["t1", "flair", "flair", "composite"], vectors).tolist(), strict=True))
    assert (found["size"], found["t1"], found["flair"], found["necrotic"]) == (40, 1, 3, 0.5)
    assert np.isnan(found["oedema"])
    of_two = of_cases(["t1", "flair", "flair", "composite"], vectors, np.array([2, 0, 2, 0]), 3)
    size = NAMES.index("size")
    assert of_two[[0, 2], size].tolist() == [30, 50]
    assert np.isnan(of_two[1]).all()


def test_distance_by_hand():
    held = looks(row(size=20, necrotic=0.1), row(size=20), row(), size=0.5, necrotic=0.1)
    asked = row(size=20 * np.e, necrotic=0.4, flair=3.0)  # FLAIR has no spread, and no part
    cases = np.array([0, 1, 2])
    np.testing.assert_allclose(
        held.distance(asked, cases), [(2 + 3) / 2, (2 + RANDOM) / 2, RANDOM], rtol=1e-5
    )
    np.testing.assert_allclose(held.distance(row(), cases), 0)
    np.testing.assert_allclose(held.distance(asked, cases[2:]), RANDOM, rtol=1e-6)


def test_no_spread_of_a_few_or_of_equals():
    many = np.array([row(size=np.exp(i % 2), necrotic=0.5) for i in range(FEW)])
    found = dict(zip(NAMES, spread(many).tolist(), strict=True))
    assert found["size"] == pytest.approx(0.5)
    assert np.isnan(found["necrotic"])
    assert np.isnan(spread(many[1:])).all()


@pytest.mark.parametrize(
    ("asked", "case", "said"),
    [
        ({"size": 20}, {"size": 40}, ["larger"]),
        ({"size": 40}, {"size": 20}, ["smaller"]),
        ({"size": 20}, {"size": 21}, ["similar size"]),
        ({"size": 20}, {"size": 25}, []),  # neither: log 1.25 = 0.22
        ({"size": 20}, {"size": 0}, []),  # no lesion was found
        ({"size": 20}, {}, []),
        ({}, {"size": 20, "necrotic": 0.3, "right_left": 0.5}, []),
        ({"necrotic": 0.1}, {"necrotic": 0.4}, ["more necrosis"]),
        ({"necrotic": 0.4}, {"necrotic": 0.1}, ["less necrosis"]),
        ({"necrotic": 0.4}, {"necrotic": 0.42}, ["similar necrosis"]),
        ({"enhancing": 0.0}, {"enhancing": 0.02}, ["no enhancement"]),
        ({"oedema": 0.1}, {"oedema": 0.9}, []),  # its spread is not known
        ({"flair": 1.0}, {"flair": 2.0}, ["brighter in FLAIR"]),
        ({"flair": 2.0}, {"flair": 1.0}, ["darker in FLAIR"]),
        ({"flair": 2.0}, {"flair": 2.0}, []),
        ({"right_left": 0.5}, {"right_left": 0.3}, ["left both"]),
        ({"right_left": 0.5}, {"right_left": -0.5}, ["right, not left"]),
        ({"right_left": 0.5}, {"right_left": 0.05}, ["in the middle"]),
        ({"right_left": 0.05}, {"right_left": -0.05}, []),
        (
            {"right_left": 0.5, "posterior_anterior": 0.5, "inferior_superior": -0.4},
            {"right_left": 0.4, "posterior_anterior": 0.6, "inferior_superior": 0.4},
            ["left anterior both", "higher"],
        ),
        ({"posterior_anterior": 0.5}, {"posterior_anterior": -0.5}, ["more posterior"]),
        (
            {"size": 20, "necrotic": 0.1, "enhancing": 0.3, "right_left": 0.4},
            {"size": 40, "necrotic": 0.5, "enhancing": 0.3, "right_left": 0.4},
            ["left both", "similar enhancement", "larger", "more necrosis"],
        ),
    ],
)
def test_words(asked, case, said):
    assert looks(row(**case), **SPREADS).words(row(**asked), 0) == said


@pytest.mark.parametrize(
    ("asked", "case", "said"),
    [
        ("left frontal", "left frontal", ["left frontal both"]),
        ("left frontal", "left temporal", ["left both", "temporal, not frontal"]),
        ("left frontal", "right frontal", ["frontal both", "right, not left"]),
        ("left frontal", "right temporal", ["right temporal, not left frontal"]),
        ("brainstem", "corpus callosum", ["corpus callosum, not brainstem"]),
        ("left thalamus", "thalamus", ["thalamus, not left thalamus"]),
        ("left frontal", "", ["left both"]),  # then the box of the head says it
        ("", "left frontal", ["left both"]),
    ],
)
def test_lobes_say_the_place_where_both_are_known(asked, case, said):
    held = looks(row(right_left=0.4), **SPREADS)
    held.lobes[0] = LOBES.index(case)
    assert held.words(row(right_left=0.5), 0, asked) == said


def test_the_lobe_of_a_case_is_that_of_the_scan_that_is_believed_first():
    names = ["t1", "flair", "composite", "t2", None]
    lobes = np.array([1, 2, 0, 3, 4], np.uint8)
    found = lobes_of_cases(names, lobes, np.array([1, 1, 1, 2, 0]), 4)
    assert found.tolist() == [4, 2, 3, 0]


NOWHERE = np.zeros(1, np.uint8)
values = st.one_of(st.just(float("nan")), st.floats(-1, 1, width=32))


@given(
    st.lists(values, min_size=len(NAMES), max_size=len(NAMES)),
    st.lists(values, min_size=len(NAMES), max_size=len(NAMES)),
)
@settings(max_examples=200)
def test_words_say_nothing_of_what_is_unknown_and_turn_round(asked, case):
    a, b = np.array(asked, np.float32), np.array(case, np.float32)
    wide = np.full(len(NAMES), 0.2, np.float32)
    one, other = (Lesions(x[None], wide, NOWHERE).words(y, 0) for x, y in ((b, a), (a, b)))
    known = np.isfinite(a) & np.isfinite(b)
    assert len(one) <= known.sum()
    opposite = {"larger": "smaller", "more necrosis": "less necrosis", "brighter in T2": "darker in T2"}
    for here, there in opposite.items():
        assert (here in one) == (there in other)
        assert (there in one) == (here in other)
    assert not Lesions(np.full((1, len(NAMES)), np.nan, np.float32), wide, NOWHERE).words(a, 0)
