"""The audit trail: who did what to whose images.

``audit.jsonl`` has one JSON object a line, for people and scripts; ``dicom-audit.xml`` has the same event
on the same line as DICOM audit message (PS3.15, A.5): *Query* for questions, *DICOM Instances Accessed*
for images that were looked at, filed or removed and for reports stored in the PACS. ``refused.jsonl`` and
``dicom-refused.xml`` have, in the same two forms, the *Security Alerts*: what was refused. None holds an
identifier: patients are the index's keyed hashes, and people are the names of their tokens.

What is asked or shown is written down before the answer leaves. What changes something has a line before it
is begun, and one when it has ended; both bear the name of the act. Where the line cannot be written, nothing
is answered or changed. An outcome for which there is no room is owed: it is no success to anybody, and until
it is written nothing else is answered or begun. So a line of something begun that no outcome follows says
that the service was ended meanwhile.

Files are set aside by size. Those of the trail are kept until somebody takes them away; of refusals, which
anybody can cause, the last are kept. All are readable by their owner only.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from indexer.errors import CbirError
from retrieval.service.log import tell
from retrieval.service.refusals import Refusals
from retrieval.service.trail import SIZE, Trail


class AuditError(CbirError):
    """The audit trail cannot be written, so nothing may be done."""


class Audit:
    """An audit trail in a folder.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    size : int
        Bytes of a file, after which it is set aside.

    Raises
    ------
    AuditError
        If the folder cannot be written: a service without an audit trail must not start.
    """

    def __init__(self, folder: Path, size: int = SIZE) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._owed: list[dict[str, Any]] = []
        try:
            self._trail = Trail(folder, "audit.jsonl", "dicom-audit.xml", size=size)
            self.refusals = Refusals(folder, size=size)
        except (OSError, ValueError) as error:
            raise self._error(error, "name a folder with --audit") from error
        except CbirError as error:
            raise AuditError(error.where, error.reason, error.remedy) from error

    def record(
        self,
        event: str,
        who: str,
        outcome: str = "success",
        *,
        address: str = "",
        patients: Sequence[str] = (),
        **detail: Any,
    ) -> None:
        """Write an event down.

        Parameters
        ----------
        event : str
            A key of :data:`retrieval.service.audit_message.EVENTS`.
        who : str
            Name of the token; empty if there was none.
        outcome : str
            A key of :data:`retrieval.service.audit_message.OUTCOMES`.
        address : str
            Where the request came from.
        patients : sequence of str
            Pseudonyms.
        **detail
            Numbers and fixed words only, never text that a client or a file brought along.

        Raises
        ------
        AuditError
            If it cannot be written.
        """
        with self._lock:
            self._pay()
            self._write(_line(event, who, outcome, address, patients, detail))

    def begin(
        self,
        event: str,
        who: str,
        *,
        address: str = "",
        patients: Sequence[str] = (),
        act: str | None = None,
        **detail: Any,
    ) -> Act:
        """Write down that something is about to be changed; it may be, once this returns.

        Parameters
        ----------
        event, who, address, patients, **detail
            As in :meth:`record`.
        act : str, optional
            Its name; one is made up if it has none.

        Raises
        ------
        AuditError
            If it cannot be written: then it must not be done.
        """
        act = act or secrets.token_hex(8)
        self.record(event, who, "begun", address=address, patients=patients, act=act, **detail)
        return Act(self, event, who, address, act)

    def owe(
        self, event: str, who: str, outcome: str, address: str, patients: Sequence[str], **detail: Any
    ) -> None:
        """Write down how something ended that was begun: now, or as soon as it can be, and before all else.

        Raises
        ------
        AuditError
            If it cannot be written now.
        """
        with self._lock:
            self._owed.append(_line(event, who, outcome, address, patients, detail))
            self._pay()

    def settle(self) -> None:
        """Write down what is owed, and what is to be counted of refusals.

        Raises
        ------
        AuditError
            If it cannot be written.
        """
        self.refusals.settle()
        with self._lock:
            self._pay()

    def close(self) -> None:
        """Write down what is owed, if it can be, and what is still to be counted of refusals."""
        self.refusals.settle(all=True)
        try:
            self.settle()
        except AuditError as error:
            tell(error)

    def _pay(self) -> None:
        while self._owed:
            self._write(self._owed[0])
            del self._owed[0]

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._trail.append(line, sync="act" in line)
        except OSError as error:
            raise self._error(error, "make room, or see who may write there") from error

    def _error(self, error: Exception, remedy: str) -> AuditError:
        reason = getattr(error, "strerror", None) or type(error).__name__
        return AuditError(self._folder, f"the audit trail cannot be written ({reason})", remedy)


class Act:
    """A change that was begun, and has no outcome yet."""

    def __init__(self, audit: Audit, event: str, who: str, address: str, name: str) -> None:
        self._audit, self._event, self._who, self._address, self.name = audit, event, who, address, name

    def end(self, outcome: str, patients: Sequence[str] = (), **detail: Any) -> None:
        """Write down how it ended.

        Raises
        ------
        AuditError
            If it cannot be written now: it is owed then, and nobody may hear of a success.
        """
        self._audit.owe(self._event, self._who, outcome, self._address, patients, act=self.name, **detail)


def _line(
    event: str, who: str, outcome: str, address: str, patients: Sequence[str], detail: Mapping[str, Any]
) -> dict[str, Any]:
    line = {"time": now(), "who": who, "event": event, "outcome": outcome, "patients": list(patients)}
    return {**line, **({"address": address} if address else {}), **detail}


def now() -> str:
    """The time as the trail tells it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
