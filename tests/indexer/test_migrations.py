"""Catalogs that earlier versions wrote, as they wrote them (``earlier/``, dumped by the code of then)."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from indexer.catalog import Catalog, migrations
from indexer.catalog.schema import changed, meta, metadata, removed, visit_labels
from indexer.errors import CaseIndexError
from tests.indexer.test_catalog import again, entry, scan

pytestmark = pytest.mark.both

EARLIER = Path(__file__).with_name("earlier")
VISITS = {"kept-ids": [None, "before", "after"], "pseudonyms": [None, "v-", "v-"]}


@pytest.fixture(params=VISITS)
def first(request, tmp_path):
    """A catalog of format 1, and the visits that it tells of."""
    path = tmp_path / "catalog.sqlite"
    with sqlite3.connect(path) as raw:
        raw.executescript((EARLIER / f"catalog-1-{request.param}.sql").read_text())
    raw.close()
    return path, VISITS[request.param]


def same(catalog, visits):
    """All that was filed is there, with what has come since."""
    contents = catalog.contents()
    assert [(v or "")[: len(w or "")] for v, w in zip(contents.visits, visits, strict=True)] == [
        w or "" for w in visits
    ]
    assert contents.scan_source == ["/mri/a", "/mri/a", "/mri/b", "/mri/c", "/mri/c"]
    assert contents.scan_number.tolist() == [0, 1, 0, 0, 1]
    assert contents.scan_shape == [(8, 8, 2)] * 5
    assert contents.labels == [{"who_grade": "2"}, {"who_grade": "4"}, {"who_grade": "4"}]
    assert contents.in_sample.tolist() == [False, True, True]
    np.testing.assert_array_equal(np.isnan(contents.scan_strangeness), [False, True, True, True, True])
    assert catalog.count() == {"cases": 3, "scans": 4, "slices": 10, "sources": 3, "patients": 2}
    assert catalog.sequences() == ["composite", "flair", "t1"]
    assert catalog.label_names() == ["who_grade"]
    assert catalog.failed() == [{"source": "/mri/broken", "reason": "cannot be read"}]
    assert catalog.slices_until(4) == (10, 4)
    assert catalog.case(contents.case_ids[2]).visit == contents.visits[2]
    assert len(catalog.entries()) == 3
    assert list(catalog.damage()) == []
    return contents


def test_it_is_migrated_when_it_is_opened(first):
    path, visits = first
    with_visits = Catalog.at(path, 4)
    before = same(with_visits, visits)
    with_visits.put([entry("/mri/d", scan(patient=before.patient_ids[0]))], {})
    assert with_visits.count()["cases"] == 4
    with_visits.close()
    once_more = Catalog.at(path, 4)
    assert len(once_more.contents().case_ids) == 4
    once_more.close()


def test_where_nothing_may_be_written_it_is_read_as_it_is(first, monkeypatch):
    path, visits = first
    content = path.read_bytes()
    for immutable in (True, False):
        monkeypatch.setattr(os, "access", lambda *_: False)
        reader = Catalog.at(path, 4, immutable=immutable)
        same(reader, visits)
        reader.close()
    assert path.read_bytes() == content
    assert [path.name for path in path.parent.iterdir()] == ["catalog.sqlite"]


def test_a_migration_that_fails_leaves_the_catalog_as_it_was(first, monkeypatch):
    path, visits = first

    def fail(_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "counted", fail)  # the last step of it
        with pytest.raises(RuntimeError):
            Catalog.at(path, 4)
    with sqlite3.connect(path) as raw:
        tables = {name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert "visit_labels" not in tables
        assert len(raw.execute("SELECT * FROM cases").fetchone()) == 3
    raw.close()
    reader = Catalog.at(path, 4)
    same(reader, visits)
    reader.close()


def test_a_database_of_the_first_format_is_migrated_on_either_engine(catalog):
    catalog.put([entry("/a", scan()), entry("/b", scan(case="c2", patient="p2", seed=1))], {})
    as_first(catalog)
    later = again(catalog)
    assert later.contents().visits == [None, None]
    assert later.count()["slices"] == 6
    later.set_visit_labels({"c1": {"grade": "2"}})
    assert later.contents().labels == [{"grade": "2"}, {}]
    assert list(later.damage()) == []
    later.close()


def test_one_of_a_later_version_is_refused(catalog):
    with catalog._transaction() as connection:
        migrations.keep(connection, {"format": 99})
    with pytest.raises(CaseIndexError, match="format 99.*install a later cbir"):
        again(catalog)


def test_what_an_earlier_version_writes_meanwhile_is_counted_by_the_next_who_writes(catalog):
    catalog.put([entry("/a", scan())], {})
    before = catalog.contents()
    with catalog._transaction() as raw:  # as it does: rows and a revision, and nothing else
        raw.execute(meta.update().where(meta.c.key == "revision").values(value=meta.c.value + 1))
        raw.execute(metadata.tables["slices"].delete().where(metadata.tables["slices"].c.id == 2))
    assert catalog.count()["slices"] == 2
    assert catalog.contents(before).slice_ids.tolist() == [1, 3]
    middle = catalog.contents()
    catalog.put([entry("/b", scan(case="c2", seed=1))], {})
    assert catalog.count()["slices"] == 5
    assert catalog.contents(before).slice_ids.tolist() == [1, 3, 4, 5, 6]
    assert catalog.contents(middle).slice_ids.tolist() == [1, 3, 4, 5, 6]


def as_first(catalog):
    """Take away what has come since the first format."""
    place = "" if catalog.schema is None else f'"{catalog.schema}".'
    with catalog._transaction() as connection:
        for table in (visit_labels, removed, changed):
            table.drop(connection)
        for name in ("ix_scans_sequence", "ix_labels_name"):
            connection.exec_driver_sql(f"DROP INDEX {place}{name}")
        connection.exec_driver_sql(f"ALTER TABLE {place}cases DROP COLUMN visit")
        connection.exec_driver_sql(f"DELETE FROM {place}meta WHERE key != 'revision'")


def test_one_of_the_second_format_gets_checksums(catalog):
    catalog.put([entry("/a", scan())], {"p1": {"grade": "2"}})
    with catalog._transaction() as connection:
        metadata.tables["digests"].drop(connection)
        migrations.keep(connection, {"format": 2})
    later = again(catalog)
    assert list(later.damage()) == []
    with later._transaction() as connection:
        connection.execute(metadata.tables["labels"].update().values(value="4"))
    ((path, what),) = later.damage()
    assert path == "/a"
    assert "does not match its checksum" in what
    later.recount()
    assert list(later.damage()) == []
    later.close()
