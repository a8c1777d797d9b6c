"""The answer as one HTML file with its pictures inside: nothing is fetched when it is opened."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation

from indexer.errors import CbirError
from indexer.files import written_whole
from indexer.sandbox import read
from indexer.scan import Scan, ScanRef, Slice, displayed
from retrieval.answer import Answer, Evidence, Hit
from retrieval.images import chosen

SIDE = 320
"""Side of the square a picture is shown in, in CSS pixels."""
PIXELS = 480
"""Longer side of a picture in its own pixels: finer than the square, for print and dense screens."""
WINDOW = (0.5, 99.5)
"""Percentiles of a slice that are shown black and white."""
OUTLINE, BOX = (255, 196, 0), (0, 209, 255)
HEAT = ((255, 60, 20), (255, 225, 120))
"""Colours of an explanation, from where little comes from to where the most does."""

Region = tuple[int, int, int, int]
Key = tuple[ScanRef, int]
"""A scan and a slice of it."""
Side = tuple[int, bool]
"""Rank of a hit, and whether the query's slice is meant."""
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

    Raises
    ------
    CbirError
        If `path` cannot be written.
    """
    text = report_page(answer, load=load, index=index, explain=explain)
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
) -> str:
    """The HTML that :func:`write_report` writes."""
    return _page(answer, *_pictures(answer, load, explain), index)


# --- pictures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A slice ready to be shown, or the reason why there is none.

    Attributes
    ----------
    jpeg : bytes
        Empty where the slice cannot be shown.
    left : str
        What lies at the left edge: ``R``, ``A`` or nothing where the image has no orientation.
    reason : str
        Why there is no picture.
    """

    jpeg: bytes = b""
    left: str = ""
    reason: str = ""


def _pictures(
    answer: Answer, load: Callable[[str], Sequence[Scan]], explain: Explain | None
) -> tuple[dict[Key, Picture], dict[Side, bytes]]:
    """Every slice the report shows, and what explains it, reading one source after the other."""
    # the query first: a hit is explained by what it is like
    sides: dict[Key, list[tuple[Hit, bool]]] = {}
    for of_query in (True, False):
        for hit in answer.hits:
            sides.setdefault(_query_side(hit) if of_query else _hit_side(hit), []).append((hit, of_query))
    wanted: dict[str, list[Key]] = {}
    for key in sides:
        wanted.setdefault(key[0].source, []).append(key)
    of_the_query = {_query_side(hit) for hit in answer.hits}
    pictures: dict[Key, Picture] = {}
    heat: dict[Side, bytes] = {}
    for source, keys in wanted.items():
        try:
            scans = load(source)
        except Exception as error:  # whatever a file does to its reader, the report is written
            pictures |= dict.fromkeys(keys, Picture(reason=_reason(error)))
            continue
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
                if explain is None:
                    continue
                for hit, of_query in sides[key]:
                    values = explain(hit, scan, of_query)
                    if values is not None:
                        heat[hit.rank, of_query] = overlay(scan, position, values, box)
            except Exception as error:
                pictures[key] = Picture(reason=_reason(error))
    return pictures, heat


def _query_side(hit: Hit) -> Key:
    return hit.query_scan, hit.query_slice


def _hit_side(hit: Hit) -> Key:
    return hit.scan, hit.slice


def _reason(error: Exception) -> str:
    # not str(error): it names the file
    if isinstance(error, CbirError):
        return error.reason
    return (isinstance(error, OSError) and error.strerror) or f"cannot be shown ({type(error).__name__})"


def picture(scan: Scan, position: int, box: Region | None = None) -> Picture:
    """A slice as it is looked at: windowed, true to size, without empty margins, outlines drawn.

    Parameters
    ----------
    scan : Scan
    position : int
        The slice.
    box : (x0, y0, x1, y1), optional
        A marked box in pixels of the displayed slice, end exclusive.

    Raises
    ------
    IndexError
        If `position` is not in the scan.
    """
    with BytesIO() as out:
        shown(scan, position, PIXELS, box).save(out, "JPEG", quality=90, subsampling=0, optimize=True)
        jpeg = out.getvalue()
    left = "" if scan.spacing is None else "A" if scan.axis == 0 else "R"
    return Picture(jpeg, left)


