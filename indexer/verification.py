"""What is not sound in an index: its store against the catalog, and its key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from indexer.catalog import Catalog
from indexer.errors import CbirError
from indexer.snapshot import Snapshots
from indexer.stores import Filed, Store


@dataclass(frozen=True)
class Problem:
    """Something `verify` found.

    Attributes
    ----------
    where, what : str
    mended : bool
    sound : bool
        True for a note that needs no mending.
    """

    where: str
    what: str
    mended: bool = False
    sound: bool = False


def differences(catalog: Catalog, store: Store, filed: Filed | None, snapshots: Snapshots) -> list[Problem]:
    """What is not in the store as the catalog has it, everything being read again."""
    if filed is None:
        return []
    contents = catalog.contents()
    snapshots.forget()
    found: list[Problem] = []
    try:
        for one in store.differences(filed, snapshots.partition(filed), contents):
            found.append(Problem(one.where, one.what, sound=one.sound))
    except CbirError as error:
        found.append(Problem(error.where, error.reason))
    except (OSError, RuntimeError, ValueError) as error:
        found.append(Problem(filed.file, f"cannot be read ({error})"))
    return found


def of_key(key: Path, *, repair: bool) -> list[Problem]:
    """Whether the key is there, and nobody else's to read; if not, it is made so where `repair` says."""
    if not key.is_file():
        return [Problem(str(key), "the key is missing: patients indexed from now on get other pseudonyms")]
    if key.stat().st_mode & 0o077:
        if repair:
            key.chmod(0o600)
        return [Problem(str(key), "others may read the key (mode should be 600)", mended=repair)]
    return []
