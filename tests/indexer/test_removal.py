"""A removal that was ended is gone on with."""

from __future__ import annotations

import pytest

from indexer.case_index import CaseIndex
from retrieval.cli.app import run


def test_a_removal_that_was_killed_is_gone_on_with(tmp_path, tiny, cohort, monkeypatch, capsys):
    monkeypatch.setattr("indexer.case_index.load_encoder", lambda *_: tiny)
    monkeypatch.setattr("indexer.encoder.load_encoder", lambda *_: tiny)
    index = ["--index", str(tmp_path / "index")]
    assert run(["index", str(cohort(4)), "--keep-ids", *index]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(CaseIndex, "file_vectors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(["remove", "P-01", *index])
    assert run(["remove", "P-01", *index]) == 0
    assert "removed 1 cases" in capsys.readouterr().out
    assert run(["remove", "P-01", *index]) == 1
    with CaseIndex.open(tmp_path / "index") as opened:
        assert opened.verify() == []