def shown(scan: Scan, position: int, pixels: int, box: Region | None = None) -> Image.Image:
    """The image of :func:`picture`, `pixels` long on its longer side."""
    plane = scan.slice(position)
    marked = _boxed(plane, box)
    rows, columns = _field(scan, marked)
    grey = windowed(plane.pixels)[rows, columns]
    image = _sized(Image.fromarray(grey), scan, pixels, Image.Resampling.BICUBIC).convert("RGB")
    for region, colour in ((plane.region, OUTLINE), (marked, BOX)):
        if region is not None and region.any():
            _draw(image, region[rows, columns], colour)
    return image


def overlay(
    scan: Scan, position: int, values: NDArray[np.float32], box: Region | None = None, pixels: int = PIXELS
) -> bytes:
    """Values over a slice as a PNG that covers its :func:`picture`: the less, the more transparent.

    Parameters
    ----------
    scan : Scan
    position : int
        The slice.
    values : ndarray of float32, shape (rows, columns)
        0…1 over the displayed slice.
    box : (x0, y0, x1, y1), optional
        As for the picture.
    pixels : int
        Longer side.
    """
    part = np.rint(values[_field(scan, _boxed(scan.slice(position), box))] * 255).astype(np.uint8)
    image = _sized(Image.fromarray(part), scan, pixels, Image.Resampling.BILINEAR)
    # few colours: half of the bytes, and no step that is seen
    image = image.point([round(level / 8) for level in range(256)])
    share = np.linspace(0, 1, 33)[:, None]
    image.putpalette(np.rint((1 - share) * HEAT[0] + share * HEAT[1]).astype(np.uint8).tobytes())
    with BytesIO() as out:
        opacity = np.rint(180 * share**0.75).astype(np.uint8).tobytes()
        image.save(out, "PNG", transparency=opacity, optimize=True)
        return out.getvalue()


def _sized(image: Image.Image, scan: Scan, pixels: int, how: Image.Resampling) -> Image.Image:
    """Part of a slice true to size, `pixels` long on its longer side."""
    across, down = (1.0, 1.0)
    if scan.spacing is not None:
        across, down = (s for axis, s in enumerate(scan.spacing) if axis != scan.axis)
    wide, tall = image.width * across, image.height * down
    scale = pixels / max(wide, tall)
    return image.resize((max(1, round(wide * scale)), max(1, round(tall * scale))), how)


