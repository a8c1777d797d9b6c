"""Mutated files of every kind, sent to the service: each is answered or refused, and it goes on."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cbir import create_index
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_nifti
from tests.support.mutations import mutant, mutated, seeds, zipped
from tests.support.service import serving


@pytest.mark.slow
def test_mutated_files_end_no_service(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tiny: TinyEncoder,
    cohort: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    measured: Callable[..., None],
) -> None:
    caplog.set_level(logging.WARNING)
    count = request.config.getoption("--fuzz")
    first = request.config.getoption("--fuzz-seed")
    with create_index(tmp_path / "index", encoder=tiny) as index:
        index.add(cohort(6), calibrate=False)
    good, statuses = seeds(), Counter[int]()
    scan = write_nifti(tmp_path / "N-01_t1ce.nii.gz", phantom(9, 3)).read_bytes()
    with serving(tmp_path / "index", queue=2) as client:
        for number in range(first, first + count):
            seed, files = mutant(good, number)
            ((name, content),) = files.items() if len(files) == 1 else [("a.zip", zipped(files))]
            dice = random.Random(-number)
            if name == "a.zip" and dice.random() < 0.3:
                content = mutated(zipped(seed.files(number, seed.content)), dice)
            address = "/index" if dice.random() < 0.02 else "/query"
            reply = client.post(address, files={"file": (name, content)})
            assert reply.status_code in (200, 202, 413, 422), (number, reply.status_code, reply.text)
            statuses[reply.status_code] += 1
            if reply.status_code == 202:
                job = client.app.state.service.jobs.get(reply.json()["job"])
                assert job.wait(600), number
            if number % 1000 == 0:
                assert client.post("/query", files={"file": ("N-01_t1ce.nii.gz", scan)}).status_code == 200
        assert client.get("/health").status_code == 200
    assert [record.getMessage() for record in caplog.records if record.name.startswith("retrieval")] == []
    measured(
        "fuzz through the service", {"files": count, "statuses": {str(k): n for k, n in statuses.items()}}
    )
