"""The answer as one HTML file with its pictures inside: nothing is fetched when it is opened.

What it says is in ``report.html.j2`` beside this, where all text is escaped.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from indexer.errors import CbirError
from indexer.files import refuse_folder, written_whole
from indexer.sandbox import read
from indexer.scan import Scan, ScanRef
from retrieval.answer import Answer, Hit
from retrieval.images import chosen
from retrieval.parsing import Box
from retrieval.pictures import HEAT, Picture, Plane, overlay, picture

SIDE = 320
"""Side of the square a picture is shown in, in CSS pixels."""
TEMPLATE = "report.html.j2"
ORDERS = {
    None: "by class, then by appearance",
    "class": "by class",
    "appearance": "by appearance",
    "similarity": "most similar first",
}
"""How hits are ordered, in words."""

Key = tuple[ScanRef, int]
"""A scan and a slice of it."""
Beside = Callable[[ScanRef], Sequence[ScanRef]]
"""Scans of the same case as a hit's, one of each other sequence."""
Explain = Callable[[Hit, Scan, bool], NDArray[np.float32] | None]
"""For a hit, the scan of one of its slices, and whether that is the query's: 0…1 over the slice."""


def _read(source: str) -> list[Scan]:
    return read(Path(source))


def write_report(
    answer: Answer,
    path: Path,
    *,
    load: Callable[[str], Sequence[Scan]] = _read,
    index: str = "",
    explain: Explain | None = None,
    beside: Beside | None = None,
) -> None:
    """Write the report of an answer.

    For each hit it shows the pair of slices that speaks most for it, each scaled to its own grey
    values. A source that is gone or damaged leaves a box with the reason in place of its picture.
    File names of the hits are not shown: they may name patients.

    Parameters
    ----------
    answer : Answer
    path : Path
        The file to write, in one step: a reader never sees half a report.
    load : callable, optional
        Gives the scans of a source; called once for each source. An outline that a scan carries is
        drawn.
    index : str, optional
        Name of the index, for the head of the report.
    explain : callable, optional
        Says where the similarity comes from, as :func:`retrieval.explain.explanation` does; this can
        then be shown over the pictures.
    beside : callable, optional
        Names the other sequences of a hit's case, which are shown at the place of the matched slice, as
        the query's are; where several sequences ask.

    Raises
    ------
    CbirError
        If `path` cannot be written.
    """
    refuse_folder(path)
    text = report_page(answer, load=load, index=index, explain=explain, beside=beside)
    try:
        with written_whole(path) as aside:
            aside.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        reason = f"the report cannot be written ({error.strerror})"
        raise CbirError(path, reason, "name a file in a folder that you may write to") from error


def report_page(
    answer: Answer,
    *,
    load: Callable[[str], Sequence[Scan]] = _read,
    index: str = "",
    explain: Explain | None = None,
    beside: Beside | None = None,
) -> str:
    """The HTML that :func:`write_report` writes."""
    if beside is None or len(answer.query.scans) < 2:
        beside = _nobody
    pictures, heat, others = _pictures(answer, load, explain, beside)
    return _template().render(
        answer=answer,
        facts=_facts(answer, index),
        order=ORDERS[answer.query.by],
        pairs=[(hit, *_sides(hit, pictures, heat, others)) for hit in answer.hits],
        explained=bool(heat),
        side=SIDE,
        heat=Markup(", ".join(f"rgb{colour}" for colour in HEAT)),
        notice_css=_css(answer.notice),
    )


