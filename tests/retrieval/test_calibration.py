from __future__ import annotations

import doctest
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import retrieval.conformal
import retrieval.leave_one_out
from cbir import Index
from indexer import sealed
from indexer.case_index import CaseIndex
from indexer.demo import write_cohort
from indexer.encoder import load_encoder
from indexer.ingest import ingest
from indexer.policy import SearchPolicy
from retrieval.answer import Evidence
from retrieval.calibration import (
    ENOUGH,
    FILE,
    QUESTIONS,
    SIMILARITY,
    SURE,
    TYPICALITY,
    Calibration,
    Fit,
    Kind,
    due,
    near_quantile,
)
from retrieval.cli.app import app
from retrieval.conformal import conformal_quantile, lowest_usual, temperature, tempered
from retrieval.learning import calibrate, chosen, leave_one_out
from retrieval.leave_one_out import Gallery, LeaveOneOut, Votes, votes
from retrieval.metrics import chance_calibration_error, expected_calibration_error
from retrieval.open_set import OpenSet, nearest
from retrieval.search import UNHELD
from tests.support.images import phantom, write_nifti


@pytest.mark.parametrize("module", [retrieval.conformal, retrieval.leave_one_out])
def test_worked_examples_in_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# ---- formulas ------------------------------------------------------------------------------------


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_temperature_recovers_the_known_one(true):
    rng = np.random.default_rng(0)
    p = tempered(rng.dirichlet([1, 1, 1], 20_000), 1.0)
    outcome = tempered(p, true)  # what really happens, while p is said
    y = (rng.random(len(p))[:, None] > outcome.cumsum(axis=1)).sum(axis=1)
    assert temperature(p, y) == pytest.approx(true, rel=0.05)


def test_temperature_keeps_the_order_of_values():
    p = np.random.default_rng(1).dirichlet([1, 2, 3], 50)
    for t in (0.2, 5.0):
        assert (np.argsort(tempered(p, t)) == np.argsort(p)).all()


def test_quantile_by_hand():
    scores = np.array([0.5, 0.1, 0.4, 0.2, 0.3])
    # n = 5, half may be missed: the ceil(6 / 2) = third smallest
    assert conformal_quantile(scores, missed=0.5) == 0.3
    assert conformal_quantile(scores) == 1.0  # the ceil(5.4) = sixth of five
    # a patient with two scores counts once: needed 2.5 of 0.5 + 0.5 + 1 + 1 + 1
    assert conformal_quantile(scores, np.array([1, 0.5, 1, 1, 0.5]), missed=0.5) == 0.4


