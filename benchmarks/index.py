"""The fuzzy partition against other indexes: distance computations, time and memory at equal recall.

Real slices by the shipped encoder, whole slices only, the unit vectors as the index holds them:

- *other patients*: an eighth of the patients ask, another eighth calibrates, the others are the base;
- *near duplicates*: single slices ask, and the base has their neighbours in the same scan;
- *enlarged* (``--enlarged N``): N vectors, each a real slice of the base moved by the difference between
  another real slice and one of the ten nearest to that, made a unit vector again.

Every method is one line of settings or several; between neighbouring settings of a line, cost is
interpolated to the recall, and the cheapest line counts. Lines of the other methods are chosen on the
queries that are asked, which favours them; ours is chosen by its calibration on other patients.
Distance computations are vectors compared with a query, centroids and the graph's steps included. Time is
that of the processor, one thread, all queries in one call. Bytes are of memory; vectors that only serve to
compare candidates again are not counted, since they may be mapped from a file.

    python -m benchmarks.index [--enlarged 1000000] [--indexes FOLDER …]
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from indexer.case_index import CaseIndex
from indexer.encoder import load_encoder
from indexer.ingest import ingest
from indexer.partition import Partition
from indexer.policy import ONLY_BY_LISTS
from indexer.stores.faiss.vectors import Vectors, candidates, distinct

faiss: Any = _faiss
K = 10
NEAR = 100
"""Neighbours that patients are ranked by."""
TARGETS = (0.9, 0.95, 0.99)
ASKING = 2000
"""Queries at most, and as many for the calibration."""
ASKING_MANY = 500
"""Queries where the base is enlarged."""
LARGE = 250_000
"""A base from here on is asked with lists and links of fewer sizes."""
ENOUGH = 0.9985
"""Recall past which a line is not followed."""
POINTS = 64
"""Vectors a list, at most, that k-means looks at; ours looks at 40."""
ROUNDS = 3
"""Searches of which the quickest counts."""
LADDER = (0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
"""Recalls that ours is calibrated for here."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Slices:
    """Whole slices: unit vectors (n, d), and the patient of each."""

    x: Floats
    patients: NDArray[np.str_]


@dataclass(frozen=True)
class Task:
    """Queries, others to calibrate with, the base with the patient of each of its vectors.

    `near` (q, NEAR) are the exact neighbours of the queries.
    """

    queries: Floats
    calibrating: Floats
    base: Floats
    patients: Ints
    near: Ints

    @classmethod
    def of(cls, queries: Floats, calibrating: Floats, base: Floats, patients: Ints) -> Task:
        near = faiss.knn(queries, base, NEAR, metric=faiss.METRIC_INNER_PRODUCT)[1]
        return cls(queries, calibrating, base, patients, near)

    @property
    def truth(self) -> Ints:
        """The exact K neighbours."""
        return self.near[:, :K]

    def recall(self, found: Ints) -> float:
        """Share of the K nearest vectors among those found."""
        return float((found[:, :, None] == self.truth[:, None]).any(axis=1).mean())

    def recall_of_patients(self, found: Ints) -> float:
        """Share of the first K patients, by the nearest vector of each, of which one vector was found.

        Both are read off the NEAR nearest vectors; a query with fewer patients there asks for these.
        """
        reached = 0.0
        for exact, own in zip(self.patients[self.near], self.patients[found], strict=True):
            first = list(dict.fromkeys(exact.tolist()))[:K]
            reached += len(set(first) & set(list(dict.fromkeys(own.tolist()))[:K])) / len(first)
        return reached / len(found)


@dataclass(frozen=True)
class Point:
    """What one setting gives: recall@10, distance computations and microseconds a query."""

    recall: float
    distances: float
    microseconds: float


@dataclass(frozen=True)
class Line:
    """Points of one index in order of effort, and the bytes of memory that a vector takes in it.

    `patients` holds, where measured, the recall of the first K patients by the recall asked for.
    """

    setting: str
    bytes: float
    points: list[Point]
    patients: dict[str, float] = field(default_factory=dict)

    def at(self, recall: float, cost: str) -> float:
        """Cost at a recall, between two points; infinite where it is not reached."""
        points = sorted(self.points, key=lambda p: getattr(p, cost))
        reached = np.maximum.accumulate([p.recall for p in points])
        costs = [getattr(p, cost) for p in points]
        return float(np.interp(recall, reached, costs)) if recall <= reached[-1] else math.inf


