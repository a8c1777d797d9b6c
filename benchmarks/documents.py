"""Write the tables of results and the command line's help into the documents, from what was measured.

A block between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` belongs to this module.
``--check`` writes nothing and fails where a block is stale.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from benchmarks import results
from retrieval.cli.app import app

DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in (results.ROOT / "docs").glob("*.md")))
METHODS = (
    "frozen ImageNet",
    "rank by predicted class",
    "random weights",
    "raw pixels",
)
COMBINATIONS = ("frozen ImageNet", "slices combined: unweighted", "slices combined: late interaction")
PIPELINE = (
    "all features, nearest",
    "first level, nearest",
    "both levels, nearest",
    "both levels, fuzzy clusters",
)
SPLITS = ("by slice", "by patient")
RETRIEVED = "AP of the 10 retrieved"
METRICS = ("P@1", "P@5", "P@10", "R-precision", "mAP", "MAP@R", "nDCG@10")


def markdown(rows: list[list[str]]) -> str:
    """A table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def figure(entry: dict[str, Any], metric: str, average: str) -> str:
    """A value with its interval."""
    found = entry["metrics"][metric][average]
    span = "" if found["low"] is None else f" ({found['low']:.3f}–{found['high']:.3f})"
    return f"{found['value']:.3f}{span}"


def origin(content: dict[str, Any]) -> str:
    """One line that says where figures come from."""
    p = content["provenance"]
    encoder = p["encoder"]
    if not isinstance(encoder, str):  # one a fold
        encoder = ", ".join(encoder.values())
        return f"{p['data']}. Commit {p['commit']}, {p['date']}, encoders {encoder}, {p['machine']}."
    return f"Commit {p['commit']}, {p['date']}, encoder {encoder}, {p['machine']}."


def baseline(metrics: tuple[str, ...], averages: tuple[str, ...], methods: tuple[str, ...]) -> str:
    """Tables of the baseline benchmark, one a task."""
    content = results.load("baseline")
    parts = []
    for task, table in content["results"].items():
        first = table["frozen ImageNet"]
        columns = [(m, a) for m in metrics for a in averages]
        rows = [["method", *(f"{m} {a.replace('_', ' ')}" for m, a in columns)]]
        for method in methods:
            if method in table:
                rows.append([method, *(figure(table[method], m, a) for m, a in columns)])
        if len(rows) == 2 and len(methods) > 1:
            continue
        chance = [f"{first['metrics'][m][a]['chance']:.3f}" for m, a in columns]
        rows.append(["chance", *chance])
        head = f"**{task}** ({first['queries']} queries, {first['patients']} patients)"
        parts += [head, "", markdown(rows), ""]
    return "\n".join([*parts, origin(content)])


def canary() -> str:
    """Precision with labels shuffled between patients, beside chance."""
    table = results.load("baseline")["results"]
    rows = [["task", "P@10, labels shuffled between patients", "chance"]]
    for task, entry in table.items():
        rows.append([task, f"{entry['canary']['P@10']:.3f}", f"{entry['canary']['chance']:.3f}"])
    return markdown(rows)


def ingest() -> str:
    """Speed and memory of indexing."""
    content = results.load("ingest")
    rows = [["cohort", "slices", "`cbir index`, slices/s", "encoder alone, slices/s", "ratio"]]
    for name, r in content["results"]["speed"].items():
        rows.append(
            [name, str(r["slices"]), str(r["index_rate"]), str(r["encoder_rate"]), f"{r['ratio']:.2f}"]
        )
    if all("run_ratio" in r for r in content["results"]["speed"].values()):
        rows[0].append("read in child processes over without: time, processor")
        for row, r in zip(rows[1:], content["results"]["speed"].values(), strict=True):
            row.append(f"{r['run_ratio']:.2f}, {r['processor_ratio']:.2f}")
    memory = [["files", "slices", "peak memory, MB"]]
    for r in content["results"]["memory"]:
        memory.append([str(r["files"]), str(r["slices"]), str(r["peak_mb"])])
    return "\n".join([markdown(rows), "", markdown(memory), "", origin(content)])


def paper() -> str:
    """The published pipeline under both splits: its steps, the canary, and how the slices of a scan count."""
    content = results.load("paper")
    columns = [("P@10", "micro"), ("P@10", "macro"), ("mAP", "micro"), ("mAP", "macro"), (RETRIEVED, "micro")]
    head = [*(f"{m} {a}" for m, a in columns), "own patient among the 10"]
    parts = []
    for name, cohort in content["results"]["cohorts"].items():
        rows = [["split", "method", *head]]
        for split in SPLITS:
            methods = cohort["methods"][split]
            for method in PIPELINE:
                found = methods[method]
                cells = [figure(found, m, a) for m, a in columns]
                rows.append([split, method, *cells, f"{found['own_patient']:.3f}"])
            metrics = methods[PIPELINE[0]]["metrics"]
            rows.append([split, "chance", *(f"{metrics[m][a]['chance']:.3f}" for m, a in columns), ""])
        features = " → ".join(str(n) for n in cohort["features"])
        parts += [
            f"**{name}, {cohort['label']}** ({cohort['slices']} slices, {cohort['patients']} patients, "
            f"{features} features)",
            "",
            markdown(rows),
            "",
        ]
    rows = [["labels shuffled between patients", "split", "method", "P@10 micro", "chance"]]
    for name, cohort in content["results"]["cohorts"].items():
        for split in SPLITS:
            for method, found in cohort["canary"][split].items():
                rows.append([name, split, method, f"{found['value']:.3f}", f"{found['chance']:.3f}"])
    parts += [markdown(rows), ""]
    rows = [["brats-lesions, slices a scan", "split", *head]]
    counts = content["results"]["cohorts"]["brats-lesions"]["slices a scan"]
    for count in sorted(counts, key=int):
        for split in SPLITS:
            found = counts[count][split]
            cells = [figure(found, m, a) for m, a in columns]
            rows.append([count, split, *cells, f"{found['own_patient']:.3f}"])
    return "\n".join([*parts, markdown(rows), "", origin(content)])


