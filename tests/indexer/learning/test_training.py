"""The training set, its views, the losses, the loop and the file that comes out of it."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from benchmarks import cohorts, figshare
from indexer import discovery, readers
from indexer.encoder import FORMAT, Analyser, Encoder, load_encoder
from indexer.encoder.weights import load_networks
from indexer.errors import CbirError, EncoderError, LabelsError, ReadError
from indexer.labels import load_tables
from indexer.learning import augmentation, fitting, looks, network, pack, tasks, training
from indexer.learning.cohort import Cohort, validation
from indexer.learning.cohort import cohorts as learning_cohorts
from indexer.learning.network import INPUT, RetrievalNetwork
from indexer.learning.recipe import Recipe
from indexer.learning.samples import EMPTY, UNLABELLED, Samples
from indexer.learning.targets import ClassVectors, cosine_loss
from indexer.learning.tasks import SliceTask
from indexer.preprocess import Preprocessing
from indexer.scan import Scan, stacked
from retrieval.cli import main
from tests.support.images import phantom, write_nifti

pytestmark = pytest.mark.slow

QUICK = Recipe(epochs=3, batch=4, draws=8, seed=5)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small steps gain nothing from threads, and wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(
    patients: list[str], target: list[int], lesion: list[bool] | None = None, *, outlined: bool = True
) -> Samples:
    """Slices whose class is the brightness of a square, at a place of their own."""
    rng = np.random.default_rng(0)
    n = len(target)
    lesion = [True] * n if lesion is None else lesion
    pixels = rng.integers(40, 90, (n, INPUT, INPUT), np.uint8)
    outlines = np.zeros((n, INPUT // 4, INPUT // 4), np.uint8)
    boxes = np.full((n, 4), np.nan, np.float32)
    for i in np.flatnonzero(lesion):
        y, x = rng.integers(40, 200, 2)
        pixels[i, y : y + 80, x : x + 80] = 130 + 100 * (target[i] > 0)
        outlines[i, y // 4 : y // 4 + 20, x // 4 : x // 4 + 20] = 255
        boxes[i] = np.array([x, y, x + 80, y + 80]) / INPUT
    if not outlined:
        outlines[:], boxes[:] = 0, np.nan
    return Samples(
        pixels=pixels,
        outlines=outlines,
        rows=np.arange(n),
        boxes=boxes,
        outlined=np.full(n, outlined),
        patients=np.array(patients),
        targets={"kind": np.array(target, np.int64)},
        classes={"kind": ("dark", "bright")},
        labels=tuple({"kind": "bright" if t > 0 else "dark"} if t >= 0 else {} for t in target),
        cohort=np.zeros(n, np.int64),
        importance=np.ones(n),
    )


@pytest.fixture(scope="module")
def few() -> Samples:
    return made([f"Patient-{i}" for i in range(8)], [0, 1] * 4)


# -- the training set ----------------------------------------------------------------------------------


def write_cohort(root: Path, grades: dict[str, str], outlines: bool = True) -> Path:
    for i, name in enumerate(grades):
        volume = phantom(i, 3)
        write_nifti(root / name / f"{name}_t1ce.nii.gz", volume)
        if outlines:
            mask = (volume > 190).astype(np.uint8)
            nib.save(nib.Nifti1Image(mask, np.diag([1.0, 1, 3, 1])), root / name / f"{name}_seg.nii.gz")
    rows = [f"{name}\t{grade}\t{i % 2}" for i, (name, grade) in enumerate(grades.items())]
    (root / "participants.tsv").write_text("\n".join(["participant_id\twho_grade\tfold", *rows]) + "\n")
    return root


def cohort_of(root: Path, *columns: str) -> Cohort:
    return Cohort(root, load_tables(root / "participants.tsv"), columns or ("who_grade",))


def test_an_outline_goes_through_the_same_frame_as_its_slice() -> None:
    plane = np.zeros((100, 200))
    plane[10:90, 20:180] = np.random.default_rng(0).uniform(50, 60, (80, 160))  # foreground box: 80 × 160
    region = np.zeros_like(plane, bool)
    region[30:50, 60:100] = True  # in the box: rows 20…40, columns 40…80
    plane[region] = 100
    scan = Scan(stacked(plane[None]), Path("a.png"), region=stacked(region[None]))
    images, outlines, boxes, outlined = pack.slices_of(scan, Preprocessing(320))
    assert outlined
    # 160 columns fill 320, so all doubles; 160 rows are centred, with 80 above
    np.testing.assert_allclose(boxes[0] * 320, [80, 120, 160, 160])
    assert outlines.shape == (1, 80, 80)
    assert (outlines[0, 31:39, 21:39] == 255).all()
    assert outlines[0].sum() / 255 == pytest.approx(10 * 20, rel=0.05)
    bright = images[0] > 200
    assert bright[122:158, 82:158].all()
    assert bright.sum() < 1.05 * 40 * 80


def test_a_scan_without_outlines_says_so(tmp_path: Path) -> None:
    scan = discovery.read(write_nifti(tmp_path / "a.nii.gz", phantom(0)))[0]
    images, outlines, boxes, outlined = pack.slices_of(scan, Preprocessing(64))
    assert not outlined
    assert not outlines.any()
    assert np.isnan(boxes).all()
    assert len(images) == len(outlines) == len(boxes)


def test_cohorts_are_packed_once(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "mri", {"P-1": "2", "P-2": "3", "P-3": "n/a"})
    calls: list[Path] = []

    def read(source: readers.Source) -> list[Scan]:
        calls.append(source.path)
        return discovery.read(source)

    cohort = replace(cohort_of(root), read=read)
    first = pack.load([cohort], 64, tmp_path / "cache")
    assert len(calls) == 3
    again = pack.load([cohort], 64, tmp_path / "cache")
    assert len(calls) == 3
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert set(first.patients) == {"P-1", "P-2", "P-3"}
    assert first.classes == {"who_grade": ("2", "3")}
    assert {p: set(first.targets["who_grade"][first.patients == p]) for p in ("P-1", "P-2", "P-3")} == {
        "P-1": {0},
        "P-2": {1},
        "P-3": {-1},
    }
    assert first.outlined.all()
    assert 0 < np.isfinite(first.boxes[:, 0]).sum() < len(first)
    # ids of patients are nowhere in the cache
    assert b"P-1" not in b"".join(p.read_bytes() for p in (tmp_path / "cache").rglob("*") if p.is_file())

    write_nifti(root / "P-1" / "P-1_t1ce.nii.gz", phantom(77, 4))
    pack.load([cohort], 64, tmp_path / "cache")
    assert len(calls) == 6
    pack.load([replace(cohort, version="2")], 64, tmp_path / "cache")
    assert len(calls) == 9


def test_a_file_that_cannot_be_read_is_told_each_time(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "mri", {"P-1": "2", "P-2": "3"})
    (root / "P-2" / "P-2_flair.nii.gz").write_bytes(b"torn")
    for _ in range(2):
        found = pack.load([cohort_of(root)], 64, tmp_path / "cache")
        assert [Path(source).name for source, _ in found.failed] == ["P-2_flair.nii.gz"]


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "mri", {"P-1": "2"})
    for file in (root / "P-1").iterdir():
        file.write_bytes(b"torn")
    with pytest.raises(ReadError):
        pack.load([cohort_of(root)], 64, tmp_path / "cache")


def test_cohorts_of_two_tables_have_heads_of_their_own(tmp_path: Path) -> None:
    one = write_cohort(tmp_path / "one", {"P-1": "2", "P-2": "3"})
    two = write_cohort(tmp_path / "two", {"P-3": "I", "P-4": "II"})
    found = pack.load([cohort_of(one), cohort_of(two)], 64, tmp_path / "cache")
    assert found.classes == {"one/who_grade": ("2", "3"), "two/who_grade": ("1", "2")}  # as grades are kept
    mine = np.isin(found.patients, ["P-1", "P-2"])
    assert (found.targets["one/who_grade"][~mine] == -1).all()
    assert (found.targets["two/who_grade"][mine] == -1).all()
    assert (found.targets["one/who_grade"][mine] >= 0).all()


def test_folders_of_one_table_share_its_head(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "mri", {"P-1": "2", "P-2": "3"})
    table = load_tables(root / "participants.tsv")
    pair = learning_cohorts([root / "P-1", root / "P-2"], [table, table], ["who_grade"])
    found = pack.load(pair, 64, tmp_path / "cache")
    assert found.classes == {"who_grade": ("2", "3")}
    assert set(found.targets["who_grade"]) == {0, 1}


def test_columns_that_cannot_be_learnt_are_refused(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "mri", {"P-1": "2", "P-2": "2"})
    table = load_tables(root / "participants.tsv")
    with pytest.raises(LabelsError, match="choose of: who_grade, fold"):
        learning_cohorts([root], [table], ["grade"])
    with pytest.raises(LabelsError, match="no column of any"):
        learning_cohorts([root], [table], ["who_grade", "grade"])
    with pytest.raises(LabelsError, match="fewer than two values"):
        pack.load([cohort_of(root)], 64, tmp_path / "cache")


def test_a_fold_is_left_out_by_patient(few: Samples) -> None:
    rest = few.without("kind", "dark")
    assert set(rest.patients) == {"Patient-1", "Patient-3", "Patient-5", "Patient-7"}
    assert len(rest.labels) == len(rest.boxes) == len(rest.targets["kind"]) == 4
    with pytest.raises(LabelsError, match="no patient has this label; its values are bright, dark"):
        few.without("kind", "grey")
    with pytest.raises(LabelsError, match="every patient"):
        rest.without("kind", "bright")


def test_classes_and_patients_are_balanced() -> None:
    # class 0: patient a with 4 slices, b with 1: √4 : √1; class 1: patient c
    found = made(["a"] * 4 + ["b"] + ["c"] * 3, [0] * 5 + [1] * 3).shares()
    np.testing.assert_allclose(found[:5].sum(), 0.5)
    np.testing.assert_allclose(found[5:], 0.5 / 3)
    np.testing.assert_allclose(found[:4], 0.5 * (2 / 3) / 4)
    np.testing.assert_allclose(found[4], 0.5 * (1 / 3))


def test_slices_free_of_lesions_and_without_labels_have_their_share() -> None:
    found = made(["a", "b", "a", "b", "c"], [0, 1, 0, 1, -1], [True, True, False, False, True]).shares()
    rest = (1 - EMPTY) * (1 - UNLABELLED)
    np.testing.assert_allclose(found[:2], rest / 2)
    np.testing.assert_allclose(found[2:4].sum(), EMPTY * (1 - UNLABELLED))
    np.testing.assert_allclose(found[4], UNLABELLED)
    np.testing.assert_allclose(found.sum(), 1)


def test_slices_of_which_nothing_is_known_are_drawn_by_patient() -> None:
    found = made(["a"] * 4 + ["b"], [-1] * 5, outlined=False).shares()
    np.testing.assert_allclose(found, [1 / 6] * 4 + [1 / 3])  # √4 : √1


def test_without_outlines_unlabelled_slices_teach_nothing() -> None:
    found = made(["a", "b", "c"], [0, 1, -1], outlined=False).shares()
    np.testing.assert_allclose(found, [0.5, 0.5, 0])


def test_validation_patients_do_not_depend_on_the_others() -> None:
    names = [f"P{i}" for i in range(50)]
    held = validation(names, 0.2)
    assert len(held) == 10
    assert held == validation(names[::-1] * 2, 0.2)
    assert held != validation(names, 0.2, seed=1)
    fewer = [n for n in names if n in held or n < "P3"]
    order = [n for n in fewer if n in validation(fewer, 0.2)]
    assert set(order) <= held
    with pytest.raises(CbirError, match="nobody"):
        validation(names, 0.001)


# -- views ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_views_stay_near_what_they_show(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[0.3, 0.4, 0.5, 0.5], [math.nan] * 4]).repeat(20, 1)
    theta = augmentation.region_frames(boxes, generator)
    size = theta[:, :, :2].det().abs().sqrt()
    known = size[::2] / (0.2 * looks.CONTEXT)
    assert (known <= augmentation.REGION + 1e-4).all()
    assert (known >= 1 / augmentation.REGION - 1e-4).all()
    centre = torch.tensor([0.8 - 1, 0.9 - 1])
    most = 2 * augmentation.SHIFT * 0.2 * looks.CONTEXT * augmentation.REGION
    assert ((theta[::2, :, 2] - centre).abs() <= most + 1e-4).all()
    low, high = augmentation.PART
    assert ((size[1::2] >= low - 1e-4) & (size[1::2] <= high + 1e-4)).all()
    # an unknown part lies inside the slice, before it is turned
    assert (theta[1::2, :, 2].abs() <= 1 - size[1::2, None] + 1e-4).all()
    whole = augmentation.whole_frames(40, generator)
    size = whole[:, :, :2].det().abs().sqrt()
    assert ((size <= augmentation.WHOLE + 1e-4) & (size >= 1 / augmentation.WHOLE - 1e-4)).all()
    assert (whole[:, 1, 1] > 0).all()  # whole slices are never upside down
    assert (whole[:, 0, 0] < 0).any()  # but mirrored


def test_contrast_changes_and_background_does_not() -> None:
    views = torch.rand(32, 1, 16, 16) * 0.6 + 0.2
    views[..., :4] = 0
    found = augmentation.recoloured(views, torch.Generator().manual_seed(0))
    assert (found[..., :4] == 0).all()
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[..., 4:] - views[..., 4:]).abs().mean() > 0.05
    again = augmentation.recoloured(views, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


# -- losses --------------------------------------------------------------------------------------------


def test_the_margin_softmax_by_hand() -> None:
    recipe = Recipe(margin=0.2, scale=16, smoothing=0)
    embeddings = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    vectors = torch.tensor([[2.0, 0], [0, 3]])  # of any length
    # right with cosines 1 and 0: logits 16 · 0.8 and 0; the last row's class is unknown
    loss = cosine_loss(embeddings, vectors, torch.tensor([0, 1, -1]), recipe)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-12.8)), rel=0.02)
    # wrong: logits 16 · (0 − 0.2) and 16
    loss = cosine_loss(embeddings[:1], vectors, torch.tensor([1]), recipe)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(19.2)), rel=1e-4)


def test_a_head_learns_only_from_what_it_knows() -> None:
    heads = ClassVectors({"a": 2, "b": 3}, Recipe(dimension=4))
    embeddings = torch.nn.functional.normalize(torch.randn(3, 4)).requires_grad_()
    targets = {"a": torch.tensor([0, 1, -1]), "b": torch.tensor([-1, -1, -1])}
    heads(embeddings, targets).backward()
    assert embeddings.grad is not None
    assert embeddings.grad[:2].abs().sum(1).min() > 0
    assert not embeddings.grad[2].any()
    assert heads.vectors[0].grad.abs().sum() > 0
    assert heads.vectors[1].grad is None
    nobody = {name: torch.full((3,), -1) for name in targets}
    assert float(heads(embeddings, nobody).detach()) == 0


def test_the_outline_loss_falls_to_nothing_on_the_outline() -> None:
    outlines = torch.zeros(2, 4, 4)
    outlines[0, 1:3, 1:3] = 1
    right = (outlines * 2 - 1) * 20
    assert float(tasks.outline_loss(right, outlines)) == pytest.approx(0, abs=1e-4)
    # all wrong: cross-entropy 20 a cell, no overlap in the image that shows a lesion
    assert float(tasks.outline_loss(-right, outlines)) == pytest.approx(20 + 1, rel=1e-3)
    # even chances: cross-entropy ln 2; overlap 2 · 2 / (8 + 4)
    even = torch.zeros(2, 4, 4)
    assert float(tasks.outline_loss(even, outlines)) == pytest.approx(math.log(2) + 2 / 3, rel=1e-4)
    assert float(tasks.outline_loss(even[1:], outlines[1:])) == pytest.approx(math.log(2), rel=1e-4)
    nothing = torch.zeros(0, 4, 4)
    assert float(tasks.outline_loss(nothing, nothing)) == 0


def test_the_rate_rises_and_falls() -> None:
    rates = [training._rate(step, 100, 0.1) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


# -- the loop ------------------------------------------------------------------------------------------


def state_of(net: RetrievalNetwork) -> dict[str, NDArray[Any]]:
    return {name: value.numpy() for name, value in net.state_dict().items()}


def equal(a: RetrievalNetwork, b: RetrievalNetwork) -> bool:
    one, two = state_of(a), state_of(b)
    return all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def whole_run(few: Samples) -> RetrievalNetwork:
    return training.train(SliceTask(few, QUICK))


def test_the_loop_by_hand(few: Samples, whole_run: RetrievalNetwork) -> None:
    """Two steps an epoch, labels and outlines weighed by the recipe, written out once more."""
    task = SliceTask(few, QUICK)
    with torch.random.fork_rng():
        torch.manual_seed(QUICK.seed)
        net = RetrievalNetwork(QUICK.dimension, QUICK.dropout, QUICK.depth)
        network.from_imagenet(net)
        heads = ClassVectors({"kind": 2}, QUICK)
        net.to(memory_format=torch.channels_last)
        parameters = [*net.parameters(), *heads.parameters()]
        kernels, others = ([p for p in parameters if (p.ndim > 1) == wide] for wide in (True, False))
        groups = [{"params": kernels, "weight_decay": QUICK.decay}, {"params": others, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups)
        step = 0
        for epoch in range(QUICK.epochs):
            dice = training.epoch_generator(QUICK.seed, epoch)
            torch.manual_seed(dice.initial_seed())
            net.train()
            shares = torch.from_numpy(few.shares())
            drawn = torch.multinomial(shares, 8, replacement=True, generator=dice).view(2, 4).numpy()
            for rows in drawn:
                rate = (
                    (1 + math.cos(math.pi * (step - 0.3) / 5.7)) / 2 if step else 1 / 1.3
                )  # warms up 0.3 steps
                for group in optimiser.param_groups:
                    group["lr"] = QUICK.rate * rate
                losses = task.losses(net, heads, rows, epoch, dice, "cpu")
                optimiser.zero_grad()
                (losses["labels"] + QUICK.lesion * losses["outlines"]).backward()
                optimiser.step()
                step += 1
    assert equal(net, whole_run)


class StoppedError(Exception):
    pass


def stopped_after(few: Samples, epochs: int, checkpoint: Path) -> None:
    def stop(epoch: training.Epoch, net: RetrievalNetwork) -> None:
        if epoch.number == epochs:
            raise StoppedError

    with pytest.raises(StoppedError):
        training.train(SliceTask(few, QUICK), checkpoint=checkpoint, finished=stop)


def test_a_stopped_training_goes_on_bit_for_bit(
    few: Samples, whole_run: RetrievalNetwork, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "run.checkpoint"
    stopped_after(few, 1, checkpoint)
    torch.rand(7)  # whatever else has drawn meanwhile
    numbers: list[int] = []
    net = training.train(
        SliceTask(few, QUICK),
        checkpoint=checkpoint,
        resume=True,
        finished=lambda e, _: numbers.append(e.number),
    )
    assert numbers == [2, 3]
    assert equal(net, whole_run)


def test_the_seed_decides(few: Samples, whole_run: RetrievalNetwork) -> None:
    before = torch.random.get_rng_state()
    assert equal(training.train(SliceTask(few, QUICK)), whole_run)
    assert torch.equal(before, torch.random.get_rng_state())  # nobody else's dice are touched
    assert not equal(training.train(SliceTask(few, replace(QUICK, seed=6))), whole_run)


def test_a_checkpoint_of_another_training_is_refused(few: Samples, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.checkpoint"
    stopped_after(few, 1, checkpoint)
    others = (
        (few, replace(QUICK, epochs=4)),
        (few.chosen(np.arange(8) > 0), QUICK),
        (replace(few, targets={"kind": 1 - few.targets["kind"]}), QUICK),
    )
    for samples, recipe in others:
        with pytest.raises(CbirError, match="of another training"):
            training.train(SliceTask(samples, recipe), checkpoint=checkpoint, resume=True)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CbirError, match="damaged"):
        training.train(SliceTask(few, QUICK), checkpoint=checkpoint, resume=True)


def test_regions_are_the_networks_own_when_it_has_learnt_to_propose(
    few: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    done = 0

    def proposals(net: RetrievalNetwork, x: torch.Tensor) -> torch.Tensor:
        assert x.shape == (4, 1, network.VIEW, network.VIEW)
        epochs.append(done)
        return torch.tensor([[0.2, 0.2, 0.4, 0.4]]).expand(4, 4)

    def finished(epoch: training.Epoch, net: RetrievalNetwork) -> None:
        nonlocal done
        done = epoch.number

    monkeypatch.setattr(tasks, "proposals", proposals)
    training.train(SliceTask(few, QUICK), finished=finished)
    assert epochs == [1, 1, 2, 2]  # two steps in each epoch but the first
    training.train(SliceTask(made(["a", "b"], [0, 1], outlined=False), replace(QUICK, epochs=1)))
    training.train(SliceTask(few, replace(QUICK, epochs=1, own=0.0)))
    assert len(epochs) == 4


def test_training_needs_labels(few: Samples) -> None:
    nobody = replace(few, targets={"kind": np.full(8, -1, np.int64)})
    with pytest.raises(CbirError, match="no image has a label"):
        training.train(SliceTask(nobody, QUICK))


def test_a_few_steps_learn_the_outlines_and_the_labels() -> None:
    samples = made([f"P{i}" for i in range(16)], [0, 1] * 8)
    losses: list[dict[str, float]] = []
    recipe = replace(QUICK, epochs=5, batch=8, draws=24, dropout=0.0, depth=0.0)
    training.train(SliceTask(samples, recipe), finished=lambda epoch, _: losses.append(epoch.losses))
    assert losses[-1]["labels"] < losses[0]["labels"]
    assert losses[-1]["outlines"] < losses[0]["outlines"]


# -- the file ------------------------------------------------------------------------------------------


@pytest.fixture
def written(few: Samples, whole_run: RetrievalNetwork, tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    fitting.save(path, whole_run, few, QUICK, "mine")
    return path


def test_the_file_is_an_encoder(written: Path, few: Samples, whole_run: RetrievalNetwork) -> None:
    encoder = load_encoder(str(written))
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, Analyser)
    assert (encoder.name, encoder.dimension, encoder.size) == ("mine", network.DIMENSION, INPUT)
    vectors = encoder.encode(few.pixels)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    _, weights, maps, *_ = looks.analyse(whole_run, few.pixels)
    found = encoder.analyse(few.pixels)
    np.testing.assert_array_equal(found.embeddings, vectors)
    assert (found.weights.shape, found.maps.shape, found.boxes.shape) == ((8,), (8, 20, 20), (8, 4))
    assert np.abs(found.weights - weights).max() < 0.01  # kernels in half precision
    assert np.abs(found.maps - maps).max() < 0.02
    statistics = looks.analyse(encoder.network, few.pixels)[-1]
    np.testing.assert_allclose(found.strangeness, encoder.distribution.strangeness(statistics), rtol=1e-4)
    assert (found.strangeness < encoder.analyse(255 - few.pixels).strangeness).all()
    known = few.boxes
    assert (encoder.analyse(few.pixels, known).boxes == known).all()
    half = encoder.analyse(few.pixels, known).embeddings * looks.analyse(whole_run, few.pixels, known)[0]
    assert half.sum(1).min() > 0.999
    assert encoder.encode(few.pixels[:0]).shape == (0, network.DIMENSION)
    with pytest.raises(ValueError, match="mine takes uint8"):
        encoder.encode(np.zeros((1, 192, 192), np.uint8))
    with pytest.raises(ValueError, match="one box an image"):
        encoder.analyse(few.pixels, known[:3])


def test_the_file_knows_its_patients_and_does_not_tell_them(written: Path) -> None:
    encoder = load_encoder(str(written))
    assert encoder.trained_on("Patient-3")
    assert encoder.trained_on("sub-Patient-3")
    assert not encoder.trained_on("Patient-8")
    assert not encoder.trained_on("")
    assert encoder.about["labels"] == {"kind": ["dark", "bright"]}
    assert encoder.about["recipe"]["epochs"] == 3
    assert b"Patient-" not in written.read_bytes()


def test_a_training_can_start_from_the_file(
    written: Path, few: Samples, whole_run: RetrievalNetwork, tmp_path: Path
) -> None:
    net, composite = load_networks(written)
    assert composite is None
    for name, value in whole_run.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name].float(), value.float(), rtol=1e-3, atol=1e-4)
    later = tmp_path / "later.safetensors"
    fitting.save(later, net, few, QUICK, "mine", first=replace(QUICK, epochs=2))
    encoder = load_encoder(str(later))
    assert encoder.version == load_encoder(str(written)).version
    assert encoder.about["recipe"]["epochs"] == 3
    assert encoder.about["recipe"]["first"]["epochs"] == 2


def test_the_version_is_of_the_weights(
    written: Path, few: Samples, whole_run: RetrievalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = load_encoder(str(written)).version
    other = written.with_name("other.safetensors")
    fitting.save(other, whole_run, few.without("kind", "dark"), QUICK, "other")
    assert load_encoder(str(other)).version == version
    changed = RetrievalNetwork()
    changed.load_state_dict(whole_run.state_dict())
    with torch.no_grad():
        changed.norm.bias[0] += 1
    fitting.save(other, changed, few, QUICK, "mine")
    assert load_encoder(str(other)).version != version
    monkeypatch.setattr(looks, "SHARE", 0.6)
    with pytest.raises(EncoderError, match="another version of cbir"):
        load_encoder(str(written))


def test_the_same_training_writes_the_same_file(
    written: Path, few: Samples, whole_run: RetrievalNetwork
) -> None:
    again = written.with_name("again.safetensors")
    fitting.save(again, whole_run, few, QUICK, "mine")
    assert again.read_bytes() == written.read_bytes()


def test_damage_is_seen(written: Path) -> None:
    whole = written.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for place in (8 + header + 5, len(whole) - 1, whole.index(b"epochs") + 2):
        torn = bytearray(whole)
        torn[place] ^= 1
        written.write_bytes(torn)
        with pytest.raises(EncoderError, match="damaged"):
            load_encoder(str(written))
    for part in (whole[:-10], whole[:100], b""):
        written.write_bytes(part)
        with pytest.raises(EncoderError, match="damaged"):
            load_encoder(str(written))


def test_what_is_no_encoder_is_refused(written: Path, tmp_path: Path) -> None:
    save_file(load_file(written), tmp_path / "bare.safetensors")
    with pytest.raises(EncoderError, match="no encoder of cbir"):
        load_encoder(str(tmp_path / "bare.safetensors"))
    content = load_file(written)
    about = {"version": "0", "architecture": "earlier"}
    text = json.dumps(about)
    envelope = {"format": FORMAT, "about": text, "checksum": hashlib.sha256(text.encode()).hexdigest()}
    save_file(content, tmp_path / "earlier.safetensors", {"cbir": json.dumps(envelope)})
    with pytest.raises(EncoderError, match="another version of cbir"):
        load_encoder(str(tmp_path / "earlier.safetensors"))
    with pytest.raises(EncoderError, match="cannot be read"):
        load_encoder(str(tmp_path / "absent.safetensors"))
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(EncoderError, match="cannot be read"):
        load_encoder(str(tmp_path / "folder.safetensors"))


def test_weights_have_their_ending(few: Samples, whole_run: RetrievalNetwork, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="safetensors"):
        fitting.save(tmp_path / "mine.pth", whole_run, few, QUICK, "mine")


# -- the command line ----------------------------------------------------------------------------------


@pytest.fixture
def cbir(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cbir", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        return code, *capsys.readouterr()

    return run


def test_cbir_train_writes_an_encoder_and_says_what_it_learnt(cbir: Any, tmp_path: Path) -> None:
    grades = {f"P-{i}": "23"[i // 2 % 2] for i in range(8)}
    root = write_cohort(tmp_path / "mri", grades)
    out = tmp_path / "grades.safetensors"
    short = ("--epochs", 1, "--draws", 24)
    code, stdout, err = cbir(
        "train", root, "--label", "who_grade", "--out", out, *short, "--without", "fold=1", "--json",
        "--validation", 0.5,
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(stdout)
    assert (report["schema"], report["patients"], report["labels"]) == (1, 2, {"who_grade": ["2", "3"]})
    assert 0 <= report["validation"]["who_grade"] <= 1
    assert "epoch 1: loss of labels" in err
    encoder = load_encoder(str(out))
    assert sum(encoder.trained_on(patient) for patient in grades) == 2
    assert not any(encoder.trained_on(f"P-{i}") for i in (1, 3, 5, 7))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cache", "grades.safetensors", "mri"]

    index = ("--index", tmp_path / "index", "--json")
    assert cbir("index", root, "--encoder", out, *index)[0] == 0
    moved = out.rename(tmp_path / "elsewhere.safetensors")  # the index keeps weights of its own
    code, stdout, err = cbir("query", root / "P-1", *index)
    assert code == 0, err
    assert json.loads(stdout)["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert cbir("index", root, *index)[0] == 0
    moved.rename(out)

    out.with_suffix(".checkpoint").write_bytes(b"torn")
    code, _, err = cbir("train", root, "--label", "who_grade", "--out", out, *short)
    assert code == 1
    assert "was interrupted; go on with --resume" in err
    code, _, err = cbir("train", root, "--label", "who_grade", "--out", out, *short, "--resume")
    assert code == 1
    assert "the checkpoint is damaged" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("absent", "--label", "who_grade", "--out", "a.safetensors"), "does not exist"),
        (("mri", "--label", "site", "--out", "a.safetensors"), "has no column site"),
        (("mri", "--label", "who_grade", "--out", "a.pth"), "let it end in .safetensors"),
        (("bare", "--label", "who_grade", "--out", "a.safetensors"), "has no labels table"),
        (("mri", "--label", "who_grade", "--out", "a.safetensors", "--without", "fold=9"), "fold=9"),
    ],
)
def test_mistakes_are_one_line(cbir: Any, tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    write_cohort(tmp_path / "mri", {"P-1": "2", "P-2": "3"})
    (tmp_path / "bare").mkdir()
    code, _, err = cbir("train", *arguments)
    assert code == 1
    assert told in err
    assert len(err.strip().splitlines()) == 1


def test_a_malformed_option_is_wrong_usage(cbir: Any, tmp_path: Path) -> None:
    write_cohort(tmp_path / "mri", {"P-1": "2", "P-2": "3"})
    code, _, err = cbir("train", "mri", "--label", "x", "--out", "a.safetensors", "--without", "fold")
    assert code == 2
    assert "LABEL=VALUE" in err


# -- the figshare benchmark ----------------------------------------------------------------------------


@pytest.mark.real
def test_figshare_outlines_lie_on_their_slices(real: Path) -> None:
    folder = real / "figshare"
    found = discovery.discover(folder / "images", load_tables(folder / "slices.tsv"))
    for source in found.sources[::700]:
        (scan,) = cohorts.outlined(source)
        region = scan.slice(0).region
        assert region is not None
        x, y = np.array(cohorts.borders()[source.path.stem]).T
        rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
        np.testing.assert_allclose([columns[0], columns[-1]], [x.min(), x.max()], atol=1)
        np.testing.assert_allclose([rows[0], rows[-1]], [y.min(), y.max()], atol=1)


def test_persons_of_several_entries_are_grouped() -> None:
    found = figshare.mr_numbers(np.array(["MR024780B", "MR024780D", "100360", "MR017260F"]))
    assert found.tolist() == ["MR024780", "MR024780", "100360", "MR017260"]


def test_each_fold_is_compared_by_its_own_network() -> None:
    fold = np.array(["1", "2", "1"])
    vectors = {"1": np.eye(3, dtype=np.float32), "2": 2 * np.eye(3, dtype=np.float32)}
    scores = figshare.of_folds(vectors, fold)(np.array([1, 2]))
    np.testing.assert_array_equal(scores, [[0, 4, 0], [0, 0, 1]])


def test_overlap_by_hand() -> None:
    a = np.array([[0, 0, 2, 2], [0, 0, 1, 1]], np.float32)
    b = np.array([[1, 1, 3, 3], [2, 2, 3, 3]], np.float32)
    np.testing.assert_allclose(figshare.overlap(a, b), [1 / 7, 0])
