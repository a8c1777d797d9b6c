"""Places in words: against coordinates that any atlas knows, and unknown where the space is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer import discovery
from indexer.atlas import SPACES, lobe, space_of
from indexer.scan import Scan

KNOWN = {
    (-40, 35, 25): "left frontal",
    (40, 35, 25): "right frontal",
    (-40, -60, 48): "left parietal",
    (50, -15, -25): "right temporal",
    (-12, -92, 2): "left occipital",
    (38, 6, 2): "right insula",
    (-11, -18, 8): "left thalamus",
    (0, -37, 13): "corpus callosum",
    (2, 28, 5): "corpus callosum",
    (3, -28, -32): "brainstem",
}


@pytest.mark.parametrize("place", KNOWN)
def test_places_that_anybody_knows(place: tuple[int, int, int]) -> None:
    assert lobe(place, "MNI152") == KNOWN[place]


@given(
    st.tuples(*[st.floats(-400, 400) | st.just(float("nan"))] * 3),
    st.sampled_from([*SPACES, "Talairach", None]),
)
def test_nothing_is_said_of_what_is_not_known(place: tuple[float, float, float], space: str | None) -> None:
    said = lobe(place, space)
    if space not in SPACES:
        assert said is None
        return
    held = SPACES[space]
    if not all(low <= at <= high + 4 for at, low, high in zip(place, held.low, held.high, strict=True)):
        assert said is None
    if said is not None and said.startswith(("left ", "right ")):
        assert said.startswith("left") == (place[0] < held.middle)


def scan_of(shape: tuple[int, int, int], spacing: float, origin: tuple[float, float, float]) -> Scan:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = origin
    return Scan(np.zeros(shape), Path("s"), (spacing,) * 3, affine)


def test_a_space_is_known_by_its_field_of_view() -> None:
    brats = scan_of((240, 240, 155), 1, (-239, 0, 0))
    assert space_of(brats) == "SRI24"
    assert space_of(scan_of((120, 120, 78), 2, (-238.5, 0.5, 0.5))) == "SRI24"
    assert space_of(scan_of((240, 240, 1), 1, (-239, 0, 58))) == "SRI24"
    assert space_of(scan_of((182, 218, 182), 1, (-91, -126, -72))) == "MNI152"
    assert space_of(scan_of((91, 109, 91), 2, (-90, -126, -72))) == "MNI152"
    assert space_of(scan_of((240, 240, 155), 1, (-120, -120, -70))) is None
    assert space_of(scan_of((256, 256, 155), 1, (-239, 0, 0))) is None
    assert space_of(scan_of((240, 240, 1), 1, (-239, 0, 400))) is None
    assert space_of(replace(brats, affine=None)) is None
    assert brats.affine is not None
    tilted = brats.affine.copy()
    tilted[1, 2] = 0.1
    assert space_of(replace(brats, affine=tilted)) is None


@pytest.mark.real
def test_outlines_of_atlas_volumes_lie_in_lobes(real: Path) -> None:
    (scan,) = [s for s in discovery.read(real / "volumes" / "TCGA-HT-7473") if s.sequence == "flair"]
    assert space_of(scan) == "SRI24"
    assert scan.region is not None
    assert scan.affine is not None
    middle = np.argwhere(scan.region).mean(0) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    said = lobe(middle, space_of(scan))
    assert said is not None
    # the brain's own midline tells the side, whatever the atlas says
    brain = np.argwhere(scan.voxels > 0).mean(0)[0]
    assert said.startswith("left") == (np.argwhere(scan.region).mean(0)[0] < brain)
    (native, *_) = discovery.read(real / "volumes" / "TCGA-FG-6692")
    assert space_of(native) is None
