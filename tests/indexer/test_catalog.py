from __future__ import annotations

import copy
import os
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.atlas import LOBES
from indexer.catalog import Catalog, Contents, EmbeddedScan, Entry
from indexer.catalog.schema import slices
from indexer.errors import CaseIndexError
from indexer.measures import NAMES as MEASURES
from indexer.measures import Measures
from indexer.view import LENGTH

pytestmark = pytest.mark.both


def scan(case="c1", patient="p1", sequence="t1", n=3, seed=0, digest=None):
    x = np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)
    return EmbeddedScan(
        case_id=case,
        patient_id=patient,
        series_id="s",
        sequence=sequence,
        modality="MR",
        shape=(8, 8, n),
        spacing=(1.0, 1.0, 2.0),
        input_hash=digest or f"h{seed}",
        positions=np.arange(n),
        views=np.zeros(n, np.uint8),
        weights=np.linspace(0.5, 1, n, dtype=np.float32),
        embeddings=x,
    )


def entry(path, *scans, fingerprint="f"):
    return Entry(path, fingerprint, {"kind": "nifti"}, scans)


def again(catalog):
    """The same catalog as another process has it open."""
    url = catalog.engine.url
    return Catalog.on(url, 4, catalog.schema) if catalog.schema else Catalog.at(Path(url.database), 4)


def test_patients_of_the_training_are_known_as_long_as_they_are_filed(catalog):
    seen = replace(scan(), in_sample=True)
    catalog.put([entry("/a", seen), entry("/b", scan(case="c2", patient="p2"))], {})
    assert catalog.contents().in_sample.tolist() == [True, False]
    catalog.put([entry("/c", replace(seen, case_id="c3"))], {})
    assert catalog.contents().in_sample.tolist() == [True, False, True]
    catalog.remove_sources(["/a", "/c"])
    catalog.put([entry("/a", scan())], {})
    assert catalog.contents().in_sample.tolist() == [False, False]


def test_strangeness_is_kept_where_it_is_known(catalog):
    catalog.put([entry("/a", replace(scan(), strangeness=1.5), scan(seed=1))], {})
    np.testing.assert_array_equal(catalog.contents().scan_strangeness, np.array([1.5, np.nan], np.float32))
    np.testing.assert_array_equal(catalog.embedded(["h0"])["h0"][2], [1.5] * 3)
    catalog.put([entry("/a", scan())], {})
    np.testing.assert_array_equal(catalog.contents().scan_strangeness, [np.nan])


def test_what_is_put_comes_back(catalog):
    one, two = scan(), scan(case="c2", patient="p2", sequence=None, n=2, seed=1)
    catalog.put([entry("/a", one), entry("/b", two)], {"p1": {"who_grade": "3"}})
    contents = catalog.contents()
    assert contents.case_ids == ["c1", "c2"]
    assert contents.labels == [{"who_grade": "3"}, {}]
    assert contents.scan_sequence == ["t1", None]
    assert contents.scan_source == ["/a", "/b"]
    assert contents.slice_scan.tolist() == [0, 0, 0, 1, 1]
    assert contents.slice_position.tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_allclose(contents.slice_weight, np.concatenate([one.weights, two.weights]))
    np.testing.assert_array_equal(
        catalog.embeddings(contents.slice_ids[::-1]), np.concatenate([one.embeddings, two.embeddings])[::-1]
    )
    assert catalog.count() == {"cases": 2, "scans": 2, "slices": 5, "sources": 2, "patients": 2}
    assert catalog.fingerprints() == {"/a": "f", "/b": "f"}
    found = catalog.embedded(["h1", "unknown"])
    assert found.keys() == {"h1"}
    for part, filed in zip(found["h1"], (two.embeddings, two.weights, [np.nan] * 2), strict=True):
        np.testing.assert_array_equal(part, filed)


def test_blocks_give_every_embedding_once_in_order(catalog):
    catalog.put([entry(f"/{i}", scan(n=7, seed=i)) for i in range(5)], {})
    ids, vectors = zip(*catalog.embedding_blocks(block=4), strict=True)
    np.testing.assert_array_equal(np.concatenate(ids), catalog.contents().slice_ids)
    np.testing.assert_array_equal(np.concatenate(vectors), catalog.embeddings(np.concatenate(ids)))


