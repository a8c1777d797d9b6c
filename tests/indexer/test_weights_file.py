"""Whatever a file of weights holds, it is an encoder or an `EncoderError`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from indexer.encoder import FORMAT, SHIPPED, load_encoder, weights
from indexer.errors import EncoderError

WHOLE = SHIPPED.read_bytes()
HEADER = int.from_bytes(WHOLE[:8], "little")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights") / "odd.safetensors"


@pytest.fixture(scope="module")
def about() -> dict[str, Any]:
    with safe_open(SHIPPED, "numpy") as file:
        return dict(json.loads(json.loads(file.metadata()["cbir"])["about"]))


@pytest.fixture(scope="module")
def tensors() -> dict[str, NDArray[Any]]:
    return dict(load_file(SHIPPED))


def refused(path: Path) -> str:
    with pytest.raises(EncoderError) as caught:
        load_encoder(str(path))
    told = str(caught.value)
    assert "\n" not in told
    assert str(path) in told
    return told


def enveloped(path: Path, about: object, tensors: dict[str, NDArray[Any]]) -> Path:
    """A file whose description has its checksum, whatever it says."""
    text = about if isinstance(about, str) else json.dumps(about)
    envelope = {"format": FORMAT, "about": text, "checksum": hashlib.sha256(text.encode()).hexdigest()}
    save_file(tensors, path, {"cbir": json.dumps(envelope)})
    return path


def signed(path: Path, about: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Path:
    """A file in which every checksum fits, as somebody might make it on purpose."""
    looks = {k: v for k, v in tensors.items() if k.startswith(weights.DISTRIBUTION)}
    rest = {k: v for k, v in tensors.items() if k not in looks}
    version = weights._version(rest, about["architecture"])
    known = weights._version(looks, weights.DISTRIBUTION)
    return enveloped(path, about | {"version": version, "known": known}, tensors)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_bytes_are_refused(path: Path, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, 8 + HEADER - 1) | st.integers(0, len(WHOLE) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "drop", "insert", "overwrite"]))
    if kind == "flip":
        content = bytearray(WHOLE)
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        content = bytearray(WHOLE[:place])
    elif kind == "drop":
        content = bytearray(WHOLE[:place] + WHOLE[place + data.draw(st.integers(1, 64)) :])
    else:
        new = data.draw(st.binary(min_size=1, max_size=16))
        content = bytearray(WHOLE[:place] + new + WHOLE[place + len(new) * (kind == "overwrite") :])
    if bytes(content) == WHOLE:
        return
    path.write_bytes(content)
    refused(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_descriptions_of_any_kind_are_refused(path: Path, about: dict[str, Any], data: st.DataObject) -> None:
    small = {"projection.weight": np.ones((2, 2), np.float16)}
    part = data.draw(st.sampled_from(sorted(about)))
    changed: object = {**about, part: data.draw(JSON)}
    if data.draw(st.booleans()):
        changed = {key: value for key, value in about.items() if key != part}
    if data.draw(st.booleans()):
        changed = data.draw(JSON)
    refused(enveloped(path, changed, small))


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{", '"', "1" * 5000, "NaN", '"\\ud800"'])
def test_torn_descriptions_are_refused(path: Path, text: str) -> None:
    small = {"a": np.ones(1, np.float32)}
    refused(enveloped(path, text, small))
    for envelope in (text, json.dumps({"format": FORMAT, "about": text, "checksum": None})):
        save_file(small, path, {"cbir": envelope})
        refused(path)


@pytest.mark.slow
def test_weights_that_are_signed_and_wrong_are_refused(
    path: Path, about: dict[str, Any], tensors: dict[str, NDArray[Any]]
) -> None:
    key = "projection.weight"
    none = np.full_like(tensors[key], np.nan)
    assert load_encoder(str(signed(path, about, tensors))).dimension == about["dimension"]
    assert "not finite" in refused(signed(path, about, {**tensors, key: none}))
    assert "not finite" in refused(
        signed(path, about, {**tensors, "known.means": tensors["known.means"] * np.float32(np.inf)})
    )
    for wrong in (
        {k: v for k, v in tensors.items() if k != key},
        {**tensors, key: tensors[key][:, :5]},
        {**tensors, key: tensors[key][:5]},
        {**tensors, key: np.float16(1)},
        {**tensors, "another": tensors[key]},
        {**tensors, "backbone.head.conv.weight": tensors[key]},
        {k: v for k, v in tensors.items() if not k.startswith("together.")},
        {k: v for k, v in tensors.items() if k != "known.means"},
        {**tensors, "known.means": tensors["known.means"][:, :3]},
        {**tensors, "known.precisions": np.float32(1)},
        {**tensors, "known.more": tensors[key]},
    ):
        refused(signed(path, about, {k: np.asarray(v) for k, v in wrong.items()}))
    for dimension in (2**40, 0, -1, 127, True):  # nothing is allocated by it
        refused(signed(path, about | {"dimension": dimension}, tensors))
    for part in ({"size": 321}, {"architecture": "another"}):
        assert "another version of cbir" in refused(signed(path, about | part, tensors))


def test_types_that_numpy_lacks_are_refused(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    refused(path)
    refused(Path("with\0nothing.safetensors"))


def test_a_file_may_say_when_there_is_no_lesion(
    path: Path, about: dict[str, Any], tensors: dict[str, NDArray[Any]]
) -> None:
    about = {key: value for key, value in about.items() if key != "least_lesion"}
    assert load_encoder(str(signed(path, about, tensors))).least_lesion == {}
    limits = {"flat images": 0.2, "flair + t1": 0.75}
    assert load_encoder(str(signed(path, about | {"least_lesion": limits}, tensors))).least_lesion == limits
    for odd in (-0.1, 1.5, "0.2", None, float("nan")):
        said = {"least_lesion": limits | {"a stack": odd}}
        assert "least_lesion" in refused(signed(path, about | said, tensors))
    for odd in (0.2, [], [0.2, 0.5], "flair"):
        assert "least_lesion" in refused(signed(path, about | {"least_lesion": odd}, tensors))