TASKS = {"outlined": "outline given", "proposed": "no outline"}
CUTS = ("mAP", "P@1", "P@10", "P@20")
REACH = {"outlined": (0.972, 0.963), "proposed": (0.950, 0.940)}
"""What mAP and P@10 on figshare must come to."""


def trained() -> str:
    """The trained encoder in one table, beside the frozen one and what others have published."""
    content = results.load("figshare")
    frozen = results.load("baseline")["results"]
    rows = [["unseen patients", "figure", "trained", "frozen ImageNet", "chance"]]
    for task, name in TASKS.items():
        for metric in ("mAP", "P@10"):
            found = content["results"][task]
            before = frozen["figshare, image"]["frozen ImageNet"]
            rows.append(
                [
                    f"figshare, tumour, {name}",
                    f"{metric}, mean of folds",
                    f"**{found['mean of folds'][metric]:.3f}** {_span(found, metric, 'micro')}",
                    figure(before, metric, "micro") if task == "proposed" else "",
                    f"{found['metrics'][metric]['micro']['chance']:.3f}",
                ]
            )
    parts = [origin(content)]
    if (results.RESULTS / "grades.json").exists():
        grades = results.load("grades")
        rows += [row for task, metrics in GRADES.items() for row in _graded(grades, frozen, task, metrics)]
        parts.append(origin(grades))
    published = "; ".join(f"{who} {v:.4f}" for who, v in content["provenance"]["published"].items())
    note = f"Published on the same figshare folds, outline given, mAP: {published}."
    return "\n".join([markdown(rows), "", note, "", *parts])


GRADES = {
    "brats-lesions, grade_group": ("mAP", "P@10"),
    "brats-lesions, who_grade": ("mAP", "P@10"),
    "tcga-lgg, who_grade": ("P@5", "mAP"),
}


def _graded(
    grades: dict[str, Any], frozen: dict[str, Any], task: str, metrics: tuple[str, ...]
) -> list[list[str]]:
    """Rows of one task; the frozen encoder was asked for HGG/LGG, and for the grade in TCGA-LGG."""
    found = grades["results"][task]["trained"]
    cohort, label = task.split(", ")
    before = frozen[f"{cohort}, patient"]["frozen ImageNet"] if task != "brats-lesions, who_grade" else None
    name = {"grade_group": "HGG/LGG", "who_grade": "WHO grade"}[label]
    return [
        [
            f"{cohort}, {name}",
            f"{metric} macro",
            f"**{found['metrics'][metric]['macro']['value']:.3f}** {_span(found, metric, 'macro')}",
            figure(before, metric, "macro") if before else "",
            f"{found['metrics'][metric]['macro']['chance']:.3f}",
        ]
        for metric in metrics
    ]


def _span(entry: dict[str, Any], metric: str, average: str) -> str:
    found = entry["metrics"][metric][average]
    return f"({found['low']:.3f}–{found['high']:.3f})"


def figshare(content: dict[str, Any]) -> str:
    """The official folds one by one, all queries, classes, and the baselines."""
    parts = []
    whole = results.load("baseline")["results"]["figshare, image"]
    untrained = ("frozen ImageNet", "random weights", "raw pixels")
    sized = content["results"]["outlined"].get("size of the outline")
    beside = {
        "outlined": {"size of the outline, micro": sized} if sized else {},
        "proposed": {f"{name}, all five folds, micro": whole[name] for name in untrained},
    }
    for task, name in TASKS.items():
        found = content["results"][task]
        rows = [[name, *(f"{m}" for m in CUTS)]]
        for fold, values in found["folds"].items():
            rows.append([f"fold {fold}", *(f"{values[m]:.4f}" for m in CUTS)])
        rows.append(["**mean of folds**", *(f"**{found['mean of folds'][m]:.4f}**" for m in CUTS)])
        must = REACH[task]
        rows.append(["to be reached", f"{must[0]:.3f}", "", f"{must[1]:.3f}", ""])
        for label, entry, average in (
            ("all queries, micro", found, "micro"),
            ("all queries, macro", found, "macro"),
            ("patients one by one", found, "patient_mean"),
            ("by similarity alone, micro", found["by similarity alone"], "micro"),
            ("rank by predicted class, micro", found["rank by predicted class"], "micro"),
            ("MR numbers of one fold only, micro", found["MR numbers of one fold"], "micro"),
        ):
            rows.append([label, *(figure(entry, m, average) for m in CUTS)])
        for label, entry in found["classes"].items():
            rows.append([label, *(f"{entry['figures'][m]['value']:.3f}" for m in CUTS)])
        rows.append(["chance, micro", *(f"{found['metrics'][m]['micro']['chance']:.3f}" for m in CUTS)])
        for label, entry in beside[task].items():
            known = [figure(entry, m, "micro") if m in entry["metrics"] else "" for m in CUTS]
            rows.append([label, *known])
        canary = found["canary"]
        said = f"{sum(canary['P@10']) / len(canary['P@10']):.3f}"
        rows.append(["labels shuffled between patients", "", "", said, ""])
        parts += [markdown(rows), ""]
    region = content["results"]["proposed region"]
    parts.append(
        f"The region that the network proposes overlaps the outline's box by {region['mean IoU']:.2f} "
        f"(intersection over union, mean); {region['share of IoU above 0.5']:.0%} by more than a half."
    )
    return "\n".join([*parts, "", origin(content)])


