"""Small images, made for the tests."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy import ndimage


def phantom(seed: int, grade: int = 2, shape: tuple[int, int, int] = (24, 28, 10)) -> NDArray[np.float32]:
    """A noisy ellipsoid with a bright lesion whose size follows the grade; zero outside."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    head = sum(g**2 for g in grid) < 0.9
    centre = rng.uniform(-0.4, 0.4, 3)
    lesion = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < (0.1 * grade) ** 2
    volume = 100 + 40 * grid[0] + rng.normal(0, 4, shape) + 120 * lesion
    return np.where(head, volume, 0).astype(np.float32)


def write_nifti(path: Path, volume: NDArray[np.float32], spacing: tuple[float, ...] = (1, 1, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, np.diag([*spacing, 1.0])), path)
    return path


def write_cohort(root: Path, n: int, sequences: tuple[str, ...] = ("t1ce",)) -> Path:
    """Phantoms of `n` patients, with a table of their grades."""
    lines = ["participant_id\twho_grade\tsite"]
    for i in range(n):
        grade = 2 + i % 3
        lines.append(f"P-{i:02}\t{grade}\tn/a")
        for s, sequence in enumerate(sequences):
            write_nifti(root / f"P-{i:02}" / f"P-{i:02}_{sequence}.nii.gz", phantom(10 * i + s, grade))
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    return root


def write_dicom(folder: Path, volume: NDArray[np.float32], **tags: object) -> Path:
    """An axial MR series of the volume (RAS+, 1 × 1 × 3 mm), one file a slice, without extension."""
    folder.mkdir(parents=True)
    series, study = generate_uid(), generate_uid()
    for i in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, study, series
        ds.PatientID, ds.Modality, ds.InstanceNumber = "D-01", "MR", i + 1
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 3.0 * i], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [1, 1], 3
        ds.Rows, ds.Columns = volume.shape[1], volume.shape[0]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelData = volume[::-1, ::-1, i].T.clip(0).astype("<u2").tobytes()
        for name, value in tags.items():
            setattr(ds, name, value)
        pydicom.dcmwrite(folder / f"{i:03}", ds)
    return folder


def head_plane(name: str, seed: int = 0, contrast: float = 1.0) -> NDArray[np.float64]:
    """A head from above, from the front (with a jaw and eyes) or from the left (with a face and a neck)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    x, y = x + rng.normal(0, 0.03), y + rng.normal(0, 0.03)
    wide, high = rng.normal(1, 0.05, 2)

    def oval(cx: float, cy: float, rx: float, ry: float) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = ((x - cx) / rx / wide) ** 2 + ((y - cy) / ry / high) ** 2 < 1
        return found

    if name == "axial":
        head, inside = oval(0, 0, 0.7, 0.9), [oval(-0.15, 0, 0.1, 0.4), oval(0.15, 0, 0.1, 0.4)]
    elif name == "coronal":
        head = oval(0, -0.3, 0.65, 0.6) | ((abs(x) < 0.4) & (y > 0) & (y < 0.9))
        inside = [oval(-0.25, 0.2, 0.12, 0.12), oval(0.25, 0.2, 0.12, 0.12), oval(0, 0.6, 0.2, 0.1)]
    else:
        head = oval(0.1, -0.25, 0.85, 0.65) | ((x > 0.1) & (x < 0.6) & (y > 0)) | oval(-0.5, 0.3, 0.3, 0.4)
        inside = [oval(0.1, -0.2, 0.4, 0.12), oval(0.4, 0.3, 0.15, 0.15)]
    image = np.where(ndimage.binary_erosion(head, iterations=5), 110.0, 220.0)  # skull
    for part in inside:
        image[part & head] += 60 * contrast
    return np.where(head, image + rng.normal(0, 1, image.shape), 0).clip(0)
