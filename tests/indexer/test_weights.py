"""The encoder that is shipped: whole, loaded by default, and aware of what it was not trained on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file

from indexer import discovery
from indexer.encoder import SHIPPED, TrainedEncoder, load_encoder, look
from indexer.learning.strangeness import LIMIT
from indexer.preprocess import Preprocessing, prepared
from indexer.scan import Scan, stacked


@pytest.fixture(scope="module")
def encoder() -> TrainedEncoder:
    found = load_encoder()
    assert isinstance(found, TrainedEncoder)
    return found


def strangeness(encoder: TrainedEncoder, *scans: Scan) -> float:
    """As a query of these scans is judged."""
    found = []
    for scan in scans:
        ready = prepared(scan, Preprocessing.of(encoder))
        rows = ready.views == 0
        _, weights, strange = look(encoder, ready.pixels[rows], ready.boxes[rows], ready.weights[rows])
        found.append(np.average(strange, weights=weights))
    return float(np.mean(found))


def picture(pixels: NDArray[np.float64]) -> Scan:
    return Scan(stacked(pixels[None]), Path("picture"))


def test_the_file_is_the_one_that_was_published(encoder: TrainedEncoder) -> None:
    expected = SHIPPED.with_suffix(".sha256").read_text().split()[0]
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == expected
    assert SHIPPED.stat().st_size < 12_000_000
    assert (encoder.name, encoder.weights_file) == ("cbir", SHIPPED)


def test_it_knows_whom_it_was_trained_on(encoder: TrainedEncoder) -> None:
    for patient in ("100360", "BraTS-001", "TCGA-CS-4941"):
        assert encoder.trained_on(patient)
        assert patient.encode() not in SHIPPED.read_bytes()
    assert not encoder.trained_on("P-01")


@pytest.mark.parametrize("seed", range(3))
def test_noise_and_phantoms_are_strange(encoder: TrainedEncoder, seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert strangeness(encoder, picture(rng.uniform(0, 255, (256, 256)))) > LIMIT
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    phantom = np.where(x**2 + y**2 < rng.uniform(0.5, 0.9), 100 + 50 * x, 0)
    phantom += np.where((x - rng.uniform(-0.3, 0.3)) ** 2 + y**2 < 0.05, 80, 0)
    assert strangeness(encoder, picture(phantom)) > LIMIT


def test_photos_are_strange(encoder: TrainedEncoder) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    (scan,) = discovery.read(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    assert strangeness(encoder, scan) > LIMIT


def test_another_body_part_is_strange(encoder: TrainedEncoder) -> None:
    path = get_testdata_file("CT_small.dcm", download=False)
    assert path is not None
    pixels = pydicom.dcmread(path).pixel_array.astype(float)
    assert strangeness(encoder, picture(pixels)) > LIMIT


@pytest.mark.real
def test_brain_tumours_are_not_strange(encoder: TrainedEncoder, real: Path) -> None:
    for patient in sorted(path for path in (real / "volumes").iterdir() if path.is_dir()):
        assert strangeness(encoder, *discovery.read(patient)) < LIMIT, patient.name
