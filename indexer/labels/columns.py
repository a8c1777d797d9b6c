"""Which columns of a table are no labels: those that may identify people, and free text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from indexer.labels.values import known

IDENTIFYING = re.compile(
    r"""names? | (patient|first|last|full|file)name | surname | forename | initials
    | ids? | uid | guid | identifier | patientid | mrn | ssn | nhs | passport | insurance | accession(number)?
    | birth | birthday | (birth|scan|study)?dates? | dateofbirth | dob | datetime | timestamp
    | address | street | city | zip(code)? | postal | postcode | (tele)?phone | mobile | fax | e?mail
    | physician | doctor | radiologist | operator | institution | hospital
    | comments? | notes? | remarks? | description | report | text""",
    re.VERBOSE,
)
"""Words (in any case) that make a column identifying, or free text: one with such a word in its header
(``patient_name``, ``AccessionNumber``, ``Date of birth``) is never kept; nor is another id or file column."""

AT_BIRTH = re.compile(r"(sex|gender)\W+(assigned\W+)?at\W+birth|birth\W*(sex|gender)", re.IGNORECASE)
"""The one thing about a birth that does not identify."""

LONGEST = 200
"""Characters beyond which a value is free text."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+")
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ]\d.*)?|\d{1,2}[-/.]\d{1,2}[-/.](\d{2}|\d{4})([T ]\d.*)?"
)
_PATH = re.compile(
    r"\S+[/\\].*\.\w{2,4}|.*\.(nii(\.gz)?|dcm|png|jpe?g|tiff?|webp|mha|nrrd|mgz)", re.IGNORECASE
)
_IMAGE = re.compile(
    r".+\.(nii(\.(gz|bz2|zst))?|png|jpe?g|tiff?|webp|dcm|mha|mhd|mgz|nrrd|hdr|img)", re.IGNORECASE
)
_CODE = re.compile(r"(?=.*\d)[\w.\-]{4,}")
_UID = re.compile(r"[12](\.\d+){4,}")


def identifies(column: str) -> bool:
    """Whether a column's header says that it holds what identifies people, or free text."""
    if AT_BIRTH.search(column):
        return False
    words = [word.lower() for word in _WORDS.findall(column)]
    return any(IDENTIFYING.fullmatch(word) for word in (*words, "".join(words)))


def is_image(name: str) -> bool:
    """Whether a name or a path is an image file's."""
    return _IMAGE.fullmatch(name) is not None


def reveals(cells: Sequence[str]) -> bool:
    """Whether the cells of a column are what identifies people or cases, or free text, whatever it is called.

    So are dates, paths of files, unique identifiers, long texts, and codes of one make that tell every
    row from every other.
    """
    held = [value for cell in cells if (value := known(cell))]
    if not held:
        return False
    if max(map(len, held)) > LONGEST:
        return True
    for pattern in (_DATE, _PATH, _UID):
        if sum(pattern.fullmatch(value) is not None for value in held) * 2 > len(held):
            return True
    makes = {re.sub(r"\d+", "0", re.sub(r"[A-Za-z]+", "a", value)) for value in held}
    worded = any(c.isalpha() for c in held[0])
    return (
        len(held) > 2
        and len(set(held)) == len(held)
        and len(makes) == 1
        and worded
        and all(_CODE.fullmatch(value) for value in held)
    )
