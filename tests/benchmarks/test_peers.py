"""dcm2niix and the reader agree on every series, or the reader refuses; nothing is silently different."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers, series
from benchmarks.results import DATA
from indexer.readers import dicom

REFUSED = {"gantry tilt": "not stacked at right angles", "a slice is missing": "3.00 to 6.00 mm apart"}
FIRST = {"a time series": "first of 12"}


@pytest.mark.parametrize("shape", series.SHAPES)
def test_generated_series(tmp_path: Path, shape: str) -> None:
    series.save(tmp_path, series.SHAPES[shape]())
    (found,) = peers.compared(tmp_path).values()
    assert found.volumes > 0
    if shape in REFUSED:
        assert REFUSED[shape] in found.verdict
    else:
        assert found.verdict == FIRST.get(shape, "equal")


@pytest.mark.parametrize("change", ["voxels", "place", "size"])
def test_a_difference_is_noticed(tmp_path: Path, change: str) -> None:
    series.save(tmp_path, series.stack())
    ((source,), _) = dicom.series(list(tmp_path.iterdir()), tmp_path)
    (scan,) = dicom.read(source)
    ((voxels, affine),) = peers.converted(list(source.files))
    assert peers.difference(scan, (voxels, affine)) is None
    if change == "voxels":
        voxels[3, 4, 5] += 1
    elif change == "place":
        affine[2, 3] += 0.02
    else:
        voxels = voxels[:-1]
    assert peers.difference(scan, (np.array(voxels), affine)) is not None


@pytest.mark.real
def test_shared_series() -> None:
    if not (DATA / "dicom-t1").is_dir():
        pytest.skip("no dicom-t1 beside the checkout (../shared/data)")
    assert {found.verdict for found in peers.compared(DATA / "dicom-t1").values()} == {"equal"}


@pytest.mark.real
def test_as_a_scanner_would_have_sent(tmp_path: Path) -> None:
    if not peers.SCANNER.is_file():
        pytest.skip(f"no {peers.SCANNER.name} beside the checkout (../shared/tools)")
    peers.send(tmp_path, 1)
    found = peers.compared(tmp_path)
    assert len(found) == 4
    assert {each.verdict for each in found.values()} == {"equal"}
