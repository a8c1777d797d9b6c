"""Folders that stand for classes: what they say of the patients in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from indexer.discovery.candidates import Candidate
from indexer.discovery.layout import IMAGE, Decision, Item
from indexer.discovery.plan import Discovery
from indexer.discovery.tokens import split
from indexer.discovery.vocabulary import CLASSES, Kind

_VAGUE = {"patient", "patients", "lesion", "lesions", "tumor", "tumour"}
"""Words that are said of every class of a collection."""


def offer_classes(candidates: Sequence[Candidate], decisions: Sequence[Decision], found: Discovery) -> None:
    """Label patients by the class that their folder is called by, where there are several."""
    of: dict[str, set[str]] = defaultdict(set)
    for each, decision in zip(candidates, decisions, strict=True):
        if decision.role == IMAGE and decision.person is not None and (name := _class(each.item)):
            of[decision.person.patient].add(name)
    values = {value for held in of.values() for value in held}
    if len(values) > 1:
        for patient, held in of.items():
            if len(held) == 1:
                found.labels.setdefault(patient, {})["class"] = min(held)
        found.notes.append(
            f"folders stand for classes ({', '.join(sorted(values)[:6])}): offered as the label class"
        )


def _class(item: Item) -> str | None:
    """What the nearest folder above says that is made of words for classes; of a picture, its own folder."""
    for depth, name in enumerate(reversed(item.path[:-1])):
        tokens = [t for t in split(name) if t.kind not in (Kind.SEQUENCE, Kind.CONTRAST)]
        plain = all(t.text in CLASSES or t.text.rstrip("s") in CLASSES for t in tokens)
        called = _without_sequence(name)
        if tokens and plain and not {t.text for t in tokens} <= _VAGUE:
            return called
        if item.picture and depth == 0 and not any(map(str.isdigit, called)) and not _says_nothing(name):
            return called
    return None


def _without_sequence(name: str) -> str:
    """A class folder's name without the sequence that it also says: ``glioma T1C+``."""
    said = [t for t in split(name) if t.kind in (Kind.SEQUENCE, Kind.CONTRAST)]
    for token in reversed(said):
        name = name[: token.start] + name[token.end :]
    return name.strip(" _-+") if said else name


def _says_nothing(name: str) -> bool:
    return all(t.kind in (Kind.CONTAINER, Kind.PROTOCOL, Kind.PLAIN, Kind.SEQUENCE) for t in split(name))
