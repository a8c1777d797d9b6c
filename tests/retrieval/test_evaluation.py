from __future__ import annotations

import csv
import doctest
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from indexer.errors import CbirError, QueryError
from retrieval import evaluation, items
from retrieval.baselines import (
    cosine_similarity,
    pixel_similarity,
    predicted_class_similarity,
    shuffled_labels,
)
from retrieval.evaluation import evaluate, numeric_grades
from retrieval.figures import AVERAGES, comparison
from tests.support.paths import REAL

METRICS = ["P@1", "P@5", "P@10", "R-precision", "mAP", "MAP@R", "nDCG@10"]


def by_hand(similarity, labels, patients, folds=None, grades=None, database=None):
    """The protocol in plain loops, for similarities without ties: metrics by query."""
    n, found = len(labels), {}
    span = max(grades.values()) - min(grades.values()) if grades else 1
    for q in range(n):
        if labels[q] in (None, "", "n/a"):
            continue
        others = [
            j
            for j in range(n)
            if patients[j] != patients[q]
            and labels[j] not in (None, "", "n/a")
            and (folds is None or folds[j] != folds[q])
            and (database is None or database[j])
        ]
        others.sort(key=lambda j: -similarity[q, j])
        rel = [labels[j] == labels[q] for j in others]
        total = sum(rel)
        if not total:
            continue
        if grades:
            gain = [span - abs(grades[labels[j]] - grades[labels[q]]) for j in others]
        else:
            gain = [float(r) for r in rel]
        found[q] = [sum(rel[:k]) / min(k, len(rel)) for k in (1, 5, 10)]
        found[q].append(sum(rel[:total]) / total)
        terms = [r * sum(rel[: i + 1]) / (i + 1) for i, r in enumerate(rel)]
        found[q] += [sum(terms) / total, sum(terms[:total]) / total]
        dcg = sum(g / np.log2(i + 2) for i, g in enumerate(gain[:10]))
        found[q].append(dcg / sum(g / np.log2(i + 2) for i, g in enumerate(sorted(gain)[::-1][:10])))
    return found


def averaged(found, labels, patients):
    """Micro, patient and class means of :func:`by_hand`."""
    rows = {q: np.array(v) for q, v in found.items()}

    def grouped(names):
        groups = {}
        for q, v in rows.items():
            groups.setdefault(names[q], []).append(v)
        return {name: np.mean(vs, axis=0) for name, vs in groups.items()}

    classes = grouped(labels)
    return {
        "micro": np.mean(list(rows.values()), axis=0),
        "patient_mean": np.mean(list(grouped(patients).values()), axis=0),
        "macro": np.mean(list(classes.values()), axis=0),
    }, classes


def cohort(seed=0, n=60, patients=14, classes=("2", "3", "4"), noise=1.0):
    """Vectors that lean to their label, patients of unequal size, two visits of different grade."""
    rng = np.random.default_rng(seed)
    owner = np.sort(rng.choice(patients, n, p=rng.dirichlet(np.full(patients, 2.0))))
    grade = rng.integers(len(classes), size=patients)
    labels = [classes[grade[p]] for p in owner]
    labels[0] = classes[(grade[owner[0]] + 1) % len(classes)]
    axes = np.eye(len(classes))[[classes.index(label) for label in labels]]
    vectors = np.hstack([axes, noise * rng.standard_normal((n, 5))])
    folds = [f"fold {p % 3}" for p in owner]
    return vectors @ vectors.T, labels, [f"p{p}" for p in owner], folds


def rounded(record):
    return json.loads(json.dumps(record), parse_float=lambda digits: round(float(digits), 9))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("n", [16, 60])  # with 16, some queries have fewer than ten items to rank
