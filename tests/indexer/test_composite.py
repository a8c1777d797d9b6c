"""Several sequences of one place, seen together: from the grouping of scans to their part in a score."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from safetensors.numpy import load_file, save_file
from scipy.ndimage import gaussian_filter, zoom

from cbir import Index
from indexer import discovery, encoder
from indexer.case_index import CaseIndex
from indexer.composite import Group, beside, composite, groups
from indexer.discovery.roles import understood
from indexer.discovery.tokens import stem
from indexer.encoder import Composer, TrainedEncoder, load_encoder, look, write_weights
from indexer.encoder import batch as batches
from indexer.errors import CbirError, EncoderError, ReadError
from indexer.ingest import IngestReport, ingest, ingest_sources, remove_sources
from indexer.labels import load_tables
from indexer.learning import augmentation, fitting, looks, network, pack, tasks, training
from indexer.learning.cohort import Cohort
from indexer.learning.network import COMPOSITE_VIEW, VIEW, CompositeNetwork, RetrievalNetwork
from indexer.learning.recipe import Recipe
from indexer.learning.samples import Samples
from indexer.learning.targets import ClassVectors
from indexer.learning.tasks import CompositeTask, SliceTask
from indexer.policy import SearchPolicy
from indexer.preprocess import Preprocessing, prepared, prepared_composite
from indexer.readers import Source
from indexer.scan import Scan, ScanRef, stacked
from indexer.sequences import CHANNELS, COMPOSITE, LEADING
from retrieval import report
from retrieval.ranking import Matches, Ranking
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_dicom, write_nifti

T1, T1CE, T2, FLAIR = range(4)


class TinyComposer(TinyEncoder):
    """Sees composites as 4 × 4 thumbnails of the four channels, and weighs them by their brightness."""

    name = "composing"
    composite_size = 24

    def compose(
        self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        x = batch.reshape(len(batch), 4, 4, 6, 4, 6).mean((3, 5), dtype=np.float32).reshape(len(batch), 64)
        weights = (x.mean(1) / 255 + 0.1).astype(np.float32)
        x = x - x.mean(1, keepdims=True) + 1e-3
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), weights


@pytest.fixture
def composer() -> TinyComposer:
    return TinyComposer()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small steps gain nothing from threads, and wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- which scans go together ---------------------------------------------------------------------------


def scan_of(sequence: str | None, voxels: NDArray[Any] | None = None, **other: Any) -> Scan:
    voxels = np.zeros((3, 4, 5)) if voxels is None else voxels
    told = {"spacing": (1.0, 1.0, 1.0), "affine": np.eye(4), "patient_id": "P", "study_id": "P"}
    return Scan(voxels, Path(f"{sequence}.nii"), sequence=sequence, **(told | other))


def grouped(*scans: Scan) -> list[list[int | None]]:
    """The groups of scans, by their places."""
    place = {id(scan): i for i, scan in enumerate(scans)}
    return [
        [None if scan is None else place[id(scan)] for scan in group.scans] for group in groups(scans, 24)
    ]


def test_sequences_on_one_grid_are_one_channel_each() -> None:
    names = ("flair", "pd", "t1ce", None, "t1", "t2", "t1")
    assert grouped(*map(scan_of, names)) == [[4, 2, 5, 0]]  # of two T1 the first
    assert grouped(scan_of("flair"), scan_of("t1ce")) == [[None, 1, None, 0]]


@pytest.mark.parametrize(
    "other",
    [
        {"patient_id": "Q"},
        {"study_id": "P-2"},
        {"voxels": np.zeros((3, 4, 6))},
        {"affine": np.diag([1.0, 1, -1, 1])},
        {"affine": np.eye(4) + 0.01 * np.eye(4, k=3)},
        {"affine": None},
    ],
)
def test_another_patient_study_or_grid_is_apart(other: dict[str, Any]) -> None:
    assert grouped(scan_of("t1"), scan_of("t2", **other)) == []
    found = grouped(scan_of("t1"), scan_of("t2", **other), scan_of("t1ce"), scan_of("flair", **other))
    assert found == [[0, 2, None, None], [None, None, 1, 3]]


def test_a_hairs_breadth_is_the_same_grid() -> None:
    near = np.eye(4) + np.array([[0, 0, 0, 1e-5], [0, 0, 0, -1e-5], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert grouped(scan_of("t1"), scan_of("t2", affine=near)) == [[0, None, 1, None]]
    signed = np.where(np.eye(4) > 0, 1.0, -0.0)
    assert grouped(scan_of("t1"), scan_of("t2", affine=signed)) == [[0, None, 1, None]]
    # what a voxel measures is worked out of the affine, to a rounding
    spaced = {"affine": np.diag([1, 1, 1 + 1e-7, 1]), "spacing": (1.0, 1.0, 1 + 1e-7)}
    assert grouped(scan_of("t1"), scan_of("t2", **spaced)) == [[0, None, 1, None]]


def test_one_sequence_is_no_group() -> None:
    assert grouped() == []
    assert grouped(scan_of("t1"), scan_of("t1")) == []
    assert grouped(scan_of("t1"), scan_of("adc"), scan_of(None)) == []


def test_pictures_without_a_place_may_go_together() -> None:
    flat = {"spacing": None, "affine": None}
    assert grouped(scan_of("t1", **flat), scan_of("flair", **flat)) == [[0, None, None, 1]]


def test_a_composite_stands_for_its_first_scan() -> None:
    t1ce, flair = scan_of("t1ce"), scan_of("flair")
    found = composite(Group([None, t1ce, None, flair]))
    assert found == replace(t1ce, sequence=COMPOSITE)
    assert t1ce.sequence == "t1ce"


def file_of(path: str, patient: str = "P", **other: Any) -> Source:
    sequence = understood(stem(Path(path).name)).sequence
    told = {"kind": "nifti", "files": (Path(path),), "study_id": patient, "sequence": sequence}
    return Source(Path(path), patient_id=patient, **(told | other))


def together(sources: list[Source]) -> list[Source]:
    return beside(sources, lambda patient, study: f"case-of-{patient}")


def test_single_files_of_a_patient_in_one_folder_are_together() -> None:
    files = ("a/P_flair.nii.gz", "a/P_t1.nii.gz", "b/P_t1.nii.gz", "a/Q_t1.nii", "a/Q_t1ce.nii")
    sources = [file_of(f, Path(f).name[0]) for f in files]
    first, second = together(sources)
    assert (first.path, first.kind, first.patient_id) == (Path("a/P_composite"), COMPOSITE, "P")
    assert first.files == (Path(files[0]), Path(files[1]))
    assert (second.path, second.patient_id) == (Path("a/Q_composite"), "Q")
    assert first.parts == tuple(sources[:2])
    assert second.parts == tuple(sources[3:])
    # files that have no other name than their sequence
    (bare,) = together([file_of("c/t1.nii"), file_of("c/t2.nii")])
    assert bare.path == Path("c/composite")


@pytest.mark.parametrize(
    "other",
    [
        file_of("a/P_t1w.nii.gz"),  # also a T1
        file_of("a/P_adc.nii.gz"),
        file_of("a/P_t2.nii.gz", "Q"),
        file_of("a/P_t2.nii.gz", study_id="P-2"),
        file_of("a/P_t2.nii.gz", channels=("t2", "flair")),
        file_of("a/P_t2.png", kind="raster"),
    ],
    ids=lambda source: f"{source.path}-{source.patient_id}-{source.study_id}",
)
def test_what_is_not_of_one_place_in_names_is_not_together(other: Source) -> None:
    assert together([file_of("a/P_t1.nii.gz"), other]) == []


# -- laid over each other ------------------------------------------------------------------------------


def plane_of(rows: slice, columns: slice, low: int, high: int, marks: tuple[int, int]) -> NDArray[Any]:
    """A plane of 30 × 50 with tissue from low to high in a box, and one brightest pixel."""
    plane = np.zeros((30, 50))
    tissue = np.random.default_rng(low).uniform(low, high, (30, 50))
    plane[rows, columns] = tissue[rows, columns]
    plane[marks] = 2 * high
    return plane


MARK = 12, 20
T1_BOX, FLAIR_BOX = np.s_[4:20, 2:30], np.s_[8:24, 10:42]


def overlapping() -> tuple[Scan, Scan]:
    """Two sequences whose foregrounds differ: together rows 4…24 and columns 2…42."""
    t1 = plane_of(*T1_BOX, 100, 200, MARK)
    flair = plane_of(*FLAIR_BOX, 2000, 3000, MARK)
    flat = {"spacing": None, "affine": None}
    return scan_of("t1", stacked(t1[None]), **flat), scan_of("flair", stacked(flair[None]), **flat)


def test_channels_are_cut_to_one_box_and_stay_in_line() -> None:
    t1, flair = overlapping()
    found = prepared_composite([t1, None, None, flair], 40)  # 40 columns fill 40: nothing is resized
    assert found.pixels.shape == (1, 4, 40, 40)
    assert found.pixels.dtype == np.uint8
    # 20 rows are centred, with 10 above: row 12 lies at 12 - 4 + 10, column 20 at 20 - 2
    brightest = [set(map(tuple, np.argwhere(found.pixels[0, c] == 255).tolist())) for c in (T1, FLAIR)]
    assert brightest[0] & brightest[1] == {(18, 18)}  # of each a few more by chance
    # what is foreground of each alone is foreground of its channel alone
    for channel, box in ((T1, T1_BOX), (FLAIR, FLAIR_BOX)):
        expected = np.zeros((30, 50), bool)
        expected[box] = True
        square = np.zeros((40, 40), bool)
        square[10:30] = expected[4:24, 2:42]
        np.testing.assert_array_equal(found.pixels[0, channel] > 0, square)
    assert not found.pixels[:, [T1CE, T2]].any()


def test_each_channel_is_scaled_by_itself() -> None:
    t1, flair = overlapping()
    first = prepared_composite([t1, None, None, flair], 40).pixels
    inside = first[0, T1][first[0, T1] > 0]
    assert (inside.min(), inside.max()) == (1, 255)
    louder = replace(flair, voxels=flair.voxels * 7)
    np.testing.assert_array_equal(prepared_composite([t1, None, None, louder], 40).pixels, first)
    other = replace(flair, voxels=flair.voxels**2)  # other shades, the same foreground
    second = prepared_composite([t1, None, None, other], 40).pixels
    np.testing.assert_array_equal(second[:, T1], first[:, T1])
    assert (second[:, FLAIR] != first[:, FLAIR]).any()


@pytest.mark.parametrize("channel", range(4))
def test_one_sequence_alone_is_prepared_as_ever(channel: int) -> None:
    volume = phantom(3, 4)
    region = np.zeros(volume.shape, bool)
    region[8:14, 9:12, 4:6] = True
    scan = scan_of("t2", volume, spacing=(1.0, 1.0, 3.0), region=region)
    alone = prepared(scan, Preprocessing(32, crops=False))
    found = prepared_composite([scan if c == channel else None for c in range(4)], 32)
    np.testing.assert_array_equal(found.pixels[:, channel], alone.pixels)
    assert not np.delete(found.pixels, channel, axis=1).any()
    for part in ("positions", "weights", "views", "boxes"):
        np.testing.assert_array_equal(getattr(found, part), getattr(alone, part))
    assert found.views.sum() == 2


def test_regions_lie_in_the_common_box() -> None:
    t1, flair = overlapping()
    region = np.zeros((1, 30, 50), bool)
    region[0, 8:13, 10:20] = True
    elsewhere = np.zeros((1, 30, 50), bool)
    elsewhere[0, 20:22, 30:32] = True
    outlined = replace(flair, region=stacked(region))
    for first in (t1, replace(t1, region=stacked(region))):
        last = outlined if first is t1 else replace(flair, region=stacked(elsewhere))
        found = prepared_composite([first, None, None, last], 40)
        assert found.views.tolist() == [0, 1]
        assert found.positions.tolist() == [0, 0]
        assert np.isnan(found.boxes[0]).all()
        np.testing.assert_allclose(found.boxes[1] * 40, [10 - 2, 8 - 4 + 10, 20 - 2, 13 - 4 + 10])
        np.testing.assert_array_equal(found.pixels[0], found.pixels[1])


def test_a_slice_stays_that_any_sequence_shows() -> None:
    planes = np.zeros((2, 4, 20, 20))  # sequence, slice
    planes[0, 0, 2:18, 2:18] = planes[1, 1, 2:18, 2:18] = planes[1, 2, 2:10, 2:18] = 100
    planes[:, :, 5, 5] *= 1.5
    flat = {"spacing": None, "affine": None}
    one, two = (scan_of(name, stacked(p), **flat) for name, p in zip(("t1", "t2"), planes, strict=True))
    found = prepared_composite([one, None, two, None], 16)
    assert found.positions.tolist() == [0, 1, 2]  # the last slice is empty in both
    np.testing.assert_allclose(found.weights, [1, 1, 0.5])
    assert found.pixels.any((2, 3)).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]


def test_a_scan_that_shows_nothing_is_told() -> None:
    t1, flair = overlapping()
    for voxels in (np.full_like(flair.voxels, 3), np.where(flair.voxels > 2500, np.nan, 1)):
        with pytest.raises(ReadError, match="flair.nii"):
            prepared_composite([t1, None, None, replace(flair, voxels=voxels)], 40)


def test_how_slices_are_prepared_says_whether_composites_are(composer: TinyComposer) -> None:
    how = Preprocessing.of(composer)
    assert (how.size, how.composite_size) == (32, 24)
    plain = Preprocessing.of(TinyEncoder())
    assert plain.composite_size == 0
    assert len({how.version, plain.version, replace(how, composite_size=32).version}) == 3
    assert replace(how, composite_size=0).version == plain.version


# -- the network ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks() -> tuple[RetrievalNetwork, CompositeNetwork]:
    """With ImageNet's backbone and heads that have learnt nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, together = RetrievalNetwork(), CompositeNetwork(4)
    network.from_imagenet(net)
    stem = net.backbone.stem.state_dict()
    together.stem.load_state_dict(stem | {"conv.weight": stem["conv.weight"].repeat(1, 4, 1, 1)})
    together.blocks.load_state_dict(net.backbone.blocks[: len(together.blocks)].state_dict())
    return net.eval(), together.eval()


