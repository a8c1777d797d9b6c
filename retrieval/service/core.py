"""What the service does, without HTTP: one index, one writer, the queries of the last minutes, one audit."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np

from cbir.index import Index
from indexer import reference
from indexer.case_index import CaseIndex
from indexer.discovery.config import CONFIG
from indexer.encoder import DEFAULT, Encoder, Explainer, load_encoder
from indexer.errors import CaseIndexError, CbirError, QueryError, WriterBusyError
from indexer.preprocess import with_region
from indexer.runtime import trim
from indexer.scan import Scan, ScanRef, displayed
from retrieval.answer import Answer
from retrieval.calibration import due
from retrieval.explain import ExplainedScan
from retrieval.parsing import Box
from retrieval.question import Question as Asked
from retrieval.service.audit import Audit
from retrieval.service.intake import Taken, discovered, read, scrubbing, take_in
from retrieval.service.jobs import Job, Jobs
from retrieval.service.orthanc import Orthanc
from retrieval.service.queries import Kept, Queries
from retrieval.service.settings import Settings
from retrieval.service.spool import SPOOL, settle, sweep, unspool
from retrieval.service.uploads import Unreadable, scrubbed, unpack
from retrieval.state import REGION, WHOLE

SCRATCH = "cbir-serve-"
"""Beginning of the temporary folder's name; the process's number follows."""
TRIMMED = 30.0
"""Seconds after which memory that is not used is given back."""
REST = 10
"""The state is renewed at most so often that it takes a tenth of the time."""


class Missing(CbirError):
    """There is no such case, scan, query or job."""


@dataclass(frozen=True)
class Question:
    """What is asked beside the scan.

    Attributes
    ----------
    k : int
    where : mapping
    region : tuple of int, optional
    region_slice : int, optional
    exclude_patient : str, optional
    all_cases : bool
    """

    k: int = 10
    where: Mapping[str, str] | None = None
    region: Box | None = None
    region_slice: int | None = None
    exclude_patient: str | None = None
    all_cases: bool = False


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


class Service:
    """An index that is asked and filled at the same time.

    Parameters
    ----------
    settings : Settings
    encoder : Encoder, optional
        Instead of the installed one that the index names.

    Raises
    ------
    CbirError
        If the index cannot be opened, or another service holds it.
    """

    def __init__(self, settings: Settings, encoder: Encoder | None = None) -> None:
        self.settings = settings
        if not (settings.index / "manifest.json").exists():
            CaseIndex.create(settings.index, encoder or load_encoder(DEFAULT)).close()
        with ExitStack() as opened:
            lock = filelock.FileLock(settings.index / "service.lock", thread_local=False)
            try:
                opened.enter_context(lock.acquire(timeout=0))
            except filelock.Timeout:
                raise CaseIndexError(
                    settings.index, "another service runs on this index", "stop it"
                ) from None
            self._scratch = _scratch()
            opened.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            (self._scratch / "queries").mkdir()
            self.queries = Queries(self._scratch / "queries", settings.keep)
            self.audit = Audit(settings.audit or settings.index / "audit")
            self.index = opened.enter_context(Index(CaseIndex.open(settings.index), encoder))
            self._writer = opened.enter_context(CaseIndex.open(settings.index))
            with suppress(WriterBusyError), self._writer.writing("serve"):
                settle(self._writer)
                sweep(self._writer)
            self._encoder = self.index.encoder
            self._encoder.encode(np.zeros((32, self._encoder.size, self._encoder.size), np.uint8))  # warm
            self._revision = self._writer.catalog.revision
            self._calibrated = -1  # the revision at which that was last thought of
            self._renewed = self._trimmed = time.monotonic()
            self._cost = 0.0
            self.jobs = Jobs(settings.queue, idle=self._idle)
            opened.callback(self.jobs.close)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Let the running job end; remove what was temporary."""
        self._opened.close()

    # ---- questions -----------------------------------------------------------------------------

    def query_upload(self, upload: IO[bytes], name: str, question: Question, who: str) -> tuple[Answer, Kept]:
        """The cases most similar to an uploaded scan.

        Raises
        ------
        CbirError
        """
        with self._folder() as folder, scrubbing(folder):
            unpack(upload, name, folder, self.settings)
            return self._query_folder(folder, question, who)

    def query_series(self, series: str, question: Question, who: str) -> tuple[Answer, Kept]:
        """The cases of other patients most similar to a series of the PACS, which is indexed itself.

        Raises
        ------
        CbirError
        """
        with self._folder() as folder, scrubbing(folder):
            self.download(series, folder)
            return self._query_folder(folder, question, who, others=True)

    def store_report(self, series: str, question: Question) -> tuple[str, list[str]]:
        """Ask with a series of the PACS and store the answer there.

        Returns
        -------
        (stored, patients)
            The PACS's id of the report, and the pseudonyms of the patients concerned.

        Raises
        ------
        CbirError
        """
        from retrieval.service.structured_report import structured_report

        with self._folder() as folder, self._pacs() as pacs, scrubbing(folder):
            files = pacs.series(series, folder)
            scans = read(folder)
            own = self.index.case_index.patient(scans[0].patient_id)
            answer = self._ask(scans, "the series", question, own)
            if not answer.hits:
                raise QueryError("the series", "no case matches: there is nothing to report")
            encoder = self.index.case_index.about()["encoder"]
            report = structured_report(answer, files, encoder, where=question.where)
            patient = self.index.case_index.pseudonym("patient", scans[0].patient_id)
            return pacs.store(report), [patient]

    def query_again(self, kept: Kept, question: Question) -> Answer:
        """The cases most similar to a query that was asked before.

        Raises
        ------
        CbirError
        """
        return self._ask(kept.scans(), f"query {kept.id}", question, kept.excluded)

    def query_like(self, case_ids: Sequence[str], question: Question) -> Answer:
        """The cases most similar to some of the index.

        Raises
        ------
        Missing
            If there is no such case.
        CbirError
        """
        if question.region is not None:
            raise QueryError("region", "a region goes with a scan, not with cases")
        for case_id in case_ids:
            self.case(case_id)
        return self.index.like(
            case_ids,
            question.k,
            where=question.where,
            exclude_patient=question.exclude_patient,
            all_cases=question.all_cases,
        )

    def download(self, series: str, folder: Path) -> None:
        """Get a series from the PACS.

        Raises
        ------
        CbirError
            If there is no PACS, it does not answer, or has no such series.
        """
        with self._pacs() as pacs:
            pacs.series(series, folder)

    def _pacs(self) -> Orthanc:
        if self.settings.pacs is None:
            raise QueryError("series", "this service has no PACS", "start it with --pacs URL")
        return Orthanc(self.settings.pacs)

    def _query_folder(
        self, folder: Path, question: Question, who: str, *, others: bool = False
    ) -> tuple[Answer, Kept]:
        scans = read(folder)
        patient = self.index.case_index.pseudonym("patient", scans[0].patient_id)
        own = self.index.case_index.patient(scans[0].patient_id) if others else None
        kept = self.queries.keep(scans, who, patient, own)
        scans = [replace(s, source=k.path) for s, k in zip(scans, kept.sources, strict=True)]
        try:
            return self._ask(scans, f"query {kept.id}", question, own), kept
        except BaseException:
            self.queries.drop(kept)
            raise

    def _ask(self, scans: Sequence[Scan], source: str, question: Question, own: str | None = None) -> Answer:
        asked = Asked(
            source,
            scans,
            k=question.k,
            where=question.where,
            region=question.region,
            region_slice=question.region_slice,
            exclude_patient=[patient for patient in (question.exclude_patient, own) if patient],
            all_cases=question.all_cases,
        )
        return self.index.query(asked)

    # ---- what is there -------------------------------------------------------------------------

    def case(self, case_id: str) -> dict[str, Any]:
        """A case as :meth:`indexer.catalog.Catalog.case` gives it.

        Raises
        ------
        Missing
        """
        case = self.index.case_index.catalog.case(case_id)
        if case is None:
            raise Missing("case", "the index has no such case")
        return asdict(case)

    def scan(self, case_id: str, sequence: str | None, number: int | None) -> tuple[Scan, str]:
        """A scan of a case, by its number, or the first one of a sequence, and the patient's id.

        Raises
        ------
        Missing
            If there is none, or its file is gone.
        """
        row, patient = self._filed(case_id, sequence, number)
        return self._images(row), patient

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
        encoder = self.index.encoder
        if not isinstance(encoder, Explainer):
            raise Missing("explanation", "the encoder of this index explains nothing")
        if not 0 <= pair.scan < len(kept.about):
            raise Missing("scan", "the query has no such scan")
        row, patient = self._filed(pair.case, None, pair.case_scan)
        asked = kept.scan(pair.scan)
        if pair.region is not None:
            asked = with_region(asked, pair.region, pair.region_slice)
        scan, position = (asked, pair.slice) if of_query else (self._images(row), pair.case_slice)
        view = WHOLE if pair.region is None else REGION
        ref = ScanRef(row["source"], row["number"])
        values, stored = None, self.index.vector(ref, pair.case_slice, view)
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
        return replace(scan, voxels=voxels, region=None), patient

    def _filed(self, case_id: str, sequence: str | None, number: int | None) -> tuple[dict[str, Any], str]:
        """A scan of a case as the catalog has it, and the patient's id."""
        case = self.case(case_id)
        rows = case["scans"]
        if number is not None:
            rows = rows[number : number + 1] if number >= 0 else []
        elif sequence is not None:
            rows = [row for row in rows if (row["sequence"] or "") == sequence]
        if not rows:
            raise Missing("scan", "the case has no such scan")
        return rows[0], case["patient_id"]

    def _images(self, row: Mapping[str, Any]) -> Scan:
        if reference.is_reference(row["source"]):
            raise Missing("scan", "a reference case comes without pictures: see its collection and id")
        try:
            scan: Scan = self.index.scan(ScanRef(row["source"], row["number"]))
        except CbirError:
            raise Missing("scan", "the images of this scan are gone") from None
        return scan

    def read(self, source: str | Path, kept: Kept | None) -> list[Scan]:
        """The scans of a hit's or a query's source, for a report."""
        number = None if kept is None else kept.number(str(source))
        return self.index.scans(source) if kept is None or number is None else [kept.scan(number)]

    def pseudonym(self, patient_id: str) -> str:
        """A patient's keyed hash, also where the index keeps ids as they are."""
        index = self.index.case_index
        return index.pseudonym("patient", patient_id) if index.manifest.keep_ids else patient_id

    # ---- changes -------------------------------------------------------------------------------

    def index_upload(
        self,
        upload: IO[bytes],
        name: str,
        *,
        who: str,
        labels: Mapping[str, str] | None = None,
        address: str = "",
    ) -> Job:
        """Unpack an upload, see that there is something to read, and queue it for indexing.

        Raises
        ------
        CbirError
        Busy
        """
        with self.new_folder() as folder, scrubbing(folder):
            unpack(upload, name, folder, self.settings)
            found, _ = discovered(folder)
            if not found.sources:
                raise found.failures[0]
            if any(source.patient_id == folder.name for source in found.sources):  # another one each time
                remedy = "call it after patient and sequence, such as P-017_t1ce.nii.gz"
                raise Unreadable("upload", "a file's name does not say whose scan it is", remedy)
        return self.index_folder(folder, who=who, labels=labels, address=address)

    def index_series(
        self, series: str, *, who: str, labels: Mapping[str, str] | None = None, address: str = ""
    ) -> Job:
        """Get a series from the PACS and queue it for indexing.

        Raises
        ------
        CbirError
        Busy
        """
        with self.new_folder() as folder:
            self.download(series, folder)
        return self.index_folder(folder, who=who, labels=labels, address=address)

    def index_folder(
        self, folder: Path, *, who: str, labels: Mapping[str, str] | None = None, address: str = ""
    ) -> Job:
        """Queue the images below a folder for indexing.

        The service keeps their voxels (see :mod:`retrieval.service.spool`); the folder is removed when
        the job is over. The same series again changes nothing, with more slices it replaces the old one.

        Parameters
        ----------
        folder : Path
            As :meth:`new_folder` makes it.
        who : str
            For the audit trail.
        labels : mapping, optional
            Labels of all patients in the folder; else those of a ``participants.tsv`` at its top.

        Raises
        ------
        Busy
            If too many jobs wait; the folder is removed, too.
        """

        def work(job: Job) -> dict[str, Any]:
            taken = Taken()
            try:
                with scrubbing(folder):
                    taken = take_in(
                        self._writer,
                        self._encoder,
                        folder,
                        labels=labels,
                        progress=job.advance,
                        committed=lambda: self._renew(now=False),
                    )
            except WriterBusyError:
                raise  # it is tried again
            except CbirError:
                self._tell_indexed(who, address, taken)
                raise
            self._renew()
            self._tell_indexed(who, address, taken)
            failed = [scrubbed(reason, folder) for reason in taken.failed]
            if not taken.indexed + taken.unchanged:
                raise Unreadable("upload", failed[0])
            counts = self._writer.catalog.count()
            return {
                "schema": 1,
                "indexed": taken.indexed,
                "unchanged": taken.unchanged,
                "failed": [{"reason": reason} for reason in failed],
                "embedded": taken.embedded,
                "cases": counts["cases"],
                "slices": counts["slices"],
            }

        return self.jobs.submit("index", work, who=who, after=lambda: shutil.rmtree(folder, True))

    def remove_series(self, series: str, *, who: str) -> Job:
        """Queue the removal of a series that came over the network.

        Parameters
        ----------
        series : str
            Pseudonym of its SeriesInstanceUID.
        who : str

        Raises
        ------
        Busy
        """

        def work(job: Job) -> dict[str, Any]:
            patients = self._patients_of(series)
            removed = unspool(self._writer, series)
            self._renew()
            self.audit.record("remove", who, patients=patients, scans=removed)
            return {"schema": 1, "removed": removed}

        return self.jobs.submit("remove", work, who=who)

    def remove_case(self, case_id: str, *, who: str, address: str = "") -> Job:
        """Queue the removal of a case, with its images where the service keeps them.

        Raises
        ------
        Missing
            If there is no such case.
        Busy
        """
        patient = self.pseudonym(self.case(case_id)["patient_id"])

        def work(job: Job) -> dict[str, Any]:
            with self._writer.writing("remove"):
                removed = self._writer.catalog.remove_cases([case_id])
                self._writer.file_vectors()
                self._writer.catalog.log("remove", {"cases": removed})
                sweep(self._writer)
            self._renew()
            self.audit.record("remove", job.who, address=address, patients=[patient], cases=removed)
            return {"schema": 1, "removed": removed}

        return self.jobs.submit("remove", work, who=who)

    @contextmanager
    def new_folder(self) -> Iterator[Path]:
        """An empty folder among the temporary ones; it is removed again if filling it fails."""
        folder = Path(tempfile.mkdtemp(dir=self._scratch, prefix="upload-"))
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _tell_indexed(self, who: str, address: str, taken: Taken) -> None:
        self.audit.record(
            "index",
            who,
            "success" if taken.indexed + taken.unchanged else "failure",
            address=address,
            patients=sorted(taken.patients),
            indexed=taken.indexed,
            unchanged=taken.unchanged,
            failed=len(taken.failed),
        )

    def _patients_of(self, series: str) -> list[str]:
        contents, folder = self.index.contents, str(self.settings.index / SPOOL / series)
        found = {
            contents.patient_ids[contents.scan_case[scan]]
            for scan, source in enumerate(contents.scan_source)
            if source.startswith(folder)
        }
        return sorted(map(self.pseudonym, found))

    def _renew(self, *, now: bool = True) -> None:
        """Let questions see what has been committed (in the writer's thread)."""
        if not now and time.monotonic() - self._renewed < REST * self._cost:
            return
        start = time.monotonic()
        revision = self._writer.catalog.revision
        self.index.refresh()
        self._revision = revision
        self._renewed = time.monotonic()
        self._cost = self._renewed - start
        self._trim()

    def _trim(self) -> None:
        if time.monotonic() - self._trimmed > TRIMMED:
            trim()
            self._trimmed = time.monotonic()

    def _idle(self) -> None:
        self.queries.sweep()
        self._trim()
        if self._writer.catalog.revision != self._revision:  # another process wrote
            self._renew(now=False)
        elif self._calibrated != self._revision:
            self._calibrated = self._revision
            if due(self._writer, self.index.contents):
                self.index.calibrate()

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """A temporary folder for one question."""
        with self.new_folder() as folder:
            yield folder
        shutil.rmtree(folder, ignore_errors=True)


def _scratch() -> Path:
    """A temporary folder of our own; those of services that were killed are removed.

    The empty ``cbir.json`` stops the readers from looking for one further up.
    """
    root = Path(tempfile.gettempdir())
    for left in root.glob(f"{SCRATCH}*"):
        pid = left.name.removeprefix(SCRATCH).partition("-")[0]
        with suppress(OSError):
            if pid.isdecimal() and left.stat().st_uid == os.getuid() and not _alive(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-", dir=root))
    (folder / CONFIG).write_text("{}")
    return folder


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