def test_agrees_with_the_protocol_in_plain_loops(seed, folded, n):
    similarity, labels, patients, folds = cohort(seed, n=n)
    folds = folds if folded else None
    labels[5] = None
    labels[12] = "n/a"
    grades = {"2": 2, "3": 3, "4": 4}
    found = by_hand(similarity, labels, patients, folds, grades)
    result = evaluate(similarity, labels, patients, folds=folds, bootstrap=0)
    assert list(result.figures) == METRICS
    assert result.queries.tolist() == list(found)
    assert_allclose(np.stack([result.values[m] for m in METRICS], 1), list(found.values()))
    expected, classes = averaged(found, labels, patients)
    for average in AVERAGES:
        figures = [result.figures[m][average].value for m in METRICS]
        assert_allclose(figures, expected[average])
    for name, figures in classes.items():
        assert_allclose([f.value for f in result.classes[name].figures.values()], figures)
    assert result.excluded["items without a label"] == 2
    assert result.gain == "grade distance"


def test_only_the_database_answers_and_only_the_queries_ask():
    similarity, labels, patients, _ = cohort(3)
    database = np.arange(60) % 3 > 0
    found = by_hand(similarity, labels, patients, grades={"2": 2, "3": 3, "4": 4}, database=database)
    result = evaluate(similarity, labels, patients, database=database, queries=~database, bootstrap=0)
    asked = [q for q in found if not database[q]]
    assert result.queries.tolist() == asked
    assert result.items == database.sum() == sum(c.items for c in result.classes.values())
    assert_allclose(result.values["mAP"], [found[q][4] for q in asked])


def test_a_query_never_ranks_its_own_patient_nor_its_own_fold():
    # the own patient and the own fold are the nearest by far, and of the same label
    labels = ["a", "a", "a", "b", "b", "a", "b"]
    patients = ["1", "1", "2", "3", "4", "5", "6"]
    folds = ["x", "x", "x", "x", "y", "y", "x"]
    similarity = np.zeros((7, 7))
    similarity[0, [0, 1, 2, 3, 4, 5]] = [9, 8, 7, 3, 2, 1]
    free = evaluate(similarity, labels, patients, queries=np.arange(7) == 0, bootstrap=0)
    assert free.values["P@1"] == [1]  # item 2, another patient of the fold
    assert free.values["mAP"] == pytest.approx([(1 + 2 / 4) / 2])
    folded = evaluate(similarity, labels, patients, folds=folds, queries=np.arange(7) == 0, bootstrap=0)
    assert folded.values["mAP"] == [1 / 2]  # only items 4 and 5
    assert folded.protocol.folds == ("x", "y")
    assert free.protocol.folds is None


def test_items_without_a_fold_are_left_out_and_split_patients_counted():
    similarity, labels, patients, folds = cohort(1)
    folds[3], folds[4] = None, "n/a"
    folds[10] = "fold 9"
    result = evaluate(similarity, labels, patients, folds=folds, bootstrap=0)
    assert result.excluded["labelled items without a fold"] == 2
    assert result.items == 58
    assert not set(result.queries.tolist()) & {3, 4}
    assert result.split_patients == 1
    assert result.protocol.folds == ("fold 0", "fold 1", "fold 2", "fold 9")


def test_queries_without_a_relevant_item_are_excluded_and_counted():
    similarity = np.eye(5)
    labels = ["a", "a", "b", "b", "c"]
    patients = ["1", "2", "3", "3", "4"]  # both b are one patient's, c is alone
    result = evaluate(similarity, labels, patients, bootstrap=0)
    assert result.queries.tolist() == [0, 1]
    assert result.excluded["queries without a relevant item"] == 3
    assert list(result.classes) == ["a"]
    with pytest.raises(QueryError, match="who_grade: no labelled item"):
        evaluate(similarity, labels, ["1"] * 5, label="who_grade")
    with pytest.raises(QueryError, match="label or index more"):
        evaluate(np.empty((0, 0)), [], [])


