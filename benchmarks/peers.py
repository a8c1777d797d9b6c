"""Every DICOM series below a folder as dcm2niix converts it, beside what the reader makes of it.

Shape, affine and voxels are compared, volume by volume. dcm2niix writes what it can; the reader may refuse
instead, and of many volumes takes the first. What must never be is a difference.

Without a folder, the series of the shared data, those that a scanner would have sent of the shared volumes,
and generated ones of every shape.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dcm2niix
import nibabel
import numpy as np
from numpy.typing import NDArray

from benchmarks import results, series
from indexer.errors import ReadError
from indexer.readers import dicom
from indexer.readers.limits import MAX_VOLUMES
from indexer.readers.source import Source
from indexer.scan import Scan

SCANNER = results.ROOT.parent / "shared" / "tools" / "as-the-scanner-sends"
PATIENTS = 2
"""Patients of `volumes-2mm` that are sent as a scanner would."""


@dataclass(frozen=True)
class Comparison:
    """A series, read and converted.

    Attributes
    ----------
    files, scans, volumes : int
        Files of the series, scans that were read of it, volumes that dcm2niix wrote.
    verdict : str
        ``equal``, ``first of N``, ``refused: REASON``, or ``differs: HOW``.
    """

    files: int
    scans: int
    volumes: int
    verdict: str


Volume = tuple[NDArray[np.float32], NDArray[np.float64]]


def version() -> str:
    """Which dcm2niix it is."""
    said = subprocess.run([dcm2niix.bin, "-v"], capture_output=True, text=True).stdout
    return f"dcm2niix {said.split()[-1]}"


def convert(folder: Path, out: Path) -> None:
    """Let dcm2niix convert a folder. What it cannot convert is not there afterwards."""
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "%s_%u", "-o", str(out), str(folder)]
    subprocess.run(command, capture_output=True, check=False, timeout=600)


def converted(files: list[Path]) -> Iterator[Volume]:
    """The volumes that dcm2niix makes of files, in RAS+."""
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "in", Path(name) / "out"
        folder.mkdir()
        out.mkdir()
        for number, file in enumerate(files):
            (folder / f"{number:06d}.dcm").symlink_to(file.resolve())
        convert(folder, out)
        for file in sorted(out.glob("*.nii")):
            image = nibabel.as_closest_canonical(nibabel.load(file))  # type: ignore[arg-type]
            voxels = np.asarray(image.dataobj, np.float32)
            for each in np.moveaxis(voxels.reshape(*voxels.shape[:3], -1), 3, 0):
                yield each, np.asarray(image.affine)


def difference(scan: Scan, volume: Volume) -> str | None:
    """How a scan differs from a volume; None if it does not."""
    voxels, affine = volume
    if scan.affine is None:
        return "has no place"
    if scan.voxels.shape != voxels.shape:
        return f"shape {scan.voxels.shape}, not {voxels.shape}"
    if (apart := np.abs(scan.affine - affine).max()) > 0.01:
        return f"affine apart by {apart:.3g}"
    if (apart := np.abs(scan.voxels - voxels).max()) > 1e-5 * max(1.0, float(np.abs(voxels).max())):
        return f"values apart by {apart:.3g}"
    return None


def compare(source: Source) -> Comparison:
    """One series."""
    files = len(source.files)
    volumes = list(converted(list(source.files)))
    try:
        scans = dicom.read(source)
    except ReadError as error:
        return Comparison(files, 0, len(volumes), f"refused: {error.reason}")
    left = list(volumes)
    for scan in scans:
        found = next((n for n, volume in enumerate(left) if difference(scan, volume) is None), None)
        if found is None:
            how = difference(scan, left[0]) if left else "dcm2niix has no such volume"
            return Comparison(files, len(scans), len(volumes), f"differs: {how}")
        left.pop(found)
    if not left:
        verdict = "equal"
    elif len(volumes) > MAX_VOLUMES:
        verdict = f"first of {len(volumes)}"
    else:
        verdict = f"differs: {len(left)} volumes are missing"
    return Comparison(files, len(scans), len(volumes), verdict)


def compared(root: Path) -> dict[str, Comparison]:
    """All series below a folder, by their paths."""
    files = [file for file in sorted(root.rglob("*")) if file.is_file() and dicom.is_dicom(file)]
    sources, failures = dicom.series(files, root)
    for failure in failures:
        print(failure, file=sys.stderr)
    return {source.path.relative_to(root).as_posix(): compare(source) for source in sources}


def generated() -> dict[str, Comparison]:
    """All of `series.SHAPES`, by their names."""
    found = {}
    for name, shape in series.SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            series.save(Path(folder), shape())
            (found[name],) = compared(Path(folder)).values()
    return found


def send(folder: Path, patients: int) -> None:
    """Write studies as a scanner would have sent the shared volumes."""
    volumes = results.DATA / "volumes-2mm"
    names = sorted(path.name for path in volumes.iterdir() if (path / f"{path.name}_t1ce.nii.gz").is_file())
    command = [sys.executable, str(SCANNER), str(volumes), str(folder), *names[:patients]]
    subprocess.run(command, check=True, capture_output=True)


def sent(patients: int = PATIENTS) -> dict[str, Comparison]:
    """The series of such studies."""
    with tempfile.TemporaryDirectory() as folder:
        send(Path(folder), patients)
        return compared(Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="where to look for DICOM series")
    folders = parser.parse_args().folders
    logging.disable(logging.WARNING)
    if folders:
        tables = {str(folder): compared(folder) for folder in folders}
    else:
        tables = {
            "shared series": compared(results.DATA / "dicom-t1"),
            "as a scanner would have sent shared volumes": sent(),
            "generated": generated(),
        }
    for name, table in tables.items():
        for path, found in table.items():
            print(f"{name}: {path}: {found.files} files, {found.verdict}")
    if not folders:
        kept = {name: {path: vars(found) for path, found in table.items()} for name, table in tables.items()}
        results.save("peers", kept, encoder="none", peer=version())
    sys.exit(any(c.verdict.startswith("differs") for table in tables.values() for c in table.values()))


if __name__ == "__main__":
    main()
