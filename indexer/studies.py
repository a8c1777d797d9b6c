"""Visits whose series come one by one: what those that are filed are together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from indexer import remote
from indexer.case_index import CaseIndex
from indexer.composite import beside
from indexer.readers import Source


def composites(index: CaseIndex, sources: Iterable[Source]) -> tuple[list[Source], list[str]]:
    """The composites of the visits that some sources belong to, of all that is filed of them.

    Parameters
    ----------
    index : CaseIndex
    sources : iterable of Source
        With the patient and study they belong to.

    Returns
    -------
    found : list of Source
        To be filed, in the place of those of the same names.
    stale : list of str
        Names of composites that are filed of these visits and are none any more.
    """
    found: list[Source] = []
    held: list[str] = []
    for patient, study in dict.fromkeys((source.patient_id, source.study_id) for source in sources):
        name = index.case(patient, study)
        case = index.catalog.case(name)
        if case is None:
            continue
        records = {s.source: index.catalog.record(s.source) for s in case.scans}
        parts = [remote.held(path, record) for path, record in records.items() if record is not None]
        found += beside([replace(p, patient_id=patient, study_id=study) for p in parts], index.case)
        held += index.catalog.composites_beside(list(records))
    names = {source.name for source in found}
    return found, [path for path in held if path not in names]
