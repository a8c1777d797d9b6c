"""What each file of a folder is: an image of whom, a copy of one, a map, an outline of what.

Pure: paths go in, decisions come out. Voxels are asked for through a callable, and only where names leave
a doubt: a few examples decide for all files that are called alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import indexer.discovery.roles as roles
import indexer.discovery.vocabulary as words
from indexer.discovery.people import Person, people
from indexer.discovery.roles import Name, Reading, reading, understood
from indexer.discovery.tokens import split
from indexer.discovery.vocabulary import Kind

Path = tuple[str, ...]
"""Names of the folders below the root, and of the file without its extension."""

IMAGE, REGION, IGNORED = "image", "region", "ignored"

EXAMPLES = 3
"""Files of one kind that are looked into."""

STRUCTURAL = ("t1", "t1ce", "t2", "flair")


@dataclass(frozen=True)
class Item:
    """Something that may be an image.

    Attributes
    ----------
    path : tuple of str
    picture : bool
        A single plane from a raster file, which says nothing of a patient.
    channel : str, optional
        The sequence that a description of the data set gives it.
    derived : bool
        It lies in a data set that says that it is derived.
    person : Person, optional
        Whose it is, where a rule states it.
    """

    path: Path
    picture: bool = False
    channel: str | None = None
    derived: bool = False
    person: Person | None = None


@dataclass(frozen=True)
class Decision:
    """What an item is.

    Attributes
    ----------
    role : str
        `IMAGE`, `REGION` or `IGNORED`.
    person : Person, optional
        None of what belongs to nobody.
    sequence : str, optional
    reason : str, optional
        Why it is no image.
    copy : bool
        It would be a further scan: a map, or a copy in another preparation.
    automatic : bool
        Of a region: a program drew it.
    """

    role: str
    person: Person | None = None
    sequence: str | None = None
    reason: str | None = None
    copy: bool = False
    automatic: bool = False


@dataclass
class Layout:
    """What the items of a folder are.

    Attributes
    ----------
    decisions : list of Decision
        One an item.
    doubts : list of str
        What could not be known, and what was assumed.
    alone : int
        Pictures that do not say whose they are.
    """

    decisions: list[Decision]
    doubts: list[str]
    alone: int = 0


Look = Callable[[int, Sequence[int]], str | None]
"""``look(item, images)``: `REGION`, `roles.MASK` or `IMAGE`, by voxels of it and of images of its case."""


@dataclass(frozen=True)
class _Said:
    """What the names of an item say, its own and those of its folders."""

    role: str | None
    sequence: str | None
    preparation: frozenset[str]
    leftover: frozenset[str]
    sure: bool
    automatic: bool
    kind: tuple[str, ...]


def layout(
    items: Sequence[Item],
    above: Sequence[str] = (),
    look: Look = lambda item, images: None,
    *,
    all_images: bool = False,
) -> Layout:
    """Decide what each of the items is.

    Parameters
    ----------
    items : sequence of Item
    above : sequence of str
        Names of the root and of what lies above it, the nearest first.
    look : callable
    all_images : bool
        Take copies and maps as images, too.
    """
    how = reading(item.path for item in items)
    shared = _above_all(items)
    said = [_said(item, how, shared) for item in items]
    said = _freesurfer(items, said)
    own = _outlines_in(items, how)
    said = [
        replace(s, role=roles.REGION, sure=False)
        if s.role == roles.IMAGE and len(item.path) > 1 and item.path[:-1] in own
        else s
        for item, s in zip(items, said, strict=True)
    ]
    whose = _owned(items, said, how, above)
    seen = _looked(items, said, whose.persons, look)
    if any(before.role is None and after.role is not None for before, after in zip(said, seen, strict=True)):
        whose = _owned(items, seen, how, above)  # names of outlines say nothing of who there is
    said, persons, alone = seen, whose.persons, whose.alone
    decisions = [_decided(s, person) for s, person in zip(said, persons, strict=True)]
    if all_images:
        decisions = [replace(d, role=IMAGE, reason=None) if d.copy else d for d in decisions]
    else:
        _leave_copies(decisions, said)
    doubts = list(whose.doubts)
    if alone:
        doubts.append(f"{len(alone)} pictures do not say whose they are: each counts as a patient of its own")
    return Layout(decisions, doubts, len(alone))


@dataclass(frozen=True)
class _Owned:
    """Whose items are, which are pictures that stand for themselves, and what could not be known."""

    persons: list[Person | None]
    alone: frozenset[str]
    doubts: list[str]


def _owned(items: Sequence[Item], said: Sequence[_Said], how: Reading, above: Sequence[str]) -> _Owned:
    """Whose images are by their names; whose the rest is by the images."""
    asked = [i for i, s in enumerate(said) if s.role in (None, roles.IMAGE, roles.MAP, roles.LOCALIZER)]
    asked = [i for i in asked if items[i].person is None]
    alone = frozenset(
        "/".join(items[i].path) for i in asked if items[i].picture and _stands_alone(items[i], said[i], how)
    )
    who = people([items[i].path for i in asked], how, above, single=alone)
    persons: list[Person | None] = [item.person or who.of.get(item.path) for item in items]
    persons = _adopted(items, said, persons, how)
    known = _Cases(items, said, persons, how)
    for i, s in enumerate(said):
        if persons[i] is None:
            persons[i] = known.owner(items[i], s)
    return _Owned(persons, alone, who.doubts)


def _above_all(items: Sequence[Item]) -> int:
    """How many folders all items lie in: their names are of the whole, and no role of what is in it."""
    if len(items) < 2:
        return 0
    first, last = min(item.path[:-1] for item in items), max(item.path[:-1] for item in items)
    ends = min(len(first), len(last))
    return next((n for n in range(ends) if first[n] != last[n]), ends)


def _said(item: Item, how: Reading, shared: int) -> _Said:
    """Put together what the file's name and the folders' names say."""
    own = understood(item.path[-1], how)
    folders = [understood(name, how) for name in reversed(item.path[:-1])]
    role, sequence, sure = own.role, own.sequence, own.sure
    texts = [token.text for token in split(item.path[-1])]
    if item.channel is not None:
        sequence = item.channel
        role = role or roles.IMAGE
    series = any(t.kind is Kind.SERIES for name in item.path[:-1] for t in split(name))
    if role is None and series and texts and texts[-1] in words.SERIES_MAPS:
        role, sure = roles.MAP, True
    if role is None:
        for depth, folder in enumerate(folders):
            texts = [token.text for token in split(folder.text)]
            if words.IMAGES & set(texts):
                if folder.role == roles.REGION:
                    continue  # Images_and_Masks
                if folder.role is None and not folder.id:
                    break  # whatever lies above: images/001
            if folder.role == roles.REGION and (not folder.outline or depth >= len(folders) - shared):
                continue  # Task01_BrainTumour
            if folder.role in (roles.REGION, roles.MASK, roles.MAP, roles.LOCALIZER):
                role, sure, sequence = folder.role, folder.sure, folder.sequence
                break
            if folder.role == roles.IMAGE:
                role, sequence, sure = roles.IMAGE, folder.sequence, True
                break
    elif role in (roles.REGION, roles.MASK) and not sure:
        sure = any(folder.sure and folder.outline for folder in folders[:1])
    preparation = own.preparation.union(*(folder.preparation for folder in folders))
    if item.derived:
        preparation |= {"derived"}
    return _Said(
        role,
        sequence,
        preparation,
        frozenset(own.leftover),
        sure,
        own.automatic or any(folder.automatic for folder in folders),
        _kind(item, own, how),
    )


_FREESURFER = frozenset(
    ["orig", "nu", "t1", "norm", "brain", "brainmask", "aseg", "wm", "filled", "ribbon", "rawavg"]
)


def _freesurfer(items: Sequence[Item], said: list[_Said]) -> list[_Said]:
    """In the folder ``mri`` of a FreeSurfer subject, orig is the T1, and all else is made of it."""
    held: dict[Path, set[str]] = defaultdict(set)
    for item in items:
        if len(item.path) > 1 and item.path[-2] == "mri":
            held[item.path[:-1]].add(item.path[-1].lower())
    subjects = {folder for folder, names in held.items() if "orig" in names and len(names & _FREESURFER) > 2}
    told = list(said)
    for i, item in enumerate(items):
        inside = next((f for f in (item.path[:-1], item.path[:-2]) if f in subjects), None)
        if inside is None or said[i].role not in (None, roles.IMAGE):
            continue
        if item.path[-1] == "orig":
            told[i] = replace(said[i], role=roles.IMAGE, sequence="t1", preparation=frozenset())
        elif said[i].role == roles.IMAGE or item.path[-2] == "orig" or item.path[-1].lower() in _FREESURFER:
            prepared = said[i].preparation | {"freesurfer"}
            role: str | None = roles.MASK if item.path[-1].lower() in ("wm", "filled") else roles.IMAGE
            sequence = said[i].sequence or ("t1" if role == roles.IMAGE else None)
            if item.path[-2] == "orig":
                role, sequence = None, None  # 001 is no person
            told[i] = replace(said[i], role=role, sequence=sequence, preparation=prepared)
    return told


def _kind(item: Item, own: Name, how: Reading) -> tuple[str, ...]:
    """What all files are called that are called alike, but for persons, visits and numbers."""
    name = own.text.replace(own.id, "") if own.id and own.role is not None else own.text
    names = [name, *(n for n in item.path[:-1] if understood(n, how).role or not understood(n, how).id)]
    return tuple(
        t.text for n in names for t in split(n) if t.kind not in (Kind.NUMBER, Kind.VISIT, Kind.SUBJECT)
    )


def _outlines_in(items: Sequence[Item], how: Reading) -> set[Path]:
    """Folders of outlines that are called like their images (``labels/P001_flair``)."""
    found: dict[Path, bool] = {}
    for item in items:
        folder = item.path[:-1]
        if not folder:
            continue
        if folder not in found:
            said = understood(folder[-1], how)
            found[folder] = said.role == roles.REGION and said.outline and not said.id and not said.sequence
        if found[folder] and understood(item.path[-1], how).outline:
            found[folder] = False
    return {folder for folder, outlines in found.items() if outlines}


def _stands_alone(item: Item, said: _Said, how: Reading) -> bool:
    """Whether a picture says of itself at most a number: no sequence, no visit, no person's folder."""
    if said.role == roles.IMAGE and said.sequence in STRUCTURAL:
        return False
    own = understood(item.path[-1], how)
    if (own.visit and own.id) or words.SLICE.fullmatch(item.path[-1]):
        return False
    return not any(words.PERSONS.fullmatch(name) for name in item.path)


