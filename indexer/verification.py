"""What is not sound in an index: its store against the catalog, and its key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from indexer import sealed
from indexer.catalog import Catalog
from indexer.errors import CbirError
from indexer.files import content, sha256
from indexer.manifest import Manifest
from indexer.premises import check_of
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
    snapshots.forget()
    found: list[Problem] = []
    try:
        contents = catalog.contents()
        for one in store.differences(filed, snapshots.partition(filed), contents):
            found.append(Problem(one.where, one.what, sound=one.sound))
    except CbirError as error:
        found.append(Problem(error.where, error.reason))
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        found.append(Problem(filed.file, f"cannot be read ({error})"))
    return found


def of_key(key: Path, check: str | None, *, repair: bool) -> list[Problem]:
    """Whether the key is there, the one that made the index, and nobody else's to read.

    Parameters
    ----------
    key : Path
    check : str or None
        What :func:`indexer.premises.check_of` said of it, if that is known.
    repair : bool
        Take away the rights of others.
    """
    try:
        held = content(key, 1000)
    except PermissionError:
        return [Problem(str(key), "the key is not yours to read, and was not looked at", sound=True)]
    except OSError:
        return [Problem(str(key), "the key is missing: patients indexed from now on get other pseudonyms")]
    if check not in (None, check_of(held)):
        return [Problem(str(key), "is not the key that the index was made with: restore it from a backup")]
    if key.lstat().st_mode & 0o077:
        if repair:
            key.chmod(0o600)
        return [Problem(str(key), "others may read the key (mode should be 600)", mended=repair)]
    return []


def of_manifest(path: Path, manifest: Manifest, *, repair: bool) -> list[Problem]:
    """Whether the manifest is as it was written; where `repair` says it is written again as it is now."""
    try:
        data, whole = sealed.load(path)
    except (OSError, ValueError) as error:
        return [Problem(str(path), f"the manifest cannot be read ({error})")]
    if whole is not False or data.get("format") == 1:
        return []
    if repair:
        manifest.save(path)
    return [Problem(str(path), "the manifest does not match its checksum", mended=repair)]


def of_weights(weights: Path, checksum: str | None) -> list[Problem]:
    """Whether the encoder's weights are those that made the index."""
    if checksum is None:
        return []
    try:
        if sha256(weights) == checksum:
            return []
        what = "does not match its checksum: restore it from a backup"
    except OSError as error:
        what = f"cannot be read ({error.strerror}): restore it from a backup"
    return [Problem(str(weights), what)]


def of_calibration(path: Path, *, repair: bool) -> list[Problem]:
    """Whether what was learnt is as it was written; where `repair` says it is taken away if not."""
    try:
        sealed.read(path)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        if repair:
            path.unlink()
        told = "; taken away: the next `cbir index` learns it anew" if repair else ""
        return [Problem(str(path), f"cannot be used ({error}){told}", mended=repair)]
    return []
