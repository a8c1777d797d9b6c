"""A file of trained weights (safetensors), which describes itself.

It holds architecture, labels and settings of the training, checksums, and keyed hashes of the patients
it was trained on, so that a figure on these can be told from one on new patients.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexer.encoder.protocols import Encoder
from indexer.encoder.trained import TrainedEncoder, keyed_hash
from indexer.errors import EncoderError
from indexer.files import written_whole
from indexer.learning.strangeness import TrainingDistribution
from indexer.sequences import CHANNELS

if TYPE_CHECKING:
    from torch import nn

    from indexer.learning.network import CompositeNetwork, RetrievalNetwork

SUFFIX = ".safetensors"
"""Ending of a file of weights."""

FORMAT = "cbir encoder 1"
"""What a file of weights says it is."""

DISTRIBUTION = "known."
"""Prefix of the tensors that are no weights but say what the training's slices looked like."""

COMPOSITE = "together."
"""Prefix of the weights of the network that sees several sequences at once."""

SHIPPED = Path(__file__).parent.parent / "weights" / "cbir.safetensors"
"""The encoder that comes with cbir."""

REMEDY = "name a file that `cbir train` wrote"

ABOUT: dict[str, type] = {
    "architecture": str,
    "size": int,
    "dimension": int,
    "name": str,
    "version": str,
    "labels": dict,
    "recipe": dict,
    "key": str,
    "patients": list,
    "known": str,
}
"""What a file says of itself."""

LEAST_LESION = "least_lesion"
"""What a file may say besides: see :class:`indexer.encoder.protocols.Doubtful`."""

T = TypeVar("T")


@functools.cache
def shipped() -> Encoder:
    """The encoder that comes with cbir, trained on public brain tumours: see docs/model-card.md."""
    return load_weights(SHIPPED)


