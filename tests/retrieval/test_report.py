from __future__ import annotations

import re
import shutil
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from indexer.demo import SPACING, phantom
from indexer.errors import CbirError, ReadError
from indexer.scan import Scan, ScanRef, displayed, stacked
from retrieval.answer import NOTICE, Answer, Evidence, Hit, Query
from retrieval.parsing import By
from retrieval.pictures import BOX, OUTLINE, PIXELS, picture, windowed
from retrieval.report import ORDERS, write_report
from tests.support.paths import ARTIFACTS

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def volume(
    value: int = 100, shape: tuple[int, ...] = (24, 32, 6), sequence: str | None = "t1ce", **other: Any
) -> Scan:
    """A block of `value` and more in the middle of nothing."""
    voxels = np.zeros(shape, np.int16)
    voxels[4:-4, 4:-4] = value + np.arange(shape[1] - 8)[None, :, None]
    other.setdefault("spacing", (1.0, 1.0, 5.0))
    return Scan(voxels, other.pop("source", Path("scan.nii")), sequence=sequence, **other)


def hit(rank: int = 1, **changes: Any) -> Hit:
    fields: dict[str, Any] = {
        "rank": rank,
        "score": 0.95 - 0.02 * rank,
        "case_id": f"case-{rank}",
        "patient_id": f"patient-{rank}",
        "labels": {"who_grade": "4"},
        "sequence": "t1ce",
        "scan": ScanRef(changes.pop("source", f"hit-{rank}.nii"), changes.pop("number", 0)),
        "slice": 3,
        "query_slice": 2,
        "query_scan": ScanRef(changes.pop("query_source", "query.nii"), changes.pop("query_number", 0)),
        "query_sequence": "t1ce",
    }
    return Hit(**fields | changes)


def answer(hits: Sequence[Hit] = (), **changes: Any) -> Answer:
    fields: dict[str, Any] = {
        "query": Query("folder/query.nii", "t1ce", 6),
        "hits": list(hits),
        "evidence": {},
    }
    return Answer(**fields | changes)


def written(of: Answer, folder: Path, load: Any = lambda path: [volume()], **other: Any) -> str:
    path = folder / "report.html"
    write_report(of, path, load=load, **other)
    assert [p.name for p in folder.iterdir()] == ["report.html"], "nothing is left aside"
    return path.read_text(encoding="utf-8")


