"""What files beside the images say of them: the tables and descriptions that the field has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.discovery.roles import understood

DATASET = "dataset.json"
DESCRIPTION = "dataset_description.json"


@dataclass(frozen=True)
class Channels:
    """What channels below a folder are, by the ``dataset.json`` of the Medical Decathlon or nnU-Net.

    Attributes
    ----------
    folder : Path
    names : tuple of str
        In the order of the channels.
    """

    folder: Path
    names: tuple[str, ...]


def channels(files: Iterable[Path]) -> list[Channels]:
    """The channels that descriptions among the files name; the deepest folder first."""
    found = []
    for file in files:
        if file.name != DATASET:
            continue
        description = _json(file)
        named: Any = description.get("channel_names") or description.get("modality") or {}
        if isinstance(named, list):
            named = dict(enumerate(named))
        if not isinstance(named, dict):
            continue
        try:
            ordered = [str(named[key]) for key in sorted(named, key=int)]
        except (TypeError, ValueError):
            continue
        if ordered:
            found.append(Channels(file.parent, tuple(map(_sequence, ordered))))
    return sorted(found, key=lambda each: -len(each.folder.parts))


def derivatives(files: Iterable[Path]) -> set[Path]:
    """Folders whose ``dataset_description.json`` says that all below is derived (BIDS, ``DatasetType``)."""
    return {
        file.parent
        for file in files
        if file.name == DESCRIPTION and str(_json(file).get("DatasetType", "")).lower() == "derivative"
    }


def _sequence(name: str) -> str:
    return understood(name).sequence or name.strip().lower()


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
