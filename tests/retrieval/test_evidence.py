"""The part of an answer that says how sure it is, from the search to what is printed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cbir import Index
from indexer.case_index import CaseIndex
from indexer.ingest import ingest
from retrieval.answer import Answer, Evidence, Query
from retrieval.calibration import SIMILARITY, Calibration, Fit, Kind
from retrieval.cli.asking import show_answer
from tests.support.images import phantom, write_nifti


@pytest.fixture
def index(tmp_path, tiny, cohort):
    case_index = CaseIndex.create(tmp_path / "index", tiny, keep_ids=True)
    ingest(case_index, [cohort(12, ("t1ce", "flair"))], tiny)
    with Index(case_index, tiny) as opened:
        yield opened


def learnt(index, usual: float, kinds=("scan", "case"), **quantiles: float) -> None:
    """Give the index a calibration of our own."""
    fit = Fit(99, 2.0, {value[1:]: q for value, q in quantiles.items()})
    kind = Kind({"who_grade": fit} if quantiles else {}, {SIMILARITY: {"": usual}})
    Calibration(dict.fromkeys(kinds, kind), "1", 1, 0, 99, 24, 24, {}).save(index.case_index.folder)
    index.refresh()


def ask(index, tmp_path, **how):
    return index.query(write_nifti(tmp_path / "new" / "new_t1ce.nii.gz", phantom(500, 4)), **how)


def test_the_set_holds_every_value_whose_probability_is_high_enough(index, tmp_path):
    learnt(index, -1, _2=1.0, _3=1.0, _4=0.0)
    evidence = ask(index, tmp_path).evidence["who_grade"]
    assert evidence.set == ["2", "3"]
    assert sum(evidence.probabilities.values()) == pytest.approx(1)
    assert evidence.calibrated_on == 99


def test_below_what_is_usual_all_columns_abstain(index, tmp_path):
    learnt(index, 1.1, _2=1.0, _3=1.0, _4=1.0)
    answer = ask(index, tmp_path)
    assert answer.familiar is False
    assert answer.hits
    assert {e.abstain for e in answer.evidence.values()} == {True}
    assert json.loads(json.dumps(answer.to_dict()))["familiar"] is False


def test_similarity_is_the_mean_of_the_three_nearest_patients(index, tmp_path):
    scores = [hit.score for hit in ask(index, tmp_path, by="similarity").hits[:3]]
    for shift, familiar in ((-1e-4, True), (1e-4, False)):
        learnt(index, float(np.mean(scores)) + shift)
        assert ask(index, tmp_path).familiar is familiar
        # a filter on hits hides neighbours, and changes nothing
        assert ask(index, tmp_path, where={"who_grade": "2"}).familiar is familiar


@pytest.mark.both
def test_an_indexed_query_is_judged_by_the_other_patients(index):
    file = index.contents.scan_source[0]
    others = [hit.score for hit in index.query(file, k=4).hits[1:]]
    learnt(index, float(np.mean(others)) + 1e-4)
    assert index.query(file).familiar is False
    learnt(index, float(np.mean(others)) - 1e-4)
    assert index.query(file).familiar is True


def test_a_kind_of_question_that_was_not_learnt_stays_as_it_was(index, tmp_path):
    learnt(index, 1.1, kinds=("case",), _2=1.0, _3=1.0, _4=1.0)
    answer = ask(index, tmp_path)
    assert answer.familiar is None
    assert not answer.evidence["who_grade"].calibrated
    both = index.like(index.contents.case_ids[0])  # two scans
    assert both.evidence["who_grade"].calibrated
    region = ask(index, tmp_path, region=(5, 5, 20, 20))
    assert not region.evidence["who_grade"].calibrated


@pytest.mark.both
def test_outlines_are_learnt_apart(tmp_path, tiny, cohort):
    root = cohort(12)
    for folder in root.glob("P-*"):
        lesion = np.zeros((24, 28, 10), np.float32)
        lesion[8:16, 8:18, 3:7] = 1
        write_nifti(folder / f"{folder.name}_seg.nii.gz", lesion)
    case_index = CaseIndex.create(tmp_path / "outlined", tiny, keep_ids=True)
    ingest(case_index, [root], tiny)
    with Index(case_index, tiny) as opened:
        found = opened.calibrate()
        assert found is not None
        assert set(found.kinds) == {"scan", "region"}
        usual = {name: kind.usual[SIMILARITY]["t1ce"] for name, kind in found.kinds.items()}
        assert usual["scan"] != usual["region"]
        opened.refresh()
        assert ask(opened, tmp_path, region=(8, 10, 18, 20)).familiar is not None


def printed(capsys, evidence: Evidence) -> str:
    show_answer(Answer(Query("scan", None, 1), [], {"who_grade": evidence}))
    return capsys.readouterr().out


def test_what_is_printed(capsys):
    half = {"2": 0.5, "4": 0.5}
    vote = Evidence(half, half, ["2"], False, 15)
    assert "not calibrated" in printed(capsys, vote)
    sure = Evidence(half, half, ["2", "4"], False, 15, True, 281)
    assert "calibrated on 281 known patients: 2 or 4 plausible" in printed(capsys, sure)
    doubtful = Evidence(half, half, [], False, 15, True, 281)
    assert "calibrated on 281 known patients: less clear than for 9 in 10" in printed(capsys, doubtful)
    assert "who_grade: because" in printed(capsys, Evidence(half, half, [], True, 0, reason="because"))
    assert "who_grade: no labelled neighbours" in printed(capsys, Evidence(half, half, [], True, 0))