def views(content: dict[str, Any]) -> str:
    """How many of the first hits show the query's plane, and what that costs."""
    table = content["results"]
    named = list(next(iter(table["views"].values())))
    rows = [["similarity", "order", *named]]
    for name, orders in table.items():
        for order, found in orders.items():
            rows.append([name, order, *(f"{found[what]['value']:.3f}" for what in named)])
    chance = table["views"]["alone"]
    rows.append(["chance", "", *(f"{chance[what]['chance']:.3f}" for what in named)])
    return "\n".join([markdown(rows), "", origin(content)])


def grades(content: dict[str, Any]) -> str:
    """Grades of TCGA-LGG and BraTS, with everything that was measured beside."""
    parts = []
    columns = ("P@5", "P@10", "mAP", "nDCG@10")
    for task, table in content["results"].items():
        rows = [["macro", *columns]]
        for method, entry in table.items():
            if "metrics" in entry:
                rows.append([method, *(figure(entry, m, "macro") for m in columns)])
        first = table["trained"]
        rows.append(["chance", *(f"{first['metrics'][m]['macro']['chance']:.3f}" for m in columns)])
        rows.append(
            ["labels shuffled between patients, P@10 micro", "", f"{table['canary']['P@10']:.3f}", "", ""]
        )
        folds = "; ".join(f"fold {f} {v['mAP']:.3f}" for f, v in table["by fold"].items())
        head = f"**{task}** ({first['queries']} queries, {first['patients']} patients)"
        parts += [
            head,
            "",
            markdown(rows),
            "",
            f"mAP macro by fold: {folds}.",
            "",
            never(table["never right"]),
            "",
        ]
    return "\n".join([*parts, origin(content)])


def never(found: dict[str, Any]) -> str:
    """Patients whom no ranking gets right."""
    by_grade: dict[str, list[str]] = {}
    for patient, grade in found["patients"].items():
        by_grade.setdefault(grade, []).append(patient)
    told = "; ".join(f"{grade}: {', '.join(sorted(names))}" for grade, names in sorted(by_grade.items()))
    share = f"{len(found['patients'])} of {found['asked']}"
    return (
        f"Patients without a majority of their own label among the first ten in any ranking by this encoder "
        f"(together, without composites, each sequence alone): {share}. {told}"
    )


def volumes(content: dict[str, Any]) -> str:
    """Six patients' full volumes as queries."""
    rows = [
        [
            "cohort, label",
            "method",
            "hits of the right grade among 10",
            "share of the right grade in the vote (prior)",
            "no answer",
        ]
    ]
    for task, methods in content["results"].items():
        for method, patients in methods.items():
            found = list(patients.values())
            hits = ", ".join(f"{p['hits of the truth']}/{p['hits']}" for p in found)
            votes = ", ".join(
                f"{p['share of the truth in the vote']:.2f} ({p['share by chance']:.2f})" for p in found
            )
            silent = sum(p["abstains"] for p in found)
            rows.append([task, method, hits, votes, f"{silent} of {len(found)}"])
    return "\n".join([markdown(rows), "", origin(content)])


def radiomics(content: dict[str, Any]) -> str:
    """Whether a plain classifier with the outlines tells grade 2 from 3."""
    table = content["results"]
    patients = " and ".join(f"{n} of grade {grade}" for grade, n in table["patients"].items())
    low, high = table["interval"]
    folds = ", ".join(f"{area:.2f}" for area in table["by fold"].values())
    return (
        f"Area under the curve {table['area']:.2f} ({low:.2f}–{high:.2f}), where chance is 0.5; fold by fold "
        f"{folds}. Logistic regression on {table['measures']} measures; {patients}. {origin(content)}"
    )


def ablation(content: dict[str, Any]) -> str:
    """What parts of the trained encoder are worth."""
    parts = []
    for task, table in content["results"].items():
        average = "micro" if task == "figshare" else "macro"
        columns = ("mAP", "P@10") if task == "figshare" else ("mAP", "P@5", "P@10")
        rows = [[f"{task}, {average}", *columns]]
        rows += [[row, *(figure(entry, m, average) for m in columns)] for row, entry in table.items()]
        parts += [markdown(rows), ""]
    return "\n".join([*parts, origin(content)])


def measured(name: str, write: Callable[[dict[str, Any]], str]) -> str:
    """What is written from a result, or how to get it where there is none yet."""
    try:
        content = results.load(name)
    except FileNotFoundError:
        return f"Not measured yet: `python -m benchmarks.{name}`."
    return write(content)


