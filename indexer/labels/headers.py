"""What the headers of tables say of their columns."""

from __future__ import annotations

import re
from collections.abc import Sequence

from indexer.labels.spelling import folded

PATIENT_COLUMNS = ("participantid", "patientid", "subjectid", "participant", "patient", "subject")
"""Headers (in any case, without separators) of a column that names patients; the first that is there."""


FILE_COLUMNS = ("file", "filename", "filepath", "path", "image")
"""Headers (likewise) of a column that names files."""


_IDS = re.compile(r"ids?|patients?|subjects?|participants?|persons?|cases?|pids?|mrn|pseudonym")


PERSONS = re.compile(r"\b(patient|subject|participant|person|case|pid)s?\b")


_VISITS = re.compile(
    r"visits?|sessions?|ses|time ?points?|tp|time|dates?|day|weeks?|months?|scan|exam|examination|study|stage"
    r"|follow ?up|fu|phase"
)


_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+")


def rank(header: str) -> int:
    """How well a header says that its column names whom the rows are about."""
    plain = simple(header)
    if plain in PATIENT_COLUMNS:
        return 10 - PATIENT_COLUMNS.index(plain)
    return 2 if plain in FILE_COLUMNS else int(says_id(header))


def says_id(header: str) -> bool:
    """Whether a column holds ids."""
    return any(_IDS.fullmatch(word) for word in (*words_of(header), simple(header)))


def says_visit(header: str) -> bool:
    """Whether a column names visits."""
    return any(_VISITS.fullmatch(word) for word in (*words_of(header), spaced(header)))


def counts_up(cells: Sequence[str]) -> bool:
    """Whether cells are 0, 1, 2, … or 1, 2, 3, …: the numbers of the rows."""
    return len(cells) > 1 and any(
        list(cells) == [str(i) for i in range(start, start + len(cells))] for start in (0, 1)
    )


def words_of(header: str) -> list[str]:
    """The words of a header in lower case; of ``camelCase``, too."""
    return [word.lower() for word in _WORDS.findall(header)]


def spaced(header: str) -> str:
    """The words of a header, a space between them."""
    return " ".join(words_of(header))


def simple(text: str) -> str:
    """A text without case and separators."""
    return " ".join(folded(text)) if text else ""
