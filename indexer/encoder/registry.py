"""Encoders by name: those that packages bring, and files of weights."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from indexer.encoder.protocols import Encoder
from indexer.encoder.weights import SUFFIX, load_weights
from indexer.errors import EncoderError

GROUP = "cbir.encoders"
"""Entry point group: a name stands for a callable without arguments that returns an `Encoder`."""

DEFAULT = "cbir"
"""The encoder of a new index."""


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
