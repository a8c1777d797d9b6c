"""What the values of a label column mean: unknown, one of a scale, or one of several spellings."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

UNKNOWN = frozenset(
    {
        "",
        "n/a",
        "na",
        "n.a.",
        "n.a",
        "#n/a",
        "<na>",
        "nan",
        "none",
        "null",
        "nil",
        "unknown",
        "unk",
        "not available",
        "[not available]",
        "not applicable",
        "[not applicable]",
        "not known",
        "not reported",
        "not determined",
        "not tested",
        "not evaluated",
        "[not evaluated]",
        "[unknown]",
        "missing",
        "n.d.",
        "tbd",
        "-",
        "--",
        "---",
        "–",
        "—",
        ".",
        "?",
        "??",
    }
)
"""Values (in any case) that stand for "not known"."""

GRADES = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "1": "1", "2": "2", "3": "3", "4": "4"}
"""Spellings of a grade after words such as "WHO grade", and the one that is kept."""

_GRADE = re.compile(
    r"(?P<word>(?:who|cns|grad(?:e|o)?|gr|g|°|\W)*)\s*(?P<grade>iv|i{1,3}|[1-4])(?:[.,]0+)?\s*°?",
    re.IGNORECASE,
)
_SPAN = re.compile(r"\s*(?:/|-|–|to|or|bis)\s*", re.IGNORECASE)
_GRADED = re.compile(r"grad", re.IGNORECASE)
_WHOLE = re.compile(r"(-?\d+)\.0+")
_COMMA = re.compile(r"-?\d+(,\d+)?")


def known(value: str) -> str:
    """The value, or "" where it is a word for unknown."""
    return "" if value.casefold() in UNKNOWN else value


@dataclass(frozen=True)
class Meaning:
    """What the values of a column are taken for.

    Attributes
    ----------
    values : mapping
        Each known value as the table has it, and as it is kept.
    notes : tuple of str
        What was changed, and what looks alike and was not.
    """

    values: Mapping[str, str]
    notes: tuple[str, ...] = ()


def meaning(column: str, cells: Iterable[str]) -> Meaning:
    """What the values of a column are taken for.

    In this order: variants that differ in case and spaces only are one value, the one met most often;
    numbers with a decimal comma get a point and whole ones lose their ``.0``, where all of the column
    are numbers; grades (``II``, ``Grade 3``, ``G2``, ``WHO IV``) become 1 to 4 where the header or the
    values call them grades. Plain numbers stay as they are: a code 1 is not known to be a grade 1.

    Examples
    --------
    >>> dict(meaning("who_grade", ["II", "Grade 3", "4", "4.0"]).values)
    {'II': '2', 'Grade 3': '3', '4': '4', '4.0': '4'}
    """
    counts = Counter(value for cell in cells if (value := known(cell)))
    spellings: dict[str, list[str]] = defaultdict(list)
    for value, _ in counts.most_common():
        spellings[" ".join(value.casefold().split())].append(value)
    kept = {value: same[0] for same in spellings.values() for value in same}
    notes = [
        f"{column}: {' and '.join(map(repr, same))} are one value"
        for same in spellings.values()
        if len(same) > 1
    ]
    numbers = _numbers(kept.values())
    kept = {value: numbers.get(each, each) for value, each in kept.items()}
    grades = _grades(column, list(dict.fromkeys(kept.values())))
    if changed := {each: grade for each, grade in grades.items() if each != grade}:
        told = ", ".join(f"{each} as {grade}" for each, grade in sorted(changed.items()))
        notes.append(f"{column}: grades are kept as numbers ({told})")
    kept = {value: grades.get(each, each) for value, each in kept.items()}
    notes += (f"{column}: {a!r} and {b!r} look like one value" for a, b in _alike(sorted(set(kept.values()))))
    return Meaning({value: kept[value] for value in counts}, tuple(notes))


def _numbers(values: Iterable[str]) -> dict[str, str]:
    """Numbers with a comma, or with a fraction of zero, as others write them; if all values are such."""
    values = set(values)
    if values and all(_COMMA.fullmatch(value) for value in values):
        return {value: value.replace(",", ".") for value in values}
    if values and all(_WHOLE.fullmatch(value) for value in values):
        return {value: value.partition(".")[0] for value in values}
    return {}


def _grades(column: str, values: Sequence[str]) -> dict[str, str]:
    """The values that are grades, and their numbers; none where they are something else."""
    found = {value: match for value in values if (match := _GRADE.fullmatch(value.strip()))}
    spans = {
        value
        for value in values
        if value not in found and all(_GRADE.fullmatch(part) for part in _SPAN.split(value.strip()))
    }
    called = _GRADED.search(column) is not None
    worded = {v for v, match in found.items() if any(c.isalpha() or c == "°" for c in match["word"])}
    roman = {v for v, match in found.items() if match["grade"].isalpha()}
    whole = len(found) + len(spans) == len(values)
    scale = whole and (called or worded or (roman == found.keys() and len(found) > 1))
    if not (scale or called):
        return {}
    return {
        value: GRADES[match["grade"].lower()]
        for value, match in found.items()
        if scale or value in worded or (called and value in roman)
    }


def _alike(values: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of words that differ in an s at the end or in marks between letters."""
    plain: dict[str, str] = {}
    pairs = []
    for value in values[:1000]:
        letters = "".join(c for c in value.casefold() if c.isalnum())
        if not any(c.isalpha() for c in letters):
            continue
        if (other := plain.setdefault(letters.removesuffix("s"), value)) != value:
            pairs.append((other, value))
    return pairs
