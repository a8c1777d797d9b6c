"""Try it: a real Orthanc with the plugin, the service, and the synthetic cohort, on loopback (``make pacs``).

Sends one study as a scanner does, prints the address to open, and stops everything on Ctrl-C.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

import pydicom

from cbir import CbirError
from pacs.installation import CBIR, Installation, until
from pacs.sample import write_study

SEQUENCES = ("t1ce", "flair")
CASE = "SYNTH-1-001"


def main() -> None:
    """Run until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("demo/pacs"), help="where cohort, index and logs are kept"
    )
    parser.add_argument("--patients", type=int, default=24, help="size of the cohort")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        run(arguments.folder.absolute(), arguments.patients)
    except CbirError as error:
        sys.exit(f"pacs: {error}")
    except KeyboardInterrupt:
        print("stopped")


def _interrupt(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)  # who presses twice must not leave a server behind
    print("\nstopping…", file=sys.stderr)
    raise KeyboardInterrupt


def run(folder: Path, patients: int) -> None:
    """Start everything, and wait until it is interrupted.

    Raises
    ------
    CbirError
        If something cannot start, or ends by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="cbir-pacs-") as scratch,
        Installation(Path(scratch), logs=folder, stable_age=2, http=8042, dicom=4242, service=8043) as pacs,
    ):
        print(f"cohort    {patients} synthetic patients in {folder / 'cohort'}", flush=True)
        cbir("demo", folder / "cohort", "--patients", patients)
        cbir("index", folder / "cohort", "--index", folder / "index")
        # Orthanc begins empty each time, and so does what is indexed from it
        shutil.copytree(folder / "index", pacs.index)
        pacs.start_service()
        print(f"service   {pacs.service_url}", flush=True)
        pacs.start_orthanc()
        print(f"Orthanc   {pacs.orthanc_url} (DICOM: {pacs.dicom_port})", flush=True)

        study = new_study(folder / "new", Path(scratch) / "study")
        pacs.send([file for files in study.values() for file in files])
        until("the study in the index", lambda: (pacs.followed() or {}).get("filed", 0) >= len(study))
        uid = pydicom.dcmread(study[SEQUENCES[0]][0], stop_before_pixels=True).StudyInstanceUID
        with pacs.asking_orthanc() as orthanc:
            (found,) = orthanc.post("/tools/lookup", content=uid).json()
        print(f"study     sent by C-STORE, stable, indexed: {', '.join(study)}")
        print(f"\nopen      {pacs.orthanc_url}/app/explorer.html#study?uuid={found['ID']}")
        print("          and press “Find similar cases”. Ctrl-C stops everything.", flush=True)
        while (name := pacs.ended()) is None:
            time.sleep(0.5)
        raise CbirError(name, "has ended", f"see {pacs.log_file(name)}")


def cbir(*arguments: object) -> None:
    """Run a command of cbir.

    Raises
    ------
    CbirError
        If it fails; it has said why.
    """
    if subprocess.run([*CBIR, *map(str, arguments)], stdout=subprocess.DEVNULL).returncode:
        raise CbirError(f"cbir {arguments[0]}", "has failed", "see above")


def new_study(cohort: Path, folder: Path) -> dict[str, list[Path]]:
    """A synthetic patient that the cohort does not hold, as DICOM."""
    cbir("demo", cohort, "--patients", 1, "--seed", 1)
    volumes = {sequence: cohort / CASE / f"{CASE}_{sequence}.nii.gz" for sequence in SEQUENCES}
    shutil.rmtree(folder, ignore_errors=True)
    return write_study(volumes, folder, patient_id=CASE)


if __name__ == "__main__":
    main()
