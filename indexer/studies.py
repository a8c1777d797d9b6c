"""Visits whose series come and go one by one: what those that are filed are together."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from indexer import remote
from indexer.case_index import CaseIndex
from indexer.composite import beside
from indexer.encoder import Encoder, trained_on
from indexer.readers import Source


@dataclass(frozen=True)
class Belonging:
    """Whose a source is, as the index calls them.

    Attributes
    ----------
    patient_id, case_id : str
    visit : str, optional
    in_sample : bool
        Whether the encoder was trained on the patient.
    """

    patient_id: str
    case_id: str
    visit: str | None
    in_sample: bool


def belonging(index: CaseIndex, encoder: Encoder, source: Source) -> Belonging:
    """Whose a source is, by the ids in its files."""
    patient, study = source.patient_id, source.study_id
    return Belonging(
        index.patient(patient),
        index.case(patient, study),
        index.visit(patient, study),
        trained_on(encoder, patient),
    )


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
        together = _of_case(index, index.case(patient, study))
        found += [replace(each, patient_id=patient, study_id=study) for each in together]
        held += index.catalog.composites_of([index.case(patient, study)])
    names = {source.name for source in found}
    return found, [path for path in held if path not in names]


def remaining(
    index: CaseIndex, gone: Collection[str]
) -> tuple[dict[str, Belonging], list[Source], list[str]]:
    """The composites of the visits that some filed sources belong to, as they are without these.

    Parameters
    ----------
    index : CaseIndex
    gone : collection of str
        Names of sources.

    Returns
    -------
    whose : dict of str to Belonging
        By the names of what is found, whose ids nobody knows any more.
    found : list of Source
    stale : list of str
        As of :func:`composites`.
    """
    whose: dict[str, Belonging] = {}
    found: list[Source] = []
    cases = index.catalog.cases_of(gone)
    for name in cases:
        case = index.catalog.case(name)
        assert case is not None
        together = _of_case(index, name, without=gone)
        of_case = Belonging(case.patient_id, name, case.visit, case.in_sample)
        whose |= dict.fromkeys((source.name for source in together), of_case)
        found += together
    return whose, found, [path for path in index.catalog.composites_of(cases) if path not in whose]


def _of_case(index: CaseIndex, name: str, without: Collection[str] = ()) -> list[Source]:
    """What the scans that are filed of a case are together; without ids."""
    case = index.catalog.case(name)
    if case is None:
        return []
    paths = dict.fromkeys(scan.source for scan in case.scans if scan.source not in without)
    records = {path: index.catalog.record(path) for path in paths}
    parts = [remote.held(path, record) for path, record in records.items() if record is not None]
    return beside(parts, lambda *_: name)
