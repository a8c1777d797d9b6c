from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cbir import Index
from indexer.case_index import CaseIndex
from indexer.errors import QueryError
from indexer.ingest import ingest
from retrieval.crossmatch import CrossMatch


@pytest.fixture
def index(tmp_path, tiny, cohort):
    with CaseIndex.create(tmp_path / "index", tiny, keep_ids=True) as case_index:
        ingest(case_index, [cohort(7, ("t1ce", "flair"))], tiny)
        case_index.catalog.remove_sources(
            [p for p in case_index.catalog.fingerprints() if p.endswith("P-02_flair.nii.gz")]
        )
        yield case_index


@pytest.mark.both
def test_every_case_scores_as_it_does_as_a_query(index, tiny):
    items = CrossMatch.of(index.snapshot())
    scores = items.similarity(np.arange(7))
    asking = Index(index, tiny)
    for row, case in enumerate(items.names):
        found = {hit.case_id: hit.score for hit in asking.like(case, k=7).hits}
        assert found
        for other, score in found.items():
            assert scores[row, items.names.index(other)] == pytest.approx(score, abs=1e-5)
    np.testing.assert_allclose(items.similarities, scores)


@pytest.mark.both
def test_a_known_query_is_scored_as_its_filed_case_is(index, tiny):
    """Its own case is none of those at large, by which the sequence counts that another one lacks."""
    asking = Index(index, tiny)
    source = Path(asking.contents.scan_source[0]).parent
    assert source.name == "P-00"
    asked, filed = asking.query(source, k=7), asking.like("P-00", k=7)
    assert asked.hits[0].case_id == "P-00"
    scores = {hit.case_id: hit.score for hit in asked.hits[1:]}
    assert scores == pytest.approx({hit.case_id: hit.score for hit in filed.hits}, abs=1e-5)
    assert "P-02" in scores  # which lacks a sequence


def test_scans_of_different_sequences_cannot_be_compared(index):
    items = CrossMatch.of(index.snapshot(), "scan")
    assert len(items.names) == 13
    flair = np.array([name.endswith("flair.nii.gz") for name in items.names])
    scores = items.similarity(np.arange(13))
    assert (np.isinf(scores) == (flair[:, None] != flair)).all()
    assert np.diag(scores) == pytest.approx(1, abs=1e-5)


def test_an_unknown_column_names_the_known_ones(index):
    with pytest.raises(QueryError, match="the index has: who_grade"):
        CrossMatch.of(index.snapshot()).evaluate("grade")


@pytest.mark.both
def test_patients_of_the_training_answer_and_do_not_ask(index):
    items = CrossMatch.of(index.snapshot())
    assert items.asked_in_sample(np.arange(7)) == 0
    seen = np.array([name in ("P-01", "P-04", "P-05") for name in items.names])
    ranking, _ = replace(items, in_sample=seen).evaluate("who_grade", bootstrap=0)
    assert {items.names[q] for q in ranking.queries} == {"P-00", "P-02", "P-03", "P-06"}
    assert ranking.items == 7
    every = replace(items, in_sample=np.ones(7, bool))
    ranking, _ = every.evaluate("who_grade", bootstrap=0)
    assert len(ranking.queries) == every.asked_in_sample(ranking.queries) == 7
