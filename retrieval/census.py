"""What is counted of an index once, and kept up as it grows: cases by patient, labels, sequences."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress
from operator import is_not

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import Contents
from indexer.catalog.contents import nothing
from indexer.ids import among
from indexer.measures import NAMES
from retrieval.evidence import Population
from retrieval.likeness import Lesions, lobes_of_cases, of_cases, scaled, spread


@dataclass(frozen=True)
class Census:
    """Of one state of an index; made of the one before, it costs what has changed since.

    Attributes
    ----------
    contents : Contents
    cases_of : dict
        A patient's cases, by position.
    patients : Population
        Labels by patient: those of the last case.
    cases : Population
        Labels by the position of a case.
    sequences : dict
        A number for each sequence.
    scan_sequence : ndarray of int64
        That of each scan.
    lesions : Lesions
        What the lesions of the cases look like.
    """

    contents: Contents
    cases_of: dict[str, list[int]]
    patients: Population
    cases: Population
    sequences: dict[str | None, int]
    scan_sequence: NDArray[np.int64]
    lesions: Lesions

    @classmethod
    def of(cls, contents: Contents, before: Census | None = None) -> Census:
        """That of these contents, where there is one of an earlier state made of it."""
        if before is not None and before.contents is contents:
            return before
        if before is None or not _grown(before.contents, contents):
            before = _NOBODY
        held = len(before.contents.case_ids)
        new = range(held, len(contents.case_ids))
        known = before.contents.labels
        told = compress(range(held), map(is_not, known, contents.labels))
        cases_of = dict(before.cases_of)
        for case in new:
            patient = contents.patient_ids[case]
            cases_of[patient] = [*cases_of.get(patient, ()), case]
        rows = {case: contents.labels[case] for case in (*told, *new)}
        whose = {case: contents.patient_ids[case] for case in rows}
        patients = before.patients.changed({p: rows[c] for c, p in whose.items() if cases_of[p][-1] == c})
        if len(cases_of) == len(contents.case_ids):  # no patient has two cases
            cases = patients
        elif before.cases is before.patients:
            cases = Population(dict(enumerate(contents.labels)))
        else:
            cases = before.cases.changed(rows)
        sequences = dict(before.sequences)
        later = contents.scan_sequence[len(before.scan_sequence) :]
        numbers = [sequences.setdefault(name, len(sequences)) for name in later]
        return cls(
            contents,
            cases_of,
            patients,
            cases,
            sequences,
            np.append(before.scan_sequence, np.array(numbers, np.int64)),
            _lesions(contents, before),
        )


def _lesions(contents: Contents, before: Census) -> Lesions:
    """Those of the cases that had scans before, and of those that have new ones."""
    measures = np.full((len(contents.case_ids), len(NAMES)), np.nan, np.float32)
    measures[: len(before.lesions.measures)] = before.lesions.measures
    lobes = np.zeros(len(contents.case_ids), np.uint8)
    lobes[: len(before.lesions.lobes)] = before.lesions.lobes
    touched = np.unique(contents.scan_case[len(before.scan_sequence) :])
    if len(touched):
        rows = np.flatnonzero(among(contents.scan_case, touched))
        names = [contents.scan_sequence[row] for row in rows]
        cases = np.searchsorted(touched, contents.scan_case[rows])
        measures[touched] = scaled(of_cases(names, contents.scan_measures[rows], cases, len(touched)))
        lobes[touched] = lobes_of_cases(names, contents.scan_lobes[rows], cases, len(touched))
    return Lesions(measures, spread(measures), lobes)


def _grown(old: Contents, new: Contents) -> bool:
    """Whether nothing has gone."""
    return all(
        len(before) <= len(now) and np.array_equal(before, now[: len(before)])
        for before, now in ((old.case_rows, new.case_rows), (old.scan_ids, new.scan_ids))
    )


_ALL = Population({})
_NOBODY = Census(nothing(), {}, _ALL, _ALL, {}, np.empty(0, np.int64), Lesions.of(nothing()))