def service(content: dict[str, Any]) -> str:
    """A warm query over the bare encoder, and many clients beside a writer."""
    warm, load = content["results"]["warm"], content["results"]["load"]
    query = [
        ["volume, slices", "query over HTTP, s", "encoder alone on its slices, s", "ratio"],
        [
            str(warm["slices"]),
            f"{warm['query_seconds']:.2f}",
            f"{warm['encoder_seconds']:.2f}",
            f"{warm['ratio']:.2f}",
        ],
    ]
    head = ["queries", "errors", "503, came again", "median, s", "p99, s", "longest, s"]
    clients = [[f"{load['clients']} clients", *head]]
    for name, r in (("alone", load["idle"]), ("while the index is filled", load["while_indexing"])):
        seconds = [f"{r[key]:.2f}" for key in ("p50", "p99", "longest")]
        clients.append([name, *(str(r[key]) for key in ("queries", "errors", "sent_away")), *seconds])
    filled, memory = load["filled"], load["memory_mib"]
    words = (
        f"The p99 beside the writer is {load['p99_ratio']:.2f} times that of the clients alone. Meanwhile "
        f"{filled['series']} scans ({filled['slices']} slices) were indexed in {filled['jobs']} jobs, "
        f"{filled['failed']} of which failed, and {filled['removed']} cases removed. The server's memory: "
        f"{memory['before']} MiB before, {', '.join(map(str, memory['fifths']))} MiB as means of the fifths "
        f"of that time, {memory['most']} MiB at most."
    )
    return "\n".join([markdown(query), "", markdown(clients), "", words, "", origin(content)])


def live(content: dict[str, Any]) -> str:
    """From the last slice of a series to the first answer with it."""
    found, provenance = content["results"], content["provenance"]
    columns = {
        "sending": f"C-STORE of {found['slices']} slices, s",
        "orthanc": f"last slice to stable (`StableAge` {provenance['stable_age']}), s",
        "ours": "stable to answered, s",
        "total": "last slice to answered, s",
    }
    rows = [[f"{len(found['rounds'])} rounds", *columns.values()]]
    for kind in ("median", "most"):
        rows.append([kind, *(f"{found['summary'][name][kind]:.2f}" for name in columns)])
    return "\n".join([markdown(rows), "", origin(content)])


def calibration(content: dict[str, Any]) -> str:
    """Whether the votes may be believed, and who gets none."""
    votes = [
        [
            "unseen patients ask",
            "patients",
            "accuracy",
            "calibration error (perfect)",
            "before",
            "sets of 90 % cover",
            "values in a set",
        ]
    ]
    told = [["asked of", "who asks", "get no answer", "answered"]]
    for cohort, entry in content["results"].items():
        for asked, found in entry["votes"].items():
            cover = found["coverage"]
            votes.append(
                [
                    f"{cohort}, {asked}",
                    str(found["patients"]),
                    f"{found['accuracy']:.2f}",
                    f"{found['calibrated']['ece']:.3f} ({found['calibrated']['ece_if_perfect']:.3f})",
                    f"{found['uncalibrated']['ece']:.3f}",
                    f"{cover['value']:.3f} ({cover['low']:.3f}–{cover['high']:.3f})",
                    f"{found['set_size']:.2f}",
                ]
            )
        for who, found in entry["abstained"].items():
            if "n" in found:
                told.append(
                    [cohort, who, f"{found['share']:.0%} of {found['n']}", ", ".join(found["answered"])]
                )
            else:
                told.append([cohort, f"{who}, by a scan", f"{found['scans']:.1%} of {found['n_scans']}", ""])
                told.append(
                    [cohort, f"{who}, by all scans", f"{found['patients']:.1%} of {found['n_patients']}", ""]
                )
    return "\n".join([markdown(votes), "", markdown(told), "", origin(content)])


def open_set(content: dict[str, Any]) -> str:
    """Whether a kind that is not there is noticed."""
    rows = [["embeddings", "asked of", "left out", "patients of it", "got a vote", "known patients refused"]]
    rows[0] += ["nearer than 5 % of the known", "known ones farther"]

    def span(found: dict[str, float]) -> str:
        return f"{found['value']:.2f} ({found['low']:.2f}–{found['high']:.2f})"

    for method, table in content["results"].items():
        for asked, values in table.items():
            for value, found in values.items():
                each = ("answered", "refused", "within the edge", "beyond the edge")
                rows.append(
                    [method, asked, value, str(found["left out"]), *(span(found[name]) for name in each)]
                )
    return "\n".join([markdown(rows), "", origin(content)])


def likeness(content: dict[str, Any]) -> str:
    """Whether hits look like the query."""
    measures = sorted(
        {name for table in content["results"].values() for f in table.values() for name in f["by measure"]}
    )
    rows = [["embeddings", "ordered by", "P@10 micro", "macro", "likeness", *measures]]
    for method, table in content["results"].items():
        for order, found in table.items():
            told = [
                f"{found['P@10']['micro']:.3f}",
                f"{found['P@10']['macro']:.3f}",
                f"{found['likeness']:.2f}",
            ]
            by = found["by measure"]
            rows.append(
                [method, order, *told, *(f"{by[name]:.2f}" if name in by else "" for name in measures)]
            )
    return "\n".join([markdown(rows), "", origin(content)])


def explanation(content: dict[str, Any]) -> str:
    """Areas of the deletion and insertion test."""
    found = content["results"]

    def span(entry: dict[str, float]) -> str:
        return f"{entry['value']:.3f} ({entry['low']:.3f}–{entry['high']:.3f})"

    rows = [["order of the cells", "deletion (low is good)", "insertion (high is good)"]]
    for name in found["deletion"]:
        rows.append([name, *(span(found[test][name]["area"]) for test in ("deletion", "insertion"))])
    words = f"{found['pairs']} pairs of {found['patients']} patients."
    return "\n".join([markdown(rows), "", words, "", origin(content)])