def images(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [Image.open(BytesIO(b64decode(data))) for data in found]


def test_the_page_says_how_cases_are_ordered(tmp_path: Path) -> None:
    for by in (None, *get_args(By)):
        page = written(answer([hit()], query=Query("q.nii", "t1ce", 6, by=by)), tmp_path)
        assert f"<h2>Cases, {ORDERS[by]}</h2>" in page


# --- pictures ------------------------------------------------------------------------------------


def test_window_takes_out_the_extremes() -> None:
    pixels = np.arange(1001.0).reshape(7, 143)
    shown = windowed(pixels)
    # percentiles 0.5 and 99.5 of 0…1000 are 5 and 995
    assert (shown.ravel()[:6] == 0).all()
    assert shown.ravel()[6] == round(255 / 990)
    assert shown.ravel()[500] == 128
    assert (shown.ravel()[995:] == 255).all()


@pytest.mark.parametrize("value", [0.0, -7.0, np.nan, np.inf])
def test_window_of_a_constant_slice_is_black(value: float) -> None:
    assert not windowed(np.full((3, 4), value)).any()


def test_window_of_a_lone_bright_pixel() -> None:
    pixels = np.zeros((50, 50))
    pixels[3, 4] = 9
    assert windowed(pixels)[3, 4] == 255
    assert windowed(pixels).sum() == 255


def test_picture_is_true_to_size_and_without_margins() -> None:
    # the block of 16 × 24 voxels has a margin of 2 left around it: 20 × 28, in mm 20 × 56
    scan = volume(spacing=(1.0, 2.0, 9.0))
    shown = picture(scan, 0)
    assert Image.open(BytesIO(shown.jpeg)).size == (round(PIXELS * 20 / 56), PIXELS)
    assert shown.left == "R"


def test_picture_is_radiological() -> None:
    voxels = np.zeros((10, 10, 3), np.int16)
    voxels[8, 8] = 100  # right, front
    voxels[1, 1] = 50  # left, back
    shown = picture(Scan(voxels, Path("a.nii"), spacing=(1, 1, 5)), 1)
    grey = np.asarray(Image.open(BytesIO(shown.jpeg)).convert("L"))
    brightest = np.unravel_index(grey.argmax(), grey.shape)
    assert brightest[0] < grey.shape[0] / 2, "front is up"
    assert brightest[1] < grey.shape[1] / 2, "right is left"


@pytest.mark.parametrize(("spacing", "left"), [((5.0, 1.0, 1.0), "A"), ((1.0, 5.0, 1.0), "R"), (None, "")])
def test_side_is_named_where_it_is_known(spacing: tuple[float, float, float] | None, left: str) -> None:
    assert picture(volume(spacing=spacing), 2).left == left


def test_outline_and_box_are_drawn_where_they_are() -> None:
    rows, columns = np.mgrid[:40, :40]
    image = (rows + columns + 1).astype(np.uint8)  # without margins
    region = np.zeros((40, 40), bool)
    region[5:10, 20:30] = True
    scan = Scan(stacked(image[None]), Path("a.png"), region=stacked(region[None]))
    pixels = np.asarray(Image.open(BytesIO(picture(scan, 0, box=(2, 30, 12, 38)).jpeg)).convert("RGB"), int)
    per = PIXELS / 40
    for colour, (x0, y0, x1, y1) in ((OUTLINE, (20, 5, 30, 10)), (BOX, (2, 30, 12, 38))):
        near = np.abs(pixels - colour).sum(-1) < 60
        ys, xs = np.nonzero(near)
        found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(found - per * np.array([x0, y0, x1, y1])).max() <= 4
        assert not near[int(per * (y0 + y1) / 2), int(per * (x0 + x1) / 2)], "the inside stays visible"


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3000, 2), (3000, 1, 1)])
def test_odd_shapes_give_pictures(shape: tuple[int, int, int]) -> None:
    shown = picture(Scan(np.arange(np.prod(shape)).reshape(shape), Path("a.nii")), 0)
    size = Image.open(BytesIO(shown.jpeg)).size
    assert max(size) == PIXELS
    assert min(size) >= 1


# --- page ----------------------------------------------------------------------------------------


def test_everything_is_told(tmp_path: Path) -> None:
    evidence = Evidence({"2": 0.0812, "4": 0.9188}, {"2": 0.4, "4": 0.6}, ["4"], False, 15)
    html = written(
        answer([hit(1), hit(2)], evidence={"who_grade": evidence}, notes=["the index has no flair"]),
        tmp_path,
        index="reference",
    )
    for text in ("query.nii", "reference", "0.930", "0.910", "case-1", "case-2", "patient-2", NOTICE):
        assert text in html
    assert "the index has no flair" in html
    assert "t1ce, slice 3" in html
    assert "t1ce, slice 2" in html
    for text in ("92 %", "60 %", "width:91.9%", "left:60.0%", "Uncalibrated", "15 patients"):
        assert text in html
    assert len(images(html)) == 4
    assert html.count(' alt="') == html.count("<img")
    assert '<html lang="en">' in html


def test_evidence_that_abstains_or_is_calibrated(tmp_path: Path) -> None:
    silent = Evidence({"2": 1.0}, {}, ["2"], True, 0)
    measured = Evidence({"2": 1.0}, {"2": 1.0}, ["2"], False, 1, calibrated=True)
    html = written(answer(evidence={"a": silent, "b": measured}), tmp_path)
    assert "The neighbours say nothing." in html
    assert html.count("width:100.0%") == 1, "who abstains shows no shares"
    assert html.count(" vote of 1 patient.") == 1
    assert "vote of 0 patients" not in html
    assert "Calibrated vote of 1 patient." in html
    assert "No case matches." in html


