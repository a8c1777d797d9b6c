"""Pictures in colour: three sequences are never mixed to grey without a word."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.discovery import colour, discover
from indexer.discovery.memory import Memory
from tests.support.paths import ROOT

DATA = ROOT.parent / "shared" / "data"


def heads(*contrasts: float, seed: int = 0) -> np.ndarray:
    """A head of 64 × 64 in as many channels, each with its own lesion and tissue contrast."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    head, core, lesion = x**2 + y**2 < 0.8, x**2 + y**2 < 0.3, (x - 0.3) ** 2 + y**2 < 0.04
    noise = rng.normal(0, 4, (64, 64, len(contrasts)))
    channels = [head * (120 + c * core - c * lesion) for c in contrasts]
    return np.clip(np.dstack(channels) + noise * head[..., None], 0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "JPEG", quality=quality)
    return np.asarray(Image.open(packed).convert("RGB"))


def grey(seed: int = 0) -> np.ndarray:
    return np.repeat(heads(60, seed=seed), 3, axis=2)


@pytest.mark.parametrize("quality", [20, 60, 95])
def test_grey_saved_as_colour_is_grey(quality: int) -> None:
    rng = np.random.default_rng(1)
    assert not colour.unlike(jpeg(grey(), quality))
    noisy = np.clip(grey() + rng.normal(0, 5, (64, 64, 3)), 0, 255).astype(np.uint8)
    assert not colour.unlike(jpeg(noisy, quality))


def test_sepia_and_drawn_lines_are_no_sequences() -> None:
    assert not colour.unlike((grey() * [1.0, 0.8, 0.5]).astype(np.uint8))
    drawn = grey()
    drawn[30:33, 10:50] = [255, 0, 0]
    drawn[5:9, 5:30] = [255, 255, 0]
    assert not colour.unlike(drawn)
    assert not colour.unlike(np.zeros((8, 8, 3), np.uint8))
    assert not colour.unlike(heads(60))


def test_three_sequences_are_unlike() -> None:
    assert colour.unlike(heads(60, -90, 20))
    assert colour.unlike(jpeg(heads(60, -90, 20), 75))


def cohort(root: Path, pixels: np.ndarray) -> None:
    for patient in range(3):
        for number in range(1, 4):
            folder = root / f"TCGA_CS_{patient}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"TCGA_CS_{patient}_{number}.png")


def mixed(root: Path) -> list[str]:
    return [note for note in discover(root).notes if "mixed to grey" in note]


def test_they_are_told_of_once_with_the_line_to_write(tmp_path: Path) -> None:
    cohort(tmp_path / "a", heads(60, -90, 20))
    cohort(tmp_path / "b", grey())
    (note,) = mixed(tmp_path)
    assert note.startswith(f"{tmp_path / 'a'}: its 9 pictures")
    assert f'{tmp_path / "a" / "cbir.json"}, e.g. {{"channels": ["t1", "flair", "t1ce"]}}' in note
    one = tmp_path / "a" / "TCGA_CS_1" / "TCGA_CS_1_2.png"
    assert len(mixed(one)) == 1
    (tmp_path / "a" / "cbir.json").write_text('{"channels": ["t1", "flair", "t1ce"]}')
    assert mixed(tmp_path) == mixed(one) == []


def test_what_was_seen_is_remembered_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort(tmp_path, heads(60, -90, 20))
    first = discover(tmp_path)
    assert sorted(first.looked.values()) == ["image"] * 3 + ["unlike"] * 3
    looks: list[Path] = []
    pages = colour.raster.pages
    monkeypatch.setattr(
        colour.raster, "pages", lambda file, split: looks.append(file) or pages(file, split=split)
    )
    again = discover(tmp_path, looked=first.looked)
    assert (again.unlike, again.looked, looks) == (first.unlike, first.looked, [])
    changed = tmp_path / "TCGA_CS_0" / "TCGA_CS_0_2.png"
    os.utime(changed, (1, 1))
    discover(tmp_path, looked=first.looked)
    assert looks == [changed]


def test_a_memory_asks_once() -> None:
    memory = Memory()
    here = [Path(__file__)]
    assert [memory.recall("x", here, lambda: "yes"), memory.recall("x", here, lambda: "no")] == ["yes", "yes"]
    assert Memory(memory.now).recall("x", here, lambda: "no") == "yes"
    assert Memory(memory.now).recall("y", here, lambda: None) is None


@pytest.mark.real
def test_published_pictures() -> None:
    assert any("kaggle_3m: its 32 pictures" in note for note in mixed(DATA / "cohorts" / "12_kaggle_3m"))
    for tree in ("11a_kaggle_nickparvar", "11b_kaggle_sartaj"):
        assert mixed(DATA / "cohorts" / tree) == []
    unlike = [
        colour.unlike(np.asarray(Image.open(files[len(files) // 2]).convert("RGB")))
        for folder in sorted((DATA / "tcga-lgg").iterdir())
        if (files := sorted(f for f in folder.glob("slice-*.jpg")))
    ]
    assert len(unlike) == 87
    assert np.mean(unlike) > 0.9
