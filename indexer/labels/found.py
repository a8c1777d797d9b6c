"""What discovery found, by the ids that tables may use for it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from indexer.labels.headers import simple
from indexer.labels.spelling import FOLDED, PADDED_SUFFIX, SUFFIX, Spellings, Words, unpadded

_UID = re.compile(r"[12](\.\d+){4,}")


Person = str


Visit = tuple[str, str]


Target = tuple[Person, str | None]
"""Whom a row is about: a person, or (with a visit's name) a visit of one."""


class Discovered(Protocol):
    """What the join has to know of a source that discovery found."""

    @property
    def path(self) -> Path:
        """Unique."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that hold the image."""
        ...

    @property
    def patient_id(self) -> str:
        """The person."""
        ...

    @property
    def study_id(self) -> str:
        """The visit; "" or the person's id where there is only one that has no name."""
        ...


class Found:
    """What was discovered, by the ids that tables may use."""

    def __init__(self, sources: Sequence[Discovered]) -> None:
        self.sources = sources
        self.of_person: dict[Person, list[Discovered]] = defaultdict(list)
        for source in sources:
            self.of_person[source.patient_id].append(source)
        self.persons = Spellings((person, person, None) for person in self.of_person)
        self.named: dict[Person, list[str]] = {
            person: names
            for person, mine in self.of_person.items()
            if (names := list(dict.fromkeys(s.study_id for s in mine if s.study_id not in ("", person))))
        }
        owners = Counter(visit for names in self.named.values() for visit in names)
        forms: list[tuple[str, Visit, int | None]] = []
        for person, names in self.named.items():
            for visit in names:
                forms.append((f"{person}_{rest_of(person, visit)}", (person, visit), len(person)))
                if len(self.of_person) == 1 or (owners[visit] == 1 and _UID.fullmatch(visit)):
                    forms.append((visit, (person, visit), 0))
        self.visits = Spellings(forms)
        self._visits_of: dict[Person, Spellings[str]] = {}
        stems: dict[str, set[Target]] = defaultdict(set)
        self.files: dict[str, list[tuple[Path, Discovered]]] = defaultdict(list)
        for source in sources:
            for file in source.files:
                self.files[file.name].append((file, source))
            if len(source.files) == 1:
                stems[simple(_stem(source.files[0].name))].add(target(source))
        below: dict[str, set[Target]] = defaultdict(set)
        for source in sources:
            for folder in source.files[0].parts[:-1]:
                if len(folder) > 3 and any(map(str.isdigit, folder)):
                    below[simple(folder)].add(target(source))
        for folder, targets in below.items():
            if len(targets) == 1 and _UID.fullmatch(next(iter(targets))[1] or ""):
                stems[folder] |= targets  # of an examination that has no other name, or of one series of it
        self.stems = stems

    def find(self, cell: str, laxest: int) -> tuple[int, frozenset[Target]]:
        """Whom an id means, and how strictly; several are an ambiguity."""
        level, persons = self.persons.find(cell, laxest)
        at, visits = self.visits.find(cell, laxest)
        if visits and (not persons or at < level):
            return at, frozenset(visits)
        if persons:
            return level, frozenset((person, None) for person in persons)
        return FOLDED, frozenset(self.stems.get(simple(cell), ()))

    def spelled(self, tail: Words) -> tuple[int, frozenset[Target]]:
        """Whom the end of an id means, if they have no more than it."""
        for level, words in ((SUFFIX, tail), (PADDED_SUFFIX, unpadded(tail))):
            persons = self.persons.called(words, level - SUFFIX + FOLDED)
            visits = self.visits.called(words, level - SUFFIX + FOLDED)
            if persons or visits:
                return level, frozenset({*((person, None) for person in persons), *visits})
        return PADDED_SUFFIX, frozenset()

    def visit_of(self, person: Person, cell: str, laxest: int) -> str | None:
        """The visit of a person that a cell names."""
        if person not in self._visits_of:
            names = [(form, v, None) for v in self.named[person] for form in (v, rest_of(person, v))]
            self._visits_of[person] = Spellings(names)
        _, found = self._visits_of[person].find(cell, laxest)
        if not found and (day := _day(cell)):
            found = {v for v in self.named[person] if _day(rest_of(person, v)) == day}
        return next(iter(found)) if len(found) == 1 else None


def target(source: Discovered) -> Target:
    """The visit that a source is of, or the person where it has no name."""
    return source.patient_id, source.study_id if source.study_id not in ("", source.patient_id) else None


def renamed(visit: str, person: Person, patient: Person) -> str:
    """The name of a person's visit when they are found to be another patient."""
    return patient + visit.removeprefix(person) if visit.startswith(person) else visit


def _stem(name: str) -> str:
    return name[:-7] if name.lower().endswith(".nii.gz") else PurePosixPath(name).stem


def rest_of(person: str, visit: str) -> str:
    """A visit's name without its person's."""
    return visit.removeprefix(person).lstrip("_-. @") or visit


def _day(text: str) -> str | None:
    """A date as yyyymmdd, where the order of its day and month is sure."""
    if match := re.fullmatch(r"(\d{4})[-/.]?(\d{2})[-/.]?(\d{2})([T ].*)?", text):
        return "".join(match.groups()[:3])
    if match := re.fullmatch(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})", text):
        first, second = int(match[1]), int(match[3])
        day_first = match[2] == "." or first > 12
        if day_first or second > 12 or first == second:
            day, month = (first, second) if day_first else (second, first)
            return f"{match[4]}{month:02}{day:02}"
    return None
