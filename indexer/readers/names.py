"""What the names of files and folders say (sequence, patient, region), and what ``cbir.json`` adds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import ReadError

CONFIG = "cbir.json"

SEQUENCES = {
    "t1": "t1",
    "t1w": "t1",
    "t1n": "t1",
    "t1ce": "t1ce",
    "t1c": "t1ce",
    "t1gd": "t1ce",
    "t2": "t2",
    "t2w": "t2",
    "flair": "flair",
    "t2f": "flair",
    "pd": "pd",
    "pdw": "pd",
    "dwi": "dwi",
    "adc": "adc",
    "swi": "swi",
    "bold": "bold",
}
"""Last word of a file's name (BIDS and BraTS suffixes, in any case) and the sequence it stands for."""

SLICE = re.compile(r"slice[-_ ]?(\d+)", re.IGNORECASE)
"""Name of a numbered slice: slice-001, slice_2, slice003."""

_LAST_WORD = re.compile(r"(?:(.*)[-_])?([^-_]*)", re.DOTALL)
_REGION = re.compile(r"(?:(.*)[-_])?(?:seg|dseg|mask)", re.DOTALL | re.IGNORECASE)
_CONTRAST = re.compile(r"[-_]ce-[a-z0-9]+", re.IGNORECASE)
_SUBJECT = re.compile(r"(?<![a-z0-9])sub-[a-z0-9]+", re.IGNORECASE)
_SESSION = re.compile(r"(?<![a-z0-9])ses-[a-z0-9]+", re.IGNORECASE)
_BRATS = re.compile(r"(BraTS(?:-[A-Z]+)+-\d+)-\d+")


def stem(name: str) -> str:
    """A file's name without its extension; ``.nii.gz`` counts as one."""
    return name[:-7] if name.lower().endswith(".nii.gz") else Path(name).stem


def sequence_of(name: str, *, folder: bool = False) -> tuple[str | None, str]:
    """Sequence told by the last word of a name, and the name without it.

    Words are parted by ``_`` or ``-``. The BIDS entity ``ce-…`` makes a T1 contrast-enhanced.

    Parameters
    ----------
    name : str
        A file's name; its extension is dropped.
    folder : bool, optional
        `name` is a folder's, and has no extension.

    Examples
    --------
    >>> sequence_of("sub-01_ce-gadolinium_T1w.nii.gz")
    ('t1ce', 'sub-01')
    >>> sequence_of("BraTS-GLI-00000-000-t2f.nii.gz")
    ('flair', 'BraTS-GLI-00000-000')
    >>> sequence_of("0001.jpg")
    (None, '0001')
    """
    name = name if folder else stem(name)
    match = _LAST_WORD.fullmatch(name)
    if match is None or (sequence := SEQUENCES.get(match[2].lower())) is None:
        return None, name
    rest = match[1] or ""
    if sequence == "t1" and _CONTRAST.search(rest):
        return "t1ce", _CONTRAST.sub("", rest)
    return sequence, rest


def region_of(name: str) -> str | None:
    """What a region file (``X_seg``, ``X_dseg``, ``X_mask``, or with ``-``) belongs to: X; else None."""
    match = _REGION.fullmatch(stem(name))
    return None if match is None else match[1] or ""


def patient_and_study(name: str, folder: Path) -> tuple[str, str]:
    """Patient and study that an image belongs to, as far as names tell.

    The patient is, in this order: the BIDS subject ``sub-…`` in the image's name or the nearest folder's;
    a BraTS id without its timepoint; the image's name, or the nearest folder's where that says nothing
    (as in ``t1.nii.gz``, ``ses-1_t1.nii.gz``, ``slice-001.png``). The study is the patient's BIDS session
    ``ses-…`` or BraTS timepoint; else there is one study a patient.

    Parameters
    ----------
    name : str
        Name of the image without sequence and extension, as `sequence_of` gives it.
    folder : Path
        Where it lies.

    Examples
    --------
    >>> patient_and_study("sub-01_ses-2", Path("data/sub-01/ses-2/anat"))
    ('sub-01', 'sub-01_ses-2')
    >>> patient_and_study("BraTS-GLI-00000-001", Path("data"))
    ('BraTS-GLI-00000', 'BraTS-GLI-00000-001')
    """
    names = [name, folder.name, *(above.name for above in folder.parents)]
    subject = next((found[0] for each in names if (found := _SUBJECT.search(each))), None)
    session = next((found[0] for each in names if (found := _SESSION.search(each))), None)
    if subject is None and (brats := _BRATS.fullmatch(name)):
        return brats[1], name
    telling = (n for n in names if n and not SLICE.fullmatch(n) and not _SESSION.fullmatch(n))
    patient = subject or next(telling, name)
    return patient, f"{patient}_{session}" if session else patient


@dataclass(frozen=True)
class Config:
    """A ``cbir.json``: what images below its folder are, where their names cannot say it.

    Attributes
    ----------
    path : Path
    channels : tuple of str
        Sequence that each channel of a multi-channel image holds.
    stack : bool, optional
        Whether the images of one folder are slices of one scan.
    """

    path: Path
    channels: tuple[str, ...] = ()
    stack: bool | None = None


def find_config(folder: Path) -> Config | None:
    """The ``cbir.json`` in `folder`, or the nearest above it.

    Raises
    ------
    ReadError
        If it is no JSON object, or holds a setting that is not known.
    """
    path = next((f for above in (folder, *folder.parents) if (f := above / CONFIG).is_file()), None)
    if path is None:
        return None
    remedy = 'write e.g. {"channels": ["t1", "flair", "t1ce"], "stack": true}'
    try:
        settings = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ReadError(path, f"cannot be read as JSON ({error})", remedy) from error
    if not isinstance(settings, dict) or (unknown := sorted(settings.keys() - {"channels", "stack"})):
        what = (
            f"has the unknown setting {unknown[0]!r}" if isinstance(settings, dict) else "is no JSON object"
        )
        raise ReadError(path, what, remedy)
    channels, stack = settings.get("channels", []), settings.get("stack")
    if not isinstance(channels, list) or not all(isinstance(c, str) and c.strip() for c in channels):
        raise ReadError(path, "its channels are not a list of names", remedy)
    if stack is not None and not isinstance(stack, bool):
        raise ReadError(path, "its stack is neither true nor false", remedy)
    names = (c.strip().lower() for c in channels)
    return Config(path, tuple(SEQUENCES.get(name, name) for name in names), stack)
