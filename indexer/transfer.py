"""The same index on another engine, or the same engine elsewhere. What ``cbir copy`` runs."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from indexer import places, sealed
from indexer.case_index import PLACELESS, CaseIndex
from indexer.errors import CaseIndexError, CbirError
from indexer.files import ASIDE, opened, there, written_whole
from indexer.journal import NAME as JOURNAL
from indexer.lock import HOLDER, LOCK
from indexer.manifest import MANIFEST, Manifest
from indexer.premises import COPYING, REMOVING
from indexer.stores import LOCAL, Filed
from indexer.stores.filed import checked, either, text

LEFT = (MANIFEST, LOCK, HOLDER, COPYING, REMOVING, JOURNAL)
"""What the copy has of its own, beside catalog, vectors, and the folders of a service."""


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
    with source.writing("copy"):
        held, begun = source.manifest, source.folder / COPYING
        _discard(begun, held)
        if there(folder, CaseIndexError) or folder.is_symlink():
            raise CaseIndexError(folder, "exists already", "name a new folder")
        mark = secrets.token_hex(8)  # nobody else knows it: what bears it is ours to take away
        aside = _aside(folder, mark)
        manifest = replace(
            held,
            store=store,
            catalog=catalog,
            name=f"cbir_{mark}",
            vectors=None if held.vectors is None else _partition_of(held.vectors),
        )
        for address in (store, catalog):
            if address not in (None, *PLACELESS):
                places.name(address)
        CaseIndex.reach(aside, manifest)  # what is begun there has to be taken away, if it fails
        told = {"to": str(folder), "mark": mark, "store": store, "catalog": catalog}
        try:
            checked(told, RULES)  # what is written could else not be read again
        except ValueError as error:
            what = f"cannot be copied so ({error})"
            raise CaseIndexError(source.folder, what, "name another place") from None
        try:
            sealed.write(begun, told)
            aside.mkdir(mode=0o700)
            for name in _taken(source.folder):
                _copy(source.folder / name, aside / name)
            manifest.save(aside / MANIFEST)
            with CaseIndex.made(aside, manifest, source.policy) as copy:
                copy.catalog.take_over(source.catalog)
                copy.file_vectors()
                if unsound := [problem for problem in copy.verify() if not problem.sound]:
                    raise CaseIndexError(source.folder, unsound[0].what, "run `cbir verify` on it")
                manifest = copy.manifest
            aside.rename(folder)
            begun.unlink()
        except OSError as error:
            with suppress(CbirError, OSError):
                _discard(begun, held)
            raise CaseIndexError(folder, f"cannot be written ({error.strerror})", "name another") from error
        except BaseException:
            with suppress(CbirError, OSError):
                _discard(begun, held)
            raise
    return manifest


def _aside(folder: Path, mark: str) -> Path:
    return folder.with_name(f".{folder.name[:200]}.{mark}{ASIDE}")


def _taken(folder: Path) -> list[str]:
    """Names of the files that the copy gets as they are."""
    own = ("catalog.sqlite", "vectors-")
    names = (entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False))
    return [n for n in names if n not in LEFT and not n.startswith((".", *own)) and not n.endswith(ASIDE)]


def _copy(file: Path, to: Path) -> None:
    with (
        os.fdopen(opened(file), "rb") as held,
        written_whole(to, private=True) as aside,
        aside.open("wb") as new,
    ):
        shutil.copyfileobj(held, new)


def _partition_of(filed: Filed) -> Filed:
    """What was filed, as if only its partition were there."""
    return replace(filed, file="", sha256="", entries=0, rows=None, rows_sha256=None, pieces=())


def _discard(begun: Path, source: Manifest) -> None:
    """Take away what a copy has made so far, here and on the servers: what bears its mark, and that alone."""
    try:
        data = checked(sealed.read(begun, sealed=True), RULES)
    except FileNotFoundError:
        return
    except ValueError as error:
        raise CaseIndexError(begun, f"cannot be used ({error})", "move it away") from error
    folder, mark = Path(data["to"]), data["mark"]
    aside = _aside(folder, mark)
    manifest = replace(
        source, store=data["store"], catalog=data["catalog"], name=f"cbir_{mark}", vectors=None
    )
    if not _finished(folder, manifest):
        for address in (manifest.store, manifest.catalog):
            if address not in (None, *PLACELESS):
                places.require(address, begun, "copy")
        if aside.is_dir() or manifest.store not in PLACELESS or manifest.catalog:
            try:
                CaseIndex.discard(aside, manifest)
            except CbirError as error:
                raise CaseIndexError(
                    begun,
                    f"what an earlier copy left behind cannot be taken away ({error.where}: {error.reason})",
                    "try again when it can, or move this file away to leave it there for good",
                ) from error
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
    begun.unlink()


def _finished(folder: Path, manifest: Manifest) -> bool:
    """Whether a copy was killed after it was whole."""
    try:
        return Manifest.load(folder / MANIFEST).name == manifest.name
    except CbirError:
        return False


RULES = {
    "to": text(4096, "/.*"),
    "mark": text(16, "[0-9a-f]{16}"),
    "store": text(1000, "[a-z].*"),
    "catalog": either(None, text(1000)),
}
