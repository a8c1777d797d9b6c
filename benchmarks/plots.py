"""Draw what :mod:`benchmarks.index` and :mod:`benchmarks.scale` have saved, for docs/partition.md.

python -m benchmarks.plots
"""

from __future__ import annotations

from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks import results

DOCS = results.ROOT / "docs"
TASK = "enlarged to 1 000 000"
GROWTH = ("query, ms", "memory, MiB", "disk, MB", "fit, s", "filing, s", "adding 1 %, s")
FAINT = {"color": "0.85", "linewidth": 0.6}


def recall(methods: dict[str, Any]) -> Figure:
    """Cost against recall: for each index the cheapest setting that reaches it."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, cost in zip(figure.subplots(1, 2), ("distances", "microseconds"), strict=True):
        for name, entry in methods.items():
            points = [point for line in entry["lines"] for point in line["points"]]
            best: list[dict[str, float]] = []  # from the best recall down, whatever is cheaper still
            for point in sorted(points, key=lambda p: (-p["recall"], p[cost])):
                if not best or point[cost] < best[-1][cost]:
                    best.append(point)
            ours = "ours" in name
            axes.plot(
                [1 - p["recall"] for p in best],
                [p[cost] for p in best],
                label=name,
                linewidth=2.4 if ours else 1.2,
                zorder=3 if ours else 2,
            )
        axes.set(xscale="log", yscale="log", xlim=(0.15, 0.003), xlabel="1 - recall@10")
        axes.set_ylabel(f"{cost} of a query")
        axes.grid(**FAINT)
    axes.legend(fontsize="x-small", frameon=False)
    return figure


def growth(rows: list[dict[str, float]]) -> Figure:
    """Times and sizes against the number of vectors."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    for axes, name in zip(figure.subplots(2, 3).flat, GROWTH, strict=True):
        axes.plot([row["vectors"] for row in rows], [row[name] for row in rows], marker="o", label=name)
        if name == "query, ms":
            axes.plot(
                [row["vectors"] for row in rows], [row["p99, ms"] for row in rows], "--", label="p99, ms"
            )
            axes.legend(fontsize="x-small", frameon=False)
        axes.set(xscale="log", yscale="log", title=name)
        axes.grid(**FAINT)
    return figure


def main() -> None:
    methods = results.load("index-1000000")["results"][TASK]["methods"]
    files = [path.stem for path in results.RESULTS.glob("scale-*.json") if path.stem.count("-") == 1]
    rows = sorted((results.load(name)["results"] for name in files), key=lambda row: row["vectors"])
    with rc_context({"svg.hashsalt": "cbir", "font.size": 9}):
        for name, figure in (("partition-recall", recall(methods)), ("partition-growth", growth(rows))):
            path = DOCS / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            print(path.relative_to(results.ROOT))


if __name__ == "__main__":
    main()