def test_nothing_is_fetched_from_outside(tmp_path: Path) -> None:
    html = written(answer([hit()]), tmp_path)
    assert "http://" not in html
    assert "https://" not in html
    assert "<script" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html


def test_every_text_is_escaped(tmp_path: Path) -> None:
    def with_text(text: str) -> str:
        hits = [
            hit(1, case_id=text, patient_id=text, labels={text: text}, sequence=text),
            hit(2, query_sequence=text, source="gone"),
        ]
        of = answer(
            hits,
            query=Query(f"x/{text}.nii", text, 1),
            evidence={text: Evidence({text: 1.0}, {text: 1.0}, [text], False, 3)},
            notes=[text],
            notice=text,
        )

        def load(source: str) -> list[Scan]:
            if source == "gone":
                raise ReadError(source, text)
            return [volume(sequence="t1ce"), volume(sequence=text)]

        return written(of, tmp_path, load=load, index=text)

    evil = "<script>alert(1)<x onload='a'></style>\"'&"
    html = with_text(evil)
    assert re.findall(r"</?\w+", html) == re.findall(r"</?\w+", with_text("harmless"))
    assert len(images(html)) == 3
    assert html.count("&lt;script&gt;alert(1)") > 10


def test_hits_are_not_named_by_their_files(tmp_path: Path) -> None:
    def load(source: str) -> list[Scan]:
        if source == "query.nii":
            return [volume()]
        raise ReadError(source, "is damaged", "copy it again")

    html = written(answer([hit(1, source="data/JOHN-DOE.nii.gz")]), tmp_path, load=load)
    assert "JOHN" not in html
    assert "no picture: is damaged" in html


def test_missing_sources_leave_a_box_with_the_reason(tmp_path: Path) -> None:
    def load(source: str) -> list[Scan]:
        match Path(source).stem:
            case "query":
                return [volume()]
            case "hit-1":
                raise FileNotFoundError(2, "No such file or directory", source)
            case "hit-2":
                return []
            case "hit-3":
                return [volume(shape=(24, 32, 3))]
            case _:
                raise MemoryError

    html = written(answer([hit(n) for n in (1, 2, 3, 4)]), tmp_path, load=load)
    assert len(images(html)) == 4, "the query's own"
    assert "no picture: No such file or directory" in html
    assert "no picture: has no scan 0 any more" in html
    assert "no picture: has no slice 3 any more" in html
    assert "no picture: cannot be shown (MemoryError)" in html


def test_each_source_is_read_once_and_the_scan_chosen(tmp_path: Path) -> None:
    calls: list[str] = []
    bright = np.full((8, 8, 4), 5, np.int16)
    bright[:4] = 9

    def load(source: str) -> list[Scan]:
        calls.append(source)
        return [volume(), Scan(bright, Path(source), sequence="flair")]

    hits = [hit(1), hit(2), hit(3, source="hit-1.nii", number=1, sequence="flair"), hit(4, query_slice=5)]
    html = written(answer(hits), tmp_path, load=load)
    assert sorted(calls) == ["hit-1.nii", "hit-2.nii", "hit-4.nii", "query.nii"]
    t1ce, flair = images(html)[1], images(html)[5]
    assert t1ce.size != flair.size, "the flair scan is square"
    assert "flair, slice 3" in html


def test_box_is_drawn_on_the_query_and_on_its_slice_only(tmp_path: Path) -> None:
    hits = [hit(1, query_slice=2), hit(2, query_slice=4)]
    html = written(answer(hits, query=Query("query.nii", "t1ce", 1, (5, 5, 15, 15), 2)), tmp_path)

    def marked(image: Image.Image) -> bool:
        return bool((np.abs(np.asarray(image.convert("RGB"), int) - BOX).sum(-1) < 60).any())

    assert [marked(image) for image in images(html)] == [True, False, False, False]
    assert "columns 5–15, rows 5–15 on slice 2" in html


