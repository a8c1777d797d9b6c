"""How the rows of tables find the persons, visits and files that a discovery found.

**The key is found by its values.** Of each column it is counted how many of its cells are a person's id,
a visit's, or a file's, to the letter or but for case, separators, zeros before numbers, or a prefix that
all ids share (:mod:`indexer.labels.spelling`). The column in which most are found names whom a row is
about. Where persons are found and several rows are about one, a second column may tell their visits.

**A lax agreement is believed only where it is unambiguous**: an id that two persons could have, or two
ids that one person could have, agree strictly or not at all. Plain numbers agree laxly only in a column
whose header says that it holds ids.

**A table may merge persons, never split one**: a row that names a file of one, a folder that is called
like a participant, or an id that others continue (``TCGA-02-0006`` and ``TCGA-02-0006_lesion-1``) say
whose the images are.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from indexer.errors import LabelsError
from indexer.labels.columns import identifies, is_image, reveals
from indexer.labels.spelling import (
    FOLDED,
    PADDED,
    PADDED_SUFFIX,
    SUFFIX,
    Spellings,
    Words,
    folded,
    tails,
    unpadded,
)
from indexer.labels.table import Table
from indexer.labels.values import known, meaning
from indexer.text import printable

PATIENT_COLUMNS = ("participantid", "patientid", "subjectid", "participant", "patient", "subject")
"""Headers (in any case, without separators) of a column that names patients; the first that is there."""

FILE_COLUMNS = ("file", "filename", "filepath", "path", "image")
"""Headers (likewise) of a column that names files."""

_IDS = re.compile(r"ids?|patients?|subjects?|participants?|persons?|cases?|pids?|mrn|pseudonym")
_PERSONS = re.compile(r"\b(patient|subject|participant|person|case|pid)s?\b")
_VISITS = re.compile(
    r"visits?|sessions?|ses|time ?points?|tp|time|dates?|day|weeks?|months?|scan|exam|examination|study|stage"
    r"|follow ?up|fu|phase"
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+")
_SERIES = re.compile(r"series(instance)?uid")
_END = re.compile(r"^(\.\./)*")
_UID = re.compile(r"[12](\.\d+){4,}")
_LAST_WORD = re.compile(r"[-_ ][^-_ ]*$")

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


@dataclass(frozen=True)
class Labels:
    """What tables say of persons and visits.

    Attributes
    ----------
    columns : tuple of str
        Names of the labels.
    persons : mapping
        Labels by person.
    visits : mapping
        Labels by person and visit, as the sources name them, where a row is about the visit.
    """

    columns: tuple[str, ...] = ()
    persons: Mapping[Person, Mapping[str, str]] = field(default_factory=dict)
    visits: Mapping[Visit, Mapping[str, str]] = field(default_factory=dict)

    def of(self, patient: str) -> dict[str, str]:
        """A patient's known labels; empty where no table knows the patient."""
        return dict(self.persons.get(patient, {}))

    def of_visit(self, patient: str, visit: str) -> dict[str, str]:
        """The known labels of a visit alone; empty where no row is about it."""
        return dict(self.visits.get((patient, visit), {}))

    def of_case(self, patient: str, visit: str) -> dict[str, str]:
        """A patient's labels, overlaid by the visit's."""
        return self.of(patient) | self.of_visit(patient, visit)