@given(st.integers(9, 60), st.floats(0.02, 0.5), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_a_new_exchangeable_score_is_below_the_quantile_as_often_as_promised(n, missed, seed):
    # exact for continuous scores: P = ceil((n + 1)(1 − missed)) / (n + 1), or 1 where no score is safe
    needed = int(np.ceil((n + 1) * (1 - missed) - 1e-9))
    expected = min(1.0, needed / (n + 1))
    draws = np.random.default_rng(seed).random((4000, n + 1))
    below = [row[0] <= conformal_quantile(row[1:], missed=missed) for row in draws]
    assert np.mean(below) == pytest.approx(expected, abs=0.035)
    assert expected >= 1 - missed - 1e-9


@pytest.mark.parametrize("n", [10, 25, 60, 200])
def test_few_of_the_known_kind_are_called_strangers(n):
    rng = np.random.default_rng(n)
    values = rng.normal(0.8, 0.03, (4000, n + 1))
    rate = np.mean([row[0] < lowest_usual(row[1:]) for row in values])
    assert rate < 0.02
    assert np.mean([lowest_usual(row[1:]) > 0.4 for row in values]) > 0.999


# ---- the fit -------------------------------------------------------------------------------------


def drawn(n: int, share: float, seed: int) -> tuple[Votes, np.ndarray]:
    """Votes on two values, the second rare and hard to tell."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < share).astype(np.int64)
    p = np.clip(rng.normal(np.where(truth == 1, 0.35, 0.1), 0.15), 0.01, 0.99)
    said = np.stack([1 - p, p], axis=1)
    return Votes(["common", "rare"], said, truth, np.ones(n), np.arange(n), np.arange(n)), said


@pytest.mark.parametrize("seed", range(3))
def test_the_sets_cover_each_value_also_the_rare_one(seed):
    fit = Fit.of(drawn(400, 0.15, seed)[0])
    assert fit is not None
    new, said = drawn(40_000, 0.15, 100 + seed)
    sets = fit.sets(new.values, tempered(said, fit.temperature))
    for c, of_value in enumerate((340, 60)):
        rows = new.truth == c
        # the coverage that one fit reaches is Beta-distributed around 0.9
        assert sets[rows, c].mean() == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / of_value))


def test_no_fit_where_patients_are_too_few():
    enough = drawn(200, 0.5, 0)[0]
    few = {"probabilities": enough.probabilities[:29], "truth": enough.truth[:29]}
    assert Fit.of(replace(enough, **few, weights=enough.weights[:29])) is None
    assert Fit.of(replace(enough, truth=np.where(np.arange(200) < 4, 1, 0))) is None
    # two scans a patient do not make two patients
    assert Fit.of(replace(enough, weights=np.full(200, 0.1))) is None


def test_what_is_usual_for_a_value_is_told_by_those_who_are_most_like_the_query():
    scores = np.concatenate([np.linspace(0.81, 1, 20), np.linspace(0.01, 0.8, 80)])
    patients, likeness = np.arange(100), np.concatenate([np.full(20, 0.9), np.full(80, 0.1)])
    assert near_quantile(scores, patients, likeness) == pytest.approx(0.99)  # ⌈21 · 0.9⌉ of 20
    assert near_quantile(scores, patients, -likeness) < 0.8
    # one that cannot be compared is none of them
    assert near_quantile(scores[:20], patients[:20], np.r_[-np.inf, likeness[1:20]]) is None
    # two scans a patient do not make two patients, and both tell
    twice = near_quantile(np.repeat(scores, 2), np.repeat(patients, 2), np.repeat(likeness, 2))
    assert twice == pytest.approx(0.99)
    assert (
        near_quantile(np.repeat(scores[:19], 2), np.repeat(patients[:19], 2), np.repeat(likeness[:19], 2))
        is None
    )


def test_a_fit_near_a_query_hears_who_is_still_there_and_still_has_the_value(index, monkeypatch):
    monkeypatch.setattr("retrieval.calibration.NEAR", 9)
    contents = index.contents
    first = [int(contents.scan_ids[contents.scan_case == case][0]) for case in range(42)]
    grade = np.array([row["who_grade"] for row in contents.labels])
    mine, others = (np.flatnonzero(there) for there in (grade == "4", grade != "4"))
    told = [(first[case], place / 100) for place, case in enumerate(mine.tolist())]
    gone = [(max(contents.scan_ids.tolist()) + 1, 1.0), *((first[case], 1.0) for case in others.tolist())]
    fit = Fit(42, 1.0, {"2": 0.5, "4": 0.5}, {"4": [*told, *gone]})
    order = np.concatenate([mine[3:], others, mine[:3]])  # those from 0.03 on are most like the query
    assert fit.near("who_grade", contents, order).quantiles == {"2": 0.5, "4": 0.11}
    # where the search has reached too few of them, it is as everywhere
    assert fit.near("who_grade", contents, mine[:8]).quantiles == {"2": 0.5, "4": 0.5}


def test_a_calibrated_vote_says_so_and_may_leave_no_value():
    fit = Fit(40, 0.5, {"2": 0.1, "4": 0.05})
    vote = Evidence({"2": 0.2, "4": 0.8}, {"2": 0.5, "4": 0.5}, ["2", "4"], False, 15)
    found = fit(vote)
    assert found.probabilities == pytest.approx({"2": 1 / 17, "4": 16 / 17})
    assert (found.set, found.calibrated, found.calibrated_on) == ([], True, 40)  # 1 − 16/17 > 0.05
    assert fit(Evidence({"2": 0.2, "3": 0.8}, {}, ["3"], False, 15)).calibrated is False
    assert fit(Evidence({"2": 0.2, "4": 0.8}, {}, ["4"], True, 0)).calibrated is False


def test_a_patient_never_votes_on_itself():
    gallery = Gallery(np.array(["a", "a", "b", "c"]), [{"g": "1"}, {"g": "1"}, {"g": "2"}, {"g": "2"}])
    similarity = np.array([[1.0, 0.99, 0.5, 0.4], [0.5, 0.6, 1.0, -np.inf]], np.float32)
    labels = [{"g": "1"}, {"g": "2"}]
    one = LeaveOneOut(gallery, np.array(["a", "b"]), labels, similarity, ["", ""], np.array([0, 2]))
    assert [ranking.tolist() for ranking in one.rankings] == [[2, 3], [1]]  # the better case of a patient
    np.testing.assert_allclose(one.nearest, [0.45, 0.6])
    said = votes(one, "g")
    # of a: only 2s are left, in vote and prior; of b: one 1 votes fully, prior half and half
    np.testing.assert_allclose(said.probabilities, [[0, 1], [(1 + 0.5) / 2, 0.5 / 2]])
    assert said.truth.tolist() == [0, 1]


def test_strangers_by_the_mean_over_their_scans():
    kind = Kind({}, {SIMILARITY: {"": 0.5, "t1": 0.7}, "typicality": {"": -1.0}})
    assert kind.strange(SIMILARITY, [("t1", 0.65)]) is True
    assert kind.strange(SIMILARITY, [("t1", 0.65), ("t2", 0.6)]) is False  # −0.05 and +0.1
    assert kind.strange(SIMILARITY, [("t1", float("nan"))]) is None
    held = Calibration({"scan": kind}, "1", 1, 0, 10, 10, 10, {})
    assert held.strange({SIMILARITY: [("t1", 0.8)], "typicality": [("t1", -2.0)]}) is True
    assert held.strange({SIMILARITY: [("t1", 0.8)]}, region=True) is None


def test_a_typical_scan_is_no_stranger_however_unlike_the_known_ones():
    usual = {SIMILARITY: {"": 0.5}, TYPICALITY: {"": -1.2}}
    held = Calibration({"scan": Kind({}, usual)}, "v", 1, 0, 30, 30, 30, {})
    far = [("t1", 0.2)]
    assert held.strange({SIMILARITY: far, TYPICALITY: [("t1", -SURE + 0.1)]}) is False
    assert held.strange({SIMILARITY: far, TYPICALITY: [("t1", -SURE - 0.1)]}) is True
    assert held.strange({SIMILARITY: far, TYPICALITY: [("t1", float("nan"))]}) is True
    assert held.strange({SIMILARITY: far}) is True
    assert held.strange({SIMILARITY: [("t1", 0.9)], TYPICALITY: [("t1", -1.7)]}) is True


# ---- an index ------------------------------------------------------------------------------------


@pytest.fixture
def index(index_of, tiny):
    """Forty-two patients of three grades, open."""
    with Index(CaseIndex.open(index_of(42, ("t1ce", "flair"))), tiny) as opened:
        yield opened


def test_an_index_learns_keeps_and_uses_it(index, tmp_path):
    query = write_nifti(tmp_path / "new" / "new_t1ce.nii.gz", phantom(500, 4))
    before = index.query(query)
    assert before.familiar is None
    assert before.evidence["who_grade"].calibrated is False
    assert due(index.case_index)
    learnt = calibrate(index.case_index, index.state)
    assert learnt is not None
    assert not due(index.case_index)
    assert set(learnt.kinds) == {"scan", "case"}  # no outlines
    assert set(learnt.kinds["scan"].usual[SIMILARITY]) == {"", "t1ce", "flair"}
    assert Calibration.load(index.case_index) == learnt
    assert index.query(query).familiar is None
    index.refresh()
    after = index.query(query)
    assert after.familiar is True
    evidence = after.evidence["who_grade"]
    assert (evidence.calibrated, evidence.calibrated_on) == (True, 42)
    raw = np.array(list(before.evidence["who_grade"].probabilities.values()))
    fit = learnt.kinds["scan"].columns["who_grade"]
    np.testing.assert_allclose(list(evidence.probabilities.values()), tempered(raw, fit.temperature))
    assert after.to_dict()["evidence"]["who_grade"]["calibrated_on"] == 42


def test_a_query_of_no_known_kind_gets_no_vote_and_the_answer_says_what_is_held(index):
    asked = index.contents.case_ids[0]
    before = index.like(asked).evidence["who_grade"]
    assert (before.held, before.lacks) == ({"2": 14, "3": 14, "4": 14}, [])
    assert before.others == "whether it would notice a kind that it does not hold is not known"
    learnt = calibrate(index.case_index, index.state)
    assert learnt is not None
    kind = learnt.kinds["case"]
    known = (kind.open_sets or {})["who_grade"]
    assert known.patients == 42
    assert set(known.answered) == {"2", "3", "4"}
    limits = (100.0, 100.0)  # nobody is so near
    far = OpenSet(42, known.usual, *limits, {"2": 0.2, "3": 0.1}, known.composite_weight)
    kinds = learnt.kinds | {"case": replace(kind, open_sets={"who_grade": far})}
    replace(learnt, kinds=kinds).save(index.case_index.folder)
    index.refresh()
    evidence = index.like(asked).evidence["who_grade"]
    assert evidence.abstain
    assert evidence.reason == UNHELD
    assert evidence.probabilities == pytest.approx(evidence.prior)
    assert evidence.others is not None
    assert "with each kind left out in turn" in evidence.others
    assert index.like(asked).hits  # which are shown all the same


def test_nearness_of_a_question_is_that_of_the_search(index):
    case = 5
    found = leave_one_out(index.state, [case], np.random.default_rng(0))["scan"]
    near = nearest(found, "who_grade", ["2", "3", "4"])
    of_case = index.state.scans_of([case])[case]
    others = np.ones(len(index.contents.case_ids), bool)
    for row, place in enumerate(found.scans):
        scans = [scan for at, scan in of_case if at == place]
        ranked = index.state.rank(scans, 0, others)
        told = index.state.nearness(ranked, {index.contents.patient_ids[case]}, "who_grade")
        assert told == [(found.sequences[row], pytest.approx(near[row], abs=1e-5))]


def test_one_that_was_learnt_before_there_were_open_sets_is_used_and_learnt_anew(index):
    calibrate(index.case_index, index.state)
    path = index.case_index.folder / FILE
    told = sealed.read(path)
    for kind in told["kinds"].values():
        del kind["open_sets"]
    sealed.write(path, told)
    index.refresh()
    evidence = index.like(index.contents.case_ids[0]).evidence["who_grade"]
    assert evidence.calibrated
    assert evidence.others == "whether it would notice a kind that it does not hold is not known"
    assert due(index.case_index)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patients", [1]),
        ("patients", True),
        ("patients", 10**4200),
        ("temperature", 5e-324),
        ("temperature", 1e308),
        ("quantiles", {"2": "0.5", "4": 0.5}),
        ("quantiles", {"4": 0.5}),
        ("asked", {"2": [[1, 1.5]]}),
        ("asked", {"2": [[True, 0.5]]}),
        ("asked", {"2": [[1.0, 0.5]]}),
        ("asked", {"2": [[1, 0.5, 0.5]]}),
        ("asked", {"2": [[[], 0.5]]}),
        ("asked", {"2": 1}),
        ("asked", {"2": [[3, 0.0]] * (QUESTIONS + 1)}),
        ("seed", {"a": 1}),
        ("format", True),
    ],
)
def test_a_calibration_with_impossible_numbers_is_not_used(tmp_path, name, value):
    fit = Fit(40, 1.0, {"2": 0.5, "4": 0.5}, {"2": [(1, 0.25)], "4": [(2, 0.5)]})
    held = Calibration({"scan": Kind({"grade": fit}, {}, {})}, "1", 1, 0, 40, 60, 60, {"grade": {"2": 20}})
    held.save(tmp_path)
    assert Calibration.read(tmp_path) == held
    told = sealed.read(tmp_path / FILE)
    at = told if name in told and name != "patients" else told["kinds"]["scan"]["columns"]["grade"]
    at[name] = value
    # the file's own checksum is right: whoever planted it made that, too
    (tmp_path / FILE).write_text(json.dumps({**told, sealed.SEAL: sealed.seal(told)}))
    assert Calibration.read(tmp_path) is None


def test_a_value_that_came_later_is_named_as_the_reason_for_no_calibration():
    said = Fit(40, 1.0, {"2": 0.1, "4": 0.1})(Evidence({"1": 0.5, "2": 0.5}, {}, ["1"], False, 15))
    assert (said.calibrated, said.reason) == (False, "not calibrated: learnt without 1")


def test_the_questions_are_those_that_users_would_ask(index):
    """Scores as the search gives them, exact or approximate, and never of the patient's own."""
    cases = [3, 17]
    for approximate in (False, True):
        if approximate:
            index = Index(CaseIndex.open(index.case_index.folder, SearchPolicy(exact_below=0)), index.encoder)
        found = leave_one_out(index.state, cases, np.random.default_rng(0))["case"]
        for place, case in enumerate(cases):
            name = index.contents.case_ids[case]
            hits = index.like(name, k=42).hits
            row = found.similarity[place]
            for hit in hits:
                assert row[index.contents.case_ids.index(hit.case_id)] == pytest.approx(hit.score, abs=1e-5)
            assert case not in found.rankings[place]
            assert len(found.rankings[place]) == len(hits) == 41


def test_votes_of_the_fit_are_those_of_the_answers(index):
    found = votes(leave_one_out(index.state, [5], np.random.default_rng(0))["case"], "who_grade")
    answer = index.like(index.contents.case_ids[5])
    expected = answer.evidence["who_grade"].probabilities
    np.testing.assert_allclose(found.probabilities[0], [expected[v] for v in found.values], atol=1e-6)


def test_a_patient_of_the_training_answers_but_does_not_ask(index):
    contents = index.contents
    contents.in_sample[:32] = True
    assert chosen(contents, np.random.default_rng(0)) == list(range(32, 42))
    learnt = calibrate(index.case_index, index.state)
    assert learnt is not None
    assert learnt.patients == 10
    assert not learnt.kinds["scan"].columns  # ten are too few for the labels
    contents.in_sample[:33] = True
    (index.case_index.folder / FILE).unlink()
    assert calibrate(index.case_index, index.state) is None
    assert not (index.case_index.folder / FILE).exists()


def test_of_many_patients_a_bounded_number_asks_with_rare_values_among_them(index):
    contents = index.contents
    for case, row in enumerate(contents.labels):
        row["rare"] = "yes" if case in (7, 30) else "no"
    for seed in range(5):
        asking = chosen(contents, np.random.default_rng(seed), 12)
        assert len(set(asking)) == 12
        assert {7, 30} & set(asking)
        assert asking == chosen(contents, np.random.default_rng(seed), 12)


def test_it_is_due_again_when_a_tenth_has_changed(index):
    assert calibrate(index.case_index, index.state) is not None
    index.case_index.catalog.remove_cases(set(index.contents.case_ids[:4]))
    assert not due(index.case_index)
    index.case_index.catalog.remove_cases(set(index.contents.case_ids[:5]))
    assert due(index.case_index)


def test_it_is_due_when_labels_change(index, tiny):
    assert calibrate(index.case_index, index.state) is not None
    contents = index.contents
    root = Path(contents.scan_source[0]).parents[1]
    table = root / "participants.tsv"
    table.write_text(table.read_text().replace("\t2\t", "\t3\t"))
    ingest(index.case_index, [root], tiny)
    assert due(index.case_index)


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"kinds": 3}', '{"kinds": {"scan": {}}}'])
def test_a_damaged_file_means_uncalibrated(index, damage):
    calibrate(index.case_index, index.state)
    (index.case_index.folder / FILE).write_text(damage)
    index.refresh()
    assert Calibration.load(index.case_index) is None
    assert index.like(index.contents.case_ids[0]).familiar is None
    assert due(index.case_index)


