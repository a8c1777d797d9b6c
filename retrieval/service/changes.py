"""Changes of the index: accepted on the disk, told to the audit trail, made one after the other."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from cbir.index import Index
from indexer.errors import QueryError
from retrieval.service.audit import Act, Audit, AuditError, now
from retrieval.service.inbox import TRIES, GivenUp, Inbox, Order
from retrieval.service.intake import Taken, discovered, take_in
from retrieval.service.jobs import Job, Jobs, Room
from retrieval.service.pictures import Pictures
from retrieval.service.reasons import in_own_words, told
from retrieval.service.settings import Settings
from retrieval.service.spool import SPOOL, sweep, unspool
from retrieval.service.uploads import Unreadable, unpack


class Changes:
    """What can be changed.

    Parameters
    ----------
    settings : Settings
    index : Index
        For questions.
    writer : Index
        The same one, for the thread of `jobs`.
    pictures : Pictures
    jobs : Jobs
    audit : Audit
    renew : callable
        Lets questions see what has been committed; at once, or when it is time.
    """

    def __init__(
        self,
        settings: Settings,
        index: Index,
        writer: Index,
        pictures: Pictures,
        jobs: Jobs,
        audit: Audit,
        renew: Callable[[bool], None],
    ) -> None:
        self._settings, self._index, self._writer = settings, index, writer
        self._pictures, self._jobs, self._audit, self._renew = pictures, jobs, audit, renew
        self._inbox = Inbox(settings.index)

    # ---- what is accepted ----------------------------------------------------------------------

    def index_upload(
        self,
        upload: IO[bytes],
        name: str,
        *,
        who: str,
        labels: Mapping[str, str] | None = None,
        address: str = "",
    ) -> Job:
        """Unpack an upload, see that there is something to read, and accept it for indexing.

        Raises
        ------
        CbirError
        Busy
        """

        def receive(folder: Path) -> None:
            with in_own_words():
                unpack(upload, name, folder, self._settings)
                found = discovered(folder)
                if not found.sources:
                    raise found.failures[0]
                if any(source.patient_id == folder.name for source in found.sources):  # another one each time
                    remedy = "call it after patient and sequence, such as P-017_t1ce.nii.gz"
                    raise Unreadable("upload", "a file's name does not say whose scan it is", remedy)

        return self.index_files(receive, who=who, labels=labels, address=address)

    def index_files(
        self,
        receive: Callable[[Path], object],
        *,
        who: str,
        labels: Mapping[str, str] | None = None,
        address: str = "",
    ) -> Job:
        """Accept images for indexing.

        The service keeps their voxels (see :mod:`retrieval.service.spool`); the files are removed when the
        job is over. The same series again changes nothing, with more slices it replaces the old one.

        Parameters
        ----------
        receive : callable
            Puts the files into an empty folder.
        who, address : str
            For the audit trail.
        labels : mapping, optional
            Labels of all patients among them; else those of a ``participants.tsv`` at the top.

        Raises
        ------
        Busy
            If too many jobs wait.
        AuditError
            If the trail cannot be written; nothing is accepted then.
        CbirError
            What `receive` raises.
        """
        order = Order(secrets.token_hex(8), "index", who, address, now(), labels)
        with self._inbox.receiving(order.id) as folder:
            receive(folder)
            return self._accept(order, folder)

    def remove_case(self, case_id: str, *, who: str, address: str = "") -> Job:
        """Accept the removal of a case, with its images where the service keeps them.

        Raises
        ------
        Missing
            If there is no such case.
        Busy
        AuditError
        """
        patient = self._pictures.pseudonym(self._pictures.case(case_id).patient_id)
        order = Order(secrets.token_hex(8), "remove", who, address, now(), case=case_id, patients=(patient,))
        return self._accept(order)

    def remove_series(self, series: str, *, who: str) -> Job:
        """Queue the removal of a series that came from the PACS, which says so again after a restart.

        Parameters
        ----------
        series : str
            Pseudonym of its SeriesInstanceUID.
        who : str

        Raises
        ------
        Busy
        AuditError
        """
        patients = self._patients_of(series)

        def work(job: Job) -> dict[str, Any]:
            removed = unspool(self._writer.case_index, series, self._writer.encoder)
            self._renew(True)
            return {"schema": 1, "removed": removed}

        with self._jobs.room() as room:
            act = self._audit.begin("remove", who, patients=patients)
            job = Job(act.name, "remove", who, created=now())
            return self._jobs.submit(job, work, ended=lambda job: _tell(act, job, patients), room=room)

    def resume(self) -> None:
        """Take up what was accepted before the service was stopped."""
        for order in self._inbox.orders():
            act = Act(self._audit, order.what, order.who, order.address, order.id)
            self._queue(order, act)

    def _accept(self, order: Order, files: Path | None = None) -> Job:
        with self._jobs.room() as room:
            act = self._audit.begin(
                order.what, order.who, address=order.address, patients=order.patients, act=order.id
            )
            try:
                self._inbox.accept(order, files)
                return self._queue(order, act, room)
            except BaseException:
                self._inbox.drop(order)
                with suppress(AuditError):  # what went wrong first is what is told
                    act.end("failure", order.patients)
                raise

    # ---- what is done --------------------------------------------------------------------------

    def _queue(self, order: Order, act: Act, room: Room | None = None) -> Job:
        taken = Taken()

        def work(job: Job) -> dict[str, Any]:
            nonlocal taken
            if order.tries >= TRIES:
                raise GivenUp("job", "the service was ended each time while it worked on this", "see its log")
            self._inbox.begin(order)
            if order.what == "remove":
                return self._remove(order)
            taken = Taken()
            return self._index_files(order, job, taken)

        def ended(job: Job) -> None:
            patients = sorted({*order.patients, *taken.patients})
            with suppress(AuditError):  # it is owed then
                _tell(act, job, patients, taken if order.what == "index" else None)
            self._inbox.drop(order)
            self._audit.settle()  # without the files there may be room

        job = Job(order.id, order.what, order.who, created=order.created)
        return self._jobs.submit(job, work, ended=ended, room=room, lasting=True)

    def _index_files(self, order: Order, job: Job, taken: Taken) -> dict[str, Any]:
        try:
            with in_own_words():
                take_in(
                    self._writer,
                    self._inbox.files(order),
                    taken,
                    labels=order.labels,
                    progress=job.advance,
                    committed=lambda: self._renew(False),
                )
        finally:
            self._renew(True)
        failed = [told(reason) for reason in taken.failed]
        if not taken.indexed + taken.unchanged:
            raise Unreadable("upload", failed[0])
        counts = self._writer.case_index.catalog.count()
        return {
            "schema": 1,
            "indexed": taken.indexed,
            "unchanged": taken.unchanged,
            "failed": [{"reason": reason} for reason in failed],
            "embedded": taken.embedded,
            "cases": counts["cases"],
            "slices": counts["slices"],
        }

    def _remove(self, order: Order) -> dict[str, Any]:
        removed = 0
        with suppress(QueryError):  # removed before the service was stopped
            removed = self._writer.remove([order.case or ""])
        sweep(self._writer.case_index)
        self._renew(True)
        return {"schema": 1, "removed": removed}

    def _patients_of(self, series: str) -> list[str]:
        contents, folder = self._index.contents, str(self._settings.index / SPOOL / series)
        found = {
            contents.patient_ids[contents.scan_case[scan]]
            for scan, source in enumerate(contents.scan_source)
            if source.startswith(folder)
        }
        return sorted(map(self._pictures.pseudonym, found))


def _tell(act: Act, job: Job, patients: list[str], taken: Taken | None = None) -> None:
    """Write down how a job ended."""
    detail: dict[str, Any] = {}
    if taken is not None:
        detail = {"indexed": taken.indexed, "unchanged": taken.unchanged, "failed": len(taken.failed)}
    elif job.report is not None:
        detail = {"removed": job.report["removed"]}
    act.end("failure" if job.error is not None else "success", patients, **detail)
