from __future__ import annotations

import doctest
from itertools import pairwise, permutations, product
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from retrieval import metrics
from retrieval.metrics import (
    Ties,
    average_precision,
    average_precision_at_r,
    chance_average_precision,
    chance_ndcg_at_k,
    chance_precision,
    grade_gains,
    ndcg_at_k,
    precision_at_k,
    precision_curve,
    r_precision,
    ties,
)

FIELD_NOTES = [1, 1, 0, 0, 1, 0, 0, 0, 0, 0]

hit_lists = st.lists(st.booleans(), min_size=1, max_size=25).filter(any)


def test_docstring_examples_hold():
    assert doctest.testmod(metrics).failed == 0
    assert doctest.testmod(metrics).attempted == 16


@pytest.mark.parametrize(("k", "expected"), [(1, 1), (2, 1), (3, 2 / 3), (5, 3 / 5), (10, 3 / 10)])
def test_precision_at_k(k, expected):
    assert precision_at_k(FIELD_NOTES, k) == pytest.approx(expected)


def test_precision_of_a_list_shorter_than_k_is_taken_of_the_items_there_are():
    assert precision_at_k([1, 1, 0], 10) == pytest.approx(2 / 3)
    padded = [[1, 1, 0, 0, 0], [1, 0, 1, 1, 0]]
    assert_allclose(precision_at_k(padded, 10, size=[3, 5]), [2 / 3, 3 / 5])
    assert_allclose(precision_at_k(padded, 2, size=[3, 5]), [1, 1 / 2])
    assert_allclose(precision_at_k([[1, 0, 0]], 3, size=[1]), [1])


@pytest.mark.parametrize("k", [0, -1])
def test_a_cut_before_the_first_rank_is_refused(k):
    for metric in (precision_at_k, precision_curve, ndcg_at_k, chance_ndcg_at_k):
        with pytest.raises(ValueError, match="rank 1 or later"):
            metric([1, 0], k)


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (50, 0.052),  # divided by all relevant: the definition in use here, and Cheng's
        (10, 0.26),  # divided by min(R, k)
        (3, 0.867),  # divided by the hits found
    ],
)
def test_average_precision_divides_by_all_relevant(total, expected):
    assert average_precision(FIELD_NOTES, total=total) == pytest.approx(expected, abs=5e-4)


def test_average_precision_by_hand():
    assert average_precision([0, 1, 0, 1]) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert average_precision([1, 0, 0, 0, 1]) == pytest.approx((1 + 2 / 5) / 2)


def test_r_precision_and_average_precision_at_r_by_hand():
    # R = 3: ranks 1 to 3 count
    assert r_precision([1, 0, 1, 1]) == pytest.approx(2 / 3)
    assert average_precision_at_r([1, 0, 1, 1]) == pytest.approx((1 + 2 / 3) / 3)
    # R = 50, of which the list reaches 10 ranks
    assert r_precision(FIELD_NOTES, total=50) == pytest.approx(3 / 50)
    assert average_precision_at_r(FIELD_NOTES, total=50) == pytest.approx(2.6 / 50)


def test_ndcg_by_hand():
    # gains 1, 0, 2 | 2 cut off after three ranks; the ideal list begins 2, 2, 1
    dcg = 1 / log2(2) + 0 + 2 / log2(4)
    ideal = 2 / log2(2) + 2 / log2(3) + 1 / log2(4)
    assert ndcg_at_k([1, 0, 2, 2], 3) == pytest.approx(dcg / ideal)


def test_gain_falls_with_the_distance_of_grades():
    assert_allclose(grade_gains([1, 4, 2]), [[3, 0, 2], [0, 3, 1], [2, 1, 3]])


def test_a_query_without_relevant_items_has_no_figure():
    for metric in (r_precision, average_precision, average_precision_at_r):
        assert np.isnan(metric([0, 0, 0]))
    assert np.isnan(ndcg_at_k([0, 0], 10))
    assert np.isnan(chance_average_precision(0, 5))
    assert np.isnan(chance_ndcg_at_k([0, 0], 10))
    assert precision_at_k([0, 0, 0], 2) == 0


def test_lists_are_worked_on_together_as_one_by_one():
    lists = np.random.default_rng(0).random((2, 3, 12)) < 0.4
    lists[..., 5] = True
    for metric in (r_precision, average_precision, average_precision_at_r, lambda x: ndcg_at_k(x, 10)):
        together = metric(lists)
        assert together.shape == (2, 3)
        for i, j in product(range(2), range(3)):
            assert together[i, j] == pytest.approx(float(metric(lists[i, j])))
    assert precision_curve(lists, 20).shape == (2, 3, 20)


@settings(deadline=None)
@given(hits=hit_lists)
def test_a_perfect_list_scores_one_and_its_reverse_least(hits):
    perfect, worst = sorted(hits, reverse=True), sorted(hits)
    total, n = sum(hits), len(hits)
    for metric in (r_precision, average_precision, average_precision_at_r, lambda x: ndcg_at_k(x, 10)):
        assert metric(perfect) == pytest.approx(1)
        assert metric(worst) - 1e-12 <= metric(hits) <= 1 + 1e-12
    for k in (1, 5, 10):
        assert precision_at_k(perfect, k) == pytest.approx(min(total, k, n) / min(k, n))
        assert precision_at_k(worst, k) - 1e-12 <= precision_at_k(hits, k) <= precision_at_k(perfect, k)