def test_real_files_are_read_by_default(tmp_path: Path) -> None:
    source = tmp_path / "slice.png"
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32) // 2).save(source)
    where = {"source": str(source), "query_source": str(source), "sequence": None, "query_sequence": None}
    path = tmp_path / "report.html"
    write_report(answer([hit(slice=0, query_slice=0, **where)]), path)
    assert len(images(path.read_text())) == 2


def test_report_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CbirError, match=r"missing/report\.html: the report cannot be written"):
        write_report(answer(), tmp_path / "missing" / "report.html")
    with pytest.raises(CbirError, match="is a folder; name a file in it"):
        write_report(answer(), tmp_path)


def test_old_report_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CbirError, match="the disk is full"):
        write_report(answer(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Scan]]:
    """Phantoms as the files of a query and its hits."""
    scans = {}
    for number, grade in enumerate((4, 4, 3, 4, 2)):
        drawn, seg = phantom(np.random.default_rng([7, number]), grade)
        name = f"hit-{number}.nii" if number else "query.nii"
        scans[name] = [
            Scan(voxels, Path(name), SPACING, sequence=sequence, region=seg > 0)
            for sequence, voxels in drawn.items()
        ]
    return scans


@pytest.fixture
def full_report(cases: dict[str, list[Scan]], tmp_path: Path) -> Path:
    long = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    flair = [scan.sequence for scan in cases["query.nii"]].index("flair")
    lesion = cases["query.nii"][0].region
    assert lesion is not None
    asked = int(lesion.sum((0, 1)).argmax())
    rows, columns = np.nonzero(displayed(lesion, 2, asked))
    box = int(columns.min()) - 2, int(rows.min()) - 2, int(columns.max()) + 3, int(rows.max()) + 3
    cases = cases | {"query.nii": [replace(scan, region=None) for scan in cases["query.nii"]]}
    hits = []
    for number, grade in enumerate(("4", "3", "4", "2"), start=1):
        region = cases[f"hit-{number}.nii"][0].region
        assert region is not None
        labels = {"tumour": "glioblastoma" if grade == "4" else "astrocytoma", "who_grade": grade}
        hits.append(
            hit(
                number,
                labels=labels | {"synthetic": "yes"},
                case_id=long[number : 16 + number],
                patient_id=long if number == 2 else long[:12],
                sequence="flair" if number == 3 else "t1ce",
                number=flair if number == 3 else 0,
                query_sequence="flair" if number == 3 else "t1ce",
                query_number=flair if number == 3 else 0,
                slice=int(region.sum((0, 1)).argmax()),
                query_slice=asked,
            )
        )
    hits.append(hit(5, source="gone.nii", labels={}, query_slice=asked))
    grades = Evidence(
        {"2": 0.09, "3": 0.17, "4": 0.74}, {"2": 0.33, "3": 0.34, "4": 0.33}, ["3", "4"], False, 15
    )
    tumours = Evidence(
        {"astrocytoma": 0.26, "glioblastoma": 0.74},
        {"astrocytoma": 0.67, "glioblastoma": 0.33},
        ["astrocytoma", "glioblastoma"],
        False,
        15,
    )
    shown = answer(
        hits,
        query=Query("demo/query/SYNTH-Q01/SYNTH-Q01_t1ce.nii.gz", "t1ce+flair", 62, box, asked),
        evidence={"who_grade": grades, "tumour": tumours},
        notes=["the index has no outlined regions: the region is compared with whole slices"],
    )

    def load(source: str) -> list[Scan]:
        if source not in cases:
            raise ReadError(source, "does not exist", "index it again")
        return cases[source]

    path = tmp_path / "a report.html"
    write_report(shown, path, load=load, index="cbir-index")
    return path


# --- explanation ---------------------------------------------------------------------------------


