"""From the last slice that a scanner sends to the series being answerable by query.

A series of 155 slices goes by C-STORE to a real Orthanc with the plugin, configured as in
docs/deployment.md. Orthanc waits `StableAge` seconds for more slices before it calls a series stable:
that time is told apart from ours, which begins where Orthanc says so and ends with the first query that
finds the series. Each round is a new patient; the rounds are all in the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.uid import generate_uid

from benchmarks import results
from indexer.case_index import CaseIndex
from indexer.demo import write_cohort
from indexer.encoder import load_encoder
from indexer.ingest import ingest
from pacs.installation import HERE, Installation, until
from pacs.sample import write_study

SLICES = 155
PATIENTS = 24


def series(folder: Path) -> list[Path]:
    """A slab of a real series, or noise in the shape of one."""
    real = sorted((results.DATA / "dicom-t1").glob("*.dcm"))
    if real:
        start = (len(real) - SLICES) // 2
        return real[start : start + SLICES]
    folder.mkdir()
    voxels = np.random.default_rng(0).integers(0, 1000, (240, 240, SLICES), np.int16)
    noise = nibabel.Nifti1Image(voxels, np.eye(4))  # type: ignore[no-untyped-call]
    nibabel.save(noise, folder / "noise.nii.gz")
    return write_study({"t1": folder / "noise.nii.gz"}, folder / "dicom", "noise")["t1"]


def another(files: list[Path], folder: Path, number: int) -> Iterator[Path]:
    """The series as that of another patient; moved by some pixels, since equal images are embedded once."""
    patient, study, uid = f"LIVE-{number}", generate_uid(), generate_uid()
    folder.mkdir()
    for file in files:
        image = pydicom.dcmread(file)
        image.PixelData = np.roll(image.pixel_array, number + 1, axis=1).tobytes()
        image.PatientID, image.StudyInstanceUID, image.SeriesInstanceUID = patient, study, uid
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.save_as(folder / file.name)
        yield folder / file.name


def measured(pacs: Installation, files: list[Path]) -> dict[str, float]:
    """Seconds of one round."""
    header = pydicom.dcmread(files[0], stop_before_pixels=True)
    with CaseIndex.open(pacs.index) as index:
        case = index.case(str(header.PatientID), str(header.StudyInstanceUID))
    with pacs.asking_orthanc() as orthanc, pacs.asking_service() as service:
        start = time.monotonic()
        pacs.send(files)
        sent = time.monotonic()
        (found,) = orthanc.post("/tools/lookup", content=str(header.SeriesInstanceUID)).json()
        path = f"/series/{found['ID']}"
        until("a stable series", lambda: orthanc.get(path).json()["IsStable"])
        stable = time.monotonic()
        until("an answer", lambda: service.post("/query", data={"like": case, "k": "1"}).is_success)
        answered = time.monotonic()
        assert len(orthanc.get(path).json()["Instances"]) == len(files)
    return {
        "sending": round(sent - start, 2),
        "orthanc": round(stable - sent, 2),
        "ours": round(answered - stable, 2),
        "total": round(answered - sent, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    stable_age = json.loads((HERE / "orthanc.json").read_text())["StableAge"]
    encoder = load_encoder()
    taken: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cohort = write_cohort(folder / "cohort", PATIENTS)
        with CaseIndex.create(folder / "index", encoder) as index:
            ingest(index, [cohort.folder], encoder)
        files = series(folder / "noise")
        with Installation(folder, stable_age=stable_age) as pacs:
            pacs.start_service()
            pacs.start_orthanc()
            for number in range(rounds):
                taken.append(measured(pacs, list(another(files, folder / f"live-{number}", number))))
                print(taken[-1], flush=True)
    summary: dict[str, Any] = {
        name: {"median": statistics.median(values), "most": max(values)}
        for name in taken[0]
        if (values := [round[name] for round in taken])
    }
    print(summary)
    content = {"slices": len(files), "rounds": taken, "summary": summary}
    results.save("live", content, encoder=encoder.version, stable_age=stable_age, cases=PATIENTS)


if __name__ == "__main__":
    main()
