"""How ids are compared that people spell in their own ways."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable
from functools import lru_cache
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

EXACT, FOLDED, PADDED, SUFFIX, PADDED_SUFFIX = range(5)
"""How two ids agree: to the letter; but for case and separators; but for zeros before numbers; but for a
prefix that all ids of one side have; but for both."""

Words = tuple[str, ...]

_WORD = re.compile(r"[^\W\d_]+|\d+")
_ENTITY = re.compile("sub-", re.IGNORECASE)


@lru_cache(maxsize=2**18)
def folded(text: str) -> Words:
    """Runs of letters and of digits, in lower case, without separators; adjacent letters are one run.

    The BIDS prefix ``sub-`` is left out.

    Examples
    --------
    >>> folded("UCSF-PDGM-0004"), folded("sub-P01_2"), folded("a.B 07")
    (('ucsfpdgm', '0004'), ('p', '01', '2'), ('ab', '07'))
    """
    text = _ENTITY.sub("", unicodedata.normalize("NFKC", text).casefold())
    runs: list[str] = []
    for word in _WORD.findall(text):
        if runs and word.isalpha() and runs[-1].isalpha():
            runs[-1] += word
        else:
            runs.append(word)
    return tuple(runs)


@lru_cache(maxsize=2**18)
def unpadded(words: Words) -> Words:
    """The same without zeros before numbers."""
    return tuple((word.lstrip("0") or "0") if word[0].isdigit() else word for word in words)


def tails(text: str, end: int | None = None) -> dict[Words, Words]:
    """What is left of an id when words are taken from its front, with a digit at least, and these words.

    Parameters
    ----------
    text : str
    end : int, optional
        A tail begins before this place.
    """
    found = {}
    for match in list(_WORD.finditer(text))[1:]:
        tail = folded(text[match.start() :])
        if match.start() < (len(text) if end is None else end) and any(word[0].isdigit() for word in tail):
            found[tail] = folded(text[: match.start()])
    return found


class Spellings(Generic[T]):
    """Things by all the ways in which their ids may be spelled.

    Parameters
    ----------
    names : iterable of (str, T, int or None)
        An id, what it means, and before which of its characters a tail of it may begin (see `tails`).
        A thing may have several ids.
    """

    def __init__(self, names: Iterable[tuple[str, T, int | None]]) -> None:
        self._found: tuple[dict[Hashable, set[T]], ...] = tuple(defaultdict(set) for _ in range(5))
        cut = [(text, thing, tails(text, end)) for text, thing, end in dict.fromkeys(names)]
        fronts: dict[Words, set[T]] = defaultdict(set)
        for _, thing, ends in cut:
            for front in ends.values():
                fronts[front].add(thing)
        alone = len({thing for _, thing, _ in cut}) == 1
        exact, by_words, padded, suffix, padded_suffix = self._found
        for text, thing, ends in cut:
            words = folded(text)
            exact[text.strip()].add(thing)
            for found, key in ((by_words, words), (suffix, words)):
                found[key].add(thing)
            for found in (padded, padded_suffix):
                found[unpadded(words)].add(thing)
            for tail, front in ends.items():
                # a front that only one id has may be part of its name
                if alone or len(fronts[front]) > 1:
                    suffix[tail].add(thing)
                    padded_suffix[unpadded(tail)].add(thing)

    def find(self, text: str, laxest: int = PADDED_SUFFIX) -> tuple[int, set[T]]:
        """What an id means, and by which agreement: the strictest that anything fits.

        Several things are an ambiguity.
        """
        words = folded(text)
        keys: tuple[Hashable, ...] = (text.strip(), words, unpadded(words), words, unpadded(words))
        for level in range(laxest + 1):
            if keys[level] and (things := self._found[level].get(keys[level])):
                return level, things
        return laxest, set()

    def called(self, words: Words, level: int) -> set[T]:
        """What has an id of these words, `FOLDED` or `PADDED`."""
        return self._found[level].get(words, set())
