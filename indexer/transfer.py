"""The same index on another engine, or the same engine elsewhere. What ``cbir copy`` runs."""

from __future__ import annotations

import secrets
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from indexer.case_index import CaseIndex
from indexer.errors import CaseIndexError, CbirError
from indexer.files import ASIDE
from indexer.lock import HOLDER, LOCK
from indexer.manifest import MANIFEST, Manifest
from indexer.stores import LOCAL, Filed

LEFT = (MANIFEST, LOCK, HOLDER, "catalog.sqlite*", "vectors-*", "audit", f"*{ASIDE}")
"""What the copy has of its own; an audit trail tells what happened to the index that it lies in."""


def transfer(
    source: CaseIndex,
    folder: Path,
    *,
    store: str = LOCAL,
    catalog: str | None = None,
) -> Manifest:
    """Copy an index, with its ids, key, partition and what it has learnt.

    It is made aside, verified, and renamed: either there is a whole index in the end or none. What a
    killed copy left, on the servers too, is taken away by the next one to the same place.

    Parameters
    ----------
    source : CaseIndex
        Nobody can write to it meanwhile.
    folder : Path
        The new index; must not exist.
    store, catalog
        As in :meth:`CaseIndex.create`.

    Returns
    -------
    Manifest
        Of the new index.

    Raises
    ------
    CaseIndexError
        If there is something at `folder`, a server does not answer, or the copy is not sound.
    """
    if folder.exists():
        raise CaseIndexError(folder, "exists already", "name a new folder")
    aside = folder.with_name(f".{folder.name}{ASIDE}")
    with source.writing("copy"):
        held = source.manifest
        manifest = replace(
            held,
            store=store,
            catalog=catalog,
            name=f"cbir_{secrets.token_hex(8)}",
            vectors=None if held.vectors is None else _partition_of(held.vectors),
        )
        try:
            _discard(aside)
            shutil.copytree(source.folder, aside, ignore=shutil.ignore_patterns(*LEFT))
            manifest.save(aside / MANIFEST)  # it names what is about to be made on the servers
            with CaseIndex.made(aside, manifest, source.policy) as copy:
                copy.catalog.take_over(source.catalog)
                copy.file_vectors()
                if unsound := [problem for problem in copy.verify() if not problem.sound]:
                    raise CaseIndexError(source.folder, unsound[0].what, "run `cbir verify` on it")
                manifest = copy.manifest
            aside.rename(folder)
        except OSError as error:
            with suppress(CbirError):
                _discard(aside)
            raise CaseIndexError(folder, f"cannot be written ({error.strerror})", "name another") from error
        except BaseException:
            with suppress(CbirError):
                _discard(aside)
            raise
    return manifest


def _partition_of(filed: Filed) -> Filed:
    """What was filed, as if only its partition were there."""
    return replace(filed, file="", sha256="", entries=0, rows=None, rows_sha256=None, pieces=())


def _discard(folder: Path) -> None:
    """Take away what a copy has made so far."""
    if (folder / MANIFEST).exists():
        CaseIndex.discard(folder)
    shutil.rmtree(folder, ignore_errors=True)
