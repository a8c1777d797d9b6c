"""Reasons for strangers: kind and place, in words of our own."""

from __future__ import annotations

import ast

import pytest

from indexer.errors import ReadError
from retrieval.service.reasons import in_own_words, told
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("slice 3 is missing", None),
        ("is truncated: 4711 of 1,024 bytes are there", None),
        ("has a size of 24×28×10, too small to be an image", None),
        ("holds Plantedname^Jane", "holds …"),
        ("Plantedname Jane, Planted-General: is damaged", "…: is damaged"),
        ("patient 19610203", "patient …"),
        ("the archive is damaged (BadZipFile)", None),
        ("transfer syntax 1.2.840.10008.1.2.4.90", None),
        ("transfer syntax 1.3.6.1.4.1.4711.7", "transfer syntax …"),
    ],
)
def test_only_words_of_our_own_pass(reason, expected):
    assert told(reason) == (reason if expected is None else expected)


def test_what_our_readers_say_is_understood_as_before():
    """Each sentence that a reader raises, as far as it is fixed, passes."""
    found = 0
    for path in (ROOT / "indexer" / "readers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ReadError":
                for argument in node.args[1:]:
                    if isinstance(argument, ast.Constant):
                        assert told(argument.value) == argument.value
                        found += 1
    assert found > 20


def test_errors_are_told_in_our_words():
    with pytest.raises(ReadError) as caught, in_own_words():
        raise ReadError("Jane.nii", "holds the value Plantedname", "ask Plantedref")
    assert "Planted" not in caught.value.explanation
    assert caught.value.explanation.startswith("holds the value")
