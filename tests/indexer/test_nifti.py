"""NIfTI files that are no images, or do not lie on a straight grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import series
from indexer.discovery import read
from indexer.errors import ReadError
from tests.indexer.test_readers import config, volume

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(4, 5, 6, 1, 3), (4, 5, 6, 3), (4, 5, 6)])
@pytest.mark.parametrize("intent", [1004, 1005, 1006, 1007, 1008])
def test_vectors_are_no_images(tmp_path: Path, shape: tuple[int, ...], intent: int) -> None:
    voxels = RNG.normal(size=shape).astype(np.float32)
    path = volume(tmp_path / "warp_t1.nii.gz", voxels, intent_code=intent)
    with pytest.raises(ReadError, match="displacement"):
        read(path)
    config(tmp_path, channels=["t1", "t2", "flair"])
    if intent == 1007 and len(shape) > 3:  # some software stores channels so; whoever names them knows
        assert [scan.sequence for scan in read(path)] == ["t1", "t2", "flair"]
    else:
        with pytest.raises(ReadError, match="displacement"):
            read(path)


def sheared(degrees: float, pair: tuple[int, int], sizes: tuple[float, ...] = (1, 1.2, 3)) -> NDArray[Any]:
    """An affine whose second axis of a pair leans towards the first."""
    affine = np.diag([*sizes, 1.0])
    affine[pair[0], pair[1]] = sizes[pair[1]] * np.tan(np.radians(degrees))
    return affine


@pytest.mark.parametrize("pair", [(0, 2), (1, 2), (0, 1)])
@pytest.mark.parametrize("degrees", [-17, 5, 12])
@pytest.mark.parametrize("turn", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_sheared_volumes_are_refused(
    tmp_path: Path, pair: tuple[int, int], degrees: float, turn: tuple[int, ...]
) -> None:
    voxels = RNG.integers(0, 99, (16, 20, 12), dtype=np.int16)
    affine = sheared(degrees, pair)
    affine[:3, :3] = affine[:3, turn]
    with pytest.raises(ReadError, match=r"not stacked at right angles \(tilted gantry\); resample it"):
        read(volume(tmp_path / "a.nii", voxels.transpose(turn), affine))


@pytest.mark.parametrize("degrees", [0, 1e-4, 0.02])
def test_a_shear_of_less_than_half_a_voxel_is_rounding(tmp_path: Path, degrees: float) -> None:
    voxels = RNG.integers(0, 99, (16, 20, 12), dtype=np.int16)
    (scan,) = read(volume(tmp_path / "a.nii", voxels, sheared(degrees, (0, 2))))
    assert scan.voxels.shape == (16, 20, 12)


@pytest.mark.parametrize("degrees", [0.2, 0.5, 0.8, 1.1, 1.4, 5, 20])
def test_both_formats_refuse_the_same_shear(tmp_path: Path, degrees: float) -> None:
    """A tilted gantry in DICOM, and as dcm2niix writes it."""
    slant = 3 * np.tan(np.radians(degrees))
    series.save(tmp_path / "dicom", series.stack(10, slant=slant, PixelSpacing=[1.2, 1.0]))
    affine = np.diag([1.0, 1.2, 3, 1])
    affine[1, 2] = slant
    voxels = RNG.integers(0, 99, (20, 24, 10), dtype=np.int16)
    refused = []
    for path in (tmp_path / "dicom", volume(tmp_path / "a.nii", voxels, affine)):
        try:
            read(path)
        except ReadError as error:
            refused.append(str(error).partition(": ")[2])
    assert len(refused) in (0, 2)
    assert len(set(refused)) < 2