def test_a_source_put_again_replaces_itself_and_ids_are_never_used_twice(catalog):
    catalog.put([entry("/a", scan())], {"p1": {"who_grade": "3"}})
    old = set(catalog.contents().slice_ids.tolist())
    catalog.put([entry("/a", scan(case="c9", patient="p9", seed=5), fingerprint="g")], {})
    contents = catalog.contents()
    assert contents.case_ids == ["c9"]
    assert contents.labels == [{}]
    assert not old & set(contents.slice_ids.tolist())


def test_removing_a_case_keeps_sources_that_hold_another(catalog):
    catalog.put(
        [entry("/both", scan(), scan(case="c2", patient="p2", seed=1)), entry("/one", scan(seed=2))], {}
    )
    assert catalog.remove_cases(["c1"]) == 1
    assert list(catalog.fingerprints()) == ["/both"]
    assert catalog.contents().case_ids == ["c2"]
    assert catalog.remove_cases(["c1"]) == 0


def test_every_change_advances_the_revision_and_nothing_else_does(catalog):
    start = catalog.revision
    catalog.put([entry("/a", scan())], {"p1": {"who_grade": "3"}})
    catalog.set_labels({"p1": {"who_grade": "3"}})
    assert catalog.revision == start + 1
    catalog.set_labels({"p1": {"who_grade": "4"}})
    assert catalog.revision == start + 2
    catalog.remove_sources(["/nowhere"])
    catalog.set_failures(["/"], {"/x": "unreadable"})
    assert catalog.revision == start + 2
    catalog.remove_sources(["/a"])
    assert catalog.revision == start + 3


def test_failures_are_replaced_below_the_given_paths_only(catalog):
    catalog.set_failures(["/a"], {"/a/x": "old", "/ab": "stays"})
    catalog.set_failures(["/a"], {"/a/y": "new"})
    assert catalog.failed() == [{"source": "/a/y", "reason": "new"}, {"source": "/ab", "reason": "stays"}]


def test_a_failed_put_leaves_nothing(catalog):
    bad = scan(seed=3)
    bad = EmbeddedScan(**{**vars(bad), "positions": np.arange(2)})
    with pytest.raises(ValueError, match="zip"):
        catalog.put([entry("/a", scan()), entry("/b", bad)], {})
    assert catalog.count()["slices"] == 0
    assert catalog.revision == 0


def test_readers_see_one_state_while_a_writer_commits(catalog):
    catalog.put([entry("/a", scan())], {})
    reader, counted = again(catalog), sa.select(sa.func.count(slices.c.id))
    with reader._transaction() as connection:
        before = connection.scalar(counted)
        catalog.put([entry("/b", scan(case="c2", seed=1))], {})
        assert connection.scalar(counted) == before == 3
    assert reader.count()["slices"] == 6
    reader.close()


def test_damage_is_found(catalog):
    catalog.put([entry("/a", scan()), entry("/b", scan(case="c2", seed=1))], {})
    assert list(catalog.damage()) == []
    second = slices.c.id == 2
    with catalog.engine.begin() as raw:
        blob = raw.scalar(sa.select(slices.c.embedding).where(second))
        raw.execute(slices.update().where(second).values(embedding=bytes([blob[0] ^ 1]) + blob[1:]))
    ((path, what),) = catalog.damage()
    assert path == "/a"
    assert "checksum" in what


@pytest.mark.local
def test_a_read_only_folder_can_be_read(catalog, tmp_path, monkeypatch):
    catalog.put([entry("/a", scan())], {})
    catalog.compact()
    monkeypatch.setattr(os, "access", lambda *_: False)
    reader = Catalog.at(tmp_path / "catalog.sqlite", 4)
    assert reader.count()["slices"] == 3
    reader.close()


@pytest.mark.local
def test_no_catalog_or_something_else_is_one_line(tmp_path):
    with pytest.raises(CaseIndexError, match="missing"):
        Catalog.at(tmp_path / "catalog.sqlite", 4)
    Path(tmp_path / "catalog.sqlite").write_text("not a database" * 100)
    with pytest.raises(CaseIndexError, match="cannot be used"):
        Catalog.at(tmp_path / "catalog.sqlite", 4)


