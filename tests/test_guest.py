"""A process that imports cbir, or reads with it, stays as it was."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.images import phantom, write_dicom
from tests.support.paths import ROOT

OURS = ("cbir", "indexer", "retrieval", "pacs")
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in OURS
    for path in (ROOT / package).rglob("*.py")
    if path.stem != "__main__" and "orthanc" not in path.relative_to(ROOT).parts[:2]
)

STATE = """
import builtins, importlib, locale, logging, os, random, signal, socket, sys, threading, time, warnings
import numpy, PIL.Image, PIL.ImageFile, pydicom.config, torch

def state():
    loggers = {name: log for name, log in logging.root.manager.loggerDict.items()
               if isinstance(log, logging.Logger) and name.partition('.')[0] not in OURS}
    loggers['root'] = logging.root
    return {
        'pydicom': {k: repr(v) for k, v in (vars(pydicom.config) | vars(pydicom.config.settings)).items()
                    if isinstance(v, (bool, int, str, type(None)))},
        'logs': {name: [log.level, log.disabled, log.propagate, repr(log.handlers), repr(log.filters)]
                 for name, log in loggers.items()},
        'logging': [logging.root.manager.disable, logging.raiseExceptions, repr(logging.getLoggerClass()),
                    repr(logging.lastResort), repr(warnings.showwarning)],
        'environment': dict(os.environ),
        'warnings': repr(warnings.filters),
        'locale': locale.setlocale(locale.LC_ALL),
        'random': [hash(random.getstate()), repr(numpy.random.get_state()), torch.random.initial_seed(),
                   torch.random.get_rng_state().tolist()],
        'numpy': numpy.geterr() | {'print': repr(numpy.get_printoptions())},
        'torch': [torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled(),
                  repr(torch.get_default_dtype()), torch.are_deterministic_algorithms_enabled()],
        'pillow': [PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES],
        'process': [os.getcwd(), sys.getrecursionlimit(), sys.getswitchinterval(), repr(sys.excepthook),
                    repr(sys.unraisablehook), socket.getdefaulttimeout(), time.tzname, sys.argv,
                    [repr(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
                    sorted(thread.name for thread in threading.enumerate()), sorted(vars(builtins))],
    }
"""


def foreign() -> list[str]:
    """What the modules import of others when they are themselves imported."""
    found = set()
    for name in MODULES:
        path = ROOT / Path(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    return sorted(name for name in found if name.partition(".")[0] not in OURS)


def changes(*doings: str) -> list[dict[str, list[object]]]:
    """What of the state of a fresh process each of `doings` changes; libraries are imported before."""
    code = f"""
import importlib
OURS = {OURS}
for name in {foreign()}:
    importlib.import_module(name)
{STATE}
import json
import os
gone = []
for doing in {doings}:
    before = state()
    exec(doing)
    after = state()
    gone.append({{k: [before[k], after[k]] for k in before if repr(before[k]) != repr(after[k])}})
print('STATE', json.dumps(gone, default=repr))
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    return list(json.loads(done.stdout.rpartition("STATE ")[2]))


@pytest.mark.slow
def test_importing_everything_and_reading_change_nothing_and_a_change_is_noticed(tmp_path: Path) -> None:
    """Nor how the heap grows, which only :func:`indexer.runtime.prepare` sets, and shows in no variable."""
    importing = f"""
for name in {MODULES}:
    importlib.import_module(name)
from indexer.runtime import prepare
assert not prepare.cache_info().currsize
"""
    series = write_dicom(tmp_path / "series", phantom(0, 3), StudyInstanceUID="Planted.Name")
    reading = f"""
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from indexer.discovery import read
with ThreadPoolExecutor(4) as pool:
    assert all(scans for scans in pool.map(read, [Path({str(series)!r})] * 8))
"""
    imported, read, prepared = changes(
        importing, reading, "import indexer.runtime; indexer.runtime.prepare()"
    )
    assert imported == {}
    assert read == {}
    assert prepared.keys() == {"environment"}


def test_what_headers_hold_is_not_told(tmp_path: Path) -> None:
    """Not even where the host logs and warns about everything; afterwards it does so again."""
    series = write_dicom(tmp_path / "series", phantom(0, 3), StudyInstanceUID="Planted.Name")
    code = f"""
import logging, sys, warnings
logging.basicConfig(level=logging.DEBUG)
warnings.simplefilter("always")
from pathlib import Path
import pydicom
from indexer.discovery import read
read(Path({str(series)!r}))
print("ours", file=sys.stderr)
pydicom.dcmread(next(Path({str(series)!r}).iterdir())).StudyInstanceUID
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    ours, _, theirs = done.stderr.partition("ours\n")
    assert "Planted" not in ours
    assert "WARNING:pydicom" in theirs
    assert "UserWarning: Invalid value for VR UI: 'Planted.Name'" in theirs