@settings(deadline=None)
@given(hits=hit_lists, at=st.integers(0, 23))
def test_moving_a_hit_forward_never_hurts(hits, at):
    if at + 1 >= len(hits) or hits[at] or not hits[at + 1]:
        return
    better = [*hits[:at], True, False, *hits[at + 2 :]]
    assert average_precision(better) > average_precision(hits)
    for metric in (r_precision, average_precision_at_r, lambda x: ndcg_at_k(x, 10)):
        assert metric(better) >= metric(hits) - 1e-12


@settings(deadline=None)
@given(
    items=st.lists(st.tuples(st.integers(1, 1000), st.booleans()), min_size=2, max_size=30),
    k=st.integers(1, 12),
)
def test_torchmetrics_agrees(items, k):
    torch = pytest.importorskip("torch")
    oracle = pytest.importorskip("torchmetrics.functional.retrieval")
    # distinct positive scores: torchmetrics drops those at or below 0 and breaks ties by position
    ranked = sorted(dict(items).items(), reverse=True)
    hits = [hit for _, hit in ranked]
    if not any(hits):
        return
    scores, target = torch.tensor([float(s) for s, _ in ranked]), torch.tensor(hits)
    assert average_precision(hits) == pytest.approx(
        float(oracle.retrieval_average_precision(scores, target)), abs=1e-5
    )
    assert r_precision(hits) == pytest.approx(float(oracle.retrieval_r_precision(scores, target)), abs=1e-5)
    assert ndcg_at_k(hits, k) == pytest.approx(
        float(oracle.retrieval_normalized_dcg(scores, target, top_k=k)), abs=1e-5
    )
    if k <= len(hits):
        assert precision_at_k(hits, k) == pytest.approx(
            float(oracle.retrieval_precision(scores, target, top_k=k)), abs=1e-5
        )


def test_tie_groups():
    found = ties([[0.9, 0.5, 0.5, 0.5, 0.1], [3, 2, 2, 1, 1]])
    assert found is not None
    assert_allclose(found.first, [[0, 1, 1, 1, 4], [0, 1, 1, 3, 3]])
    assert_allclose(found.last, [[0, 3, 3, 3, 4], [0, 2, 2, 4, 4]])
    assert ties([3.0, 2.0, 1.0]) is None
    assert ties([3.0, -np.inf, -np.inf]) is None


@settings(deadline=None)
@given(items=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6))
def test_ties_give_the_mean_over_all_orders(items):
    """Against every order of the items in which the scores do not rise."""
    items = sorted(items, key=lambda item: -item[0])
    orders = [o for o in permutations(items) if all(a[0] >= b[0] for a, b in pairwise(o))]
    gains = [[gain for _, gain in order] for order in orders]
    hits = [[gain == 2 for gain in row] for row in gains]
    tied = ties([float(score) for score, _ in items])
    for k in (1, 2, 4, 8):
        assert_allclose(precision_at_k(hits[0], k, ties=tied), precision_at_k(hits, k).mean())
        assert_allclose(ndcg_at_k(gains[0], k, ties=tied), ndcg_at_k(gains, k).mean())
    for metric in (r_precision, average_precision, average_precision_at_r):
        assert_allclose(metric(hits[0], ties=tied), metric(hits).mean())


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_chance_is_the_mean_over_all_orders(n):
    for relevant in range(1, n + 1):
        orders = np.array(list(permutations([1] * relevant + [0] * (n - relevant))))
        for k in (1, 3, 10):
            assert_allclose(chance_precision(relevant, n), precision_at_k(orders, k).mean())
            assert_allclose(chance_ndcg_at_k(orders[0], k), ndcg_at_k(orders, k).mean())
        assert_allclose(chance_precision(relevant, n), r_precision(orders).mean())
        assert_allclose(chance_average_precision(relevant, n), average_precision(orders).mean())
        at_r = chance_average_precision(relevant, n, relevant)
        assert_allclose(at_r, average_precision_at_r(orders).mean())


def test_chance_is_what_a_list_of_equal_scores_gets():
    gains = np.random.default_rng(1).integers(0, 3, 40).astype(float)
    hits, total = gains == 2, int((gains == 2).sum())
    tied = ties(np.zeros(40))
    assert isinstance(tied, Ties)
    assert_allclose(average_precision(hits, ties=tied), chance_average_precision(total, 40))
    assert_allclose(average_precision_at_r(hits, ties=tied), chance_average_precision(total, 40, total))
    assert_allclose(ndcg_at_k(gains, 10, ties=tied), chance_ndcg_at_k(gains, 10))
    padded = np.concatenate([gains, np.zeros(7)])
    assert_allclose(chance_ndcg_at_k(padded, 10, size=40), chance_ndcg_at_k(gains, 10))