def test_a_catalog_takes_another_over_with_its_ids_and_goes_on_counting(catalog, tmp_path):
    catalog.put([entry("/a", scan()), entry("/b", scan(case="c2", patient="p2", seed=1))], {"p1": {"g": "3"}})
    catalog.remove_sources(["/a"])
    catalog.set_failures(["/"], {"/x": "unreadable"})
    other = Catalog.at(tmp_path / "other.sqlite", 4, create=True)
    other.put([entry("/z", scan())], {})
    other.take_over(catalog)
    catalog.take_over(other)  # and back
    for now in (catalog, other):
        held = now.contents()
        assert (held.revision, held.case_ids, held.slice_ids.tolist()) == (2, ["c2"], [4, 5, 6])
        assert now.failed() == [{"source": "/x", "reason": "unreadable"}]
        now.put([entry("/c", scan(case="c3", seed=2))], {})
        assert now.contents().slice_ids[-3:].tolist() == [7, 8, 9]
        assert list(now.damage()) == []
    other.close()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://me:secret@127.0.0.1/x", "holds a password.*pgpass"),
        ("postgresql://127.0.0.1/x?password=secret", "holds a password.*pgpass"),
        ("mysql://127.0.0.1/x", "no PostgreSQL"),
        ("nonsense", "no database URL|not a database URL"),
        ("postgresql://nobody@127.0.0.1:9/x", "cannot be used.*running"),
    ],
)
def test_a_database_that_cannot_be_had_is_one_line_without_its_password(url, told):
    with pytest.raises(CaseIndexError, match=told) as caught:
        Catalog.on(url, 4, "none")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_driver_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(CaseIndexError, match=r"psycopg.*cbir\[postgres\]"):
        Catalog.on("postgresql://127.0.0.1/x", 4, "none")


def test_labels_of_a_visit_lie_over_those_of_the_person(catalog):
    before, after = scan(case="c1"), scan(case="c2", seed=1)
    catalog.put(
        [entry("/a", before), entry("/b", replace(after, visit="after"))],
        {"p1": {"sex": "F", "grade": "2"}},
        {"c2": {"grade": "4"}, "nobody": {"grade": "1"}},
    )
    contents = catalog.contents()
    assert contents.labels == [{"sex": "F", "grade": "2"}, {"sex": "F", "grade": "4"}]
    assert contents.visits == [None, "after"]
    assert catalog.case("c2").labels == contents.labels[1]
    revision = catalog.revision
    catalog.set_visit_labels({"c2": {"grade": "4"}, "c9": {"grade": "1"}})
    catalog.set_visits({"c2": "after"})
    assert catalog.revision == revision
    catalog.set_visit_labels({"c1": {"grade": "3"}, "c2": {}})
    catalog.set_visits({"c1": "before"})
    assert catalog.contents().labels == [{"sex": "F", "grade": "3"}, {"sex": "F", "grade": "2"}]
    assert catalog.contents().visits == ["before", "after"]
    assert catalog.label_names() == ["grade", "sex"]
    catalog.remove_cases(["c1"])
    catalog.put([entry("/a", before)], {})
    assert catalog.contents().labels[1] == {"sex": "F", "grade": "2"}


def test_every_scan_knows_its_source_its_number_there_and_its_shape(catalog):
    catalog.put([entry("/echoes#1", scan(), scan(seed=1, n=5)), entry("/b", scan(case="c2", seed=2))], {})
    contents = catalog.contents()
    assert [str(contents.scan_ref(i)) for i in range(3)] == ["/echoes#1#0", "/echoes#1#1", "/b#0"]
    assert contents.scan_shape == [(8, 8, 3), (8, 8, 5), (8, 8, 3)]
    assert [filed.ref for filed in catalog.case("c1").scans] == [contents.scan_ref(i) for i in range(2)]
    assert contents.cases_of(np.arange(11)).tolist() == [0] * 8 + [1] * 3


NAMES = st.integers(0, 3)
STEPS = st.one_of(
    st.tuples(st.just("put"), NAMES, st.lists(st.tuples(NAMES, NAMES), max_size=3)),
    st.tuples(st.just("remove_sources"), NAMES),
    st.tuples(st.just("remove_cases"), NAMES, NAMES),
    st.tuples(st.just("set_labels"), NAMES, NAMES),
    st.tuples(st.just("set_visit_labels"), NAMES, NAMES, NAMES),
    st.tuples(st.just("rename_sources"), NAMES, NAMES),
)