def _adopted(
    items: Sequence[Item], said: Sequence[_Said], persons: Sequence[Person | None], how: Reading
) -> list[Person | None]:
    """Files that name no sequence belong to the person in whose folder they lie."""
    folders: dict[Path, Person] = {}
    for item, s, person in zip(items, said, persons, strict=True):
        if person is None or s.role != roles.IMAGE or item.picture:
            continue
        for end in range(len(item.path) - 1, 0, -1):
            name = understood(item.path[end - 1], how)
            if name.id and _begins(name.tokens, _plain(person.patient.rpartition("/")[2])):
                folders[item.path[:end]] = person
                break
    found = list(persons)
    for i, (item, s, person) in enumerate(zip(items, said, persons, strict=True)):
        if person is None or s.role is not None or item.picture:
            continue
        ends = range(len(item.path) - 1, 0, -1)
        owner = next((folders[item.path[:end]] for end in ends if item.path[:end] in folders), None)
        if owner is not None and owner.patient != person.patient:
            found[i] = Person(owner.patient, person.visit or owner.visit)
    return found


def _begins(tokens: tuple[str, ...], start: tuple[str, ...]) -> bool:
    return tokens[: len(start)] == start


class _Cases:
    """Persons and visits of the images, to find whose an outline is."""

    def __init__(
        self, items: Sequence[Item], said: Sequence[_Said], persons: Sequence[Person | None], how: Reading
    ) -> None:
        self._how = how
        self._by_id: dict[tuple[str, ...], set[Person]] = defaultdict(set)
        self._by_stem: dict[str, set[Person]] = defaultdict(set)
        self._below: dict[Path, set[Person]] = defaultdict(set)
        for item, person in zip(items, persons, strict=True):
            if person is None:
                continue
            patient, visit = _plain(person.patient.rpartition("/")[2]), _plain(person.visit)
            self._by_id[patient].add(person)
            if visit:
                self._by_id[(*patient, *visit)].add(person)
            own = understood(item.path[-1], how)
            if own.id:
                self._by_id[own.tokens].add(person)
            self._by_stem[item.path[-1].lower()].add(person)
            for end in range(len(item.path)):
                self._below[item.path[:end]].add(person)

    def owner(self, item: Item, said: _Said) -> Person | None:
        """The one case that an outline belongs to; None if there is none, or there are several."""
        how = self._how
        candidates: list[set[Person]] = []
        folder = item.path[:-1]
        near = self._near(folder)
        for name in reversed(item.path):
            own = understood(name, how)
            for tokens in _prefixes(own.tokens):
                if found := self._by_id.get(tokens):
                    candidates.append(found)
                    break
        if found := self._by_stem.get(_bare(item.path[-1])):
            candidates.append(found)
        if near:
            candidates.append(near)
        visits = {_plain(v) for name in item.path if (v := understood(name, how).visit)}
        for i, found in enumerate(candidates):
            left = {p for p in found if _plain(p.visit) in visits} or found if visits else found
            for more in candidates[i + 1 :]:
                left = left & more or left
            if not visits and len(left) > 1:
                left = {p for p in left if not p.visit} or left
            if len(left) == 1:
                return next(iter(left))
        return None

    def _near(self, folder: Path) -> set[Person]:
        for end in range(len(folder), -1, -1):
            if found := self._below.get(folder[:end]):
                return found
        return set()


