"""An index looked after: what is in it, is it sound, tidied, copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from indexer.case_index import CaseIndex, Problem
from indexer.transfer import transfer


def info(index: CaseIndex, *, check: bool, cases: bool, failures: bool) -> dict[str, Any]:
    """What is in it; the arguments are those of :meth:`cbir.Index.info`."""
    about = index.about()
    if check:
        about |= index.check()
    if cases:
        contents = index.catalog.contents()
        rows = zip(contents.case_ids, contents.patient_ids, contents.visits, contents.labels, strict=True)
        names = ("case_id", "patient_id", "visit", "labels")
        about["cases_list"] = [dict(zip(names, row, strict=True)) for row in rows]
    if failures:
        about["failures"] = index.catalog.failed()
    return about


def verify(index: CaseIndex, *, repair: bool) -> list[Problem]:
    """Whether it is sound; the arguments are those of :meth:`cbir.Index.verify`."""
    if not repair:
        return index.verify()
    with index.writing("verify --repair"):
        return index.verify(repair=True)


def compact(index: CaseIndex) -> tuple[int, int]:
    """Tidy it; see :meth:`cbir.Index.compact`."""
    with index.writing("compact"):
        before = _size(index.folder)
        index.compact()
        after = _size(index.folder)
        index.catalog.log("compact", {"bytes_before": before, "bytes_after": after})
    return before, after


def copy(index: CaseIndex, to: Path, store: str, catalog: str | None) -> dict[str, Any]:
    """Copy it; see :meth:`cbir.Index.copy`."""
    transfer(index, to.absolute(), store=store, catalog=catalog)
    with CaseIndex.open(to) as made:
        return made.about()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
