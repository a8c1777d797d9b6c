"""Errors a user can mend: what is wrong, where, and what to do about it, in one line."""

from __future__ import annotations

import os


class CbirError(Exception):
    """Base of every error that is the world's fault, not the program's.

    Parameters
    ----------
    where : str or path-like
        The file, folder or setting concerned.
    reason : str
        What is wrong with it, as a clause without a full stop.
    remedy : str, optional
        What the user can do, as a clause without a full stop.
    """

    def __init__(self, where: str | os.PathLike[str], reason: str, remedy: str = "") -> None:
        self.where = os.fspath(where)
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{self.where}: {self.explanation}")

    @property
    def explanation(self) -> str:
        """Reason and remedy, without the place."""
        return f"{self.reason}; {self.remedy}" if self.remedy else self.reason

    def __reduce__(self) -> tuple[type[CbirError], tuple[str, str, str]]:
        return type(self), (self.where, self.reason, self.remedy)


class ReadError(CbirError):
    """A file or series that cannot be read as an image, or not safely."""


class PoisonError(ReadError):
    """What ended the process that read it, or took more time or memory than it may."""


class LabelsError(CbirError):
    """A labels table that cannot be understood."""


class EncoderError(CbirError):
    """An encoder that is unknown, or is not the one that made the index."""


class PartitionError(CbirError):
    """A fuzzy partition that collapsed or does not fit its vectors."""


class CaseIndexError(CbirError):
    """An index folder that is missing, damaged, locked or of another format."""


class WriterBusyError(CaseIndexError):
    """Another process writes to the index: it can be tried again."""


class StaleError(CaseIndexError):
    """The index was changed since it was opened: what is asked again is answered from the new state."""


class DiskFullError(CbirError):
    """No room is left where something was to be written; what was committed before is whole."""


class ClusterError(CbirError):
    """A Ray cluster that cannot be reached, or whose workers cannot do the work."""


class QueryError(CbirError):
    """A question the index cannot answer as asked."""