def embedded(encoder: str = "cbir") -> Slices:
    """All real slices beside the checkout, by an encoder; indexed at the first call."""
    model = load_encoder(encoder)
    folder = results.CACHE / f"all-{model.version}"
    if not (folder / "manifest.json").exists():
        with CaseIndex.create(folder, model, keep_ids=True):
            pass
    with CaseIndex.open(folder) as index:
        ingest(index, [path for path in sorted(results.DATA.iterdir()) if path.is_dir()], model)
        return _whole(index)


def read(indexes: Sequence[Path] = ()) -> tuple[Slices, dict[str, str]]:
    """Slices of some indexes, else all that there are; and where they come from."""
    if not indexes:
        return embedded(), {"data": "all of ../shared/data", "encoder": load_encoder("cbir").version}
    held, encoders = [], set()
    for folder in indexes:
        with CaseIndex.open(folder) as index:
            held.append(_whole(index))
            encoders.add(f"{index.manifest.encoder} {index.manifest.encoder_version}")
    if len(encoders) > 1:
        raise SystemExit(f"the indexes were made by several encoders: {', '.join(sorted(encoders))}")
    slices = Slices(np.concatenate([s.x for s in held]), np.concatenate([s.patients for s in held]))
    names = ", ".join(folder.name.rpartition("-")[0] or folder.name for folder in indexes)
    return slices, {"data": names, "encoder": encoders.pop()}


def _whole(index: CaseIndex) -> Slices:
    contents = index.catalog.contents()
    whole = contents.slice_view == 0
    case = contents.scan_case[contents.slice_scan[whole]]
    return Slices(index.catalog.embeddings(contents.slice_ids[whole]), np.array(contents.patient_ids)[case])


def other_patients(slices: Slices, seed: int = 0) -> Task:
    rng = np.random.default_rng(seed)
    names, patients = np.unique(slices.patients, return_inverse=True)
    order = rng.permutation(len(names))
    eighth = len(names) // 8
    asking = np.isin(patients, order[:eighth])
    calibrating = np.isin(patients, order[eighth : 2 * eighth])
    base = ~(asking | calibrating)
    return Task.of(
        _some(slices.x[asking], rng), _some(slices.x[calibrating], rng), slices.x[base], patients[base]
    )


