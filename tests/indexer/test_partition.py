from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skfuzzy.cluster import cmeans, cmeans_predict

from indexer.errors import PartitionError
from indexer.partition import Partition, Probing, fuzzifier_limit, lists_for_count
from indexer.partition import cmeans as fits
from indexer.partition import partition as module
from indexer.partition.partition import FILED_TWICE


def clustered(n, d=32, clusters=60, spread=1.0, seed=0, centres_seed=100):
    """Unit vectors around random centres."""
    centres = np.random.default_rng(centres_seed).normal(size=(clusters, d))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    x = centres[rng.integers(clusters, size=n)] + spread * rng.normal(size=(n, d)) / np.sqrt(d)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def of(centroids, fuzzifier, **changes):
    """A partition made by hand."""
    c = len(centroids)
    values = {
        "centroids": np.asarray(centroids, np.float32),
        "fuzzifier": fuzzifier,
        "m_crit": math.inf,
        "m_local": math.inf,
        "reason": "made by hand",
        "border": 0.5,
        "coefficient": 1.0,
        "sizes": np.ones(c, np.int64),
        "judged": c,
        "low": np.full(len(centroids[0]), -1, np.float32),
        "high": np.ones(len(centroids[0]), np.float32),
        "probings": (Probing(0.05, 1, c),),
    }
    return Partition(**{**values, **changes})


def textbook(x, centroids, m):
    """Bezdek's formula, literally, in float64."""
    d = np.linalg.norm(x[:, None].astype(np.float64) - np.asarray(centroids, np.float64), axis=2)
    return 1 / ((d[:, :, None] / d[:, None, :]) ** (2 / (m - 1))).sum(axis=2)


@pytest.fixture(scope="module")
def fitted():
    return Partition.fit(clustered(3000))


# ---- memberships


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1.03, 2.5), st.integers(2, 12), st.integers(2, 40))
def test_memberships_are_scikit_fuzzys_and_the_textbooks(seed, m, c, d):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, d)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    centroids = rng.normal(size=(c, d)) / np.sqrt(d)
    u = of(centroids, m).memberships(x)
    expected, *_ = cmeans_predict(x.T.astype(np.float64), centroids, m, error=0, maxiter=1)
    assert u.dtype == np.float32
    np.testing.assert_allclose(u, expected.T, atol=1e-4)
    np.testing.assert_allclose(u, textbook(x, centroids, m), atol=1e-4)
    np.testing.assert_allclose(u.sum(axis=1), 1, atol=1e-5)


def test_a_vector_in_a_centroid_belongs_to_it():
    x = clustered(5)
    assert (of(x, 1.5).memberships(x).argmax(axis=1) == np.arange(5)).all()
    np.testing.assert_allclose(of(x, 1.5).memberships(x), np.eye(5), atol=1e-4)
    twice = of(x[[0, 0, 1]], 1.5).memberships(x[:1])
    np.testing.assert_allclose(twice, [[0.5, 0.5, 0]], atol=1e-4)


def test_memberships_survive_a_fuzzifier_just_above_one():
    u = of(clustered(8), 1.0005).memberships(clustered(100, seed=1))
    assert np.isfinite(u).all()
    np.testing.assert_allclose(u.sum(axis=1), 1, atol=1e-5)


def test_blocks_change_nothing(monkeypatch, fitted):
    x = clustered(100, seed=2)
    whole = fitted.memberships(x), fitted.lists_for(x), fitted.probes_for(x)
    monkeypatch.setattr("indexer.partition.partition.ROWS", 7)
    blocked = fitted.memberships(x), fitted.lists_for(x), fitted.probes_for(x)
    np.testing.assert_allclose(blocked[0], whole[0], atol=1e-5)
    np.testing.assert_array_equal(blocked[1], whole[1])
    np.testing.assert_array_equal(blocked[2], whole[2])


# ---- the collapse limit


