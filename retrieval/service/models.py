"""What is answered: the JSON of each reply, and so its description at ``/openapi.json``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from retrieval.answer import NOTICE

Address = Annotated[str, Field(examples=["/cases/c-0123456789abcdef/volume.nii.gz?scan=0"])]
"""An address below that of the service."""
CaseId = Annotated[str, Field(examples=["c-0123456789abcdef"])]
PatientId = Annotated[str, Field(examples=["p-fedcba9876543210"])]
Sequence = Annotated[str, Field(examples=["t1ce"])]
Label = Annotated[dict[str, str], Field(examples=[{"who_grade": "4"}])]
Time = Annotated[str, Field(examples=["2026-01-05T09:00:00+00:00"])]
JobId = Annotated[str, Field(examples=["9f1c2d3e4a5b6c7d"])]
ScanName = Annotated[
    str, Field(description="Which scan, of which case or query", examples=["c-0123456789abcdef#0"])
]


class Reply(BaseModel):
    """What all have in common: no field of theirs goes untold."""

    model_config = ConfigDict(extra="forbid")


class Failure(Reply):
    """Why not, in one line."""

    detail: Annotated[str, Field(examples=["is damaged; copy it again"])]


class Health(Reply):
    """Whether the service runs."""

    status: Literal["ok"] = "ok"
    notice: str = NOTICE


class Info(Reply):
    """What is in the index, and what the caller may do."""

    version: Literal[1] = Field(1, alias="schema")
    cases: int
    scans: int
    slices: int
    sources: int
    patients: int
    encoder: Annotated[str, Field(examples=["imagenet 5a2f0c1d9e8b7a61"])]
    dimension: int
    preprocessing: str
    keep_ids: bool
    created: Time
    sequences: Annotated[str, Field(examples=["flair, t1ce"])]
    search: Annotated[str, Field(examples=["exact"])]
    failed: Annotated[int, Field(description="Sources that could not be read")]
    labels: Annotated[dict[str, list[str]], Field(examples=[{"who_grade": ["2", "3", "4"]}])]
    pacs: Annotated[bool, Field(description="Whether the service is joined to a PACS")]
    role: Annotated[str, Field(description="What the caller's token allows", examples=["read"])]
    notice: str = NOTICE


class UnreadSeries(Reply):
    """A series of the PACS that cannot be read."""

    series: Annotated[str, Field(description="Keyed hash of its UID")]
    reason: str | None


class Pacs(Reply):
    """How the PACS is followed."""

    answers: bool
    reason: Annotated[str | None, Field(description="Why it does not answer")]
    series: Annotated[dict[str, int], Field(examples=[{"filed": 48, "failed": 0, "ignored": 12}])]
    failed: list[UnreadSeries]
    change: Annotated[int | None, Field(description="The line of the PACS's change log that was read last")]


class Shown(Reply):
    """A scan of a case or query, for a viewer."""

    scan: Annotated[int, Field(description="Which of the scans, as the addresses have it")]
    sequence: Sequence | None
    modality: str | None
    shape: Annotated[list[int], Field(examples=[[240, 240, 155]])]
    spacing: Annotated[list[float] | None, Field(description="In mm; null where an image has no place")]
    axis: Annotated[int, Field(description="Of the volume, to the right, front, head: slices lie along it")]
    slices: int
    volume: Address
    thumbnail: Address


class Case(Reply):
    """A case: its labels and scans."""

    version: Literal[1] = Field(1, alias="schema")
    case_id: CaseId
    patient_id: PatientId
    visit: str | None = None
    labels: Label
    scans: list[Shown]
    notice: str = NOTICE


class Asked(Reply):
    """What was asked."""

    source: Annotated[str, Field(examples=["query Kz8x1r0m2vQd5n7sT9uWyA"])]
    sequence: Sequence | None
    visit: str | None = None
    slices: int
    region: tuple[int, int, int, int] | None
    region_slice: int | None
    by: Annotated[str | None, Field(description="What hits were to be ordered by")] = None
    mask: Annotated[None, Field(description="Over HTTP a region is a box")] = None
    id: Annotated[str, Field(description="To ask again with; absent if cases asked")] = ""
    scans: Annotated[list[Shown], Field(description="Absent if cases asked")] = []


class Maps(Reply):
    """Where on both slices the similarity comes from; absent for a side that cannot be shown."""

    query: Address = ""
    hit: Address = ""


class Hit(Reply):
    """A ranked case and the pair of slices that speaks most for it."""

    rank: int
    score: Annotated[float, Field(le=1.001, description="Similarity, at most 1", examples=[0.93])]
    case_id: CaseId
    patient_id: PatientId
    visit: str | None = None
    labels: Label
    sequence: Sequence | None
    source: CaseId
    scan: ScanName | None
    slice: int
    query_slice: int
    query_source: str
    query_scan: ScanName | None
    query_sequence: Sequence | None
    volume: Address
    thumbnail: Address
    query_volume: Address
    query_thumbnail: Address
    likeness: Annotated[
        list[str],
        Field(
            description="How its lesion looks beside the query's",
            examples=[["left anterior both", "similar necrosis", "larger"]],
        ),
    ] = []
    explanation: Annotated[Maps, Field(description="Absent if nothing can be explained")] = Maps()


class Vote(Reply):
    """The neighbours' vote on one label; never a diagnosis."""

    probabilities: Annotated[dict[str, float], Field(examples=[{"2": 0.08, "3": 0.17, "4": 0.75}])]
    prior: Annotated[dict[str, float], Field(examples=[{"2": 0.3, "3": 0.3, "4": 0.4}])]
    values: Annotated[list[str], Field(description="All that the index holds")] = []
    held: Annotated[
        dict[str, int], Field(description="Patients who have each", examples=[{"2": 40, "3": 46}])
    ] = {}
    lacks: Annotated[list[str], Field(description="Of the label's scale", examples=[["4"]])] = []
    others: Annotated[
        str | None, Field(description="Whether a kind that it does not hold would be noticed")
    ] = None
    set: Annotated[list[str], Field(examples=[["3", "4"]])]
    abstain: bool
    neighbours: int
    calibrated: bool
    calibrated_on: int
    reason: str | None


