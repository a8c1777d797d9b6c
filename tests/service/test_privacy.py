"""Identifiers planted in headers must appear in nothing that cbir writes or prints."""

from __future__ import annotations

import contextlib
import sys

import nibabel as nib
import numpy as np

from retrieval.cli import main
from tests.support.images import phantom, write_dicom

PLANTED = {
    "PatientName": "Plantedname^Jane",
    "PatientBirthDate": "19610203",
    "AccessionNumber": "ACC-777-PLANTED",
    "InstitutionName": "Planted General Hospital",
    "ReferringPhysicianName": "Plantedref^Otto",
    "SeriesDescription": "t1 post plantedseries",
    "StudyDescription": "plantedstudy",
    "PatientComments": "plantedcomment",
    "StudyDate": "20190817",
    "StationName": "PLANTEDSTATION",
    "PatientAddress": "Planted Street 5",
    "ProtocolName": "plantedprotocol",
    "ImageComments": "plantedimage",
}
SECRETS = [*PLANTED.values(), "Plantedname", "Jane", "Plantedref", "PID-4711-planted"]


def test_no_identifier_reaches_the_index_the_report_or_the_output(tmp_path, monkeypatch, capfd):
    study = write_dicom(tmp_path / "in" / "a", phantom(1), PatientID="PID-4711-planted", **PLANTED)
    write_dicom(tmp_path / "in" / "b", phantom(2), PatientID="PID-4712-planted", **PLANTED)
    image = nib.Nifti1Image(phantom(3), np.diag([1, 1, 3, 1]))
    image.header["descrip"] = b"Plantedname^Jane"
    image.header["db_name"] = b"Planted"
    nib.save(image, tmp_path / "in" / "c_t1.nii.gz")
    damaged = next((tmp_path / "in" / "b").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-500])

    printed = ""
    index = ("--index", str(tmp_path / "out" / "index"))
    for arguments in (
        ["index", str(tmp_path / "in"), *index],
        ["index", str(tmp_path / "in"), *index, "--json"],
        ["query", str(study), *index, "--json", "--report", str(tmp_path / "out" / "report.html")],
        ["query", str(study), *index],
        ["query", str(study), *index, "--exclude-patient", "PID-4711-planted"],
        ["info", "--cases", "--failures", "--check", *index],
        ["verify", *index],
        ["compact", *index],
    ):
        monkeypatch.setattr(sys, "argv", ["cbir", *arguments])
        with contextlib.suppress(SystemExit):
            main()
        printed += "".join(capfd.readouterr())

    written = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert any(path.name == "report.html" for path in written)
    assert any(path.name == "catalog.sqlite" for path in written)
    assert "t1" in printed
    for secret in SECRETS:
        assert secret.lower() not in printed.lower(), secret
        for path, content in written.items():
            for encoding in ("utf-8", "utf-16-le"):
                assert secret.lower().encode(encoding) not in content.lower(), (secret, path)