def windowed(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey values from black to white between two percentiles of the slice.

    Examples
    --------
    >>> windowed(np.array([[0.0, 50.0, 100.0, np.nan]]))
    array([[  0, 128, 255,   0]], dtype=uint8)
    """
    values = np.asarray(pixels, np.float64)
    known = np.isfinite(values)
    finite = values[known]
    low, high = np.percentile(finite, WINDOW) if finite.size else (0.0, 0.0)
    if high <= low:
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    shown = np.clip((np.where(known, values, low) - low) / max(high - low, 1e-12), 0, 1)
    grey: NDArray[np.uint8] = np.rint(255 * shown).astype(np.uint8)
    return grey


def _field(scan: Scan, marked: NDArray[np.bool_] | None) -> tuple[slice, slice]:
    """Rows and columns that hold anything in some slice: skull-stripped scans have wide margins."""
    filled = (scan.voxels != scan.voxels[0, 0, 0]).any(axis=scan.axis, keepdims=True)
    shown = displayed(filled, scan.axis, 0)
    if marked is not None:
        shown = shown | marked
    spans = []
    for axis in (1, 0):
        held = np.flatnonzero(shown.any(axis=axis))
        first, last = (held[0], held[-1]) if held.size else (0, shown.shape[1 - axis] - 1)
        margin = 2 + (last - first) // 25
        spans.append(slice(max(0, int(first - margin)), int(last + margin + 1)))
    return spans[0], spans[1]


def _boxed(plane: Slice, box: Region | None) -> NDArray[np.bool_] | None:
    if box is None:
        return None
    region = np.zeros(plane.pixels.shape, bool)
    region[max(0, box[1]) : box[3], max(0, box[0]) : box[2]] = True
    return region


def _draw(image: Image.Image, region: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    """Draw the edge of a region around it."""
    large = np.asarray(Image.fromarray(region.astype(np.uint8) * 255).resize(image.size)) > 127
    edge = binary_dilation(large, iterations=2) & ~large
    image.paste(colour, mask=Image.fromarray(edge.astype(np.uint8) * 255))


# --- page ----------------------------------------------------------------------------------------


def _page(answer: Answer, pictures: dict[Key, Picture], heat: dict[Side, bytes], index: str) -> str:
    query, now = answer.query, datetime.now().astimezone()
    facts = {
        "Query": Path(query.source).name or query.source,
        "Sequence": query.sequence or "unknown",
        "Slices": str(query.slices),
        "Region": "" if query.region is None else _region(query.region, query.region_slice),
        "Index": index,
        "Written": f"{now:%Y-%m-%d %H:%M}",
    }
    hits = "".join(_hit(hit, pictures, heat) for hit in answer.hits)
    return PAGE.substitute(
        title=escape(f"Cases like {facts['Query']}"),
        style=STYLE.substitute(side=SIDE, notice=_css(answer.notice), heat=HEAT_CSS),
        facts="".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v),
        evidence="".join(_evidence(name, e) for name, e in answer.evidence.items())
        or "<p>The index has no labels to vote on.</p>",
        notes=_notes(answer.notes),
        why=WHY if heat else "",
        hits=f'<ol class="hits">{hits}</ol>' if hits else "<p>No case matches.</p>",
        notice=escape(answer.notice),
    )


def _region(region: Region, position: int | None) -> str:
    x0, y0, x1, y1 = region
    where = "" if position is None else f" on slice {position}"
    return f"columns {x0}–{x1}, rows {y0}–{y1}{where}"


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section class="notes"><h2>Notes</h2><ul>{items}</ul></section>' if items else ""


def _evidence(name: str, evidence: Evidence) -> str:
    rows = []
    for value, p in evidence.probabilities.items():
        prior = evidence.prior.get(value)
        mark = "" if prior is None else f'<i style="left:{100 * prior:.1f}%"></i>'
        usual = "" if prior is None else f"{_percent(prior)} in index"
        rows.append(
            f"<li{' class=in' if value in evidence.set else ''}><span>{escape(value)}</span>"
            f"<strong>{_percent(p)}</strong><small>{usual}</small>"
            f'<div><b style="width:{100 * p:.1f}%"></b>{mark}</div></li>'
        )
    if evidence.abstain:
        reason = evidence.reason or "the neighbours say nothing"
        verdict = f"{escape(reason[:1].upper() + reason[1:])}."
    elif not evidence.set:
        verdict = "Doubtful: the vote is less clear than for nine in ten known patients."
    else:
        verdict = f"Plausible: <strong>{escape(' or '.join(evidence.set))}</strong>."
    people = "1 patient" if evidence.neighbours == 1 else f"{evidence.neighbours} patients"
    measured = "Calibrated" if evidence.calibrated else "<strong>Uncalibrated</strong>"
    if evidence.calibrated_on:
        people += f", checked on {evidence.calibrated_on} known patients"
    return (
        f'<section class="evidence"><h3>{escape(_words(name))}</h3><ul>{"".join(rows)}</ul>'
        f"<p>{verdict} {measured} vote of {people}.</p></section>"
    )


def _hit(hit: Hit, pictures: dict[Key, Picture], heat: dict[Side, bytes]) -> str:
    chips = "".join(
        f"<li><span>{escape(_words(name))}</span> {escape(value)}</li>" for name, value in hit.labels.items()
    )
    chips = chips or "<li><span>no labels</span></li>"
    query = _figure(
        "Query", pictures[_query_side(hit)], hit.query_sequence, hit.query_slice, heat.get((hit.rank, True))
    )
    found = _figure(
        f"Hit {hit.rank}", pictures[_hit_side(hit)], hit.sequence, hit.slice, heat.get((hit.rank, False))
    )
    return (
        f'<li class="hit"><article aria-label="Hit {hit.rank}"><div class="facts">'
        f'<h3><span class="rank">{hit.rank}</span><span class="score">{hit.score:.3f}</span>'
        "<small>similarity</small></h3>"
        f'<ul class="chips">{chips}</ul>'
        f'<dl><div><dt>Case</dt><dd class="id">{escape(hit.case_id)}</dd></div>'
        f'<div><dt>Patient</dt><dd class="id">{escape(hit.patient_id)}</dd></div></dl></div>'
        f"{query}{found}</article></li>"
    )


def _figure(who: str, shown: Picture, sequence: str | None, position: int, heat: bytes | None) -> str:
    what = f"{sequence or 'unknown sequence'}, slice {position}"
    if shown.jpeg:
        data = b64encode(shown.jpeg).decode("ascii")
        side = f"<span>{shown.left}</span>" if shown.left else ""
        body = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(f"{who}: {what}")}">'
        if heat:
            data = b64encode(heat).decode("ascii")
            body += f'<img class="why" src="data:image/png;base64,{data}" alt="">'
        body += side
    else:
        body = f'<p class="missing">no picture: {escape(shown.reason)}</p>'
    return (
        f'<figure><div class="tile">{body}</div><figcaption><b>{who}</b> {escape(what)}</figcaption></figure>'
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _css(text: str) -> str:
    """`text` as a CSS string in which nothing can end the string or the style element."""
    return '"' + re.sub(r"[^\w ,.]", lambda found: f"\\{ord(found[0]):x} ", text) + '"'


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>$title</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
<header><h1>Similar known cases</h1><dl>$facts</dl></header>
<div class="columns">
<aside>
<h2>Evidence from the neighbours</h2>
<p class="key"><b></b> vote of the most similar patients <span><i></i> share in the index</span></p>
<p class="key">What similar cases were labelled: not a diagnosis.</p>
$evidence
$notes
</aside>
<main><h2>Cases, most similar first</h2>$why$hits
<p class="key">Left edge of a picture: R the patient's right, A front. Grey values are scaled slice by slice.
<span class="outline">▢</span> outline kept with the images
<span class="box">▢</span> box marked in the query</p>
</main>
</div>
<footer>$notice</footer>
</body>
</html>
""")

