"""The viewer in a real browser, in front of the real service with a small demo cohort."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import re
import shutil
import threading
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel as nib
import nibabel.processing
import numpy as np
import pytest
from PIL import Image

from indexer.case_index import CaseIndex
from indexer.demo import write_cohort
from indexer.encoder import DEFAULT, load_encoder
from indexer.ingest import ingest
from tests.support.paths import ARTIFACTS, ROOT

STATIC = ROOT / "retrieval" / "service" / "static"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",  # Chromium then draws WebGL in software
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EVIL = "<img src=x onerror=\"document.title='owned'\">"
SHOWN = """() => !document.body.classList.contains("busy") && document.querySelector(".hit[aria-current]")
  && [...document.querySelectorAll("figure")].every((pane) => !pane.classList.contains("empty")
    && pane.querySelector(".where")?.textContent)"""
"""Both images of the chosen hit are on the screen."""


def needed(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


# --- what is served and who looks -----------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `index` (twelve indexed cases), and `new`, two patients that are not among them."""
    needed("fastapi", "uvicorn", "multipart")
    root = tmp_path_factory.mktemp("viewer")
    write_cohort(root / "cohort", patients=12)
    write_cohort(root / "new", patients=2, seed=1)
    encoder = load_encoder(DEFAULT)
    with CaseIndex.create(root / "index", encoder) as index:
        ingest(index, [root / "cohort"], encoder)
    return root


