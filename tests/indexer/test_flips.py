"""One flipped bit in any file of an index: `verify` notices it, or it has no effect at all."""

from __future__ import annotations

import pytest

from tests.support.faults import flips

pytestmark = pytest.mark.slow


def test_every_flip_is_noticed_or_has_no_effect(tmp_path, request):
    found = flips.run(tmp_path, request.config.getoption("--flips"), 0, print)
    assert found["wrong"] == []
    assert found["noticed"].keys() >= {"key", "manifest.json", "calibration.json", "catalog.sqlite"}


@pytest.mark.parametrize("name", ["key", "calibration.json", "manifest.json"])
def test_each_byte_of_small_files_counts(tmp_path, name):
    sound, folder = flips.make(tmp_path / "sound"), tmp_path / "index"
    before = flips.everything(sound)
    for at in range(0, (sound / name).stat().st_size, 7 if name != "key" else 1):
        flips.flipped(sound, folder, name, at, at % 8)
        assert flips.noticed(folder) or flips.everything(folder) == before, at