class Answer(Reply):
    """Ranked cases, the evidence, and what the user should know."""

    version: Literal[1] = Field(1, alias="schema")
    query: Asked
    hits: list[Hit]
    evidence: Annotated[dict[str, Vote], Field(description="By label")]
    notes: list[str]
    notice: str
    familiar: Annotated[bool | None, Field(description="Whether the index knows anything like it")]


class Accepted(Reply):
    """A change that will be made."""

    job: JobId


class Progress(Reply):
    """How far a job is, in sources."""

    done: int
    total: int


class Unread(Reply):
    """Why something of an upload was not filed."""

    reason: str


class Indexed(Reply):
    """What became of an upload."""

    version: Literal[1] = Field(1, alias="schema")
    indexed: int
    unchanged: int
    failed: list[Unread]
    embedded: Annotated[int, Field(description="Slices that the network saw")]
    cases: Annotated[int, Field(description="In the index now")]
    slices: int


class Removed(Reply):
    """What was taken out."""

    version: Literal[1] = Field(1, alias="schema")
    removed: int


class JobState(Reply):
    """How a change of the index goes."""

    job: JobId
    what: Literal["index", "remove"]
    state: Literal["queued", "running", "done", "failed"]
    progress: Progress
    report: Indexed | Removed | None
    reason: str | None
    created: Time
    ended: Time | None


class JobList(Reply):
    """The last changes, the newest first."""

    version: Literal[1] = Field(1, alias="schema")
    jobs: list[JobState]


class Nudged(Reply):
    """The service will look."""

    status: Literal["ok"] = "ok"


class Stored(Reply):
    """A report that lies in the PACS."""

    stored: Annotated[str, Field(description="The PACS's identifier of it")]
    notice: str = NOTICE


def plain(reply: BaseModel) -> dict[str, Any]:
    """A reply as JSON has it: without what it does not hold."""
    return reply.model_dump(mode="json", by_alias=True, exclude_unset=True)
