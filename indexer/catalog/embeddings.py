"""Embeddings as the catalog holds them: float32, little-endian, a row a slice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from indexer.catalog.blocks import blocks
from indexer.catalog.records import EmbeddedScan, Entry, digest
from indexer.catalog.schema import cases, measures, scans, slices, sources, strangeness, trained_on

Floats = NDArray[np.float32]


def of(connection: sa.Connection, ids: NDArray[np.int64], dimension: int) -> Floats:
    """Those of the given slices, shape (n, dimension); raises KeyError where one is not there."""
    out = np.empty((len(ids), dimension), np.float32)
    place = {int(i): n for n, i in enumerate(ids)}
    found = 0
    for block in blocks(place):
        query = sa.select(slices.c.id, slices.c.embedding).where(slices.c.id.in_(block))
        for row in connection.execute(query):
            out[place[row.id]] = np.frombuffer(row.embedding, "<f4")
            found += 1
    if found != len(ids):
        raise KeyError(f"{len(ids) - found} of {len(ids)} slices are not in the catalog")
    return out


def after(
    connection: sa.Connection, last: int, most: int, dimension: int
) -> tuple[NDArray[np.int64], Floats]:
    """The next after a slice, by ascending id, with the ids."""
    chosen = sa.select(slices.c.id, slices.c.embedding).where(slices.c.id > last)
    rows = connection.execute(chosen.order_by(slices.c.id).limit(most)).all()
    return np.array([row.id for row in rows], np.int64), _joined((row.embedding for row in rows), dimension)


def of_inputs(
    connection: sa.Connection, input_hashes: Sequence[str], dimension: int
) -> dict[str, tuple[Floats, Floats, Floats]]:
    """Embeddings, weights and strangeness of the whole slices of network inputs that are filed."""
    found = {}
    for block in blocks(input_hashes):
        held = sa.select(scans.c.input_hash, sa.func.min(scans.c.id))
        chosen = held.where(scans.c.input_hash.in_(block)).group_by(scans.c.input_hash)
        for name, scan in connection.execute(chosen).all():
            rows = connection.execute(
                sa.select(slices.c.embedding, slices.c.weight)
                .where(slices.c.scan == scan, slices.c.view == 0)
                .order_by(slices.c.id)
            ).all()
            said = connection.scalar(sa.select(strangeness.c.value).where(strangeness.c.scan == scan))
            found[name] = (
                _joined((row.embedding for row in rows), dimension),
                np.array([row.weight for row in rows], np.float32),
                np.full(len(rows), math.nan if said is None else said, np.float32),
            )
    return found


def entries(connection: sa.Connection, dimension: int) -> list[Entry]:
    """All sources with what they hold."""
    seen = set(connection.scalars(sa.select(trained_on.c.patient_id)))
    strange = {row.scan: row.value for row in connection.execute(sa.select(strangeness))}
    measured = {row.scan: np.frombuffer(row.vector, "<f4") for row in connection.execute(sa.select(measures))}
    source_rows = connection.execute(sa.select(sources).order_by(sources.c.id)).all()
    scan_rows = connection.execute(
        sa.select(scans, cases.c.case_id, cases.c.patient_id, cases.c.visit)
        .join(cases, cases.c.id == scans.c.case)
        .order_by(scans.c.source, scans.c.channel)
    ).all()
    of_scan: dict[int, list[Any]] = {}
    for row in connection.execute(sa.select(slices).order_by(slices.c.id)):
        of_scan.setdefault(row.scan, []).append(row)
    of_source: dict[int, list[EmbeddedScan]] = {}
    for row in scan_rows:
        held = of_scan.get(row.id, [])
        scan = EmbeddedScan(
            case_id=row.case_id,
            patient_id=row.patient_id,
            series_id=row.series_id,
            sequence=row.sequence,
            modality=row.modality,
            shape=tuple(row.shape),
            spacing=None if row.spacing is None else tuple(row.spacing),
            input_hash=row.input_hash,
            positions=np.array([s.position for s in held], np.int64),
            views=np.array([s.view for s in held], np.uint8),
            weights=np.array([s.weight for s in held], np.float32),
            embeddings=_joined((s.embedding for s in held), dimension),
            in_sample=row.patient_id in seen,
            strangeness=strange.get(row.id, math.nan),
            visit=row.visit,
            measures=measured.get(row.id),
        )
        of_source.setdefault(row.source, []).append(scan)
    return [Entry(row.path, row.fingerprint, row.record, of_source.get(row.id, [])) for row in source_rows]


def damage(connection: sa.Connection) -> Iterator[tuple[str, str]]:
    """Scans whose embeddings do not match their checksum, by source, and slices without a scan."""
    rows = connection.execute(
        sa.select(scans.c.id, scans.c.embedding_hash, sources.c.path)
        .join(sources, sources.c.id == scans.c.source, isouter=True)
        .order_by(scans.c.id)
    ).all()
    for row in rows:
        held = sa.select(slices.c.embedding).where(slices.c.scan == row.id).order_by(slices.c.id)
        if digest(connection.scalars(held)) != row.embedding_hash:
            yield row.path or "", f"the embeddings of scan {row.id} do not match their checksum"
    orphans = sa.select(sa.func.count()).select_from(slices)
    lost = connection.scalar(orphans.where(slices.c.scan.not_in(sa.select(scans.c.id))))
    if lost:
        yield "", f"{lost} slices belong to no scan"


def _joined(blobs: Iterable[bytes], dimension: int) -> Floats:
    return np.frombuffer(b"".join(blobs), "<f4").reshape(-1, dimension)
