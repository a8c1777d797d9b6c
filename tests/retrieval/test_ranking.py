from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retrieval.evidence
import retrieval.ranking
from retrieval.evidence import class_columns, vote
from retrieval.ranking import RULES, Matches, Ranking, Stacks, grouped, late_interaction, shown_pair


@pytest.mark.parametrize("module", [retrieval.ranking, retrieval.evidence])
def test_worked_examples_in_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@given(st.integers(1, 6), st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_late_interaction_is_the_weighted_mean_of_best_matches(q, filed, seed):
    rng = np.random.default_rng(seed)
    query, stored = stacks(rng, [q]), stacks(rng, filed)
    (scores,) = late_interaction(query, stored)
    similarity = query.embeddings @ stored.embeddings.T
    of_slice = np.repeat(np.arange(len(filed)), filed)
    for case, score in enumerate(scores):
        best = [max(similarity[i, of_slice == case]) for i in range(q)]
        expected = sum(w * b for w, b in zip(query.weights, best, strict=True)) / sum(query.weights)
        assert score == pytest.approx(expected, abs=1e-5)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_the_pair_that_is_shown_has_the_largest_weight_times_similarity(q, n, seed):
    rng = np.random.default_rng(seed)
    query, stored = stacks(rng, [q]), stacks(rng, [n])
    row, found = shown_pair(query.embeddings, query.weights, stored.embeddings)
    pairs = query.weights[:, None] * (query.embeddings @ stored.embeddings.T)
    assert pairs[row, found] == pytest.approx(pairs.max(), abs=1e-6)


def stacks(rng, sizes):
    x = rng.normal(size=(sum(sizes), 5)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    weights = rng.uniform(0.01, 1, len(x)).astype(np.float32)
    return Stacks(x, weights, np.cumsum([0, *sizes])[:-1])


def defined(queries, weights, stored, stored_weights):
    """The score of one case from its definition."""
    if len(queries) == 1:
        return max(float(queries[0] @ c) for c in stored)
    q = sum(w * x for w, x in zip(weights, queries, strict=True))
    c = sum(w * x for w, x in zip(stored_weights, stored, strict=True))
    return float(q @ c / np.linalg.norm(q) / np.linalg.norm(c))


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=6)


@given(SIZES, SIZES, st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_stacks_are_compared_as_wholes_and_single_slices_by_their_best_match(asking, filed, block, seed):
    rng = np.random.default_rng(seed)
    queries, stored = stacks(rng, asking), stacks(rng, filed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval.ranking, "BLOCK", block)
        scores = Ranking().scores(queries, stored)
    parts = [
        (s.embeddings[at : at + n], s.weights[at : at + n])
        for s, sizes in ((queries, asking), (stored, filed))
        for at, n in zip(s.starts, sizes, strict=True)
    ]
    for q in range(len(asking)):
        for c in range(len(filed)):
            expected = defined(*parts[q], *parts[len(asking) + c])
            assert scores[q, c] == pytest.approx(expected, abs=1e-5)
    some = rng.permutation(len(asking))
    np.testing.assert_allclose(Ranking().scores(queries.chosen(some), stored), scores[some], atol=1e-6)


@given(SIZES, st.integers(0, 2**32 - 1))
def test_slices_in_any_order_are_gathered_by_their_cases(filed, seed):
    rng = np.random.default_rng(seed)
    stored = stacks(rng, filed)
    cases = np.repeat(np.arange(len(filed)) * 3, filed)
    order = rng.permutation(len(cases))
    found, gathered = grouped(stored.embeddings[order], stored.weights[order], cases[order])
    assert found.tolist() == list(range(0, 3 * len(filed), 3))
    query = stacks(rng, [2])
    scores = [Ranking().scores(query, cases)[0] for cases in (stored, gathered)]
    np.testing.assert_allclose(*scores, atol=1e-6)


def test_nothing_filed_scores_nothing():
    nothing = np.empty((0, 3), np.float32)
    found, gathered = grouped(nothing, nothing[:, 0], np.empty(0, np.int64))
    assert len(found) == 0
    for rule in RULES:
        for n in (1, 2):
            query = Stacks.one(np.eye(3, dtype=np.float32)[:n], np.ones(n, np.float32))
            assert Ranking(rule).scores(query, gathered).shape == (1, 0)


def test_a_case_gains_nothing_by_repeating_a_slice():
    rng = np.random.default_rng(0)
    query, once = stacks(rng, [2]), stacks(rng, [1, 1])
    many = Stacks(once.embeddings[[0, 1, 1, 1]], once.weights[[0, 1, 1, 1]], np.array([0, 1]))
    for rule in RULES:
        np.testing.assert_allclose(
            Ranking(rule).scores(query, once), Ranking(rule).scores(query, many), atol=1e-6
        )


def matches(**scores):
    return Matches(np.array([int(case[1:]) for case in scores]), np.array([*scores.values()], np.float32))


def test_fusion_averages_over_shared_sequences():
    cases, scores, best = Ranking().fuse([matches(c3=0.8, c5=0.6), matches(c5=0.9, c8=0.4)], ["t1", "t2"])
    assert cases.tolist() == [3, 5, 8]
    np.testing.assert_allclose(scores, [0.8, 0.75, 0.4])
    assert best.tolist() == [0, 1, 1]


def test_fusion_of_nothing_is_nothing():
    nothing = Matches(np.empty(0, np.int64), np.empty(0, np.float32))
    cases, scores, _ = Ranking().fuse([nothing], ["t1"])
    assert len(cases) == len(scores) == 0


def test_the_vote_leans_to_the_prior_when_neighbours_are_few():
    prior = {"2": 0.25, "4": 0.75}
    one = vote(np.array([0.9], np.float32), ["2"], prior)
    assert one.probabilities == pytest.approx({"2": (1 + 0.25) / 2, "4": 0.75 / 2})
    none = vote(np.empty(0, np.float32), [], prior)
    assert none.abstain
    assert none.probabilities == pytest.approx(prior)


def test_unlabelled_neighbours_have_no_vote():
    prior = {"2": 0.5, "4": 0.5}
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    assert vote(scores, ["4", None, "4"], prior).neighbours == 1
    assert vote(scores, [None, None, None], prior).abstain


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.sampled_from(["2", "3", "4", None])), max_size=40))
def test_the_vote_is_a_distribution_and_its_set_holds_nine_tenths(neighbours):
    neighbours = sorted(neighbours, key=lambda pair: -pair[0])
    prior = {"2": 0.2, "3": 0.3, "4": 0.5}
    evidence = vote(np.array([s for s, _ in neighbours], np.float32), [v for _, v in neighbours], prior)
    assert sum(evidence.probabilities.values()) == pytest.approx(1)
    assert all(p >= 0 for p in evidence.probabilities.values())
    assert sum(evidence.probabilities[v] for v in evidence.set) >= 0.9 - 1e-9
    smallest = min(evidence.probabilities[v] for v in evidence.set)
    assert sum(evidence.probabilities[v] for v in evidence.set) - smallest < 0.9 + 1e-9


def test_columns_with_many_values_and_folds_are_no_class_labels():
    table = [
        {"who_grade": str(2 + i % 3), "age": str(i), "fold": str(i % 5), "subject": f"s{i}"}
        for i in range(40)
    ]
    assert class_columns(table) == ["who_grade"]
