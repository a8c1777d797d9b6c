"""Explanations: the parts add up, lie where they belong, and point at what the two slices share."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from benchmarks import explanation as benchmark
from cbir import Index
from indexer.case_index import CaseIndex
from indexer.discovery import read
from indexer.encoder import Encoder, Explainer, TrainedEncoder, load_encoder
from indexer.ingest import ingest
from indexer.learning import explanation as contributions
from indexer.learning import looks, network
from indexer.learning.explanation import GRID
from indexer.learning.network import INPUT, RetrievalNetwork, from_imagenet
from indexer.preprocess import Preprocessing, crop_box, pixel_spacing, prepared, squared
from indexer.scan import Scan, ScanRef, stacked
from retrieval.explain import ExplainedScan, over_slice
from retrieval.pictures import HEAT, PIXELS, overlay, picture
from retrieval.report import write_report
from retrieval.state import REGION, WHOLE
from tests.support.encoders import TinyAnalyser, TinyEncoder
from tests.support.images import phantom, write_nifti


class TinyExplainer(TinyEncoder):
    """The thumbnail's cosine is a sum over its pixels as it is."""

    def explain(
        self,
        batch: NDArray[np.uint8],
        directions: NDArray[np.float32],
        boxes: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        return (self.encode(batch) * directions).reshape(-1, 8, 8)


class Told(TinyAnalyser):
    """Keeps the boxes that it is told."""

    def __init__(self) -> None:
        self.boxes: list[NDArray[np.float32]] = []

    def explain(
        self, batch: NDArray[np.uint8], directions: NDArray[np.float32], boxes: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        self.boxes.append(boxes)
        return np.ones((len(batch), 4, 4), np.float32)


def slices(n: int, side: int = INPUT, seed: int = 0) -> NDArray[np.uint8]:
    """Images with large and small structure."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (n, 8, 8), np.uint8).repeat(side // 8, 1).repeat(side // 8, 2)
    return coarse + rng.integers(0, 56, (n, side, side), np.uint8)


def directions(n: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    x = np.random.default_rng(seed).normal(size=(n, dimension))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def trained() -> TrainedEncoder:
    """Like a trained encoder: nothing in its last layers is left at what it starts with."""
    torch.manual_seed(0)
    net = RetrievalNetwork()
    from_imagenet(net)
    for values in (net.norm.weight.data, net.norm.running_var):
        assert values is not None
        values.uniform_(0.5, 2)
    for values in (net.norm.bias.data, net.norm.running_mean):
        assert values is not None
        values.normal_(0, 0.3)
    net.lesion[1].weight.data.normal_(0, 0.5)  # an attention that is somewhere
    return TrainedEncoder("trained", network.DIMENSION, "1", INPUT, Path(), {}, net.fused())


@pytest.fixture(scope="module")
def imagenet() -> Encoder:
    return load_encoder("imagenet")


# -- the parts add up ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given_boxes", [False, True])
def test_the_cosine_is_the_sum_of_the_cells_and_a_rest(trained: TrainedEncoder, given_boxes: bool) -> None:
    images, towards = slices(4), directions(4, trained.dimension)
    boxes = np.array([[0, 0, 0.02, 0.02], [0.3, 0.4, 0.5, 0.8], [np.nan] * 4, [0.9, 0, 1, 0.3]], np.float32)
    known = boxes if given_boxes else None
    maps, rests = contributions.explain(trained.network, images, towards, known)
    cosines = (trained.analyse(images, known).embeddings * towards).sum(1)
    assert maps.shape == (4, GRID, GRID)
    assert np.abs(rests).min() > 1e-4
    np.testing.assert_allclose(maps.sum((1, 2)) + rests, cosines, atol=1e-5)
    np.testing.assert_array_equal(trained.explain(images, towards, known), maps)


def test_no_rest_without_an_offset(trained: TrainedEncoder) -> None:
    norm = trained.network.norm
    assert norm.running_mean is not None
    held = norm.bias.data.clone(), norm.running_mean.clone()
    try:
        norm.bias.data.zero_()
        norm.running_mean.zero_()
        images, towards = slices(2), directions(2, trained.dimension)
        maps, rests = contributions.explain(trained.network, images, towards)
        np.testing.assert_array_equal(rests, 0)
        np.testing.assert_allclose(maps.sum((1, 2)), (trained.encode(images) * towards).sum(1), atol=1e-5)
    finally:
        norm.bias.data.copy_(held[0])
        norm.running_mean.copy_(held[1])


def test_the_frozen_networks_cells_sum_up_to_the_cosine(imagenet: Encoder) -> None:
    assert isinstance(imagenet, Explainer)
    images, towards = slices(34, 192), directions(34, imagenet.dimension)  # more than one block
    maps = imagenet.explain(images, towards)
    assert maps.shape == (34, 6, 6)
    np.testing.assert_allclose(maps.sum((1, 2)), (imagenet.encode(images) * towards).sum(1), atol=1e-5)


def test_other_shapes_are_refused(trained: TrainedEncoder, imagenet: Encoder) -> None:
    assert isinstance(imagenet, Explainer)
    with pytest.raises(ValueError, match="one vector an image"):
        imagenet.explain(slices(2, 192), directions(1, imagenet.dimension))
    with pytest.raises(ValueError, match="one box an image"):
        trained.explain(slices(2), directions(2, trained.dimension), np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="takes uint8"):
        trained.explain(slices(2, 160), directions(2, trained.dimension))
    assert trained.explain(slices(2)[:0], directions(0, trained.dimension)).shape == (0, GRID, GRID)


# -- where they lie ------------------------------------------------------------------------------------


def test_cells_are_shared_out_around_their_middles() -> None:
    cells = torch.tensor([[[1.0, 2.0], [4.0, 8.0]]])
    whole = torch.eye(2, 3)[None]
    # the tent of the first cell is highest at 1 and ends at -1 and 3: its area is 2, of which 1 lies
    # before 1, 3/4 between 1 and 2, and 1/4 between 2 and 3
    across = torch.tensor([[1 / 2, 3 / 8, 1 / 8, 0], [0, 1 / 8, 3 / 8, 1 / 2]])
    torch.testing.assert_close(contributions.spread(cells, whole, 4)[0], across.T @ cells[0] @ across)
    quarter = torch.tensor([[[0.5, 0, 0.5], [0, 0.5, -0.5]]])  # the upper right quarter of the image
    # its columns 2 and 3 have their middles at 2.5 and 3.5; a tent reaches 1 to either side
    right = torch.tensor([[0, 1 / 8, 3 / 4, 1 / 8], [0, 0, 1 / 8, 7 / 8]])
    torch.testing.assert_close(
        contributions.spread(cells, quarter, 4)[0], right.flip(0, 1).T @ cells[0] @ right, atol=1e-6, rtol=0
    )


def test_what_lies_beyond_the_image_falls_to_its_edge() -> None:
    corner = torch.tensor([[[0.5, 0, -1], [0, 0.5, -1]]])  # three quarters are outside
    spread = contributions.spread(torch.ones(1, 2, 2), corner, 8)[0]
    assert float(spread.sum()) == pytest.approx(4)
    assert float(spread[:3, :3].sum()) == pytest.approx(4)
    assert float(spread[0, 0]) > 2


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(0, 1000))
def test_any_box_keeps_the_sum(corners: list[float], seed: int) -> None:
    (x0, x1), (y0, y1) = sorted(corners[:2]), sorted(corners[2:])
    frame = looks.frames(torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32))
    cells = torch.randn(1, 5, 5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(contributions.spread(cells, frame).sum(), cells.sum(), atol=1e-4, rtol=1e-4)


def stack(*planes: NDArray[Any], **fields: Any) -> Scan:
    """A raster scan of planes as they are displayed, or a volume if it has a spacing."""
    return Scan(stacked(np.stack(planes)), Path("scan"), **fields)


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 4.0), (0.5, 1.25, 6.0), (3.0, 1.0, 9.0)])
@pytest.mark.parametrize("mark", [(6, 9), (20, 33), (13, 14)])
def test_a_marked_pixel_comes_back_where_it_was(
    spacing: tuple[float, float, float] | None, mark: tuple[int, int]
) -> None:
    plane = np.zeros((40, 44), np.float32)
    plane[5:22, 8:35] = 50 + np.random.default_rng(0).random((17, 27))  # off the middle, oblong
    scan = stack(plane, plane, spacing=spacing)
    marked = np.zeros(plane.shape, np.uint8)
    marked[mark] = 255
    image = squared(marked[5:22, 8:35], pixel_spacing(scan), 256)
    y, x = np.unravel_index(image.argmax(), image.shape)
    hot = np.zeros(image.shape, np.float32)
    hot[y - 1 : y + 2, x - 1 : x + 2] = 1
    back = laid(scan, hot)
    assert np.unravel_index(back.argmax(), back.shape) == mark
    assert set(zip(*np.nonzero(back), strict=True)) == {mark}, "a pixel is larger than the mark"


def laid(scan: Scan, cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map as if an encoder of its size had given it for the first slice."""

    class Given(TinyEncoder):
        size = len(cells)

        def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            return np.ones((len(batch), 1), np.float32)

        def explain(self, batch: Any, directions: Any, boxes: Any = None) -> NDArray[np.float32]:
            return cells[None]

    found = ExplainedScan(Given(), scan).map(0, np.ones(1, np.float32))
    assert found is not None
    return found


def test_the_prepared_image_laid_back_is_the_slice() -> None:
    y, x = np.mgrid[:60, :80]
    inside = (np.abs(y - 25) < 18) & (np.abs(x - 30) < 25)
    plane = np.where(inside, 100 + 50 * np.sin(y / 5) + 30 * np.cos(x / 7), 0).astype(np.float32)
    scan = stack(plane, spacing=(1.5, 1.0, 5.0))
    image = prepared(scan, Preprocessing(200)).pixels[0]
    box = slice(8, 43), slice(6, 55)
    back = over_slice(image.astype(np.float32), plane.shape, box, (1.0, 1.5), 200)
    assert not back[~inside].any()
    assert np.corrcoef(back[inside], plane[inside])[0, 1] > 0.999


# -- one slice -----------------------------------------------------------------------------------------


def texture(kind: str, side: int = 96) -> NDArray[np.uint8]:
    y, x = np.mgrid[:side, :side] // 6
    return (((x + y) % 2 if kind == "checks" else x % 2) * 200 + 55).astype(np.uint8)


@pytest.mark.parametrize("shared", ["checks", "stripes"])
def test_the_patch_that_both_share_is_highlighted(imagenet: Encoder, shared: str) -> None:
    assert isinstance(imagenet, Explainer)
    query, hit = np.zeros((2, 192, 192), np.uint8)
    query[:96, :96], query[96:, 96:] = texture("checks"), texture("stripes")
    hit[96:, :96] = texture(shared)  # at another place, alone
    scan = stack(np.pad(query, ((30, 10), (5, 45))))
    explained = ExplainedScan(imagenet, scan).map(0, imagenet.encode(hit[None])[0])
    assert explained is not None
    assert explained.max() == 1
    assert explained.min() == 0
    checks, stripes = explained[30:126, 5:101].mean(), explained[126:222, 101:197].mean()
    assert (checks > 1.5 * stripes) if shared == "checks" else (stripes > 1.5 * checks)
    assert not explained[:30].any()
    assert not explained[:, 197:].any()


def test_a_slice_that_is_not_embedded_is_not_explained() -> None:
    full = np.zeros((40, 40), np.float32)
    full[5:35, 5:35] = np.random.default_rng(0).uniform(50, 100, (30, 30))
    empty = np.zeros_like(full)
    empty[10, 10:12] = 60
    explained = ExplainedScan(TinyExplainer(), stack(full, empty))
    towards = directions(1, 64)[0]
    assert explained.map(0, towards) is not None
    assert explained.embedding(0) is not None
    for absent in (1, 2):
        assert explained.map(absent, towards) is None
        assert explained.embedding(absent) is None
    assert explained.map(0, towards, REGION) is None


def test_a_region_is_explained_in_its_crop_or_on_the_slice_with_its_box() -> None:
    plane = np.random.default_rng(0).uniform(50, 100, (100, 100)).astype(np.float32)
    region = np.zeros((100, 100), bool)
    region[20:60, 30:50] = True
    scan = stack(plane, region=stacked(region[None]))
    crop = np.zeros((100, 100), bool)
    crop[crop_box(region, (1, 1))] = True
    towards = directions(1, 64)[0]
    found = ExplainedScan(TinyExplainer(), scan).map(0, towards, REGION)
    assert found is not None
    assert (found > 0)[crop].mean() > 0.3
    assert not found[~crop].any()

    told = Told()
    for view in (REGION, WHOLE):
        found = ExplainedScan(told, scan).map(0, towards, view)
        assert found is not None
        np.testing.assert_array_equal(found, 1)
    np.testing.assert_allclose(told.boxes[0], [[0.3, 0.2, 0.5, 0.6]], atol=0.01)
    assert np.isnan(told.boxes[1]).all()


# -- an answer -----------------------------------------------------------------------------------------


@pytest.fixture
def index(cohort: Callable[..., Path], tmp_path: Path) -> Iterator[Index]:
    encoder = TinyExplainer()
    case_index = CaseIndex.create(tmp_path / "index", encoder, keep_ids=True)
    ingest(case_index, [cohort(6, ("t1ce", "flair"))], encoder)
    with Index(case_index, encoder) as opened:
        yield opened


@pytest.fixture
def query(tmp_path: Path) -> Path:
    for s, sequence in enumerate(("t1ce", "flair")):
        write_nifti(tmp_path / "query" / f"Q_{sequence}.nii.gz", phantom(99 + s, 4))
    return tmp_path / "query"


def chosen(scans: list[Scan], sequence: str | None) -> Scan:
    return next(scan for scan in scans if scan.sequence == sequence)


def by_hand(scan: Scan, position: int, other: NDArray[np.float32]) -> NDArray[np.float32]:
    """The products of the thumbnail's pixels that are positive, over the slice, at most 1."""
    ready = prepared(scan, Preprocessing(32))
    image = ready.pixels[(ready.positions == position) & (ready.views == WHOLE)]
    cells = (TinyEncoder().encode(image)[0] * other).reshape(8, 8).clip(0)
    held = scan.voxels.any(axis=2)[::-1, ::-1].T  # the phantoms are 0 outside
    rows, columns = (np.flatnonzero(held.any(1 - axis)) for axis in (0, 1))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    found = over_slice(cells, held.shape, box, (1, 1), 32)
    return np.asarray(found / found.max())


def test_both_slices_of_a_pair_are_explained_towards_each_other(index: Index, query: Path) -> None:
    answer = index.query(query, 3)
    why = index.explain(answer)
    assert why is not None
    for hit in answer.hits:
        asking, found = index.scan(hit.query_scan), index.scan(hit.scan)
        embeddings = [
            ExplainedScan(TinyExplainer(), scan).embedding(position)
            for scan, position in ((asking, hit.query_slice), (found, hit.slice))
        ]
        assert embeddings[0] is not None
        assert embeddings[1] is not None
        maps = why(hit, asking, True), why(hit, found, False)
        assert maps[0] is not None
        assert maps[1] is not None
        np.testing.assert_allclose(maps[0], by_hand(asking, hit.query_slice, embeddings[1]), atol=1e-5)
        np.testing.assert_allclose(maps[1], by_hand(found, hit.slice, embeddings[0]), atol=1e-5)
        assert maps[0].shape == asking.slice(hit.query_slice).pixels.shape


def test_the_querys_map_needs_no_pixels_of_the_hit(index: Index, query: Path) -> None:
    answer = index.query(query, 1)
    hit = answer.hits[0]
    Path(hit.source).unlink()
    why = index.explain(answer)
    assert why is not None
    assert why(hit, chosen(read(query), hit.query_sequence), True) is not None


def test_a_hit_is_explained_only_after_its_query(index: Index, query: Path) -> None:
    answer = index.query(query, 1)
    why = index.explain(answer)
    assert why is not None
    hit = answer.hits[0]
    assert why(hit, index.scan(hit.scan), False) is None


def test_what_is_gone_from_the_index_is_not_explained(index: Index, query: Path) -> None:
    answer = index.query(query, 1)
    why = index.explain(answer)
    assert why is not None
    scan = chosen(read(query), answer.hits[0].query_sequence)
    assert why(replace(answer.hits[0], scan=ScanRef("gone.nii", 0)), scan, True) is None
    assert why(replace(answer.hits[0], slice=99), scan, True) is None


LARGE = (80, 90, 6)


def test_a_marked_region_is_explained_inside_its_crop(index: Index, tmp_path: Path) -> None:
    source = write_nifti(tmp_path / "Q_t1ce.nii.gz", phantom(99, shape=LARGE))
    box = np.zeros((90, 80), bool)
    box[38:48, 46:56] = True
    volume = np.zeros(LARGE, np.float32)
    volume[..., 3] = box.T[::-1, ::-1]
    mask = write_nifti(tmp_path / "mask.nii.gz", volume)
    asked: list[dict[str, Any]] = [{"region": (46, 38, 56, 48), "region_slice": 3}, {"mask": mask}]
    for question in asked:
        answer = index.query(source, 1, **question)
        why = index.explain(answer)
        assert why is not None
        found = why(answer.hits[0], read(source)[0], True)
        assert found is not None
        assert_inside(found, box)


def assert_inside(found: NDArray[np.float32], region: NDArray[np.bool_]) -> None:
    inside = np.zeros(found.shape, bool)
    inside[crop_box(region, (1, 1))] = True
    assert inside.mean() < 0.5
    assert found[inside].any()
    assert not found[~inside].any()


def test_a_box_is_not_taken_for_the_outline_of_the_same_file(tmp_path: Path) -> None:
    outline = np.zeros(LARGE, np.float32)
    outline[44:54, 44:54, 3] = 1
    source = write_nifti(tmp_path / "mri" / "A_t1ce.nii.gz", phantom(1, shape=LARGE))
    write_nifti(tmp_path / "mri" / "A_seg.nii.gz", outline)
    encoder = TinyExplainer()
    case_index = CaseIndex.create(tmp_path / "outlined", encoder, keep_ids=True)
    ingest(case_index, [source.parent], encoder)
    with Index(case_index, encoder) as opened:
        answer = opened.query(source, 1, region=(50, 50, 60, 60), region_slice=3)
        why = opened.explain(answer)
        assert why is not None
        (scan,) = opened.scans(source)
        asked, found = why(answer.hits[0], scan, True), why(answer.hits[0], scan, False)
    assert asked is not None
    assert found is not None
    box = np.zeros(found.shape, bool)
    box[50:60, 50:60] = True
    assert_inside(asked, box)
    assert_inside(found, outline[::-1, ::-1, 3].T > 0)


def test_an_encoder_that_cannot_explain_explains_nothing(
    cohort: Callable[..., Path], tmp_path: Path, tiny: TinyEncoder
) -> None:
    case_index = CaseIndex.create(tmp_path / "plain", tiny, keep_ids=True)
    ingest(case_index, [cohort(2)], tiny)
    with Index(case_index, tiny) as opened:
        answer = opened.like(opened.contents.case_ids[0])
        assert opened.explain(answer) is None


# -- the report ----------------------------------------------------------------------------------------


def overlays(html: str) -> list[Image.Image]:
    found = re.findall(r'<img class="why" src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(BytesIO(b64decode(data))) for data in found]


def test_the_report_shows_what_explains_it(index: Index, query: Path, tmp_path: Path) -> None:
    answer = index.query(query, 3)
    write_report(answer, tmp_path / "a.html", load=index.scans, explain=index.explain(answer))
    html = (tmp_path / "a.html").read_text()
    assert len(overlays(html)) == 6
    assert html.count('id="why"') == 1
    assert "where the similarity comes from" in html
    assert "<script" not in html
    write_report(answer, tmp_path / "b.html", load=index.scans)
    html = (tmp_path / "b.html").read_text()
    assert 'id="why"' not in html
    assert not overlays(html)


def test_a_query_that_is_also_a_hit_is_explained_as_both(index: Index, tmp_path: Path) -> None:
    source = index.contents.scan_source[0]
    answer = index.query(source, 2)
    assert answer.hits[0].source == source
    why = index.explain(answer)
    write_report(answer, tmp_path / "a.html", load=index.scans, explain=why)
    assert len(overlays((tmp_path / "a.html").read_text())) == 4


def test_a_file_that_is_gone_leaves_the_others_explained(index: Index, query: Path, tmp_path: Path) -> None:
    answer = index.query(query, 2)
    Path(answer.hits[0].source).unlink()
    write_report(answer, tmp_path / "a.html", load=index.scans, explain=index.explain(answer))
    assert len(overlays((tmp_path / "a.html").read_text())) == 3


def test_the_overlay_covers_the_picture() -> None:
    plane = np.zeros((60, 90), np.uint8)
    plane[10:50, 20:80] = 100
    plane[15:20, 60:70] = 255
    scan = stack(plane, spacing=(1.0, 2.0, 9.0))
    values = (plane == 255).astype(np.float32)
    shown = Image.open(BytesIO(picture(scan, 0).jpeg)).convert("L")
    heat = Image.open(BytesIO(overlay(scan, 0, values)))
    assert heat.size == shown.size
    assert max(heat.size) == PIXELS
    rgba = np.asarray(heat.convert("RGBA"), int)
    np.testing.assert_allclose(rgba[rgba[..., 3].argmax() // heat.width][:, :3].max(0), HEAT[1], atol=1)
    bright = np.asarray(shown) > 180
    assert (bright == (rgba[..., 3] > 90)).mean() > 0.995
    assert rgba[0, 0, 3] == 0


def test_cbir_query_explains_its_report(
    cohort: Callable[..., Path], query: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from retrieval.cli.app import app

    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert run(app, ["index", str(cohort(3)), "--encoder", "imagenet"]).exit_code == 0
    done = run(app, ["query", str(query / "Q_t1ce.nii.gz"), "-k", "2", "--report", "out.html"])
    assert done.exit_code == 0, done.output
    assert len(overlays((tmp_path / "out.html").read_text())) == 4


# -- the benchmark -------------------------------------------------------------------------------------


def test_slices_are_drawn_patient_by_patient() -> None:
    patients = np.array(["a"] * 10 + ["b"] * 3 + ["c"])
    drawn = benchmark.chosen(patients, 7, np.random.default_rng(0))
    assert len(set(drawn.tolist())) == 7
    assert sorted(patients[drawn]) == ["a"] * 3 + ["b"] * 3 + ["c"]


def test_cells_are_blurred_in_their_order() -> None:
    image, blurred = np.full((100, 100), 9, np.uint8), np.zeros((100, 100), np.uint8)
    order = np.array([0, 21, *range(380, 398)])  # twenty cells, two a step
    found = benchmark.mixed(image, blurred, order)
    assert len(found) == benchmark.STEPS + 1
    np.testing.assert_array_equal(found[0], image)
    first = image.copy()
    first[:5, :5] = first[5:10, 5:10] = 0
    np.testing.assert_array_equal(found[1], first)
    assert [int((f == 0).sum()) for f in found] == [50 * step for step in range(11)]


def test_the_right_order_is_told_from_the_wrong_ones() -> None:
    """An encoder that sees one cell alone: its explanation deletes at once and inserts at once."""
    rng = np.random.default_rng(0)
    image = rng.integers(100, 255, (100, 100)).astype(np.uint8)
    image[:, 60:] = 0
    explained = np.zeros((40, 40), np.float32)
    explained[20, 10] = 1  # in cell 10, 5
    by = benchmark.orders(image, explained, np.zeros((20, 20), np.float32), rng)
    assert all(sorted(order) == sorted(by["random"]) for order in by.values())
    assert len(by["random"]) == 20 * 12
    assert by["explanation"][0] == 10 * 20 + 5
    assert by["middle"][0] in (9 * 20 + 5, 9 * 20 + 6, 10 * 20 + 5, 10 * 20 + 6)

    def cosines(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return (images[:, 50:55, 25:30] == image[50:55, 25:30]).all((1, 2)).astype(np.float32)

    found = benchmark.areas(cosines, image, by)
    assert found["explanation"] == {"deletion": pytest.approx(0.05), "insertion": pytest.approx(0.95)}
    assert found["random"]["deletion"] > 0.05


def test_the_interval_is_of_patients() -> None:
    values = np.repeat([0.0, 1.0], 50)
    patients = ["a"] * 50 + ["b"] * 50
    found = benchmark.interval(values, patients)
    assert found == {"value": 0.5, "low": 0.0, "high": 1.0}, "two patients say little, however many slices"
    alone = benchmark.interval(values, [str(i) for i in range(100)])
    assert 0.35 < alone["low"] < 0.45
    assert 0.55 < alone["high"] < 0.65


def test_what_is_gained_is_paired() -> None:
    curves = [
        {
            name: {"deletion": base + shift, "insertion": base - shift}
            for name, shift in (("explanation", 0.0), ("random", 0.1))
        }
        for base in (0.2, 0.4, 0.6)
    ]
    table = benchmark.summary(curves, ["a", "b", "c"])
    assert table["pairs"] == table["patients"] == 3
    assert table["deletion"]["explanation"]["area"]["value"] == pytest.approx(0.4)
    gain = table["deletion"]["random"]["explanation less this"]
    assert [gain[k] for k in ("value", "low", "high")] == pytest.approx([-0.1] * 3)
    assert table["insertion"]["random"]["explanation less this"]["value"] == pytest.approx(0.1)
