"""One readable unit of a discovery: what is to be read together, and what was learnt from its names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.errors import ReadError


@dataclass(frozen=True)
class Source:
    """A NIfTI file, a DICOM series, a folder of raster slices or a single raster image.

    Attributes
    ----------
    path : Path
        What the user sees; unique within a discovery. The file or the folder; a series that shares its
        folder with other series has a name of its own below it.
    kind : str
        ``nifti``, ``dicom``, ``raster`` or ``stack``.
    files : tuple of Path
        Files that hold the image, in reading order.
    patient_id, study_id, series_id : str
        Ids found in the names or headers at discovery, before they are pseudonymised. A labels table may
        have replaced `patient_id`, so a reader takes it from here and not from the file.
    sequence : str, optional
        ``t1``, ``t1ce``, … where a name says so; of a DICOM series, that of its first image
        (``localizer``, ``adc``, ``map``, … among them).
    channels : tuple of str
        Sequences of the image's channels, from `config`; empty where nothing names them.
    region_files : tuple of Path
        Masks that belong to the image.
    config : Path, optional
        The ``cbir.json`` that governs the files.
    modality : str, optional
        DICOM modality code, where it is known but the files no longer say it.
    frame : str
        Name of the frame of reference, likewise.
    object : str
        What a DICOM header calls what the source is, by its SOP class: ``MR Image Storage``,
        ``Segmentation Storage``; "" for other formats.
    image_type : tuple of str
        DICOM's ImageType of its first image, such as ``("DERIVED", "SECONDARY", "MPR")``. What is to be
        made of it is not for the reader to say.
    parts : tuple of Source
        Of what is several sources together (:mod:`indexer.composite`); `files` are all of theirs.
    parsed : tuple
        What discovery parsed of each of the `files`, for the reader of their format; may be empty.
    """

    path: Path
    kind: str
    files: tuple[Path, ...]
    patient_id: str = ""
    study_id: str = ""
    series_id: str = ""
    sequence: str | None = None
    channels: tuple[str, ...] = ()
    region_files: tuple[Path, ...] = ()
    config: Path | None = None
    modality: str | None = None
    frame: str = ""
    object: str = ""
    image_type: tuple[str, ...] = ()
    parts: tuple[Source, ...] = ()
    parsed: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    @property
    def name(self) -> str:
        """What the index and the user call it."""
        return str(self.path)

    @contextmanager
    def local(self) -> Iterator[Source]:
        """The source as its files can be opened, which is as it is; see :mod:`indexer.remote`."""
        yield self

    def record(self) -> dict[str, Any]:
        """What is needed to read it again, without the ids."""
        return {
            "kind": self.kind,
            "files": [os.path.relpath(file, self.path) for file in self.files],
            "sequence": self.sequence,
            "channels": list(self.channels),
            "region_files": [os.path.relpath(file, self.path) for file in self.region_files],
            **({"modality": self.modality} if self.modality else {}),
            **({"frame": self.frame} if self.frame else {}),
            **({"parts": [self._record_of(part) for part in self.parts]} if self.parts else {}),
        }

    def _record_of(self, part: Source) -> dict[str, Any]:
        return {"path": os.path.relpath(part.path, self.path), **part.record()}

    @staticmethod
    def from_record(path: Path, record: Mapping[str, Any]) -> Source:
        """The source that :meth:`record` was made of; its ids are empty."""

        def absolute(names: Sequence[str]) -> tuple[Path, ...]:
            return tuple(Path(os.path.normpath(path / name)) for name in names)

        told = record.get("parts", ())
        if record["kind"] == "composite" and not told:  # of a version that knew no other than single files
            single = {"kind": "nifti", "files": ["."], "channels": (), "region_files": ()}
            channels = zip(record["files"], record["channels"], strict=True)
            told = [{"path": file, **single, "sequence": sequence} for file, sequence in channels]
        parts = [(absolute([part["path"]])[0], part) for part in told]
        return Source(
            path=path,
            kind=record["kind"],
            files=absolute(record["files"]),
            parts=tuple(Source.from_record(*part) for part in parts),
            sequence=record["sequence"],
            channels=tuple(record["channels"]),
            region_files=absolute(record["region_files"]),
            modality=record.get("modality"),
            frame=record.get("frame", ""),
        )

    def fingerprint(self) -> str:
        """Digest of names, sizes and modification times: changes when any file of the source changes.

        Names are taken relative to the source, so that a folder may move as a whole. No file is opened.

        Raises
        ------
        ReadError
            If a file is gone.
        """
        digest = hashlib.sha256(self.kind.encode())
        for role, files in (("image", self.files), ("region", self.region_files), ("config", (self.config,))):
            for file in filter(None, files):
                try:
                    stat = file.stat()
                except OSError as error:
                    raise ReadError(file, f"cannot be read ({error.strerror})") from error
                name = os.path.relpath(file, self.path.parent)
                digest.update(
                    f"\0{role}\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="surrogateescape")
                )
        return digest.hexdigest()
