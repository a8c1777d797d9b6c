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

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indexer.labels.columns import identifies, is_image, reveals
from indexer.labels.found import Discovered, Found, Person, Target, Visit, renamed, rest_of
from indexer.labels.headers import FILE_COLUMNS, PATIENT_COLUMNS, simple
from indexer.labels.key import Match, key_of, posix
from indexer.labels.table import Table
from indexer.labels.values import known, meaning
from indexer.text import printable


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
    fitting: list[tuple[Table, Match]] = []
    notes: list[str] = []
    below = _below({table.path.parent for table in tables}, sources)
    everything = Found(sources)
    for table in tables:
        scope = below[table.path.parent]
        whole = table.given or not scope or len(scope) == len(sources)
        match = key_of(table, everything if whole else Found(scope), notes)
        if match is None and not whole:
            match = key_of(table, everything, notes)
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
    if left := [table.name for table in unfit if table.given or table.path.suffix.lower() != ".json"]:
        notes.append(f"{len(left)} tables fit no image: {listed(left)}")
    labels, clashes = values.settled(_shown((patients.get(s.path, s.patient_id), s) for s in sources))
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
        return simple(folder.name) in self.patients


def mentions(tables: Iterable[Table]) -> Mentioned:
    """The files and patients that tables speak of."""
    files: set[str] = set()
    patients: set[str] = set()
    for table in tables:
        for name, cells in zip(table.header, table.columns, strict=True):
            if sum(map(is_image, cells)) * 2 > len(cells):
                files.update(posix(cell).name for cell in cells if known(cell))
            elif simple(name) in PATIENT_COLUMNS:
                patients.update(simple(cell) for cell in cells if known(cell))
    return Mentioned(frozenset(files), frozenset(patients))


def _best_sheets(fitting: Sequence[tuple[Table, Match]], notes: list[str]) -> list[tuple[Table, Match]]:
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

    def settled(self, shown: Mapping[Person, str]) -> tuple[Labels, list[str]]:
        """The labels, of the highest rank that says anything, if that says one thing; and notes.

        Parameters
        ----------
        shown : mapping
            What notes call the persons.
        """
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
                    called = shown.get(person, person)
                    clashing[column].append(called if visit is None else f"{called} {rest_of(person, visit)}")
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
    table: Table, match: Match, moved: Mapping[Person, Collection[Person]], values: _Values, rank: int
) -> list[str]:
    """Add what a table says; tell what was made of its columns."""
    dropped = []
    notes: list[str] = []
    own = set(match.merged.values())
    for column, (name, cells) in enumerate(zip(table.header, table.columns, strict=True)):
        key = column in (match.column, match.visits) or simple(name) in (*PATIENT_COLUMNS, *FILE_COLUMNS)
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


def _coverage(table: Table, match: Match, scope: Sequence[Discovered]) -> Iterator[str]:
    """How much of a table and of the images met."""
    rows = sum(map(bool, match.targets.values()))
    by = table.header[match.column]
    if match.visits is not None:
        by += f" and {table.header[match.visits]}"
    shown = _shown((match.merged.get(s.path, s.patient_id), s) for s in scope)
    patients = list(shown)
    met = {person for targets in match.targets.values() for person, _ in targets}
    without = [shown[patient] for patient in patients if patient not in met]
    few = ", fewer than half" if 2 * (len(patients) - len(without)) < len(patients) else ""
    yield (
        f"by column {by} joined {rows} of {len(table.rows)} rows to "
        f"{len(patients) - len(without)} of {len(patients)} patients{few}"
    )
    if match.ambiguous:
        several = f"{len(match.ambiguous)} rows might mean several patients and are left out"
        yield f"{several}: {_lines(table, match.column, match.ambiguous)}"
    if match.missing:
        yield f"{len(match.missing)} rows without data: {_lines(table, match.column, match.missing)}"
    if without:
        yield f"{len(without)} patients without a row: {listed(without)}"


def _lines(table: Table, column: int, cells: Collection[str]) -> str:
    """Where some cells stand: what is written there may name people who have nothing to do with the data."""
    held = set(cells)
    return f"line {listed([str(line) for line, row in table.rows if row[column] in held])}"


def _shown(owned: Iterable[tuple[Person, Discovered]]) -> dict[Person, str]:
    """What notes call persons: as paths of files do, which are told anyway; else by the path of an image."""
    shown: dict[Person, str] = {}
    for person, source in owned:
        shown.setdefault(person, person if person in str(source.path) else str(source.path))
    return shown


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
