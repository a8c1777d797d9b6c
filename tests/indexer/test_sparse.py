"""Encoders to which neighbouring planes say the same, and indexes from before they said so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cbir import Index
from indexer.case_index import CaseIndex
from indexer.errors import EncoderError
from indexer.ingest import ingest
from tests.support.encoders import TinyEncoder


class Sparse(TinyEncoder):
    """Takes planes that are up to seven millimetres apart."""

    apart = 7.0


class Half(Sparse):
    size = 64


def test_an_index_that_holds_every_plane_stays_so_and_is_asked_with_fewer(
    tmp_path: Path, cohort: Callable[..., Path], tiny: TinyEncoder
) -> None:
    root, sparse = cohort(4), Sparse()
    with CaseIndex.create(tmp_path / "old", tiny) as old, CaseIndex.create(tmp_path / "new", sparse) as new:
        ingest(old, [root / "P-00", root / "P-01"], tiny)
        some = ingest(new, [root], sparse)
        every = ingest(old, [root], sparse)
        assert every.failed == some.failed == []
        assert every.slices > some.slices
        with pytest.raises(EncoderError, match="preprocessing"):
            new.require(Half())
        query = root / "P-02" / "P-02_t1ce.nii.gz"
        for index in (old, new):
            with Index(index, sparse) as opened:
                answer = opened.query(query)
            assert answer.query.slices < every.slices // 4
            assert answer.hits[0].patient_id == index.patient("P-02")
            assert any("the query itself is in the index" in note for note in answer.notes)