@contextmanager
def served(index: Path, encoder: Any = None, **settings: Any) -> Iterator[str]:
    """The service in a thread, on a free port of loopback; gives its address."""
    import uvicorn

    from retrieval.service.app import create_app
    from retrieval.service.settings import Settings

    app = create_app(Settings(index=index, port=0, **settings), encoder)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            thread.join(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def service(demo: Path) -> Iterator[str]:
    with served(demo / "index") as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if shutil.which("chromium") is None:
        pytest.skip("Debian's chromium is not installed")
    needed("playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield chromium
        chromium.close()


@dataclass
class Seen:
    """What a page did."""

    requests: list[Any] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on a laptop's screen; the test fails if it asks another host or complains in the console."""
    context = browser.new_context(viewport={"width": 1366, "height": 768})
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.seen = seen = Seen()
    page.on("request", lambda request: seen.requests.append(request))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("console", lambda message: seen.complaints.append(message.text) if unexpected(message) else None)
    yield page
    hosts = {urlsplit(request.url).hostname for request in seen.requests if request.url[:4] == "http"}
    context.close()
    assert hosts <= {"127.0.0.1"}
    assert not seen.complaints


def unexpected(message: Any) -> bool:
    """Errors, and whatever the content security policy refused; failed requests are looked at by the tests."""
    return message.type == "error" and "Failed to load resource" not in message.text


def ready(page: Any) -> None:
    """Wait for the page's script and for what the service tells of itself."""
    page.wait_for_function("() => document.querySelector('#holds').textContent")


def upload(page: Any, path: Path) -> None:
    ready(page)
    page.set_input_files("#file", path)
    page.wait_for_function(SHOWN)


def new_scan(demo: Path, sequence: str = "t1ce") -> Path:
    return sorted((demo / "new").glob(f"*/*_{sequence}.nii.gz"))[0]


def settled(page: Any) -> None:
    """Wait until what was asked for is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def colour(page: Any, side: str) -> np.ndarray:
    """What the canvas of a side shows, without what lies over it: (rows, columns, red green blue)."""
    cover = """(visibility) => { for (const part of document.querySelectorAll(".side, .values, .over, #search"))
        part.style.visibility = visibility; }"""
    page.evaluate(cover, "hidden")
    settled(page)
    shot = page.locator(f"#{side}-pane .stage").screenshot()
    page.evaluate(cover, "")
    return np.asarray(Image.open(BytesIO(shot)).convert("RGB"))


def picture(page: Any, side: str) -> np.ndarray:
    """The same in grey values (rows, columns)."""
    return np.asarray(Image.fromarray(colour(page, side)).convert("L"), float)


def warmth(page: Any, side: str) -> np.ndarray:
    """How much redder than blue the pixels of a side are (rows, columns): images are grey, maps are not."""
    colours = colour(page, side).astype(float)
    return colours[..., 0] - colours[..., 2]


def warmed(page: Any, side: str) -> np.ndarray:
    """The same, once there is a map."""
    for _ in range(200):
        if (warm := warmth(page, side)).max() > 30:
            return warm
        page.wait_for_timeout(50)
    raise AssertionError(f"no map on the {side}")


def extent(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def turned(plane: np.ndarray) -> list[np.ndarray]:
    return [plane, plane[::-1], plane[:, ::-1], plane[::-1, ::-1]]


def position(page: Any, side: str) -> int:
    return int(page.locator(f"#{side}-pane .scroll").input_value())


def filter_on(page: Any, column: str) -> Any:
    return page.locator("#filters label", has_text=column).locator("select")


def hit(page: Any) -> int:
    """Rank of the chosen hit."""
    return int(page.text_content(".hit[aria-current] .rank"))


def keep(page: Any, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"viewer-{name}.png")


def posted(request: Any) -> dict[str, list[str]]:
    """The fields of a form that was sent, without files."""
    fields: dict[str, list[str]] = {}
    body = (request.post_data_buffer or b"").decode(errors="replace")
    if "urlencoded" in request.headers.get("content-type", ""):
        return urllib.parse.parse_qs(body)
    for name, value in re.findall(r'name="(\w+)"\r\n\r\n(.*?)\r\n--', body, re.S):
        fields.setdefault(name, []).append(value)
    return fields


def asked_again(route: Any, kept: str) -> Any:
    """What a kept query answers in place of a series of the PACS, which it does not know."""
    fields = {name: values for name, values in posted(route.request).items() if name != "series"}
    kind = {"content-type": "application/x-www-form-urlencoded"}
    body = urllib.parse.urlencode(fields, doseq=True)
    return route.fetch(url=kept, post_data=body, headers={**route.request.headers, **kind})


def answer(page: Any, act: Callable[[], Any]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The answer that an action asks for, and the form that was sent."""
    ready(page)
    with page.expect_response(lambda r: r.request.method == "POST") as caught:
        act()
    page.wait_for_function(SHOWN)
    return caught.value.json(), posted(caught.value.request)


# --- the way of a radiologist ---------------------------------------------------------------------


@pytest.mark.browser
def test_from_a_file_to_two_images_side_by_side(page: Any, service: str, demo: Path) -> None:
    page.goto(service)
    page.wait_for_selector("#start")
    page.wait_for_function("() => document.querySelector('#holds').textContent.includes('12 known cases')")
    assert page.is_hidden("#pacs"), "this service has no PACS"
    keep(page, "start")
    told, _ = answer(page, lambda: page.set_input_files("#file", new_scan(demo)))

    assert page.locator("#hits li").count() == len(told["hits"]) == 10
    first = told["hits"][0]
    card = page.locator("#hits li").first
    assert f"{first['score']:.3f}" in card.inner_text()
    assert f"who grade {first['labels']['who_grade']}" in card.inner_text()
    assert "synthetic" not in card.inner_text(), "the same for all hits"
    page.wait_for_function("() => [...document.querySelectorAll('.hit img')].every((i) => i.naturalWidth)")
    assert (position(page, "query"), position(page, "hit")) == (first["query_slice"], first["slice"])
    for side in ("query", "hit"):
        grey = picture(page, side)
        assert np.median(grey[len(grey) // 2]) > 50, "brain in the middle"
        assert grey[4:24, 4:24].max() < 30, "nothing in the corner"
        assert grey.shape[0] > 550, "large"

    grade = page.get_by_label("Evidence for who grade")
    evidence = told["evidence"]["who_grade"]
    assert grade.locator("li").count() == len(evidence["probabilities"])
    assert grade.locator("i").count() == len(evidence["prior"])
    assert "not calibrated" in grade.inner_text()
    assert (
        f"Plausible: {' or '.join(evidence['set'])} · {evidence['neighbours']} patients" in grade.inner_text()
    )
    assert f"{evidence['probabilities']['4'] * 100:.0f}\u00a0%" in grade.inner_text()
    assert page.locator("#why").get_attribute("aria-pressed") == "false", "there, but not switched on"
    assert page.locator("footer").inner_text() == "Research use only, not a medical device"
    assert page.locator("footer").bounding_box()["y"] < 768
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    keep(page, "hits")
    page.set_viewport_size({"width": 700, "height": 600})
    for down in (0, 10_000):
        page.mouse.wheel(0, down)
        settled(page)
        notice = page.locator("footer").bounding_box()
        assert 0 <= notice["y"] <= 600 - notice["height"], "the notice stays in sight"


@pytest.mark.browser
def test_nothing_is_needed_but_the_service(page: Any, service: str, demo: Path) -> None:
    """Requests stay on this machine (every test), and scripts, styles and code from text are refused."""
    response = page.goto(service)
    policy = response.headers["content-security-policy"]
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.replace("style-src 'self' 'unsafe-inline'", "")
    text = "".join(path.read_text() for path in STATIC.iterdir() if path.suffix in (".html", ".css"))
    assert "style=" not in text
    assert not re.search(r"<script>|<style|https?:|@import|url\(|\son\w+=", text)
    upload(page, new_scan(demo))
    asked = {urlsplit(r.url).path.rpartition("/")[2] for r in page.seen.requests}
    assert {"niivue.umd.js", "viewer.js", "query", "volume.nii.gz", "thumbnail.png"} <= asked


@pytest.mark.browser
def test_the_viewer_works_under_the_strictest_policy(page: Any, service: str, demo: Path) -> None:
    strict = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )

    def harden(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, headers={**response.headers, "content-security-policy": strict})

    page.route(lambda url: urlsplit(url).path == "/", harden)
    page.goto(service)
    upload(page, new_scan(demo))
    assert picture(page, "hit").max() > 200


@pytest.mark.browser
def test_keys_go_through_hits_and_slices(page: Any, service: str, demo: Path) -> None:
    page.goto(service)
    told, _ = answer(page, lambda: page.set_input_files("#file", new_scan(demo)))
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    page.wait_for_function(SHOWN)
    assert hit(page) == 3
    assert position(page, "hit") == told["hits"][2]["slice"]
    assert f"hit={told['hits'][2]['case_id']}" in page.url
    page.keyboard.press("ArrowUp")
    page.wait_for_function(SHOWN)
    assert hit(page) == 2
    before = position(page, "query"), position(page, "hit")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert (position(page, "query"), position(page, "hit")) == (before[0] + 2, before[1] + 2)
    page.keyboard.press("l")
    page.keyboard.press("ArrowLeft")
    assert (position(page, "query"), position(page, "hit")) == (before[0] + 1, before[1] + 2)
    page.keyboard.press("0")
    assert (position(page, "query"), position(page, "hit")) == before
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    assert page.is_hidden("#keys")


@pytest.mark.browser
def test_tab_reaches_everything_and_shows_where_it_is(page: Any, service: str, demo: Path) -> None:
    page.goto(service)
    upload(page, new_scan(demo))
    page.evaluate("() => document.activeElement.blur()")
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => { const e = document.activeElement, s = getComputedStyle(e);
            return [e.id || e.className || e.tagName, s.outlineStyle, Boolean(e.ariaLabel || e.innerText.trim()
              || e.title || e.labels?.length)] }"""
            )
        )
    names = [name for name, _, _ in reached]
    for name in ("open", "help", "SELECT", "region", "crosshair", "linked", "level", "scroll", "hit"):
        assert name in names
    assert names.count("hit") < 3, "one stop for the list of hits"
    on_page = [row for row in reached if row[0] != "BODY"]
    assert all(style == "solid" for _, style, _ in on_page), reached
    assert all(named for _, _, named in on_page), reached


@pytest.mark.browser
def test_filters_and_the_way_back(page: Any, service: str, demo: Path) -> None:
    page.goto(service)
    upload(page, new_scan(demo))
    all_hits = page.locator("#hits li").count()
    select = filter_on(page, "who grade")
    told, sent = answer(page, lambda: select.select_option("4"))
    assert sent["where"] == ["who_grade=4"]
    assert {one["labels"]["who_grade"] for one in told["hits"]} == {"4"}
    page.wait_for_function(f"() => document.querySelectorAll('#hits li').length === {len(told['hits'])}")
    assert page.is_visible("#evidence .filtered")
    page.go_back()
    page.wait_for_function(f"() => document.querySelectorAll('#hits li').length === {all_hits}")
    assert select.input_value() == ""
    page.go_forward()
    page.wait_for_function(f"() => document.querySelectorAll('#hits li').length === {len(told['hits'])}")
    assert select.input_value() == "4"
    page.reload()
    page.wait_for_function(SHOWN)
    assert page.locator("#hits li").count() == len(told["hits"]), "the address says it all"


@pytest.mark.browser
def test_more_like_several_marked_hits(page: Any, service: str, demo: Path) -> None:
    page.goto(service)
    told, _ = answer(page, lambda: page.set_input_files("#file", new_scan(demo)))
    page.keyboard.press("m")
    page.locator("#hits li input").nth(2).check()
    assert page.locator("#more .primary").inner_text() == "More like these 2"
    like, sent = answer(page, page.locator("#more .primary").click)
    marked = [told["hits"][0], told["hits"][2]]
    assert sent["like"] == [one["case_id"] for one in marked]
    page.wait_for_function("() => document.querySelector('#asked').textContent.includes('2 marked cases')")
    page.wait_for_function(SHOWN)
    assert not {one["patient_id"] for one in marked} & {one["patient_id"] for one in like["hits"]}
    assert page.is_hidden("#more")
    assert page.is_disabled("#region")
    assert picture(page, "query").max() > 200, "the marked case is the query now"
    # the cases have two sequences: both sides can show the other one
    flair = page.locator("#sequences button", has_text="flair")
    other = page.locator("#sequences button[aria-pressed=false]").inner_text()
    before = picture(page, "hit")
    page.locator("#sequences button[aria-pressed=false]").click()
    page.wait_for_function(
        f"() => document.querySelector('#hit-pane figcaption').textContent.includes('{other}')"
    )
    page.wait_for_function(SHOWN)
    assert flair.count() == 1
    assert np.abs(picture(page, "hit") - before).mean() > 5
    keep(page, "more-like-these")


@pytest.mark.browser
def test_windowing_zoom_and_crosshair(page: Any, service: str, demo: Path) -> None:
    page.goto(service)
    upload(page, new_scan(demo))
    first = picture(page, "query")
    page.locator("#level").fill("80")
    darker = picture(page, "query")
    assert darker.mean() < first.mean() - 20
    page.keyboard.press("Escape")
    page.locator("#reset").click()
    assert np.abs(picture(page, "query") - first).max() < 3
    box = page.locator("#hit-pane .stage").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0], middle[1] - 100)
    page.mouse.up()
    assert picture(page, "query").mean() > first.mean() + 20, "dragging up makes both brighter"
    page.keyboard.press("0")

    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    larger = picture(page, "query")
    assert np.abs(larger - first).mean() > 5
    page.keyboard.press("0")
    assert np.abs(picture(page, "query") - first).max() < 3

    assert page.locator(".cross:visible").count() == 0
    page.keyboard.press("c")
    page.mouse.click(middle[0] - 60, middle[1] + 40)
    settled(page)
    lines = page.evaluate(
        "() => [...document.querySelectorAll('.cross')].map((l) => [+l.getAttribute('x1'), +l.getAttribute('y1')])"
    )
    assert len(lines) == 4
    assert lines[2][0] == pytest.approx(box["width"] / 2 - 60, abs=1.5)
    assert lines[3][1] == pytest.approx(box["height"] / 2 + 40, abs=1.5)
    keep(page, "crosshair")


# --- places: slices and pixels are those of the service -------------------------------------------

AXES = {0: ((5.0, 1.0, 1.0), "AP"), 1: ((1.0, 4.0, 1.0), "RL"), 2: ((1.0, 1.2, 3.0), "RL")}


@pytest.mark.browser
@pytest.mark.parametrize("axis", AXES)
def test_slices_and_regions_are_those_of_the_scan(page: Any, service: str, tmp_path: Path, axis: int) -> None:
    """A bright block on one slice is seen on that slice only, and a box drawn around it has its pixels."""
    spacing, sides = AXES[axis]
    shape = [60, 72, 64]
    shape[axis] = 14
    voxels = np.full(shape, 10, np.int16)
    inner = [slice(6, -6)] * 3
    inner[axis] = slice(None)
    voxels[tuple(inner)] = 300 + np.random.default_rng(0).integers(0, 20, voxels[tuple(inner)].shape)
    block = [slice(12, 24), slice(40, 60), slice(36, 52)]
    block[axis] = slice(9, 10)
    voxels[tuple(block)] = 900
    path = tmp_path / "scan_t1ce.nii.gz"
    nib.save(nib.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)
    rest = [n for n in range(3) if n != axis]
    # radiological: columns and rows run against the first and the second of the other axes
    (c0, c1), (r0, r1) = ((shape[n] - block[n].stop, shape[n] - block[n].start) for n in rest)

    page.goto(service)
    upload(page, path)
    page.locator("#linked").click()
    assert page.locator("#query-pane .scroll").get_attribute("max") == "13"
    letters = page.locator("#query-pane .side").all_inner_texts()
    assert "".join(letters[:2]) == sides
    slider = page.locator("#query-pane .scroll")
    for number in (8, 10):
        slider.fill(str(number))
        assert picture(page, "query").max() < 150
    slider.fill("9")
    grey = picture(page, "query")
    rows, columns = np.nonzero(grey > 200)
    y0, y1, x0, x1 = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    # voxels are shown true to size
    ratio = spacing[rest[0]] * (c1 - c0) / (spacing[rest[1]] * (r1 - r0))
    assert (x1 - x0) / (y1 - y0) == pytest.approx(ratio, rel=0.08)

    page.locator("#region").click()
    stage = page.locator("#query-pane .stage").bounding_box()
    page.mouse.move(stage["x"] + float(x0), stage["y"] + float(y0))
    page.mouse.down()
    page.mouse.move(stage["x"] + float(x1), stage["y"] + float(y1), steps=3)
    page.mouse.up()
    told, sent = answer(page, page.locator("#search").click)
    box, _, on = sent["region"][0].partition("@")
    assert on == "9"
    assert np.abs(np.subtract([int(n) for n in box.split(",")], [c0, r0, c1, r1])).max() <= 1
    assert told["query"]["region_slice"] == 9


@pytest.mark.browser
def test_a_region_is_drawn_asked_and_dropped(page: Any, service: str, demo: Path) -> None:
    page.goto(service)
    upload(page, new_scan(demo))

    def drag() -> None:
        page.keyboard.press("r")
        stage = page.locator("#query-pane .stage").bounding_box()
        middle = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 90, middle[1] - 110, steps=3)
        page.mouse.up()

    drag()
    assert page.is_visible("#search")
    page.keyboard.press("Escape")
    assert page.locator("#search").count() == 0
    settled(page)
    assert page.locator(".box:visible").count() == 0
    page.keyboard.press("Escape")
    drag()
    told, sent = answer(page, lambda: page.keyboard.press("Enter"))
    assert told["query"]["region"] == [int(n) for n in sent["region"][0].partition("@")[0].split(",")]
    page.wait_for_function("() => document.querySelector('#asked').textContent.includes('region')")
    page.wait_for_function(SHOWN)
    settled(page)
    assert page.locator(".box:visible").count() == 1
    keep(page, "region")
    page.get_by_role("button", name="whole slices again").click()
    page.wait_for_function("() => !document.querySelector('#asked').textContent.includes('region')")
    page.wait_for_function(SHOWN)
    settled(page)
    assert page.locator(".box:visible").count() == 0


@pytest.mark.browser
def test_images_without_a_patient_have_no_sides(page: Any, service: str, tmp_path: Path) -> None:
    rows, columns = np.mgrid[:96, :80]
    image = np.where((rows - 48) ** 2 + (columns - 40) ** 2 < 1200, 120 + columns, 0).astype(np.uint8)
    image[20:30, 10:20] = 255
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    page.goto(service)
    upload(page, path)
    assert page.locator("#query-pane .side").all_inner_texts() == ["", "", "", ""]
    assert page.is_disabled("#query-pane .scroll")
    grey = picture(page, "query")
    ys, xs = np.nonzero(grey > 245)
    assert xs.mean() < grey.shape[1] / 2, "shown as it is, not mirrored"
    assert ys.mean() < grey.shape[0] / 2


# --- explanation, links, doors --------------------------------------------------------------------


@pytest.mark.browser
def test_explanations_are_laid_over_the_images(page: Any, service: str, demo: Path) -> None:
    def partly(route: Any) -> None:
        response = route.fetch()
        told = response.json()
        del told["hits"][1]["explanation"]
        del told["hits"][2]["explanation"]["hit"]  # as of a reference case
        route.fulfill(response=response, json=told)

    page.route("**/queries/*", partly)
    page.goto(service)
    upload(page, new_scan(demo))
    told, _ = answer(page, lambda: filter_on(page, "hits").select_option("5"))
    page.wait_for_function("() => document.querySelectorAll('#hits li').length === 5")
    page.wait_for_function(SHOWN)
    page.evaluate("() => document.activeElement.blur()")
    page.wait_for_selector("#why:visible")
    first = told["hits"][0]
    plain = {side: picture(page, side) for side in ("query", "hit")}
    assert warmth(page, "query").max() < 5
    page.keyboard.press("e")
    for side, slice_, of in (("query", "query_slice", "query_volume"), ("hit", "slice", "volume")):
        warm = warmed(page, side)
        planes = []
        for path in (first[of], first["explanation"][side]):
            data = page.request.get(service + path[1:]).body()
            voxels = nib.Nifti1Image.from_bytes(gzip.decompress(data)).get_fdata()
            planes.append(voxels[::-1, ::-1, first[slice_]].T)
        # the head on the slice and on the screen say where the map should be
        head = plain[side] > 40
        head[:, :4] = False  # the line between the panes
        (rows, columns), (top, left) = extent(planes[0] > 0.1 * planes[0].max()), extent(head)
        expected = Image.fromarray(planes[1][rows, columns].astype(np.float32))
        shape = left.stop - left.start, top.stop - top.start
        expected = np.asarray(expected.resize(shape, Image.Resampling.BILINEAR))
        alike, own = (
            np.array([np.corrcoef(seen.ravel(), e.ravel())[0, 1] for e in turned(expected)])
            for seen in (warm[top, left], expected)
        )
        assert alike[0] > 0.8
        other = own < 0.5  # a map may be its own mirror image one way
        assert other.sum() >= 2
        assert alike[other].max() < 0.5, "mirrored it would lie elsewhere"
    keep(page, "explanation")

    page.keyboard.press("ArrowRight")
    for side in ("query", "hit"):
        assert warmth(page, side).max() < 5, "only the matched slices are explained"
    page.keyboard.press("ArrowLeft")
    warmed(page, "query")
    page.keyboard.press("ArrowDown")
    page.wait_for_function(SHOWN)
    assert page.is_hidden("#why"), "the second hit is not explained"
    assert max(warmth(page, side).max() for side in ("query", "hit")) < 5
    page.keyboard.press("ArrowDown")
    page.wait_for_function(SHOWN)
    warmed(page, "query")
    assert warmth(page, "hit").max() < 5
    page.locator("#hits li button").first.click()
    page.wait_for_function(SHOWN)
    for side in ("query", "hit"):
        warmed(page, side)
    page.locator("#why").click()
    for side in ("query", "hit"):
        assert np.abs(picture(page, side) - plain[side]).max() < 3


@pytest.mark.browser
def test_an_explanation_that_comes_late_is_dropped(page: Any, service: str, demo: Path) -> None:
    held: list[Any] = []
    page.route("**/explanation/**", lambda route: held.append(route))
    page.goto(service)
    upload(page, new_scan(demo))
    page.wait_for_selector("#why:visible")
    page.keyboard.press("e")
    page.keyboard.press("e")
    settled(page)
    assert len(held) == 2
    for route in held:
        with page.expect_response("**/explanation/**"):
            route.continue_()
    page.wait_for_timeout(200)  # nothing says that nothing comes any more
    assert max(warmth(page, side).max() for side in ("query", "hit")) < 5
    page.unroute("**/explanation/**")
    gone = {"status": 404, "json": {"detail": "there is no such query any more; send the scan again"}}
    page.goto("about:blank")
    page.goto(service)
    upload(page, new_scan(demo))
    page.route("**/explanation/**", lambda route: route.fulfill(**gone))
    page.wait_for_selector("#why:visible")
    page.keyboard.press("e")
    page.wait_for_selector("#alert:visible")
    assert "send the scan again" in page.inner_text("#alert p")


@pytest.mark.browser
def test_a_series_is_fetched_from_the_pacs_once(page: Any, service: str, demo: Path) -> None:
    page.goto(service)
    told, _ = answer(page, lambda: page.set_input_files("#file", new_scan(demo)))
    again = f"{service}queries/{told['query']['id']}"
    fetched = []

    def from_pacs(route: Any) -> None:
        fetched.append(posted(route.request))
        route.fulfill(response=asked_again(route, again))

    page.route("**/query", from_pacs)
    page.goto(f"{service}viewer#series=1.2.3")
    page.wait_for_function(SHOWN)
    assert [one["series"] for one in fetched] == [["1.2.3"]]
    filtered, sent = answer(page, lambda: filter_on(page, "who grade").select_option("4"))
    assert sent == {"where": ["who_grade=4"]}
    assert {one["labels"]["who_grade"] for one in filtered["hits"]} == {"4"}
    assert len(fetched) == 1, "the service still has it"

    gone = {"status": 404, "json": {"detail": "there is no such query any more"}}
    page.route("**/queries/*", lambda route: route.fulfill(**gone))
    with page.expect_request("**/query"):
        filter_on(page, "hits").select_option("5")
    page.wait_for_function("() => document.querySelectorAll('#hits li').length > 0")
    page.wait_for_function(SHOWN)
    assert fetched[1] == {"series": ["1.2.3"], "k": ["5"], "where": ["who_grade=4"]}


@pytest.mark.browser
def test_a_report_is_filed_on_request_and_only_once(page: Any, service: str, demo: Path) -> None:
    """The PACS is played; `pacs_scenarios.py` has a real one."""
    page.goto(service)
    told, _ = answer(page, lambda: page.set_input_files("#file", new_scan(demo)))
    assert page.is_hidden("#filing"), "this service has no PACS"
    again = f"{service}queries/{told['query']['id']}"
    sent: list[dict[str, list[str]]] = []
    refusals = [{"status": 502, "json": {"detail": "the PACS does not answer"}}]

    def stored(route: Any) -> None:
        sent.append(posted(route.request))
        route.fulfill(**(refusals.pop() if refusals else {"status": 201, "json": {"stored": "a-b-c"}}))

    page.route("**/query", lambda route: route.fulfill(response=asked_again(route, again)))
    page.route("**/sr", stored)
    joined(page)
    page.goto(f"{service}viewer#series=1.2.3&where=who_grade=4")
    page.wait_for_function(SHOWN)
    button, said = page.locator("#filing button"), page.locator("#filing p")
    assert button.is_enabled()
    page.keyboard.press("f")
    assert page.is_visible("#sure")
    keep(page, "filing")
    page.keyboard.press("Escape")
    assert page.is_hidden("#sure")
    button.focus()
    page.keyboard.press("Enter")
    page.locator("#sure .cancel").click()
    assert not sent, "nothing is filed unless it is meant"

    page.keyboard.press("f")
    page.keyboard.press("Enter")
    page.wait_for_selector("#alert:visible")
    assert "PACS does not answer" in page.inner_text("#alert p")
    page.locator("#alert .retry").click()
    page.wait_for_function("() => document.querySelector('#filing p').textContent.startsWith('Filed')")
    assert sent == [{"series": ["1.2.3"], "where": ["who_grade=4"]}] * 2
    assert button.is_disabled()
    page.keyboard.press("f")
    assert page.is_hidden("#sure"), "once is enough"
    keep(page, "filed")
    filter_on(page, "who grade").select_option("")
    page.wait_for_function("() => !document.querySelector('#filing button').disabled")
    assert said.inner_text() == "", "another answer may be filed, too"
    page.go_back()
    page.wait_for_function("() => document.querySelector('#filing p').textContent.startsWith('Filed')")


def joined(page: Any, **more: Any) -> None:
    """Let the page take the service for one with a PACS."""

    def told(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, json={**response.json(), "pacs": True, **more})

    page.route("**/info", told)


@pytest.mark.browser
def test_where_nothing_can_be_filed_the_page_says_why(page: Any, service: str, demo: Path) -> None:
    joined(page)
    page.goto(service)
    assert page.is_hidden("#filing")
    told, _ = answer(page, lambda: page.set_input_files("#file", new_scan(demo)))
    button, said = page.locator("#filing button"), page.locator("#filing p")
    assert button.is_disabled()
    assert "a series of the PACS" in said.inner_text()
    page.keyboard.press("f")
    assert page.is_hidden("#sure")

    again = f"{service}queries/{told['query']['id']}"
    shown: list[dict[str, Any]] = []

    def asked(route: Any) -> None:
        response = asked_again(route, again)
        route.fulfill(response=response, json={**response.json(), "hits": shown})

    page.route("**/query", asked)
    for more, hits, why in (({"role": "read"}, told["hits"], "role write"), ({}, [], "no case")):
        shown = hits
        page.unroute("**/info")
        joined(page, **more)
        page.goto("about:blank")
        page.goto(f"{service}viewer#series=1.2.3")
        page.wait_for_selector("#filing:visible")
        assert button.is_disabled()
        assert why in said.inner_text()


@pytest.mark.browser
def test_links_that_lead_nowhere_say_so(page: Any, service: str) -> None:
    page.goto(f"{service}#query=gone")
    page.wait_for_selector("#alert:visible")
    assert "no longer keeps this scan" in page.inner_text("#alert p")
    page.goto(f"{service}viewer#series=1.2.3")
    page.wait_for_function("() => document.querySelector('#alert p').textContent.includes('no PACS')")
    assert page.is_visible("#start")


@pytest.mark.browser
def test_refusals_are_told_in_words(page: Any, service: str, tmp_path: Path) -> None:
    broken = tmp_path / "scan.nii.gz"
    broken.write_bytes(b"this is no image")
    page.goto(service)
    ready(page)
    page.set_input_files("#file", broken)
    page.wait_for_selector("#alert:visible")
    assert page.is_hidden("#alert .retry")
    assert "{" not in page.inner_text("#alert p")
    keep(page, "refused")
    page.locator("#alert .dismiss").click()
    assert page.is_hidden("#alert")

    busy = {"status": 503, "json": {"detail": "busy"}, "headers": {"Retry-After": "7"}}
    page.route("**/query", lambda route: route.fulfill(**busy))
    page.set_input_files("#file", broken)
    page.wait_for_selector("#alert:visible")
    assert page.inner_text("#alert p").endswith("in 7 s.")
    assert page.is_visible("#alert .retry")
    page.unroute("**/query")
    page.route("**/query", lambda route: route.abort())
    page.locator("#alert .retry").click()
    page.wait_for_function("() => document.querySelector('#alert p').textContent.includes('does not answer')")


@pytest.mark.browser
def test_a_dropped_file_and_a_stopped_question(page: Any, service: str, demo: Path) -> None:
    page.goto(service)
    ready(page)
    drop = """([bytes, name]) => { const data = new DataTransfer();
        data.items.add(new File([Uint8Array.from(bytes)], name));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })); }"""
    scan = new_scan(demo)
    files = BytesIO()
    with zipfile.ZipFile(files, "w") as archive:
        for one in scan.parent.glob("*[!g].nii.gz"):
            if "_seg" not in one.name:
                archive.write(one, one.name)
    page.evaluate(drop, [list(files.getvalue()), "scan.zip"])
    page.wait_for_function(SHOWN)
    assert "flair + t1ce" in page.inner_text("#asked")
    assert page.locator("#sequences button").count() == 2
    shown = page.url

    # a question that does not come back is left by Escape; what was shown stays
    page.route("**/queries/*", lambda route: None)
    select = filter_on(page, "who grade")
    select.select_option("4")
    page.wait_for_selector("body.busy")
    page.evaluate("() => document.activeElement.blur()")
    page.keyboard.press("Escape")
    page.wait_for_selector("body:not(.busy)")
    assert page.url == shown
    assert select.input_value() == ""
    assert page.locator("#hits li").count() == 10


@pytest.mark.browser
def test_it_stands_under_a_prefix_too(page: Any, service: str, demo: Path) -> None:
    """As behind the proxy of a PACS plugin."""
    under = f"{service}cbir/ui/"

    def proxied(route: Any) -> None:
        route.fulfill(response=route.fetch(url=service + route.request.url.removeprefix(under)))

    page.goto(service)
    upload(page, new_scan(demo))
    before = len(page.seen.requests)
    page.route(f"{under}**", proxied)
    page.goto(under + page.url.removeprefix(service))
    page.wait_for_function(SHOWN)
    beside = [r.url for r in page.seen.requests[before:] if not r.url.startswith((under, "data:", "blob:"))]
    assert not beside


@pytest.fixture(scope="module")
def guarded(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A service with tokens, whose cases have labels that try to be markup."""
    from retrieval.service.tokens import add_token

    root = tmp_path_factory.mktemp("guarded")
    write_cohort(root / "cohort", patients=4)
    table = (root / "cohort" / "participants.tsv").read_text().splitlines()
    rows = [f"{table[0]}\t<b>site</b>"]
    rows += [f"{row}\t{EVIL if n % 2 else 'b'}" for n, row in enumerate(table[1:])]
    (root / "cohort" / "participants.tsv").write_text("\n".join(rows) + "\n")
    encoder = load_encoder(DEFAULT)
    with CaseIndex.create(root / "index", encoder) as index:
        ingest(index, [root / "cohort"], encoder)
    tokens = root / "tokens"
    secrets = {role: add_token(tokens, role, role) for role in ("read", "write")}
    with served(root / "index", tokens=tokens) as address:
        yield address, secrets