def _plain(text: str) -> tuple[str, ...]:
    return tuple(token.text for token in split(text))


def _prefixes(tokens: tuple[str, ...]) -> list[tuple[str, ...]]:
    """A name, and what is left of it when words are taken off its end."""
    return [tokens[:end] for end in range(len(tokens), 0, -1)]


def _bare(name: str) -> str:
    """The name of the image that an outline's name was made of: without the words at the end that say so."""
    tokens = list(split(name))
    while len(tokens) > 1 and tokens[-1].kind in (Kind.REGION, Kind.TARGET, Kind.TISSUE):
        tokens.pop()
    return name[: tokens[-1].end].lower() if tokens else name.lower()


def _looked(
    items: Sequence[Item], said: Sequence[_Said], persons: Sequence[Person | None], look: Look
) -> list[_Said]:
    """Settle doubts by the voxels of a few files of each kind."""
    images: dict[Person, list[int]] = defaultdict(list)
    doubtful: dict[tuple[str | None, tuple[str, ...]], list[int]] = defaultdict(list)
    for i, (item, s, person) in enumerate(zip(items, said, persons, strict=True)):
        if person is not None and s.role == roles.IMAGE:
            images[person].append(i)
        if not item.picture and (s.role is None or (s.role == roles.REGION and not s.sure)):
            doubtful[s.role, s.kind].append(i)
    settled = list(said)
    for (role, _), members in doubtful.items():
        seen: Counter[str | None] = Counter()
        for i in members[:: max(1, len(members) // EXAMPLES)][:EXAMPLES]:
            person = persons[i]
            seen[look(i, images.get(person, []) if person else [])] += 1
        what, times = seen.most_common(1)[0]
        if what is None or 2 * times <= seen.total():
            continue
        for i in members:
            if role is None and what in (roles.REGION, roles.MASK):
                settled[i] = replace(said[i], role=what)
            elif role == roles.REGION and what != roles.REGION:
                settled[i] = replace(said[i], role=roles.MASK if what == roles.MASK else roles.MAP)
    return settled


def _decided(said: _Said, person: Person | None) -> Decision:
    if said.role == roles.REGION:
        if person is None:
            return Decision(IGNORED, None, said.sequence, "a region that belongs to no image here")
        return Decision(REGION, person, said.sequence, automatic=said.automatic)
    if said.role == roles.MASK:
        return Decision(IGNORED, person, said.sequence, "a mask of brain or tissue, no outline")
    if said.role == roles.MAP:
        return Decision(IGNORED, person, said.sequence, "a map computed of images", copy=True)
    if said.role == roles.LOCALIZER:
        return Decision(IGNORED, person, said.sequence, "a localizer")
    return Decision(IMAGE, person, said.sequence)


def _leave_copies(decisions: list[Decision], said: Sequence[_Said]) -> None:
    """Keep of each sequence of a visit what is least prepared, of one preparation where that can be."""
    cases: dict[Person, list[int]] = defaultdict(list)
    for i, decision in enumerate(decisions):
        if decision.role == IMAGE and decision.person is not None:
            cases[decision.person].append(i)
    for members in cases.values():
        if len(members) < 2:
            continue
        of: dict[frozenset[str], list[int]] = defaultdict(list)
        for i in members:
            of[said[i].preparation].append(i)
        held = {prepared: {decisions[i].sequence for i in group} for prepared, group in of.items()}

        def rank(
            prepared: frozenset[str], held: Mapping[frozenset[str], set[str | None]] = held
        ) -> tuple[object, ...]:
            bent = any(words.TEMPLATE.match(word) for word in prepared)
            return -len(held[prepared] & set(STRUCTURAL)), bent, len(prepared), sorted(prepared)

        covered: set[str | None] = set()
        for prepared in sorted(of, key=rank):
            for i in of[prepared]:
                sequence = decisions[i].sequence
                if (sequence is None and prepared and covered) or (
                    sequence is not None and sequence in covered
                ):
                    decisions[i] = _copy(decisions[i], ", ".join(sorted(prepared)) or "unprepared")
            covered |= held[prepared]
        _leave_variants([i for i in members if decisions[i].role == IMAGE], decisions, said)


def _leave_variants(members: Sequence[int], decisions: list[Decision], said: Sequence[_Said]) -> None:
    """What is called like another of the same sequence and more, is a copy of it."""
    for i in members:
        for j in members:
            same = decisions[i].sequence == decisions[j].sequence and decisions[i].sequence is not None
            if same and said[j].leftover < said[i].leftover and said[i].kind != said[j].kind:
                decisions[i] = _copy(decisions[i], ", ".join(sorted(said[i].leftover - said[j].leftover)))
                break


def _copy(decision: Decision, prepared: str) -> Decision:
    return replace(decision, role=IGNORED, reason=f"a copy in another preparation ({prepared})", copy=True)