def near_duplicates(slices: Slices, seed: int = 0) -> Task:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(slices.x))
    n = min(ASKING, len(order) // 10)
    base = np.sort(order[2 * n :])
    patients = np.unique(slices.patients, return_inverse=True)[1]
    return Task.of(
        slices.x[order[:n]],
        slices.x[order[n : 2 * n]],
        np.ascontiguousarray(slices.x[base]),
        patients[base],
    )


def enlarged(slices: Slices, n: int, seed: int = 0, file: Path | None = None) -> Task:
    """The patients of :func:`other_patients` ask a base of n made from the others' slices.

    With a file, the base lies there and is mapped. A made vector belongs to the patient that it was moved
    from.
    """
    rng = np.random.default_rng(seed)
    real = other_patients(slices, seed)
    shape = n, real.base.shape[1]
    base = np.empty(shape, np.float32) if file is None else np.memmap(file, "<f4", "w+", shape=shape)
    patients = np.empty(n, np.int64)
    near = faiss.knn(real.base, real.base, K + 1, metric=faiss.METRIC_INNER_PRODUCT)[1]
    for begin in range(0, n, 100_000):
        m = min(100_000, n - begin)
        own, other = rng.integers(len(real.base), size=(2, m))
        moved = real.base[near[other, rng.integers(1, K + 1, m)]] - real.base[other]
        base[begin : begin + m] = _unit(real.base[own] + moved)
        patients[begin : begin + m] = real.patients[own]
    return Task.of(real.queries[:ASKING_MANY], real.calibrating, base, patients)


def _some(x: Floats, rng: np.random.Generator) -> Floats:
    return np.ascontiguousarray(x[rng.permutation(len(x))[:ASKING]])


def _unit(x: Floats) -> Floats:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# ---- methods


def measured(task: Task, search: Callable[[Floats], Ints], counted: Callable[[], float]) -> Point:
    """Recall, distances and time of one setting; `counted` reads FAISS's counters, per query set."""
    faiss.cvar.indexIVF_stats.reset()
    faiss.cvar.hnsw_stats.reset()
    found = search(task.queries)
    distances = counted() / len(task.queries)
    best = math.inf
    for _ in range(ROUNDS):
        start = time.process_time()
        search(task.queries)
        best = min(best, time.process_time() - start)
    return Point(task.recall(found), float(distances), 1e6 * best / len(task.queries))


def efforts(n: int) -> list[int]:
    """Numbers of probes: each to 16, then in steps of a quarter."""
    probes = list(range(1, 17))
    while probes[-1] < n / 4:
        probes.append(math.ceil(probes[-1] * 1.25))
    return [p for p in probes if p <= n]


def root_lists(n: int, factors: tuple[float, ...] = (1, 2, 4)) -> list[int]:
    return [max(16, round(f * math.sqrt(n))) for f in factors]


@functools.cache
def _centroids(key: int, lists: int) -> Floats:
    k_means = faiss.Kmeans(
        BASES[key].shape[1],
        lists,
        niter=10,
        seed=0,
        min_points_per_centroid=1,
        max_points_per_centroid=POINTS,
    )
    k_means.train(BASES[key])
    return np.asarray(k_means.centroids)


BASES: dict[int, Floats] = {}


def trained(task: Task, index: Any) -> Any:
    """An inverted file on k-means centroids (10 iterations, as FAISS does)."""
    BASES[id(task.base)] = task.base
    if not index.quantizer.ntotal:
        index.quantizer.add(_centroids(id(task.base), index.nlist))
    index.train(task.base)
    return index


def swept(task: Task, index: Any, setting: str, size: float, inner: Any = None, more: float = 0) -> Line:
    """A line over numbers of probes."""
    inner = inner or index
    counts_graph = isinstance(faiss.downcast_index(inner.quantizer), faiss.IndexHNSWFlat)
    points = []
    for probes in efforts(inner.nlist):
        inner.nprobe = probes
        if counts_graph:
            faiss.downcast_index(inner.quantizer).hnsw.efSearch = max(16, probes)

        def counted() -> float:
            scanned = faiss.cvar.indexIVF_stats.ndis + more * len(task.queries)
            if counts_graph:
                return float(scanned + faiss.cvar.hnsw_stats.ndis)
            return float(scanned + inner.nlist * len(task.queries))

        points.append(measured(task, lambda q: np.asarray(index.search(q, K)[1]), counted))
        if points[-1].recall > ENOUGH:
            break
    return Line(setting, size, points)


def k_means_ivf(task: Task) -> Iterator[Line]:
    d = task.base.shape[1]
    for lists in root_lists(len(task.base)):
        index = trained(task, faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, lists, faiss.METRIC_INNER_PRODUCT))
        index.add(task.base)
        yield swept(task, index, f"{lists} lists", 4 * d + 8 + 4 * d * lists / len(task.base))


def graph_ivf(task: Task) -> Iterator[Line]:
    d = task.base.shape[1]
    for lists in root_lists(len(task.base), (4,) if len(task.base) >= LARGE else (8,)):
        graph = faiss.IndexHNSWFlat(d, 8)
        index = trained(task, faiss.IndexIVFFlat(graph, d, lists, faiss.METRIC_INNER_PRODUCT))
        index.add(task.base)
        yield swept(task, index, f"{lists} lists", 4 * d + 8 + (4 * d + 64) * lists / len(task.base))


