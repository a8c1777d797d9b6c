"""Documents with a checksum: what was changed is noticed, and a planted one costs little."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from indexer import sealed

DATA: dict[str, Any] = {"a": 1, "b": {"c": [1, 2]}}


@pytest.fixture
def document(tmp_path: Path) -> Path:
    sealed.write(tmp_path / "a.json", DATA)
    return tmp_path / "a.json"


def test_what_is_written_is_read(document: Path) -> None:
    assert sealed.load(document) == (DATA, True)
    assert sealed.read(document, sealed=True) == DATA


def test_each_flipped_bit_is_noticed(document: Path) -> None:
    content = document.read_bytes()
    for at in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[at] ^= 1 << bit
            document.write_bytes(flipped)
            try:
                data, whole = sealed.load(document)
            except ValueError:  # no longer JSON
                continue
            assert whole is False or data == DATA, (at, bit)
            assert whole is not None, (at, bit)


def test_one_of_an_earlier_version_has_no_seal(document: Path) -> None:
    document.write_text(json.dumps(DATA))
    assert sealed.load(document) == (DATA, None)
    assert sealed.read(document) == DATA
    with pytest.raises(ValueError, match="checksum"):
        sealed.read(document, sealed=True)


def test_many_fields_are_hashed_no_more_than_once(document: Path) -> None:
    many = {str(n): "0" * 64 for n in range(2000)}
    document.write_text(json.dumps(many))
    with patch("indexer.sealed.seal", wraps=sealed.seal) as hashed:
        assert sealed.load(document) == (many, None)
    assert hashed.call_count <= 1


def test_one_that_is_too_large_is_refused(document: Path) -> None:
    with pytest.raises((OSError, ValueError)):
        sealed.load(document, most=10)
