"""An answer as a DICOM structured report (TID 1500) in the study that was asked about.

It holds shares of labels and similarities by rank. Nothing in it names, shows or points to another
patient: no case ids, no labels of a single hit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import pydicom
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from pydicom.valuerep import validate_value

from indexer import sandbox
from indexer.errors import ReadError
from indexer.readers.quiet import quiet
from retrieval.answer import Answer, Evidence

SCHEME = "99CBIR"
"""Designator of the codes that no standard has."""
SERIES_NUMBER = 9900
_IMAGING = CodedConcept("113091000", "SCT", "Magnetic resonance imaging")
_MEANING = 64  # bytes of the longest code meaning (VR LO)
_REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_ALLOWED = {"PatientSex": ("M", "F", "O"), "PatientIdentityRemoved": ("YES", "NO")}
_IDENTITY = ("PatientID", "PatientName")
_TEXTS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "SH", "ST", "TM", "UC", "UT")


@quiet()
def structured_report(
    answer: Answer, files: Sequence[Path], encoder: str, *, where: Mapping[str, str] | None = None
) -> bytes:
    """The report of an answer, to be stored into the PACS.

    Parameters
    ----------
    answer : Answer
        To a query with these images.
    files : sequence of Path
        The DICOM images of the series that was asked about. Patient and study of the report are theirs.
    encoder : str
        Name and version of the encoder.
    where : mapping, optional
        Labels that the hits had to have.

    Returns
    -------
    bytes
        A DICOM file: Comprehensive 3D SR in a series of its own.

    Raises
    ------
    ReadError
        If the images do not say which ones they are.
    """
    images = list(map(_header, sandbox.belonging(files)))
    content = _content(answer, encoder, where or {})
    try:
        report = Comprehensive3DSR(
            evidence=images,
            content=content[0],
            series_instance_uid=generate_uid(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="cbir",
            series_description=f"Similar cases ({answer.notice})",
            is_complete=False,
            is_final=False,
            is_verified=False,
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:  # such as an image of no known class
        raise ReadError("the series", f"no report can belong to it ({type(error).__name__})") from None
    report.SpecificCharacterSet = "ISO_IR 192"
    report.CodingSchemeIdentificationSequence = [_scheme()]
    _empty_invalid(report)
    out = BytesIO()
    report.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _content(answer: Answer, encoder: str, where: Mapping[str, str]) -> MeasurementReport:
    """What the report says."""
    ours = version("cbir")
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=generate_uid(), identifier="similar cases"),
        finding_type=_own("Resemblance to known cases"),
        algorithm_id=AlgorithmIdentification(
            name="cbir",
            version=ours,
            parameters=[f"encoder: {encoder}", *_question(answer, where)],
        ),
        measurements=[*_scores(answer), *_shares(answer)],
        qualitative_evaluations=[*_findings(answer)],
    )
    for text in [answer.notice, *_caveats(answer)]:
        group[0].ContentSequence.append(
            TextContentItem(codes.DCM.Comment, text, relationship_type=RelationshipTypeValues.CONTAINS)
        )
    device = ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=["cbir", ours, encoder]), name="cbir", model_name="cbir"
        ),
    )
    return MeasurementReport(
        observation_context=ObservationContext(observer_device_context=device),
        procedure_reported=_IMAGING,
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )


def _question(answer: Answer, where: Mapping[str, str]) -> Iterator[str]:
    """What was asked, as it is written on the command line."""
    query = answer.query
    yield f"slices: {query.slices}"
    yield f"hits: {len(answer.hits)}"
    if query.region is not None:
        yield f"region: {','.join(map(str, query.region))}@{query.region_slice}"
    for name, value in where.items():
        yield f"hits only with: {name}={value}"


def _scores(answer: Answer) -> Iterator[Measurement]:
    for hit in answer.hits:
        yield _number(f"Similarity of the case at rank {hit.rank}", hit.score)


def _shares(answer: Answer) -> Iterator[Measurement]:
    for label, evidence in answer.evidence.items():
        if evidence.abstain:
            continue  # what stands there is the prior
        for value, share in evidence.probabilities.items():
            yield _number(f"Share of similar cases with {label} {value}", share)


def _findings(answer: Answer) -> Iterator[QualitativeEvaluation]:
    for label, evidence in answer.evidence.items():
        found = "inconclusive" if evidence.abstain else " or ".join(evidence.set) or "none as usual"
        yield QualitativeEvaluation(_own(f"{label} of most similar cases"), _own(found))


def _caveats(answer: Answer) -> Iterator[str]:
    """How the shares came about, in a sentence each; the answer's own notes may name cases."""
    for label, evidence in answer.evidence.items():
        prior = ", ".join(f"{value} {share:.2f}" for value, share in evidence.prior.items())
        yield f"{label}: {_vote(evidence)} of {evidence.neighbours} patients; shares in the index: {prior}"
        if evidence.lacks:
            yield f"{label}: {evidence.holdings}"


def _vote(evidence: Evidence) -> str:
    return "calibrated vote" if evidence.calibrated else "vote, not calibrated,"


def _number(meaning: str, value: float) -> Measurement:
    return Measurement(_own(meaning), value, codes.UCUM.NoUnits)


def _own(meaning: str) -> CodedConcept:
    """A concept of our own; its code follows from what it means."""
    code = hashlib.sha256(meaning.encode()).hexdigest()[:12].upper()
    meaning = text = meaning.replace("\\", "/")
    keep = _MEANING
    while len(text.encode()) > _MEANING:  # its end tells values apart
        keep -= 1
        text = meaning[: keep // 2] + "..." + meaning[-keep // 2 :]
    return CodedConcept(code, SCHEME, text)


def _scheme() -> Dataset:
    scheme = Dataset()
    scheme.CodingSchemeDesignator = SCHEME
    scheme.CodingSchemeName = "Concepts of the cbir retrieval engine"
    scheme.CodingSchemeResponsibleOrganization = "cbir"
    return scheme


def _header(said: Mapping[str, str]) -> Dataset:
    """The header of an image as far as a report repeats it, with empty elements where it must have some."""
    image = Dataset()
    for keyword in (*_REQUIRED, *said):
        value = said.get(keyword, "")
        setattr(image, keyword, value if _is_valid(keyword, value) else None)
    return image


def _is_valid(keyword: str, value: str) -> bool:
    """Whether the standard allows a value; names and ids are repeated as they are, to be filed with them."""
    if keyword in _ALLOWED:
        return value in _ALLOWED[keyword]
    try:
        validate_value(dictionary_VR(keyword), value, pydicom.config.RAISE)
    except ValueError:
        return keyword in _IDENTITY
    return True


def _empty_invalid(report: Dataset) -> None:
    """Empty what was taken over from the images and breaks the standard, such as an age without a unit."""
    for element in report:
        if element.keyword in _IDENTITY or element.VR not in _TEXTS:
            continue
        values = element.value if element.VM > 1 else [element.value]
        try:
            for value in values:
                validate_value(element.VR, str(value or ""), pydicom.config.RAISE)
        except ValueError:
            element.value = None
