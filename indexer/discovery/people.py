"""Who and when: persons and their visits, from how the names of all files differ.

A file's *chain* are the names that could be a person's: in its own name and in those of the folders
above, the nearest first. The nearest one counts, unless it recurs below different persons: then it is
a role or a visit, and the person is a level up. Where the same name recurs below folders that are no
persons (class folders, sites), nobody knows whether it is one person: they are kept apart, and that is
said. Two persons are never made one by a guess.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import indexer.discovery.vocabulary as words
from indexer.discovery.roles import Name, Reading, understood
from indexer.discovery.tokens import split
from indexer.discovery.vocabulary import Kind

_NUMBER = re.compile(r"\d+")
_YEAR = re.compile(r"(?:19|20)\d\d")


@dataclass(frozen=True)
class Person:
    """Whose a file is.

    Attributes
    ----------
    patient : str
    visit : str
        "" where there is only one that has no name.
    """

    patient: str
    visit: str = ""


@dataclass
class People:
    """Whose the files are.

    Attributes
    ----------
    of : dict
        Person of each path.
    doubts : list of str
        What could not be known, one line each, with what was assumed.
    """

    of: dict[tuple[str, ...], Person] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Link:
    """A name of a chain: of the file itself (depth 0), or of a folder above it."""

    id: str
    tokens: tuple[str, ...]
    depth: int
    role: bool  # the name says what it holds, too

    @property
    def digits(self) -> int:
        """Of its longest number that is no year, which tells a person's number from a visit's or a site's."""
        found = [n for n in _NUMBER.findall(self.id) if not _YEAR.fullmatch(n)]
        return max(map(len, found), default=0)


def people(
    paths: Sequence[tuple[str, ...]],
    how: Reading,
    above: Sequence[str] = (),
    *,
    single: frozenset[str] = frozenset(),
) -> People:
    """Whose each of the images is.

    Parameters
    ----------
    paths : sequence of tuple of str
        Folders below the root and the file's name without extension.
    how : Reading
    above : sequence of str
        Names of the root and of what lies above it, the nearest first: they are asked where nothing
        below the root has a name.
    single : frozenset of str
        Paths (joined by ``/``) of pictures that stand for themselves: each is a person of its own where
        no name says otherwise.

    Returns
    -------
    People
    """
    found = People()
    chains = {path: _chain(path, how) for path in paths}
    numbers = _series_numbers(paths, how)
    chains = {
        path: tuple(
            link
            for link in chain
            if not any((path[:end], link.id) in numbers for end in range(1, len(path) - link.depth + 1))
        )
        for path, chain in chains.items()
    }
    dropped = _recurring(chains, single)
    keys: dict[tuple[str, ...], _Key] = {}
    for path, chain in chains.items():
        keys[path] = _key(path, chain, dropped, how, above, alone="/".join(path) in single)
    visits = _visits({key.tokens for path, key in keys.items() if "/".join(path) not in single})
    keys = {path: key.cut(visits) for path, key in keys.items()}
    for path, key in _told_apart(keys, how, found.doubts).items():
        found.of[path] = Person(key.name, "_".join(key.visits))
    found.doubts += _lettered({key.name for path, key in keys.items() if "/".join(path) not in single})
    return found


def _lettered(names: set[str]) -> list[str]:
    """Says that letters behind one number (100101A, 100101B) may be visits, or two persons."""
    numbers: dict[str, set[str]] = defaultdict(set)
    for name in names:
        if re.search(r"\d{4,}[A-Za-z]$", name):
            numbers[name[:-1]].add(name)
    several = [sorted(called) for _, called in sorted(numbers.items()) if len(called) > 1]
    if not several:
        return []
    return [
        f"{len(several)} numbers have several letters behind them, which are taken for different persons: "
        f"{', '.join(several[0])}{'; …' if len(several) > 1 else ''}; if these are one person's visits, say "
        'so with a pattern in a cbir.json, e.g. {"pattern": "**/{patient}{visit}/*_{sequence}"}'
    ]