def test_a_function_and_blocks_give_what_the_array_gives(monkeypatch):
    similarity, labels, patients, folds = cohort(2)
    similarity = similarity.round(1)  # with ties
    whole = evaluate(similarity, labels, patients, folds=folds)
    monkeypatch.setattr(items, "BLOCK", 7 * 60)
    asked = []

    def rows_of(rows):
        asked.append(len(rows))
        return similarity[rows]

    blocks = evaluate(rows_of, labels, patients, folds=folds)
    assert max(asked) == 7
    # sums of blocks differ in their last digits
    assert rounded(blocks.to_dict()) == rounded(whole.to_dict())
    assert_allclose(blocks.values["mAP"], whole.values["mAP"])


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), ties=st.booleans())
def test_the_order_in_which_items_are_stored_does_not_matter(seed, ties):
    similarity, labels, patients, folds = cohort(5, n=30)
    similarity = similarity.round(0) if ties else similarity
    order = np.random.default_rng(seed).permutation(30)
    moved = evaluate(
        similarity[np.ix_(order, order)],
        *([names[i] for i in order] for names in (labels, patients)),
        folds=[folds[i] for i in order],
        bootstrap=0,
    )
    stored = evaluate(similarity, labels, patients, folds=folds, bootstrap=0)
    for metric in METRICS:
        before = dict(zip(stored.queries.tolist(), stored.values[metric], strict=True))
        assert_allclose(moved.values[metric], [before[order[q]] for q in moved.queries])
        for average in AVERAGES:
            assert moved.figures[metric][average].value == pytest.approx(
                stored.figures[metric][average].value
            )


def test_a_perfect_similarity_scores_one_and_its_opposite_less_than_chance():
    _, labels, patients, _ = cohort(0, n=90, patients=40)
    same = np.array([[a == b for b in labels] for a in labels], dtype=float)
    perfect = evaluate(same, labels, patients, bootstrap=50)
    opposite = evaluate(-same, labels, patients, bootstrap=50)
    for metric in METRICS:
        for average in AVERAGES:
            figure = perfect.figures[metric][average]
            assert (figure.value, figure.low, figure.high) == pytest.approx((1, 1, 1))
            assert opposite.figures[metric][average].value < figure.chance


def test_equal_similarities_score_chance_exactly_however_labels_are_sorted():
    _, labels, patients, folds = cohort(7, n=80, patients=20)
    labels, patients, folds = zip(*sorted(zip(labels, patients, folds, strict=True)), strict=True)
    result = evaluate(np.zeros((80, 80)), labels, patients, folds=folds, bootstrap=0)
    for metric in METRICS:
        for average in AVERAGES:
            figure = result.figures[metric][average]
            assert figure.value == pytest.approx(figure.chance)


def test_chance_is_the_mean_of_random_similarities():
    _, labels, patients, folds = cohort(8, n=50, patients=18)
    rng = np.random.default_rng(0)
    runs = [evaluate(rng.random((50, 50)), labels, patients, folds=folds, bootstrap=0) for _ in range(200)]
    for metric in METRICS:
        for average in AVERAGES:
            values = [run.figures[metric][average].value for run in runs]
            error = np.std(values, ddof=1) / np.sqrt(len(values))
            assert abs(np.mean(values) - runs[0].figures[metric][average].chance) < 4 * error


def test_what_cannot_be_compared_is_ranked_last_but_still_in_the_list():
    similarity = np.array([[0, -np.inf, 0.5, 0.2]] * 4)
    labels, patients = ["a", "a", "b", "b"], ["1", "2", "3", "4"]
    result = evaluate(similarity, labels, patients, queries=[True, False, False, False], bootstrap=0)
    assert result.values["mAP"] == pytest.approx([1 / 3])
    assert result.values["P@5"] == pytest.approx([1 / 3])


