"""Questions to the index: with a scan that was sent, a series of the PACS, a query asked before, or cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from cbir.index import Index
from indexer.errors import QueryError
from indexer.scan import Scan
from retrieval.answer import Answer
from retrieval.parsing import Box, By
from retrieval.question import Question
from retrieval.service.intake import read
from retrieval.service.orthanc import Limits, Orthanc
from retrieval.service.pictures import Pictures
from retrieval.service.queries import Kept, Queries
from retrieval.service.reasons import in_own_words
from retrieval.service.scratch import Scratch
from retrieval.service.settings import Settings
from retrieval.service.uploads import unpack


@dataclass(frozen=True)
class Terms:
    """What is asked beside the scan: as in :class:`cbir.Question`."""

    k: int = 10
    where: Mapping[str, str] = field(default_factory=dict)
    region: Box | None = None
    region_slice: int | None = None
    exclude_patient: str | None = None
    all_cases: bool = False
    by: By | None = None

    def of_scans(self, name: str, scans: Sequence[Scan], own: str | None) -> Question:
        """Asked with scans, of a patient who is left out of the hits if named."""
        return Question(
            name,
            scans,
            k=self.k,
            where=self.where,
            region=self.region,
            region_slice=self.region_slice,
            exclude_patient=[patient for patient in (self.exclude_patient, own) if patient],
            all_cases=self.all_cases,
            by=self.by,
        )

    def of_cases(self, case_ids: Sequence[str]) -> Question:
        """Asked with cases of the index.

        Raises
        ------
        QueryError
            If a region is marked, which goes with a scan.
        """
        return Question(
            like=case_ids,
            k=self.k,
            where=self.where,
            region=self.region,
            region_slice=self.region_slice,
            exclude_patient=self.exclude_patient,
            all_cases=self.all_cases,
            by=self.by,
        )


class Questions:
    """What can be asked.

    Parameters
    ----------
    settings : Settings
    index : Index
    pictures : Pictures
        Of the same index.
    queries : Queries
        Where scans that ask are kept.
    scratch : Scratch
    """

    def __init__(
        self, settings: Settings, index: Index, pictures: Pictures, queries: Queries, scratch: Scratch
    ) -> None:
        self._settings, self._index, self._pictures = settings, index, pictures
        self._queries, self._scratch = queries, scratch

    def with_upload(self, upload: IO[bytes], name: str, terms: Terms, who: str) -> tuple[Answer, Kept]:
        """The cases most similar to an uploaded scan.

        Raises
        ------
        CbirError
        """
        with self._scratch.new_folder() as folder, in_own_words():
            unpack(upload, name, folder, self._settings)
            scans, notes = read(folder)
        return self._asked_with(scans, notes, terms, who)

    def with_study(self, study: str, terms: Terms, who: str) -> tuple[Answer, Kept]:
        """The cases of other patients most similar to a study of the PACS, which is indexed itself.

        Raises
        ------
        CbirError
        """
        with self._scratch.new_folder() as folder:
            with self._pacs("study") as pacs:
                pacs.study(study, folder, self._settings.modalities)
            with in_own_words():
                scans, notes = read(folder)
        return self._asked_with(scans, notes, terms, who, others=True)

    def with_series(self, series: str, terms: Terms, who: str) -> tuple[Answer, Kept]:
        """The cases of other patients most similar to a series of the PACS, which is indexed itself.

        Raises
        ------
        CbirError
        """
        with self._scratch.new_folder() as folder:
            self.download(series, folder)
            with in_own_words():
                scans, notes = read(folder)
        return self._asked_with(scans, notes, terms, who, others=True)

    def again(self, kept: Kept, terms: Terms) -> Answer:
        """The cases most similar to a query that was asked before.

        Raises
        ------
        CbirError
        """
        return self._ask(kept.scans(), f"query {kept.id}", terms, kept.excluded)

    def like(self, case_ids: Sequence[str], terms: Terms) -> Answer:
        """The cases most similar to some of the index.

        Raises
        ------
        Missing
            If there is no such case.
        CbirError
        """
        for case_id in case_ids:
            self._pictures.case(case_id)
        return self._index.query(terms.of_cases(case_ids))

    def report(self, series: str, terms: Terms) -> tuple[str, list[str]]:
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

        with self._scratch.new_folder() as folder, self._pacs() as pacs:
            files = pacs.series(series, folder)
            with in_own_words():
                scans, _ = read(folder)
            held = self._index.case_index
            answer = self._ask(scans, "the series", terms, held.patient(scans[0].patient_id))
            if not answer.hits:
                raise QueryError("the series", "no case matches: there is nothing to report")
            encoder = f"{held.manifest.encoder} {held.manifest.encoder_version}"
            report = structured_report(answer, files, encoder, where=terms.where)
            return pacs.store(report), [held.pseudonym("patient", scans[0].patient_id)]

    def download(self, series: str, folder: Path) -> None:
        """Get a series from the PACS.

        Raises
        ------
        CbirError
            If there is no PACS, it does not answer, or has no such series.
        """
        with self._pacs() as pacs:
            pacs.series(series, folder)

    def _pacs(self, what: str = "series") -> Orthanc:
        if self._settings.pacs is None:
            raise QueryError(what, "this service has no PACS", "start it with --pacs URL")
        return Orthanc(self._settings.pacs, limits=Limits.of(self._settings))

    def _asked_with(
        self, scans: Sequence[Scan], notes: Sequence[str], terms: Terms, who: str, *, others: bool = False
    ) -> tuple[Answer, Kept]:
        held = self._index.case_index
        own = held.patient(scans[0].patient_id) if others else None
        kept = self._queries.keep(scans, who, held.pseudonym("patient", scans[0].patient_id), own)
        scans = [replace(s, source=k.path) for s, k in zip(scans, kept.sources, strict=True)]
        try:
            answer = self._ask(scans, f"query {kept.id}", terms, own)
            return replace(answer, notes=[*notes, *answer.notes]), kept
        except BaseException:
            self._queries.drop(kept)
            raise

    def _ask(self, scans: Sequence[Scan], source: str, terms: Terms, own: str | None = None) -> Answer:
        return self._index.query(terms.of_scans(source, scans, own))
