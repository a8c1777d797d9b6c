"""Changes that were accepted and not yet made: on the disk, so that they outlive the service.

::

    inbox/.new-…          is being received, or removed; what is left of it at a start belongs to nobody
    inbox/ID/job.json     what is to be done, for whom; whether it was begun
    inbox/ID/cbir.json    stops the readers from looking for settings further up
    inbox/ID/ID/          the files

A change is accepted when its folder has its name, and over when it has none.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from indexer.discovery.config import CONFIG
from indexer.errors import CbirError
from indexer.files import needing_room, written_whole
from retrieval.service.log import tell
from retrieval.service.private import is_own, own_folder, sync, sync_all

INBOX = "inbox"
"""Folder in the index folder."""
_NEW = ".new-"
_JOB = "job.json"
TRIES = 2
"""Times that a change is begun: one during which the service was killed twice is not tried again."""


@dataclass(frozen=True)
class Order:
    """A change that is to be made.

    Attributes
    ----------
    id : str
        Of the job, and of its lines in the audit trail.
    what : {"index", "remove"}
    who : str
        Name of the token.
    address : str
        Where the request came from.
    created : str
    labels : mapping, optional
        Of all patients of the upload.
    case : str, optional
        The case to be removed.
    patients : tuple of str
        Pseudonyms of those concerned, where they are known before.
    tries : int
        How often it was begun.
    """

    id: str
    what: Literal["index", "remove"]
    who: str
    address: str
    created: str
    labels: Mapping[str, str] | None = None
    case: str | None = None
    patients: tuple[str, ...] = ()
    tries: int = 0


class Inbox:
    """The orders of an index folder.

    Parameters
    ----------
    index : Path
        The index folder.

    Raises
    ------
    CbirError
        If its folder cannot be made, or is a link.
    """

    def __init__(self, index: Path) -> None:
        self._folder = own_folder(index / INBOX)
        for left in self._folder.glob(f"{_NEW}*"):
            if is_own(left):
                shutil.rmtree(left, ignore_errors=True)

    @contextmanager
    def receiving(self, id: str) -> Iterator[Path]:
        """A folder for the files of an order; it vanishes unless they are accepted within."""
        new = Path(tempfile.mkdtemp(prefix=_NEW, dir=self._folder))
        try:
            (new / CONFIG).write_text("{}")
            (new / id).mkdir(mode=0o700)
            yield new / id
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def accept(self, order: Order, files: Path | None = None) -> None:
        """Have an order on the disk.

        Parameters
        ----------
        order : Order
        files : Path, optional
            As :meth:`receiving` gave it.

        Raises
        ------
        DiskFullError
            If there is no room for it.
        """
        with needing_room(self._folder):
            if files is None:
                with self.receiving(order.id) as files:
                    self._take(order, files)
            else:
                self._take(order, files)

    def _take(self, order: Order, files: Path) -> None:
        new = files.parent
        (new / _JOB).write_text(json.dumps(asdict(order)))
        sync_all(new)
        new.rename(self._folder / order.id)
        sync(self._folder)

    def files(self, order: Order) -> Path:
        """The folder of an order's files."""
        return self._folder / order.id / order.id

    def begin(self, order: Order) -> None:
        """Write down that the work on an order begins."""
        with written_whole(self._folder / order.id / _JOB) as new:
            new.write_text(json.dumps({**asdict(order), "tries": order.tries + 1}))

    def drop(self, order: Order) -> None:
        """An order is over."""
        over = self._folder / f"{_NEW}{order.id}"
        try:
            (self._folder / order.id).rename(over)
        except FileNotFoundError:
            return
        shutil.rmtree(over, ignore_errors=True)

    def orders(self) -> list[Order]:
        """What is still to be done, the oldest first; what is no order is told to the log and left alone."""
        found = []
        for folder in self._folder.iterdir():
            if folder.name.startswith(_NEW) or not is_own(folder):
                continue
            try:
                told = json.loads((folder / _JOB).read_text("utf-8"))
                order = Order(**{**told, "patients": tuple(told["patients"])})
                if order.id != folder.name:
                    raise ValueError
            except (OSError, ValueError, TypeError, KeyError) as error:
                tell(error)
                continue
            found.append(order)
        return sorted(found, key=lambda order: (order.created, order.id))


class GivenUp(CbirError):
    """A change during which the service was killed again and again."""
