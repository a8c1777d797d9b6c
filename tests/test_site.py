"""The documentation as pages, and its tutorial, done as it is written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import cbir
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: a page, link or name that is not there fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Fetched(HTMLParser):
    """What a browser fetches by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio", "object", "embed"):
            self.addresses.append(given.get("src") or given.get("data") or "")
        elif tag == "link":
            self.addresses.append(given.get("href") or "")


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert {"index.html", "tutorial.html", "api.html", "glossary.html"} <= {page.name for page in pages}
    for page in pages:
        (parser := Fetched()).feed(page.read_text("utf-8"))
        assert not [address for address in parser.addresses if re.match(r"(https?:)?//", address)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s+)[\"']?(https?:)?//", style.read_text("utf-8")), style


def test_every_document_has_its_place_on_the_site() -> None:
    listed = re.findall(r"^ *- ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_everything_public_is_described(site: Path) -> None:
    page = (site / "api.html").read_text("utf-8")
    for name in cbir.__all__:
        assert name == "__version__" or f'id="cbir.{name}"' in page, name
    for name in ("query", "like", "add", "remove", "calibrate", "evaluate", "scan", "refresh"):
        assert f'id="cbir.Index.{name}"' in page, name


def write_figshare(folder: Path, data: Path, patients: int) -> None:
    """Files as figshare has them, of the first patients of each tumour, made of the repacked slices."""
    import h5py

    numbers = {"meningioma": 1, "glioma": 2, "pituitary": 3}
    borders = json.loads((data / "borders.json").read_text())
    rows = [line.split("\t") for line in (data / "slices.tsv").read_text().splitlines()[1:]]
    slices = defaultdict(list)
    for file, patient, tumour, *_ in rows:
        slices[tumour, patient].append(file)
    chosen = [key for tumour in numbers for key in [k for k in slices if k[0] == tumour][:patients]]
    folder.mkdir()
    number = 0
    for tumour, patient in chosen:
        for file in slices[tumour, patient][:2]:
            number += 1
            image = Image.open(data / file).convert("L")
            mask = Image.new("1", image.size)
            border = np.asarray(borders[Path(file).stem], float).reshape(-1, 2)
            ImageDraw.Draw(mask).polygon([tuple(point) for point in border], fill=1)
            path = folder / f"{number}.mat"
            with h5py.File(path, "w", userblock_size=512) as held:
                group = held.create_group("cjdata")
                group["image"] = np.asarray(image, np.int16).T * 16
                group["tumorMask"] = np.asarray(mask, np.uint8).T
                group["PID"] = np.array([[ord(char)] for char in patient], np.uint16)
                group["label"] = np.array([[float(numbers[tumour])]])
            with path.open("r+b") as stream:
                stream.write(b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(512, b" "))


@pytest.mark.real
def test_the_tutorial_can_be_followed(tmp_path: Path, real: Path) -> None:
    write_figshare(tmp_path / "figshare", real / "figshare", patients=6)
    text = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    commands = re.findall(r"^\$ cbir (.+)$", text, re.MULTILINE)
    told = {}
    environment = {k: v for k, v in os.environ.items() if k != "CBIR_INDEX"} | {"PYTHONPATH": str(ROOT)}
    for command in commands:
        arguments = [sys.executable, "-m", "retrieval.cli", *command.split()]
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
        told[command] = done.stdout + done.stderr
    assert len(commands) == 9
    assert "0 failed\nindex     cbir-index: 18 cases" in told["index figshare"]
    asked = told["query figshare/1.mat -k 5 --report report.html"]
    assert "no vote" in asked
    assert "tumour" in asked
    assert (tmp_path / "report.html").read_text().count("data:image/") >= 6
    only = told["query figshare/1.mat -k 5 --where tumour=meningioma"]
    assert len(re.findall(r"^\d\t", only, re.MULTILINE)) == 5
    assert "in-sample" in told["eval --label tumour"]
    assert "in-sample" not in told["eval --index frozen --label tumour"]
    assert "P@5" in told["eval --index frozen --label tumour"]
