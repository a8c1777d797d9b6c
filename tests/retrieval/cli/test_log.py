"""What cbir did is told; who was in the images is not."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.cli import log
from tests.support.images import phantom, write_dicom
from tests.support.paths import ROOT

PLANTED = {
    "PatientName": "Plantedname^Anna",
    "PatientID": "plantedid",
    "PatientBirthDate": "19011231",
    "AccessionNumber": "plantedaccession",
    "InstitutionName": "Plantedhospital",
    "StudyDescription": "plantedstudy",
    "SeriesDescription": "ax t1 plantedseries",
    "StudyInstanceUID": "1.2.840.99999",
}
LINE = re.compile(
    r"\d{4}-\d\d-\d\d [\d:,]+ (DEBUG|INFO|WARNING|ERROR) (cbir|indexer|retrieval|pacs)[\w.]*: .+"
)


def run(*arguments: object) -> tuple[str, list[str]]:
    """Data that a command prints, and the lines of its log."""
    command = [sys.executable, "-m", "retrieval.cli", *map(str, arguments), "--verbose"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if LINE.fullmatch(line)]


@pytest.mark.slow
def test_the_log_tells_what_was_done_and_nothing_of_a_patient(tmp_path: Path) -> None:
    root = tmp_path / "Plantedfolder^Otto"
    for i in range(3):
        ids = PLANTED | {"PatientID": f"plantedid{i}", "StudyInstanceUID": f"1.2.840.99999.{i}"}
        write_dicom(root / f"Plantedpatient{i}", phantom(i, 3), **ids)
    (root / "labels.csv").write_text("participant_id,who_grade\nplantedid0,plantedgrade\n")
    index = tmp_path / "plantedindex"
    told = []
    _, lines = run("index", root, "--index", index, "--labels", root / "labels.csv", "--keep-ids")
    assert any("3 sources filed, 0 unchanged, 0 failed" in line for line in lines)
    told += lines
    _, lines = run("query", root / "Plantedpatient0", "--index", index, "--where", "who_grade=plantedgrade")
    assert any("slices asked of 3 cases" in line for line in lines)
    told += lines
    for verb in ("info", "verify", "compact"):
        told += run(verb, "--index", index)[1]
    assert not [line for line in told if re.search("planted|19011231|99999|anna|otto", line, re.IGNORECASE)]


@pytest.mark.slow
def test_who_does_not_ask_gets_no_log(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "retrieval.cli", "demo", str(tmp_path / "d"), "--patients", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (0, "")


def test_paths_texts_of_errors_and_other_peoples_logs_stay_out(capsys: pytest.CaptureFixture[str]) -> None:
    log.start(verbose=True)
    ours, theirs = logging.getLogger("indexer.anything"), logging.getLogger("pydicom.anything")
    ours.warning("%s, and %s: %d volumes", Path("Planted"), "a/Planted/b", 3)
    try:
        raise ValueError("Planted")
    except ValueError:
        ours.exception("a volume was refused")
    theirs.error("Planted")
    logging.getLogger("py.warnings").warning("Planted")
    log.start()
    ours.info("Planted")
    err = capsys.readouterr().err
    assert "Planted" not in err
    assert "…, and …: 3 volumes" in err
    assert (
        "a volume was refused: ValueError in test_paths_texts_of_errors_and_other_peoples_logs_stay_out:"
        in err
    )
    assert len(err.splitlines()) == 2


def test_strangers_cannot_fill_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """uvicorn warns of each request that is no HTTP; errors of the server are told."""
    for verbose in (False, True):
        log.start(verbose)
        server = logging.getLogger("uvicorn.error")
        server.warning("Invalid HTTP request received.")
        server.error("something broke")
        told = capsys.readouterr().err
        assert "something broke" in told
        assert "Invalid HTTP" not in told
    log.start()