def test_ordered_labels_reward_nearness():
    similarity = np.array([[0.0, 3, 2, 1]] * 4)
    patients, first = ["1", "2", "3", "4"], [True, False, False, False]

    def ndcg(labels, grades=None):
        result = evaluate(similarity, labels, patients, grades=grades, queries=first, bootstrap=0)
        return result.gain, float(result.values["nDCG@10"][0])

    near = 1 / np.log2([2, 3, 4])
    graded = (np.array([1, 0, 2]) @ near) / (np.array([2, 1, 0]) @ near)
    same = (np.array([0, 0, 1]) @ near) / near[0]
    assert ndcg(["4", "3", "2", "4"]) == ("grade distance", pytest.approx(graded))
    assert ndcg(["IV", "III", "II", "IV"]) == ("grade distance", pytest.approx(graded))
    assert ndcg(["4", "3", "2", "4"], grades={}) == ("same label", pytest.approx(same))
    assert ndcg(["high", "mid", "low", "high"]) == ("same label", pytest.approx(same))
    scale = {"high": 3, "mid": 2, "low": 1}
    assert ndcg(["high", "mid", "low", "high"], grades=scale) == ("grade distance", pytest.approx(graded))
    with pytest.raises(ValueError, match="no grade is given for the labels"):
        ndcg(["high", "mid", "low", "high"], grades={"high": 3})


def test_classes_are_listed_in_the_order_of_their_grades():
    labels = ["10", "2", "9"] * 4
    result = evaluate(np.eye(12), labels, [str(i) for i in range(12)], bootstrap=0)
    assert list(result.classes) == ["2", "9", "10"]


@pytest.mark.parametrize("labels", [["1", "nan"], ["1", "inf"], ["2", ""], ["2", "high"]])
def test_labels_that_are_no_grades(labels):
    assert numeric_grades(labels) is None


def two_class_answers(right):
    """One item a patient; query i finds the right label first where right[i], else the wrong one."""
    labels = np.array(["a", "b"] * (len(right) // 2))
    same = labels[:, None] == labels
    return np.where(np.array(right)[:, None], same, ~same).astype(float), labels.tolist()


def test_interval_of_a_known_case():
    # 1000 patients of one query each, 0.7 of them answered right: the binomial's interval
    right = np.random.default_rng(0).permutation(1000) < 700
    similarity, labels = two_class_answers(right)
    figure = evaluate(similarity, labels, [str(i) for i in range(1000)], bootstrap=4000).figures["P@1"][
        "micro"
    ]
    assert figure.value == pytest.approx(0.7)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert figure.low == pytest.approx(0.7 - half, abs=0.003)
    assert figure.high == pytest.approx(0.7 + half, abs=0.003)


def test_many_slices_of_a_patient_do_not_narrow_the_interval():
    right = np.random.default_rng(1).permutation(60) < 40
    similarity, labels = two_class_answers(right)
    patients = [str(i) for i in range(60)]
    once = evaluate(similarity, labels, patients)
    copies = similarity.repeat(5, axis=0).repeat(5, axis=1)
    often = evaluate(copies, np.repeat(labels, 5).tolist(), np.repeat(patients, 5).tolist())
    for average in AVERAGES:
        a, b = (e.figures["P@1"][average] for e in (once, often))
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))
    items = evaluate(copies, np.repeat(labels, 5).tolist(), [str(i) for i in range(300)])
    narrow, wide = items.figures["P@1"]["micro"], often.figures["P@1"]["micro"]
    assert narrow.high - narrow.low < 0.6 * (wide.high - wide.low)


def test_the_seed_decides_the_interval_and_nothing_else():
    similarity, labels, patients, _ = cohort(4)
    first, again = (evaluate(similarity, labels, patients, seed=3) for _ in range(2))
    other = evaluate(similarity, labels, patients, seed=4)
    assert first == again
    a, b = first.figures["mAP"]["macro"], other.figures["mAP"]["macro"]
    assert (a.value, a.chance) == (b.value, b.chance)
    assert (a.low, a.high) != (b.low, b.high)
    assert a.low < a.value < a.high
    without = evaluate(similarity, labels, patients, bootstrap=0).figures["mAP"]["macro"]
    assert (without.low, without.high) == (None, None)


