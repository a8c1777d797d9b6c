"""What the name of a file or folder says of what it holds: who, when, which sequence, prepared how."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import indexer.discovery.vocabulary as words
from indexer.discovery.tokens import Token, split
from indexer.discovery.vocabulary import Kind

IMAGE, REGION, MASK, MAP, LOCALIZER = "image", "region", "mask", "map", "localizer"

_HARD = (Kind.SEQUENCE, Kind.SERIES, Kind.REGION, Kind.MAP, Kind.LOCALIZER, Kind.ENTITY)


@dataclass(frozen=True)
class Reading:
    """What only all names together tell of single words.

    Attributes
    ----------
    timepoints : bool
        ``t1`` may be a time point, since there is a ``t0``.
    before_after : bool
        ``pre`` and ``post`` are visits, since they stand beside other sequences than T1.
    """

    timepoints: bool = False
    before_after: bool = False


@dataclass(frozen=True)
class Name:
    """What a name says.

    Attributes
    ----------
    text : str
    id : str
        What is left to name a person, as it is written; "" if all words mean something else.
    visit : str
        The visit, as it is written; "" if none is named.
    role : str, optional
        `IMAGE` where a sequence is named, `REGION`, `MASK` (of brain or tissue), `MAP`, `LOCALIZER`;
        None where nothing is.
    sequence : str, optional
        Also of what a region lies on and a map is made of.
    preparation : frozenset of str
        Words that tell a copy from its original.
    leftover : tuple of str
        Words behind the id that mean nothing here.
    sure : bool
        Of a region: that it outlines a target is said.
    outline : bool
        A word for regions or masks stands in the name.
    automatic : bool
        A program drew it.
    """

    text: str
    id: str = ""
    visit: str = ""
    role: str | None = None
    sequence: str | None = None
    preparation: frozenset[str] = frozenset()
    leftover: tuple[str, ...] = ()
    sure: bool = False
    outline: bool = False
    automatic: bool = False

    @property
    def tokens(self) -> tuple[str, ...]:
        """The id in lower case, taken apart."""
        return tuple(token.text for token in split(self.id))


def reading(paths: Iterable[tuple[str, ...]]) -> Reading:
    """Look over all names, of folders and last of the file, for what their words mean here."""
    timepoints = before_after = False
    paths = list(paths)
    folders = {name for path in paths for name in path[:-1]}
    for name in folders | {path[-1] for path in paths if path}:
        tokens = split(name)
        timepoints |= any(token.text == "t0" for token in tokens)
        if any(token.text in ("pre", "post") for token in tokens):
            held = {token.value for token in tokens if token.kind is Kind.SEQUENCE}
            before_after |= bool(held & {"t2", "flair"}) or (name in folders and not held)
    return Reading(timepoints, before_after)


@functools.lru_cache(maxsize=65536)
def understood(name: str, how: Reading = Reading()) -> Name:
    """What a name, without its extension, says.

    Examples
    --------
    >>> found = understood("UPENN-GBM-00001_11_T1GD_unstripped")
    >>> found.id, found.sequence, sorted(found.preparation)
    ('UPENN-GBM-00001_11', 't1ce', ['unstripped'])
    >>> understood("PatientID_0003_Timepoint_1_tumorMask").visit
    'Timepoint_1'
    >>> understood("sub-01_ses-2_label-GM_probseg").role
    'map'
    """
    tokens = _settled(list(split(name)), how)
    hard = [i for i, token in enumerate(tokens) if token.kind in _HARD or _technique(token)]
    first = hard[0] if hard else len(tokens)
    named, visits = _whose(tokens[:first])
    if not named and hard:
        named, later = _whose(tokens[hard[-1] + 1 :])
        visits += [visit for visit in later if visit not in visits]
    elif hard:
        visits += [t for t in tokens[first:] if t.kind is Kind.VISIT]
    rest = [t for t in tokens if t not in named and t not in visits]
    sequence = _sequence(tokens)
    role, sure = _role(rest, sequence)
    preparation = {
        token.value or token.text
        for token in rest
        if token.kind in (Kind.PREPARATION, Kind.TISSUE, Kind.PLAIN)
        or (token.kind is Kind.ENTITY and token.value.split("-")[0] in words.PREPARING)
    }
    return Name(
        name,
        name[named[0].start : named[-1].end] if named else "",
        _written(name, visits),
        role,
        sequence,
        frozenset(preparation - words.PLAIN - {"space-orig", "space-native", "space-t1w"}),
        tuple(token.text for token in rest if token.kind is Kind.OPAQUE),
        sure,
        any(token.kind is Kind.REGION for token in rest),
        any(token.text.startswith("auto") for token in rest),
    )


def _written(name: str, visits: list[Token]) -> str:
    """Visits as they are written, from the first to the last."""
    if not visits:
        return ""
    if all(a.end + 1 >= b.start for a, b in pairwise(visits)):
        return name[visits[0].start : visits[-1].end]
    return "_".join(dict.fromkeys(name[visit.start : visit.end] for visit in visits))


def _settled(tokens: list[Token], how: Reading) -> list[Token]:
    """Words that mean something by their neighbours."""
    settled: list[Token] = []
    for i, token in enumerate(tokens):
        near = [
            t for t in (tokens[i - 1] if i else None, tokens[i + 1] if i + 1 < len(tokens) else None) if t
        ]
        last = settled[-1] if settled else None
        kind, value = token.kind, token.value
        if kind is Kind.CONTRAST and not value:
            with_t1 = any(t.value == "t1" or _technique(t) for t in tokens)
            if token.text in ("pre", "post") and (how.before_after or not with_t1):
                kind, value = Kind.VISIT, token.text
                if not how.before_after and i == len(tokens) - 1 and i:  # beside T2 and FLAIR, of T1
                    kind, value = Kind.SEQUENCE, "t1" if token.text == "pre" else "t1ce"
            elif token.text in words.AGENTS and not any(t.kind in _HARD for t in tokens):
                kind, value = Kind.SEQUENCE, "t1ce"
            elif not with_t1 or (token.text in ("c", "cm") and not any(t.value == "t1" for t in near)):
                kind = Kind.OPAQUE if token.text not in words.BEFORE else Kind.PLAIN
        elif (
            how.timepoints
            and token.text in ("t0", "t1", "t2")
            and (
                token.text == "t0"
                or (kind is Kind.SEQUENCE and any(t.kind in (*_HARD, Kind.TARGET) for t in tokens[i + 1 :]))
            )
        ):
            kind, value = Kind.VISIT, token.text
        elif kind is Kind.OPAQUE and last is not None and (whole := f"{last.text}{token.text}") == "mprage":
            settled[-1] = Token(whole, last.start, token.end, Kind.PROTOCOL, "t1")
            continue
        elif token.text in ("map", "maps") and last is not None and last.kind in (Kind.SEQUENCE, Kind.SERIES):
            kind = Kind.MAP
        elif kind is Kind.OPAQUE and i and words.NUMBERED_VISIT.fullmatch(token.text):
            kind, value = Kind.VISIT, token.text
        settled.append(Token(token.text, token.start, token.end, kind, value))
    return settled


def _technique(token: Token) -> bool:
    return token.kind is Kind.PROTOCOL and bool(token.value)


def _whose(tokens: list[Token]) -> tuple[list[Token], list[Token]]:
    """The tokens that name a person, and those that name a visit, among those before a role's word.

    Words of the field before a number belong to a name (``BraTS-MET-00002``), behind it they do not.
    """
    subject = next((i for i, t in enumerate(tokens) if t.kind is Kind.SUBJECT), None)
    if subject is not None:
        return [tokens[subject]], [t for t in tokens if t.kind is Kind.VISIT]
    visits = [i for i, t in enumerate(tokens) if t.kind is Kind.VISIT]
    before = tokens[: visits[0]] if visits else tokens
    named = _trimmed(before)
    if named or not visits:
        # a number right behind a visit is the visit's
        return named, tokens[visits[0] : visits[-1] + 1] if visits else []
    last = visits[-1]
    return _trimmed(tokens[last + 1 :]), tokens[visits[0] : last + 1]


def _trimmed(tokens: list[Token]) -> list[Token]:
    """Up to the last token with a digit; without any, the first words that mean nothing else."""
    telling = [i for i, t in enumerate(tokens) if t.kind in (Kind.OPAQUE, Kind.NUMBER, Kind.SUBJECT)]
    if not telling:
        return []
    digits = [i for i in telling if any(map(str.isdigit, tokens[i].text))]
    if digits:
        start = next(i for i in range(len(tokens)) if i in telling or tokens[i].kind is not Kind.CONTAINER)
        return tokens[start : digits[-1] + 1]
    end = telling[0]
    while end + 1 in telling:
        end += 1
    return tokens[telling[0] : end + 1]


def _sequence(tokens: list[Token]) -> str | None:
    named = [(i, t.value) for i, t in enumerate(tokens) if t.kind is Kind.SEQUENCE]
    if not named:
        weak = next((t.value for t in tokens if _technique(t)), None)
        raw = next((t.value for t in tokens if t.kind is Kind.SERIES), None)
        named = [(0, weak or raw or "")]
    at, sequence = named[0]
    if len(named) > 1 and named[1][0] == at + 1:
        sequence = _pair(sequence, named[1][1])
    agent = any(t.kind is Kind.CONTRAST and t.text not in words.BEFORE for t in tokens)
    return "t1ce" if sequence == "t1" and agent else sequence or None


def _pair(one: str, other: str) -> str:
    """T2-FLAIR is FLAIR; a T1-FLAIR is T1-weighted."""
    return one if {one, other} != {"t2", "flair"} else "flair"


def _role(tokens: list[Token], sequence: str | None) -> tuple[str | None, bool]:
    kinds = {token.kind for token in tokens}
    held = {token.text for token in tokens}
    entities = {part for t in tokens if t.kind is Kind.ENTITY for part in _parts(t.value)}
    series = Kind.SERIES in kinds
    if Kind.MAP in kinds or (series and (held & words.SERIES_MAPS or _further(tokens))):
        return MAP, True
    target = Kind.TARGET in kinds or bool((entities | held) & words.TARGETS)
    tissue = Kind.TISSUE in kinds or bool(entities & words.TISSUES)
    if Kind.REGION in kinds or held & words.MASKS_ALONE:
        return (MASK, True) if tissue and not target else (REGION, target)
    if target and sequence is None:
        return REGION, True
    if Kind.LOCALIZER in kinds:
        return LOCALIZER, True
    return (IMAGE, True) if sequence else (None, False)


def _parts(value: str) -> list[str]:
    return [token.text for token in split(value.partition("-")[2])]


def _further(tokens: list[Token]) -> bool:
    """Whether a word that means nothing stands behind the raw series: what was computed of it."""
    at = next(i for i, token in enumerate(tokens) if token.kind is Kind.SERIES)
    return any(token.kind is Kind.OPAQUE and len(token.text) > 1 for token in tokens[at + 1 :])
