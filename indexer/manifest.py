"""The manifest of an index folder: what made the index, and what belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from indexer import sealed
from indexer.errors import CaseIndexError
from indexer.stores import LOCAL, Filed, address
from indexer.stores.filed import DIGEST, checked, either, number, text

FORMAT = 2
"""2: with addresses, and since it has one with a seal; 1: with engines by name."""
MANIFEST = "manifest.json"


RULES: Mapping[str, Any] = {
    "encoder": text(200, r"(?!.*\.safetensors$)[^/\\]+"),  # a name, and no path to weights
    "encoder_version": text(200),
    "dimension": number(1, 2**16),
    "size": number(8, 2**13),
    "preprocessing": text(1000),
    "keep_ids": lambda value: isinstance(value, bool),
    "created": text(40),
    "store": text(1000, r"[a-z].*"),
    "catalog": either(None, text(1000)),
    "name": text(63, r"[a-z0-9_]*"),
    "key_check": either(None, text(64, DIGEST)),
    "weights_sha256": either(None, text(64, DIGEST)),
    "format": number(1, FORMAT),
}
"""What each field may be."""


@dataclass(frozen=True)
class Manifest:
    """What made the index, and what belongs to it.

    `store` is the address of the engine for the vectors (:mod:`indexer.stores.registry`); `catalog` is the
    URL of a database where it is no file in the folder; `name` is what the index is called there.
    `key_check` and `weights_sha256` are checksums of the key (:func:`indexer.premises.check_of`) and of the
    encoder's weights; None where an earlier version made the index, or there are no weights.
    """

    encoder: str
    encoder_version: str
    dimension: int
    size: int
    preprocessing: str
    keep_ids: bool
    created: str
    vectors: Filed | None = None
    store: str = LOCAL
    catalog: str | None = None
    name: str = ""
    key_check: str | None = None
    weights_sha256: str | None = None
    format: int = FORMAT

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest, of this format or of an earlier one.

        Raises
        ------
        CaseIndexError
            If it is missing, no manifest, or of another format.
        """
        try:
            data, _ = sealed.load(path)  # what a flipped bit can do here `cbir verify` tells
            if (held := data["format"]) not in range(1, FORMAT + 1):
                raise CaseIndexError(
                    path.parent,
                    f"the index has format {str(held)[:20]}, this cbir reads up to {FORMAT}",
                    "install a later cbir, or index again into another folder",
                )
            vectors = data.pop("vectors")
            data = checked(_current(data), RULES)
            return cls(**data, vectors=None if vectors is None else Filed.of(vectors))
        except FileNotFoundError:
            if (path.parent / "catalog.sqlite").exists():
                raise CaseIndexError(
                    path, "the manifest is missing", "restore it from a backup, or index into another folder"
                ) from None
            raise CaseIndexError(
                path.parent,
                "there is no index here",
                "make one with `cbir index FOLDER`, or name it with --index",
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CaseIndexError(
                path, f"the manifest cannot be read ({error})", "restore it from a backup, or index again"
            ) from error

    def save(self, path: Path) -> None:
        """Replace the manifest in one step.

        Raises
        ------
        CaseIndexError
            If it could not be read again.
        """
        data = asdict(self)
        try:
            checked({name: value for name, value in data.items() if name != "vectors"}, RULES)
        except ValueError as error:
            raise CaseIndexError(path.parent, f"cannot be made so ({error})", "name something else") from None
        sealed.write(path, data)


def _current(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of format 1, which named an engine and its place, as they are called now."""
    if data["format"] == 1:
        named = {"engine": data.pop("engine", LOCAL), "uri": data.pop("uri", None)}
        named = checked(named, {"engine": text(40), "uri": either(None, text(1000))})
        data["store"] = address(named["engine"], named["uri"])
    return {**data, "format": FORMAT}