def test_each_side_of_a_pair_has_its_own_explanation(tmp_path: Path) -> None:
    asked: list[tuple[int, str, bool]] = []

    def explain(hit: Hit, scan: Scan, of_query: bool) -> np.ndarray | None:
        asked.append((hit.rank, scan.source.name, of_query))
        if hit.rank == 2 and not of_query:
            return None
        return np.ones(scan.slice(0).pixels.shape, np.float32)

    hits = [hit(1), hit(2), hit(3, source="gone.nii")]

    def load(source: str) -> list[Scan]:
        if source == "gone.nii":
            raise FileNotFoundError
        return [volume(source=Path(source))]

    html = written(answer(hits), tmp_path, load=load, explain=explain)
    queries = [(rank, "query.nii", True) for rank in (1, 2, 3)]
    assert asked == [*queries, (1, "hit-1.nii", False), (2, "hit-2.nii", False)], "the query first"
    assert html.count('<img class="why"') == 4
    assert html.count(' alt="') == html.count("<img")
    assert len(images(html)) == 5


def test_without_an_explanation_there_is_no_switch(tmp_path: Path) -> None:
    html = written(answer([hit()]), tmp_path, explain=lambda hit, scan, of_query: None)
    assert 'id="why"' not in html
    assert 'class="why"' not in html


@pytest.fixture
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser: Any, full_report: Path, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 1366, "height": 768}, color_scheme=scheme)
    requests: list[str] = []
    told: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.goto(full_report.as_uri())
    page.wait_for_load_state("load")

    assert [url for url in requests if not url.startswith("data:")] == [full_report.as_uri()]
    assert told == []
    widths = page.eval_on_selector_all("img", "all => all.map(i => [i.naturalWidth, i.width])")
    assert len(widths) == 9, "four pairs, and the query beside the case that is gone"
    assert all(natural > 0 and shown >= 300 for natural, shown in widths)
    for selector in ("html", "body", ".hit", ".hit .facts", ".evidence"):
        overflow = page.eval_on_selector_all(selector, "all => all.map(e => e.scrollWidth - e.clientWidth)")
        assert max(overflow) <= 0, selector

    notice = page.locator("footer")
    assert NOTICE in notice.inner_text().lower()
    for _ in ("at the top", "at the end"):
        place = notice.bounding_box()
        assert 0 <= place["y"] <= 768 - place["height"]
        middle = [place["x"] + place["width"] / 2, place["y"] + place["height"] / 2]
        on_top = page.evaluate("([x, y]) => document.elementFromPoint(x, y).tagName", middle)
        assert on_top == "FOOTER"
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    end = page.locator("main").bounding_box()
    assert end["y"] + end["height"] <= place["y"], "the notice covers nothing at the end"

    page.evaluate("window.scrollTo(0, 0)")
    artifacts = ARTIFACTS
    artifacts.mkdir(exist_ok=True)
    page.screenshot(path=artifacts / ("report.png" if scheme == "light" else "report-dark.png"))