def speed(content: dict[str, Any]) -> str:
    """The shipped encoder over the plain backbone."""
    first = next(iter(content["results"].values()))
    rows = [["slices", *(f"{name}, ms a slice (shipped over it)" for name in first)]]
    for batch, found in content["results"].items():
        rows.append([batch, *(f"{r['ms']:.1f} ({r['ratio']:.2f})" for r in found.values())])
    return "\n".join([markdown(rows), "", origin(content)])


def cold(content: dict[str, Any]) -> str:
    """A question in a process of its own, over what it cannot do without."""
    head = [
        "query",
        "planes looked at",
        "`import torch`",
        "ended at once",
        "the encoder on them",
        "`cbir query`",
    ]
    rows = [[*head, "ratio", "to what ends at once"]]
    parts = ("import torch", "import torch, ended at once", "encoder", "cbir query")
    for name, r in content["results"].items():
        seconds = (f"{r[part]:.2f} s" for part in parts)
        rows.append([name, str(r["planes"]), *seconds, f"{r['ratio']:.2f}", f"{r['ratio at once']:.2f}"])
    return "\n".join([markdown(rows), "", origin(content)])


def planes(content: dict[str, Any]) -> str:
    """What is lost where planes are left out."""
    rows = [["planes apart", "planes a scan", "cosine with all planes: median, least", "P@10, index of all"]]
    rows[0].append("P@10, index as sparse")
    for apart, r in sorted(content["results"].items(), key=lambda row: float(row[0])):
        same = r["cosine with all planes"]
        rows.append(
            [
                "all" if apart == "0" else f"{apart} mm",
                f"{r['planes a scan']:.0f}",
                f"{same['median']:.4f}, {same['least']:.3f}",
                f"{r['P@10, index of all planes']:.3f}",
                f"{r['P@10, index as sparse']:.3f}",
            ]
        )
    return "\n".join([markdown(rows), "", origin(content)])


def scanner_grids(content: dict[str, Any]) -> str:
    """The same studies on one grid, and as a scanner sends them."""
    rows = [["", "patients", "", "one grid", "as the scanner sends it", "difference (95 % interval)"]]
    for which in ("all", "HGG", "LGG"):
        r = content["results"]["figures"][which]
        for metric in ("P@10", "vote"):
            one, other, by = (
                r[metric][part] for part in ("one grid", "as the scanner sends it", "difference")
            )
            span = f"{by['value']:+.3f} ({by['low']:+.3f} to {by['high']:+.3f})"
            rows.append([which, str(r["patients"]), metric, f"{one:.3f}", f"{other:.3f}", span])
    same = content["results"]["figures"]["all"]["cosine"]
    said = f"Cosine of the composites in both forms: median {same['median']:.3f}, least {same['least']:.3f}."
    return "\n".join([markdown(rows), "", f"{said} {origin(content)}"])


def engines(content: dict[str, Any]) -> str:
    """The same answers on other engines, and what they cost."""
    found, same = content["results"], content["results"]["agreement"]
    rows = [["", "FAISS + SQLite", "Milvus + PostgreSQL"]]
    for name, near, far in (
        ("64 neighbours of 30 slices", "search of 30 slices, faiss", "search of 30 slices, milvus"),
        ("4000 embeddings read from the catalog", "4000 vectors, sqlite", "4000 vectors, postgresql"),
        ("4000 embeddings read from the vectors", "4000 vectors, faiss", "4000 vectors, milvus"),
        ("all of the catalog but the embeddings", "contents, sqlite", "contents, postgresql"),
    ):
        took = found["seconds"]
        rows.append([name, f"{took[near] * 1000:.0f} ms", f"{took[far] * 1000:.0f} ms"])
    recall = found["recall_at_10"]
    rows.append(["recall of the ten nearest slices", f"{recall['faiss']:.3f}", f"{recall['milvus']:.3f}"])
    text = (
        f"{found['slices']} slices of {found['dimension']} numbers in {found['lists']} lists, both engines "
        f"made to search by lists. Asked slice by slice, {same['slices']:.1%} of the first ten places hold "
        f"the same similarity; of the first ten cases for a case of the index, {same['cases']:.1%} are "
        "the same (Milvus looks into the lists of all slices of a question, and so finds more). Moving the "
        f"index took {found['seconds']['copy']:.0f} s."
    )
    return "\n".join([markdown(rows), "", text, "", origin(content)])


