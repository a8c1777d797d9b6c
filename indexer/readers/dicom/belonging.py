"""Whose a DICOM image is, and which one: what an object that joins its study has to repeat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pydicom

from indexer.errors import ReadError
from indexer.readers.dicom.headers import EXPORT, guarded
from indexer.readers.quiet import quiet

UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
IDENTITY = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientIdentityRemoved",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Of the modules Patient and General Study (PS3.3 C.7): required, or needed to be filed right."""
_UID = re.compile(r"[0-9.]{1,64}")
MOST = 1024
"""Characters of a value, far more than any of these may have."""


@quiet()
def belonging(files: Sequence[Path]) -> list[dict[str, str]]:
    """What headers of images say of whose they are, and nothing else of it.

    Parameters
    ----------
    files : sequence of Path
        Of one study.

    Returns
    -------
    list of dict
        One an image: all `UIDS`, and what it has of `IDENTITY`; a value that is empty is not there.

    Raises
    ------
    ReadError
        If one is damaged, or does not say which image it is.
    """
    return [_of(file) for file in files]


def _of(file: Path) -> dict[str, str]:
    with guarded(file, "its DICOM header is damaged", EXPORT):
        header = pydicom.dcmread(
            file, stop_before_pixels=True, specific_tags=[*UIDS, *IDENTITY, "SpecificCharacterSet"]
        )
        said = {name: str(header[name].value or "") for name in (*UIDS, *IDENTITY) if name in header}
        if any(len(value) > MOST for value in said.values()):
            raise ReadError(file, "its DICOM header is damaged", EXPORT)
        for name in UIDS:
            if not _UID.fullmatch(said.get(name, "")):
                raise ReadError(file, f"has no valid {name}", EXPORT)
    return {name: value for name, value in said.items() if value}