def write_weights(
    path: Path,
    net: RetrievalNetwork,
    *,
    name: str,
    labels: Mapping[str, Collection[str]],
    recipe: Mapping[str, Any],
    patients: Collection[str],
    distribution: TrainingDistribution | None = None,
    composite: CompositeNetwork | None = None,
    least_lesion: Mapping[str, float] | None = None,
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
    distribution : TrainingDistribution, optional
        What it was trained on, to tell strange slices.
    composite : CompositeNetwork, optional
        Sees several sequences at once; not fused.
    least_lesion : mapping of str to float, optional
        As :class:`indexer.encoder.protocols.Doubtful` has it, if it was measured.

    Raises
    ------
    EncoderError
        If the path has another ending.
    """
    from safetensors.numpy import save

    from indexer.learning.looks import architecture
    from indexer.learning.network import INPUT

    if path.suffix != SUFFIX:
        raise EncoderError(path, "is not a name for weights", f"let it end in {SUFFIX}")
    parameters = net.state_dict() | _prefixed(COMPOSITE, composite.state_dict() if composite else {})
    tensors = {}
    for parameter, value in parameters.items():
        array = value.detach().cpu().contiguous().numpy()
        tensors[parameter] = array.astype(np.float16) if array.ndim > 1 else array
    how = architecture(net, composite)
    version = _version(tensors, how)
    of_training = _prefixed(DISTRIBUTION, _halved(distribution) if distribution else {})
    key = hashlib.sha256(f"patients {version}".encode()).digest()[:16]  # a function of the weights: no chance
    about = {
        "architecture": how,
        "size": INPUT,
        "dimension": net.dimension,
        "name": name,
        "version": version,
        "labels": {column: list(values) for column, values in labels.items()},
        "recipe": dict(recipe),
        "key": key.hex(),
        "patients": sorted({keyed_hash(key, patient) for patient in patients}),
        "known": _version(of_training, DISTRIBUTION),
    }
    if least_lesion:
        about[LEAST_LESION] = {name: float(chance) for name, chance in least_lesion.items()}
    text = json.dumps(about, ensure_ascii=False, sort_keys=True)
    # one key alone: safetensors writes several in any order, and equal trainings should give equal files
    envelope = {"format": FORMAT, "about": text, "checksum": hashlib.sha256(text.encode()).hexdigest()}
    content = save(tensors | of_training, {"cbir": json.dumps(envelope)})
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
    about, net, composite, of_training = _read(path)
    return TrainedEncoder(
        name=about["name"],
        dimension=about["dimension"],
        version=about["version"],
        size=about["size"],
        weights_file=path,
        about=about,
        network=net.fused(),
        least_lesion=about.get(LEAST_LESION, {}),
        distribution=_distribution(path, of_training) if of_training else None,
        composite=None if composite is None else composite.fused(),
    )


def load_networks(path: Path) -> tuple[RetrievalNetwork, CompositeNetwork | None]:
    """The networks in a file of weights, not fused: what a training may start from.

    Raises
    ------
    EncoderError
        As of :func:`load_weights`.
    """
    _, net, composite, _ = _read(path)
    return net, composite


def _read(
    path: Path,
) -> tuple[dict[str, Any], RetrievalNetwork, CompositeNetwork | None, dict[str, NDArray[Any]]]:
    """What a file says of itself, its networks, and what the training's slices looked like."""
    metadata, tensors = _content(path)
    about = _described(path, metadata)
    of_training = _taken(tensors, DISTRIBUTION)
    checksums = (
        _version(
            tensors | _prefixed(COMPOSITE, of_composite := _taken(tensors, COMPOSITE)), about["architecture"]
        ),
        _version(_prefixed(DISTRIBUTION, of_training), DISTRIBUTION),
    )
    if checksums != (about["version"], about["known"]):
        raise EncoderError(path, "is damaged: its weights do not have their checksum", REMEDY)
    if not all(
        np.isfinite(part).all() for held in (tensors, of_composite, of_training) for part in held.values()
    ):
        raise EncoderError(path, "holds weights that are not finite", REMEDY)

    from indexer.learning.looks import architecture
    from indexer.learning.network import INPUT, CompositeNetwork, RetrievalNetwork

    projection = tensors.get("projection.weight")
    if projection is None or projection.shape[:1] != (about["dimension"],):  # before so much is allocated
        raise EncoderError(path, "does not hold the weights of its architecture", REMEDY)
    net = RetrievalNetwork(about["dimension"])
    composite = None
    if of_composite:
        composite = CompositeNetwork(
            len(CHANNELS),
            about["dimension"],
            segments="tissue.1.weight" in of_composite,  # those of earlier versions had neither
            standardised="standard" in of_composite,
        )
    if (about["architecture"], about["size"]) != (architecture(net, composite), INPUT):
        raise EncoderError(path, "is of another version of cbir", "train again, or use that version")
    _fill(path, net, tensors)
    if composite is not None:
        _fill(path, composite, of_composite)
    return about, net, composite, of_training


def _content(path: Path) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Metadata and tensors of a file, whatever it may hold."""
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise EncoderError(path, f"cannot be read ({error.strerror or 'no such file'})", REMEDY) from error
    except Exception as error:  # safetensors raises what it pleases, such as for types that numpy lacks
        raise EncoderError(path, "is damaged, or no file of weights", REMEDY) from error


def _described(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file says of itself, of the types that :data:`ABOUT` names."""
    try:
        envelope = json.loads(metadata.get("cbir", "{}"))
    except (ValueError, RecursionError) as error:
        raise EncoderError(path, "is damaged: its description is torn", REMEDY) from error
    if not isinstance(envelope, dict) or envelope.get("format") != FORMAT:
        raise EncoderError(path, "is no encoder of cbir", REMEDY)
    text = envelope.get("about")
    if not isinstance(text, str) or hashlib.sha256(text.encode(errors="replace")).hexdigest() != envelope.get(
        "checksum"
    ):
        raise EncoderError(path, "is damaged: its description does not have its checksum", REMEDY)
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EncoderError(path, "is damaged: its description is torn", REMEDY) from error
    if not isinstance(about, dict) or not ABOUT.keys() <= about.keys():
        raise EncoderError(path, "is of another version of cbir", "train again, or use that version")
    if not _chances(about.get(LEAST_LESION, {})):
        raise EncoderError(path, f"is damaged: its description has no proper {LEAST_LESION}", REMEDY)
    for part, kind in ABOUT.items():
        if type(about[part]) is not kind or (kind is int and about[part] < 1):
            raise EncoderError(path, f"is damaged: its description has no proper {part}", REMEDY)
    return about


def _chances(found: Any) -> bool:
    """Whether these are chances by name."""
    return isinstance(found, dict) and all(
        type(chance) is float and 0 <= chance <= 1 for chance in found.values()
    )


def _fill(path: Path, net: nn.Module, tensors: Mapping[str, NDArray[Any]]) -> None:
    import torch

    try:
        net.load_state_dict({key: torch.from_numpy(value).float() for key, value in tensors.items()})
    except (RuntimeError, TypeError, ValueError) as error:
        raise EncoderError(path, "does not hold the weights of its architecture", REMEDY) from error


def _halved(distribution: TrainingDistribution) -> dict[str, NDArray[np.float32]]:
    """What a file holds of it: of the symmetric matrices the upper triangles."""
    rows, columns = np.triu_indices(distribution.means.shape[1])
    triangles = np.ascontiguousarray(distribution.precisions[:, rows, columns])
    return {"means": distribution.means, "precisions": triangles}


def _distribution(path: Path, parts: Mapping[str, NDArray[Any]]) -> TrainingDistribution:
    from indexer.learning.looks import STATISTICS

    if parts.keys() == {"means", "precisions"}:
        means, precisions = (parts[part].astype(np.float32) for part in ("means", "precisions"))
        n = len(means) if means.ndim else 0
        rows, columns = np.triu_indices(STATISTICS)
        if precisions.shape == (n, len(rows)):
            triangles = precisions
            precisions = np.empty((n, STATISTICS, STATISTICS), np.float32)
            precisions[:, rows, columns] = precisions[:, columns, rows] = triangles
        # files of earlier versions hold the whole matrices
        if n and (means.shape, precisions.shape) == ((n, STATISTICS), (n, STATISTICS, STATISTICS)):
            return TrainingDistribution(means, precisions)
    raise EncoderError(path, "does not say what its training's slices looked like", REMEDY)


def _prefixed(prefix: str, tensors: Mapping[str, T]) -> dict[str, T]:
    return {prefix + key: value for key, value in tensors.items()}


def _taken(tensors: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Take out the tensors with a prefix, and the prefix from their names."""
    return {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}


def _version(tensors: Mapping[str, NDArray[Any]], architecture: str) -> str:
    """Hash of weights and architecture."""
    digest = hashlib.sha256(architecture.encode())
    for key in sorted(tensors):
        digest.update(f"\0{key} {tensors[key].dtype} {tensors[key].shape}\0".encode())
        digest.update(np.ascontiguousarray(tensors[key]).tobytes())
    return digest.hexdigest()[:16]
