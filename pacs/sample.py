"""The demo's phantoms as DICOM: what a scanner would send of them. Synthetic, and marked so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import nibabel
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

DESCRIPTION = {"t1ce": "AX T1 POST GD", "flair": "AX FLAIR", "t1": "AX T1", "t2": "AX T2"}


def write_study(
    volumes: Mapping[str, Path], folder: Path, patient_id: str, **tags: object
) -> dict[str, list[Path]]:
    """Write one study: a series for each sequence.

    Parameters
    ----------
    volumes : mapping
        Sequence to a NIfTI file.
    folder : Path
        New, or empty.
    patient_id : str
    **tags
        DICOM elements by keyword, for every image.

    Returns
    -------
    dict
        Sequence to the files of its series, in order.
    """
    study = generate_uid()
    return {
        sequence: list(_series(path, folder / sequence, sequence, number, patient_id, study, tags))
        for number, (sequence, path) in enumerate(volumes.items(), start=1)
    }


def _series(
    volume: Path,
    folder: Path,
    sequence: str,
    number: int,
    patient_id: str,
    study: str,
    tags: Mapping[str, object],
) -> Iterator[Path]:
    image = nibabel.as_closest_canonical(nibabel.load(volume))  # type: ignore[no-untyped-call]
    voxels, affine = np.asarray(image.dataobj), image.affine
    # DICOM's axes run to the patient's left, posterior and head
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    right, back, up = (np.linalg.norm(lps[:3, axis]) for axis in range(3))
    series, frame = generate_uid(), generate_uid()
    folder.mkdir(parents=True)
    for z in range(voxels.shape[2]):
        # rows run from front to back, columns from the patient's right to left: both voxel axes turned
        corner = lps @ [voxels.shape[0] - 1, voxels.shape[1] - 1, z, 1]
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.PatientName, ds.PatientID = "SYNTHETIC^PHANTOM", patient_id
        ds.PatientBirthDate = ds.PatientSex = ds.AccessionNumber = ds.ReferringPhysicianName = ""
        ds.StudyDate, ds.StudyTime, ds.StudyID = "20200101", "120000", "1"
        ds.StudyDescription, ds.SeriesDescription = "SYNTHETIC", DESCRIPTION.get(sequence, sequence)
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "MR", number, z + 1
        ds.Manufacturer, ds.PositionReferenceIndicator, ds.PatientPosition = "cbir demo", "", "HFS"
        ds.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "SE", "NONE", ""
        ds.MRAcquisitionType, ds.EchoTime, ds.RepetitionTime, ds.EchoTrainLength = "2D", "", "", ""
        ds.ImagePositionPatient = [round(float(x), 4) for x in corner[:3]]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [round(back, 4), round(right, 4)], round(up, 4)
        ds.Rows, ds.Columns = voxels.shape[1], voxels.shape[0]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelData = voxels[::-1, ::-1, z].T.clip(0, 65535).astype("<u2").tobytes()
        for keyword, value in tags.items():
            setattr(ds, keyword, value)
        file = folder / f"{z:03}.dcm"
        ds.save_as(file, enforce_file_format=True)
        yield file