@dataclass(frozen=True)
class Joined:
    """Tables and sources, brought together.

    Attributes
    ----------
    labels : Labels
        By the patients that hold after `patients` was obeyed.
    patients : mapping
        The patient of a source, by its path, where a table says another than discovery found.
    notes : tuple of str
        By which column a table was joined, how many of its rows, what was normalised, dropped or clashes.
    unfit : tuple of Table
        Those that fit nothing.
    """

    labels: Labels = field(default_factory=Labels)
    patients: Mapping[Path, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unfit: tuple[Table, ...] = ()


@dataclass(frozen=True)
class _Match:
    """A column as the key of a table.

    Attributes
    ----------
    column : int
    targets : dict
        By row, whom it is about.
    strict, lax : int
        How many persons and visits are met strictly, and at all.
    merged : dict
        By the path of a source, the patient whose it is by the table.
    visits : int, optional
        The column that tells the visits of persons.
    missing : tuple of str
        Cells that mean nobody.
    ambiguous : tuple of str
        Cells that might mean several, or mean one whom others mean too.
    """

    column: int
    targets: Mapping[int, frozenset[Target]]
    strict: int = 0
    lax: int = 0
    merged: Mapping[Path, str] = field(default_factory=dict)
    visits: int | None = None
    missing: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()


def join(tables: Sequence[Table], sources: Sequence[Discovered]) -> Joined:
    """Find whom the rows of tables are about.

    Parameters
    ----------
    tables : sequence of Table
        Where two that the user named say different things, the later one holds; where others do, none.
    sources : sequence of Discovered

    Returns
    -------
    Joined

    Raises
    ------
    LabelsError
        If two columns of a table that the user named fit equally well, and differently; or a row of one
        fits two files.
    """
    patients: dict[Path, str] = {}
    unfit: list[Table] = []
    fitting: list[tuple[Table, _Match]] = []
    notes: list[str] = []
    below = _below({table.path.parent for table in tables}, sources)
    everything = _Found(sources)
    for table in tables:
        scope = below[table.path.parent]
        whole = table.given or not scope or len(scope) == len(sources)
        match = _key(table, everything if whole else _Found(scope), notes)
        if match is None and not whole:
            match = _key(table, everything, notes)
        if match is None:
            unfit.append(table)
        else:
            fitting.append((table, match))
    fitting = _best_sheets(fitting, notes)
    for _, match in fitting:
        patients.update(match.merged)
    values = _Values()
    told: dict[tuple[str, ...], list[tuple[Table, list[str]]]] = defaultdict(list)
    for rank, (table, match) in enumerate(fitting, 1):
        about = (not table.given and below[table.path.parent]) or sources
        moved = _moved(about, patients)
        said = _read(table, match, moved, values, rank if table.given else 0)
        told[table.header].append((table, [*_coverage(table, match, about), *said]))
    for family in told.values():
        for table, said in family[:1] if len(family) > 2 else family:
            notes += (f"{table.name}: {note}" for note in said)
        if len(family) > 2:
            notes.append(f"{family[0][0].name}: {len(family) - 1} more tables like it are joined")
    labels, clashes = values.settled()
    return Joined(labels, patients, tuple(map(printable, (*notes, *clashes))), tuple(unfit))


@dataclass(frozen=True)
class Mentioned:
    """What tables speak of, before anything is joined.

    Attributes
    ----------
    files : frozenset of str
        Names, without folders.
    patients : frozenset of str
        Ids, without case and separators.
    """

    files: frozenset[str] = frozenset()
    patients: frozenset[str] = frozenset()

    def file(self, file: Path) -> bool:
        """Whether a row is about a file of this name."""
        return file.name in self.files

    def folder(self, folder: Path) -> bool:
        """Whether a patient is called like this folder."""
        return _plain(folder.name) in self.patients


def mentions(tables: Iterable[Table]) -> Mentioned:
    """The files and patients that tables speak of."""
    files: set[str] = set()
    patients: set[str] = set()
    for table in tables:
        for name, cells in zip(table.header, table.columns, strict=True):
            if sum(map(is_image, cells)) * 2 > len(cells):
                files.update(_posix(cell).name for cell in cells if known(cell))
            elif _plain(name) in PATIENT_COLUMNS:
                patients.update(_plain(cell) for cell in cells if known(cell))
    return Mentioned(frozenset(files), frozenset(patients))


class _Found:
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
                forms.append((f"{person}_{_rest(person, visit)}", (person, visit), len(person)))
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
                stems[_plain(_stem(source.files[0].name))].add(target(source))
        self.stems = stems

    def find(self, cell: str, laxest: int) -> tuple[int, frozenset[Target]]:
        """Whom an id means, and how strictly; several are an ambiguity."""
        level, persons = self.persons.find(cell, laxest)
        at, visits = self.visits.find(cell, laxest)
        if visits and (not persons or at < level):
            return at, frozenset(visits)
        if persons:
            return level, frozenset((person, None) for person in persons)
        return FOLDED, frozenset(self.stems.get(_plain(cell), ()))

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
            names = [(form, v, None) for v in self.named[person] for form in (v, _rest(person, v))]
            self._visits_of[person] = Spellings(names)
        _, found = self._visits_of[person].find(cell, laxest)
        if not found and (day := _day(cell)):
            found = {v for v in self.named[person] if _day(_rest(person, v)) == day}
        return next(iter(found)) if len(found) == 1 else None


def target(source: Discovered) -> Target:
    """The visit that a source is of, or the person where it has no name."""
    return source.patient_id, source.study_id if source.study_id not in ("", source.patient_id) else None


def renamed(visit: str, person: Person, patient: Person) -> str:
    """The name of a person's visit when they are found to be another patient."""
    return patient + visit.removeprefix(person) if visit.startswith(person) else visit


def _under(source: Discovered, patient: Person) -> Target:
    """Whom a source is about when it is of this patient."""
    visit = target(source)[1]
    return patient, visit and renamed(visit, source.patient_id, patient)


def _key(table: Table, found: _Found, notes: list[str]) -> _Match | None:
    """The column that names whom the rows are about, and whom."""
    if not table.given and any(_SERIES.fullmatch("".join(folded(name))) for name in table.header):
        return None  # a list of what was downloaded
    columns = [
        i
        for i, name in enumerate(table.header)
        if table.key is None or name.casefold() == table.key.casefold()
    ]
    matches = [match for i in columns if (match := _matched(table, i, found)).lax]
    if not matches:
        return None
    best = max(matches, key=lambda m: (m.strict, m.lax, _rank(table.header[m.column])))
    score = best.strict, best.lax, _rank(table.header[best.column])
    rivals = [m for m in matches if (m.strict, m.lax, _rank(table.header[m.column])) == score]
    if any(m.targets != best.targets for m in rivals):
        what = " and ".join(repr(table.header[m.column]) for m in rivals)
        remedy = f"say which it is: --labels {table.path.name}:{table.header[best.column]}"
        reason = f"its columns {what} name the patients equally well, and differently"
        if table.given:
            raise LabelsError(table.path, reason, remedy)
        notes.append(f"{table.name}: not joined, since {reason}; {remedy}")
        return None
    if not table.given and not best.strict:
        cells = {cell for cell in table.columns[best.column] if known(cell)}
        if 2 * best.lax < min(len(cells), len(found.of_person)):
            return None
    return _with_visits(table, best, found)


def _matched(table: Table, column: int, found: _Found) -> _Match:
    """Whom the cells of a column mean."""
    cells = table.columns[column]
    header = table.header[column]
    rows: dict[str, list[int]] = defaultdict(list)
    for i, cell in enumerate(cells):
        if known(cell):
            rows[cell].append(i)
    if 2 * sum(map(is_image, rows)) > len(rows) or _plain(header) in FILE_COLUMNS:
        match = _by_file(table, column, rows, found)
        if match.lax:
            return match
    ids = _says_id(header) or table.key is not None
    if not ids and _counts_up(cells):
        return _Match(column, {})
    no_person = _says_visit(header) and not ids
    of_cell: dict[str, tuple[int, Target]] = {}
    ambiguous = []
    for cell in rows:
        digits = any(map(str.isdigit, cell))
        if not ids and not digits:
            continue
        bare = cell.replace(".", "").isdigit() and not ids
        level, targets = found.find(cell, FOLDED if bare else PADDED_SUFFIX)
        if no_person:
            targets = frozenset(target for target in targets if target[1] is not None)
        if len(targets) == 1:
            of_cell[cell] = level + bare * SUFFIX, next(iter(targets))
        elif targets:
            ambiguous.append(cell)
    _reversed(rows, found, of_cell, ids)
    if not _PERSONS.search(_spaced(header)) and 2 * len(rows) <= sum(map(len, rows.values())):
        # a number that many rows share, such as a site's, tells no patient
        of_cell = {c: held for c, held in of_cell.items() if held[0] < SUFFIX or not c.isdigit()}
    ambiguous += _rivals(of_cell)
    targets_of = {cell: {target} for cell, (_, target) in of_cell.items()}
    merged: dict[Path, str] = {}
    if _plain(header) in PATIENT_COLUMNS or table.key is not None:
        merged = _continued(table, rows, found, {person for _, (person, _) in of_cell.values()})
        for patient in merged.values():
            targets_of.setdefault(patient, {(patient, None)})
    strict = {target for level, target in of_cell.values() if level <= PADDED}
    return _Match(
        column,
        {i: frozenset(targets) for cell, targets in targets_of.items() for i in rows[cell]},
        len(strict),
        len({target for _, target in of_cell.values()} | {(p, None) for p in merged.values()}),
        merged,
        None,
        tuple(cell for cell in rows if cell not in targets_of and cell not in ambiguous),
        tuple(ambiguous),
    )


def _reversed(
    rows: Mapping[str, object], found: _Found, of_cell: dict[str, tuple[int, Target]], ids: bool
) -> None:
    """Add the cells that have a prefix which the ids of those who were found lack."""
    met = {target for _, target in of_cell.values()}
    cut = {
        cell: ends
        for cell in rows
        if cell not in of_cell and (ids or any(map(str.isdigit, cell))) and (ends := tails(cell))
    }
    fronts = Counter(front for ends in cut.values() for front in set(ends.values()))
    for cell, ends in cut.items():
        for tail, front in ends.items():
            # what only one cell begins with may be part of its name
            if fronts[front] > 1 or len(rows) == 1:
                level, targets = found.spelled(tail)
                if len(targets) == 1 and not targets <= met:
                    of_cell[cell] = level, next(iter(targets))
                    break


def _rivals(of_cell: dict[str, tuple[int, Target]]) -> list[str]:
    """Take out, and give, cells that mean someone less strictly than, or else as laxly as, another does."""
    cells: dict[Target, list[str]] = defaultdict(list)
    for cell, (_, target) in of_cell.items():
        cells[target].append(cell)
    out = []
    for same in cells.values():
        best = max(min(of_cell[cell][0] for cell in same), FOLDED)
        kept = [cell for cell in same if of_cell[cell][0] <= best]
        if best > FOLDED and len({folded(cell) for cell in kept}) > 1:
            kept = []
        out += [cell for cell in same if cell not in kept]
    for cell in out:
        del of_cell[cell]
    return out


def _continued(
    table: Table, rows: Mapping[str, object], found: _Found, met: Collection[Person]
) -> dict[Path, str]:
    """Sources of persons whom no cell means: whose they are by a folder's name, or by how their ids begin."""
    patients: dict[str, set[str]] = defaultdict(set)
    for cell in rows:
        patients[_plain(cell)].add(cell)
    only = {plain: next(iter(cells)) for plain, cells in patients.items() if len(cells) == 1}
    merged = {}
    for person, sources in found.of_person.items():
        if person in met:
            continue
        for source in sources:
            names = [
                *_folders(source, table.path.parent),
                *_beginnings(source.study_id),
                *_beginnings(person),
            ]
            if (
                patient := next((only[p] for name in names if (p := _plain(name)) in only), None)
            ) is not None:
                merged[source.path] = patient
    return merged


def _folders(source: Discovered, top: Path) -> Iterator[str]:
    """Names of the folders above a source, the nearest first, below that of the table."""
    for folder in source.files[0].absolute().parents:
        if folder == top:
            return
        yield folder.name


def _beginnings(name: str) -> Iterator[str]:
    """An id without its last word, its last two, …; as long as a digit is left."""
    while (shorter := _LAST_WORD.sub("", name)) != name and any(map(str.isdigit, shorter)):
        yield shorter
        name = shorter


def _by_file(table: Table, column: int, rows: Mapping[str, list[int]], found: _Found) -> _Match:
    """Whose the files are that a column names.

    A row's file is looked for relative to the table's folder. Where it is not there, the row is for a
    file whose path ends like it; at last for one of its bare name, if no other row has the same.
    """
    home = table.path.parent
    plain = {cell: cell.replace("\\", "/") for cell in rows}
    by_path = {os.path.normpath(home / file): cell for cell, file in plain.items()}
    by_end = {_END.sub("", os.path.normpath(file)): cell for cell, file in plain.items()}
    names = Counter(PurePosixPath(file).name for file in plain.values())
    by_name = {name: cell for cell, file in plain.items() if names[name := PurePosixPath(file).name] == 1}
    there = {cell: home / file for cell, file in plain.items() if (home / file).exists()}

    def row_of(file: Path) -> str | None:
        if (cell := by_path.get(str(file))) is not None:
            return cell
        ends = ("/".join(file.parts[i:]) for i in range(1, len(file.parts)))
        for cell in filter(None, (*map(by_end.get, ends), by_name.get(file.name))):
            if cell not in there or (file.exists() and there[cell].samefile(file)):
                return cell
        return None

    sources: dict[str, list[Discovered]] = defaultdict(list)
    for name in names:
        for file, source in found.files.get(name, ()):
            if (cell := row_of(file.absolute())) is not None and source not in sources[cell]:
                sources[cell].append(source)
    ambiguous = [cell for cell, several in sources.items() if len(several) > 1 and cell not in there]
    if ambiguous and table.given:
        first, second = (source.path for source in sources[ambiguous[0]][:2])
        reason = f"its row {ambiguous[0]} fits both {first} and {second}"
        raise LabelsError(table.path, reason, "write the files' paths relative to the table's folder")
    for cell in ambiguous:
        del sources[cell]
    merged = _owners(table, rows, sources, found)
    targets = {
        i: frozenset(_under(s, merged.get(s.path, s.patient_id)) for s in mine)
        for cell, mine in sources.items()
        for i in rows[cell]
        if mine
    }
    met = set().union(*targets.values()) if targets else set()
    missing = tuple(cell for cell in rows if not sources.get(cell))
    return _Match(column, targets, len(met), len(met), merged, None, missing, tuple(ambiguous))


def _owners(
    table: Table, rows: Mapping[str, list[int]], sources: Mapping[str, list[Discovered]], found: _Found
) -> dict[Path, str]:
    """The patients of files, where the table names them too.

    A person of discovery stays whole, unless the table names the patient of every one of their files.
    """
    places = {_plain(name): i for i, name in enumerate(table.header)}
    column = next((places[name] for name in PATIENT_COLUMNS if name in places), None)
    if column is None:
        return {}
    said: dict[Path, str] = {}
    for cell, mine in sources.items():
        patients = {p for i in rows[cell] if (p := known(table.columns[column][i]))}
        if len(patients) > 1:
            reason = f"gives {cell} to a second patient"
            raise LabelsError(table.path, reason, "keep one of its rows")
        for source in mine:
            said.update((source.path, patient) for patient in patients)
    merged: dict[Path, str] = {}
    for of_person in found.of_person.values():
        patients = {said[s.path] for s in of_person if s.path in said}
        if len(patients) == 1:
            merged.update((s.path, next(iter(patients))) for s in of_person)
        elif all(s.path in said for s in of_person):
            merged.update((s.path, said[s.path]) for s in of_person)
    return merged


def _with_visits(table: Table, match: _Match, found: _Found) -> _Match:
    """The match with the visits of persons, where a column names them."""
    about = {
        i: person
        for i, targets in match.targets.items()
        if len(targets) == 1
        for person, visit in targets
        if visit is None and person in found.named
    }
    best: dict[int, str | None] = {}
    chosen = None
    for column, header in enumerate(table.header):
        if column == match.column or not about:
            continue
        says = _says_visit(header)
        cells = {i: cell for i in about if (cell := known(table.columns[column][i]))}
        of_row = {
            i: found.visit_of(about[i], cell, PADDED_SUFFIX if says else FOLDED)
            for i, cell in cells.items()
            if says or not cell.replace(".", "").isdigit()
        }
        hits = [(about[i], visit) for i, visit in of_row.items() if visit is not None]
        fits = hits and 2 * len(hits) >= len(cells) and 2 * len(set(hits)) > len(hits)
        if fits and len(hits) > sum(visit is not None for visit in best.values()):
            best, chosen = of_row, column
    if chosen is None:
        return match
    targets = dict(match.targets)
    for i, visit in best.items():
        # a visit that is not among the images says nothing of the others
        targets[i] = frozenset() if visit is None else frozenset({(about[i], visit)})
    return replace(match, targets=targets, visits=chosen)


def _best_sheets(fitting: Sequence[tuple[Table, _Match]], notes: list[str]) -> list[tuple[Table, _Match]]:
    """Of the sheets of one workbook those that join best."""
    most: dict[Path, tuple[int, int]] = {}
    for table, match in fitting:
        most[table.path] = max(most.get(table.path, (0, 0)), (match.strict, match.lax))
    kept = []
    for table, match in fitting:
        if (match.strict, match.lax) == most[table.path]:
            kept.append((table, match))
        else:
            notes.append(f"{table.name}: another sheet joins better, so it is left out")
    return kept


class _Values:
    """Values by person or visit, as tables give them one after the other."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._held: dict[Target, dict[str, dict[int, set[str]]]] = defaultdict(lambda: defaultdict(dict))

    def name(self, column: str) -> str:
        """What a column is called; spellings that differ in case and separators are one."""
        return self._names.setdefault(column.casefold(), column)

    def add(self, target: Target, column: str, value: str, rank: int) -> None:
        """Take a value from a table of this rank; "" is unknown."""
        self._held[target][column].setdefault(rank, set()).add(value)

    def settled(self) -> tuple[Labels, list[str]]:
        """The labels: of the highest rank that says anything, if that says one thing."""
        persons: dict[Person, dict[str, str]] = {}
        visits: dict[Visit, dict[str, str]] = {}
        clashing: dict[str, list[str]] = defaultdict(list)
        replaced: Counter[str] = Counter()
        for (person, visit), columns in self._held.items():
            row = persons.setdefault(person, {}) if visit is None else visits.setdefault((person, visit), {})
            for column, ranks in columns.items():
                # a table that was named stands before those that were found, be it that it knows nothing
                named = {rank: values for rank, values in ranks.items() if rank} or ranks
                told = [values - {""} for _, values in sorted(named.items(), reverse=True)]
                said = next(filter(None, told), set())
                if len(said) == 1:
                    row[column] = next(iter(said))
                    replaced[column] += any(values - {""} not in (set(), said) for values in ranks.values())
                elif said:
                    clashing[column].append(person if visit is None else f"{person} {_rest(person, visit)}")
        notes = [
            f"{column} has several values for {len(who)} patients, who stay without it: {listed(who)}"
            for column, who in clashing.items()
        ]
        notes += (
            f"{column}: of {n} patients tables say different things; the one named last holds"
            for column, n in replaced.items()
            if n
        )
        return Labels(tuple(self._names.values()), persons, visits), notes


def _moved(sources: Sequence[Discovered], patients: Mapping[Path, str]) -> dict[Person, set[Person]]:
    """The patients that persons turned out to be."""
    moved: dict[Person, set[Person]] = defaultdict(set)
    for source in sources if patients else ():
        moved[source.patient_id].add(patients.get(source.path, source.patient_id))
    return moved


def _read(
    table: Table, match: _Match, moved: Mapping[Person, Collection[Person]], values: _Values, rank: int
) -> list[str]:
    """Add what a table says; tell what was made of its columns."""
    dropped = []
    notes: list[str] = []
    own = set(match.merged.values())
    for column, (name, cells) in enumerate(zip(table.header, table.columns, strict=True)):
        key = column in (match.column, match.visits) or _plain(name) in (*PATIENT_COLUMNS, *FILE_COLUMNS)
        if not name or key:
            continue
        if identifies(name) or reveals(cells):
            dropped.append(name)
            continue
        meant = meaning(name, cells)
        notes += meant.notes
        name = values.name(name)
        for i, targets in match.targets.items():
            value = meant.values.get(cells[i], "")
            if value or rank:
                for person, visit in targets:
                    for now in [person] if person in own else moved.get(person, [person]):
                        values.add((now, visit and renamed(visit, person, now)), name, value, rank)
    if dropped:
        notes.append(f"not kept, since they may identify people: {', '.join(dropped)}")
    return notes


def _coverage(table: Table, match: _Match, scope: Sequence[Discovered]) -> Iterator[str]:
    """How much of a table and of the images met."""
    rows = sum(map(bool, match.targets.values()))
    by = table.header[match.column]
    if match.visits is not None:
        by += f" and {table.header[match.visits]}"
    patients = list(dict.fromkeys(match.merged.get(s.path, s.patient_id) for s in scope))
    met = {person for targets in match.targets.values() for person, _ in targets}
    without = [patient for patient in patients if patient not in met]
    few = ", fewer than half" if 2 * (len(patients) - len(without)) < len(patients) else ""
    yield (
        f"by column {by} joined {rows} of {len(table.rows)} rows to "
        f"{len(patients) - len(without)} of {len(patients)} patients{few}"
    )
    if match.ambiguous:
        several = f"{len(match.ambiguous)} rows might mean several patients and are left out"
        yield f"{several}: {listed(match.ambiguous)}"
    if match.missing:
        yield f"{len(match.missing)} rows without data: {listed(match.missing)}"
    if without:
        yield f"{len(without)} patients without a row: {listed(without)}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first of some names."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _below(folders: Collection[Path], sources: Sequence[Discovered]) -> dict[Path, list[Discovered]]:
    """The sources below each of the folders."""
    wanted = {str(folder): folder for folder in folders}
    found: dict[Path, list[Discovered]] = {folder: [] for folder in folders}
    for source in sources:
        above = str(source.files[0].parent)
        while True:
            if above in wanted:
                found[wanted[above]].append(source)
            if (higher := above.rpartition("/")[0]) == above:
                break
            above = higher
    return found


def _rank(header: str) -> int:
    """How well a header says that its column names whom the rows are about."""
    plain = _plain(header)
    if plain in PATIENT_COLUMNS:
        return 10 - PATIENT_COLUMNS.index(plain)
    return 2 if plain in FILE_COLUMNS else int(_says_id(header))


def _says_id(header: str) -> bool:
    return any(_IDS.fullmatch(word) for word in (*_words(header), _plain(header)))


def _says_visit(header: str) -> bool:
    return any(_VISITS.fullmatch(word) for word in (*_words(header), _spaced(header)))


def _counts_up(cells: Sequence[str]) -> bool:
    """Whether cells are 0, 1, 2, … or 1, 2, 3, …: the numbers of the rows."""
    return len(cells) > 1 and any(
        list(cells) == [str(i) for i in range(start, start + len(cells))] for start in (0, 1)
    )


def _words(header: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(header)]


def _spaced(header: str) -> str:
    return " ".join(_words(header))


def _plain(text: str) -> str:
    return " ".join(folded(text)) if text else ""


def _posix(cell: str) -> PurePosixPath:
    return PurePosixPath(cell.replace("\\", "/"))


def _stem(name: str) -> str:
    return name[:-7] if name.lower().endswith(".nii.gz") else PurePosixPath(name).stem


def _rest(person: str, visit: str) -> str:
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
