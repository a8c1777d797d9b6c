"""What one more scan and one question cost in an index of ten thousand slices, and in one of a million.

Cases have two scans of 24 slices, and labels; embeddings are synthetic: unit vectors around random centres,
by an encoder that reads them off the image's brightest corner and costs next to nothing, so that what is
measured is the index. Both indexes are asked and filled in turn, in one run, and medians of processor time
are compared: what else runs on the machine must not count.

- *add*: read, embed and commit one new scan (:func:`indexer.ingest.ingest_sources`);
- *refresh*: let questions see it;
- *question*: a scan of 24 slices, ten hits with evidence; *beyond the search* is without the comparison
  with what is filed (:meth:`retrieval.state.State.rank`);
- *info*: what ``GET /info`` and ``cbir info`` count.

Run with ``OMP_NUM_THREADS=1 python -m benchmarks.growth``; it takes ten minutes and 3 GB of disk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from cbir import Index
from indexer.case_index import CaseIndex
from indexer.catalog import EmbeddedScan, Entry
from indexer.ingest import ingest_sources
from indexer.readers import Source
from retrieval.state import State

SIZES = (10_000, 1_000_000)
SLICES = 24
"""Of a scan."""
DIMENSION = 64
TIMES = 15
BATCH = 200
"""Cases filed at a time."""


class Synthetic:
    """A thumbnail of 8 × 8, centred."""

    name, dimension, version, size = "synthetic", DIMENSION, "1", 32

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :class:`indexer.encoder.Encoder`."""
        x = batch.reshape(len(batch), 8, 4, 8, 4).mean(axis=(2, 4), dtype=np.float32).reshape(len(batch), 64)
        return unit(x - x.mean(axis=1, keepdims=True) + 1e-3)


def unit(x: NDArray[Any]) -> NDArray[np.float32]:
    """Vectors of length 1."""
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def entries(slices: int) -> Iterator[Entry]:
    """Sources with so many slices in all."""
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(500, DIMENSION)))
    for number in range(slices // SLICES):
        case = f"C-{number // 2:06}"
        x = centres[rng.integers(500)] + rng.normal(size=(SLICES, DIMENSION)) / DIMENSION**0.5
        scan = EmbeddedScan(
            case_id=case,
            patient_id=case,
            series_id=f"s-{number}",
            sequence=("t1", "t2")[number % 2],
            modality="MR",
            shape=(64, 64, SLICES),
            spacing=(1.0, 1.0, 5.0),
            input_hash=f"h{number}",
            positions=np.arange(SLICES),
            views=np.zeros(SLICES, np.uint8),
            weights=np.ones(SLICES, np.float32),
            embeddings=unit(x),
        )
        yield Entry(f"/none/{number}", f"f{number}", {"kind": "nifti", "files": ["."]}, [scan])


def filled(folder: Path, slices: int) -> Index:
    """An index of so many slices, its vectors filed."""
    encoder = Synthetic()
    if folder.exists():
        return Index(CaseIndex.open(folder), encoder)
    index = CaseIndex.create(folder, encoder, keep_ids=True)
    with index.writing("benchmark"):
        batch: list[Entry] = []
        for entry in entries(slices):
            batch.append(entry)
            if len(batch) == BATCH:
                put(index, batch)
        put(index, batch)
        index.file_vectors()
    return Index(index, encoder)


def put(index: CaseIndex, batch: list[Entry]) -> None:
    """File and forget a batch."""
    patients = {scan.patient_id for entry in batch for scan in entry.scans}
    index.catalog.put(batch, {patient: {"who_grade": str(2 + hash(patient) % 3)} for patient in patients})
    batch.clear()


def image(path: Path, seed: int) -> Path:
    """A scan that is nobody else's."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in (64, 64, SLICES)), indexing="ij")
    volume = np.where(sum(g**2 for g in grid) < 0.9, 100 + rng.normal(0, 20, grid[0].shape), 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([1, 1, 5, 1.0])), path)
    return path


def timed(action: Callable[[], Any]) -> float:
    """Seconds of a core, in this process: images are read by others."""
    start = time.process_time()
    action()
    return time.process_time() - start


def measure(indexes: dict[int, Index], folder: Path) -> dict[str, dict[int, list[float]]]:
    """Seconds of every step, by the size of the index."""
    took: dict[str, dict[int, list[float]]] = {}
    searched = [0.0]
    rank = State.rank

    def timing(*arguments: Any, **named: Any) -> Any:
        start = time.process_time()
        try:
            return rank(*arguments, **named)
        finally:
            searched[0] += time.process_time() - start

    State.rank = timing  # type: ignore[method-assign]
    for number in range(TIMES + 1):
        asking = image(folder / "asking" / f"Q-{number}_t1.nii", 10_000 + number)
        for size, index in indexes.items():
            path = image(folder / str(size) / f"N-{number:03}_t1.nii", number)
            source = Source(path, "nifti", (path,), patient_id=f"N-{number:03}", sequence="t1")
            case_index, encoder = index.case_index, index.encoder
            steps = {
                "add": timed(lambda: ingest_sources(case_index, [source], encoder)),  # noqa: B023
                "refresh": timed(index.refresh),
            }
            searched[0] = 0.0
            steps["question"] = timed(lambda: index.query(asking))  # noqa: B023
            steps["search"] = searched[0]
            steps["question beyond the search"] = steps["question"] - searched[0]
            steps["info"] = timed(case_index.about)
            if number:  # the first warms up
                for name, seconds in steps.items():
                    took.setdefault(name, {}).setdefault(size, []).append(seconds)
    State.rank = rank  # type: ignore[method-assign]
    return took


def main() -> None:
    """Fill, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=2, default=SIZES)
    parser.add_argument("--folder", type=Path, help="keep the indexes there, and ask those that are there")
    options = parser.parse_args()
    small, large = options.sizes
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as opened:
        folder = options.folder or Path(temporary)
        start = time.process_time()
        indexes = {
            size: opened.enter_context(filled(folder / f"index-{size}", size)) for size in (small, large)
        }
        print(f"filled in {time.process_time() - start:.0f} s", flush=True)
        took = measure(indexes, folder)
    found: dict[str, Any] = {"slices": [small, large], "milliseconds": {}, "ratio": {}}
    for name, by_size in took.items():
        low, high = (statistics.median(by_size[size]) for size in (small, large))
        found["milliseconds"][name] = [round(1000 * low, 2), round(1000 * high, 2)]
        found["ratio"][name] = round(high / low, 2)
        print(f"{name:28} {1000 * low:8.2f} {1000 * high:8.2f} ms  × {high / low:.2f}")
    print(results.save("growth", found, data="synthetic", encoder="none"))


if __name__ == "__main__":
    main()