@dataclass(frozen=True)
class _Key:
    """What names an examination: a person's name, in which a visit's may still be, and visits named apart."""

    name: str
    visits: tuple[str, ...] = ()
    context: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(t.text for t in split(self.name))

    def cut(self, visits: frozenset[tuple[str, ...]]) -> _Key:
        """The key with the person's name alone, and all that names the visit apart."""
        named, tokens = list(self.visits), split(self.name)
        name = self.name
        if tuple(t.text for t in tokens) in visits:
            named.insert(0, name[tokens[-1].start : tokens[-1].end])
            name = name[: tokens[-2].end]
        return _Key(name, tuple(dict.fromkeys(named)), self.context)


def _chain(path: tuple[str, ...], how: Reading) -> tuple[_Link, ...]:
    links: list[_Link] = []
    for depth, name in enumerate(reversed(path)):
        said = understood(name, how)
        if not said.id or (depth == 0 and words.SLICE.fullmatch(name)):
            continue
        if words.GROUPS.fullmatch(said.id) and depth and not any(t.kind is Kind.SUBJECT for t in split(name)):
            continue
        tokens = said.tokens
        if links and tokens == links[-1].tokens and not (said.id.isdigit() and links[-1].role):
            continue  # but for 1/1_T1
        links.append(_Link(said.id, tokens, depth, said.role is not None))
    dated = {  # 11-15-1999-NA-MR BRAIN-21068
        depth
        for depth, name in enumerate(reversed(path))
        if depth and words.DATE.match(name) and understood(name, how).id
    }
    return tuple(
        link
        for i, link in enumerate(links)
        if link.depth not in dated or not any(far.digits for far in links[i + 1 :])
    )


def _series_numbers(paths: Sequence[tuple[str, ...]], how: Reading) -> frozenset[tuple[tuple[str, ...], str]]:
    """Names with a sequence whose number counts series (``1_T1``, ``004_flair``), as path and number.

    Below one parent each such number has one role, and the roles differ; persons' numbers have the same
    roles again and again.
    """
    below: dict[tuple[str, ...], dict[str, set[tuple[str, ...]]]] = defaultdict(lambda: defaultdict(set))
    for path in paths:
        for depth in range(1, len(path) + 1):
            said = understood(path[depth - 1], how)
            if said.role is not None and said.id.isdigit() and len(said.id) <= 3:
                below[path[: depth - 1]][said.id].add(path[:depth])
    numbers = set()
    for parent, members in below.items():
        held = [understood(path[-1], how) for found in members.values() for path in found]
        kinds = Counter((said.role, said.sequence) for said in held)
        once = all(len(found) == 1 for found in members.values())
        named = bool(parent) and bool(_NUMBER.search(parent[-1])) and bool(understood(parent[-1], how).id)
        if once and len(kinds) > 1 and (named or max(kinds.values()) == 1):
            numbers |= {(path, number) for number, found in members.items() for path in found}
    return frozenset(numbers)


