"""A plan as people read it: how many of what, an example of each, and what to look at."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from indexer.discovery.plan import Planned

RULE = '{"pattern": "{patient}/{visit}/{sequence}"}'


def table(planned: Sequence[Planned], root: Path) -> list[tuple[str, str, str]]:
    """Rows of what, how many, and an example.

    Parameters
    ----------
    planned : sequence of Planned
    root : Path
        Examples are named from here.
    """
    images = [each for each in planned if each.role == "image"]
    persons = {each.patient for each in images}
    visits = {(each.patient, each.visit) for each in images}
    rows = [
        ("persons", str(len(persons)), min(filter(None, persons), default="")),
        ("visits", str(len(visits)), _visit(visits)),
    ]
    groups: dict[str, list[Planned]] = defaultdict(list)
    for each in images:
        groups[f"images, {each.sequence or 'sequence unknown'}"].append(each)
    for each in planned:
        if each.role == "region":
            groups["outlines"].append(each)
    for each in planned:
        if each.role == "ignored":
            groups[f"left out: {_kind(each.reason or '')}"].append(each)
    for what, members in groups.items():
        file = members[0].files[0]
        example = os.path.relpath(file, root) if file.is_absolute() else str(file)
        rows.append((what, str(len(members)), example))
    columns = Counter(column for each in _one_each(images) for column in each.labels)
    for column, n in columns.items():
        values = sorted({each.labels[column] for each in images if column in each.labels})
        rows.append((f"label {column}", f"{n} of {len(visits)} visits", ", ".join(values[:4])))
    return rows


def warnings(planned: Sequence[Planned]) -> list[str]:
    """What of a plan should be looked at before it is believed."""
    sequences: dict[str, set[str | None]] = defaultdict(set)
    shown: dict[str, str] = {}  # as their files' paths do, which are told anyway
    for each in planned:
        if each.role == "image" and each.patient is not None:
            sequences[each.patient].add(each.sequence)
            path = str(each.files[0])
            shown.setdefault(each.patient, each.patient if each.patient in path else path)
    unknown = sorted(shown[patient] for patient, held in sequences.items() if held == {None})
    if unknown and len(unknown) < len(sequences):
        who = f"{len(unknown)} of {len(sequences)} patients have only unknown sequences: {_some(unknown)}"
        return [f"{who}; if their files name them, write a cbir.json there, e.g. {RULE}"]
    return []


def left_out(planned: Sequence[Planned]) -> list[str]:
    """One line that says how much is left out, by reason; none if nothing is."""
    reasons = Counter(_kind(each.reason or "") for each in planned if each.role == "ignored")
    if not reasons:
        return []
    said = ", ".join(f"{n} × {reason}" for reason, n in reasons.most_common())
    return [f"left out: {said}; --all-images takes copies and maps, too"]


def _one_each(images: Iterable[Planned]) -> list[Planned]:
    """One image of each visit."""
    return list({(each.patient, each.visit): each for each in images}.values())


def _visit(visits: Iterable[tuple[str | None, str | None]]) -> str:
    named = sorted((patient or "", visit) for patient, visit in visits if visit)
    return " ".join(named[0]) if named else ""


def _kind(reason: str) -> str:
    return reason.partition(" (")[0]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