@pytest.mark.parametrize(("spread", "factor"), [(0.5, 0.7), (0.5, 0.95), (0.5, 1.05), (0.5, 1.5), (3, 1.02)])
def test_below_the_limit_centroids_leave_the_mean_and_above_it_they_fall_back(spread, factor):
    # two centroids a little off the mean, along the top eigenvector: one iteration of scikit-fuzzy
    # moves them away exactly if 2mλ/(m-1) > 1
    x = clustered(800, d=6, clusters=3, spread=spread).astype(np.float64)
    z = x - x.mean(axis=0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    values, axes = np.linalg.eigh(z.T @ z / len(z))
    limit = fuzzifier_limit(x.astype(np.float32))
    assert limit == pytest.approx(1 / (1 - 2 * values[-1]), rel=1e-4)
    m, step = 1 + factor * (limit - 1), 1e-4
    start = x.mean(axis=0) + step * np.outer([1, -1], axes[:, -1])
    u, *_ = cmeans_predict(x.T, start, m, error=0, maxiter=1)
    after, *_ = cmeans(x.T, 2, m, error=0, maxiter=1, init=u)
    growth = np.linalg.norm(after[0] - after[1]) / (2 * step)
    assert growth == pytest.approx(2 * m * values[-1] / (m - 1), rel=0.01)
    assert (growth > 1) == (factor < 1)


def test_there_is_no_limit_where_one_direction_holds_half_of_the_spread():
    line = np.linspace(-1, 1, 50, dtype=np.float32)[:, None]
    assert fuzzifier_limit(line) == math.inf
    _, u, *_ = cmeans(line.T.astype(float), 2, 8.0, error=1e-6, maxiter=300, seed=0)
    assert u.max(axis=0).mean() > 0.55  # two thirds of the way to m = 8 nothing has collapsed to 1/2


def test_a_fuzzifier_at_or_above_the_limit_is_refused(fitted):
    x = clustered(3000)
    for m in (1.0, 0.5, fitted.m_crit * 1.01, 2.0):
        with pytest.raises(PartitionError, match="not between 1 and"):
            Partition.fit(x, fuzzifier=m)


def test_unstructured_vectors_collapse_at_the_limit(monkeypatch):
    x = clustered(1500, d=8, clusters=1, spread=50)
    limit = fuzzifier_limit(x)
    below = Partition.fit(x, lists=30, fuzzifier=1 + 0.8 * (limit - 1))
    assert below.coefficient > 5 / 30
    monkeypatch.setattr("indexer.partition.partition.fuzzifier_limit", lambda _: np.inf)  # let it try
    with pytest.raises(PartitionError, match="collapsed .*highest membership"):
        Partition.fit(x, lists=30, fuzzifier=1 + 1.5 * (limit - 1))


def test_centroids_that_merge_inside_clusters_are_a_collapse():
    # three far groups: hardly anything bounds m for the whole, but much does inside the groups
    x = clustered(3000, d=64, clusters=3, spread=0.3)
    partition = Partition.fit(x, lists=40)
    assert partition.m_crit > 3
    assert 1 < partition.fuzzifier < partition.m_local < 1.2
    with pytest.raises(PartitionError, match=r"collapsed \(\d+ of 40 centroids coincide"):
        Partition.fit(x, lists=40, fuzzifier=1.4)


# ---- the fit


def test_the_fit_finds_clusters_that_are_there():
    found = Partition.fit(clustered(600, clusters=2, spread=0.2), lists=2).centroids
    truth = np.unique(clustered(100, clusters=2, spread=0), axis=0)
    gaps = np.linalg.norm(found[:, None] - truth, axis=2)
    assert gaps.min(axis=0).max() < 0.05
    assert gaps.max() > 0.5


def test_the_fit_is_a_fixed_point_of_the_textbook_iteration():
    x = clustered(1200, seed=5)
    partition = Partition.fit(x, lists=30)  # the sample is the whole
    weights = textbook(x, partition.centroids, partition.fuzzifier) ** partition.fuzzifier
    again = weights.T @ x / weights.sum(axis=0)[:, None]
    moved = np.linalg.norm(again - partition.centroids, axis=1)
    apart = np.linalg.norm(partition.centroids[:, None] - partition.centroids, axis=2)
    assert np.median(moved) < 0.02 * np.median(apart)


@pytest.mark.parametrize("m", [1.03, 1.15])
def test_the_blocked_fit_is_scikit_fuzzys(monkeypatch, m):
    x = clustered(1500, seed=5)
    start = fits.k_means_start(x, 40, 0)
    steps = []
    theirs = fits.c_means(x, start, 40, m, lambda *_: None)
    for cells in (1 << 12, 1 << 20):
        monkeypatch.setattr(fits, "CELLS", cells)
        ours = fits.blocked_c_means(x, start, 40, m, lambda *step: steps.append(step))
        np.testing.assert_allclose(ours.centroids, theirs.centroids, atol=3e-4)
        for name in ("highest", "coefficient", "radius"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-3)
    assert steps[9] == (10, 10)


def test_a_large_fit_is_blocked_and_repeats_itself(monkeypatch):
    x = clustered(3000)
    small = Partition.fit(x, lists=50)
    monkeypatch.setattr(fits, "SMALL", 0)
    monkeypatch.setattr("skfuzzy.cluster.cmeans", None)
    large, again = Partition.fit(x, lists=50), Partition.fit(x, lists=50)
    np.testing.assert_array_equal(large.centroids, again.centroids)
    np.testing.assert_allclose(large.centroids, small.centroids, atol=1e-3)
    assert large.fuzzifier == small.fuzzifier


def test_lists_grow_with_the_root_of_the_collection():
    assert [lists_for_count(n) for n in (10, 3000, 1_000_000, 10**9)] == [16, 187, 4096, 4096]
    assert len(Partition.fit(clustered(2000), of=2500).centroids) == 156


@pytest.mark.slow
def test_a_fit_repeats_itself_and_says_what_it_is(fitted):
    again = Partition.fit(clustered(3000))
    np.testing.assert_array_equal(again.centroids, fitted.centroids)
    assert again.summary() == fitted.summary()
    other = Partition.fit(clustered(3000), seed=1)
    assert not np.array_equal(other.centroids, fitted.centroids)

    summary = json.loads(json.dumps(fitted.summary(), allow_nan=False))
    assert summary["lists"] == 187  # 3000 / 16
    assert 1 < summary["fuzzifier"] < summary["m_crit"]
    assert summary["fuzzifier_reason"].endswith("for the whole") == (fitted.m_crit < fitted.m_local)
    x = clustered(3000)[:0]
    assert fitted.memberships(x).shape == (0, 187)
    assert fitted.probes_for(x).shape[0] == 0
    assert 1 / 187 < summary["partition_coefficient"] < 1
    assert 1 < summary["replicas"] <= 1 + FILED_TWICE[1] + 0.01


def test_the_partition_coefficient_is_the_mean_of_squared_memberships():
    x = clustered(900, seed=5)
    partition = Partition.fit(x, lists=30)  # the sample is the whole
    u = textbook(x, partition.centroids, partition.fuzzifier)
    assert partition.coefficient == pytest.approx((u**2).sum(axis=1).mean(), abs=1e-4)


def test_vectors_that_cannot_be_partitioned_are_refused():
    x = clustered(50)
    with pytest.raises(PartitionError, match="too few"):
        Partition.fit(np.repeat(x[:3], 100, axis=0))
    with pytest.raises(PartitionError, match="too few"):
        Partition.fit(x, lists=51)
    with pytest.raises(PartitionError, match="NaN"):
        Partition.fit(np.full((50, 4), np.nan, np.float32))


def test_many_copies_of_few_vectors_are_partitioned_by_the_few():
    x = clustered(80)
    partition = Partition.fit(np.repeat(x, 50, axis=0))
    assert len(partition.centroids) <= 20
    assert np.isfinite(partition.centroids).all()


def test_vectors_of_another_encoder_are_refused(fitted):
    with pytest.raises(PartitionError, match="31 dimensions"):
        fitted.probes_for(np.zeros((1, 31), np.float32))


# ---- filing and probing


def test_border_vectors_are_filed_twice_where_the_residuals_are_most_orthogonal(fitted):
    x = clustered(300, seed=3)
    u = textbook(x, fitted.centroids, fitted.fuzzifier)
    order = np.argsort(-u, axis=1)
    lists = fitted.lists_for(x)
    np.testing.assert_array_equal(lists[:, 0], order[:, 0])
    for row, own, near, membership in zip(x.astype(np.float64), lists, order, u, strict=True):
        residuals = row - fitted.centroids[near[:8]]
        along = residuals[1:] @ residuals[0] / np.linalg.norm(residuals[0])
        loss = (residuals[1:] ** 2).sum(axis=1) + along**2
        best = near[1 + loss.argmin()]
        share = membership[best] / membership[near[0]]
        if abs(share - fitted.border) > 1e-3:
            assert own[1] == (best if share >= fitted.border else -1)
    assert 1.02 < (lists >= 0).sum() / len(x) < 1.5
    single = of(fitted.centroids, fitted.fuzzifier, border=math.inf).lists_for(x)
    np.testing.assert_array_equal(single, np.stack([order[:, 0], np.full(len(x), -1)], axis=1))


def test_a_second_list_across_the_first_residual_is_better_than_one_along_it():
    # first centroid below the vector; one further below is nearer than the one beside it
    centroids = [[0, 0], [0, -0.25], [1.3, 1]]
    x = np.array([[0, 1]], np.float32)
    assert of(centroids, 3.0, border=0.1).lists_for(x).tolist() == [[0, 2]]


def test_probes_cover_the_membership_asked_for():
    centroids = clustered(20, seed=9)
    x = clustered(300, seed=3)
    u = textbook(x, centroids, 1.3)
    order = np.argsort(-u, axis=1)
    covered = np.take_along_axis(u, order, axis=1).cumsum(axis=1)
    for uncovered, floor, ceiling in ((0.3, 1, 20), (0.01, 1, 20), (0.1, 3, 6), (1.0, 4, 4), (0.0, 1, 20)):
        probes = of(centroids, 1.3, probings=(Probing(uncovered, floor, ceiling),)).probes_for(x)
        counts = (probes >= 0).sum(axis=1)
        assert probes.shape[1] == counts.max()
        for row, count in enumerate(counts):
            assert (probes[row, :count] == order[row, :count]).all()
            assert (probes[row, count:] == -1).all()
            assert floor <= count <= ceiling
            if count < ceiling:
                assert covered[row, count - 1] >= 1 - uncovered - 1e-4
            if count > floor:
                assert covered[row, count - 2] <= 1 - uncovered + 1e-4
    assert probes.shape == (300, 20)  # nothing uncovered: all lists


def test_a_small_rest_of_the_membership_is_not_rounded_away():
    centroids, x, m = clustered(40, seed=9), clustered(300, seed=3), 1.03
    order = np.argsort(-textbook(x, centroids, m), axis=1)
    sorted_u = np.take_along_axis(textbook(x, centroids, m), order, axis=1)
    rest = sorted_u[:, ::-1].cumsum(axis=1)[:, ::-1]  # of this list and all after it
    for uncovered in (1e-6, 1e-9):
        probes = of(centroids, m, probings=(Probing(uncovered, 1, 40),)).probes_for(x)
        expected = 1 + (rest[:, 1:] > uncovered).sum(axis=1)
        assert ((probes >= 0).sum(axis=1) == expected).mean() > 0.99
        assert expected.min() < 20


def exact(q, base, k=10):
    return np.argsort(-(q.astype(np.float64) @ base.T.astype(np.float64)), axis=1)[:, :k]


def found_share(partition, q, base, k=10):
    """Recall of the lists probed, and how many vectors they hold, by sets."""
    filed, probes = partition.lists_for(base), partition.probes_for(q, k)
    lists = [set(np.flatnonzero((filed == i).any(axis=1))) for i in range(len(partition.centroids))]
    recall, scanned = [], []
    for row, truth in zip(probes, exact(q, base, k), strict=True):
        probed = [lists[i] for i in row if i >= 0]
        recall.append(len(set(truth) & set().union(*probed)) / len(truth))
        scanned.append(sum(map(len, probed)))
    return np.mean(recall), np.mean(scanned)


@pytest.fixture(scope="module")
def calibrated():
    base = clustered(4000, spread=1.2)
    partition = Partition.fit(base)
    partition.calibrate(clustered(400, spread=1.2, seed=1), base)
    return partition, base


@pytest.mark.slow
@pytest.mark.parametrize(("recall", "k"), [(0.9, 10), (0.95, 10), (0.99, 10), (0.95, 100)])
def test_calibration_reaches_its_recalls_on_fresh_queries(calibrated, recall, k):
    partition, base = calibrated[0].at(recall), calibrated[1]
    probing = partition.probing(k)
    assert (probing.recall, probing.depth) == (recall, k)
    reached, scanned = found_share(partition, clustered(400, spread=1.2, seed=1), base, k)
    assert probing.reached == pytest.approx(reached)
    assert probing.reached >= recall
    looked_at = partition._looked_at(clustered(400, spread=1.2, seed=1), probing.reach)
    assert probing.distances == pytest.approx(scanned + looked_at)

    reached, scanned = found_share(partition, clustered(400, spread=1.2, seed=2), base, k)
    assert reached >= recall - 0.015
    assert scanned < 0.6 * len(base)
    # memberships save work against the fixed number of probes that is as good
    assert probing.distances <= probing.fixed_distances
    fixed = replace(partition, probings=(Probing(1.0, probing.fixed, probing.fixed, probing.reach),))
    reached, scanned = found_share(fixed, clustered(400, spread=1.2, seed=1), base, k)
    assert reached >= recall
    assert scanned + looked_at == pytest.approx(probing.fixed_distances)


def test_what_was_not_calibrated_is_probed_with_caution(calibrated):
    partition, base = calibrated
    q = clustered(100, spread=1.2, seed=3)
    assert partition.at(0.93).probing(7) == partition.at(0.95).probing(10)
    assert partition.probing() == partition.probing(100)
    assert found_share(partition.at(1.0), q, base)[0] == 1
    few, many = partition.probes_for(q, 100), partition.probes_for(q, 250)
    assert ((many >= 0).sum(axis=1) >= np.minimum(3 * (few >= 0).sum(axis=1), many.shape[1])).all()
    assert found_share(partition, q, base, 250)[0] >= 0.97


def test_a_collection_of_which_the_base_is_a_sample_costs_more(calibrated):
    partition, base = calibrated
    larger = replace(partition)
    larger.calibrate(clustered(400, spread=1.2, seed=1), base, of=10 * len(base))
    assert larger.probing(10).distances > 2 * partition.probing(10).distances


def test_where_memberships_say_nothing_the_number_of_probes_is_fixed():
    base = clustered(1000, seed=1)
    partition = of(clustered(10, seed=50), 30.0)  # all memberships near 1/10
    partition.calibrate(clustered(300, seed=2), base, recalls=(0.9,))
    probing = partition.at(0.9).probing(10)
    assert probing.floor == probing.ceiling == probing.fixed
    assert probing.reached >= 0.9
    assert probing.reach == 0


@pytest.mark.slow
@pytest.mark.parametrize("lists", [30, 250])
def test_a_second_list_is_filed_only_where_it_pays(monkeypatch, lists):
    base, q = clustered(4000, d=64, spread=2), clustered(300, d=64, spread=2, seed=2)
    partition = Partition.fit(base, lists=lists)
    cost, border = {}, {}
    for shares in (*((share,) for share in FILED_TWICE), FILED_TWICE):
        monkeypatch.setattr(module, "FILED_TWICE", shares)
        partition.calibrate(q, base)
        cost[shares] = partition.at(0.99).probing(10).fixed_distances
        border[shares] = partition.border
        assert partition.sizes.sum() / len(base) <= 1 + shares[-1] + 0.01
    chosen = border.pop(FILED_TWICE)
    least = cost.pop(FILED_TWICE)
    assert chosen in border.values()
    assert least <= min(cost.values()) / module.WORTH**2
    assert math.isinf(chosen) or least < module.WORTH * cost[FILED_TWICE[:1]]


# ---- the graph over the centroids


def test_the_graph_names_nearly_the_nearest_lists_for_few_comparisons():
    centroids, x = clustered(2000, clusters=500, seed=4), clustered(200, clusters=500, seed=5)
    partition = of(centroids, 1.2)
    order, tail = partition._order(x, 32)
    truth, all_tail = partition._order(x, 0)
    assert order.shape == tail.shape == (200, 32)
    assert truth.shape == (200, 2000)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(order, truth[:, :32], strict=True)]) > 24
    assert (order[:, 0] == truth[:, 0]).mean() > 0.97
    assert (tail >= 0).all()
    assert (tail[:, 0] <= all_tail[:, 0] + 1e-5).mean() > 0.9  # the rest is that of fewer lists
    assert 32 < partition._looked_at(x, 32) < 1000
    assert partition._looked_at(x, 0) == 2000
    again, _ = of(centroids, 1.2)._order(x, 32)
    np.testing.assert_array_equal(again, order)