def _recurring(
    chains: Mapping[tuple[str, ...], tuple[_Link, ...]], single: frozenset[str]
) -> frozenset[tuple[str, ...]]:
    """Names that recur below different persons: roles and visits."""
    contexts: dict[tuple[str, ...], set[_Link]] = defaultdict(set)
    fellows: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    names: dict[tuple[str, ...], str] = {}
    for path, chain in chains.items():
        if "/".join(path) in single:
            continue
        for i, link in enumerate(chain[:-1]):
            if any(far.digits and _contains(link.tokens, far.tokens) for far in chain[i + 1 :]):
                continue  # a folder above says which part of this name is the person's
            above = next((far for far in chain[i + 1 :] if not _contains(link.tokens, far.tokens)), None)
            if above is not None:
                names[link.tokens] = link.id
                contexts[link.tokens].add(_Link(above.id, above.tokens, 0, False))
                fellows[above.tokens].add(link.tokens)
    dropped = set()
    for tokens, found in contexts.items():
        child = _Link(" ".join(tokens), tokens, 0, False)
        parents = {link.tokens: link for link in found}
        persons = [link for link in parents.values() if _is_person(link, child)]
        machine = words.ANYTHING.fullmatch("".join(tokens)) is not None
        if len(persons) == len(parents) and (len(parents) > 1 or machine or not child.digits):
            dropped.add(tokens)
        elif len(parents) > 1 and not child.digits and not any(p.digits for p in parents.values()):
            shares = sum(len(fellows[p]) for p in parents)
            small = names[tokens].islower() and shares <= 4 * len(parents)
            if small and not any(_is_class(p) for p in parents):
                dropped.add(tokens)  # Smith/upper, Miller/upper; but siteA/Smith, siteB/Smith
    return frozenset(dropped)


def _is_person(parent: _Link, child: _Link) -> bool:
    """Whether of two names, one below the other, the upper is the person's: it has the longer number."""
    if words.PERSONS.fullmatch(parent.id) and not words.PERSONS.fullmatch(child.id):
        return True
    first = _NUMBER.search(child.id)
    return parent.digits > (len(first[0]) if first and parent.digits > 2 else child.digits)


def _is_class(tokens: Sequence[str]) -> bool:
    return all(token in words.CLASSES for token in tokens)


def _contains(tokens: Sequence[str], part: Sequence[str]) -> int:
    """Where in `tokens` a `part` ends; 0 if it is not there."""
    for start in range(len(tokens) - len(part) + 1):
        if tuple(tokens[start : start + len(part)]) == tuple(part):
            return start + len(part)
    return 0


def _key(
    path: tuple[str, ...],
    chain: tuple[_Link, ...],
    dropped: frozenset[tuple[str, ...]],
    how: Reading,
    above: Sequence[str],
    *,
    alone: bool,
) -> _Key:
    kept = [link for link in chain if link.tokens not in dropped]
    visits: list[tuple[int, str]] = [
        (depth, said.visit)
        for depth, name in enumerate(reversed(path))
        if (said := understood(name, how)).visit and not alone
    ]
    name, nearest = "", 0
    if len(kept) == 1 and not kept[0].digits and not kept[0].depth and words.ANYTHING.fullmatch(kept[0].id):
        kept = []  # scan.nii
    if alone:
        name = path[-1]
    elif kept:
        first = kept[0]
        name, nearest = first.id, first.depth
        inner = [far for far in kept[1:] if _contains(first.tokens, far.tokens)]
        person = [far for far in inner if _is_person(far, _rest(first, far))]
        if person:  # the folder says which part of the name is the person's
            name, nearest = person[-1].id, max(far.depth for far in person)
            tail = _tail(first, person[-1])
            if tail:
                visits.append((first.depth, tail))
        elif not first.digits:
            # words alone name nobody where a folder above has a number
            numbered = next((far for far in kept[1:] if far.digits), None)
            if numbered is not None:
                name, nearest = numbered.id, numbered.depth
        visits += [
            (link.depth, link.id)
            for link in chain
            if link.tokens in dropped
            and link.depth
            and link.digits
            and link.depth < nearest
            and not link.role
            and not any(
                _prepares(name, how) for name in path[len(path) - nearest : len(path) - 1 - link.depth]
            )
        ]
    else:
        for outside, folder in enumerate(above):
            said = understood(folder, how)
            if said.visit and not outside:
                visits.append((len(path) + outside, said.visit))
            if said.id:
                name, nearest = said.id, len(path) + outside
                if said.visit and outside:
                    visits.append((nearest, said.visit))
                break
            nearest = len(path)
        name = name or path[-1]
    ordered = sorted(visits, key=lambda each: -each[0])
    named = [
        visit for depth, visit in ordered if depth <= nearest or not kept or _says_when(path, depth, how)
    ]
    return _Key(name, tuple(_once(named)), tuple(path[:-1]))