def test_that_of_another_encoder_is_not_taken(index):
    calibrate(index.case_index, index.state)
    path = index.case_index.folder / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder_version": "2"}))
    assert Calibration.load(index.case_index) is None


def test_while_another_process_writes_nothing_is_kept(index):
    with CaseIndex.open(index.case_index.folder) as other, other.writing("index"):
        assert calibrate(index.case_index, index.state) is None


def test_a_further_signal_calls_strangers_too(index):
    typicality = np.linspace(0, 1, len(index.contents.scan_ids))
    learnt = calibrate(index.case_index, index.state, signals={"typicality": typicality})
    assert learnt is not None
    near = [("t1ce", 1.0)]
    assert learnt.strange({SIMILARITY: near, "typicality": [("t1ce", -2.0)]}) is True
    assert learnt.strange({SIMILARITY: near, "typicality": [("t1ce", 0.5)]}) is False


def test_nothing_is_learnt_from_a_handful(tmp_path, tiny, cohort):
    case_index = CaseIndex.create(tmp_path / "small", tiny)
    ingest(case_index, [cohort(ENOUGH - 1)], tiny)
    with Index(case_index, tiny) as opened:
        assert not due(case_index)
        assert opened.calibrate() is None


# ---- strangers, with the real encoder --------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The sample cohort, indexed by the command."""
    folder = tmp_path_factory.mktemp("sample")
    write_cohort(folder / "cohort", 12)
    write_cohort(folder / "new", 3, seed=1)
    result = CliRunner().invoke(
        app,
        ["index", str(folder / "cohort"), "--index", str(folder / "index"), "--encoder", "imagenet"],
    )
    assert result.exit_code == 0, result.output
    assert "12 known patients tell what is similar" in result.output
    return folder


