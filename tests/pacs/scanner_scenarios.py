"""A study as a scanner sends it, through a real Orthanc. Run by ``test_pacs.py``, in this order.

The series come in two parts: the composite of the first is made anew when the others are there, and when
one of them is taken away.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cbir import create_index
from indexer.case_index import CaseIndex
from indexer.sequences import CHANNELS, COMPOSITE
from pacs.installation import missing, until
from tests.pacs.pacs_scenarios import World, orthanc_id, uid
from tests.support.paths import REAL
from tests.test_scanner import ASKING, PATIENTS, write_patient, write_sent

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data beside the checkout")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if absent := missing():
        pytest.skip(f"not installed: {' '.join(absent)} (apt-get install them)")
    folder = tmp_path_factory.mktemp("scanner")
    with create_index(folder / "index") as index:
        index.add(write_patient(folder / "held", PATIENTS[1]))
    study = write_sent(write_patient(folder / "new", ASKING), folder / "dicom", ASKING)
    with World(folder) as world:
        world.studies = {ASKING: {path.name: sorted(path.iterdir()) for path in study.iterdir()}}
        world.start_service()
        world.start_orthanc()
        yield world


@pytest.fixture
def study(world: World) -> dict[str, list[Path]]:
    """The files of each series of the patient."""
    return world.studies[ASKING]


def composite(world: World, study: dict[str, list[Path]]) -> NDArray[np.float32]:
    """Embeddings of the study's composite, as they are filed now."""
    with CaseIndex.open(world.index) as index:
        contents = index.catalog.contents()
        case = index.case(ASKING, uid(study["t1"], "StudyInstanceUID"))
        scans = [
            number
            for number, sequence in enumerate(contents.scan_sequence)
            if sequence == COMPOSITE and contents.case_ids[contents.scan_case[number]] == case
        ]
        rows = np.flatnonzero(np.isin(contents.slice_scan, scans))
        return index.catalog.embeddings(contents.slice_ids[rows])


def test_two_series_are_seen_together_as_soon_as_both_are_there(
    world: World, study: dict[str, list[Path]]
) -> None:
    world.send([*study["t1"], *study["flair"]])
    world.caught_up(filed=2, failed=0)
    assert len(composite(world, study)) > 5


def test_when_the_others_come_late_they_are_seen_with_them(
    world: World, study: dict[str, list[Path]]
) -> None:
    two = composite(world, study)
    world.send([*study["t2"], *study["t1ce"], *study["localizer"]])
    world.caught_up(filed=4)
    four = composite(world, study)
    assert not np.array_equal(two, four)
    found = world.similar(uid(study["flair"]))
    assert found["query"]["sequence"] == "flair"


def test_a_study_asks_with_all_of_its_sequences(world: World, study: dict[str, list[Path]]) -> None:
    def asked(**what: str) -> dict[str, Any]:
        with world.asking_orthanc() as orthanc:
            reply = orthanc.get("/cbir/similar", params=what)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    of_study = uid(study["t1"], "StudyInstanceUID")
    found = asked(study=of_study)
    assert set(found["query"]["sequence"].split("+")) == set(CHANNELS)
    (hit,) = found["hits"]  # the patient's own case is left out
    assert not [note for note in found["notes"] if "together" in note]
    assert asked(study=orthanc_id(world, of_study))["hits"][0]["score"] == hit["score"]
    with CaseIndex.open(world.index) as index:
        case = index.case(ASKING, of_study)
    with world.asking_service() as service:
        filed = service.post("/query", data={"like": case}).json()["hits"][0]
    assert filed["case_id"] == hit["case_id"]
    assert filed["score"] == pytest.approx(hit["score"], abs=1e-4), "what is filed is what asks"
    with world.asking_orthanc() as orthanc:
        unknown = orthanc.get("/cbir/similar", params={"study": "1.2.3"})
    assert (unknown.status_code, "no such study" in unknown.json()["detail"]) == (404, True)


def test_when_one_is_deleted_the_others_are_seen_together(world: World, study: dict[str, list[Path]]) -> None:
    four = composite(world, study)
    with world.asking_orthanc() as orthanc:
        orthanc.delete(f"/series/{orthanc_id(world, uid(study['t2']))}")
    world.caught_up(filed=3)
    three = composite(world, study)
    assert len(three) > 5
    assert not np.array_equal(three, four)
    with world.asking_orthanc() as orthanc:
        for name in ("t1", "t1ce"):
            orthanc.delete(f"/series/{orthanc_id(world, uid(study[name]))}")
    world.caught_up(filed=1)
    until("one series alone", lambda: not len(composite(world, study)))