def _prepares(name: str, how: Reading) -> bool:
    """Whether a folder holds what a program made, each step of it in folders that are no visits."""
    said = understood(name, how)
    return bool(said.preparation) and not said.id


def _says_when(path: tuple[str, ...], depth: int, how: Reading) -> bool:
    """Whether a folder above a person is a visit's (``baseline/P001``); dates there are of releases."""
    if depth >= len(path):
        return False
    name = path[len(path) - 1 - depth]
    return not understood(name, how).id and not words.DATE.search(name)


def _rest(whole: _Link, part: _Link) -> _Link:
    end = _contains(whole.tokens, part.tokens)
    rest = whole.tokens[end:]
    return _Link(" ".join(rest), rest, whole.depth, False)


def _tail(whole: _Link, part: _Link) -> str:
    """What follows a person's name in the name of an examination, as it is written."""
    tokens = split(whole.id)
    end = _contains(tuple(t.text for t in tokens), part.tokens)
    rest = [t for t in tokens[end:] if any(map(str.isdigit, t.text)) or t.kind is Kind.VISIT]
    return whole.id[rest[0].start : rest[-1].end] if rest else ""


def _once(visits: Sequence[str]) -> list[str]:
    """Each visit once; one that is part of another's name is the same."""
    kept: list[str] = []
    for visit in visits:
        plain = _plain(visit)
        if not any(plain in _plain(other) for other in kept):
            kept = [other for other in kept if _plain(other) not in plain] + [visit]
    return kept


def _plain(text: str) -> str:
    return re.sub(r"[\W_]", "", text.lower())


def _told_apart(
    keys: Mapping[tuple[str, ...], _Key], how: Reading, doubts: list[str]
) -> dict[tuple[str, ...], _Key]:
    """Names that recur below folders of no known role are different persons."""
    groups: dict[tuple[str, ...], dict[tuple[str, ...], list[tuple[str, ...]]]]
    groups = defaultdict(lambda: defaultdict(list))
    for path, key in keys.items():
        groups[key.tokens or (key.name,)][_surroundings(path, key, how)].append(path)
    apart = dict(keys)
    several: list[str] = []
    together: list[str] = []
    for tokens, places in groups.items():
        if len(places) < 2:
            continue
        long = sum(len(n) for n in _NUMBER.findall(" ".join(tokens))) >= 5
        if long and not _clash(places, keys, how):  # no two people share such a number by chance
            together.append(f"{keys[next(iter(next(iter(places.values()))))].name}")
            continue
        shared = _shared(list(places))
        for place, paths in places.items():
            for path in paths:
                named = "/".join([*place[shared:], keys[path].name])
                apart[path] = _Key(named, keys[path].visits, keys[path].context)
        named = keys[next(iter(next(iter(places.values()))))].name
        several.append(f"{named} (below {', '.join(sorted('/'.join(place) or '.' for place in places)[:3])})")
    if several:
        doubts.append(
            f"{len(several)} names lie below several unrelated folders and are taken for different persons: "
            f"{'; '.join(several[:3])}{'; …' if len(several) > 3 else ''}"
        )
    if together:
        doubts.append(
            f"{len(together)} names lie below several folders that hold different images, and are taken "
            f"for one person each: {', '.join(together[:3])}{', …' if len(together) > 3 else ''}"
        )
    return apart


