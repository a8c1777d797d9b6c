"""Labels that the vote speaks for bring their cases forward, and nobody's own label speaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cbir import Index, Ranking
from indexer.case_index import CaseIndex
from indexer.ingest import ingest
from indexer.labels import load_tables
from retrieval.agreement import with_agreement
from retrieval.baselines import shuffled_labels
from retrieval.crossmatch import CrossMatch
from retrieval.evaluation import evaluate


@pytest.fixture
def index(tmp_path, tiny, cohort):
    folder = cohort(9, ("t1ce", "flair"))
    table = folder / "participants.tsv"
    rows = [f"P-{n:02}\t{'HGG' if n % 3 else 'LGG'}\t{'MF'[n % 2]}" for n in range(9)]
    table.write_text("\n".join(["participant_id\tgrade_group\tsex", *rows]))
    with CaseIndex.create(tmp_path / "index", tiny, keep_ids=True) as case_index:
        ingest(case_index, [folder], tiny, labels=load_tables(table))
        yield case_index


def test_the_order_is_the_one_by_hand(index, tiny):
    """Distances times e to minus thrice the mean, over two columns, of what the vote adds to a share."""
    asking = Index(index, tiny)
    near = asking.like("P-04", k=8, by="similarity")
    assert [hit.score for hit in near.hits] == sorted((hit.score for hit in near.hits), reverse=True)
    key = {}
    for hit in near.hits:
        gains = [near.evidence[c].probabilities[v] - near.evidence[c].prior[v] for c, v in hit.labels.items()]
        key[hit.case_id] = -(1 - hit.score) * np.exp(-3 * sum(gains) / 2)
    found = asking.like("P-04", k=8, by="class")
    assert [hit.case_id for hit in found.hits] == sorted(key, key=key.__getitem__, reverse=True)
    assert {hit.case_id: hit.score for hit in found.hits} == {hit.case_id: hit.score for hit in near.hits}
    assert found.evidence == near.evidence


@pytest.mark.both
def test_what_is_evaluated_is_ordered_as_what_is_shown(index, tiny):
    items = CrossMatch.of(index.snapshot())
    assert set(items.classes) == {"grade_group", "sex"}
    agreed = with_agreement(items.unordered.similarities, items.classes, items.patients)
    scores = items.similarity(np.arange(9), agreed)
    asking = Index(index, tiny)
    for row, case in enumerate(items.names):
        found = [items.names.index(hit.case_id) for hit in asking.like(case, k=9).hits]
        assert (np.diff(scores[row, found]) <= 1e-6).all()


def test_a_filter_does_not_decide_the_vote_that_orders(index, tiny):
    asking = Index(index, tiny)
    every = [hit for hit in asking.like("P-04", k=9).hits if hit.labels["grade_group"] == "HGG"]
    some = asking.like("P-04", k=9, where={"grade_group": "HGG"}).hits
    assert [hit.case_id for hit in some] == [hit.case_id for hit in every]


def test_nobody_votes_for_himself_nor_for_his_fold():
    """Two patients of a label that no one else has: their own votes would bring each other first."""
    dice = np.random.default_rng(0)
    n = 60
    vectors = dice.normal(size=(n, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    patients = [f"p{i // 2}" for i in range(n)]
    folds = [str(i // 2 % 3) for i in range(n)]
    labels = ["rare" if i in (0, 1, 6, 7) else "common" for i in range(n)]  # p0 and p3, both of fold 0
    apart = with_agreement(similarity, {"label": labels}, patients, folds=folds)
    np.testing.assert_allclose(apart(np.array([0]))[0], similarity[0], atol=1e-6)
    near = np.full((n, n), -0.5, np.float32)
    near[0, 6:8] = 0.5
    heard = with_agreement(near, {"label": labels}, patients)(np.array([0]))[0]
    assert (heard[6:8] > near[0, 6:8]).all()
    assert (heard[8:] < near[0, 8:]).all()


def test_columns_that_nobody_can_vote_on_do_not_count():
    """Of one value in reach, or known of the asking patient alone: as if the column were not there."""
    dice = np.random.default_rng(2)
    vectors = dice.normal(size=(30, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    patients, folds = (
        [f"p{i}" for i in range(30)],
        ["a" if i < 10 else "b" if i < 28 else "" for i in range(30)],
    )
    grade = ["2" if i % 3 else "4" for i in range(30)]
    grade[5] = None
    own = [str(i) if i in (0, 1) else None for i in range(30)]  # of fold a only
    same = ["x" if i >= 10 else "y" for i in range(30)]  # fold b has one value
    rows = np.arange(10)
    alone = with_agreement(similarity, {"grade": grade}, patients, folds=folds)(rows)
    more = with_agreement(similarity, {"grade": grade, "own": own, "same": same}, patients, folds=folds)(rows)
    np.testing.assert_array_equal(more, alone)
    # who has no fold does not vote: other labels of theirs change nothing
    changed = [*grade[:28], "2", "2"]
    again = with_agreement(similarity, {"grade": changed}, patients, folds=folds)(rows)
    np.testing.assert_array_equal(again[:, :28], alone[:, :28])
    assert (alone[:, 5] == similarity[:10, 5]).all()  # who has no label is neither nearer nor farther


def test_labels_dealt_anew_bring_nothing():
    dice = np.random.default_rng(1)
    vectors = dice.normal(size=(120, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    patients = [f"p{i}" for i in range(120)]
    truth = ["a" if vectors[i, 0] > 0 else "b" for i in range(120)]

    def precision(labels):
        ordered = with_agreement(
            similarity, {"label": labels}, patients, ranking=replace(Ranking(), agreement=10.0)
        )
        return evaluate(ordered, labels, patients, bootstrap=0).figures["P@10"]["micro"]

    assert precision(truth).value > 0.75
    found = [precision(shuffled_labels(truth, patients, seed)) for seed in range(8)]
    assert np.mean([one.value for one in found]) == pytest.approx(
        np.mean([one.chance for one in found]), abs=0.04
    )
