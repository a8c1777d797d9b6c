"""The report that goes into the PACS: valid, about the right patient, silent about all others."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from indexer.scan import ScanRef
from retrieval.answer import NOTICE, Answer, Evidence, Hit, Query
from retrieval.service.structured_report import structured_report
from tests.support.images import phantom, write_dicom
from tests.support.paths import ROOT

OTHERS = ("c-other-case", "p-other-patient", "/somewhere/other.nii.gz", "note about c-other-case")


def answer(**evidence: Evidence) -> Answer:
    case, patient, source, note = OTHERS
    hits = [
        Hit(
            i,
            1 - i / 8,
            case,
            patient,
            {"who_grade": "4"},
            "t1",
            ScanRef(source, 0),
            3,
            2,
            ScanRef("query", 0),
            "t1",
        )
        for i in (1, 2)
    ]
    return Answer(Query("query 17", "t1", 10), hits, evidence, [note])


def vote(**probabilities: float) -> Evidence:
    prior = dict.fromkeys(probabilities, 1 / len(probabilities))
    return Evidence(probabilities, prior, [max(probabilities, key=lambda v: probabilities[v])], False, 7)


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return sorted(write_dicom(tmp_path / "series", phantom(1), PatientName="Doe^Jane").iterdir())


def items(content: Dataset) -> list[tuple[str, Any]]:
    """Names and values of all content items, whatever their depth."""
    found: list[tuple[str, Any]] = []
    for item in content.get("ContentSequence", []):
        name = item.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in item else ""
        if item.ValueType == "NUM":
            found.append((name, float(item.MeasuredValueSequence[0].NumericValue)))
        elif item.ValueType == "CODE":
            found.append((name, item.ConceptCodeSequence[0].CodeMeaning))
        elif item.ValueType == "TEXT":
            found.append((name, item.TextValue))
        found += items(item)
    return found


def invalid(report: bytes, folder: Path) -> list[str]:
    """What dciodvfy calls errors."""
    (folder / "report.dcm").write_bytes(report)
    told = subprocess.run(["dciodvfy", "-new", folder / "report.dcm"], capture_output=True, text=True)
    lines = (told.stdout + told.stderr).splitlines()
    assert "Comprehensive3DSR" in lines
    return [line for line in lines if line.startswith(("Error", "Abort"))]


def test_it_says_what_the_answer_says(series: list[Path]) -> None:
    report = pydicom.dcmread(
        BytesIO(structured_report(answer(who_grade=vote(**{"2": 0.25, "4": 0.75})), series, "imagenet abc"))
    )
    said = items(report)
    assert ("Similarity of the case at rank 1", 0.875) in said
    assert ("Similarity of the case at rank 2", 0.75) in said
    assert ("Share of similar cases with who_grade 2", 0.25) in said
    assert ("Share of similar cases with who_grade 4", 0.75) in said
    assert ("who_grade of most similar cases", "4") in said
    assert ("Algorithm Name", "cbir") in said
    assert ("Algorithm Parameters", "encoder: imagenet abc") in said
    assert ("Comment", NOTICE) in said
    assert NOTICE in report.SeriesDescription
    assert (report.CompletionFlag, report.VerificationFlag) == ("PARTIAL", "UNVERIFIED")


def test_without_a_vote_it_says_so(series: list[Path]) -> None:
    silent = Evidence({"2": 0.5, "4": 0.5}, {"2": 0.5, "4": 0.5}, ["2", "4"], True, 1)
    said = items(pydicom.dcmread(BytesIO(structured_report(answer(who_grade=silent), series, "e 1"))))
    assert ("who_grade of most similar cases", "inconclusive") in said


def test_it_belongs_to_the_study_and_is_an_object_of_its_own(series: list[Path]) -> None:
    image = pydicom.dcmread(series[0])
    reports = [pydicom.dcmread(BytesIO(structured_report(answer(), series, "e 1"))) for _ in range(2)]
    for report in reports:
        assert report.StudyInstanceUID == image.StudyInstanceUID
        assert (report.PatientID, report.PatientName) == (image.PatientID, image.PatientName)
        assert report.SeriesInstanceUID != image.SeriesInstanceUID
        referenced = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
        assert len(referenced.ReferencedSOPSequence) == len(series)
    assert reports[0].SOPInstanceUID != reports[1].SOPInstanceUID


def test_it_is_silent_about_other_patients(series: list[Path]) -> None:
    report = structured_report(answer(who_grade=vote(**{"2": 0.5, "4": 0.5})), series, "e 1")
    for word in OTHERS:
        assert word.encode() not in report


@pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is missing: apt-get install dicom3tools"
)
@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"PatientAge": "42", "StudyDate": "2019.08.17", "StudyDescription": "x" * 80, "PatientWeight": 75},
        {
            "SpecificCharacterSet": "ISO_IR 100",
            "PatientName": "Müller^Jörg",
            "StudyID": "17",
            "PatientSex": "M",
        },
    ],
    ids=["bare", "invalid", "latin"],
)
def test_it_is_valid_whatever_the_images_lack_or_break(tmp_path: Path, tags: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = sorted(write_dicom(tmp_path / "series", phantom(1), **tags).iterdir())
    long = "ä véry long läbel, längér than a code meaning may be, by far"
    evidence = {"who_grade": vote(**{"2": 0.3, "4": 0.7}), long: vote(**{"one\\1": 0.5, "two": 0.5})}
    report = structured_report(answer(**evidence), files, "imagenet abc")
    assert invalid(report, tmp_path) == []
    read = pydicom.dcmread(BytesIO(report))
    assert str(read.PatientName) == tags.get("PatientName", "")
    shares = [name for name, value in items(read) if value == 0.5]
    assert len(set(shares)) == 2, "cut to the longest code meaning, values stay apart"


@pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is missing: apt-get install dicom3tools"
)
@pytest.mark.real
def test_it_is_valid_for_a_real_series(real: Path, tmp_path: Path) -> None:
    files = sorted((real / "dicom-t1").glob("*.dcm"))[:5]
    report = structured_report(answer(who_grade=vote(**{"2": 0.5, "4": 0.5})), files, "e 1")
    assert invalid(report, tmp_path) == []


@pytest.mark.slow
def test_making_it_prints_no_name(tmp_path: Path) -> None:
    write_dicom(tmp_path / "series", phantom(1), PatientName="Plantedname")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.service.test_structured_report import answer, structured_report\n"
        "structured_report(answer(), sorted(Path(sys.argv[1]).iterdir()), 'e 1')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "series"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "Plantedname" not in done.stdout + done.stderr