def test_no_macro_interval_where_most_resamples_miss_a_class():
    # six classes of two patients each: all of them are drawn in few resamples
    labels = [str(i // 2) for i in range(12)]
    result = evaluate(np.random.default_rng(0).random((12, 12)), labels, [str(i) for i in range(12)])
    assert result.figures["P@1"]["macro"].low is None
    assert result.figures["P@1"]["micro"].low is not None
    assert result.classes["0"].figures["P@1"].low is not None


def structured(seed, patients=60, size=8):
    """Patients whose items are nearly identical, and labels that have nothing to do with them."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((patients, 16)).repeat(size, axis=0)
    vectors += 0.01 * rng.standard_normal(vectors.shape)
    owner = [f"p{i}" for i in range(patients) for _ in range(size)]
    labels = [("2", "3", "4")[i % 3] for i in range(patients) for _ in range(size)]
    return cosine_similarity(vectors), labels, owner


def canary(patients_of):
    """Mean excess of P@k over chance on shuffled labels, and its standard error, over many shuffles."""
    excess = []
    for seed in range(30):
        similarity, labels, owner = structured(seed)
        result = evaluate(similarity, shuffled_labels(labels, owner, seed), patients_of(owner), bootstrap=0)
        figures = [result.figures[m][a] for m in ("P@1", "P@5", "P@10") for a in AVERAGES]
        excess.append([f.value - f.chance for f in figures])
    return np.mean(excess, axis=0), np.std(excess, axis=0, ddof=1) / np.sqrt(len(excess))


def test_canary_shuffled_labels_score_chance():
    excess, error = canary(lambda owner: owner)
    assert (np.abs(excess) < 3.5 * error).all()
    assert (error < 0.02).all()  # so that a small leak would show


def test_canary_can_fail_a_query_that_reaches_its_own_patient_beats_chance():
    excess, error = canary(lambda owner: [f"item {i}" for i in range(len(owner))])
    assert (excess > 0.3).all()
    assert (excess > 10 * error).all()


def test_shuffling_deals_whole_patients():
    patients = ["a"] * 4 + ["b"] * 2 + ["c"] + ["d"] * 3
    labels = ["1", "1", "2", "2", "3", "3", "4", None, None, None]
    dealt = [shuffled_labels(labels, patients, seed) for seed in range(20)]
    owned = {"a": ["1", "2"], "b": ["3"], "c": ["4"], "d": [None]}
    for run in dealt:
        sets = {p: sorted({x for x, q in zip(run, patients, strict=True) if q == p}, key=str) for p in owned}
        givers = [next(g for g, o in owned.items() if set(s) <= set(o)) for s in sets.values()]
        both = sets[next(p for p, g in zip(sets, givers, strict=True) if g == "a")]
        assert len(both) == 2 or both == sets["c"]  # the one item of c can take one label only
        assert sorted(givers) == sorted(owned)  # every patient's labels go to one patient
    assert len({tuple(run) for run in dealt}) > 10
    assert dealt[0] == shuffled_labels(labels, patients, 0)


def test_predicted_class_ranks_by_the_votes_of_other_patients():
    labels = ["a", "a", "b", "b", "a", "a"]
    patients = ["1", "1", "2", "3", "4", "5"]
    similarity = np.array([[9, 9, 5, 4, 3, 2]] * 6, dtype=float)
    # three votes: for patient 1 b, b, a; for patient 2 a, a, b
    ranked = predicted_class_similarity(similarity, labels, patients, neighbours=3)(np.array([0, 2]))
    assert_allclose(ranked, [[1, 1, 2, 2, 1, 1], [2, 2, 1, 1, 2, 2]])
    result = evaluate(ranked[[0, 0, 1, 1, 0, 0]], labels, patients, bootstrap=0)
    assert result.values["P@1"].tolist()[:3] == [0, 0, 0]
    # fewer items than votes: all of them vote
    all_vote = predicted_class_similarity(similarity, labels, patients)(np.array([0]))
    assert_allclose(all_vote, [[2] * 6])
    # folds are kept apart: only items 4 and 5 may vote
    folds = ["x", "x", "x", "x", "y", "y"]
    apart = predicted_class_similarity(similarity, labels, patients, folds=folds)(np.array([0]))
    assert_allclose(apart, [[2, 2, 0, 0, 2, 2]])


def test_predicted_class_shares_the_last_votes_among_equals():
    labels = ["a", "a", "b", "b", "b", None]
    patients = ["1", "2", "3", "4", "5", "6"]
    similarity = np.array([[0, 9, 1, 1, 1, 50]] * 6, dtype=float)
    ranked = predicted_class_similarity(similarity, labels, patients, neighbours=2)(np.array([0]))
    assert_allclose(ranked[0, :5], [1, 1, 1, 1, 1])


def test_predicted_class_is_a_strong_baseline_for_average_precision():
    similarity, labels, patients, folds = cohort(0, n=200, patients=60, noise=0.5)
    plain = evaluate(similarity, labels, patients, folds=folds, label="who_grade", bootstrap=20)
    ranked = predicted_class_similarity(similarity, labels, patients, folds=folds)
    baseline = evaluate(ranked, labels, patients, folds=folds, bootstrap=20)
    assert baseline.figures["mAP"]["macro"].value > plain.figures["mAP"]["macro"].value
    header, *rows, chance = comparison({"ours": plain, "predicted class": baseline}, metrics=["P@1", "mAP"])
    assert header == ("macro", "P@1", "mAP")
    assert [row[0] for row in rows] == ["ours", "predicted class"]
    assert rows[0][2] == str(plain.figures["mAP"]["macro"])
    assert chance == ("chance", *(f"{plain.figures[m]['macro'].chance:.3f}" for m in ("P@1", "mAP")))


def test_pixel_similarity_is_correlation():
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 6)).astype(np.uint8)
    found = pixel_similarity(images)(np.arange(5))
    assert_allclose(found, np.corrcoef(images.reshape(5, -1).astype(float)), atol=1e-5)
    brighter = np.stack([images[0] // 2, images[0] // 2 + 60, np.full((8, 6), 9)])
    assert_allclose(pixel_similarity(brighter)(np.array([0]))[0], [1, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": ["1", "2", "3"]}, "one length"),
        ({"folds": ["x"]}, "one length"),
        ({"database": [True]}, "one length"),
        ({"queries": [True]}, "one entry an item"),
        ({"patients": ["1", "2", "3", ""]}, "no patient"),
        ({"ks": ()}, "ranks from 1 on"),
        ({"ks": (0, 5)}, "ranks from 1 on"),
        ({"similarity": np.zeros((4, 3))}, r"4 queries to 4 items are \(4, 3\)"),
        ({"similarity": np.full((4, 4), np.nan)}, "not a number"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    call = {"similarity": np.eye(4), "labels": ["a", "a", "b", "b"], "patients": ["1", "2", "3", "4"]}
    with pytest.raises(ValueError, match=message):
        evaluate(**{**call, **change})


def test_a_patient_may_be_unknown_where_the_item_is_not_used_anyway():
    result = evaluate(np.eye(3), ["a", "a", None], ["1", "2", ""], bootstrap=0)
    assert result.queries.tolist() == [0, 1]


def test_the_record_is_json_and_holds_what_the_figures_depend_on():
    similarity, labels, patients, folds = cohort(6)
    labels[0] = None
    result = evaluate(
        similarity, labels, patients, label="who_grade", ks=(5, 1, 20, 5), folds=folds, bootstrap=40, seed=9
    )
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["label"] == "who_grade"
    assert record["ks"] == [1, 5, 20]
    assert (record["bootstrap"], record["seed"], record["interval"]) == (40, 9, 0.95)
    assert record["folds"] == ["fold 0", "fold 1", "fold 2"]
    assert record["items"] == 59
    assert record["queries"] == len(result.queries)
    assert record["patients"] == len({patients[q] for q in result.queries})
    assert record["excluded"]["items without a label"] == 1
    assert list(record["metrics"]) == ["P@1", "P@5", "P@20", *METRICS[3:]]
    assert set(record["metrics"]["mAP"]["micro"]) == {"value", "chance", "low", "high"}
    assert record["metrics"]["P@5"]["macro"] == record["curve"]["macro"][4]
    assert len(record["curve"]["micro"]) == 20
    two = record["classes"]["2"]
    assert two["items"] == labels.count("2")
    asked = [q for q in result.queries if labels[q] == "2"]
    assert (two["queries"], two["patients"]) == (len(asked), len({patients[q] for q in asked}))


def test_tables_are_plain_rows():
    similarity, labels, patients, _ = cohort(6)
    result = evaluate(similarity, labels, patients, label="who_grade", bootstrap=40)
    header, *rows = result.table()
    assert header[:3] == ("metric", "micro (95 %)", "chance")
    assert [row[0] for row in rows] == METRICS
    figure = result.figures["mAP"]["macro"]
    assert rows[4][5:] == (f"{figure.value:.3f} ({figure.low:.3f}–{figure.high:.3f})", f"{figure.chance:.3f}")
    header, *rows = result.class_table()
    assert header == ("who_grade", "items", "queries", "patients", *METRICS)
    assert [row[0] for row in rows] == ["2", "3", "4"]
    figure = result.classes["2"].figures["P@1"]
    assert rows[0][4] == f"{figure.value:.3f} (chance {figure.chance:.3f})"


@pytest.mark.parametrize("bootstrap", [0, 30])
def test_plots(tmp_path, bootstrap):
    pytest.importorskip("matplotlib")
    from PIL import Image

    similarity, labels, patients, _ = cohort(6)
    result = evaluate(similarity, labels, patients, label="who_grade", bootstrap=bootstrap)
    result.plot(tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size == (900, 600)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20
    for name in ("one.svg", "two.SVG"):
        result.plot(tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.SVG").read_bytes()
    assert b"<svg" in (tmp_path / "one.svg").read_bytes()


def test_a_plot_that_cannot_be_drawn_names_the_remedy(tmp_path, monkeypatch):
    similarity, labels, patients, _ = cohort(6)
    result = evaluate(similarity, labels, patients, bootstrap=0)
    with pytest.raises(CbirError, match=r"curve\.pdf: .*\.png or \.svg"):
        result.plot(tmp_path / "curve.pdf")
    with pytest.raises(CbirError, match=r"nowhere.*cannot be written"):
        result.plot(tmp_path / "nowhere" / "curve.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CbirError, match=r"cbir\[plot\]"):
        result.plot(tmp_path / "curve.png")


def test_docstring_examples_hold():
    assert sum(doctest.testmod(module).failed for module in (evaluation, items)) == 0


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "figshare").is_dir(), reason="../shared/data/figshare is not here")
def test_random_vectors_score_chance_under_the_official_folds():
    with (REAL / "figshare" / "slices.tsv").open() as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    labels, patients, folds = ([row[c] for row in rows] for c in ("tumour", "participant_id", "fold"))
    vectors = np.random.default_rng(0).standard_normal((len(rows), 64))
    result = evaluate(cosine_similarity(vectors), labels, patients, folds=folds, bootstrap=200)
    assert (len(result.queries), result.patients, result.split_patients) == (3064, 233, 0)
    assert result.protocol.folds == ("1", "2", "3", "4", "5")
    assert {name: c.items for name, c in result.classes.items()} == {
        "glioma": 1426,
        "meningioma": 708,
        "pituitary": 930,
    }
    assert result.figures["P@10"]["micro"].chance == pytest.approx(0.36, abs=0.005)
    for by in result.figures.values():
        for figure in by.values():
            assert figure.value == pytest.approx(figure.chance, abs=0.04)
