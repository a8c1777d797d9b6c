"""Sources as discovery finds them, made for the tests of labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from indexer.labels import Joined, join, load_tables


@dataclass(frozen=True)
class Found:
    path: Path
    files: tuple[Path, ...]
    patient_id: str
    study_id: str = ""


def found(file: Path, patient: str, visit: str = "") -> Found:
    return Found(file, (file,), patient, visit)


def people(folder: Path, patients: Iterable[str]) -> list[Found]:
    """One image of each patient, in a folder called like the patient."""
    return [found(folder / "mri" / patient / f"{patient}_t1.nii.gz", patient) for patient in patients]


def visits(folder: Path, *of: tuple[str, str]) -> list[Found]:
    return [found(folder / "mri" / patient / visit / "t1.nii.gz", patient, visit) for patient, visit in of]


def joined(folder: Path, text: str, sources: Iterable[Found], name: str = "t.csv") -> Joined:
    """What a table in the folder says of the sources."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return join(load_tables(folder / name), list(sources))