@pytest.mark.browser
def test_on_a_narrow_screen_and_on_paper(browser: Any, full_report: Path) -> None:
    page = browser.new_page(viewport={"width": 420, "height": 800})
    page.goto(full_report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_explanation_is_switched_on_and_off(browser: Any, tmp_path: Path, scheme: str) -> None:
    def explain(hit: Hit, scan: Scan, of_query: bool) -> np.ndarray:
        values = np.zeros(scan.slice(0).pixels.shape, np.float32)
        values[8:16, 8:12] = 1
        return values

    path = tmp_path / "report.html"
    write_report(answer([hit(1), hit(2)]), path, load=lambda path: [volume()], explain=explain)
    page = browser.new_page(viewport={"width": 1366, "height": 768}, color_scheme=scheme)
    page.goto(path.as_uri())

    def seen(selector: str) -> list[bool]:
        return [element.is_visible() for element in page.locator(selector).all()]

    assert seen(".why") == [False] * 4
    assert seen(".heat") == [False]
    page.get_by_text("where the similarity comes from").click()
    assert seen(".why") == [True] * 4
    assert seen(".heat") == [True]
    for tile in page.locator(".tile").all():
        below, above = (image.bounding_box() for image in tile.locator("img").all())
        assert below == above
    page.emulate_media(media="print")
    assert seen(".why") == [True] * 4, "what is shown is printed"
    assert seen("#why, #why + label") == [False] * 2
    page.emulate_media(media="screen")
    page.focus("#why")
    page.keyboard.press("Space")
    assert seen(".why") == [False] * 4


# --- the other sequences of a study ---------------------------------------------------------------


def seen_from_beside(turn: float, shift: float, **other: Any) -> Scan:
    """A FLAIR of 1 mm, turned about the left-right axis: a bright ball at (8, 20, 12) mm of a grey block."""
    shape, a = (40, 60, 60), np.deg2rad(turn)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    affine[:3, 3] = np.array([12, 16, 12.5]) - affine[:3, :3] @ np.array([20, 30, 30]) + shift
    places = (
        np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    )
    ball = np.linalg.norm(places - (8, 20, 12), axis=-1) < 4
    voxels = np.where(ball, 200.0, 50.0)
    return Scan(voxels, Path("flair.nii"), (1.0, 1.0, 1.0), affine, sequence="flair", **other)


def of_study(**changes: Any) -> Answer:
    """An answer to two sequences: the hit's slice lies at 10 mm, the query's at `query_slice` × 5."""
    refs = [ScanRef("query.nii", 0), ScanRef("flair.nii", 0)]
    asked = replace(answer().query, scans=refs)
    return answer([hit(**changes)], query=asked)


def placed(**other: Any) -> Scan:
    return volume(affine=np.diag([1.0, 1.0, 5.0, 1.0]), **other)


@pytest.mark.parametrize("turn", [0.0, 9.0])
def test_other_sequences_are_shown_at_the_place_of_the_slice(tmp_path: Path, turn: float) -> None:
    loaded: list[str] = []

    def load(path: str) -> list[Scan]:
        loaded.append(path)
        return [seen_from_beside(turn, 0.0) if "flair" in path else placed()]

    for position, bright in ((2, True), (5, False)):  # at 10 mm, and at 25 mm
        loaded.clear()
        of = of_study(query_slice=position, slice=1)
        html = written(of, tmp_path, load, beside=lambda ref: [ScanRef("its-flair.nii", 0)])
        (query, of_query, found, of_hit) = (np.asarray(i.convert("L"), float) for i in images(html))
        assert sorted(loaded) == ["flair.nii", "hit-1.nii", "its-flair.nii", "query.nii"], "each once"
        assert query.shape[0] / query.shape[1] == pytest.approx(
            of_query.shape[0] / of_query.shape[1], abs=0.02
        )
        spot = of_query > 128 + 40
        assert (spot.mean() > 0.02) == bright
        if bright:  # the ball is where it is: x from the right edge, y from the top of 4:-4 and a margin of 2
            rows, columns = np.nonzero(spot)
            assert columns.mean() / of_query.shape[1] == pytest.approx((21.5 - 8) / 20, abs=0.06)
            assert rows.mean() / of_query.shape[0] == pytest.approx((29.5 - 20) / 28, abs=0.06)
        assert found.shape
        assert (of_hit > 168).mean() < 0.01, "at 5 mm there is no ball"
        assert html.count("flair at the same place") == 2


def test_what_lies_elsewhere_or_nowhere_is_not_shown(tmp_path: Path) -> None:
    def shown(other: Scan, **own: Any) -> int:
        def load(path: str) -> list[Scan]:
            return [other if "flair" in path else placed(**own)]

        return written(of_study(), tmp_path, load, beside=lambda ref: []).count("at the same place")

    assert shown(seen_from_beside(0, 0)) == 1
    assert shown(seen_from_beside(0, 500)) == 0, "another part of the body"
    assert shown(seen_from_beside(0, 0, frame="1.2"), frame="1.3") == 0, "another frame of reference"
    assert shown(replace(seen_from_beside(0, 0), affine=None)) == 0
    alone = written(answer([hit()]), tmp_path, lambda path: [placed()], beside=lambda ref: [ref])
    assert "at the same place" not in alone, "one sequence asks"
