"""How an index ranks is a value: another can be brought from outside, and what was learnt keeps its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import cbir
from cbir import Index, Question, Ranking, SearchPolicy
from indexer import reference
from indexer.errors import QueryError
from retrieval.calibration import FILE, Calibration, Fit, due
from retrieval.evidence import vote
from retrieval.ranking import RULES, rule
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_nifti

TOY = '''
import numpy as np

def farthest(queries, cases):
    """The less alike, the better."""
    return -(queries.means @ cases.means.T)
'''


@pytest.fixture
def index(index_of: Callable[..., Path], tiny: TinyEncoder) -> Iterator[Index]:
    with cbir.open_index(index_of(36), tiny) as opened:
        opened.calibrate()
        yield opened


def asked(index: Index, tmp_path: Path) -> cbir.Answer:
    query = write_nifti(tmp_path / "new" / "n_t1ce.nii.gz", phantom(500, 4))
    return index.query(query, k=36, by="similarity")  # by the rule alone


# ---- a rule from outside -------------------------------------------------------------------------------


def test_a_package_brings_a_rule_of_its_own(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "toy-1.0.dist-info").mkdir(parents=True)
    (site / "toy_ranking.py").write_text(TOY)
    (site / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (site / "toy-1.0.dist-info" / "entry_points.txt").write_text(
        "[cbir.rankings]\nfarthest = toy_ranking:farthest\n"
    )
    monkeypatch.syspath_prepend(site)
    rule.cache_clear()
    ours = asked(index, tmp_path)
    with Index(index.case_index, index.encoder, ranking=Ranking("farthest")) as toy:
        theirs = asked(toy, tmp_path)
        # two stacks are compared as wholes by both
        assert [h.case_id for h in theirs.hits] == [h.case_id for h in reversed(ours.hits)]
        assert toy.calibration_due
        learnt = toy.calibrate()
        assert learnt is not None
        assert learnt.ranking == Ranking("farthest")
        evaluated = toy.evaluate("who_grade", bootstrap=0)
    better = index.evaluate("who_grade", bootstrap=0)
    assert evaluated.ranking.figures["mAP"]["macro"].value < better.ranking.figures["mAP"]["macro"].value


def test_a_rule_that_nobody_has_is_refused_with_the_names_of_those_there_are(
    index: Index, tmp_path: Path
) -> None:
    with (
        Index(index.case_index, index.encoder, ranking=Ranking("nearest")) as other,
        pytest.raises(QueryError, match="no such ranking; choose one of stacks, late-interaction"),
    ):
        asked(other, tmp_path)
    assert set(RULES) == {"stacks", "late-interaction"}


# ---- what was learnt is of one way to answer --------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"ranking": Ranking(composite_weight=4.0)}, "another ranking (composite_weight 8.0, now 4.0)"),
        ({"ranking": Ranking(neighbours=5)}, "another ranking (neighbours 15, now 5)"),
        ({"ranking": Ranking("late-interaction")}, "another ranking (rule stacks, now late-interaction)"),
        ({"policy": SearchPolicy(depth=9)}, "another search policy (depth 64, now 9)"),
        (
            {"policy": SearchPolicy(exact_below=1, shortlist=7)},
            "another search policy (exact_below 20000, now 1; shortlist 100, now 7)",
        ),
    ],
)
def test_what_was_learnt_under_another_is_known_as_stale_and_not_used(
    index: Index, tmp_path: Path, changed: dict[str, object], told: str
) -> None:
    before = asked(index, tmp_path)
    assert before.evidence["who_grade"].calibrated
    assert not [note for note in before.notes if "calibrated" in note]
    folder = index.case_index.folder
    with cbir.open_index(folder, index.encoder, **changed) as other:  # type: ignore[arg-type]
        assert other.calibration is None
        answer = asked(other, tmp_path)
        evidence = answer.evidence["who_grade"]
        assert (evidence.calibrated, evidence.calibrated_on) == (False, 0)
        assert evidence.reason == f"not calibrated: learnt under {told}"
        assert any(told in note and "`cbir index` learns it anew" in note for note in answer.notes)
        assert other.calibration_due
        assert other.calibrate() is not None
        assert asked(other, tmp_path).evidence["who_grade"].calibrated
    index.refresh()  # now it is the first that is stale
    assert not asked(index, tmp_path).evidence["who_grade"].calibrated
    assert index.calibration_due


def test_ranking_and_policy_are_kept_and_read_again(index: Index) -> None:
    held = json.loads((index.case_index.folder / FILE).read_text())
    assert held["ranking"] == asdict(Ranking())
    assert held["policy"] == asdict(SearchPolicy())
    assert Calibration.load(index.case_index) == index.calibration
    assert Calibration.load(index.case_index, replace(Ranking(), prior_mass=2.0)) is None
    assert Calibration.load(index.case_index, Ranking(), SearchPolicy(shortlist=9)) is None


def test_one_of_before_says_nothing_and_was_learnt_under_the_first_values(index: Index) -> None:
    path = index.case_index.folder / FILE
    data = json.loads(path.read_text())
    del data["ranking"], data["policy"], data["sha256"]
    path.write_text(json.dumps(data))
    found = Calibration.load(index.case_index, Ranking("stacks", 8.0, 15, 1.0, 0.9))
    assert found is not None
    assert not due(index.case_index)
    assert Calibration.load(index.case_index, Ranking(composite_weight=7.0)) is None


def test_the_reference_says_under_which_ranking_it_learnt() -> None:
    data = json.loads((reference.FOLDER / FILE).read_text())
    assert data["ranking"]["composite_weight"] == 8.0
    assert data["policy"]["exact_below"] == 20_000
    with reference.opened() as shipped:
        assert Calibration.load(shipped) is not None
        assert Calibration.load(shipped, Ranking(neighbours=3)) is None


# ---- values of the vote -----------------------------------------------------------------------------------


def test_neighbours_prior_and_set_follow_the_ranking() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.5], np.float32)
    values, prior = ["4", "2", "2", "2"], {"2": 0.5, "4": 0.5}
    # one voter, of weight 1, and two votes of the prior
    alone = vote(scores, values, prior, Ranking(neighbours=1, prior_mass=2.0))
    assert alone.probabilities == pytest.approx({"2": 1 / 3, "4": 2 / 3})
    assert alone.neighbours == 1
    assert vote(scores, values, prior, Ranking(neighbours=1, prior_mass=2.0, set_mass=0.6)).set == ["4"]
    nothing = vote(scores[:0], [], prior, Ranking(prior_mass=0.0))
    assert nothing.probabilities == prior


def test_a_set_never_leaves_out_the_value_that_the_vote_names_first() -> None:
    prior = {"glioma": 0.6, "meningioma": 0.4}
    said = vote(np.ones(5, np.float32), ["glioma"] * 5, prior)
    said = replace(said, probabilities={"glioma": 0.59, "meningioma": 0.41})
    # by the quantiles alone the set is {meningioma}: 1 - 0.59 > 0.05, and 1 - 0.41 <= 0.8
    found = Fit(300, 1.0, {"glioma": 0.05, "meningioma": 0.8})(said)
    assert found.set == ["glioma", "meningioma"]
    # no value as its patients usually look: doubt is not filled up
    assert Fit(300, 1.0, {"glioma": 0.05, "meningioma": 0.05})(said).set == []


def test_evidence_tells_all_values_that_the_index_holds(index: Index, tmp_path: Path) -> None:
    answer = asked(index, tmp_path)
    assert answer.evidence["who_grade"].values == ["2", "3", "4"]
    assert answer.to_dict()["evidence"]["who_grade"]["values"] == ["2", "3", "4"]
    cases = zip(index.contents.case_ids, index.contents.labels, strict=True)
    fours = [case for case, row in cases if row["who_grade"] == "4"]
    left = index.query(Question(like=index.contents.case_ids[0]), exclude_patient=fours)
    assert left.evidence["who_grade"].values == ["2", "3", "4"]
    assert set(left.evidence["who_grade"].prior) == {"2", "3"}
