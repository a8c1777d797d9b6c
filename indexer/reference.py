"""The reference cases that come with cbir: public graded cases as embeddings, without their pictures.

They are an index folder in the package, which is read where it is installed and never written there.
A question is answered from them where there is no other index, and they join an index on request. The
source of a reference case is not a path but says where it comes from: ``reference:TCGA-LGG/TCGA-CS-4941``;
its label ``collection`` names the collection and its terms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import sqlalchemy as sa

from indexer.case_index import CaseIndex
from indexer.catalog import Catalog, EmbeddedScan, Entry
from indexer.encoder import Encoder
from indexer.errors import EncoderError
from indexer.files import written_whole
from indexer.manifest import Manifest
from indexer.preprocess import Preprocessing

FOLDER = Path(__file__).with_name("reference_index")
PREFIX = "reference:"
COLLECTION = "collection"
"""Label that says where a case comes from, and on what terms."""


def is_reference(source: str) -> bool:
    """Whether a source is a reference case's."""
    return source.startswith(PREFIX)


def person(source: str) -> str:
    """The public id of a reference case's patient.

    Examples
    --------
    >>> person("reference:TCGA-LGG/TCGA-CS-4941")
    'TCGA-CS-4941'
    """
    return source.rpartition("/")[2]


def available() -> bool:
    """Whether this installation has reference cases."""
    return (FOLDER / "manifest.json").is_file()


def opened() -> CaseIndex:
    """The reference cases as an index, for reading only; the caller closes it.

    Raises
    ------
    CaseIndexError
        If there are none, or they are damaged.
    """
    manifest = Manifest.load(FOLDER / "manifest.json")
    catalog = Catalog.at(FOLDER / "catalog.sqlite", manifest.dimension, immutable=True)
    return CaseIndex(FOLDER, manifest, catalog)


def require(encoder: Encoder) -> None:
    """Refuse an encoder that did not make the reference cases.

    Raises
    ------
    EncoderError
    CaseIndexError
        If there are none.
    """
    held = Manifest.load(FOLDER / "manifest.json")
    new = Preprocessing.of(encoder).as_in(held.preprocessing).version
    if (held.encoder, held.encoder_version, held.preprocessing) != (encoder.name, encoder.version, new):
        raise EncoderError(
            "the reference cases",
            f"were made by encoder {held.encoder} {held.encoder_version}, "
            f"not by {encoder.name} {encoder.version} as it is installed or chosen",
            "use the encoder that comes with the same cbir, or do without the reference cases",
        )


def join(index: CaseIndex) -> int:
    """Copy the reference cases into an index, where they are missing or older.

    The caller is the writer, and has asked :func:`require`. A case whose patient the index holds itself
    stays out: nobody is there twice.

    Returns
    -------
    int
        Reference cases in the index now.

    Raises
    ------
    CaseIndexError
        If there are none, or the index cannot be written.
    """
    catalog, contents = index.catalog, index.catalog.contents()
    own = {
        contents.patient_ids[case]
        for case, source in zip(contents.scan_case, contents.scan_source, strict=True)
        if not is_reference(source)
    }
    with opened() as reference:
        known = reference.catalog.contents()
        labels = dict(zip(known.patient_ids, known.labels, strict=True))
        entries = {e.path: e for e in reference.catalog.entries() if index.patient(person(e.path)) not in own}
    held = catalog.fingerprints(PREFIX)
    fresh = [entry for path, entry in entries.items() if held.get(path) != entry.fingerprint]
    if fresh:
        patients = {scan.patient_id for entry in fresh for scan in entry.scans}
        catalog.put(fresh, {patient: labels[patient] for patient in patients})
    catalog.remove_sources(held.keys() - entries.keys())
    return len(entries)


def leave(index: CaseIndex, patients: Iterable[str] | None = None) -> int:
    """Take reference cases out of an index (the caller is the writer).

    Parameters
    ----------
    index : CaseIndex
    patients : iterable of str, optional
        Only of these, by the ids in the files; without it, all.

    Returns
    -------
    int
        How many there were.
    """
    if patients is None:
        return index.catalog.remove_sources(index.catalog.fingerprints(PREFIX))
    return index.catalog.remove_sources(
        filter(is_reference, index.catalog.sources_of(filter(str.isprintable, patients)))
    )


def entry(path: str, encoder: Encoder, scans: list[EmbeddedScan], labels: Mapping[str, str]) -> Entry:
    """A reference case to be filed, with a fingerprint that changes whenever anything of it does."""
    digest = hashlib.sha256(f"{encoder.version}\0{sorted(labels.items())}".encode())
    for scan in scans:
        stated = (scan.sequence, scan.input_hash, scan.in_sample, scan.strangeness)
        digest.update(f"\0{stated}".encode())
        if scan.measures is not None:
            digest.update(scan.measures.tobytes())
        for part in (scan.positions, scan.views, scan.weights, scan.embeddings):
            digest.update(part.tobytes())
    return Entry(path=path, fingerprint=digest.hexdigest(), record={}, scans=scans)


def write(
    folder: Path, encoder: Encoder, entries: Iterable[Entry], labels: Mapping[str, Mapping[str, str]]
) -> None:
    """Write a folder of reference cases: equal cases give equal files.

    Parameters
    ----------
    folder : Path
    encoder : Encoder
    entries : iterable of Entry
        As :func:`entry` makes them.
    labels : mapping
        Patient to labels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / "catalog.sqlite") as aside:
        catalog = Catalog.at(aside, encoder.dimension, create=True)
        catalog.put(entries, labels)
        catalog.close()
        engine = sa.create_engine(f"sqlite:///{aside}", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=DELETE")  # it is read where nothing is written
            connection.exec_driver_sql("PRAGMA page_size=8192")  # the smallest file, by trial
            connection.exec_driver_sql("VACUUM")
        engine.dispose()
    Manifest(
        encoder=encoder.name,
        encoder_version=encoder.version,
        dimension=encoder.dimension,
        size=encoder.size,
        preprocessing=Preprocessing.of(encoder).version,
        keep_ids=True,  # they are public
        created="",
    ).save(folder / "manifest.json")