def there_of(*rows: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([[c in row for c in range(4)] for row in rows])


@torch.inference_mode()
def test_a_vector_does_not_depend_on_what_is_not_there(
    networks: tuple[RetrievalNetwork, CompositeNetwork],
) -> None:
    _, together = networks
    x = torch.rand(2, 4, 96, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    there = there_of((T1, FLAIR), (T2,))
    found = together(x, there)
    assert found.shape == (2, network.DIMENSION)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    other = torch.where(there[:, :, None, None], x, -x)
    torch.testing.assert_close(together(other, there), found)
    assert (together(other, ~there) - together(x, ~there)).abs().max() > 1e-3
    assert (together(x, torch.ones_like(there)) - found).abs().max() > 1e-3


@torch.inference_mode()
def test_a_vector_does_not_depend_on_the_other_images(
    networks: tuple[RetrievalNetwork, CompositeNetwork],
) -> None:
    _, together = networks
    x = torch.rand(4, 4, 96, 96, generator=torch.Generator().manual_seed(2)) * 2 - 1
    there = there_of((0, 1), (0, 1, 2, 3), (3,), (1, 2))
    one_by_one = torch.cat([together(x[i : i + 1], there[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together(x, there), one_by_one, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_channels_that_are_there_count_for_those_that_are_not(
    networks: tuple[RetrievalNetwork, CompositeNetwork],
) -> None:
    together = CompositeNetwork(4).eval()
    together.load_state_dict(networks[1].state_dict())
    kernel = together.stem.conv.weight
    kernel.copy_(kernel.mean(1, keepdim=True).expand_as(kernel).clone())  # all channels are looked at alike
    x = torch.rand(1, 1, 96, 96, generator=torch.Generator().manual_seed(3)) * 2 - 1
    there = there_of((0,), (2,), (0, 3), (0, 1, 2, 3))
    found = together(x.expand(4, 4, 96, 96), there)
    torch.testing.assert_close(found, found[:1].expand(4, -1), atol=1e-4, rtol=0)


def made_images(n: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(1, 255, (n, 4, 10, 10), np.uint8)
    return coarse.repeat(16, 2).repeat(16, 3)


@torch.inference_mode()
def test_without_a_tissue_head_the_leading_sequence_that_is_there_says_where(
    networks: tuple[RetrievalNetwork, CompositeNetwork],
) -> None:
    net, together = networks[0], CompositeNetwork(4, segments=False).eval()
    there = together.state_dict().keys()
    together.load_state_dict({key: v for key, v in networks[1].state_dict().items() if key in there})
    subsets = [kept for size in (1, 2, 4) for kept in combinations(range(4), size)]
    image = made_images(1)[0]
    batch = np.stack([np.where(there_of(kept)[0].numpy()[:, None, None], image, 0) for kept in subsets])
    vectors, weights = looks.compose(net, together, batch, LEADING)
    logits = net(torch.from_numpy(image).float()[:, None] / 127.5 - 1)[1]
    chance = logits.sigmoid().flatten(1).sort(1).values[:, -looks.TOP :].mean(1).numpy()
    boxes = looks.proposed(logits.sigmoid().numpy())
    lead = [next(c for c in (FLAIR, T2, T1CE, T1) if c in kept) for kept in subsets]
    np.testing.assert_allclose(weights, chance[lead], atol=1e-4)
    known, _ = looks.compose(net, together, batch, LEADING, boxes[lead])
    np.testing.assert_allclose(vectors, known, atol=1e-3)
    # and the view is the square around the box, of a side that is 1.6 times its longer one
    for row, kept in ((0, subsets[0]), (len(subsets) - 1, subsets[-1])):
        x0, y0, x1, y1 = boxes[lead[row]]
        half = min(max((max(x1 - x0, y1 - y0)) * 1.6, 1 / 8), 1) / 2
        steps = (np.arange(COMPOSITE_VIEW) + 0.5) / COMPOSITE_VIEW * 2 * half - half
        grid = np.stack(np.meshgrid((x0 + x1) / 2 + steps, (y0 + y1) / 2 + steps), -1)[None] * 2 - 1
        x = torch.from_numpy(batch[row : row + 1]).float() / 127.5
        view = torch.nn.functional.grid_sample(x, torch.from_numpy(grid).float(), align_corners=False) - 1
        np.testing.assert_allclose(together(view, there_of(kept)).numpy()[0], vectors[row], atol=1e-3)


def test_a_known_box_is_all_that_is_looked_at(networks: tuple[RetrievalNetwork, CompositeNetwork]) -> None:
    batch = made_images(2)
    box = np.array([[0.25, 0.25, 0.5, 0.5]] * 2, np.float32)
    first, weights = looks.compose(*networks, batch, LEADING, box)
    # its square reaches 0.2 around 0.375, and 1.25 times that from afar: pixels 20 to 100
    near, far = np.zeros((160, 160), bool), np.ones((160, 160), bool)
    near[22:98, 22:98], far[18:102, 18:102] = True, False
    outside, moved = looks.compose(*networks, np.where(far, 255 - batch, batch), LEADING, box)
    np.testing.assert_allclose(outside, first, atol=1e-5)
    assert np.abs(moved - weights).max() > 1e-4  # the chance of a lesion is that of the slice
    inside, _ = looks.compose(*networks, np.where(near, 255 - batch, batch), LEADING, box)
    assert np.abs(inside - first).max() > 1e-2
    # a row without a box is proposed, whatever box another has
    mixed, _ = looks.compose(*networks, batch, LEADING, np.stack([np.full(4, np.nan, np.float32), box[1]]))
    free, _ = looks.compose(*networks, batch, LEADING)
    np.testing.assert_allclose(mixed, [free[0], first[1]], atol=1e-5)


def test_a_region_is_looked_at_turned_and_mirrored_from_near_and_far(
    networks: tuple[RetrievalNetwork, CompositeNetwork],
) -> None:
    batch, box = made_images(3), np.array([[0.375, 0.375, 0.625, 0.625]] * 3, np.float32)
    plain = looks.compose(*networks, batch, LEADING, box)[0]
    one, there = torch.from_numpy(batch).float() / 127.5 - 1, torch.ones(3, 4, dtype=torch.bool)
    by_hand = torch.zeros(3, plain.shape[1])
    with torch.inference_mode():
        for i, near in enumerate((0.8, 1.0, 1.25, 1.0)):
            theta = torch.tensor([[0.4 * near, 0.0, 0.0], [0.0, 0.4 * near, 0.0]]).repeat(3, 1, 1)
            view = torch.rot90(looks.looked_at(one, theta, COMPOSITE_VIEW), i, (2, 3))
            by_hand += networks[1](view.flip(3) if i >= 2 else view, there)
    np.testing.assert_allclose(plain, torch.nn.functional.normalize(by_hand).numpy(), atol=1e-3)


# -- the encoder and its file --------------------------------------------------------------------------


def written(path: Path, net: RetrievalNetwork, together: CompositeNetwork | None) -> TrainedEncoder:
    told = {"name": "mine", "labels": {"kind": ("a", "b")}, "recipe": {}, "patients": ["P-1"]}
    write_weights(path, net, composite=together, **told)
    found = load_encoder(str(path))
    assert isinstance(found, TrainedEncoder)
    return found


@pytest.fixture(scope="module")
def both(
    networks: tuple[RetrievalNetwork, CompositeNetwork], tmp_path_factory: pytest.TempPathFactory
) -> TrainedEncoder:
    return written(tmp_path_factory.mktemp("weights") / "both.safetensors", *networks)


def test_the_file_holds_both_networks(
    both: TrainedEncoder,
    networks: tuple[RetrievalNetwork, CompositeNetwork],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(both, Composer)
    assert both.composite_size == VIEW == Preprocessing.of(both).composite_size
    batch = made_images(3)
    batch[1, [T1CE, FLAIR]] = 0
    boxes = np.array([[0.1, 0.2, 0.5, 0.6]] * 3, np.float32)
    vectors, weights = both.compose(batch, boxes)
    assert vectors.dtype == weights.dtype == np.float32
    exact, chance = looks.compose(*networks, batch, LEADING, boxes)
    # kernels in half precision
    assert 0 < np.abs(vectors - exact).max() < 1e-2
    assert (vectors * exact).sum(1).min() > 0.999
    assert np.abs(weights - chance).max() < 1e-2
    monkeypatch.setattr(batches, "IMAGES_AT_ONCE", 2)
    for blocks, whole in zip(both.compose(batch, boxes), (vectors, weights), strict=True):
        np.testing.assert_allclose(blocks, whole, atol=1e-5)
    assert [part.shape for part in both.compose(batch[:0])] == [(0, network.DIMENSION), (0,)]
    for wrong in (batch.astype(np.float32), batch[:, :3], batch[..., :-1], batch[:, 0]):
        with pytest.raises(ValueError, match="takes no composites"):
            both.compose(wrong)


def test_the_version_says_whether_it_composes(
    both: TrainedEncoder, networks: tuple[RetrievalNetwork, CompositeNetwork], tmp_path: Path
) -> None:
    net, together = networks
    alone = written(tmp_path / "alone.safetensors", net, None)
    assert alone.composite_size == 0
    assert Preprocessing.of(alone).composite_size == 0
    with pytest.raises(ValueError, match="takes no composites"):
        alone.compose(made_images(1))
    changed = CompositeNetwork(4)
    changed.load_state_dict(together.state_dict())
    with torch.no_grad():
        changed.norm.bias[0] += 1
    other = written(tmp_path / "other.safetensors", net, changed)
    assert len({both.version, alone.version, other.version}) == 3
    assert written(tmp_path / "again.safetensors", net, together).version == both.version
    assert (tmp_path / "again.safetensors").read_bytes() == both.weights_file.read_bytes()


def test_a_changed_composite_network_is_refused(both: TrainedEncoder, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(both.weights_file, "numpy") as file:
        about = file.metadata()
    tensors = load_file(both.weights_file)
    key = "together.projection.weight"
    turned = {**tensors, key: -tensors[key]}
    lost = {name: value for name, value in tensors.items() if name != key}
    none = {name: value for name, value in tensors.items() if not name.startswith("together.")}
    for content in (turned, lost, none):
        save_file(content, tmp_path / "mine.safetensors", about)
        with pytest.raises(EncoderError, match="damaged"):
            load_encoder(str(tmp_path / "mine.safetensors"))


def test_another_way_to_compose_is_another_version(
    both: TrainedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "COMPOSITE_VIEW", 64)
    with pytest.raises(EncoderError, match="another version of cbir"):
        load_encoder(str(both.weights_file))


def test_composites_are_looked_at_by_their_own_network(both: TrainedEncoder) -> None:
    batch = made_images(2)
    boxes = np.array([[np.nan] * 4, [0.1, 0.2, 0.5, 0.6]], np.float32)
    vectors, weights, strangeness = look(both, batch, boxes, np.array([0.5, 0.25], np.float32))
    expected, chance = both.compose(batch, boxes)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    np.testing.assert_allclose(weights, [0.5 * max(chance[0], encoder.LEAST_WEIGHT), 0.25], rtol=1e-4)
    assert weights.dtype == np.float32
    assert np.isnan(strangeness).all()


def test_a_composite_without_any_lesion_keeps_a_little_weight(
    composer: TinyComposer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composer, "compose", lambda batch, boxes: (batch[:, 0, 0], np.zeros(len(batch))))
    pixels, boxes = np.zeros((1, 4, 24, 24), np.uint8), np.full((1, 4), np.nan, np.float32)
    _, weights, _ = look(composer, pixels, boxes, np.ones(1, np.float32))
    assert weights == pytest.approx([encoder.LEAST_WEIGHT])


# -- training ------------------------------------------------------------------------------------------


def test_views_of_a_lesion_are_turned_at_will_around_it() -> None:
    boxes = torch.tensor([[0.3, 0.4, 0.5, 0.5], [math.nan] * 4]).repeat(200, 1)
    theta = augmentation.lesion_frames(boxes, torch.Generator().manual_seed(0))
    size = theta[:, :, :2].det().abs().sqrt()
    known = size[::2] / (0.2 * looks.CONTEXT)
    assert known.max() <= augmentation.REGION + 1e-4
    assert known.min() >= 1 / augmentation.REGION - 1e-4
    assert known.max() - known.min() > 0.3
    low, high = augmentation.CROP
    assert size[1::2].min() >= low - 1e-4
    assert size[1::2].max() <= high + 1e-4
    most = 2 * augmentation.SHIFT * 0.2 * looks.CONTEXT * augmentation.REGION
    moved = (theta[::2, :, 2] - torch.tensor([0.8 - 1, 0.9 - 1])).abs()
    assert 0.5 * most < moved.max() <= most + 1e-5
    assert 0.05 < theta[1::2, :, 2].abs().max() <= 2 * augmentation.SHIFT + 1e-5
    # every twelfth of a turn, each with its mirror image
    turn = torch.atan2(theta[:, 1, 0], theta[:, 0, 0]).div(math.pi / 6).floor()
    mirrored = theta[:, :, :2].det() < 0
    assert len({(int(t), bool(m)) for t, m in zip(turn, mirrored, strict=True)}) == 24
    # the least region is an eighth of the slice
    tiny = augmentation.lesion_frames(torch.tensor([[0.5, 0.5, 0.51, 0.51]] * 50), torch.Generator())
    assert tiny[:, :, :2].det().abs().sqrt().min() >= looks.LEAST / augmentation.REGION - 1e-5


def exclusive(n: int, seed: int = 0) -> Samples:
    """Composites of two sequences with a square that is bright or dark in each: in both alike, or not."""
    rng = np.random.default_rng(seed)
    target = np.arange(n) % 2
    bright = (np.arange(n) // 2) % 2
    levels = np.stack([bright, bright ^ target], 1)  # each alone says nothing
    pixels = rng.integers(110, 140, (n, 2, 48, 48)).astype(np.uint8)
    boxes = np.empty((n, 4), np.float32)
    for i in range(n):
        y, x = rng.integers(6, 22, 2)
        for channel in range(2):
            noise = rng.integers(-10, 10, (20, 20))
            pixels[i, channel, y : y + 20, x : x + 20] = 40 + 180 * levels[i, channel] + noise
        boxes[i] = np.array([x, y, x + 20, y + 20]) / 48
    return Samples(
        pixels=pixels,
        outlines=np.empty((n, 0, 0), np.uint8),
        rows=np.arange(n),
        boxes=boxes,
        outlined=np.ones(n, bool),
        patients=np.array([f"P-{i}" for i in range(n)]),
        targets={"kind": target.astype(np.int64)},
        classes={"kind": ("alike", "unlike")},
        labels=tuple({"kind": ("alike", "unlike")[t]} for t in target),
        cohort=np.zeros(n, np.int64),
        importance=np.ones(n),
    )


QUICK = Recipe(epochs=1, batch=4, draws=8, seed=5, dimension=16)


def embedded(net: CompositeNetwork, samples: Samples, there: tuple[int, ...] = (0, 1)) -> NDArray[Any]:
    x = torch.from_numpy(samples.pixels).float() / 127.5 - 1
    views = looks.looked_at(x, looks.frames(torch.from_numpy(samples.boxes)), COMPOSITE_VIEW)
    with torch.inference_mode():
        return net(views, there_of(*[there] * len(samples))[:, :2]).numpy()


@pytest.mark.slow
def test_what_only_the_difference_of_two_sequences_tells_is_learnt() -> None:
    train, test = exclusive(32), exclusive(24, seed=1)
    recipe = replace(QUICK, epochs=4, batch=16, draws=80, rate=2e-3, dropout=0.0, depth=0.0)
    net = training.train(CompositeTask(train, recipe))
    assert not net.training

    def accuracy(there: tuple[int, ...]) -> float:
        """Of the nearest class mean."""
        held, asked = embedded(net, train, there), embedded(net, test, there)
        means = np.stack([held[train.targets["kind"] == c].mean(0) for c in (0, 1)])
        return float(np.mean((asked @ means.T).argmax(1) == test.targets["kind"]))

    assert accuracy((0, 1)) >= 0.9
    assert accuracy((0,)) <= 0.75
    assert accuracy((1,)) <= 0.75


def state_of(net: CompositeNetwork) -> dict[str, NDArray[Any]]:
    return {name: value.numpy() for name, value in net.state_dict().items()}


@pytest.mark.slow
def test_the_seed_decides() -> None:
    samples = exclusive(8)
    before = torch.random.get_rng_state()
    steps: list[tuple[int, int, int]] = []
    first = state_of(training.train(CompositeTask(samples, QUICK), progress=lambda *done: steps.append(done)))
    assert steps == [(0, 1, 2), (0, 2, 2)]
    assert torch.equal(before, torch.random.get_rng_state())  # nobody else's dice are touched
    torch.rand(7)
    again = state_of(training.train(CompositeTask(samples, QUICK)))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    other = state_of(training.train(CompositeTask(samples, replace(QUICK, seed=6))))
    assert not np.array_equal(first["projection.weight"], other["projection.weight"])
    assert not np.array_equal(first["stem.conv.weight"], other["stem.conv.weight"])


@pytest.mark.slow
def test_the_same_loop_trains_composites(tmp_path: Path) -> None:
    """By hand, in two epochs of one step; and taken up after the first."""
    samples, recipe = exclusive(8), replace(QUICK, epochs=2, batch=8)
    checkpoint = tmp_path / "composites.checkpoint"
    done = training.train(CompositeTask(samples, recipe))
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        net = CompositeNetwork(2, recipe.dimension, recipe.dropout, recipe.depth, segments=False)
        network.composite_from_imagenet(net)
        heads = ClassVectors({"kind": 2}, recipe)
        net.to(memory_format=torch.channels_last)
        parameters = [*net.parameters(), *heads.parameters()]
        kernels, others = ([p for p in parameters if (p.ndim > 1) == wide] for wide in (True, False))
        groups = [{"params": kernels, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups)
        for epoch in range(2):
            dice = training.epoch_generator(recipe.seed, epoch)
            torch.manual_seed(dice.initial_seed())
            net.train()
            rows = torch.multinomial(torch.from_numpy(samples.shares()), 8, replacement=True, generator=dice)
            views, there, _ = tasks.composite_views(samples, rows.numpy(), dice, augmentation.lesion_frames)
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate * (
                    1 / 1.1 if epoch == 0 else (1 + math.cos(math.pi * 0.9 / 1.9)) / 2
                )
            optimiser.zero_grad()
            heads(net(views, there), {"kind": torch.from_numpy(samples.targets["kind"])[rows]}).backward()
            optimiser.step()
    assert all(np.array_equal(state_of(net)[name], value) for name, value in state_of(done).items())

    class StoppedError(Exception):
        pass

    def stop(epoch: training.Epoch, _: CompositeNetwork) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        training.train(CompositeTask(samples, recipe), checkpoint=checkpoint, finished=stop)
    taken_up = training.train(CompositeTask(samples, recipe), checkpoint=checkpoint, resume=True)
    assert all(np.array_equal(state_of(taken_up)[name], value) for name, value in state_of(done).items())


def test_only_labelled_composites_that_show_something_are_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = exclusive(8)
    samples.targets["kind"][:2] = -1
    samples.boxes[2:4] = np.nan  # outlined elsewhere: these are free of a lesion
    drawn: set[str] = set()
    views = tasks.composite_views

    def noted(mine: Samples, rows: NDArray[np.int64], *how: Any) -> Any:
        drawn.update(mine.patients[rows])
        return views(mine, rows, *how)

    monkeypatch.setattr(tasks, "composite_views", noted)
    training.train(CompositeTask(samples, replace(QUICK, draws=24, batch=8)))
    assert drawn == {"P-4", "P-5", "P-6", "P-7"}
    with pytest.raises(CbirError, match="no composite has a label"):
        CompositeTask(replace(samples, targets={"kind": np.full(8, -1)}), QUICK)


def test_sequences_are_hidden_now_and_then_but_never_all() -> None:
    samples = exclusive(4)
    samples.pixels[3, 0] = 0  # has one sequence only
    rows = np.tile(np.arange(4), 100)
    dice = torch.Generator().manual_seed(0)
    views, there, _ = tasks.composite_views(samples, rows, dice, augmentation.lesion_frames)
    assert views.shape == (400, 2, COMPOSITE_VIEW, COMPOSITE_VIEW)
    assert views.min() >= -1
    assert views.max() <= 1
    assert there.any(1).all()
    assert not there[3::4, 0].any()
    # of two sequences one is kept by a chance of 3/4 each; where both would go, both stay
    shown = there[torch.from_numpy(rows != 3)].float().mean()
    assert float(shown) == pytest.approx(0.75 + 0.25**2, abs=0.05)


# -- the training set ----------------------------------------------------------------------------------


def write_stacks(
    root: Path, names: tuple[str, ...], channels: tuple[str, ...] = ("t1", "t1ce", "flair"), seed: int = 0
) -> Path:
    """Patients, each a NIfTI file of four axes in a folder of its own, and grades."""
    for i, name in enumerate(names):
        volumes = [phantom(seed + 10 * i + c, 2 + (i + c) % 3) for c in range(len(channels))]
        write_nifti(root / name / f"{name}.nii.gz", np.stack(volumes, -1))
    (root / "cbir.json").write_text(json.dumps({"channels": channels}))
    rows = [f"{name}\t{2 + i % 2}" for i, name in enumerate(names)]
    (root / "participants.tsv").write_text("\n".join(["participant_id\twho_grade", *rows]) + "\n")
    return root


def cohort_of(root: Path) -> Cohort:
    return Cohort(root, load_tables(root / "participants.tsv"), ("who_grade",))


def test_composites_of_a_cohort_are_packed_once(tmp_path: Path) -> None:
    root = write_stacks(tmp_path / "mri", ("P-1", "P-2", "P-3"))
    mask = (phantom(0, 2) > 180).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, np.diag([1.0, 1, 3, 1])), root / "P-1" / "P-1_seg.nii.gz")
    calls: list[str] = []

    def read(source: Source) -> list[Scan]:
        calls.append(source.patient_id)
        return discovery.read(source)

    cohort = replace(cohort_of(root), read=read)
    found = pack.load_composites([cohort], 32, tmp_path / "cache")
    assert found is not None
    assert calls == ["P-1", "P-2", "P-3"]
    assert found.classes == {"who_grade": ("2", "3")}
    for name, grade in (("P-1", 0), ("P-2", 1), ("P-3", 0)):
        mine = found.chosen(found.patients == name)
        (group,) = groups(discovery.read(root / name), 32)
        ready = prepared_composite(group.scans, 32, standardised=True)
        whole = ready.views == 0
        np.testing.assert_array_equal(mine.pixels[mine.rows], ready.pixels[whole])
        assert (mine.targets["who_grade"] == grade).all()
        assert mine.outlined.all() == (name == "P-1")
        assert mine.outlined.any() == (name == "P-1")
        boxes = dict(zip(ready.positions[~whole].tolist(), ready.boxes[~whole], strict=True))
        for position, box in zip(ready.positions[whole].tolist(), mine.boxes, strict=True):
            np.testing.assert_array_equal(box, boxes.get(position, np.full(4, np.nan)))
        assert np.isfinite(mine.boxes[:, 0]).any() == (name == "P-1")
    again = pack.load_composites([cohort], 32, tmp_path / "cache")
    assert again is not None
    assert len(calls) == 3
    np.testing.assert_array_equal(again.pixels, found.pixels)
    write_nifti(root / "P-2" / "P-2.nii.gz", np.stack([phantom(50 + c, 4) for c in range(3)], -1))
    pack.load_composites([cohort], 32, tmp_path / "cache")
    assert len(calls) == 6


def test_without_several_sequences_there_are_no_composites(tmp_path: Path) -> None:
    root = write_stacks(tmp_path / "mri", ("P-1", "P-2"))
    (root / "cbir.json").unlink()
    assert pack.load_composites([cohort_of(root)], 32, tmp_path / "cache") is None
    (root / "cbir.json").write_text('{"channels": ["t1", "adc", "dwi"]}')
    assert pack.load_composites([cohort_of(root)], 32, tmp_path / "cache") is None


def test_a_label_that_all_composites_share_teaches_them_nothing(tmp_path: Path) -> None:
    root = write_stacks(tmp_path / "mri", ("P-1", "P-2"))
    write_files(root / "P-3", "P-3", "t1", seed=30)
    (root / "participants.tsv").write_text("participant_id\twho_grade\nP-1\t2\nP-2\t2\nP-3\t3\n")
    assert pack.load([cohort_of(root)], 32, tmp_path / "cache").classes == {"who_grade": ("2", "3")}
    found = pack.load_composites([cohort_of(root)], 32, tmp_path / "cache")
    assert found is not None
    assert found.classes == found.targets == {}


@pytest.mark.slow
@pytest.mark.parametrize("several", [True, False])
def test_a_fit_writes_both_networks_for_the_same_patients(
    tmp_path: Path,
    networks: tuple[RetrievalNetwork, CompositeNetwork],
    monkeypatch: pytest.MonkeyPatch,
    several: bool,
) -> None:
    names = ("P-1", "P-2", "P-3", "P-4", "P-5")
    root = write_stacks(tmp_path / "mri", names)
    if not several:
        (root / "cbir.json").unlink()
    seen: dict[str, Samples] = {}

    def train(task: SliceTask | CompositeTask, **_: Any) -> RetrievalNetwork | CompositeNetwork:
        composites = isinstance(task, CompositeTask)
        seen["composites" if composites else "slices"] = task.samples
        return networks[composites]

    monkeypatch.setattr(fitting, "train", train)
    monkeypatch.setattr(fitting, "TYPICAL", 4)
    monkeypatch.setattr(fitting, "held_out_precision", lambda *_: {})
    out = tmp_path / "mine.safetensors"
    fitting.fit([cohort_of(root)], out, QUICK, cache=tmp_path / "cache", validation=0.2)
    told = load_encoder(str(out))
    assert isinstance(told, TrainedEncoder)
    assert told.composite_size == (VIEW if several else 0)
    patients = set(seen["slices"].patients)
    assert len(patients) == 4  # one is held out
    if several:
        assert set(seen["composites"].patients) == patients
        assert seen["composites"].pixels.shape[1:] == (4, VIEW, VIEW)
    assert ("composites" in seen) == several


# -- filing --------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path, composer: TinyComposer) -> Iterator[CaseIndex]:
    with CaseIndex.create(tmp_path / "index", composer, keep_ids=True) as index:
        yield index


def write_files(folder: Path, name: str, *sequences: str, seed: int = 0) -> list[Path]:
    """Single files of several sequences, beside each other."""
    places = {sequence: CHANNELS.index(sequence) for sequence in sequences}
    return [
        write_nifti(folder / f"{name}_{sequence}.nii.gz", phantom(seed + place, 2 + (seed + place) % 3))
        for sequence, place in places.items()
    ]


def filed(index: CaseIndex) -> dict[str, list[str | None]]:
    """Sequences of each case."""
    contents = index.catalog.contents()
    return {
        name: sorted(s for s, c in zip(contents.scan_sequence, contents.scan_case, strict=True) if c == i)
        for i, name in enumerate(contents.case_ids)
    }


def stored(index: CaseIndex, case: str, sequence: str, view: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Embeddings and weights of a case's slices."""
    contents = index.catalog.contents()
    rows = [
        i
        for i, scan in enumerate(contents.slice_scan)
        if contents.case_ids[contents.scan_case[scan]] == case
        and contents.scan_sequence[scan] == sequence
        and contents.slice_view[i] == view
    ]
    return index.catalog.embeddings(contents.slice_ids[rows]), contents.slice_weight[rows]


def expected(composer: TinyComposer, *paths: Path, view: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """What is to be filed of the only composite of some files."""
    (group,) = groups([scan for path in paths for scan in discovery.read(path)], composer.composite_size)
    ready = prepared_composite(group.scans, composer.composite_size)
    rows = ready.views == view
    vectors, chance = composer.compose(ready.pixels[rows])
    return vectors, (ready.weights[rows] if view else ready.weights[rows] * chance)


def counts(found: IngestReport) -> tuple[int, int, int]:
    return found.indexed, found.unchanged, len(found.failed)


def test_channels_of_a_file_are_filed_together(
    index: CaseIndex, composer: TinyComposer, tmp_path: Path
) -> None:
    root = write_stacks(tmp_path / "mri", ("P-1", "P-2"))
    first = ingest(index, [root], composer)
    assert counts(first) == (2, 0, 0)
    assert filed(index) == {name: [COMPOSITE, "flair", "t1", "t1ce"] for name in ("P-1", "P-2")}
    for name in ("P-1", "P-2"):
        found = zip(stored(index, name, COMPOSITE), expected(composer, root / name), strict=True)
        for ours, theirs in found:
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert first.embedded == first.slices
    assert index.verify() == []
    revision = index.catalog.revision
    second = ingest(index, [root], composer)
    assert (counts(second), second.embedded) == ((0, 2, 0), 0)
    assert index.catalog.revision == revision


def test_a_case_has_its_scans_and_no_composite(
    index: CaseIndex, composer: TinyComposer, tmp_path: Path
) -> None:
    write_stacks(tmp_path / "mri", ("P-1",))
    write_files(tmp_path / "mri" / "P-2", "P-2", "t1", "flair")
    write_nifti(tmp_path / "mri" / "P-3" / "P-3.nii.gz", phantom(5))  # of a sequence that nobody knows
    ingest(index, [tmp_path / "mri"], composer)
    for name, sequences in (("P-1", ["t1", "t1ce", "flair"]), ("P-3", [None])):
        case = index.catalog.case(name)
        assert case is not None
        assert [scan.sequence for scan in case.scans] == sequences
        assert [scan.number for scan in case.scans] == list(range(len(sequences)))


def test_without_names_or_without_a_composer_there_are_none(
    index: CaseIndex, composer: TinyComposer, tmp_path: Path, tiny: TinyEncoder
) -> None:
    root = write_stacks(tmp_path / "mri", ("P-1",))
    write_files(tmp_path / "files" / "Q-1", "Q-1", "t1", "t1ce")
    with CaseIndex.create(tmp_path / "plain", tiny, keep_ids=True) as plain:
        found = ingest(plain, [root, tmp_path / "files"], tiny)
        assert counts(found) == (3, 0, 0)
        assert filed(plain) == {"P-1": ["flair", "t1", "t1ce"], "Q-1": ["t1", "t1ce"]}
    (root / "cbir.json").unlink()
    ingest(index, [root], composer)
    assert COMPOSITE not in index.catalog.contents().scan_sequence


def test_files_of_a_folder_are_filed_together(
    index: CaseIndex, composer: TinyComposer, tmp_path: Path
) -> None:
    root = tmp_path / "mri"
    both = [write_files(root, name, "t1", "t1ce", seed=10 * i) for i, name in enumerate(("P-1", "P-2"))]
    write_files(root, "P-3", "t1", seed=30)
    told: list[tuple[int, int, int]] = []
    first = ingest(index, [root], composer, progress=lambda *done: told.append(done))
    assert counts(first) == (5, 0, 0)
    assert told[-1] == (7, 7, first.embedded)
    assert filed(index) == {
        "P-1": [COMPOSITE, "t1", "t1ce"],
        "P-2": [COMPOSITE, "t1", "t1ce"],
        "P-3": ["t1"],
    }
    for name, files in zip(("P-1", "P-2"), both, strict=True):
        for ours, theirs in zip(stored(index, name, COMPOSITE), expected(composer, *files), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    second = ingest(index, [root], composer)
    assert (counts(second), second.embedded, second.notes) == ((0, 5, 0), 0, [])
    assert index.verify() == []

    # one more sequence is one more channel
    (flair,) = write_files(root, "P-1", "flair", seed=7)
    third = ingest(index, [root], composer)
    assert counts(third) == (1, 5, 0)
    assert filed(index)["P-1"] == [COMPOSITE, "flair", "t1", "t1ce"]
    ours, _ = stored(index, "P-1", COMPOSITE)
    np.testing.assert_allclose(ours, expected(composer, *both[0], flair)[0], atol=1e-6)
    np.testing.assert_allclose(stored(index, "P-2", COMPOSITE)[0], expected(composer, *both[1])[0], atol=1e-6)
    # a file that changes changes both
    write_nifti(flair, phantom(99, 4))
    assert counts(ingest(index, [root], composer)) == (1, 5, 0)
    assert np.abs(stored(index, "P-1", COMPOSITE)[0][: len(ours)] - ours).max() > 1e-3
    assert index.verify() == []


def test_the_one_root_may_be_a_file(index: CaseIndex, composer: TinyComposer, tmp_path: Path) -> None:
    t1, _ = write_files(tmp_path / "mri", "P-1", "t1", "t2")
    assert counts(ingest(index, [t1], composer)) == (1, 0, 0)
    assert filed(index) == {"P-1": ["t1"]}
    assert counts(ingest(index, [tmp_path / "mri"], composer)) == (1, 1, 0)
    assert filed(index) == {"P-1": [COMPOSITE, "t1", "t2"]}
    again = ingest(index, [t1], composer)
    assert (counts(again), again.notes) == ((0, 1, 0), [])
    assert filed(index) == {"P-1": [COMPOSITE, "t1", "t2"]}


def test_a_broken_file_takes_only_the_composite_along(
    index: CaseIndex, composer: TinyComposer, tmp_path: Path
) -> None:
    root = tmp_path / "mri"
    bad = write_files(root / "P-1", "P-1", "t1", "t1ce")[1]
    write_files(root / "P-2", "P-2", "t1", "t1ce", seed=10)
    bad.write_text("this is no image")
    for expected_counts in ((3, 0, 1), (0, 3, 1)):
        found = ingest(index, [root], composer)
        assert counts(found) == expected_counts
        assert [failure["source"] for failure in found.failed] == [str(bad)]
        assert filed(index) == {"P-1": ["t1"], "P-2": [COMPOSITE, "t1", "t1ce"]}
        assert index.catalog.failed() == found.failed
        assert index.verify() == []
    write_nifti(bad, phantom(3))
    assert counts(ingest(index, [root], composer)) == (1, 3, 0)
    assert filed(index)["P-1"] == [COMPOSITE, "t1", "t1ce"]
    assert index.catalog.failed() == []


def test_files_on_other_grids_are_not_laid_over_each_other(
    index: CaseIndex, composer: TinyComposer, tmp_path: Path
) -> None:
    root = tmp_path / "mri"
    write_files(root, "P-1", "t1")
    write_nifti(root / "P-1_t1ce.nii.gz", phantom(1), (1, 1, 2))
    write_nifti(root / "P-1_flair.nii.gz", phantom(2, shape=(24, 28, 9)))
    assert counts(ingest(index, [root], composer)) == (3, 0, 0)
    assert filed(index) == {"P-1": ["flair", "t1", "t1ce"]}
    again = ingest(index, [root], composer)
    assert (counts(again), again.embedded, again.notes) == ((0, 3, 0), 0, [])
    assert index.verify() == []


def test_a_composite_goes_with_its_files(index: CaseIndex, composer: TinyComposer, tmp_path: Path) -> None:
    root = tmp_path / "mri"
    write_files(root / "P-1", "P-1", "t1", "t1ce")
    _, flair = write_files(root / "P-2", "P-2", "t1", "flair", seed=10)
    ingest(index, [root], composer)
    shutil.rmtree(root / "P-1")
    flair.unlink()
    assert ingest(index, [root], composer).notes != []
    ingest(index, [root], composer, prune=True)
    assert filed(index) == {"P-2": ["t1"]}
    assert index.verify() == []


def test_outlined_composites_have_regions(index: CaseIndex, composer: TinyComposer, tmp_path: Path) -> None:
    files = write_files(tmp_path / "mri", "P-1", "t1", "flair")
    mask = np.zeros(phantom(0).shape, np.float32)
    mask[8:14, 8:12, 4:7] = 1
    write_nifti(tmp_path / "mri" / "P-1_seg.nii.gz", mask)
    ingest(index, [tmp_path / "mri"], composer)
    ours, theirs = stored(index, "P-1", COMPOSITE, view=1), expected(composer, *files, view=1)
    assert len(ours[0]) == 3
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


# -- ranking -------------------------------------------------------------------------------------------


def test_what_is_seen_together_weighs_more() -> None:
    ranking = Ranking(composite_weight=4.0)
    scores = np.array([[0.2, 0.2, np.nan, np.nan], [0.4, np.nan, 0.4, np.nan], [0.9, 0.9, np.nan, np.nan]])
    found = ranking.fused(scores, ["t1", "t2", COMPOSITE])
    assert found.dtype == np.float32
    # (0.2 + 0.4 + 4 · 0.9) / 6, (0.2 + 4 · 0.9) / 5
    np.testing.assert_allclose(found, [0.7, 0.76, 0.4, np.nan], rtol=1e-6)
    deep = np.stack([scores, scores], 1)
    np.testing.assert_allclose(ranking.fused(deep, ["t1", "t2", COMPOSITE]), [found, found], rtol=1e-6)
    plain = ranking.fused(scores, ["t1", "t2", None])
    np.testing.assert_allclose(plain, [0.5, 0.55, 0.4, np.nan], rtol=1e-6)
    assert Ranking().composite_weight > 1


def test_cases_are_ranked_by_all_and_shown_by_single_sequences() -> None:
    ranking = Ranking(composite_weight=4.0)

    def matches(scores: dict[int, float]) -> Matches:
        return Matches(np.array([*scores]), np.array([*scores.values()], np.float32))

    cases, scores, best = ranking.fuse(
        [matches({1: 0.5, 4: -0.9}), matches({1: 0.6, 2: 0.95, 4: -0.8}), matches({1: 0.9, 3: 0.99, 4: 0.4})],
        ["t1", "t2", COMPOSITE],
    )
    # case 1: (0.5 + 0.6 + 3.6) / 6; case 4: (1.6 - 1.7) / 6
    assert cases.tolist() == [3, 2, 1, 4]
    np.testing.assert_allclose(scores, [0.99, 0.95, 4.7 / 6, -0.1 / 6], atol=1e-6)
    # of case 3 there is the composite alone; else the best single sequence, however little it is like
    assert best.tolist() == [2, 1, 1, 1]
    nothing = ranking.fuse([], [])
    assert [len(part) for part in nothing] == [0, 0, 0]


# -- questions -----------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path, composer: TinyComposer) -> Iterator[Callable[..., Index]]:
    """Index folders and open the index."""
    opened: list[Index] = []

    def make(*roots: Path, encoder: TinyEncoder = composer) -> Index:
        case_index = CaseIndex.create(tmp_path / f"index-{len(opened)}", encoder, keep_ids=True)
        ingest(case_index, list(roots), encoder)
        opened.append(Index(case_index, encoder))
        return opened[-1]

    yield make
    for index in opened:
        index.close()


Stack = tuple[NDArray[Any], NDArray[Any]]


def cosine(query: Stack, case: Stack) -> float:
    """Of weighted means; for one slice, its best match."""
    if len(query[0]) == 1:
        return float((query[0] @ case[0].T).max())
    one, other = (weights @ vectors for vectors, weights in (query, case))
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def by_hand(
    index: Index, asked: dict[str, Stack], weights: dict[str, float], view: int = 0, but: str = ""
) -> dict[str, float]:
    """Weighted mean over the sequences of what asks; one that a case lacks counts as in the mean of cases."""
    found: dict[str, dict[str, float]] = {}
    for case in index.contents.case_ids:
        shared = {s: stored(index.case_index, case, s, view) for s in asked}
        of_case = {s: cosine(asked[s], stack) for s, stack in shared.items() if len(stack[0])}
        if of_case and case != but:
            found[case] = of_case
    typical = {s: [of_case[s] for of_case in found.values() if s in of_case] for s in asked}
    weight = {s: weights.get(s, 1.0) for s in asked if typical[s]}
    return {
        case: sum(w * of_case.get(s, float(np.mean(typical[s]))) for s, w in weight.items())
        / sum(weight.values())
        for case, of_case in found.items()
    }


def asking(composer: TinyComposer, *paths: Path, view: int = 0) -> dict[str, Stack]:
    """What a query of files is, by sequence."""
    found: dict[str, Stack] = {}
    for scan in (scan for path in paths for scan in discovery.read(path)):
        ready = prepared(scan, Preprocessing.of(composer))
        rows = ready.views == view
        found[str(scan.sequence)] = composer.encode(ready.pixels[rows]), ready.weights[rows]
    return found | {COMPOSITE: expected(composer, *paths, view=view)}


WEIGHT = {COMPOSITE: Ranking().composite_weight}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Cases of one file with channels, of several files, and of one sequence alone."""
    write_stacks(tmp_path / "stacks", ("P-1", "P-2"))
    root = tmp_path / "files"
    write_files(root, "Q-1", "t1", "t1ce", seed=40)
    write_files(root, "Q-2", "t1", "t1ce", "t2", seed=50)
    write_files(root, "Q-3", "t1ce", seed=60)
    return tmp_path


@pytest.mark.parametrize("approximate", [False, True])
def test_scores_are_the_weighted_mean_over_sequences_and_composites(
    make: Callable[..., Index],
    mixed: Path,
    composer: TinyComposer,
    approximate: bool,
) -> None:
    index = make(mixed / "stacks", mixed / "files")
    if approximate:
        index = Index(CaseIndex.open(index.case_index.folder, SearchPolicy(exact_below=0)), composer)
    files = write_files(mixed / "new", "new", "t1", "t1ce", seed=100)
    asked = asking(composer, *files)
    wanted = by_hand(index, asked, WEIGHT)
    assert wanted.keys() == {"P-1", "P-2", "Q-1", "Q-2", "Q-3"}
    answer = index.query(mixed / "new", k=9, by="similarity")
    assert [hit.case_id for hit in answer.hits] == sorted(wanted, key=lambda case: -wanted[case])
    for hit in answer.hits:
        assert hit.score == pytest.approx(wanted[hit.case_id], abs=1e-5)
        assert hit.sequence == hit.query_sequence in ("t1", "t1ce")
    assert answer.notes == []
    # they matter
    assert wanted["P-1"] != pytest.approx(by_hand(index, asked, {COMPOSITE: 0.0})["P-1"], abs=1e-3)
    # the query is its two sequences
    assert sorted((answer.query.sequence or "").split("+")) == ["t1", "t1ce"]
    assert answer.query.slices == len(asked["t1"][0]) + len(asked["t1ce"][0])


def test_one_file_of_several_channels_asks_with_its_composite(
    make: Callable[..., Index], mixed: Path, composer: TinyComposer
) -> None:
    index = make(mixed / "stacks", mixed / "files")
    root = write_stacks(mixed / "new", ("N-1",), ("t1", "t1ce", "t2"), seed=200)
    wanted = by_hand(index, asking(composer, root / "N-1"), WEIGHT)
    answer = index.query(root / "N-1" / "N-1.nii.gz", k=9)
    for hit in answer.hits:
        assert hit.score == pytest.approx(wanted[hit.case_id], abs=1e-5)
    assert answer.query.sequence == "t1+t1ce+t2"
    assert len(answer.hits) == 5


def test_a_filed_case_asks_with_its_composite(
    make: Callable[..., Index], mixed: Path, composer: TinyComposer
) -> None:
    index = make(mixed / "stacks", mixed / "files")
    asked = {s: stored(index.case_index, "Q-1", s) for s in ("t1", "t1ce", COMPOSITE)}
    wanted = by_hand(index, asked, WEIGHT, but="Q-1")
    answer = index.like("Q-1", k=9)
    assert {hit.case_id for hit in answer.hits} == {"P-1", "P-2", "Q-2", "Q-3"}
    for hit in answer.hits:
        assert hit.score == pytest.approx(wanted[hit.case_id], abs=1e-5)
    assert answer.query.sequence in ("t1+t1ce", "t1ce+t1")
    assert answer.query.slices == len(asked["t1"][0]) + len(asked["t1ce"][0])
    alone = index.like("Q-3", k=9)
    one = {"t1ce": stored(index.case_index, "Q-3", "t1ce")}
    for hit in alone.hits:
        assert hit.score == pytest.approx(by_hand(index, one, {})[hit.case_id], abs=1e-5)


def test_a_filed_file_finds_itself(make: Callable[..., Index], mixed: Path) -> None:
    index = make(mixed / "stacks", mixed / "files")
    (first, *_) = (answer := index.query(mixed / "stacks" / "P-2", k=3)).hits
    assert first.case_id == "P-2"
    assert first.score == pytest.approx(1, abs=1e-5)
    assert "P-2" in answer.notes[0]


def test_a_query_without_a_sequence_is_not_compared_with_composites(
    make: Callable[..., Index], mixed: Path, composer: TinyComposer
) -> None:
    index = make(mixed / "stacks", mixed / "files")
    file = write_nifti(mixed / "new.nii.gz", phantom(300, 3))
    (scan,) = discovery.read(file)
    assert scan.sequence is None
    ready = prepared(scan, Preprocessing.of(composer))
    asked = composer.encode(ready.pixels), ready.weights
    answer = index.query(file, k=9)
    assert len(answer.hits) == 5
    assert answer.query.sequence is None
    assert answer.query.slices == len(ready.pixels)
    for hit in answer.hits:
        scans = [stored(index.case_index, hit.case_id, s) for s in CHANNELS]
        best = max(cosine(asked, stack) for stack in scans if len(stack[0]))
        assert hit.score == pytest.approx(best, abs=1e-5)
        assert hit.sequence in CHANNELS


@pytest.mark.slow
def test_an_index_without_composites_works_as_before(
    make: Callable[..., Index], tmp_path: Path, composer: TinyComposer, tiny: TinyEncoder
) -> None:
    for i in range(4):  # sequences on grids of their own
        write_files(tmp_path / "mri" / f"P-{i}", f"P-{i}", "t1", seed=10 * i)
        write_nifti(tmp_path / f"mri/P-{i}/P-{i}_flair.nii.gz", phantom(10 * i + 5, 3), (1, 1, 4))
    files = write_files(tmp_path / "new", "new", "t1", "flair", seed=100)
    index, plain = make(tmp_path / "mri"), make(tmp_path / "mri", encoder=tiny)
    assert COMPOSITE not in index.contents.scan_sequence
    ours, theirs = (each.query(tmp_path / "new", k=4) for each in (index, plain))
    assert ours == theirs
    asked = {s: asking(composer, *files)[s] for s in ("t1", "flair")}
    for hit in ours.hits:
        assert hit.score == pytest.approx(by_hand(index, asked, {})[hit.case_id], abs=1e-5)
    # nor does a query of one sequence know of the composites that there are
    write_files(tmp_path / "more", "Q-1", "t1", "flair", seed=77)
    both = make(tmp_path / "mri", tmp_path / "more")
    found = both.query(files[0], k=9).hits
    alone = {"t1": asking(composer, *files)["t1"]}
    assert {hit.case_id for hit in found} == {"P-0", "P-1", "P-2", "P-3", "Q-1"}
    for hit in found:
        assert hit.score == pytest.approx(by_hand(both, alone, {})[hit.case_id], abs=1e-5)


@pytest.mark.parametrize("approximate", [False, True])
def test_where_nobody_who_may_answer_has_a_composite(
    make: Callable[..., Index],
    mixed: Path,
    composer: TinyComposer,
    approximate: bool,
) -> None:
    index = make(mixed / "stacks", mixed / "files")
    if approximate:
        index = Index(CaseIndex.open(index.case_index.folder, SearchPolicy(exact_below=0)), composer)
    files = write_files(mixed / "new", "new", "t1", "t1ce", seed=100)
    answer = index.query(mixed / "new", k=9, exclude_patient=["P-1", "P-2", "Q-1", "Q-2"])
    (hit,) = answer.hits
    alone = {"t1ce": asking(composer, *files)["t1ce"]}
    assert hit.case_id == "Q-3"
    # its T1 is compared with all sequences for want of another
    assert answer.notes == ["no other case has t1: compared with all sequences"]
    t1 = cosine(asking(composer, *files)["t1"], stored(index.case_index, "Q-3", "t1ce"))
    assert hit.score == pytest.approx((by_hand(index, alone, {})["Q-3"] + t1) / 2, abs=1e-5)


def test_a_region_asks_with_the_composites_regions(
    make: Callable[..., Index], tmp_path: Path, composer: TinyComposer
) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        folder = tmp_path / "mri" / f"P-{i}" if i else tmp_path / "new"
        write_files(folder, f"P-{i}", "t1", "flair", seed=10 * i)
        mask = np.zeros(phantom(0).shape, np.float32)
        x, y = rng.integers(6, 12, 2)
        mask[x : x + 6, y : y + 6, 4:6] = 1
        write_nifti(folder / f"P-{i}_seg.nii.gz", mask)
    asked = asking(composer, tmp_path / "new", view=1)
    index = make(tmp_path / "mri")
    answer = index.query(tmp_path / "new", mask=tmp_path / "new" / "P-0_seg.nii.gz")
    wanted = by_hand(index, asked, WEIGHT, view=1)
    assert answer.query.slices == 4
    assert len(answer.hits) == 3
    for hit in answer.hits:
        assert hit.score == pytest.approx(wanted[hit.case_id], abs=1e-4)


def test_a_composite_that_is_all_they_share_is_shown_by_its_leading_sequence(
    make: Callable[..., Index], tmp_path: Path, composer: TinyComposer
) -> None:
    root = tmp_path / "mri"
    write_files(root / "P-1", "P-1", "t1", "t1ce")
    other = write_files(root / "P-2", "P-2", "t2", "flair", seed=10)
    index = make(root)
    files = write_files(tmp_path / "new", "new", "t1", "t1ce", seed=100)
    answer = index.query(tmp_path / "new", k=2)
    hits = {hit.case_id: hit for hit in answer.hits}
    hit = hits["P-2"]
    assert (hit.sequence, hit.query_sequence) == (COMPOSITE, COMPOSITE)
    asked = asking(composer, *files)
    assert hit.score == pytest.approx(by_hand(index, asked, WEIGHT)["P-2"], abs=1e-5)
    near = cosine(asked[COMPOSITE], expected(composer, *other))
    alone = {s: cosine(asked[s], stored(index.case_index, "P-1", s)) for s in ("t1", "t1ce")}
    # P-1 alone has the other two
    assert hit.score == pytest.approx((8 * near + alone["t1"] + alone["t1ce"]) / 10, abs=1e-5)
    # its source can be read, and the report shows pictures of all
    assert index.scan(hit.scan).sequence == "flair"
    assert index.scan(hit.query_scan).sequence == "t1ce"
    pictures, _, _ = report._pictures(answer, index.scans, None, lambda ref: [])
    assert len(pictures) == 4
    for key, picture in pictures.items():
        assert picture.jpeg, (key, picture.reason)


def test_the_leading_sequence_of_a_composite_is_shown() -> None:
    scans = [scan_of(name) for name in ("t1", "t1ce", "t2", "flair")]
    for last, name in ((4, "flair"), (3, "t2"), (2, "t1ce"), (1, "t1")):
        assert Group([None, *scans[:last]]).leader.sequence == name


@pytest.mark.parametrize("channels", [("t1", "t1ce"), ("adc", "t2", "t1", "t1ce")])
def test_a_composite_of_channels_means_the_channel_that_leads_it(
    make: Callable[..., Index], tmp_path: Path, channels: tuple[str, ...]
) -> None:
    index = make(write_stacks(tmp_path / "stacks", ("P-1",), channels))
    contents = index.contents
    (place,) = [n for n, name in enumerate(contents.scan_sequence) if name == COMPOSITE]
    scan = index.scan(contents.scan_ref(place))
    assert scan.sequence == ("t2" if "t2" in channels else "t1ce")
    single = ScanRef(contents.scan_source[place], channels.index(scan.sequence))
    np.testing.assert_array_equal(scan.voxels, index.scan(single).voxels)


# -- what an odd channel, or an odd call, costs ---------------------------------------------------------


def test_single_files_are_learnt_from_too(tmp_path: Path) -> None:
    folder = tmp_path / "mri"
    folder.mkdir()
    for patient in ("P-1", "P-2"):
        for name in ("t1", "t1ce"):
            nib.save(nib.Nifti1Image(drawn(patient + name), np.eye(4)), folder / f"{patient}_{name}.nii.gz")
    table = folder / "participants.tsv"
    table.write_text("participant_id\tgrade\nP-1\t2\nP-2\t4\n")
    cohort = Cohort(folder, load_tables(table), ("grade",))
    found = pack.load_composites([cohort], 32, tmp_path / "cache")
    assert found is not None
    assert set(found.patients) == {"P-1", "P-2"}
    assert found.pixels.shape[1:] == (4, 32, 32)
    assert [channel.any() for channel in found.pixels.swapaxes(0, 1)] == [True, True, False, False]


def drawn(name: str) -> np.ndarray:
    """A volume like no other."""
    values = np.zeros((24, 24, 6), np.float32)
    values[4:20, 4:20] = np.random.default_rng(list(name.encode())).uniform(50, 200, (16, 16, 6))
    return values


def test_naming_some_files_of_a_folder_leaves_its_composite_as_it_is(
    index: CaseIndex, composer: TinyComposer, tmp_path: Path
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    files = [folder / f"P-9_{name}.nii.gz" for name in ("flair", "t1", "t1ce")]
    for file in files:
        nib.save(nib.Nifti1Image(drawn(file.name), np.eye(4)), file)
    ingest(index, [folder], composer)
    before = index.catalog.fingerprints()
    report = ingest(index, files[:2], composer)
    assert (report.indexed, report.unchanged) == (0, 2)
    assert index.catalog.fingerprints() == before
    files[0].unlink()
    files[1].unlink()
    report = ingest(index, [folder], composer)
    assert [note for note in report.notes if "gone" in note and "2 that" in note and COMPOSITE not in note]
    assert ingest(index, [folder], composer, prune=True).pruned == 2
    assert len(index.catalog.fingerprints()) == 1


@pytest.mark.usefixtures("in_process")
def test_a_file_is_filed_though_its_composite_cannot_be(
    index: CaseIndex, composer: TinyComposer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(group: object, *how: object) -> None:
        raise ReadError("x", "it shows almost nothing")

    folder = tmp_path / "speck"
    folder.mkdir()
    (folder / "cbir.json").write_text('{"channels": ["t1", "t1ce"]}')
    nib.save(nib.Nifti1Image(np.stack([drawn("a"), drawn("b")], 3), np.eye(4)), folder / "P-8.nii.gz")
    monkeypatch.setattr("indexer.reading.prepared_composite", refuse)
    report = ingest(index, [folder], composer)
    assert (report.indexed, report.failed) == (1, [])
    assert index.catalog.contents().scan_sequence == ["t1", "t1ce"]


# -- a study of series, each on a grid of its own -----------------------------------------------------


def write_study(
    folder: Path, seed: int, patient: str, spacings: dict[str, tuple[float, float, float]]
) -> Path:
    """A DICOM series for each sequence, all of one phantom at its own resolution."""
    volume = gaussian_filter(phantom(seed, 3, (48, 56, 40)), 1.0)
    study, frame = generate_uid(), generate_uid()
    for sequence, (x, y, z) in spacings.items():
        shown = volume if sequence != "t2" else np.where(volume > 10, 260 - volume, 0)
        coarse = zoom(shown, (2 / x, 2 / y, 2 / z), order=1, grid_mode=True, mode="nearest")
        header = dict(DESCRIPTIONS[sequence], PatientID=patient, StudyInstanceUID=study)
        header |= {"FrameOfReferenceUID": frame, "PixelSpacing": [y, x], "SliceThickness": z}
        write_dicom(folder / sequence, coarse.astype(np.float32), **header)
        for number, file in enumerate(sorted((folder / sequence).iterdir())):
            ds = pydicom.dcmread(file)
            columns, rows = coarse.shape[:2]
            # the first pixel of a plane is its left, front one (in LPS: +x, -y)
            ds.ImagePositionPatient = [
                -(columns / 2 - 0.5) * x,
                -(rows / 2 - 0.5) * y,
                (number - coarse.shape[2] / 2 + 0.5) * z,
            ]
            ds.save_as(file)
    return folder


DESCRIPTIONS: dict[str, dict[str, object]] = {
    "t1": {"SeriesDescription": "AX T1", "RepetitionTime": 550, "EchoTime": 12},
    "t1ce": {
        "SeriesDescription": "T1 MPRAGE +GD",
        "RepetitionTime": 2000,
        "EchoTime": 3,
        "ContrastBolusAgent": "GD",
    },
    "t2": {"SeriesDescription": "AX T2 TSE", "RepetitionTime": 4500, "EchoTime": 95},
    "flair": {
        "SeriesDescription": "FLAIR",
        "RepetitionTime": 9000,
        "EchoTime": 120,
        "InversionTime": 2500,
    },
}
APART = {"t1": (2.0, 2.0, 5.0), "t1ce": (2.0, 2.0, 2.0), "t2": (1.5, 1.5, 4.0), "flair": (2.0, 2.0, 5.0)}
TOGETHER = dict.fromkeys(APART, (2.0, 2.0, 4.0))


def test_a_study_of_series_on_grids_of_their_own_has_a_composite(
    index: CaseIndex, composer: TinyComposer, tmp_path: Path
) -> None:
    for seed in range(4):
        write_study(tmp_path / "mri" / f"s{seed}", seed, f"P-{seed}", TOGETHER)
    report = ingest(index, [tmp_path / "mri"], composer)
    assert (report.failed, report.notes) == ([], [])
    contents = index.catalog.contents()
    assert contents.scan_sequence.count(COMPOSITE) == 4
    study = write_study(tmp_path / "new", 2, "Q", APART)
    (group,) = groups([scan for folder in sorted(study.iterdir()) for scan in discovery.read(folder)], 24)
    assert group.left_out == {}
    assert all(scan is not None for scan in group.scans)
    with Index(index, composer) as opened:
        answer = opened.query(study)
        assert answer.hits[0].patient_id == "P-2"
        assert not [note for note in answer.notes if "together" in note]
    # and one of them is filed of it, beside its series
    ingest(index, [study], composer)
    assert index.catalog.contents().scan_sequence.count(COMPOSITE) == 5


def test_what_could_not_be_brought_along_is_said(
    index: CaseIndex, composer: TinyComposer, tmp_path: Path
) -> None:
    write_study(tmp_path / "mri", 1, "P", APART)
    for file in (tmp_path / "mri" / "t2").iterdir():
        ds = pydicom.dcmread(file)
        ds.ImagePositionPatient = [p - 400 for p in ds.ImagePositionPatient]  # the spine, say
        ds.save_as(file)
    report = ingest(index, [tmp_path / "mri"], composer)
    (note,) = report.notes
    assert "t2 is not seen together with the other sequences: shows 0% of what the flair shows" in note
    assert "P" not in Path(note.split(":")[0]).name.replace("composite", ""), "no identifier in a name"
    with Index(index, composer) as opened:
        assert any("t2 is not seen together" in note for note in opened.query(tmp_path / "mri").notes)


def test_a_broken_series_costs_the_composite_no_more_than_its_channel(
    index: CaseIndex, composer: TinyComposer, tmp_path: Path
) -> None:
    write_study(tmp_path / "mri", 1, "P", TOGETHER)
    for file in sorted((tmp_path / "mri" / "t2").iterdir())[3:9]:
        file.unlink()  # a gap
    report = ingest(index, [tmp_path / "mri"], composer)
    assert [failure["source"] for failure in report.failed] == [str(tmp_path / "mri" / "t2")]
    assert sorted(map(str, index.catalog.contents().scan_sequence)) == [COMPOSITE, "flair", "t1", "t1ce"]


def test_series_that_come_one_by_one_are_seen_together_once_there_are_two(
    index: CaseIndex, composer: TinyComposer, tmp_path: Path
) -> None:
    write_study(tmp_path / "mri", 3, "P", TOGETHER)
    series = {source.sequence: source for source in discovery.discover(tmp_path / "mri").sources}

    def composites_after(*sequences: str) -> NDArray[Any]:
        ingest_sources(index, [series[sequence] for sequence in sequences], composer)
        return stored(index, index.case("P", series["t1"].study_id), COMPOSITE)[0]

    assert len(composites_after("t1")) == 0
    two = composites_after("flair")
    late = composites_after("t1ce", "t2")
    assert index.catalog.contents().scan_sequence.count(COMPOSITE) == 1
    assert len(two)
    assert not np.array_equal(two, late)
    scans = [scan for source in series.values() for scan in discovery.read(source)]
    (group,) = groups(scans, composer.composite_size)
    vectors, _ = composer.compose(prepared_composite(group.scans, composer.composite_size).pixels)
    np.testing.assert_allclose(late, vectors, atol=1e-6)
    again = ingest_sources(index, [series["t2"]], composer)
    assert (again.unchanged, again.embedded) == (1, 0)
    assert index.verify() == []


def test_a_composite_of_what_is_gone_goes_too(
    index: CaseIndex, composer: TinyComposer, tmp_path: Path
) -> None:
    write_study(tmp_path / "mri", 3, "P", TOGETHER)
    series = {source.sequence: source for source in discovery.discover(tmp_path / "mri").sources}
    ingest_sources(index, [series["t1"], series["flair"]], composer)
    with index.writing("test"):
        index.catalog.remove_sources([series["flair"].name])
    assert COMPOSITE in index.catalog.contents().scan_sequence
    ingest_sources(index, [series["t1"]], composer)
    assert index.catalog.contents().scan_sequence == ["t1"]


@pytest.mark.parametrize("keep_ids", [False, True])
def test_when_a_series_is_taken_out_the_rest_is_seen_together(
    tmp_path: Path, composer: TinyComposer, keep_ids: bool
) -> None:
    write_study(tmp_path / "mri", 3, "P", TOGETHER)
    sources = discovery.discover(tmp_path / "mri").sources
    series = {source.sequence: source for source in sources}
    with CaseIndex.create(tmp_path / "index", composer, keep_ids=keep_ids) as index:
        ingest_sources(index, sources, composer)
        case = index.case("P", sources[0].study_id)
        assert remove_sources(index, [series["t2"].name], composer) == 1
        left = [source for source in sources if source.sequence != "t2"]
        (group,) = groups([scan for source in left for scan in discovery.read(source)], 24)
        vectors, _ = composer.compose(prepared_composite(group.scans, 24).pixels)
        np.testing.assert_allclose(stored(index, case, COMPOSITE)[0], vectors, atol=1e-6)
        assert len(index.catalog.contents().case_ids) == 1
        assert ingest_sources(index, left, composer).embedded == 0
        remove_sources(index, [series["t1"].name, series["flair"].name], composer)
        assert index.catalog.contents().scan_sequence == ["t1ce"]
        remove_sources(index, [series["t1ce"].name], composer)
        assert index.catalog.contents().case_ids == []
        assert index.verify() == []