def taken(catalog, step, seed):
    kind, *values = step
    match kind, values:
        case "put", (source, held):
            scans = [
                replace(
                    scan(case=f"c{p}{v}", patient=f"p{p}", seed=seed + i, n=1 + v),
                    visit=f"v{seed}" if v else None,
                    in_sample=seed % 2 == 0,
                    sequence=("composite", "t1", None, "t2")[v],
                )
                for i, (p, v) in enumerate(held)
            ]
            catalog.put([entry(f"/{source}", *scans)], {f"p{p}": {"n": str(p)} for p, _ in held})
        case "remove_sources", (source,):
            catalog.remove_sources([f"/{source}", "/nowhere"])
        case "remove_cases", (p, v):
            catalog.remove_cases([f"c{p}{v}"])
        case "set_labels", (p, value):
            catalog.set_labels({f"p{p}": {"n": str(value)}})
        case "set_visit_labels", (p, v, value):
            catalog.set_visit_labels({f"c{p}{v}": {"n": str(value)}})
        case "rename_sources", (old, new):
            catalog.rename_sources({f"/{old}": f"/{new}"} if old != new else {})


def equal(one, other):
    for field in fields(Contents):
        np.testing.assert_equal(getattr(one, field.name), getattr(other, field.name), field.name)


@pytest.mark.slow
@pytest.mark.local
@given(st.lists(STEPS, max_size=12), st.data())
@settings(max_examples=60)
def test_what_is_read_in_parts_is_what_is_there_and_what_is_counted_is_true(steps, data):
    with tempfile.TemporaryDirectory() as folder:
        catalog = Catalog.at(Path(folder) / "catalog.sqlite", 4, create=True)
        states = [(catalog.contents(), copy.deepcopy(catalog.contents()))]
        for n, step in enumerate(steps):
            taken(catalog, step, n)
            since = data.draw(st.sampled_from([state for state, _ in states]))
            now = catalog.contents(since)
            equal(now, catalog.contents())
            states.append((now, copy.deepcopy(now)))
            assert list(catalog.damage()) == []  # counts, too
        for state, as_it_was in states:
            equal(state, as_it_was)
        catalog.close()


def test_measures_are_kept_and_those_of_another_version_are_unknown(catalog):
    seen = np.full(LENGTH, 0.12598425, np.float16).astype(np.float32)  # 16 in 127
    seen[0] = 2
    measures = Measures(size=31.5, necrotic=0.25, view=seen, lobe="left frontal")
    known = measures.as_vector()
    other = known.copy()
    other[0] += 1
    cut = known[:-1]
    before = np.append(np.float32(1), measures.numbers)  # version 1 had neither view nor lobe
    nowhere, no_lobe = known.copy(), known.copy()
    no_lobe[len(before)], nowhere[len(before) + 1] = 200, 7
    vectors = (known, other, cut, None, nowhere, no_lobe, before)
    scans = [replace(scan(seed=i), measures=vector) for i, vector in enumerate(vectors)]
    catalog.put([entry("/a", *scans)], {})
    held = catalog.contents()
    found, views = held.scan_measures, held.scan_views
    assert found.shape == (7, len(MEASURES))
    np.testing.assert_array_equal(found[[0, 6]], [measures.numbers] * 2)
    assert np.isnan(found[1:6]).all()
    np.testing.assert_array_equal(views[0], seen)
    assert np.isnan(views[1:]).all()
    assert [LOBES[lobe] for lobe in held.scan_lobes] == ["left frontal", *[""] * 6]
    told = [one.measures for one in catalog.entries()[0].scans]
    np.testing.assert_array_equal(told[0], known)
    assert told[3] is None
    before = catalog.contents()
    catalog.put([entry("/b", replace(scan(seed=9), measures=known))], {})
    after = catalog.contents(before)
    np.testing.assert_array_equal(after.scan_measures[-1], measures.numbers)
    np.testing.assert_array_equal(after.scan_views[-1], seen)
    assert after.scan_lobes[-1] == held.scan_lobes[0]
    catalog.remove_sources(["/a"])
    np.testing.assert_array_equal(catalog.contents(after).scan_measures, measures.numbers[None])
    np.testing.assert_array_equal(catalog.contents(after).scan_views, seen[None])
    assert list(catalog.damage()) == []
