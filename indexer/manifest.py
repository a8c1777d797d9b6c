"""The manifest of an index folder: what made the index, and what belongs to it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from indexer.errors import CaseIndexError
from indexer.files import written_whole
from indexer.stores import LOCAL, Filed, address

FORMAT = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What made the index, and what belongs to it.

    `store` is the address of the engine for the vectors (:mod:`indexer.stores.registry`); `catalog` is the
    URL of a database where it is no file in the folder; `name` is what the index is called there.
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
            data = json.loads(path.read_text("utf-8"))
            if data["format"] not in (1, FORMAT):
                raise CaseIndexError(
                    path.parent,
                    f"the index has format {data['format']}, this cbir reads up to {FORMAT}",
                    "install a later cbir, or index again into another folder",
                )
            vectors = data.pop("vectors")
            return cls(**_current(data), vectors=None if vectors is None else Filed.of(vectors))
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
        """Replace the manifest in one step."""
        with written_whole(path) as aside:
            aside.write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")


def _current(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of format 1, which named an engine and its place, as they are called now."""
    if data["format"] == 1:
        engine, uri = data.pop("engine", LOCAL), data.pop("uri", None)
        data |= {"store": address(engine, uri), "format": FORMAT}
    return data