# --- pictures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One of the two slices of a pair, as the page shows it.

    Attributes
    ----------
    what : str
        Sequence and slice.
    picture : Picture
    heat : bytes
        What explains it, as a PNG over the picture; empty where nothing does.
    others : sequence of (str, Picture)
        Other sequences of the study at the same place, by name.
    """

    what: str
    picture: Picture
    heat: bytes = b""
    others: Sequence[tuple[str, Picture]] = ()


def _nobody(scan: ScanRef) -> Sequence[ScanRef]:
    return ()


def _pictures(
    answer: Answer, load: Callable[[str], Sequence[Scan]], explain: Explain | None, beside: Beside
) -> tuple[dict[Key, Picture], dict[tuple[int, bool], bytes], dict[Key, list[tuple[str, Picture]]]]:
    """Every slice the report shows; what explains it, by the hit's rank and whether it is the query's; and
    other sequences at its place.

    One source is read after the other, and once.
    """
    # the query first: a hit is explained by what it is like
    sides: dict[Key, list[tuple[Hit, bool]]] = {}
    for of_query in (True, False):
        for hit in answer.hits:
            sides.setdefault(_query_side(hit) if of_query else _hit_side(hit), []).append((hit, of_query))
    wanted: dict[str, list[Key]] = {}
    for key in sides:
        wanted.setdefault(key[0].source, []).append(key)
    of_the_query = {_query_side(hit) for hit in answer.hits}
    around = {key: _around(key, answer, beside, of_query=key in of_the_query) for key in sides}
    again = {ref.source for refs in around.values() for ref in refs}
    held: dict[str, Sequence[Scan]] = {}
    planes: dict[Key, Plane] = {}
    pictures: dict[Key, Picture] = {}
    heat: dict[tuple[int, bool], bytes] = {}
    for source, keys in wanted.items():
        try:
            scans = load(source)
        except Exception as error:  # whatever a file does to its reader, the report is written
            pictures |= dict.fromkeys(keys, Picture(reason=_reason(error)))
            continue
        if source in again:
            held[source] = scans
        for key in keys:
            ref, position = key
            try:
                scan = chosen(scans, ref)
                if position >= len(scan):
                    raise CbirError(source, f"has no slice {position} any more")
                box = answer.query.region if key in of_the_query else None
                if answer.query.region_slice not in (None, position):
                    box = None
                pictures[key] = picture(scan, position, box)
                planes[key] = Plane.of(scan, position)
                if explain is None:
                    continue
                for hit, of_query in sides[key]:
                    values = explain(hit, scan, of_query)
                    if values is not None:
                        heat[hit.rank, of_query] = overlay(scan, position, values, box)
            except Exception as error:
                pictures[key] = Picture(reason=_reason(error))
    return pictures, heat, _others(planes, around, held, load)


def _around(key: Key, answer: Answer, beside: Beside, *, of_query: bool) -> list[ScanRef]:
    """Scans that may show other sequences at the place of a slice."""
    if beside is _nobody:
        return []
    return [ref for ref in (answer.query.scans if of_query else beside(key[0])) if ref != key[0]]


def _others(
    planes: Mapping[Key, Plane],
    around: Mapping[Key, Sequence[ScanRef]],
    held: Mapping[str, Sequence[Scan]],
    load: Callable[[str], Sequence[Scan]],
) -> dict[Key, list[tuple[str, Picture]]]:
    """Other sequences at the places of slices, one picture of each; what cannot be read is left out."""
    wanted: dict[str, list[tuple[Key, ScanRef]]] = {}
    for key, refs in around.items():
        for ref in refs if key in planes else ():
            wanted.setdefault(ref.source, []).append((key, ref))
    found: dict[Key, dict[str, Picture]] = {}
    for source, places in wanted.items():
        with suppress(Exception):  # whatever a file does to its reader, the report is written
            scans = held[source] if source in held else load(source)
            for key, ref in places:
                scan, plane = chosen(scans, ref), planes[key]
                name = scan.sequence or "unknown sequence"
                if scan.sequence == plane.grid.sequence or name in found.get(key, {}):
                    continue
                shown = plane.picture(scan)
                if shown is not None:
                    found.setdefault(key, {})[name] = shown
    return {key: sorted(shown.items()) for key, shown in found.items()}


def _query_side(hit: Hit) -> Key:
    return hit.query_scan, hit.query_slice


def _hit_side(hit: Hit) -> Key:
    return hit.scan, hit.slice


def _reason(error: Exception) -> str:
    # not str(error): it names the file
    if isinstance(error, CbirError):
        return error.reason
    return (isinstance(error, OSError) and error.strerror) or f"cannot be shown ({type(error).__name__})"


# --- page ----------------------------------------------------------------------------------------


@cache
def _template() -> jinja2.Template:
    rooms = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    rooms.filters |= {
        "base64": lambda data: b64encode(data).decode("ascii"),
        "begin": lambda text: text[:1].upper() + text[1:],
    }
    return rooms.get_template(TEMPLATE)


def _facts(answer: Answer, index: str) -> dict[str, str]:
    """What the head of the page says; what is empty is left out."""
    query, now = answer.query, datetime.now().astimezone()
    return {
        "Query": Path(query.source).name or query.source,
        "Sequence": query.sequence or "unknown",
        "Slices": str(query.slices),
        "Region": "" if query.region is None else _region(query.region, query.region_slice),
        "Index": index,
        "Written": f"{now:%Y-%m-%d %H:%M}",
    }


def _region(region: Box, position: int | None) -> str:
    x0, y0, x1, y1 = region
    where = "" if position is None else f" on slice {position}"
    return f"columns {x0}–{x1}, rows {y0}–{y1}{where}"


def _sides(
    hit: Hit,
    pictures: Mapping[Key, Picture],
    heat: Mapping[tuple[int, bool], bytes],
    others: Mapping[Key, Sequence[tuple[str, Picture]]],
) -> tuple[Side, Side]:
    """The query's slice of a pair, and the hit's."""
    return (
        Side(
            _called(hit.query_sequence, hit.query_slice),
            pictures[_query_side(hit)],
            heat.get((hit.rank, True), b""),
            others.get(_query_side(hit), ()),
        ),
        Side(
            _called(hit.sequence, hit.slice),
            pictures[_hit_side(hit)],
            heat.get((hit.rank, False), b""),
            others.get(_hit_side(hit), ()),
        ),
    )


def _called(sequence: str | None, position: int) -> str:
    return f"{sequence or 'unknown sequence'}, slice {position}"


def _css(text: str) -> Markup:
    """`text` as a CSS string in which nothing can end the string or the style element."""
    return Markup('"' + re.sub(r"[^\w ,.]", lambda found: f"\\{ord(found[0]):x} ", text) + '"')