def hostility(content: dict[str, Any]) -> str:
    """What strangers' bytes and requests did to runs and to the service."""
    found = content["results"]
    rows = [["tried", "how much", "found", "measured"]]

    def add(name: str, kind: str, much: str, outcome: Callable[[dict[str, Any]], str]) -> None:
        if name in found:
            r = found[name]
            rows.append([kind, much.format(**r), outcome(r), f"{r['date']}, {r['commit']}, {r['machine']}"])

    add(
        "fuzz through runs",
        "mutated files of every kind, in folders that are indexed",
        "{files:,} files",
        lambda r: (
            f"no run ended, no traceback; {r['refused']:,} refused; {r['ended its process']} ended a child, "
            f"{r['took more time than it may']} took more time, {r['took more memory than it may']} more "
            "memory than it may"
        ),
    )
    add(
        "fuzz through the service",
        "mutated files of every kind, sent to the service",
        "{files:,} requests",
        lambda r: "no 5xx; " + ", ".join(f"{n:,} × {s}" for s, n in r["statuses"].items()),
    )
    for where in ("through the service", "on the command line"):
        add(
            f"identifiers {where}",
            f"identifiers planted, {where}",
            "{planted:,}",
            lambda r: f"{r['found']} found again",
        )
    add(
        "attack",
        "floods, idle and slow connections, damaged requests, poison; 8 good clients meanwhile",
        "{seconds:,.0f} s",
        lambda r: (
            f"{r['errors']} errors of {r['answers']:,} answers; p99 {r['p99_alone']:.2f} s alone, "
            f"{r['p99_attacked']:.2f} s attacked ({r['ratio']:.2f} times), at a load of {r['load']}; memory "
            f"{r['mib_before']} MiB before, {r['mib_after']} MiB after; both forms of the trail agree"
        ),
    )
    return markdown(rows)


def growth(content: dict[str, Any]) -> str:
    """What one more scan and one question cost, by how much there is."""
    found = content["results"]
    header = ["", *(f"{spaced(n)} slices, ms" for n in found["slices"]), "ratio"]
    steps = ("add", "question beyond the search", "search", "question", "refresh", "info")
    rows = [
        [name, *(f"{ms:.1f}" for ms in found["milliseconds"][name]), f"{found['ratio'][name]:.2f}"]
        for name in steps
    ]
    return "\n".join([markdown([header, *rows]), "", origin(content)])


def help_of(verb: str = "") -> str:
    """What ``cbir VERB --help`` prints, 100 columns wide and without colour."""
    environment = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "CBIR_INDEX": None}
    printed = CliRunner().invoke(app, [*verb.split(), "--help"], env=environment, prog_name="cbir")
    return "\n".join(line.rstrip() for line in printed.stdout.strip().splitlines())


def verbs() -> list[str]:
    """The verbs of the command line, in the order of its help."""
    return [command.name or command.callback.__name__ for command in app.registered_commands]


def cli_help() -> str:
    """The help of all verbs."""
    parts = [f"```text\n{help_of()}\n```"]
    parts += [f"## cbir {verb}\n\n```text\n{help_of(verb)}\n```" for verb in verbs()]
    return "\n\n".join(parts)


def sample() -> str:
    """The session on the synthetic cohort."""
    session = results.load("sample")["results"]["session"]
    steps = [f"$ {step['command']}\n{step['output']}" for step in session]
    return "```console\n" + "\n".join(steps) + "\n```"


RECALLS = ("0.9", "0.95", "0.99")


def index() -> str:
    """What each index costs at equal recall, on real slices and on enlarged collections."""
    parts = []
    for name in ("index", *sorted(path.stem for path in results.RESULTS.glob("index-*.json"))):
        content = results.load(name)
        for task, table in content["results"].items():
            parts += [*compared(task, table), ""]
        parts += [f"Slices of {content['provenance']['data']}. {origin(content)}", ""]
    return "\n".join(parts).strip()


def compared(task: str, table: dict[str, Any]) -> list[str]:
    """One collection: a table of the indexes, and how many of the first ten patients ours finds."""
    heads = [f"{what} at {recall}" for what in ("distances", "µs") for recall in RECALLS]
    rows = [["index", *heads, "bytes a vector", "highest recall"]]
    for name, entry in table["methods"].items():
        cells = [entry[cost][r] for cost in ("distances", "microseconds") for r in RECALLS]
        at = next((cell for cell in reversed(cells[:3]) if cell), None)
        size = str(at["bytes"]) if at else ""
        shown = [f"{cell['cost']:.0f}" if cell else "–" for cell in cells[:3]]
        shown += [f"{cell['cost']:.1f}" if cell else "–" for cell in cells[3:]]
        rows.append([name, *shown, size, f"{entry['highest recall']:.4f}"])
    parts = [f"**{task}** ({table['base']} slices, {table['queries']} queries)", "", markdown(rows)]
    for name, entry in table["methods"].items():
        if entry["patients"]:
            told = ", ".join(f"{found:.4f} at {asked}" for asked, found in entry["patients"].items())
            parts += ["", f"Of the first ten patients, the {name} finds {told}."]
    return parts


GROWTH = (
    *("lists", "k-means fit, s", "k-means filing, s", "fit, s", "calibration, s", "filing, s"),
    *("over k-means", "adding 1 %, s", "disk, MB", "opening, s", "memory, MiB", "mapped, MiB"),
    *("query, ms", "p99, ms", "p99 of the processor, ms", "in one call, µs", "recall@10"),
)


def scale() -> str:
    """Times, memory and disk by size, and a million vectors in 1024 lists beside FAISS's k-means."""
    parts = []
    for lists in (None, 1024):
        files = [path.stem for path in results.RESULTS.glob("scale-*.json")]
        wanted = [name for name in files if (name.count("-") == 2) == bool(lists)]
        contents = [results.load(name) for name in sorted(wanted, key=lambda name: int(name.split("-")[1]))]
        if not contents:
            continue
        rows = [["", *(spaced(content["results"]["vectors"]) for content in contents)]]
        for name in GROWTH:
            if name in contents[0]["results"]:
                rows.append([name, *(spaced(content["results"][name]) for content in contents)])
        last = contents[-1]
        parts += [markdown(rows), "", f"Slices of {last['provenance']['data']}. {origin(last)}", ""]
    return "\n".join(parts).strip()