# ---- the file


def test_a_saved_partition_comes_back(tmp_path, fitted):
    base = clustered(3000)
    fitted = replace(fitted)
    fitted.calibrate(clustered(100, seed=8), base)
    path = tmp_path / "partition-1.npz.aside"
    fitted.save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    back = Partition.load(path)
    assert back.summary() == fitted.summary()
    assert back.probings == fitted.probings
    x = clustered(50, seed=4)
    np.testing.assert_array_equal(back.probes_for(x), fitted.probes_for(x))
    np.testing.assert_array_equal(back.lists_for(x), fitted.lists_for(x))
    np.testing.assert_array_equal(back.memberships(x), fitted.memberships(x))


def test_what_is_no_partition_is_refused(tmp_path, fitted):
    fitted.save(tmp_path / "whole")
    junk = {
        "text": b"no zip",
        "empty": b"",
        "torn": (tmp_path / "whole").read_bytes()[:2000],
    }
    for name, content in junk.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PartitionError, match=f"{name}: is not a partition"):
            Partition.load(tmp_path / name)
    with (tmp_path / "other").open("wb") as file:
        np.savez(file, centroids=np.zeros((2, 2), np.float32))
    with (tmp_path / "pickled").open("wb") as file:
        np.savez(file, centroids=np.array([{}], dtype=object))
    for name in ("other", "pickled"):
        with pytest.raises(PartitionError, match="is not a partition"):
            Partition.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Partition.load(Path(tmp_path / "absent"))


