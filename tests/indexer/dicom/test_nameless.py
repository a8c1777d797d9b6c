"""Whose studies are that name no patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indexer.discovery import discover
from tests.support.images import write_dicom

VOLUME = np.random.default_rng(0).random((8, 8, 4)).astype(np.float32)


@pytest.mark.parametrize("said", ["", "ANONYMOUS", "anonymized", "Unknown", "n/a", "XXXX", "No Name"])
def test_studies_of_nobody_are_of_one_person_each(tmp_path: Path, said: str) -> None:
    for study in ("1.2.3.1", "1.2.3.2"):
        write_dicom(
            tmp_path / study, VOLUME, PatientID=said, StudyInstanceUID=study, SeriesInstanceUID=f"{study}.1"
        )
    found = discover(tmp_path)
    assert len({source.patient_id for source in found.sources}) == 2
    assert "2 DICOM studies name no patient: each counts as a patient of its own" in found.notes


@pytest.mark.parametrize("said", ["00000", "Anna", "anon-017", "X1", "No 7"])
def test_whoever_has_a_name_is_one_person(tmp_path: Path, said: str) -> None:
    for study in ("1.2.3.1", "1.2.3.2"):
        write_dicom(
            tmp_path / study, VOLUME, PatientID=said, StudyInstanceUID=study, SeriesInstanceUID=f"{study}.1"
        )
    assert {source.patient_id for source in discover(tmp_path).sources} == {said}