def soar_ivf(task: Task) -> Iterator[Line]:
    """Half of the vectors in a second list, chosen as in SOAR, gated by membership; fixed probes."""
    d = task.base.shape[1]
    for lists in root_lists(len(task.base), (2,)):
        BASES[id(task.base)] = task.base
        partition = _partition_on(_centroids(id(task.base), lists), task.base, 0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, lists, faiss.METRIC_INNER_PRODUCT)
        index.quantizer.add(partition.centroids)
        index.is_trained = True
        own, ids = partition.lists_for(task.base), np.arange(len(task.base))
        for column in own.T:
            at = column >= 0
            entries = task.base[at], ids[at], np.ascontiguousarray(column[at])
            index.add_core(int(at.sum()), *map(faiss.swig_ptr, entries))

        def search(q: Floats, index: Any = index) -> Ints:
            scores, found = index.search(q, 2 * K)
            return distinct(scores, found, K)[1]

        points = []
        for probes in efforts(lists):
            index.nprobe = probes

            def counted(lists: int = lists) -> float:
                return float(faiss.cvar.indexIVF_stats.ndis + lists * len(task.queries))

            points.append(measured(task, search, counted))
            if points[-1].recall > ENOUGH:
                break
        yield Line(f"{lists} lists", 1.5 * (4 * d + 8) + 4 * d * lists / len(task.base), points)


