"""Names of files and folders, taken apart."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import indexer.discovery.vocabulary as words
from indexer.discovery.vocabulary import Kind

_COMPRESSED = (".gz", ".bz2", ".zst", ".zip", ".xz")
_PART = re.compile(r"[^\W_]+")
_PAIR = re.compile(r"(?:(?<=[_ ])|(?<=^))([A-Za-z]+)-([A-Za-z0-9+.]+?)(?=_|$|\s)")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NUMBERED = re.compile(r"([a-z]+?)(\d+)")


def stem(name: str) -> str:
    """A file's name without its extension; that of a compression goes with the one before it.

    Examples
    --------
    >>> stem("sub-01_T1w.NII.GZ"), stem("scan.nii.bz2"), stem("a.b.png"), stem("case0.seg.nrrd")
    ('sub-01_T1w', 'scan', 'a.b', 'case0.seg')
    """
    for ending in _COMPRESSED:
        if name.lower().endswith(ending):
            inner = name[: -len(ending)]
            base, dot, extension = inner.rpartition(".")
            return base if dot and base and extension.isalnum() and len(extension) <= 4 else inner
    base, dot, extension = name.rpartition(".")
    return base if dot and base else name


@dataclass(frozen=True)
class Token:
    """A part of a name.

    Attributes
    ----------
    text : str
        In lower case.
    start, end : int
        Where it stands in the name.
    kind : Kind
    value : str
        The sequence of a `SEQUENCE` or a `SERIES`; key and value of an entity.
    """

    text: str
    start: int
    end: int
    kind: Kind
    value: str = ""


@functools.lru_cache(maxsize=65536)
def split(name: str) -> tuple[Token, ...]:
    """The tokens of a name (without extension), each with what its words say.

    Tokens are runs of letters and digits. ``key-value`` pairs of BIDS, dates, and a visit's word with the
    number after it are one token. Camel case is split where both halves are words (``tumorMask``).
    """
    found: list[Token] = []
    at = 0
    pairs = {m.start(): m for m in _PAIR.finditer(name) if m[1].lower() in words.ENTITIES}
    while part := _PART.search(name, at):
        start = part.start()
        if (pair := pairs.get(start)) is not None:
            found.append(_entity(pair))
            at = pair.end()
        elif (date := words.DATE.match(name, start)) and not name[date.end() : date.end() + 1].isalnum():
            found.append(Token(date[0].lower(), start, date.end(), Kind.VISIT, date[0]))
            at = date.end()
        else:
            found += _classified(part[0], start)
            at = part.end()
    return tuple(_joined(name, found))


def _entity(pair: re.Match[str]) -> Token:
    key, value = pair[1].lower(), pair[2].lower()
    kind = {"sub": Kind.SUBJECT, "ses": Kind.VISIT, "ce": Kind.CONTRAST}.get(key, Kind.ENTITY)
    return Token(pair[0].lower(), pair.start(), pair.end(), kind, f"{key}-{value}")


def _classified(text: str, start: int) -> list[Token]:
    kind, value = _meaning(text.lower())
    if kind is Kind.OPAQUE:
        humps = list(_CAMEL.finditer(text))
        meant = [_meaning(hump[0].lower()) for hump in humps]
        if len(humps) > 1 and all(k not in (Kind.OPAQUE, Kind.NUMBER) for k, _ in meant):
            return [
                Token(hump[0].lower(), start + hump.start(), start + hump.end(), k, v)
                for hump, (k, v) in zip(humps, meant, strict=True)
            ]
        if (cut := _glued(text.lower())) is not None:
            whole, at = text.lower(), start + cut
            return [
                Token(whole[:cut], start, at, *_meaning(whole[:cut])),
                Token(whole[cut:], at, start + len(text), *_meaning(whole[cut:])),
            ]
    return [Token(text.lower(), start, start + len(text), kind, value)]


_GLUED = {name for name, sequence in words.SEQUENCES.items() if sequence in ("t1", "t1ce", "t2", "flair")}
_BEHIND = (Kind.PREPARATION, Kind.REGION, Kind.TISSUE, Kind.MAP)


def _glued(text: str) -> int | None:
    """Where a word ends that is written together with a sequence: ``hrT2``, ``T2Synth``, ``flairmask``."""
    for cut in range(2, len(text) - 1):
        head, tail = text[:cut], text[cut:]
        if head in words.PREFIXES and tail in _GLUED:
            return cut
        if head in _GLUED and len(tail) > 2 and _meaning(tail)[0] in _BEHIND:
            return cut
    return None


@functools.lru_cache(maxsize=65536)
def _meaning(text: str) -> tuple[Kind, str]:
    if text.isdigit():
        return Kind.NUMBER, ""
    for kind, table in ((Kind.SEQUENCE, words.SEQUENCES), (Kind.SERIES, words.SERIES)):
        if text in table:
            return kind, table[text]
    for kind, named in (
        (Kind.REGION, words.REGIONS),
        (Kind.LOCALIZER, words.LOCALIZERS),
        (Kind.MAP, words.MAPS),
        (Kind.TARGET, words.TARGETS),
        (Kind.TISSUE, words.TISSUES),
        (Kind.PLAIN, words.PLAIN),
        (Kind.PREPARATION, words.PREPARATIONS),
        (Kind.CONTAINER, words.CONTAINERS),
        (Kind.PROTOCOL, words.PROTOCOL),
    ):
        if text in named:
            return kind, ""
    if text in words.WEAK_SEQUENCES:
        return Kind.PROTOCOL, words.WEAK_SEQUENCES[text]
    if text in words.CONTRAST or text in words.AFTER or text in words.BEFORE:
        return Kind.CONTRAST, ""
    if words.VISIT.fullmatch(text):
        return Kind.VISIT, text
    numbered = _NUMBERED.fullmatch(text)
    if numbered and numbered[1] in words.REGIONS | words.TARGETS and len(numbered[2]) <= 2:
        return Kind.REGION, ""
    return Kind.OPAQUE, ""


def _joined(name: str, tokens: list[Token]) -> list[Token]:
    """Give a visit's word the numbers that follow it: ``week-000-1``, ``Timepoint_2``, ``ses-1``."""
    joined: list[Token] = []
    for token in tokens:
        last = joined[-1] if joined else None
        follows = last is not None and token.start - last.end == 1
        if (
            last is not None
            and follows
            and _waits(last)
            and token.kind is Kind.NUMBER
            and len(token.text) <= 4
        ) or (
            last is not None
            and follows
            and last.text in ("follow", "post", "pre", "prä", "prae")
            and token.text in ("up", "op", "treatment", "surgery", "rt", "operative", "chemo")
        ):
            text = name[last.start : token.end]
            joined[-1] = Token(text.lower(), last.start, token.end, Kind.VISIT, text)
        else:
            joined.append(token)
    return joined


def _waits(token: Token) -> bool:
    """Whether a visit's token may go on with a number."""
    return (
        token.kind is Kind.VISIT
        and not words.DATE.fullmatch(token.value)
        and not token.text.startswith("ses-")
        and (token.text[-1].isalpha() or "-" in token.text or "_" in token.text or token.text[-1].isdigit())
        and token.text.count("-") + token.text.count("_") < 2
    )
