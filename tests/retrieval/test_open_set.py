from __future__ import annotations

import doctest

import numpy as np
import pytest

import retrieval.open_set
from retrieval.leave_one_out import Gallery, LeaveOneOut
from retrieval.open_set import REFUSED, OpenSet, nearest


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def asked(kinds: dict[str, np.ndarray], n: int, seed: int = 0, spread: float = 0.25, scans: int = 1):
    """`n` patients of each kind, spread around a direction, who ask with `scans` scans each."""
    rng = np.random.default_rng(seed)
    names = [name for name in kinds for _ in range(n)]
    wholes = unit(np.array([kinds[name] for name in names]) + rng.normal(0, spread, (len(names), 8)))
    patients = np.arange(len(names))
    who = np.repeat(patients, scans)
    asking = unit(wholes[who] + rng.normal(0, 0.02, (len(who), 8)))
    near = asking @ wholes.T
    labels = [{"kind": name} for name in names]
    return LeaveOneOut(
        Gallery(patients, labels),
        who,
        [labels[i] for i in who],
        near,
        ["t1", "t2"][:scans] * len(patients) if scans > 1 else [""] * len(who),
        who,
        nearness=near,
    )


AXES = {name: 2 * np.eye(8)[i] for i, name in enumerate("abcd")}


def test_worked_examples_in_the_docstrings():
    assert doctest.testmod(retrieval.open_set).failed == 0


def test_nearest_by_hand():
    # patient 7 asks; its own item does not answer, of patient 8 the nearer item does
    gallery = Gallery(np.array([7, 8, 8, 9, 5]), [{"g": v} for v in "xxxyz"])
    near = np.array([[1.0, 0.2, 0.6, 0.4, 0.9], [-np.inf] * 5], np.float32)
    one = LeaveOneOut(
        gallery, np.array([7, 7]), [{"g": "x"}] * 2, near, ["", ""], np.array([0, 0]), nearness=near
    )
    np.testing.assert_allclose(nearest(one, "g", ["x", "y"]), [0.5, np.nan], rtol=1e-6)
    np.testing.assert_allclose(nearest(one, "g", ["x", "y", "z"])[0], (0.6 + 0.4 + 0.9) / 3, rtol=1e-6)
    assert np.isnan(nearest(one, "g", ["none"])).all()


def test_who_is_of_another_kind_is_refused_and_few_of_the_known():
    learnt = OpenSet.of(asked({k: AXES[k] for k in "abc"}, 60), "kind", list("abc"), joint=False)
    assert learnt is not None
    assert set(learnt.answered) == set("abc")
    assert learnt.missed is not None
    assert learnt.missed < 0.02
    # a kind that it has never met: new patients ask the same gallery, by the nearness to it
    new = asked(AXES, 60, seed=1)
    known = np.isin([row["kind"] for row in new.gallery.labels], list("abc"))
    truth = np.array([row["kind"] for row in new.labels])
    for rows, low, high in ((truth != "d", 0, 3 * REFUSED), (truth == "d", 0.98, 1)):
        scores, weights, who = learnt.scores(new.part(rows, known), "kind", list("abc"), joint=False)
        assert low <= np.average(scores < learnt.lowest, weights=weights) <= high
        assert len(who) == rows.sum()


def test_kinds_that_look_alike_are_not_noticed_and_it_knows():
    same = dict.fromkeys("abc", AXES["a"])
    learnt = OpenSet.of(asked(same, 60), "kind", list("abc"), joint=False)
    assert learnt is not None
    assert learnt.missed is not None
    assert learnt.missed == pytest.approx(1 - REFUSED, abs=0.04)
    assert not learnt.tells
    assert not learnt.refuses([("", -1.0)])  # however far: it tells nothing


def test_scans_of_a_patient_ask_together():
    questions = asked({k: AXES[k] for k in "abc"}, 30, scans=2)
    learnt = OpenSet.of(questions, "kind", list("abc"), joint=True)
    assert learnt is not None
    assert learnt.patients == 90
    assert set(learnt.usual) == {"", "t1", "t2"}
    scores, _, who = learnt.scores(questions, "kind", list("abc"), joint=True)
    assert len(scores) == len(who) == 90
    assert (scores >= learnt.lowest).all()  # the kinds are far apart, and the limit is between them
    alike = asked(dict.fromkeys("abc", AXES["a"]), 30, scans=2)
    bare = OpenSet._learnt(alike, "kind", list("abc"), np.ones(180, bool), True)
    assert bare is not None
    # the limit is the 5th smallest of 90 patients' scores: (90 + 1) · 5 % = 4.55
    near = nearest(alike, "kind", list("abc"))
    assert (bare._scores(alike, near, np.arange(180), True)[0] < bare.lowest).sum() == 4
    (mean, deviation) = learnt.usual["t1"]
    assert learnt.score([("t1", mean + deviation), ("t1", float("nan"))]) == pytest.approx(1)
    assert learnt.score([("t1", mean), ("composite", learnt.usual[""][0] - learnt.usual[""][1])]) == (
        pytest.approx(-8 / 9)  # a composite weighs eight
    )
    assert np.isnan(learnt.score([("t1", float("nan"))]))
    assert not learnt.refuses([("t1", float("nan"))])
    assert learnt.tells
    assert learnt.refuses([("t1", mean - 100 * deviation)])


def test_one_value_says_nothing_of_others():
    learnt = OpenSet.of(asked({"a": AXES["a"]}, 30), "kind", ["a"], joint=False)
    assert learnt is not None
    assert learnt.answered == {}
    assert learnt.missed is None


def test_questions_without_nearness_teach_nothing():
    questions = asked({k: AXES[k] for k in "ab"}, 10)
    bare = LeaveOneOut(
        questions.gallery,
        questions.patients,
        questions.labels,
        questions.similarity,
        questions.sequences,
        questions.scans,
    )
    assert OpenSet.of(bare, "kind", ["a", "b"], joint=False) is None


def test_parts_of_questions_are_what_was_asked():
    questions = asked({k: AXES[k] for k in "ab"}, 4)
    few = questions.part(questions.patients < 2, questions.gallery.patients % 2 == 0)
    assert few.patients.tolist() == [0, 1]
    assert few.gallery.patients.tolist() == [0, 2, 4, 6]
    assert few.nearness is not None
    np.testing.assert_array_equal(few.nearness, few.similarity)
    masked = questions.among(questions.gallery.patients != 3)
    assert masked.nearness is not None
    assert np.isneginf(masked.nearness[:, 3]).all()
    assert np.isneginf(masked.similarity[:, 3]).all()
    assert np.isfinite(masked.similarity[:, :3]).all()
