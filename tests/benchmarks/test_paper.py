from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import paper, results
from benchmarks.paper import Slices
from indexer.case_index import CaseIndex
from indexer.ingest import ingest
from indexer.partition import Partition
from retrieval.evaluation import evaluate


def made(patients=30, each=8, d=24, seed=0, own=3.0, label=0.0):
    """Slices that show whose they are, and by `label` what their label is; two labels, five folds."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), each)
    x = rng.normal(size=(patients, d))[patient] * own + rng.normal(size=(len(patient), d))
    x[:, :4] += label * (patient % 2)[:, None]
    return Slices(
        features=paper.unit(x.astype(np.float32)),
        labels=np.where(patient % 2, "HGG", "LGG"),
        patients=patient.astype(str),
        folds=(patient // 2 % 5).astype(str),
    )


def test_information_gain_is_that_of_hand_worked_tables():
    target = np.array([0, 0, 1, 1])
    bins = np.array([[0, 3, 0, 0], [0, 3, 1, 0], [7, 3, 0, 0], [7, 3, 1, 1]])
    # tells all; constant; independent; H(Y) − 3/4 H(1/3) = 1 − 0.75 × 0.9183
    np.testing.assert_allclose(paper.information_gain(bins, target), [1, 0, 0, 0.3113], atol=1e-4)
    np.testing.assert_allclose(paper.information_gain(bins[:, :1], np.array([2, 5, 8, 9])), [1])


def test_bins_are_filled_equally_and_equal_values_share_one():
    rising = np.arange(100.0)
    mostly_zero = np.where(rising < 95, 0, rising)
    bins = paper.binned(np.stack([rising, mostly_zero], axis=1).astype(np.float32))
    assert np.bincount(bins[:, 0]).tolist() == [10] * 10
    assert len(set(bins[:95, 1])) == 1


def test_each_level_keeps_what_reaches_the_mean_gain_of_the_level_before(monkeypatch):
    monkeypatch.setattr(paper, "information_gain", lambda bins, target: np.array([4.0, 0, 8, 2, 6]))
    kept = [paper.selected(made(d=5), level).tolist() for level in range(3)]
    assert kept == [[0, 1, 2, 3, 4], [0, 2, 4], [2, 4]]  # means 4 and 6


def test_selection_finds_the_features_that_tell_the_label():
    assert set(paper.selected(made(100, 4, own=0.5, label=2.0), 2)) <= {0, 1, 2, 3}


def test_a_scan_gives_its_middle_slices_of_one_sequence(tmp_path, tiny, cohort):
    root = cohort(4, ("t1ce", "flair"))
    rows = [
        "participant_id\twho_grade\tfold",
        *(f"P-{i:02}\t{2 + i % 2}\t{i}" for i in range(3)),
        "P-03\t2\tn/a",
    ]
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    with CaseIndex.create(tmp_path / "index", tiny, keep_ids=True) as index:
        ingest(index, [root], tiny)
        snapshot = index.snapshot()
    slices = Slices.of(snapshot, "who_grade", "t1ce", middle=4)
    assert slices.patients.tolist() == [p for p in ("P-00", "P-01", "P-02") for _ in range(4)]
    assert slices.labels.tolist() == [grade for grade in "232" for _ in range(4)]
    assert slices.folds.tolist() == [fold for fold in "012" for _ in range(4)]
    contents = snapshot.contents
    scan = next(i for i, s in enumerate(contents.scan_source) if s.endswith("P-01_t1ce.nii.gz"))
    of_scan = contents.slice_ids[(contents.slice_scan == scan) & (contents.slice_view == 0)]
    skipped = (len(of_scan) - 4) // 2
    middle = snapshot.vectors.gather(of_scan[skipped : skipped + 4])
    np.testing.assert_array_equal(slices[slices.patients == "P-01"].features, middle)


def test_folds_of_slices_split_patients_and_are_of_equal_size():
    slices = made()
    folds = slices.by_slice().folds
    assert np.bincount(folds.astype(int)).tolist() == [48] * 5
    assert len(set(folds[slices.patients == "0"])) > 1
    assert (slices.by_slice(0).folds == folds).all()


@pytest.mark.parametrize("method", paper.METHODS)
def test_nothing_is_fitted_on_the_fold_that_asks(method):
    """What a slice finds depends neither on its own label nor on who else asks."""
    slices = made(label=1.0)
    scores = paper.ranked(slices, paper.METHODS[method])
    own = slices.folds[:, None] == slices.folds
    assert np.isneginf(scores[own]).all()
    assert np.isfinite(scores[~own]).all()
    asks = slices.folds == "1"
    kept = ~asks | (np.arange(len(slices)) % 5 == 0)
    fewer = replace(slices, labels=np.where(asks, "LGG", slices.labels))[kept]
    again = paper.ranked(fewer, paper.METHODS[method])
    there = scores[np.ix_(asks & kept, ~asks)]
    np.testing.assert_allclose(again[np.ix_(asks[kept], ~asks[kept])], there, atol=1e-5)


def test_the_pipeline_ranks_cluster_by_cluster_and_by_cosine_inside():
    slices = made(label=1.0)
    database, queries = slices[slices.folds != "0"], slices[slices.folds == "0"]
    columns = paper.selected(database, paper.LEVELS)
    x, q = paper.unit(database.features[:, columns]), paper.unit(queries.features[:, columns])
    partition = Partition.fit(x, lists=paper.clusters(len(x)))
    assert partition.fuzzifier < partition.m_crit
    own = partition.memberships(x).argmax(axis=1)
    distance = np.linalg.norm(q[:, None] - partition.centroids, axis=2)
    order = np.argsort(-paper.clustered(database, queries), axis=1)
    for i in range(len(q)):
        expected = np.lexsort((-(x @ q[i]), distance[i, own]))
        np.testing.assert_array_equal(order[i], expected)


def test_figures_are_those_of_a_hand_worked_list():
    """One query of fold 0, twelve answers: hits at ranks 1, 3 and 11, the own patient at rank 2."""
    hit = np.array([1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0])
    slices = Slices(
        features=np.ones((13, 1), np.float32),
        labels=np.array(["a", *np.where(hit, "a", "b")]),
        patients=np.array(["p", "q", "p", *"rstuvwxyz", "zz"]),
        folds=np.array(["0", *["1"] * 12]),
    )
    scores = np.full((13, 13), -np.inf)
    scores[0, 1:] = -np.arange(12)
    scores[1:, 0] = 0
    found = paper.judged(slices, scores, bootstrap=0)
    # the three answers of label a ask too, and find the one slice of fold 0 at once
    values = {name: by["micro"]["value"] for name, by in found["metrics"].items()}
    assert values["P@10"] == pytest.approx((0.2 + 3) / 4)
    assert values["mAP"] == pytest.approx(((1 + 2 / 3 + 3 / 11) / 3 + 3) / 4)
    assert values[paper.RETRIEVED] == pytest.approx(((1 + 2 / 3) / 2 + 3) / 4)
    assert found["own_patient"] == pytest.approx(1 / 13)  # of lists of 10, 1, 1 and 1


def test_by_patient_the_figures_and_intervals_are_those_of_the_protocol():
    slices = made(label=1.0)
    scores = paper.ranked(slices, paper.METHODS[paper.ALL])
    found = paper.judged(slices, scores)
    expected = evaluate(scores, list(slices.labels), list(slices.patients), folds=list(slices.folds))
    assert expected.split_patients == 0
    assert found["own_patient"] == 0
    for metric in ("P@10", "mAP"):
        for average in ("micro", "macro"):
            figure, reference = found["metrics"][metric][average], expected.figures[metric][average]
            for name in ("value", "low", "high", "chance"):
                assert figure[name] == pytest.approx(getattr(reference, name), abs=1e-9)


def test_chance_of_the_ten_retrieved_is_what_random_orders_score():
    assert paper.chance_retrieved(np.array([0.0, 1.0])).tolist() == [0, 1]
    slices = made(60)
    random = np.random.default_rng(0).normal(size=(len(slices), len(slices)))
    scores = np.where(slices.folds[:, None] == slices.folds, -np.inf, random)
    figure = paper.judged(slices, scores, bootstrap=0)["metrics"][paper.RETRIEVED]["micro"]
    assert figure["value"] == pytest.approx(figure["chance"], abs=0.03)


def test_random_labels_of_patients_are_found_by_slice_and_not_by_patient():
    """The features tell whose a slice is and nothing else."""
    slices = made(40)
    for method in (paper.ALL, paper.PIPELINE):
        leaky = paper.canary(slices.by_slice(), paper.METHODS[method])
        sound = paper.canary(slices, paper.METHODS[method])
        assert leaky["value"] > leaky["chance"] + 0.15
        assert sound["value"] == pytest.approx(sound["chance"], abs=0.08)


def test_the_saved_canaries_say_the_same():
    for cohort in results.load("paper")["results"]["cohorts"].values():
        for found in cohort["canary"]["by patient"].values():
            assert found["value"] == pytest.approx(found["chance"], abs=0.05)
        for found in cohort["canary"]["by slice"].values():
            assert found["value"] > found["chance"] + 0.05