def spaced(value: float) -> str:
    """A number with its thousands apart."""
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:.3g}"


LAYOUT_FIGURES = ("persons", "visits", "sequences", "masks as images", "regions", "labels")


def layouts() -> str:
    """What plans of the miniature cohorts are worth, by the tables of their truth."""
    trees = results.load("cohort_layouts")["results"]["trees"]
    rows = [
        ["tree", "patients", "visits", "scans", "outlines", "left out", *LAYOUT_FIGURES[2:], "falls short"]
    ]
    for name, r in trees.items():
        counts = [str(r[k]) for k in ("patients", "visits planned", "images", "outlines", "left out")]
        wrong = "" if r["persons"] == "ok" else f"persons {r['persons']}"
        rows.append([name, *counts, *(r[k].strip() for k in LAYOUT_FIGURES[2:]), wrong or r["short"] or "–"])
    return markdown(rows)


def layout_speed() -> str:
    """How long a look at many files takes, beside ``find``."""
    content = results.load("cohort_layouts")
    r = content["results"]["speed"]
    ratio = (r["plan"] + r["fingerprints"]) / max(r["find"], 0.01)
    return (
        f"{r['files']:,} files in 20,000 folders: deciding what they are takes {r['plan']:.1f} s of a core, "
        f"seeing that none has changed {r['fingerprints']:.1f} s; `find` with sizes and times takes "
        f"{r['find']:.1f} s (ratio {ratio:.0f}). Commit {content['provenance']['commit']}, "
        f"{content['provenance']['date']}, {content['provenance']['machine']}."
    )


def peers(content: dict[str, Any]) -> str:
    """Series as the reader and as dcm2niix make volumes of them."""
    rows = [["series", "", "files", "scans", "volumes of dcm2niix", "outcome"]]
    for name, table in content["results"].items():
        for path, found in table.items():
            counts = [str(found[key]) for key in ("files", "scans", "volumes")]
            rows.append([name, "" if path == "." else path, *counts, found["verdict"]])
    return "\n".join([markdown(rows), "", f"{content['provenance']['peer']}. {origin(content)}"])


def readers(content: dict[str, Any]) -> str:
    """How long reading takes over converting."""
    rows = [["series", "files", "reading, ms", "dcm2niix, ms", "ratio"]]
    for name, found in content["results"].items():
        times = [f"{found[key]:.0f}" for key in ("reading_ms", "dcm2niix_ms")]
        rows.append([name, str(found["files"]), *times, f"{found['ratio']:.2f}"])
    return "\n".join([markdown(rows), "", f"{content['provenance']['peer']}. {origin(content)}"])


def regions(content: dict[str, Any]) -> str:
    """Whether the lesion is found, folder by folder."""
    head = ["looked at", "folder", "planes", "patients", "hit", "mean IoU", "planes without", "found there"]
    rows = [head]
    healthy = content["results"]["no lesion"]
    for how in ("single slices", "sequences together"):
        for folder, row in content["results"][how].items():
            false = row["found where none is"]
            values = [str(row["planes"]), str(row["patients"]), f"{row['hit']:.3f}", f"{row['mean IoU']:.3f}"]
            rows.append(
                [how, folder, *values, str(row["planes without"]), "" if false is None else f"{false:.3f}"]
            )
    focal = [["sequences and planes together", "patients", "foci", "hit", "Dice", "found", "beside any"]]
    for folder, row in content["results"]["foci"].items():
        counts = [str(row["patients"]), str(row["foci"]), f"{row['hit']:.2f}", f"{row['Dice']:.2f}"]
        focal.append([folder, *counts, str(row["found"]), f"{row['of these beside']:.2f}"])
    told = [["what asks", "limit", "with a lesion", "without", "of these nothing found"]]
    for name, row in healthy.items():
        share = row["of these nothing found"]
        counts = [str(row["with"]), str(row["without"])]
        told.append([name, f"{row['least']:.3f}", *counts, "" if share is None else f"{share:.2f}"])
    said = (
        "No lesion is found where the chance of one is lower than nearly all patients with a lesion reach "
        f"(of a further one it is with a probability of one in {content['results']['one of']} at most): in "
        "some plane of a flat image, in two of a stack, in two of any stack of a visit by the set of its "
        "sequences. Patients are counted. Without a lesion are the planes that show none, as if they were "
        "all of their stack."
    )
    parts = (markdown(rows), markdown(focal), said, markdown(told), origin(content))
    return "\n\n".join(parts)