HEAT_CSS = ", ".join(f"rgb{colour}" for colour in HEAT)

WHY = """
<input type="checkbox" id="why"><label for="why"> Show where the similarity comes from</label>
<p class="key heat"><b></b> The parts of each slice that bring it near the other one of the pair: the
brighter, the more, each slice by itself. It tells what was compared, not where a lesion is.</p>
"""

STYLE = Template("""
:root { color-scheme: light dark; --page: #f4f5f6; --card: #fff; --ink: #1b2126; --quiet: #59636c;
  --line: #d9dde1; --bar: #2f6690; --out: #9db6c9; --track: #e8ebee; --mark: #1b2126; --chip: #e9eff4; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1d2125; --ink: #e4e8eb;
  --quiet: #a3adb6; --line: #33393f; --bar: #6fa8d4; --out: #43596a; --track: #2a3036; --mark: #fff;
  --chip: #2a343d; } }
* { box-sizing: border-box; }
body { margin: 0; padding-bottom: 3.2rem; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1, h2, h3, p, dl, dd, ol, ul, figure { margin: 0; padding: 0; }
ol, ul { list-style: none; }
h1 { font-size: 1.25rem; font-weight: 600; }
h2 { font-size: 1rem; font-weight: 600; margin-bottom: .6rem; }
small, .key, .evidence p, dt, figcaption { color: var(--quiet); font-size: .82rem; font-weight: 400; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .3rem 2rem; padding: .8rem 1.5rem;
  background: var(--card); border-bottom: 1px solid var(--line); }
header dl { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; min-width: 0; }
header dl div { display: flex; gap: .4rem; align-items: baseline; min-width: 0; }
dd { overflow-wrap: anywhere; font-weight: 500; }
.columns { display: grid; grid-template-columns: 20rem minmax(0, 1fr); gap: 1.5rem; padding: 1.2rem 1.5rem;
  max-width: 92rem; margin: 0 auto; }
.key b, .key i { display: inline-block; vertical-align: -.1em; height: .8em; }
.key b { width: 1.2em; background: var(--bar); border-radius: 2px; }
.key i { width: 2px; background: var(--mark); margin: 0 .3em 0 .8em; }
.key span { white-space: nowrap; }
.outline, .box { background: #000; padding: 0 .25em; border-radius: 2px; }
.outline { color: #ffc400; } .box { color: #00d1ff; }
.evidence, .notes { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .8rem 1rem; margin: .8rem 0; }
.evidence h3 { font-size: 1rem; font-weight: 600; }
.notes { border-left: 4px solid #c98a1b; } .notes li + li { margin-top: .4rem; }
.notes li { overflow-wrap: anywhere; font-size: .88rem; }
.evidence ul { margin: .4rem 0 .6rem; font-variant-numeric: tabular-nums; }
.evidence li { display: grid; grid-template-columns: minmax(0, 1fr) auto 6.5rem; align-items: baseline;
  gap: 0 .8rem; margin-bottom: .45rem; overflow-wrap: anywhere; }
.evidence li div { grid-column: 1 / -1; position: relative; height: .7rem; background: var(--track);
  border-radius: 3px; }
.evidence li strong, .evidence li > span { font-weight: 400; }
.evidence .in strong, .evidence .in > span { font-weight: 650; }
.evidence li small { text-align: right; }
.evidence div b { display: block; height: 100%; background: var(--out); border-radius: 3px; }
.evidence .in div b { background: var(--bar); }
.evidence div i { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px;
  background: var(--mark); }
.hit { background: var(--card); border: 1px solid var(--line); border-radius: 6px; margin-bottom: 1rem;
  break-inside: avoid; }
.hit article { display: grid; gap: 1rem; padding: 1rem;
  grid-template-columns: minmax(11rem, 1fr) minmax(0, ${side}px) minmax(0, ${side}px); }
.hit h3 { display: flex; align-items: baseline; gap: .6rem; margin-bottom: .7rem; }
.rank { font-size: .95rem; min-width: 1.9em; text-align: center; color: var(--card); background: var(--ink);
  border-radius: 1em; padding: .1em .4em; }
.score { font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.chips { display: flex; flex-wrap: wrap; gap: .35rem; margin-bottom: .9rem; }
.chips li { background: var(--chip); border-radius: 4px; padding: .12rem .5rem; font-weight: 600;
  overflow-wrap: anywhere; min-width: 0; }
.chips span { color: var(--quiet); font-weight: 400; font-size: .85rem; margin-right: .15rem; }
.hit dl div { margin-bottom: .35rem; }
.id { font: .82rem/1.3 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
figure { width: 100%; max-width: ${side}px; min-width: 0; }
.tile { position: relative; display: grid; place-items: center; width: 100%; aspect-ratio: 1;
  background: #000; border-radius: 4px; overflow: hidden; }
.tile img { position: absolute; width: 100%; height: 100%; object-fit: contain; }
.tile span { position: absolute; left: .5rem; top: 50%; transform: translateY(-50%); color: #d5d9dc;
  font-size: .8rem; }
.tile .why { display: none; }
#why:checked ~ .hits .why { display: block; }
#why, #why + label { cursor: pointer; vertical-align: middle; } #why ~ .hits { margin-top: .6rem; }
.heat { display: none; } #why:checked ~ .heat { display: block; }
.heat b { width: 3em; background: linear-gradient(90deg, #000, $heat); }
.missing { color: #c4cbd1; padding: 1.5rem; text-align: center; font-size: .88rem; overflow-wrap: anywhere; }
figcaption { padding-top: .35rem; } figcaption b { color: var(--ink); font-weight: 600; }
footer { position: fixed; inset: auto 0 0 0; padding: .55rem 1.5rem; text-align: center; font-weight: 600;
  font-size: .9rem; color: #3b2a00; background: #ffd978; border-top: 1px solid #d9a93a; }
footer::first-letter { text-transform: uppercase; }
@media screen and (max-width: 1180px) { .columns { grid-template-columns: minmax(0, 1fr); }
  }
@media screen and (max-width: 900px) { .hit article { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .hit .facts { grid-column: 1 / -1; } }
@page { size: A4; margin: 14mm 12mm 18mm; @bottom-center { content: $notice; font: 9pt sans-serif; } }
@media print { body { background: #fff; padding: 0; font-size: 12px; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  .columns { display: block; padding: 0; } header { padding: 0 0 .5rem; margin-bottom: .8rem; }
  aside { margin-bottom: 1rem; }
  .evidence { break-inside: avoid; } figure { width: 62mm; }
  .hit article { grid-template-columns: minmax(0, 1fr) auto auto; gap: .8rem; padding: .7rem; }
  #why, #why + label { display: none; }
  footer { position: static; margin-top: 1rem; } }
""")
