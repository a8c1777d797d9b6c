"""Identifiers planted wherever images, their folders and tables can hold one; each is a word of its own."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from nibabel.nifti1 import Nifti1Extension
from PIL import Image, PngImagePlugin
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_dict
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.support.images import phantom, write_dicom

BEGINNING = "qzxv"
"""All begin so, and nothing else does."""

OWN = ("Patient", "Referring", "Accession", "Institution", "StudyID", "StudyDescription", "IssuerOf")
_WORD = re.compile(rb"%b\d{5}" % BEGINNING.encode())
_TEXTS = {"PN": 64, "LO": 64, "SH": 16, "LT": 1000, "ST": 500, "UT": 1000, "UC": 500, "CS": 16, "AE": 16}
_MEANT = {  # what the reader acts on, so that it is no image any more with another word in it
    "SpecificCharacterSet",
    *("ImageType", "Modality", "PhotometricInterpretation", "ImageComments", "PresentationIntentType"),
    *(
        "BurnedInAnnotation",
        "ComplexImageComponent",
        "AcquisitionContrast",
        "FrameType",
        "PatientIdentityRemoved",
    ),
    *("PixelPresentation", "VolumetricProperties", "VolumeBasedCalculationTechnique", "MRAcquisitionType"),
    *("LossyImageCompression", "PixelSpacingCalibrationType", "RescaleType", "PresentationLUTShape"),
    *("EchoPulseSequence", "ConversionType", "ScanningSequence", "PatientPosition"),
}


class Plants:
    """Makes words, each once, and counts where they were planted."""

    def __init__(self) -> None:
        self.where: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """All of them."""
        return self.where.total()

    def word(self, place: str, longest: int = 64) -> str:
        """A new one, planted in a kind of place."""
        self.where[place] += 1
        return f"{BEGINNING}{self.count:05}"[:longest]

    # ---- DICOM ---------------------------------------------------------------------------------

    def dicom(self, folder: Path, seed: int, most: int) -> Path:
        """A series with words in so many of the standard's elements, in private ones, and in sequences."""
        write_dicom(folder, phantom(seed, 2 + seed % 3, (24, 28, 4)))
        tags = {name: self._value(name) for name in _elements(most, seed)}
        nested = {"PatientName": self.word("nested PN"), "PatientID": self.word("nested LO")}
        private = [self.word(f"private {vr}") for vr in ("LO", "UN", "OB")]
        for file in sorted(folder.iterdir()):
            dataset = pydicom.dcmread(file)
            for name, value in tags.items():
                setattr(dataset, name, value)
            dataset.OtherPatientIDsSequence = Sequence([_dataset(nested)])
            dataset.RequestAttributesSequence = Sequence(
                [_dataset({"ScheduledProcedureStepID": nested["PatientID"]})]
            )
            block = dataset.private_block(0x0099, "PLANTED", create=True)
            block.add_new(1, "LO", private[0])
            block.add_new(2, "UN", private[1].encode())
            block.add_new(3, "OB", private[2].encode() + b"\0")
            pydicom.dcmwrite(file, dataset)
        return folder

    def _value(self, name: str) -> str:
        vr = dictionary_VR(name)
        word = self.word(f"DICOM {vr}", _TEXTS[vr])
        return word.upper() if vr in ("CS", "AE") else f"{word}^Jane" if vr == "PN" else word

    # ---- other files ---------------------------------------------------------------------------

    def nifti(self, path: Path, seed: int) -> Path:
        """Words in all texts of a header, in extensions, and in the gzip around it."""
        image: Any = nib.Nifti1Image(phantom(seed, 2 + seed % 3), np.diag([1, 1, 3, 1]))
        for field, longest in (("descrip", 79), ("aux_file", 23), ("intent_name", 15), ("db_name", 17)):
            image.header[field] = self.word(f"NIfTI {field}", longest).encode()
        image.header.extensions.append(Nifti1Extension("comment", self.word("NIfTI comment").encode()))
        dataset = _dataset({"PatientName": self.word("NIfTI extension")})
        stream = BytesIO()
        pydicom.dcmwrite(stream, dataset, implicit_vr=True, little_endian=True)
        image.header.extensions.append(Nifti1Extension(2, stream.getvalue()))
        content = image.to_bytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.GzipFile(self.word("gzip name"), "wb", fileobj=path.open("wb")) as file:
            file.write(content)
        return path

    def raster(self, path: Path, seed: int) -> Path:
        """Words in the texts of PNG, JPEG, TIFF or WebP."""
        plane = (phantom(seed)[:, :, 5] / 2).clip(0, 255).astype(np.uint8)
        image, ending = Image.fromarray(plane), path.suffix
        options: dict[str, Any] = {}
        exif = Image.Exif()
        exif[0x010E], exif[0x013B] = self.word(f"{ending} description"), self.word(f"{ending} artist")
        if ending == ".png":
            about = PngImagePlugin.PngInfo()
            about.add_text(self.word("PNG key"), self.word("PNG text"))
            about.add_itxt("Comment", self.word("PNG international text"), zip=True)
            options["pnginfo"] = about
        elif ending == ".jpg":
            options["comment"] = self.word("JPEG comment")
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, exif=exif, **options)
        return path

    def nrrd(self, path: Path, seed: int) -> Path:
        """Words in comments and fields of NRRD, or of MetaImage."""
        volume = phantom(seed)
        sizes = " ".join(map(str, volume.shape))
        if path.suffix == ".nrrd":
            head = (
                f"NRRD0004\n# {self.word('NRRD comment')}\ntype: float\ndimension: 3\nsizes: {sizes}\n"
                f"encoding: raw\nendian: little\ncontent: {self.word('NRRD content')}\n"
                f"PatientName:={self.word('NRRD key')}\n\n"
            )
        else:
            head = (
                f"ObjectType = Image\nNDims = 3\nDimSize = {sizes}\nElementType = MET_FLOAT\n"
                f"Comment = {self.word('MetaImage comment')}\nName = {self.word('MetaImage name')}\n"
                "ElementDataFile = LOCAL\n"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(head.encode() + volume.tobytes("F"))
        return path

    def sidecar(self, path: Path) -> Path:
        """Words in the fields of a BIDS sidecar that dcm2niix fills, and nested."""
        fields = (
            "PatientName",
            "PatientID",
            "InstitutionName",
            "AccessionNumber",
            "SeriesDescription",
            "Other",
        )
        content: dict[str, Any] = {name: self.word("sidecar") for name in fields}
        path.write_text(json.dumps({**content, "Nested": {self.word("sidecar key"): [self.word("sidecar")]}}))
        return path

    def table(self, path: Path, patients: list[str], *, strangers: int = 3) -> Path:
        """Words in columns that identify, and in rows about people who are not there."""
        columns = ("patient_name", "MRN", "Date of birth", "e-mail", "address", "accession number", "comment")
        lines = ["\t".join(("participant_id", "who_grade", *columns))]
        for n, patient in enumerate([*patients, *(self.word("row of a stranger") for _ in range(strangers))]):
            cells = [self.word(f"column {column}") for column in columns]
            lines.append("\t".join((patient, str(2 + n % 3), *cells)))
        path.write_text("\n".join(lines) + "\n")
        return path


def _elements(most: int, seed: int) -> list[str]:
    """Keywords of elements of the standard that hold text; others for another seed."""
    found = [
        name
        for name in keyword_dict
        if name and dictionary_VR(name) in _TEXTS and name not in _MEANT and dictionary_VM(name) != "0"
        and pydicom.datadict.tag_for_keyword(name) >> 16 not in (0x0000, 0x0002, 0x0004, 0xFFFE)
    ]  # fmt: skip
    identity = [name for name in found if name.startswith(OWN)]
    rest = sorted(set(found) - set(identity))
    start = seed * most % max(len(rest) - most, 1)
    return [*identity, *rest[start : start + most]]


def _dataset(values: dict[str, str]) -> Dataset:
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def leaked(*contents: bytes) -> Iterator[str]:
    """The planted words in some contents, in any case and encoding, also where they are gzipped."""
    for content in contents:
        if content[:2] == b"\x1f\x8b":
            content += gzip.decompress(content)
        for encoded in (content, content[::2], content[1::2]):
            small = encoded.lower()
            for match in _WORD.finditer(small):
                yield small[max(match.start() - 40, 0) : match.end()].decode("latin-1")