def _partition_on(centroids: Floats, x: Floats, share: float) -> Partition:
    """Filing by a partition with these centroids."""
    few = Partition.fit(x[:: max(1, len(x) // 5000)], lists=16)
    partition = replace(few, centroids=centroids, fuzzifier=1.2)
    ratios = partition._two_lists(x[:: max(1, len(x) // 20_000)])[1]
    return replace(partition, border=float(np.quantile(ratios, 1 - share)))


def hnsw(task: Task) -> Iterator[Line]:
    d = task.base.shape[1]
    for links in (16,) if len(task.base) >= LARGE else (16, 32):
        index = faiss.IndexHNSWFlat(d, links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 80
        index.add(task.base)
        points = []
        for ef in (10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512):
            index.hnsw.efSearch = ef
            points.append(
                measured(
                    task,
                    lambda q, index=index: np.asarray(index.search(q, K)[1]),
                    lambda: float(faiss.cvar.hnsw_stats.ndis),
                )
            )
        yield Line(f"{links} links", 4 * d + 8 * links, points)


def ivf_sq8(task: Task, again: bool = False) -> Iterator[Line]:
    """Codes of 8 bits by distance; perhaps the best 15 for ten neighbours compared again."""
    d = task.base.shape[1]
    for lists in root_lists(len(task.base)):
        index = inner = trained(
            task,
            faiss.IndexIVFScalarQuantizer(
                faiss.IndexFlatL2(d), d, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2
            ),
        )
        if again:
            index = faiss.IndexRefineFlat(inner)
            index.k_factor = 1.5
        index.add(task.base)
        size = d + 8 + 4 * d * lists / len(task.base)
        yield swept(task, index, f"{lists} lists", size, inner, more=1.5 * K * again)


def ivf_pq(task: Task) -> Iterator[Line]:
    """Codes of d/4 bytes, the best 100 compared again with the vectors."""
    d = task.base.shape[1]
    for lists in root_lists(len(task.base), (2,)):
        coarse = faiss.IndexFlatL2(d)
        inner = trained(task, faiss.IndexIVFPQ(coarse, d, lists, d // 4, 8, faiss.METRIC_L2))
        index = faiss.IndexRefineFlat(inner)
        index.k_factor = 10
        index.add(task.base)
        size = d / 4 + 8 + 4 * d * lists / len(task.base)
        yield swept(task, index, f"{lists} lists", size, inner, more=100)


def ours(task: Task) -> Iterator[Line]:
    d, n = task.base.shape[1], len(task.base)
    start = time.process_time()
    partition = Partition.fit(task.base)
    partition.calibrate(task.calibrating, task.base[:: max(1, n // 200_000)], of=n, recalls=LADDER)
    print(f"    fitted and calibrated in {time.process_time() - start:.0f} s of the processor", flush=True)
    vectors = Vectors.build(np.arange(n), task.base, partition, ONLY_BY_LISTS)
    sizes = vectors.list_sizes()
    replicas = sizes.sum() / n
    points = []
    for recall in LADDER:
        used = vectors.partition = partition.at(recall)
        vars(used)["_graph"] = partition._graph

        def counted(used: Partition = used) -> float:
            probes = used.probes_for(task.queries, K)
            scanned = np.append(sizes, 0)[probes].sum() + candidates(K) * len(probes)
            return float(scanned + used._looked_at(task.queries, used.probing(K).reach) * len(probes))

        points.append(measured(task, lambda q: vectors.search(q, K)[1], counted))
    patients = {}
    for recall in TARGETS:
        vectors.partition = partition.at(recall)
        vars(vectors.partition)["_graph"] = partition._graph
        patients[str(recall)] = task.recall_of_patients(vectors.search(task.queries, NEAR)[1])
    lists = len(partition.centroids)
    yield Line(
        f"{lists} lists, {replicas:.2f} entries a vector",
        replicas * (d + 8) + (4 * d * 2 + 64) * lists / n,
        points,
        patients,
    )


METHODS: dict[str, Callable[[Task], Iterator[Line]]] = {
    "fuzzy partition (ours)": ours,
    "IVF, 8-bit codes, compared again": functools.partial(ivf_sq8, again=True),
    "IVF, 8-bit codes": ivf_sq8,
    "k-means IVF": k_means_ivf,
    "k-means IVF, graph over the centroids": graph_ivf,
    "IVF-PQ, compared again": ivf_pq,
    "IVF, second list as SOAR": soar_ivf,
    "HNSW": hnsw,
}


def entry(lines: list[Line]) -> dict[str, Any]:
    """What a method costs at each recall by its cheapest line, and the highest recall it reaches."""
    return {
        "highest recall": max(p.recall for line in lines for p in line.points),
        "lines": [
            {"setting": line.setting, "bytes": line.bytes, "points": [vars(p) for p in line.points]}
            for line in lines
        ],
        "patients": {k: v for line in lines for k, v in line.patients.items()},
        **{cost: {str(t): _cheapest(lines, t, cost) for t in TARGETS} for cost in COSTS},
    }


COSTS = ("distances", "microseconds")


def _cheapest(lines: list[Line], recall: float, cost: str) -> dict[str, Any] | None:
    """Cost, setting and bytes of the cheapest line; None where no line reaches the recall."""
    best = min(lines, key=lambda line: line.at(recall, cost))
    found = best.at(recall, cost)
    if math.isinf(found):
        return None
    return {"cost": round(found, 1), "setting": best.setting, "bytes": round(best.bytes)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", help="names with semicolons between them, instead of all")
    parser.add_argument("--enlarged", type=int, metavar="N", help="this instead of the real slices")
    parser.add_argument("--embed", action="store_true", help="only index what there is")
    parser.add_argument("--indexes", type=Path, nargs="*", default=[], help="slices of these, instead of all")
    options = parser.parse_args()
    slices, origin = read(options.indexes)
    if options.embed:
        return
    faiss.omp_set_num_threads(1)
    tasks: dict[str, Callable[[], Task]]
    if n := options.enlarged:
        tasks = {f"enlarged to {n:,}".replace(",", " "): lambda: enlarged(slices, n)}
    else:
        tasks = {
            "other patients": lambda: other_patients(slices),
            "near duplicates": lambda: near_duplicates(slices),
        }
    tables: dict[str, Any] = {}
    for name, made in tasks.items():
        task = made()
        print(name, task.base.shape, len(task.queries), flush=True)
        methods: dict[str, Any] = {}
        tables[name] = {"base": len(task.base), "queries": len(task.queries), "methods": methods}
        for method in options.methods.split(";") if options.methods else METHODS:
            methods[method] = entry(list(METHODS[method](task)))
            print(f"  {method}: {[methods[method][cost] for cost in COSTS]}", flush=True)
            # after each, since the whole takes long
            results.save(
                f"index-{n}" if n else "index",
                tables,
                slices=len(slices.x),
                patients=len(np.unique(slices.patients)),
                **origin,
            )


if __name__ == "__main__":
    main()
