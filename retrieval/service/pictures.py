"""Scans of cases, and where on them a similarity comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cbir.index import Index
from indexer import reference
from indexer.catalog import FiledCase
from indexer.encoder import Explainer
from indexer.errors import CbirError, QueryError
from indexer.preprocess import with_region
from indexer.scan import Scan, ScanRef, displayed
from retrieval.explain import ExplainedScan
from retrieval.parsing import Box
from retrieval.service.queries import Kept, place_of
from retrieval.state import REGION, WHOLE


class Missing(CbirError):
    """There is no such case, scan, query or job."""


@dataclass(frozen=True)
class Pair:
    """A slice of a query and the slice of a hit that it was matched with.

    Attributes
    ----------
    scan, slice : int
        Number of the query's scan, and the slice.
    case : str
    case_scan, case_slice : int
        Number of the case's scan, and the slice.
    region : tuple of int, optional
        The box that was asked with.
    region_slice : int, optional
    """

    scan: int
    slice: int
    case: str
    case_scan: int
    case_slice: int
    region: Box | None = None
    region_slice: int | None = None


class Pictures:
    """What there is to look at in an index."""

    def __init__(self, index: Index) -> None:
        self._index = index

    @property
    def explains(self) -> bool:
        """Whether the encoder can say where a similarity comes from."""
        return isinstance(self._index.encoder, Explainer)

    def case(self, case_id: str) -> FiledCase:
        """A case as it is filed now.

        Raises
        ------
        Missing
        """
        case = self._index.case_index.catalog.case(case_id)
        if case is None:
            raise Missing("case", "the index has no such case")
        return case

    def number(self, case_id: str, ref: ScanRef) -> int | None:
        """Which of a case's scans a hit means; None if it was removed in this moment."""
        case = self._index.case_index.catalog.case(case_id)
        return None if case is None else place_of(case.scans, ref)

    def pseudonym(self, patient_id: str) -> str:
        """A patient's keyed hash, also where the index keeps ids as they are."""
        index = self._index.case_index
        return index.pseudonym("patient", patient_id) if index.manifest.keep_ids else patient_id

    def scan(self, case_id: str, sequence: str | None, number: int | None) -> tuple[Scan, str]:
        """A scan of a case, and the patient's id.

        Parameters
        ----------
        case_id : str
        sequence : str, optional
            Where the case has one scan of it, that one is meant.
        number : int, optional
            Which of the case's scans; the first one if nothing else says which.

        Raises
        ------
        Missing
            If there is none, or its file is gone.
        QueryError
            If there are several of the sequence.
        """
        case = self.case(case_id)
        place = chosen([scan.sequence for scan in case.scans], sequence, number, "the case")
        return self._images(case.scans[place].ref), case.patient_id

    def explanation(self, kept: Kept, pair: Pair, *, of_query: bool) -> tuple[Scan, str]:
        """Where on one side of a pair the similarity comes from, and the id of the case's patient.

        Parameters
        ----------
        kept : Kept
            The query.
        pair : Pair
        of_query : bool
            Whether it is the query's side, which needs no pictures of the case; else the case's.

        Returns
        -------
        scan : Scan
            That side's, with the map of :meth:`retrieval.explain.ExplainedScan.map` on the pair's
            slice in place of intensities, and 0 on the others.
        patient : str

        Raises
        ------
        Missing
            If the encoder explains nothing, or a scan or slice of the pair is not there.
        QueryError
            If the region is not inside the query's slices.
        """
        encoder = self._index.encoder
        if not isinstance(encoder, Explainer):
            raise Missing("explanation", "the encoder of this index explains nothing")
        if not 0 <= pair.scan < len(kept.about):
            raise Missing("scan", "the query has no such scan")
        case = self.case(pair.case)
        if not 0 <= pair.case_scan < len(case.scans):
            raise Missing("scan", "the case has no such scan")
        ref = case.scans[pair.case_scan].ref
        asked = kept.scan(pair.scan)
        if pair.region is not None:
            asked = with_region(asked, pair.region, pair.region_slice)
        scan, position = (asked, pair.slice) if of_query else (self._images(ref), pair.case_slice)
        view = WHOLE if pair.region is None else REGION
        values, stored = None, self._index.vector(ref, pair.case_slice, view)
        if stored is not None and of_query:
            values = ExplainedScan(encoder, asked).map(position, stored[0], view)
        elif stored is not None:
            towards = ExplainedScan(encoder, asked).embedding(pair.slice, view)
            if towards is not None:
                values = ExplainedScan(encoder, scan).map(position, towards, stored[1])
        if values is None:
            raise Missing("slice", "one of the two slices has no embedding")
        voxels = np.zeros(scan.voxels.shape, np.float32)
        displayed(voxels, scan.axis, position)[...] = values
        return replace(scan, voxels=voxels, region=None), case.patient_id

    def _images(self, ref: ScanRef) -> Scan:
        if reference.is_reference(ref.source):
            raise Missing("scan", "a reference case comes without pictures: see its collection and id")
        try:
            return self._index.scan(ref)
        except CbirError:
            raise Missing("scan", "the images of this scan are gone") from None


def chosen(sequences: list[str | None], sequence: str | None, number: int | None, whose: str) -> int:
    """Which of some scans is meant.

    Parameters
    ----------
    sequences : list of str or None
        One a scan.
    sequence, number
        What was asked for; the number says all.
    whose : str
        In words.

    Raises
    ------
    Missing
        If there is no such scan.
    QueryError
        If there are several of the sequence.

    Examples
    --------
    >>> chosen(["t1", "t2", "t2"], "t1", None, "the case"), chosen(["t1", "t2", "t2"], "t2", 2, "the case")
    (0, 2)
    """
    if number is not None:
        found = [number] if 0 <= number < len(sequences) else []
    elif sequence is None:
        found = [0][: len(sequences)]
    else:
        found = [place for place, name in enumerate(sequences) if (name or "") == sequence]
    if not found:
        raise Missing("scan", f"{whose} has no such scan")
    if len(found) > 1:
        raise QueryError("scan", f"{whose} has several scans of this sequence", "say which: scan=NUMBER")
    return found[0]
