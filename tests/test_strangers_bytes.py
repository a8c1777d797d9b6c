"""Whoever parses bytes in our packages is settled: docs/security.md says where, and what bounds it."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch

from tests.support.paths import ROOT
from tests.test_architecture import MODULES

PARSERS = {
    "ElementTree.fromstring",
    "ElementTree.parse",
    "csv.reader",
    "frombuffer",
    "gzip.GzipFile",
    "gzip.open",
    "h5py.File",
    "json.load",
    "json.loads",
    "load_workbook",
    "np.load",
    "np.loadtxt",
    "nib.load",
    "nibabel.load",
    "nrrd.read_header",
    "nrrd.read_data",
    "pickle.load",
    "pickle.loads",
    "pydicom.dcmread",
    "read_bytes",
    "read_text",
    "safe_open",
    "sqlite3.connect",
    "tarfile.open",
    "toml.load",
    "tomllib.load",
    "tomllib.loads",
    "torch.load",
    "yaml.load",
    "yaml.safe_load",
    "zipfile.ZipFile",
    "zlib.decompressobj",
    "Image.open",
}
"""Calls that make something of bytes, by their whole name or the last part of it."""


def parses(text: str) -> set[str]:
    """The parsers that a module calls; who opens a file to write it parses nothing."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    modes = {
        call: {ast.unparse(each.value) for each in call.keywords if each.arg == "mode"} for call in calls
    }
    called = {ast.unparse(call.func) for call in calls if modes[call] <= {"'rb'"}}
    return {name for name in called if name in PARSERS or name.rpartition(".")[2] in PARSERS}


def settled() -> list[str]:
    """Modules, or patterns of their paths, in the first column of the table of readers."""
    text = (ROOT / "docs" / "security.md").read_text()
    table = text.partition("## Who reads bytes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_every_reader_of_bytes_is_settled() -> None:
    patterns, used = settled(), set()
    for path in MODULES.values():
        name = str(path.relative_to(ROOT))
        if not (found := parses(path.read_text())):
            continue
        mine = {pattern for pattern in patterns if fnmatch(name, pattern)}
        assert mine, f"{name} calls {', '.join(sorted(found))}: say in docs/security.md what bounds it"
        used |= mine
    assert set(patterns) == used, "these read nothing any more"


def test_a_reader_is_seen() -> None:
    assert parses("import json\nx = json.loads(path.read_text())") == {"json.loads", "path.read_text"}
    assert parses("index.read(path)\ngzip.GzipFile(fileobj=out, mode='wb')") == set()
