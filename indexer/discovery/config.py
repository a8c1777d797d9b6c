"""``cbir.json``: what images below its folder are, where their names cannot say it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from indexer.discovery.vocabulary import SEQUENCES
from indexer.errors import ReadError

CONFIG = "cbir.json"

MOST_BYTES = 2**20

EXAMPLE = '{"channels": ["t1", "flair", "t1ce"], "stack": true, "pattern": "{patient}/{visit}/{sequence}"}'

_FIELD = re.compile(r"\\\{(patient|visit|sequence)\\\}|\\\*\\\*/|\\\*")
_FIELDS = {"patient", "visit", "sequence"}


@dataclass(frozen=True)
class Config:
    """A ``cbir.json``.

    Attributes
    ----------
    path : Path
    channels : tuple of str
        Sequence that each channel of a multi-channel image holds.
    stack : bool, optional
        Whether the images of one folder are slices of one scan.
    pattern : re.Pattern, optional
        What a path below its folder (without the file's extension) says, in groups called ``patient``,
        ``visit`` and ``sequence``.
    """

    path: Path
    channels: tuple[str, ...] = ()
    stack: bool | None = None
    pattern: re.Pattern[str] | None = None

    def said(self, path: Path) -> dict[str, str]:
        """What the pattern finds in a path without extension; empty where it does not fit."""
        if self.pattern is None or not path.is_relative_to(self.path.parent):
            return {}
        match = self.pattern.fullmatch(path.relative_to(self.path.parent).as_posix())
        return {} if match is None else {k: v for k, v in match.groupdict().items() if v}


def find_config(folder: Path, obeyed: Callable[[Path], bool] = lambda path: True) -> Config | None:
    """The ``cbir.json`` in `folder`, or the nearest above it.

    Parameters
    ----------
    folder : Path
    obeyed : callable
        Whether a file is to be taken; others are passed over.

    Raises
    ------
    ReadError
        If it is no JSON object, or holds a setting that is not known.
    """
    files = (above / CONFIG for above in (folder, *folder.parents))
    path = next((file for file in files if file.is_file() and obeyed(file)), None)
    if path is None:
        return None
    remedy = f"write e.g. {EXAMPLE}"
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ReadError(path, f"has more than {MOST_BYTES} bytes", remedy)
        settings = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ReadError(path, f"cannot be read as JSON ({error})", remedy) from error
    if not isinstance(settings, dict):
        raise ReadError(path, "is no JSON object", remedy)
    if unknown := sorted(settings.keys() - {"channels", "stack", "pattern"}):
        raise ReadError(path, f"has the unknown setting {unknown[0]!r}", remedy)
    channels, stack, pattern = settings.get("channels", []), settings.get("stack"), settings.get("pattern")
    if not isinstance(channels, list) or not all(
        isinstance(c, str) and c.strip() and c.isprintable() for c in channels
    ):
        raise ReadError(path, "its channels are not a list of names", remedy)
    if stack is not None and not isinstance(stack, bool):
        raise ReadError(path, "its stack is neither true nor false", remedy)
    if pattern is not None and (not isinstance(pattern, str) or "{patient}" not in pattern):
        raise ReadError(path, "its pattern is no path with {patient} in it", remedy)
    names = (c.strip().lower() for c in channels)
    return Config(
        path,
        tuple(SEQUENCES.get(name, name) for name in names),
        stack,
        None if pattern is None else _compiled(path, pattern, remedy),
    )


def _compiled(path: Path, pattern: str, remedy: str) -> re.Pattern[str]:
    """A pattern of ``{patient}``, ``{visit}``, ``{sequence}``, ``*`` (not beyond a folder) and ``**/``.

    A field that comes again has to be the same again. One right before another leaves it a single
    character: ``{patient}{visit}`` of ``100101A`` is ``100101`` and ``A``.
    """
    if unknown := set(re.findall(r"\{(.*?)\}", pattern)) - _FIELDS:
        raise ReadError(path, f"its pattern has the unknown field {{{min(unknown)}}}", remedy)
    seen: set[str] = set()

    def part(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return "(?:[^/]+/)*" if match[0].startswith(r"\*\*") else "[^/]*"
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        most = "" if match.string.startswith(r"\{", match.end()) else "?"
        return f"(?P<{name}>[^/]+{most})"

    return re.compile(_FIELD.sub(part, re.escape(pattern.strip("/"))))