def every_grade(content: dict[str, Any]) -> str:
    """Hits and votes for each WHO grade, by what asks."""
    cases, heads = content["results"]["cases"], content["results"]["heads"]
    grades = list(next(iter(cases.values()))["hits"])
    head = [
        "who asks",
        "cases",
        *(f"hits of {g}" for g in grades),
        *(f"{g} first" for g in grades),
        "no vote",
        "set holds it",
        "set size",
    ]
    rows = [head]
    for name, row in cases.items():
        shares = [*row["hits"].values(), *row["first"].values(), row["abstained"]]
        shares += [row["set holds it"], row["set size"]]
        rows.append([name, str(row["cases"]), *(f"{share:.2f}" for share in shares)])
    told = [
        [
            "whole heads ask by",
            "sequences of 4",
            "of 2 and 3",
            "says 4 of 4",
            "of 2 and 3",
            "area under the curve",
        ]
    ]
    for name, row in heads.items():
        area = f"{row['area']:.2f} ({row['low']:.2f}–{row['high']:.2f})"
        said = [f"{row[of]:.2f}" for of in ("says 4 of 4", "says 4 of 2 and 3")]
        told.append([name, str(row["scans of 4"]), str(row["scans of 2 and 3"]), *said, area])
    names = {"t1": "T1", "t1ce": "T1 after contrast agent", "t2": "T2", "flair": "FLAIR"}
    told_first = ", ".join(
        f"{right} of {asked} of {names[name]}"
        for name, (right, asked) in content["results"]["by sequence"].items()
    )
    said = f"The vote names grade 4 first for {told_first} among the whole heads of TCGA-GBM."
    singles = [["one sequence asks", *names.values()]]
    for of, found in content["results"]["alone"].items():
        cells = [found.get(name) for name in names]
        singles.append(
            [
                f"{of}, 4 against 2 and 3",
                *(
                    f"{c['area']:.2f} ({c['scans of 4']} against {c['scans of 2 and 3']})" if c else ""
                    for c in cells
                ),
            ]
        )
    parts = [
        markdown(rows),
        said,
        markdown(told),
        "Area under the curve by one sequence alone:",
        markdown(singles),
    ]
    return "\n\n".join([*parts, origin(content)])


def resemblance(content: dict[str, Any]) -> str:
    """How much the first hits of the query's class look like it, by each ranking."""
    found = content["results"]
    told = list(next(iter(found["rankings"].values()))["likeness"])
    rows = [["ranking", *told, "P@10 macro", "mAP macro"]]
    for name, row in found["rankings"].items():
        values = [*row["likeness"].values(), row["P@10 macro"], row["mAP macro"]]
        rows.append([name, *(f"{value:.3f}" for value in values)])
    head = f"**brats-lesions, within the class** ({found['lesions']} lesions, {found['patients']} patients)"
    return "\n".join([head, "", markdown(rows), "", origin(content)])


FAULTS = {
    "kills": "killed at any system call that changes the disk",
    "errors": "such a call fails: ENOSPC, EDQUOT, EIO, EROFS; once, or from then on",
    "interrupts": "Ctrl-C at any system call, of verbs that only read, too",
    "folders": "commands on hostile index folders",
    "flips": "one bit of a file of an index is flipped",
}


def faults() -> str:
    """What was tried on purpose, how often, and how often something was wrong."""
    rows = [["tried", "trials", "wrong", "commit", "by"]]
    for kind, what in FAULTS.items():
        if (results.RESULTS / f"faults-{kind}.json").exists():
            content = results.load(f"faults-{kind}")
            found, p = content["results"], content["provenance"]
            command = f"`{p['command']}`"
            rows.append([what, str(found["trials"]), str(len(found["wrong"])), p["commit"], command])
    return markdown(rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "faults": faults,
    "index": index,
    "scale": scale,
    "baseline": lambda: baseline(("mAP", "P@10"), ("micro", "macro"), METHODS),
    "baseline in full": lambda: baseline(METRICS, ("macro",), METHODS),
    "combination": lambda: baseline(("mAP", "P@5"), ("macro",), COMBINATIONS),
    "canary": canary,
    "ingest": ingest,
    "trained": trained,
    "figshare": lambda: measured("figshare", figshare),
    "grades": lambda: measured("grades", grades),
    "regions": lambda: measured("regions", regions),
    "every grade": lambda: measured("every_grade", every_grade),
    "resemblance": lambda: measured("resemblance", resemblance),
    "views": lambda: measured("views", views),
    "volumes": lambda: measured("volumes", volumes),
    "radiomics": lambda: measured("radiomics", radiomics),
    "ablation": lambda: measured("ablation", ablation),
    "speed": lambda: measured("speed", speed),
    "cold": lambda: measured("cold", cold),
    "planes": lambda: measured("planes", planes),
    "scanner grids": lambda: measured("scanner_grids", scanner_grids),
    "calibration": lambda: measured("calibration", calibration),
    "open set": lambda: measured("open_set", open_set),
    "likeness": lambda: measured("likeness", likeness),
    "explanation": lambda: measured("explanation", explanation),
    "paper": paper,
    "service": lambda: measured("service", service),
    "live": lambda: measured("live", live),
    "engines": lambda: measured("engines", engines),
    "growth": lambda: measured("growth", growth),
    "hostility": lambda: measured("hostility", hostility),
    "peers": lambda: measured("peers", peers),
    "readers": lambda: measured("readers", readers),
    "help": cli_help,
    "cohorts": layouts,
    "cohorts speed": layout_speed,
    "sample": sample,
}


def rewritten(text: str) -> str:
    """The document with all its blocks made anew."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- begin {name} -->\n{BLOCKS[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin ([a-z ]+) -->\n.*?<!-- end \1 -->", block, text, flags=re.DOTALL)


def stale() -> list[str]:
    """Documents whose blocks are not what the results say."""
    return [name for name in DOCUMENTS if rewritten(_text(name)) != _text(name)]


def _text(name: str) -> str:
    return Path(results.ROOT / name).read_text("utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say what is stale, and fail")
    check = parser.parse_args().check
    for name in stale():
        print(f"{name} {'is stale: run `make docs`' if check else 'rewritten'}")
        if not check:
            (results.ROOT / name).write_text(rewritten(_text(name)), "utf-8")
    if check and stale():
        sys.exit(1)


if __name__ == "__main__":
    main()
