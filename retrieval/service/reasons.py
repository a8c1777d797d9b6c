"""Reasons without a word of what was sent: errors quote files, and files hold names of people.

A reader says what it found: the name of a file, a value of a table, a setting, a syntax error's text. A
client that sent a whole archive learns kind and place, and so does everybody who may look at jobs. So of a
reason pass the words that our own messages are made of, small numbers, names of kinds of errors, and the
identifiers that DICOM itself gives; each other word becomes ``…``.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib.util
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import InspectLoader
from pathlib import Path

import indexer
from indexer.errors import CbirError

_WORD = re.compile(r"[^\s()\[\]{}<>\"'`;:,…]+")
_NUMBER = re.compile(r"[-+]?\d{1,6}([.,×x]\d{1,6}){0,3}(e[-+]?\d+)?%?")
_STANDARD = re.compile(r"1\.2\.840\.10008(\.\d+)+")
_HIDDEN = "…"


def told(reason: str) -> str:
    """A reason in words of our own.

    Examples
    --------
    >>> told("Jane_Doe.nii: is truncated: 4711 of 1,024 bytes are there; copy it again")
    '…: is truncated: 4711 of 1,024 bytes are there; copy it again'
    """

    def one(match: re.Match[str]) -> str:
        word = match[0].strip(".!?")
        if not word or word.lower() in _own_words() or word in _kinds_of_errors():
            return match[0]
        if _NUMBER.fullmatch(word) or _STANDARD.fullmatch(word):
            return match[0]
        return _HIDDEN

    return re.sub(rf"{_HIDDEN}([\s,]*{_HIDDEN})+", _HIDDEN, _WORD.sub(one, reason))


@contextmanager
def in_own_words() -> Iterator[None]:
    """Errors about what was sent are told in words of our own."""
    try:
        yield
    except CbirError as error:
        error.reason, error.remedy = told(error.reason), told(error.remedy)
        raise


@functools.cache
def _own_words() -> frozenset[str]:
    """Words of all texts in the programs that read what is sent, in lower case; not of their docstrings."""
    words = (word.strip(".!?").lower() for text in _texts() for word in _WORD.findall(text))
    return frozenset(word for word in words if not word.isdigit())


def _texts() -> Iterator[str]:
    for package, place in (
        ("indexer", indexer.__path__),
        ("retrieval.service", [str(Path(__file__).parent)]),
    ):
        for found in pkgutil.walk_packages(place, f"{package}."):
            spec = importlib.util.find_spec(found.name)
            loader = None if spec is None else spec.loader
            source = loader.get_source(found.name) if isinstance(loader, InspectLoader) else None
            for node in ast.walk(ast.parse(source or "")):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    node.value.value = None  # it describes
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


@functools.cache
def _kinds_of_errors() -> frozenset[str]:
    """Names of the kinds of errors that Python and its standard library know."""
    return frozenset(name for name in vars(builtins) if name.endswith("Error")) | {
        "BadZipFile",
        "BadGzipFile",
        "DecompressionBombError",
        "HeaderDataError",
        "ImageFileError",
        "JSONDecodeError",
        "UnidentifiedImageError",
    }
