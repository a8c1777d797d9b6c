"""A full multi-sequence NIfTI volume as the query: six patients ask the graded cohorts.

Each patient is asked about with a network that has not seen the person, against that network's own
index of BraTS lesions and of TCGA-LGG stacks (:mod:`benchmarks.grades` makes them), the person's own
cases left out. Whole heads ask crops of lesions: the slices' weights decide what counts. Six patients
show that the path works and how it fails; they prove no rate.

    python -m benchmarks.volumes
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks import cohorts, results
from benchmarks.baseline import TASKS as FROZEN
from benchmarks.baseline import indexed
from benchmarks.grades import TASKS, items_of
from cbir import Index, open_index
from indexer import discovery
from indexer.encoder import TrainedEncoder, load_encoder
from indexer.labels import load_tables

VOLUMES = results.DATA / "volumes"
K = 10


def asked(index: Index, patient: str, label: str, truth: str) -> dict[str, Any]:
    """What one patient's volumes find in one index."""
    answer = index.query(VOLUMES / patient, K, exclude_patient=patient)
    found = [hit.labels[label] for hit in answer.hits if label in hit.labels]
    evidence = answer.evidence[label]
    return {
        "truth": truth,
        "hits of the truth": sum(value == truth for value in found),
        "hits": len(found),
        "share of the truth in the vote": evidence.probabilities.get(truth, 0.0),
        "share by chance": evidence.prior.get(truth, 0.0),
        "vote": max(evidence.probabilities, key=lambda value: evidence.probabilities[value]),
        "set": evidence.set,
        "abstains": evidence.abstain,
    }


def main() -> None:
    encoders = cohorts.fold_networks()
    if not encoders:
        sys.exit("nothing is trained yet: python -m benchmarks.cohorts")
    labels = discovery.discover(VOLUMES, load_tables(VOLUMES / "participants.tsv")).joined.labels
    table: dict[str, Any] = {}
    for patient in labels.persons:
        unseen = [e for e in encoders.values() if not e.trained_on(patient)]
        if not unseen:
            print(f"{patient}: no network that has not seen it is trained yet")
            continue
        encoder = unseen[0]
        for name, task in TASKS.items():
            items_of(task, encoder)
            for label in task.labels:
                truth = labels.of(patient)[label]
                methods = {"trained": opened(task.folder, encoder), "frozen ImageNet": frozen(name)}
                for method, index in methods.items():
                    with index:
                        found = asked(index, patient, label, truth)
                    table.setdefault(f"{name}, {label}", {}).setdefault(method, {})[patient] = found
                    print(name, label, method, patient, found, flush=True)
    path = results.save(
        "volumes",
        table,
        data=f"volumes, networks of folds {', '.join(encoders)} of {len(cohorts.FOLDS)}",
        encoder={name: encoder.version for name, encoder in encoders.items()},
    )
    print(path.relative_to(results.ROOT))


def opened(folder: str, encoder: TrainedEncoder) -> Index:
    """A cohort's index by a fold's network."""
    return open_index(results.CACHE / f"{folder}-{encoder.version}", encoder)


def frozen(name: str) -> Index:
    """A cohort's index by the frozen encoder."""
    encoder = load_encoder("imagenet")
    indexed(FROZEN[f"{name}, patient"], encoder).close()
    return open_index(results.CACHE / f"{name}-{encoder.name}", encoder)


if __name__ == "__main__":
    main()
