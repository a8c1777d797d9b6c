"""What the neighbours' vote is worth, learnt from the index itself.

Each patient asks with what is filed of it, and all other patients answer, as they would answer a new
one. From these questions, whose answers are known, follow

- for each label column one **temperature**, so that what is said with 80 % is right in 80 % of the
  cases (Guo et al. 2017, "On calibration of modern neural networks", https://arxiv.org/abs/1706.04599);
- for each value of a column the probability from which it belongs to the **set** that holds a new
  patient's value in 90 % of the cases: split conformal prediction (Vovk, Gammerman and Shafer 2005,
  "Algorithmic learning in a random world"; Angelopoulos and Bates 2021,
  https://arxiv.org/abs/2107.07511), class by class, because sets that cover 90 % of all patients can
  leave out half of those with the rare value; and of the patients with the value who are most like the
  query (as in Guan 2023, "Localized conformal prediction", https://doi.org/10.1093/biomet/asac040),
  because the vote may be worth little for a kind of scan of which most have another value;
- for each sequence the similarity that almost every known patient finds: below it **nothing similar
  is here**, and the vote is not taken;
- for each column how near to known cases a patient with one of its values is, and whether that tells a
  patient of **another kind** (:mod:`retrieval.open_set`).

A patient whom the encoder was trained on does not ask (its neighbours look better than a new patient's
will), but answers. The patient is the unit: one that asks with several scans has one vote in all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer import sealed
from indexer.case_index import CaseIndex
from indexer.catalog import Contents
from indexer.policy import SearchPolicy
from retrieval.answer import Evidence
from retrieval.conformal import (
    TEMPERATURES,
    Floats,
    conformal_quantile,
    lowest_usual,
    shares,
    temperature,
    tempered,
)
from retrieval.evidence import RANKING, class_columns
from retrieval.leave_one_out import LeaveOneOut, Votes, joined, votes
from retrieval.open_set import OpenSet
from retrieval.ranking import Ranking

FILE = "calibration.json"
FORMAT = 2
PATIENTS, OF_VALUE = 30, 5
"""A column is calibrated on so many patients, and so many of each value, or not at all."""
FEW = f"no label is known of {PATIENTS} patients and of {OF_VALUE} for each value"
ENOUGH = 10
"""Patients from whom it can be told what is similar."""
NEAR = 20
"""Patients with a value who are most like a query: they tell how much the vote usually gives it."""
QUESTIONS = 10_000
"""Of a column, that are kept to tell who is like a query, at most."""
CHANGED = 0.1
"""Share of the scans or labels that may change before it is all learnt anew."""
SIMILARITY = "similarity"
TYPICALITY = "typicality"
"""Minus the strangeness (:mod:`indexer.learning.strangeness`) of a scan."""
SURE = 1.4
"""A scan of less strangeness is no stranger, however unlike the known ones: whole heads that a trained
encoder has not seen reach 1.3, phantoms and other parts of the body begin at 1.5. Else whole heads that
ask an index of lesion crops, or tumours from another scanner, would get no answer."""
POLICY = SearchPolicy()
UNSAID: dict[str, dict[str, Any]] = {
    "ranking": {
        "rule": "stacks",
        "composite_weight": 8.0,
        "neighbours": 15,
        "prior_mass": 1.0,
        "set_mass": 0.9,
    },
    "policy": {
        "exact_below": 20_000,
        "exact_share": 0.1,
        "deep_share": 0.005,
        "shortlist": 100,
        "depth": 64,
        "recall": None,
    },
}
"""Under which the first calibrations were learnt, which do not say it."""


@dataclass(frozen=True)
class Fit:
    """How the vote on one column is read.

    Attributes
    ----------
    patients : int
        Who questions.
    temperature : float
    quantiles : dict
        For each value the :func:`conformal_quantile` of 1 − p(value) among the patients who have it.
    asked : dict, optional
        For each value the questions of those who have it: the id of a scan, and 1 − p(value).
    """

    patients: int
    temperature: float
    quantiles: dict[str, float]
    asked: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, votes: Votes, scans: NDArray[np.int64] | None = None) -> Fit | None:
        """Fit to votes whose truth is known, of scans with these ids; None where they are too few."""
        w, truth = votes.weights, votes.truth
        n = round(float(w.sum()))
        of_value = [float(w[truth == c].sum()) for c in range(len(votes.values))]
        if n < PATIENTS or len(of_value) < 2 or min(of_value) < OF_VALUE:
            return None
        t = temperature(votes.probabilities, truth, w)
        scores = 1 - tempered(votes.probabilities, t)
        quantiles, asked = {}, {}
        for c, value in enumerate(votes.values):
            has = truth == c
            quantiles[value] = conformal_quantile(scores[has, c], w[has])
            if scans is not None and len(scans) <= QUESTIONS:
                asked[value] = list(zip(scans[has].tolist(), scores[has, c].round(6).tolist(), strict=True))
        return cls(n, t, quantiles, asked)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Fit:
        """What a file tells, of before :attr:`asked`, too.

        Raises
        ------
        ValueError
            If these are more than :data:`QUESTIONS`.
        """
        if sum(map(len, told.get("asked", {}).values())) > QUESTIONS:
            raise ValueError("more questions than are kept")
        asked = {value: [(scan, p) for scan, p in rows] for value, rows in told.get("asked", {}).items()}
        return cls(**{**told, "asked": asked})

    def near(self, column: str, contents: Contents, order: NDArray[np.int64]) -> Fit:
        """The same with the quantiles of those who are most like a query.

        Parameters
        ----------
        column : str
        contents : Contents
            Of the index.
        order : ndarray of int64
            Cases in it that may tell, most like the query first. Where fewer than :data:`NEAR` patients
            with a value are among them, its quantile stays as it is.
        """
        rank = np.full(len(contents.case_ids), len(order))
        rank[order] = np.arange(len(order))
        found = {}
        for value, told in self.asked.items():
            cases = contents.cases_with([scan for scan, _ in told])
            rows = [
                row
                for row, case in enumerate(cases)
                if case >= 0 and rank[case] < len(order) and contents.labels[case].get(column) == value
            ]
            own = cases[rows]
            patients = np.array([contents.patient_ids[case] for case in own.tolist()], object)
            quantile = near_quantile(np.array([told[row][1] for row in rows]), patients, -rank[own])
            if quantile is not None:
                found[value] = quantile
        return replace(self, quantiles=self.quantiles | found)

    def sets(self, values: Sequence[str], probabilities: Floats) -> NDArray[np.bool_]:
        """Which values belong to the set, shape (..., c), of tempered probabilities (..., c).

        A value belongs to it if 1 − p does not exceed its quantile (least ambiguous sets, Sadinle, Lei
        and Wasserman 2019, https://arxiv.org/abs/1609.00451). It may be empty: then no value looks as
        its patients usually do.
        """
        return np.asarray(1 - probabilities <= np.array([self.quantiles[v] for v in values]) + 1e-9)

    def __call__(self, evidence: Evidence) -> Evidence:
        """The vote, calibrated; as it was if it is on values that had no part in the fit.

        Where the quantiles of two values are far apart, :meth:`sets` can hold the second and not the
        first. Nobody would understand such a set: it gets the first value too, and covers no less.
        """
        values = list(evidence.probabilities)
        if evidence.abstain:
            return evidence
        if unknown := sorted(set(values) - self.quantiles.keys()):
            return replace(evidence, reason=f"not calibrated: learnt without {', '.join(unknown)}")
        p = tempered(np.array(list(evidence.probabilities.values())), self.temperature)
        held = self.sets(values, p)
        if held.any():
            held |= p == p.max()
        return replace(
            evidence,
            probabilities=dict(zip(values, p.tolist(), strict=True)),
            set=sorted(value for value, plausible in zip(values, held, strict=True) if plausible),
            calibrated=True,
            calibrated_on=self.patients,
        )


def near_quantile(
    scores: Floats, patients: NDArray[Any], similarity: NDArray[np.floating[Any] | np.integer[Any]]
) -> float | None:
    """The :func:`conformal_quantile` among the :data:`NEAR` most similar patients; None of fewer.

    Parameters
    ----------
    scores, patients, similarity : ndarray, shape (n,)
        One a question; −inf where it cannot be compared. A patient is as similar as the best of its own.
    """
    order = np.argsort(-similarity, kind="stable")
    nearest = list(dict.fromkeys(patients[order[np.isfinite(similarity[order])]].tolist()))[:NEAR]
    if len(nearest) < NEAR:
        return None
    chosen = np.isin(patients, np.array(nearest, patients.dtype))
    return conformal_quantile(scores[chosen], shares(patients[chosen]))


@dataclass(frozen=True)
class Kind:
    """What was learnt for one kind of question.

    Attributes
    ----------
    columns : dict of str to Fit
    usual : dict of str to dict of str to float
        For each signal (:data:`SIMILARITY`, …) and sequence the :func:`lowest_usual` value; ``""``
        stands for a scan whose sequence is unknown.
    open_sets : dict of str to OpenSet, optional
        By column; None if it was learnt before there were any.
    """

    columns: dict[str, Fit]
    usual: dict[str, dict[str, float]]
    open_sets: dict[str, OpenSet] | None = None

    @classmethod
    def of(
        cls,
        questions: LeaveOneOut,
        columns: Iterable[str],
        signals: Mapping[str, NDArray[np.floating[Any]]],
        scan_ids: NDArray[np.int64] | None = None,
    ) -> Kind:
        """Learn from questions whose answers are known; `signals` have one value a question."""
        fits = {}
        for column in columns:
            said = votes(questions, column)
            if fit := Fit.of(said, None if scan_ids is None else scan_ids[said.scans]):
                fits[column] = fit
        told = {SIMILARITY: questions.nearest, **signals}
        usual = {name: _usual(values, questions) for name, values in told.items()}
        return cls(fits, {s: u for s, u in usual.items() if u})

    def with_open_sets(self, questions: LeaveOneOut, *, joint: bool) -> Kind:
        """Having learnt from questions of one scan each what is near, for each column with a fit."""
        found = {
            column: OpenSet.of(questions, column, sorted(fit.quantiles), joint=joint)
            for column, fit in self.columns.items()
        }
        return replace(self, open_sets={column: one for column, one in found.items() if one})

    def strange(self, signal: str, values: Sequence[tuple[str | None, float]]) -> bool | None:
        """Whether scans are below what is usual, on average; None where that was not learnt.

        Parameters
        ----------
        signal : str
        values : sequence of (sequence, value)
            NaN is passed over.
        """
        usual = self.usual.get(signal)
        excess = [v - usual.get(s or "", usual[""]) for s, v in values if not np.isnan(v)] if usual else []
        return float(np.mean(excess)) < 0 if excess else None


@dataclass(frozen=True)
class Calibration:
    """What an index has learnt about its own answers; ``calibration.json`` in its folder.

    Attributes
    ----------
    kinds : dict of str to Kind
        ``scan`` (one scan asks), ``case`` (several together), ``region`` (an outlined part of one).
        Strangers are told by their single scans.
    encoder_version : str
    revision : int
        Of the catalog.
    seed : int
    patients : int
        Who questions.
    scans, last_scan : int
        In the index when it was fitted, and the highest id among them.
    labels : dict
        Patients by value of each column, then.
    ranking : Ranking
    policy : SearchPolicy
        How the answers were found that it was learnt from: it tells nothing of others.
    """

    kinds: dict[str, Kind]
    encoder_version: str
    revision: int
    seed: int
    patients: int
    scans: int
    last_scan: int
    labels: dict[str, dict[str, int]]
    ranking: Ranking = RANKING
    policy: SearchPolicy = POLICY
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> Calibration | None:
        """What an index folder holds, for whatever it was learnt; None where that is nothing, or damaged."""
        try:
            data = UNSAID | sealed.read(folder / FILE)
            kinds = {
                name: Kind(
                    {c: Fit.read(fit) for c, fit in kind["columns"].items()},
                    kind["usual"],
                    {c: OpenSet.read(one) for c, one in opened.items()}
                    if (opened := kind.get("open_sets")) is not None
                    else None,
                )
                for name, kind in data.pop("kinds").items()
            }
            ranking, policy = Ranking(**data.pop("ranking")), SearchPolicy(**data.pop("policy"))
            held = cls(kinds=kinds, ranking=ranking, policy=policy, **data)
            return held if held.format == FORMAT and held.plausible() else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None

    def plausible(self) -> bool:
        """Whether its numbers are such as are learnt; a file that says others is not believed."""
        counts = [self.revision, self.patients, self.scans, self.last_scan, self.seed, self.format]
        counts += [number for column in self.labels.values() for number in column.values()]
        fits = [fit for kind in self.kinds.values() for fit in kind.columns.values()]
        counts += [fit.patients for fit in fits]
        numbers = [number for fit in fits for number in (*fit.quantiles.values(), fit.temperature)]
        opened = [one for kind in self.kinds.values() for one in (kind.open_sets or {}).values()]
        usual = [of for kind in self.kinds.values() for of in kind.usual.values()]
        numbers += [value for of in usual for value in of.values()]
        return (
            isinstance(self.encoder_version, str)
            and all(type(number) is int and 0 <= number < 2**62 for number in counts)
            and all(type(number) in (int, float) and not math.isnan(number) for number in numbers)
            and all(TEMPERATURES[0] <= fit.temperature <= TEMPERATURES[1] for fit in fits)
            and all(fit.asked.keys() <= fit.quantiles.keys() for fit in fits)
            and all(
                type(scan) is int and 0 <= scan < 2**62 and type(score) in (int, float) and 0 <= score <= 1
                for fit in fits
                for told in fit.asked.values()
                for scan, score in told
            )
            and all("" in of for of in usual)
            and all(one.plausible() for one in opened)
        )

    @classmethod
    def load(
        cls, case_index: CaseIndex, ranking: Ranking = RANKING, policy: SearchPolicy | None = None
    ) -> Calibration | None:
        """What the folder holds, if it was learnt from answers ranked and searched so; else None."""
        held = cls.read(case_index.folder)
        return None if held is None or held.stale(case_index, ranking, policy) else held

    def stale(
        self, case_index: CaseIndex, ranking: Ranking = RANKING, policy: SearchPolicy | None = None
    ) -> str | None:
        """Why it tells nothing of answers that are given otherwise; None where it does.

        Returns
        -------
        str or None
            A clause, such as ``learnt under another ranking (composite_weight 8.0, now 4.0)``.
        """
        version, policy = case_index.manifest.encoder_version, policy or case_index.policy
        if self.encoder_version != version:
            return f"learnt by another encoder (version {self.encoder_version}, now {version})"
        for what, then, now in (
            ("ranking", self.ranking.of_votes, ranking.of_votes),
            ("search policy", self.policy, policy),
        ):
            changed = [
                f"{field.name} {getattr(then, field.name)}, now {getattr(now, field.name)}"
                for field in fields(now)
                if getattr(then, field.name) != getattr(now, field.name)
            ]
            if changed:
                return f"learnt under another {what} ({'; '.join(changed)})"
        return None

    @classmethod
    def of(
        cls,
        questions: Mapping[str, tuple[LeaveOneOut, Mapping[str, NDArray[np.floating[Any]]]]],
        case_index: CaseIndex,
        contents: Contents,
        seed: int,
        policy: SearchPolicy = POLICY,
    ) -> Calibration:
        """Learn from questions of each kind, with the signals of what asks; `policy` found the answers."""
        counts = patients_by_value(contents)
        kinds = {}
        for name, (of_kind, signals) in questions.items():
            if name == "composite":  # which asks as part of a case only
                continue
            kinds[name] = Kind.of(of_kind, counts, signals if name == "scan" else {}, contents.scan_ids)
            if name == "case":
                parts = [questions[single][0] for single in ("scan", "composite") if single in questions]
                kinds[name] = replace(kinds[name], usual={}).with_open_sets(joined(parts), joint=True)
            else:
                kinds[name] = kinds[name].with_open_sets(of_kind, joint=False)
        return cls(
            kinds,
            encoder_version=case_index.manifest.encoder_version,
            revision=contents.revision,
            seed=seed,
            patients=len({patient for of_kind, _ in questions.values() for patient in of_kind.patients}),
            scans=len(contents.scan_ids),
            last_scan=int(contents.scan_ids[-1]),
            labels=counts,
            ranking=next((of_kind.ranking for of_kind, _ in questions.values()), RANKING),
            policy=policy,
        )

    def __str__(self) -> str:
        columns = sorted({column for kind in self.kinds.values() for column in kind.columns})
        told = f"calibrated for {', '.join(columns)}" if columns else f"not calibrated: {FEW}"
        return f"{told}; {self.patients} known patients tell what is similar"

    def save(self, folder: Path) -> None:
        """Replace the file in one step."""
        sealed.write(folder / FILE, asdict(self))

    def fit(self, column: str, scans: int, *, region: bool = False) -> Fit | None:
        """How to read the vote on a column when so many scans ask; None where that is not known."""
        kind = self._kind(scans, region)
        return kind.columns.get(column) if kind else None

    def open_set(self, column: str, scans: int, *, region: bool = False) -> OpenSet | None:
        """What tells whether so many scans are of a kind that is known; None where that was not learnt."""
        kind = self._kind(scans, region)
        return (kind.open_sets or {}).get(column) if kind else None

    def _kind(self, scans: int, region: bool) -> Kind | None:
        return self.kinds.get("region" if region else "case" if scans > 1 else "scan")

    def tells(self, signal: str) -> bool:
        """Whether a signal's usual values have been learnt."""
        return "scan" in self.kinds and signal in self.kinds["scan"].usual

    def strange(
        self, signals: Mapping[str, Sequence[tuple[str | None, float]]], *, region: bool = False
    ) -> bool | None:
        """Whether a query is below what is usual, on the average of its scans, in any of the signals.

        Parameters
        ----------
        signals : mapping of str to sequence of (sequence, value)
            For each signal the values of the query's scans; NaN is passed over.
        region : bool
            Whether an outlined part asks.

        Returns
        -------
        bool or None
            None where nothing was learnt.
        """
        typical = [value for _, value in signals.get(TYPICALITY, ()) if not np.isnan(value)]
        if typical and float(np.mean(typical)) > -SURE:
            return False
        found = []
        for signal, values in signals.items():  # a scan is as typical as it is, whatever part of it asks
            kind = self.kinds.get("region" if region and signal != TYPICALITY else "scan")
            found.append(kind.strange(signal, values) if kind else None)
        return None if all(strange is None for strange in found) else any(found)


def due(
    case_index: CaseIndex,
    ranking: Ranking = RANKING,
) -> bool:
    """Whether an index should be calibrated: it never was for this way to answer, or a tenth has changed.

    Scans are counted, and labels are looked at; vectors and slices are not read.
    """
    held, catalog = Calibration.load(case_index, ranking), case_index.catalog
    if held is None or any(kind.open_sets is None for kind in held.kinds.values()):
        return int(catalog.count()["patients"]) >= ENOUGH
    total, kept = catalog.scans_until(held.last_scan)  # ids only grow
    changed = total - kept + held.scans - kept
    if changed > CHANGED * max(held.scans, 1):
        return True
    now = patients_by_value(catalog.people())
    return now.keys() != held.labels.keys() or any(
        sum(abs(now[c].get(v, 0) - then.get(v, 0)) for v in now[c].keys() | then.keys())
        > CHANGED * sum(then.values())
        for c, then in held.labels.items()
    )


def _usual(values: NDArray[np.floating[Any]], questions: LeaveOneOut) -> dict[str, float]:
    """The :func:`lowest_usual` value of each sequence; for a scan without one, that of all together."""
    names, known = np.array(questions.sequences), ~np.isnan(values)
    found = {}
    for name in ("", *sorted(set(questions.sequences) - {""})):
        rows = known if name == "" else known & (names == name)
        if len(np.unique(questions.patients[rows])) >= ENOUGH:
            found[name] = lowest_usual(values[rows].astype(np.float64), shares(questions.patients[rows]))
    return found


def patients_by_value(contents: Contents) -> dict[str, dict[str, int]]:
    """Patients by value of each column that votes."""
    table = list(dict(zip(contents.patient_ids, contents.labels, strict=True)).values())
    return {c: dict(Counter(row[c] for row in table if c in row)) for c in class_columns(table)}
