"""What the second look costs: the shipped encoder over the plain backbone, in turn, in one run.

The plain backbone looks once, at the size that the frozen encoder takes (192 pixels), and at the size
of one look of the trained one (160). Machines are shared and noisy: only ratios say something.

    python -m benchmarks.speed
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from indexer.encoder import load_encoder
from indexer.learning import backbone, network

ROUNDS = 60
BATCHES = (1, 32)


def main() -> None:
    trained, frozen = load_encoder("cbir"), load_encoder("imagenet")
    plain = functools.partial(backbone.embed, frozen.network)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    table: dict[str, Any] = {}
    for batch in BATCHES:
        runs: dict[str, Callable[[], NDArray[np.float32]]] = {
            "shipped encoder": functools.partial(trained.encode, _images(rng, batch, trained.size)),
            "backbone at 192": functools.partial(plain, _images(rng, batch, frozen.size)),
            "backbone at 160": functools.partial(plain, _images(rng, batch, network.VIEW)),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
        median = {name: statistics.median(found) / batch for name, found in times.items()}
        table[f"{batch} at a time"] = {
            name: {"ms": 1000 * seconds, "ratio": median["shipped encoder"] / seconds}
            for name, seconds in median.items()
        }
        print(batch, table[f"{batch} at a time"])
    results.save("speed", table, data="noise", encoder=trained.version)


def _images(rng: np.random.Generator, batch: int, size: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (batch, size, size), np.uint8)


if __name__ == "__main__":
    main()
