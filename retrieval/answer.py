"""The answer to a query: what Python gets, what JSON prints, what the report shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from indexer.scan import ScanRef

NOTICE = "research use only, not a medical device"


@dataclass(frozen=True)
class Query:
    """What was asked.

    Attributes
    ----------
    source : str
        The file or folder, or ``case CASE_ID``.
    sequence : str, optional
        Its sequence; several are joined by ``+``.
    slices : int
        Slices that took part.
    region : tuple of int, optional
        The marked box ``(x0, y0, x1, y1)`` in pixels of the displayed slice.
    region_slice : int, optional
        The slice the box was drawn on.
    mask : str, optional
        The file whose non-zero voxels were the region.
    scans : list of ScanRef
        What asked.
    visit : str, optional
        Whose scans asked: as the files call it, or a pseudonym where the index keeps no ids; None where
        the files name none.
    by : str, optional
        What hits were to be ordered by; see :class:`retrieval.question.Question`.
    """

    source: str
    sequence: str | None
    slices: int
    region: tuple[int, int, int, int] | None = None
    region_slice: int | None = None
    mask: str | None = None
    scans: list[ScanRef] = field(default_factory=list)
    visit: str | None = None
    by: str | None = None


@dataclass(frozen=True)
class Hit:
    """A ranked case and the pair of slices that speaks most for it.

    Attributes
    ----------
    rank : int
        From 1.
    score : float
        Similarity of the case, at most 1.
    case_id, patient_id : str
    labels : dict
        Column to value, as in the labels table.
    sequence : str, optional
        Sequence of the slice shown.
    scan : ScanRef
        The scan that the slice is in.
    slice, query_slice : int
        Positions of the pair in their scans.
    query_scan : ScanRef
        The scan that the query's slice is in.
    query_sequence : str, optional
        Its sequence.
    visit : str, optional
        The patient's visit that the case is: as the files call it, or a pseudonym where the index keeps
        no ids; None where the files name none.
    likeness : list of str
        How the case's lesion looks beside the query's: what agrees, then what differs, as far as both are
        known.
    """

    rank: int
    score: float
    case_id: str
    patient_id: str
    labels: dict[str, str]
    sequence: str | None
    scan: ScanRef
    slice: int
    query_slice: int
    query_scan: ScanRef
    query_sequence: str | None
    visit: str | None = None
    likeness: list[str] = field(default_factory=list)

    @property
    def source(self) -> str:
        """File or folder that the slice is in."""
        return self.scan.source

    @property
    def query_source(self) -> str:
        """File or folder that the query's slice is in."""
        return self.query_scan.source


@dataclass(frozen=True)
class Evidence:
    """The neighbours' vote on one label column; never a diagnosis.

    Attributes
    ----------
    probabilities : dict
        Value to weighted share of the neighbours, summing to 1.
    prior : dict
        Value to its share among the patients of the index.
    set : list of str
        Calibrated, the values that hold the true one in 90 % of new patients, with the one that the
        vote names first; or none: then no value looks as its patients usually do. Else the smallest set
        with 90 % of the probability.
    abstain : bool
        True when the neighbours say nothing; the probabilities are then the prior.
    neighbours : int
        Patients that voted.
    calibrated : bool
        Whether probabilities and set were calibrated (see :mod:`retrieval.calibration`).
    calibrated_on : int
        Known patients it was calibrated on.
    reason : str, optional
        Why it abstains, where that is not for want of labelled neighbours; or why it is not calibrated,
        where that could be.
    values : list of str
        All values that the index holds for the label: it cannot name another.
    held : dict
        Each of them to how many patients have it.
    lacks : list of str
        Values of the label's scale (:data:`retrieval.evidence.SCALES`) that the index has no case of.
    others : str, optional
        Whether a case of a kind that the index does not hold would be noticed.
    """

    probabilities: dict[str, float]
    prior: dict[str, float]
    set: list[str]
    abstain: bool
    neighbours: int
    calibrated: bool = False
    calibrated_on: int = 0
    reason: str | None = None
    values: list[str] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    lacks: list[str] = field(default_factory=list)
    others: str | None = None

    @property
    def holdings(self) -> str:
        """What the index holds of the label, in words.

        Examples
        --------
        >>> e = Evidence({}, {}, [], True, 0, held={"2": 40, "3": 46}, lacks=["4"])
        >>> e.holdings
        'the index holds 2: 40, 3: 46; none of 4'
        """
        held = ", ".join(f"{value}: {n}" for value, n in self.held.items())
        return f"the index holds {held}" + (f"; none of {', '.join(self.lacks)}" if self.lacks else "")


@dataclass(frozen=True)
class Answer:
    """Ranked cases for one query, with evidence and what the user should know.

    Attributes
    ----------
    query : Query
    hits : list of Hit
    evidence : dict of str to Evidence
        By label column.
    notes : list of str
    notice : str
    familiar : bool, optional
        Whether the index knows anything like the query; None where it cannot tell.
    """

    query: Query
    hits: list[Hit]
    evidence: dict[str, Evidence]
    notes: list[str] = field(default_factory=list)
    notice: str = NOTICE
    familiar: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``cbir query --json`` (schema 1)."""
        told = {"schema": 1, **asdict(self)}
        told["query"]["scans"] = list(map(str, self.query.scans))
        for hit, row in zip(self.hits, told["hits"], strict=True):
            sides = {"source": hit.source, "query_source": hit.query_source}
            row |= {"scan": str(hit.scan), "query_scan": str(hit.query_scan), **sides}
        return told