@pytest.mark.browser
def test_tokens_are_asked_for_and_kept_for_the_tab(page: Any, guarded: Any, demo: Path) -> None:
    address, secrets = guarded
    page.goto(address)
    page.wait_for_selector("#token[open]")
    keep(page, "token")
    page.locator("#secret").fill("wrong")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#token p').textContent.includes('does not know')")
    page.locator("#secret").fill(secrets["read"])
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#holds').textContent.includes('4 known cases')")
    upload(page, new_scan(demo))
    page.wait_for_function("() => [...document.querySelectorAll('.hit img')].every((i) => i.naturalWidth)")
    assert all(secrets["read"] not in r.url for r in page.seen.requests)
    assert page.evaluate("() => localStorage.length + document.cookie.length") == 0
    page.reload()
    page.wait_for_function(SHOWN)
    assert page.is_hidden("#token"), "kept for the tab"
    other = page.context.new_page()
    other.goto(address)
    other.wait_for_selector("#token[open]")
    other.keyboard.press("Escape")
    other.wait_for_selector("#alert:visible")
    assert "needs an access token" in other.inner_text("#alert p")
    other.close()


@pytest.mark.browser
def test_labels_are_text(page: Any, guarded: Any, demo: Path) -> None:
    address, secrets = guarded
    page.add_init_script(f"sessionStorage.setItem('cbir-token', '{secrets['read']}')")
    page.goto(address)
    upload(page, new_scan(demo))
    text = page.inner_text("main")
    assert EVIL in text, "in the evidence and on the hits"
    assert "<b>site</b>" in text
    assert page.locator("main b", has_text="site").count() == 0
    assert page.locator("img[src=x]").count() == 0
    assert page.title() != "owned"
    for part in ("#images", "#query-pane .stage", "#hit-pane .stage", "#hits", "#facts"):
        box = page.locator(part).bounding_box()
        assert box["x"] + box["width"] <= 1366, "long labels do not push it off the screen"
    width = page.locator("#hit-pane .stage").bounding_box()["width"]
    assert page.locator("#query-pane .stage").bounding_box()["width"] == pytest.approx(width, abs=2)
    select = filter_on(page, "<b>site</b>")
    told, sent = answer(page, lambda: select.select_option(EVIL))
    assert sent["where"] == [f"<b>site</b>={EVIL}"]
    assert {one["labels"]["<b>site</b>"] for one in told["hits"]} == {EVIL}
    assert page.title() != "owned"


