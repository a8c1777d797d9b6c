"""The column of a table that names whom its rows are about, and whom."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from indexer.errors import LabelsError
from indexer.labels.columns import is_image
from indexer.labels.found import Discovered, Found, Person, Target, renamed, target
from indexer.labels.headers import (
    FILE_COLUMNS,
    PATIENT_COLUMNS,
    PERSONS,
    counts_up,
    rank,
    says_id,
    says_visit,
    simple,
    spaced,
)
from indexer.labels.spelling import FOLDED, PADDED, PADDED_SUFFIX, SUFFIX, Words, folded, tails, unpadded
from indexer.labels.table import Table
from indexer.labels.values import known

_SERIES = re.compile(r"series(instance)?uid")


_END = re.compile(r"^(\.\./)*")


_LAST_WORD = re.compile(r"[-_ ][^-_ ]*$")


@dataclass(frozen=True)
class Match:
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


def _under(source: Discovered, patient: Person) -> Target:
    """Whom a source is about when it is of this patient."""
    visit = target(source)[1]
    return patient, visit and renamed(visit, source.patient_id, patient)


def key_of(table: Table, found: Found, notes: list[str]) -> Match | None:
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
    best = max(matches, key=lambda m: (m.strict, m.lax, rank(table.header[m.column])))
    score = best.strict, best.lax, rank(table.header[best.column])
    rivals = [m for m in matches if (m.strict, m.lax, rank(table.header[m.column])) == score]
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


def _matched(table: Table, column: int, found: Found) -> Match:
    """Whom the cells of a column mean."""
    cells = table.columns[column]
    header = table.header[column]
    rows: dict[str, list[int]] = defaultdict(list)
    for i, cell in enumerate(cells):
        if known(cell):
            rows[cell].append(i)
    if 2 * sum(map(is_image, rows)) > len(rows) or simple(header) in FILE_COLUMNS:
        match = _by_file(table, column, rows, found)
        if match.lax:
            return match
    ids = says_id(header) or table.key is not None
    if not ids and counts_up(cells):
        return Match(column, {})
    no_person = says_visit(header) and not ids
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
    _numbered(header, rows, found, of_cell)
    if not PERSONS.search(spaced(header)) and 2 * len(rows) <= sum(map(len, rows.values())):
        # a number that many rows share, such as a site's, tells no patient
        of_cell = {c: held for c, held in of_cell.items() if held[0] < SUFFIX or not c.isdigit()}
    ambiguous += _rivals(of_cell)
    targets_of = {cell: {target} for cell, (_, target) in of_cell.items()}
    merged: dict[Path, str] = {}
    if simple(header) in PATIENT_COLUMNS or table.key is not None:
        merged = _continued(table, rows, found, {person for _, (person, _) in of_cell.values()})
        for patient in merged.values():
            targets_of.setdefault(patient, {(patient, None)})
    strict = {target for level, target in of_cell.values() if level <= PADDED}
    return Match(
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
    rows: Mapping[str, object], found: Found, of_cell: dict[str, tuple[int, Target]], ids: bool
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


def _numbered(
    header: str, rows: Mapping[str, object], found: Found, of_cell: dict[str, tuple[int, Target]]
) -> None:
    """Add bare numbers in a column called like all ids begin: 2 as IXI_ID for IXI002-Guys-0828."""
    persons: dict[Words, set[Person]] = defaultdict(set)
    column = "".join(folded(header))
    for person in found.of_person:
        front, *rest = folded(person) or ("",)
        if not rest or len(front) < 2 or not column.startswith(front) or column == front:
            return
        persons[unpadded(tuple(rest))[:1]].add(person)
    met = {person for _, (person, _) in of_cell.values()}
    for cell in rows:
        if cell not in of_cell and cell.isdigit():
            called = persons.get(unpadded((cell,)), set())
            if len(called) == 1 and not called & met:
                of_cell[cell] = PADDED_SUFFIX, (next(iter(called)), None)


def _rivals(of_cell: dict[str, tuple[int, Target]]) -> list[str]:
    """Take out, and give, cells that mean someone less strictly than, or else as laxly as, another does."""
    cells: dict[Target, list[str]] = defaultdict(list)
    for cell, (_, whom) in of_cell.items():
        cells[whom].append(cell)
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
    table: Table, rows: Mapping[str, object], found: Found, met: Collection[Person]
) -> dict[Path, str]:
    """Sources of persons whom no cell means: whose they are by a folder's name, or by how their ids begin."""
    patients: dict[str, set[str]] = defaultdict(set)
    for cell in rows:
        patients[simple(cell)].add(cell)
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
                patient := next((only[p] for name in names if (p := simple(name)) in only), None)
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


def _by_file(table: Table, column: int, rows: Mapping[str, list[int]], found: Found) -> Match:
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
    return Match(column, targets, len(met), len(met), merged, None, missing, tuple(ambiguous))


def _owners(
    table: Table, rows: Mapping[str, list[int]], sources: Mapping[str, list[Discovered]], found: Found
) -> dict[Path, str]:
    """The patients of files, where the table names them too.

    A person of discovery stays whole, unless the table names the patient of every one of their files.
    """
    places = {simple(name): i for i, name in enumerate(table.header)}
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


def _with_visits(table: Table, match: Match, found: Found) -> Match:
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
        says = says_visit(header)
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


def posix(cell: str) -> PurePosixPath:
    """A path as a cell writes it, on whatever system."""
    return PurePosixPath(cell.replace("\\", "/"))
