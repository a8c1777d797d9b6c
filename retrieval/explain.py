"""Where on a query's slice and on a hit's the similarity of the two comes from.

The encoder says what each cell of a slice adds to the cosine with the other slice's embedding
(`indexer.encoder.Explainer`). Here this is brought back from the prepared image to the slice as it is
displayed. The map over the query needs the hit's stored embedding, and no pixels of the hit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from indexer import sandbox
from indexer.encoder import Explainer, look
from indexer.errors import CbirError
from indexer.preprocess import (
    Box,
    Preprocessing,
    background_of,
    crop_box,
    extent,
    pixel_spacing,
    placed,
    prepared,
    with_region,
)
from indexer.scan import Scan, ScanRef
from retrieval.answer import Hit, Query
from retrieval.state import REGION, WHOLE, State


class ExplainedScan:
    """A scan, prepared so that its slices can be explained.

    Parameters
    ----------
    encoder : Explainer
    scan : Scan
        With a region where that is to be explained.

    Raises
    ------
    ReadError
        If the scan shows nothing.
    """

    def __init__(self, encoder: Explainer, scan: Scan) -> None:
        self._encoder, self._scan = encoder, scan
        self._preprocessing = replace(Preprocessing.of(encoder), apart=0.0)  # any plane may be asked for
        self._prepared = prepared(scan, self._preprocessing)
        background = background_of(scan)
        self._box, _ = extent([background.foreground(s.pixels) for s in scan.slices()])

    def embedding(self, position: int, view: int = WHOLE) -> NDArray[np.float32] | None:
        """The unit vector of a slice or of its region, shape (dimension,); None if it is not embedded."""
        row, ready = self._row(position, view), self._prepared
        if not len(row):
            return None
        vectors, *_ = look(self._encoder, ready.pixels[row], ready.boxes[row], ready.weights[row])
        embedding: NDArray[np.float32] = vectors[0]
        return embedding

    def map(
        self, position: int, towards: NDArray[np.float32], view: int = WHOLE
    ) -> NDArray[np.float32] | None:
        """Where on a slice its similarity to an embedding comes from.

        Parameters
        ----------
        position : int
            The slice.
        towards : ndarray of float32, shape (dimension,)
            Embedding of what the slice is compared with.
        view : int
            `WHOLE`, or `REGION` for the slice's region.

        Returns
        -------
        ndarray of float32, shape (rows, columns)
            Over the displayed slice, 1 where the most comes from. What speaks against the similarity,
            or was not looked at, is 0. None if the slice is not embedded.
        """
        row, ready = self._row(position, view), self._prepared
        if not len(row):
            return None
        cells = self._encoder.explain(ready.pixels[row], towards[None], ready.boxes[row])[0].clip(0)
        plane, spacing, part = self._scan.slice(position), pixel_spacing(self._scan), self._box
        if view == REGION and self._preprocessing.crops and plane.region is not None:
            part = crop_box(plane.region, spacing)
        rows, columns = plane.pixels.shape
        laid = over_slice(cells, (rows, columns), part, spacing, self._encoder.size)
        return laid / max(float(laid.max()), 1e-12)

    def _row(self, position: int, view: int) -> NDArray[np.int64]:
        """The prepared image, if there is one."""
        ready = self._prepared
        return np.flatnonzero((ready.positions == position) & (ready.views == view))


def over_slice(
    cells: NDArray[np.float32], shape: tuple[int, int], part: Box, spacing: tuple[float, float], size: int
) -> NDArray[np.float32]:
    """A map over a prepared image, brought back to the slice: the inverse of the preprocessing.

    Parameters
    ----------
    cells : ndarray of float32, shape (h, w)
        Over the prepared square.
    shape : (rows, columns)
        Of the displayed slice.
    part : (rows, columns)
        The part of the slice that was prepared: the scan's foreground, or a crop.
    spacing : tuple of float
        Distance of rows and of columns, in mm.
    size : int
        Side of the prepared square in pixels.

    Returns
    -------
    ndarray of float32, shape (rows, columns)
        Linear between the middles of the cells; 0 beyond the part.
    """
    inner = part[0].stop - part[0].start, part[1].stop - part[1].start
    at = []
    for length, place, count in zip(inner, placed(inner, spacing, size), cells.shape, strict=True):
        middles = (np.arange(length) + 0.5) / length * (place.stop - place.start) + place.start
        at.append(middles / size * count - 0.5)
    laid = np.zeros(shape, np.float32)
    laid[part] = map_coordinates(cells, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")
    return laid


class Explanation:
    """The maps of an answer's pairs, as a report asks for them: the query's side of a pair first.

    Parameters
    ----------
    state : State
        Of the index that gave the answer.
    encoder : Explainer
        Its encoder.
    query : Query
        Of the answer.
    """

    def __init__(self, state: State, encoder: Explainer, query: Query) -> None:
        self._state, self._encoder, self._query = state, encoder, query
        self._view = WHOLE if query.mask is None and query.region is None else REGION
        self._embeddings: dict[tuple[ScanRef, int], NDArray[np.float32] | None] = {}
        self._last: tuple[Scan, bool, ExplainedScan] | None = None

    def __call__(self, hit: Hit, scan: Scan, of_query: bool) -> NDArray[np.float32] | None:
        """The map over one slice of a pair.

        Parameters
        ----------
        hit : Hit
        scan : Scan
            That holds the slice.
        of_query : bool
            Whether it is the query's slice, or else the hit's.

        Returns
        -------
        ndarray of float32, shape (rows, columns)
            As of :meth:`ExplainedScan.map`; None where one of the two slices is gone.
        """
        stored = self._state.vector(hit.scan, hit.slice, self._view)
        if stored is None:
            return None
        vector, view = stored
        key = hit.query_scan, hit.query_slice
        try:
            explained = self._explained(scan, of_query)
        except CbirError:  # the picture is worth showing without its map
            return None
        if of_query:
            if key not in self._embeddings:
                self._embeddings[key] = explained.embedding(hit.query_slice, self._view)
            return explained.map(hit.query_slice, vector, self._view)
        towards = self._embeddings.get(key)
        return None if towards is None else explained.map(hit.slice, towards, view)

    def _explained(self, scan: Scan, of_query: bool) -> ExplainedScan:
        """The scan, prepared; the last one is kept, because many pairs share the query's."""
        if self._last is None or self._last[0] is not scan or self._last[1] != of_query:
            explained = ExplainedScan(self._encoder, self._marked(scan) if of_query else scan)
            self._last = scan, of_query, explained
        return self._last[2]

    def _marked(self, scan: Scan) -> Scan:
        """The query's scan with the region that was asked with, and no other."""
        query = self._query
        if query.mask is not None:
            return replace(scan, region=sandbox.read_mask(Path(query.mask), scan))
        if query.region is not None:
            return with_region(scan, query.region, query.region_slice)
        return replace(scan, region=None)