def _surroundings(path: tuple[str, ...], key: _Key, how: Reading) -> tuple[str, ...]:
    """The folders above a name that have no known role: below another of them it may be another person."""
    place = []
    for name in path[:-1]:
        said = understood(name, how)
        if said.tokens and _contains(key.tokens, said.tokens):
            break
        if _plain(said.id) in {_plain(key.name + visit) for visit in key.visits}:
            break  # pat153_0002 of pat153
        if said.visit and not said.id:
            continue
        telling = [t for t in split(name) if t.kind in (Kind.OPAQUE, Kind.TARGET, Kind.TISSUE)]
        if _tool(name, how):
            if classes := [t.text for t in telling if t.text in words.CLASSES]:
                place.append(" ".join(classes))  # glioma T1
            continue
        if telling or words.GROUPS.fullmatch(name) or _is_split(name) or name.isdigit():
            place.append(name)
    return tuple(place)


def _tool(name: str, how: Reading) -> bool:
    """Whether a folder's name says what is in it, such as ``images_DSC`` or ``manual_masks``."""
    said = understood(name, how)
    return (
        (said.role is not None and not said.sure)
        or said.role in ("image", "map", "mask")
        or (bool(said.preparation) and said.role != "region")
    )


def _is_split(name: str) -> bool:
    return any(t.text in words.SPLITS for t in split(name)) and len(split(name)) == 1


def _shared(places: Sequence[tuple[str, ...]]) -> int:
    n = 0
    while all(len(place) > n for place in places) and len({place[n] for place in places}) == 1:
        n += 1
    return n


def _clash(
    places: Mapping[tuple[str, ...], Sequence[tuple[str, ...]]],
    keys: Mapping[tuple[str, ...], _Key],
    how: Reading,
) -> bool:
    """Whether two folders hold the same images of a name: such as two people of two sites have."""
    held: list[set[Hashable]] = []
    for paths in places.values():
        roles: set[Hashable] = set()
        for path in paths:
            said = understood(path[-1], how)
            roles.add((keys[path].visits, said.role, said.sequence, said.preparation, said.leftover))
        held.append(roles)
    return any(a & b for i, a in enumerate(held) for b in held[i + 1 :])


def _is_run(numbers: set[str], first: str) -> bool:
    """Whether these are all numbers from the first on: _000, _001, _002."""
    return {int(number) for number in numbers} == set(range(int(first), int(first) + len(numbers)))


def _numbered_person(token: str) -> bool:
    """Whether a token is the whole name of a person, such as ``pat153``: what follows is a visit's."""
    return token[-1].isdigit() and words.PERSONS.fullmatch(token) is not None


def _visits(names: set[tuple[str, ...]]) -> frozenset[tuple[str, ...]]:
    """Names whose last token is a visit's: a small set of numbers that recurs behind different persons."""
    heads: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for tokens in names:
        if (
            len(tokens) > 1
            and tokens[-1].isdigit()
            and (len(tokens[-1]) <= 3 or _numbered_person(tokens[-2]))
        ):
            heads[tokens[:-1]].add(tokens[-1])
    found = set()
    shapes: dict[tuple[int, int], list[tuple[tuple[str, ...], set[str]]]] = defaultdict(list)
    for head, tails in heads.items():
        width = max(map(len, tails))
        number = _NUMBER.findall(head[-1])
        long = len(number[-1]) if number and not _YEAR.fullmatch(number[-1]) else 0
        if (long >= 4 and long >= width + 2) or _numbered_person(head[-1]):
            found |= {(*head, tail) for tail in tails}
        elif long >= width:
            shapes[len(head), long].append((head, tails))
    for (_, long), members in shapes.items():
        counts = Counter(tail for _, tails in members for tail in tails)
        pairs = sum(counts.values())
        recurring = sum(n for n in counts.values() if n > 1)
        several = any(len(tails) > 1 for _, tails in members)
        few = len(counts) < len(members) + 1
        if not few and long > max(map(len, counts)):
            few = all(_is_run(tails, min(counts)) for _, tails in members)
        if several and len(members) > 1 and 2 * recurring >= pairs and few:
            found |= {(*head, tail) for head, tails in members for tail in tails}
    return frozenset(found)


__all__ = ["Name", "People", "Person", "people"]