# --- what is vendored -----------------------------------------------------------------------------


def test_niivue_is_the_file_that_vendor_sh_names() -> None:
    bundle = (STATIC / "niivue.umd.js").read_bytes()
    script = (STATIC.parent / "vendor.sh").read_text()
    assert re.search(r"SHA256=(\w+)", script)[1] == hashlib.sha256(bundle).hexdigest()
    assert len(bundle) < 3_000_000
    version = re.search(r"VERSION=([\d.]+)", script)[1]
    licence = (STATIC / "niivue.LICENSE.txt").read_text()
    assert licence.startswith(f"NiiVue {version}")
    assert "BSD 2-Clause License" in licence
    assert "Copyright (c) 2021, Niivue" in licence


@pytest.fixture(scope="module")
def study(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patient's sequences, each on a grid of its own, as a zip; the FLAIR is tilted and of thick slices."""
    folder = tmp_path_factory.mktemp("study")
    t1ce = new_scan(demo)
    whole = nib.load(new_scan(demo, "flair"))
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    shape, spacing = np.array(whole.shape), np.array([*nib.affines.voxel_sizes(whole.affine)[:2], 7.0])
    size = shape * nib.affines.voxel_sizes(whole.affine)
    middle = nib.affines.apply_affine(whole.affine, (shape - 1) / 2) + np.array([2, -3, 4])
    thick = np.ceil(size / spacing).astype(int)
    affine = turn @ np.diag([*spacing, 1])
    affine[:3, 3] = middle - affine[:3, :3] @ ((thick - 1) / 2)
    flair = nib.processing.resample_from_to(whole, (tuple(thick), affine), order=1)
    path = folder / "study.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(t1ce, f"P/{t1ce.name}")
        nib.save(flair, folder / t1ce.name.replace("t1ce", "flair"))
        archive.write(folder / t1ce.name.replace("t1ce", "flair"), f"P/{t1ce.name.replace('t1ce', 'flair')}")
    nib.save(nib.load(t1ce), folder / "t1ce.nii")
    nib.save(flair, folder / "flair.nii")
    return path


TILE = """(name) => {
  const button = [...document.querySelectorAll("#query-pane .tiles button")].find((b) => b.textContent === name);
  const canvas = button?.querySelector("canvas");
  if (!canvas || button.hidden) return null;
  const { width, height } = canvas;
  return { width, height, grey: [...canvas.getContext("2d").getImageData(0, 0, width, height).data]
    .filter((_, i) => i % 4 === 0) };
}"""


def tile(page: Any, name: str) -> np.ndarray:
    """Grey values of a tile below the query (rows, columns)."""
    for _ in range(200):
        found = page.evaluate(TILE, name)
        if found and max(found["grey"]) > 0:
            return np.array(found["grey"], float).reshape(found["height"], found["width"])
        page.wait_for_timeout(50)
    raise AssertionError(f"no tile of {name}")


def where(page: Any, side: str) -> int:
    return int(page.locator(f"#{side}-pane .where").inner_text().split()[1])


def cut(image: Any, main: Any, position: int, box: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What an image holds at the places of a tile: nearest voxels, by the two affines; NaN beyond it."""
    v, u = np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij")
    share = [box[0][1] - u * (box[0][1] - box[0][0]), box[1][1] - v * (box[1][1] - box[1][0])]
    x, y = (part * n - 0.5 for part, n in zip(share, main.shape[:2], strict=True))
    places = nib.affines.apply_affine(main.affine, np.stack([x, y, np.full_like(x, position)], -1))
    at = np.round(nib.affines.apply_affine(np.linalg.inv(image.affine), places)).astype(int)
    inside = ((at >= 0) & (at < image.shape)).all(-1)
    found = np.full(shape, np.nan)
    found[inside] = image.get_fdata()[tuple(at[inside].T)]
    return found


@pytest.mark.browser
def test_the_sequences_of_a_study_scroll_together_by_millimetres(
    page: Any, service: str, study: Path
) -> None:
    page.goto(service)
    upload(page, study)
    images = {name: nib.load(study.parent / f"{name}.nii") for name in ("t1ce", "flair")}
    pressed = page.locator("#query-pane .tiles button[aria-pressed=true]")
    page.locator("#sequences button", has_text="t1ce").click()
    page.wait_for_function(SHOWN)
    page.wait_for_function(
        "() => document.querySelector('.tiles button[aria-pressed=true]')?.textContent === 't1ce'"
    )
    assert (
        page.locator("#query-pane .tiles button").all_inner_texts()
        == page.locator("#hit-pane .tiles button").all_inner_texts()
    )
    main = images["t1ce"]
    # the part of the plane that is shown, from what the pane keeps of it
    head = main.get_fdata() != 0
    for scrolled in (0, 3, -5):
        for _ in range(abs(scrolled)):
            page.keyboard.press("ArrowRight" if scrolled > 0 else "ArrowLeft")
        settled(page)
        position = where(page, "query")
        box = shown_of(head)
        for name in ("t1ce", "flair"):
            seen = tile(page, name)
            held = [
                cut(images[name], main, at, box, seen.shape) for at in (position, position - 3, position + 3)
            ]
            here, *elsewhere = (agreement(seen, values) for values in held)
            assert here > 0.95, (name, position)
            assert here > max(elsewhere) + 0.01, (name, position)
    # a tile becomes the large image, on the plane where the middle of what was shown lies
    middle = nib.affines.apply_affine(
        main.affine, [*((head.any(axis).nonzero()[0].mean()) for axis in ((1, 2), (0, 2))), position]
    )
    expected = nib.affines.apply_affine(np.linalg.inv(images["flair"].affine), middle)[2]
    hit_before = where(page, "hit")
    page.locator("#query-pane .tiles button", has_text="flair").click()
    page.wait_for_function(
        "() => document.querySelector('.tiles button[aria-pressed=true]')?.textContent === 'flair'"
    )
    page.wait_for_function(SHOWN)
    settled(page)
    assert pressed.inner_text() == "flair"
    assert abs(where(page, "query") - expected) <= 0.7
    # seven millimetres here are as many there, whatever that is in slices
    hit, query = where(page, "hit"), where(page, "query")
    assert abs(hit - hit_before) <= 1, "the hit's two sequences are on one grid"
    page.keyboard.press("ArrowRight")
    settled(page)
    pitch = float(nib.affines.voxel_sizes(main.affine)[2])
    assert where(page, "query") == query + 1
    assert abs((where(page, "hit") - hit) * pitch - 7) <= pitch / 2
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / "viewer-study.png")


def agreement(seen: np.ndarray, held: np.ndarray) -> float:
    """Correlation of a tile with what an image holds there."""
    both = np.isfinite(held)
    assert both.mean() > 0.8
    return float(np.corrcoef(seen[both], held[both])[0, 1])


def shown_of(head: np.ndarray) -> np.ndarray:
    """The shares of both axes that the viewer shows of the slices: the head's box and a margin."""
    spans = []
    for axis in (0, 1):
        line = np.flatnonzero(head.any(tuple(other for other in range(3) if other != axis)))
        first, last, n = line[0], line[-1] + 1, head.shape[axis]
        margin = (last - first) * 0.03
        spans.append([max(first - margin, 0) / n, min(last + margin, n) / n])
    return np.array(spans)