@pytest.fixture
def opened(sample):
    case_index = CaseIndex.open(sample / "index")
    with Index(case_index, load_encoder("imagenet")) as index:
        yield index


@pytest.mark.slow
def test_noise_and_a_phantom_are_strangers(sample, opened, tmp_path):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:200j, -1:1:200j]
    for name, pixels in (("noise", rng.random((200, 200))), ("disc", (x**2 + y**2 < 0.6) * 0.7)):
        Image.fromarray((255 * pixels).astype(np.uint8)).save(tmp_path / f"{name}.png")
        answer = opened.query(tmp_path / f"{name}.png")
        assert answer.familiar is False
        assert answer.hits  # what is nearest is shown all the same
        assert any("nothing similar here" in note for note in answer.notes)
        for evidence in answer.evidence.values():
            assert evidence.abstain
            assert evidence.neighbours == 0
            assert evidence.probabilities == pytest.approx(evidence.prior)
            assert "nothing similar here" in (evidence.reason or "")
            assert not evidence.calibrated


@pytest.mark.slow
def test_a_new_patient_of_the_kind_is_none(sample, opened):
    for folder in sorted((sample / "new").glob("SYNTH-*")):
        assert opened.query(folder).familiar is True
        assert opened.query(next(folder.glob("*_flair*"))).familiar is True


