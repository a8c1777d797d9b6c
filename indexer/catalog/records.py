"""What goes into the catalog and comes out of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.scan import ScanRef


@dataclass(frozen=True)
class EmbeddedScan:
    """A scan as it is stored: where it belongs, and its slices' embeddings.

    Attributes
    ----------
    case_id, patient_id, series_id : str
        As they shall appear in the index (pseudonymous unless the user keeps ids).
    sequence, modality : str, optional
    shape : tuple of int
    spacing : tuple of float, optional
        In mm.
    input_hash : str
        sha256 of the network's input for the whole slices; equal inputs have equal embeddings.
    positions, views : ndarray of int, shape (n,)
    weights : ndarray of float32, shape (n,)
    embeddings : ndarray of float32, shape (n, dimension)
    in_sample : bool
        Whether the encoder was trained on this patient.
    strangeness : float
        See :mod:`indexer.learning.strangeness`; NaN where the encoder cannot say.
    visit : str, optional
        What the visit that the case is of is called; None for a patient's only one, without a name.
    measures : ndarray of float32, optional
        Of the lesion, as :meth:`indexer.measures.Measures.as_vector` gives them.
    """

    case_id: str
    patient_id: str
    series_id: str
    sequence: str | None
    modality: str | None
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    input_hash: str
    positions: NDArray[np.int64]
    views: NDArray[np.uint8]
    weights: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    in_sample: bool = False
    strangeness: float = math.nan
    visit: str | None = None
    measures: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Entry:
    """A source with what it holds.

    Attributes
    ----------
    path, fingerprint : str
    record : mapping
        What is needed to read it again; no identifiers.
    scans : sequence of EmbeddedScan
    """

    path: str
    fingerprint: str
    record: Mapping[str, Any]
    scans: Sequence[EmbeddedScan]


@dataclass(frozen=True)
class FiledScan:
    """A scan as the catalog describes it.

    Attributes
    ----------
    source : str
    number : int
        Which of the source's scans.
    sequence, modality : str, optional
    shape : tuple of int
    spacing : tuple of float, optional
        In mm.
    """

    source: str
    number: int
    sequence: str | None
    modality: str | None
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None

    @property
    def ref(self) -> ScanRef:
        """Which scan this is."""
        return ScanRef(self.source, self.number)


@dataclass(frozen=True)
class FiledCase:
    """A case as it is filed now.

    Attributes
    ----------
    patient_id : str
    visit : str, optional
    labels : dict
        The patient's, overlaid by the visit's.
    scans : list of FiledScan
        Composites are no scans of their own.
    in_sample : bool
        Whether the encoder was trained on the patient.
    """

    patient_id: str
    visit: str | None
    labels: dict[str, str]
    scans: list[FiledScan]
    in_sample: bool = False


@dataclass(frozen=True)
class ScanRow:
    """A row of the table of scans, without its id."""

    source: int
    case: int
    channel: int
    sequence: str | None
    modality: str | None
    series_id: str
    shape: list[int]
    spacing: list[float] | None
    input_hash: str
    embedding_hash: str

    @classmethod
    def of(cls, scan: EmbeddedScan, source: int, case: int, number: int) -> ScanRow:
        """The row of a scan, given the rows of its source and case and its number in the source."""
        return cls(
            source=source,
            case=case,
            channel=number,
            sequence=scan.sequence,
            modality=scan.modality,
            series_id=scan.series_id,
            shape=list(scan.shape),
            spacing=None if scan.spacing is None else list(scan.spacing),
            input_hash=scan.input_hash,
            embedding_hash=digest([np.ascontiguousarray(scan.embeddings, "<f4").tobytes()]),
        )


@dataclass(frozen=True)
class SliceRow:
    """A row of the table of slices, without its id."""

    scan: int
    position: int
    view: int
    weight: float
    embedding: bytes

    @classmethod
    def of(cls, scan_id: int, scan: EmbeddedScan) -> Iterator[SliceRow]:
        """The rows of a scan's slices."""
        embeddings = np.ascontiguousarray(scan.embeddings, "<f4")
        columns = zip(scan.positions, scan.views, scan.weights, embeddings, strict=True)
        for position, view, weight, embedding in columns:
            yield cls(scan_id, int(position), int(view), float(weight), embedding.tobytes())


def digest(blobs: Iterable[bytes]) -> str:
    """sha256 of the embeddings of a scan, one after the other."""
    found = hashlib.sha256()
    for blob in blobs:
        found.update(blob)
    return found.hexdigest()