LIES = {
    "centroids": np.full((4, 2), np.nan, np.float32),
    "fuzzifier": np.float64(0.5),
    "border": np.float64(-1),
    "low": np.float64(np.inf),
    "sizes": np.zeros(3, np.int64),
    "judged": np.int64(0),
    "reason": np.array("a\nb"),
    "probing_floor": np.array([2**40]),
    "probing_reach": np.array([-1]),
    "probing_uncovered": np.array([7.0]),
    "probing_recall": np.array([1e30]),
    "probing_reached": np.array([-1.0]),
    "recall": np.float64(2),
}


def values_of(path):
    of(np.eye(8, 4), 1.2, low=-1.0, high=1.0).save(path)
    with np.load(path) as held:
        return dict(held)


@pytest.mark.parametrize("name", LIES)
def test_values_that_no_fit_gives_are_refused(tmp_path, name):
    path = tmp_path / "partition.npz"
    values = values_of(path)
    Partition.load(path)
    np.savez(path, **{**values, name: LIES[name]})
    with pytest.raises(PartitionError, match="is not a partition"):
        Partition.load(path)


def test_an_array_that_says_it_is_larger_than_its_file_is_not_made(tmp_path):
    path = tmp_path / "partition.npz"
    np.savez_compressed(path, **values_of(path))
    with pytest.raises(PartitionError, match="is packed"):
        Partition.load(path)
    values_of(path)
    content = path.read_bytes()
    assert b"(8, 4), }  " in content
    path.write_bytes(content.replace(b"(8, 4), }  ", b"(8, 999), }"))
    with pytest.raises(PartitionError, match="is not a partition"):
        Partition.load(path)