@pytest.mark.slow
def test_the_command_says_why_it_abstains(sample, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99), dtype=np.uint8)).save(
        tmp_path / "noise.png"
    )
    command = ["query", str(tmp_path / "noise.png"), "--index", str(sample / "index")]
    command += ["--report", str(tmp_path / "report.html")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert "who_grade: nothing similar here" in result.output
    assert "Nothing similar here" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_indexing_again_learns_again_only_when_much_has_changed(sample, tmp_path):
    shutil.copytree(sample / "index", tmp_path / "index")
    command = ["index", str(sample / "cohort"), "--index", str(tmp_path / "index")]
    assert "evidence" not in CliRunner().invoke(app, command).output
    (tmp_path / "index" / FILE).unlink()
    assert "evidence  not calibrated" in CliRunner().invoke(app, command).output


# ---- the error of calibration ----------------------------------------------------------------------


def test_calibration_error_by_hand_and_in_any_order():
    said, right = np.array([0.5, 0.5, 0.7, 0.9]), np.array([0, 1, 1, 0])
    # two bins of equal mass: |0.5 − 0.5| and |0.8 − 0.5|
    assert expected_calibration_error(said, right, bins=2) == pytest.approx(0.15)
    for order in ([1, 0, 2, 3], [3, 2, 1, 0]):
        assert expected_calibration_error(said[order], right[order], bins=2) == pytest.approx(0.15)
    assert expected_calibration_error([0.9, 0.6], [1, 0], bins=1, weights=[3, 1]) == pytest.approx(
        abs(3 * (0.9 - 1) + 0.6) / 4
    )


def test_chance_calibration_error_is_that_of_true_probabilities():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1], 300)
    right = [expected_calibration_error(p.max(1), rng.random(300) < p.max(1)) for _ in range(100)]
    assert chance_calibration_error(p) == pytest.approx(np.mean(right), abs=0.006)
