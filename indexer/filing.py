"""What the vectors of an index are filed by: when a partition is made, of what, and when another."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import Catalog
from indexer.errors import PartitionError
from indexer.partition import POINTS_PER_LIST, Partition, lists_for_count
from indexer.stores import Filed

HELD_OUT = 1000
"""Vectors that the probe count is calibrated with, at most."""


def fits(filed: Filed, count: int) -> bool:
    """Whether a partition that was made of so many slices still serves for `count` of them."""
    return filed.fitted_on / 2 <= count <= 2 * filed.fitted_on


def fitted(catalog: Catalog) -> Partition | None:
    """A partition of a sample, its probing calibrated on patients that are not in the sample.

    Where many vectors are all but equal the fit collapses: then it gets fewer lists, and at last none.
    """
    contents, rng = catalog.contents(), np.random.default_rng(0)
    names, patient_of_case = np.unique(contents.patient_ids, return_inverse=True)
    asking = rng.permutation(len(names))[: math.ceil(len(names) / 10)]
    patient = patient_of_case[contents.scan_case][contents.slice_scan]
    held_out = np.isin(patient, asking) if len(names) > 1 else rng.random(len(patient)) < 0.1

    def sample(ids: NDArray[np.int64], most: int) -> NDArray[np.float32]:
        return catalog.embeddings(np.sort(rng.choice(ids, min(most, len(ids)), replace=False)))

    count = len(contents.slice_ids)
    wanted = lists_for_count(count)
    base = sample(contents.slice_ids[~held_out], POINTS_PER_LIST * wanted)
    for lists in (None, wanted // 4, wanted // 16):
        try:
            partition = Partition.fit(base, lists=lists, of=count)
        except PartitionError:
            if not np.isfinite(base).all():
                raise
            continue
        partition.calibrate(sample(contents.slice_ids[held_out], HELD_OUT), base, of=count)
        return partition
    return None
