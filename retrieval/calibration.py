"""What the neighbours' vote is worth, learnt from the index itself: every known patient asks once.

Each patient asks with what is filed of it, and all other patients answer, as they would answer a new
one. From these questions, whose answers are known, follow

- for each label column one **temperature**, so that what is said with 80 % is right in 80 % of the
  cases (Guo et al. 2017, "On calibration of modern neural networks", https://arxiv.org/abs/1706.04599);
- for each value of a column the probability from which it belongs to the **set** that holds a new
  patient's value in 90 % of the cases: split conformal prediction (Vovk, Gammerman and Shafer 2005,
  "Algorithmic learning in a random world"; Angelopoulos and Bates 2021,
  https://arxiv.org/abs/2107.07511), class by class, because sets that cover 90 % of all patients can
  leave out half of those with the rare value;
- for each sequence the similarity that almost every known patient finds: below it **nothing similar
  is here**, and the vote is not taken.

A patient whom the encoder was trained on does not ask (its neighbours look better than a new patient's
will), but answers. The patient is the unit: one that asks with several scans has one vote in all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import t as student

from indexer.case_index import CaseIndex
from indexer.catalog import Contents
from indexer.composite import COMPOSITE
from indexer.errors import WriterBusyError
from indexer.files import written_whole
from indexer.policy import SearchPolicy
from retrieval.answer import Evidence
from retrieval.evidence import NEIGHBOURS, class_columns, vote
from retrieval.ranking import Stacks, fused

if TYPE_CHECKING:
    from retrieval.search import Index, QueryScan
    from retrieval.search import _State as State

Floats = NDArray[np.float64]

EXACT_BELOW = SearchPolicy().exact_below
FILE = "calibration.json"
FORMAT = 1
MISSED = 0.1
"""Share of unseen patients whose value the set may miss."""
STRANGE = 0.01
"""Share of unseen patients of the known kind who may be called strangers."""
PATIENTS, OF_VALUE = 30, 5
"""A column is calibrated on so many patients, and so many of each value, or not at all."""
FEW = f"no label is known of {PATIENTS} patients and of {OF_VALUE} for each value"
ENOUGH = 10
"""Patients from whom it can be told what is similar."""
ASKING = 500
"""Patients that ask, at most."""
SCANS = 4
"""Scans that a patient asks with one by one, at most."""
NEAREST = 3
"""Patients whose mean similarity says how familiar a scan is."""
CHANGED = 0.1
"""Share of the scans or labels that may change before it is all learnt anew."""
TEMPERATURES = (0.1, 10.0)
SIMILARITY = "similarity"
TYPICALITY = "typicality"
"""Minus the strangeness (:mod:`indexer.learning.strangeness`) of a scan."""
SURE = 1.4
"""A scan of less strangeness is no stranger, however unlike the known ones: whole heads that a trained
encoder has not seen reach 1.3, phantoms and other parts of the body begin at 1.5. Else whole heads that
ask an index of lesion crops, or tumours from another scanner, would get no answer."""
SHORTLIST = 100
"""Cases that an approximate search proposes."""


# ---- on arrays -----------------------------------------------------------------------------------


def temperature(probabilities: Floats, truth: NDArray[np.int64], weights: Floats | None = None) -> float:
    """The temperature T whose :func:`tempered` probabilities have the least log loss.

    L(T) = −Σ w_i log p_i,T(y_i): Guo et al. 2017, section 4.2, with the logarithms of the vote's
    shares as logits. One number cannot change which value is first, and cannot fit noise.

    Parameters
    ----------
    probabilities : ndarray, shape (n, c)
    truth : ndarray of int, shape (n,)
        Column of the true value.
    weights : ndarray, shape (n,), optional

    Examples
    --------
    Nine in ten are right where the vote says two thirds: too modest, T < 1.

    >>> p, y = np.tile([2 / 3, 1 / 3], (10, 1)), np.array([0] * 9 + [1])
    >>> round(temperature(p, y), 3)  # log 2 / log 9
    0.315
    """
    w = np.ones(len(truth)) if weights is None else weights
    rows = np.arange(len(truth))

    def loss(log_t: float) -> float:
        return float(-w @ np.log(np.maximum(tempered(probabilities, np.exp(log_t))[rows, truth], 1e-12)))

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def tempered(probabilities: Floats, temperature: float) -> Floats:
    """p^(1/T) / Σ p^(1/T), along the last axis: softmax of log p / T (Guo et al. 2017).

    Examples
    --------
    >>> tempered(np.array([0.8, 0.2]), 0.5).round(3).tolist()  # 0.64 : 0.04
    [0.941, 0.059]
    """
    logits = np.log(np.maximum(probabilities, 1e-12)) / temperature
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def conformal_quantile(scores: Floats, weights: Floats | None = None, missed: float = MISSED) -> float:
    """The score that a new one does not exceed with probability 1 − `missed`, or 1 if none is safe.

    The ⌈(n + 1)(1 − missed)⌉-th smallest of n scores (Angelopoulos and Bates 2021, section 1), which
    holds for any distribution if the new one is exchangeable with them. Scores are 1 − p(true value)
    and so never above 1. Where a patient has several, their weights sum to 1, n counts patients, and
    the weights are added up in place of counting ("pooling CDFs", Dunn, Wasserman and Ramdas 2022,
    https://arxiv.org/abs/1809.07441).

    Examples
    --------
    Nine patients: ⌈10 · 0.9⌉ = the ninth; eight are too few to say anything.

    >>> conformal_quantile(np.arange(1, 10) / 10), conformal_quantile(np.arange(1, 9) / 10)
    (0.9, 1.0)
    """
    w = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    needed = (w.sum() + 1) * (1 - missed)
    place = int(np.searchsorted(np.cumsum(w[order]), needed - 1e-9))
    return float(scores[order[place]]) if place < len(scores) else 1.0


def lowest_usual(values: Floats, weights: Floats | None = None, strange: float = STRANGE) -> float:
    """The value below which a further patient is called a stranger.

    The k-th smallest of n patients' values with k = max(1, (n + 1) · `strange`): a patient exchangeable
    with them is below it with probability k / (n + 1) at most. Fewer than 1 / `strange` − 1 patients
    cannot place so rare a quantile; there it is no higher than the lower prediction bound of one more
    normal value, mean − t(1 − strange, n − 1) s √(1 + 1/n).

    Parameters
    ----------
    values : ndarray, shape (n,)
    weights : ndarray, shape (n,), optional
        Where a patient has several values, theirs sum to 1.

    Examples
    --------
    >>> lowest_usual(np.arange(299.0))  # k = 3
    2.0
    >>> round(lowest_usual(np.array([0.7, 0.8, 0.9])), 3)  # 0.8 − 6.965 · 0.1 · √(4/3)
    -0.004
    """
    w = np.ones(len(values)) if weights is None else weights
    order = np.argsort(values, kind="stable")
    n = float(w.sum())
    place = int(np.searchsorted(np.cumsum(w[order]), max(1.0, (n + 1) * strange) - 1e-9))
    lowest = float(values[order[min(place, len(order) - 1)]])
    if strange * (n + 1) >= 1 or n <= 1:
        return lowest
    mean = w @ values / n
    spread = np.sqrt(w @ (values - mean) ** 2 / (n - 1))
    return min(lowest, float(mean - student.ppf(1 - strange, n - 1) * spread * np.sqrt(1 + 1 / n)))


@dataclass(frozen=True)
class Known:
    """Items that answer.

    Attributes
    ----------
    patients : ndarray, shape (n,)
        Ids, or numbers that stand for them.
    labels : sequence of dict
        One entry an item; a patient's items have the same.
    """

    patients: NDArray[Any]
    labels: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Asked:
    """Questions, and how similar the known items are.

    Attributes
    ----------
    known : Known
    patients : ndarray, shape (q,)
        Who asks; who is known too does not answer.
    labels : sequence of dict
    similarity : ndarray of float32, shape (q, n)
        −inf where an item cannot be compared.
    sequences : sequence of str
        Of each question's (first) scan, ``""`` where unknown.
    scans : ndarray of int, shape (q,)
        Its place in the contents of the index.
    """

    known: Known
    patients: NDArray[Any]
    labels: Sequence[Mapping[str, str]]
    similarity: NDArray[np.float32]
    sequences: Sequence[str]
    scans: NDArray[np.int64]

    @cached_property
    def rankings(self) -> list[NDArray[np.int64]]:
        """For each question the best item of each other patient, best first."""
        found = []
        for patient, row in zip(self.patients, self.similarity, strict=True):
            reach = np.flatnonzero(np.isfinite(row) & (self.known.patients != patient))
            order = reach[np.argsort(-row[reach], kind="stable")]
            found.append(order[np.sort(np.unique(self.known.patients[order], return_index=True)[1])])
        return found

    @property
    def nearest(self) -> Floats:
        """The :func:`familiarity` of each question, shape (q,)."""
        pairs = zip(self.similarity, self.rankings, strict=True)
        return np.array([familiarity(row[ranking]) for row, ranking in pairs])


def together(parts: Sequence[Asked]) -> Asked:
    """Questions about the same known items, put to each part's own encoder, as one."""
    return replace(
        parts[0],
        patients=np.concatenate([one.patients for one in parts]),
        labels=[row for one in parts for row in one.labels],
        similarity=np.concatenate([one.similarity for one in parts]),
        sequences=[name for one in parts for name in one.sequences],
        scans=np.concatenate([one.scans for one in parts]),
    )


@dataclass(frozen=True)
class Votes:
    """What the neighbours say on one column, and what is true.

    Attributes
    ----------
    values : list of str
        Of the column, sorted.
    probabilities : ndarray, shape (n, c)
    truth : ndarray of int, shape (n,)
        Place in `values`; −1 where nobody known has it.
    weights : ndarray, shape (n,)
        One vote a patient.
    """

    values: list[str]
    probabilities: Floats
    truth: NDArray[np.int64]
    weights: Floats


def shares(patients: NDArray[Any]) -> Floats:
    """Weights that give every patient one vote in all.

    Examples
    --------
    >>> shares(np.array(["a", "b", "a"])).tolist()
    [0.5, 1.0, 0.5]
    """
    _, place, count = np.unique(patients, return_inverse=True, return_counts=True)
    return np.asarray(1 / count[place])


def familiarity(scores: NDArray[np.floating[Any]]) -> float:
    """Mean of the :data:`NEAREST` highest of the patients' scores, best first; NaN if there is none.

    Examples
    --------
    >>> familiarity(np.array([0.75, 0.5, 0.25, 0.125]))
    0.5
    """
    return float(np.mean(scores[:NEAREST], dtype=np.float64)) if len(scores) else float("nan")


def votes(asked: Asked, column: str) -> Votes:
    """The vote (see :func:`retrieval.evidence.vote`) on a column, of the questions that have it."""
    known = asked.known
    labels = np.array([row.get(column, "") for row in known.labels], object)
    by_patient = dict(zip(known.patients, labels, strict=True))
    counts = Counter(value for value in by_patient.values() if value)
    values = sorted(counts)
    rows = [place for place, row in enumerate(asked.labels) if row.get(column)]
    probabilities = np.empty((len(rows), len(values)))
    for said, row in zip(probabilities, rows, strict=True):
        own = by_patient.get(asked.patients[row])
        others = {value: n - (value == own) for value, n in counts.items()}
        prior = {value: n / max(1, sum(others.values())) for value, n in others.items()}
        ranking = asked.rankings[row]
        voters = ranking[labels[ranking] != ""][: NEIGHBOURS + 1]
        evidence = vote(asked.similarity[row][voters], list(labels[voters]), prior)
        said[:] = [evidence.probabilities[value] for value in values]
    truth = [values.index(v) if (v := asked.labels[row][column]) in counts else -1 for row in rows]
    return Votes(values, probabilities, np.array(truth, np.int64), shares(asked.patients[rows]))


@dataclass(frozen=True)
class Fit:
    """How the vote on one column is read.

    Attributes
    ----------
    patients : int
        Who asked.
    temperature : float
    quantiles : dict
        For each value the :func:`conformal_quantile` of 1 − p(value) among the patients who have it.
    """

    patients: int
    temperature: float
    quantiles: dict[str, float]

    @classmethod
    def of(cls, votes: Votes) -> Fit | None:
        """Fit to votes whose truth is known; None where they are too few."""
        w, truth = votes.weights, votes.truth
        n = round(float(w.sum()))
        of_value = [float(w[truth == c].sum()) for c in range(len(votes.values))]
        if n < PATIENTS or len(of_value) < 2 or min(of_value) < OF_VALUE:
            return None
        t = temperature(votes.probabilities, truth, w)
        scores = 1 - tempered(votes.probabilities, t)
        return cls(
            n,
            t,
            {
                value: conformal_quantile(scores[truth == c, c], w[truth == c])
                for c, value in enumerate(votes.values)
            },
        )

    def sets(self, values: Sequence[str], probabilities: Floats) -> NDArray[np.bool_]:
        """Which values belong to the set, shape (..., c), of tempered probabilities (..., c).

        A value belongs to it if 1 − p does not exceed its quantile (least ambiguous sets, Sadinle, Lei
        and Wasserman 2019, https://arxiv.org/abs/1609.00451). It may be empty: then no value looks as
        its patients usually do.
        """
        return np.asarray(1 - probabilities <= np.array([self.quantiles[v] for v in values]) + 1e-9)

    def __call__(self, evidence: Evidence) -> Evidence:
        """The vote, calibrated; as it was if it is on values that had no part in the fit."""
        values = list(evidence.probabilities)
        if evidence.abstain or not self.quantiles.keys() >= set(values):
            return evidence
        p = tempered(np.array(list(evidence.probabilities.values())), self.temperature)
        return replace(
            evidence,
            probabilities=dict(zip(values, p.tolist(), strict=True)),
            set=sorted(np.array(values, object)[self.sets(values, p)]),
            calibrated=True,
            calibrated_on=self.patients,
        )


# ---- of an index ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What was learnt for one kind of question.

    Attributes
    ----------
    columns : dict of str to Fit
    usual : dict of str to dict of str to float
        For each signal (:data:`SIMILARITY`, …) and sequence the :func:`lowest_usual` value; ``""``
        stands for a scan whose sequence is unknown.
    """

    columns: dict[str, Fit]
    usual: dict[str, dict[str, float]]

    @classmethod
    def of(
        cls, asked: Asked, columns: Iterable[str], signals: Mapping[str, NDArray[np.floating[Any]]]
    ) -> Kind:
        """Learn from questions whose answers are known; `signals` have one value a question."""
        fits = {column: Fit.of(votes(asked, column)) for column in columns}
        told = {SIMILARITY: asked.nearest, **signals}
        usual = {name: _usual(values, asked) for name, values in told.items()}
        return cls({c: fit for c, fit in fits.items() if fit}, {s: u for s, u in usual.items() if u})

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
        Who asked.
    scans, last_scan : int
        In the index when it was fitted, and the highest id among them.
    labels : dict
        Patients by value of each column, then.
    """

    kinds: dict[str, Kind]
    encoder_version: str
    revision: int
    seed: int
    patients: int
    scans: int
    last_scan: int
    labels: dict[str, dict[str, int]]
    format: int = FORMAT

    @classmethod
    def load(cls, case_index: CaseIndex) -> Calibration | None:
        """What the index folder holds; None where that is nothing, damaged, or of another encoder."""
        try:
            data = json.loads((case_index.folder / FILE).read_text("utf-8"))
            kinds = {
                name: Kind({c: Fit(**fit) for c, fit in kind["columns"].items()}, kind["usual"])
                for name, kind in data.pop("kinds").items()
            }
            held = cls(kinds=kinds, **data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        same = (held.format, held.encoder_version) == (FORMAT, case_index.manifest.encoder_version)
        return held if same else None

    @classmethod
    def of(
        cls,
        questions: Mapping[str, tuple[Asked, Mapping[str, NDArray[np.floating[Any]]]]],
        case_index: CaseIndex,
        contents: Contents,
        seed: int,
    ) -> Calibration:
        """Learn from questions of each kind, with the signals of what asks."""
        counts = _counts(contents)
        kinds = {}
        for name, (of_kind, signals) in questions.items():
            kinds[name] = Kind.of(of_kind, counts, signals if name == "scan" else {})
            if name == "case":
                kinds[name] = replace(kinds[name], usual={})
        return cls(
            kinds,
            encoder_version=case_index.manifest.encoder_version,
            revision=contents.revision,
            seed=seed,
            patients=len({patient for of_kind, _ in questions.values() for patient in of_kind.patients}),
            scans=len(contents.scan_ids),
            last_scan=int(contents.scan_ids[-1]),
            labels=counts,
        )

    def __str__(self) -> str:
        columns = sorted({column for kind in self.kinds.values() for column in kind.columns})
        told = f"calibrated for {', '.join(columns)}" if columns else f"not calibrated: {FEW}"
        return f"{told}; {self.patients} known patients tell what is similar"

    def save(self, folder: Path) -> None:
        """Replace the file in one step."""
        with written_whole(folder / FILE) as aside:
            aside.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    def fit(self, column: str, scans: int, *, region: bool = False) -> Fit | None:
        """How to read the vote on a column when so many scans ask; None where that is not known."""
        kind = self.kinds.get("region" if region else "case" if scans > 1 else "scan")
        return kind.columns.get(column) if kind else None

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


def due(case_index: CaseIndex, contents: Contents | None = None) -> bool:
    """Whether an index should be calibrated: it never was, or a tenth of it has changed since.

    The vectors are not read. `contents`, where they are at hand, spare reading the catalog.
    """
    held, contents = Calibration.load(case_index), contents or case_index.catalog.contents()
    if held is None:
        return len(set(contents.patient_ids)) >= ENOUGH
    kept = int(np.searchsorted(contents.scan_ids, held.last_scan, side="right"))  # ids only grow
    changed = len(contents.scan_ids) - kept + held.scans - kept
    if changed > CHANGED * max(held.scans, 1):
        return True
    now = _counts(contents)
    return now.keys() != held.labels.keys() or any(
        sum(abs(now[c].get(v, 0) - then.get(v, 0)) for v in now[c].keys() | then.keys())
        > CHANGED * sum(then.values())
        for c, then in held.labels.items()
    )


def calibrate(
    index: Index, *, seed: int = 0, signals: Mapping[str, NDArray[np.floating[Any]]] | None = None
) -> Calibration | None:
    """Learn from the index's own patients how its votes are to be read, and keep it in the folder.

    At most :data:`ASKING` patients ask, so the time is bounded. Call :meth:`Index.refresh` to answer
    with it.

    Parameters
    ----------
    index : Index
        Nobody may be writing to it in this process.
    seed : int
        Which patients, cases and scans ask, where there are more than may.
    signals : mapping of str to ndarray, shape (scans,), optional
        Further numbers of every scan in ``index.contents``, of which lower ones are stranger; NaN
        where unknown. The scans' :data:`TYPICALITY` is always one.

    Returns
    -------
    Calibration or None
        None where the patients are too few, or another process writes.
    """
    state = index._state
    contents = state.contents
    rng = np.random.default_rng(seed)
    asking = chosen(contents, rng)
    if len(asking) < ENOUGH:
        return None
    told = {TYPICALITY: -contents.scan_strangeness, **(signals or {})}
    questions = {
        name: (of_kind, {signal: values[of_kind.scans] for signal, values in told.items()})
        for name, of_kind in asked(index, asking, rng).items()
    }
    learnt = Calibration.of(questions, index.case_index, contents, seed)
    try:
        with index.case_index.writing("calibrate"):
            learnt.save(index.case_index.folder)
    except WriterBusyError:  # the next run comes soon
        return None
    return learnt


def asked(index: Index, cases: Sequence[int], rng: np.random.Generator) -> dict[str, Asked]:
    """What some cases ask: each by single scans (``scan``), as a whole (``case``), by outlines (``region``).

    A ``case`` is of several scans, and a kind of question that nobody can ask is left out.
    """
    state = index._state
    patients = np.unique(np.array(state.contents.patient_ids), return_inverse=True)[1]
    known = Known(patients, state.contents.labels)
    found = {}
    for view, single, joint in ((0, "scan", "case"), (1, "region", "")):
        asks = _Ask.of(state, cases, view)
        answers = _Answers(state, view, asks)
        kinds = {single: [one for ask in asks for one in ask.single(rng)]}
        if joint:
            kinds[joint] = [ask for ask in asks if len(ask.scans) > 1]
        for name, questions in kinds.items():
            if questions:
                who = np.array([ask.case for ask in questions])
                found[name] = Asked(
                    known,
                    patients[who],
                    [state.contents.labels[case] for case in who],
                    answers(questions),
                    [ask.scans[0].sequence or "" for ask in questions],
                    np.array([ask.places[0] for ask in questions]),
                )
    return found


@dataclass(frozen=True)
class _Ask:
    """Scans of a case that ask together."""

    case: int
    scans: list[QueryScan]
    places: list[int]  # of the scans in the contents

    @classmethod
    def of(cls, state: State, cases: Sequence[int], view: int) -> list[_Ask]:
        """What is filed of some cases, of those that have anything in this view."""
        from retrieval.search import QueryScan  # which imports this module

        contents = state.contents
        rows = np.flatnonzero((contents.slice_view == view) & np.isin(state.slice_case, cases))
        rows = rows[np.argsort(contents.slice_scan[rows], kind="stable")]
        vectors = state.vectors.gather(contents.slice_ids[rows])
        places, starts = np.unique(contents.slice_scan[rows], return_index=True)
        found: dict[int, _Ask] = {}
        for place, part in zip(places.tolist(), np.split(np.arange(len(rows)), starts[1:]), strict=False):
            case = int(contents.scan_case[place])
            ask = found.setdefault(case, cls(case, [], []))
            ask.places.append(place)
            ask.scans.append(
                QueryScan(
                    source=contents.scan_source[place],
                    sequence=contents.scan_sequence[place],
                    positions=contents.slice_position[rows[part]],
                    weights=contents.slice_weight[rows[part]],
                    embeddings=vectors[part],
                    strangeness=float(contents.scan_strangeness[place]),
                )
            )
        return list(found.values())

    def single(self, rng: np.random.Generator) -> list[_Ask]:
        """Some of the scans, each asking alone: of every sequence one, then of every sequence another."""
        by_sequence: dict[str | None, list[int]] = {}
        for row in rng.permutation(len(self.scans)).tolist():
            if self.scans[row].sequence != COMPOSITE:  # which is no scan of its own
                by_sequence.setdefault(self.scans[row].sequence, []).append(row)
        turns = [r for turn in zip_longest(*by_sequence.values()) for r in turn if r is not None]
        return [_Ask(self.case, [self.scans[r]], [self.places[r]]) for r in turns[:SCANS]]


class _Answers:
    """Similarities of all cases with what asks: exact where queries are, else by the index's search."""

    def __init__(self, state: State, view: int, asks: Sequence[_Ask]) -> None:
        self.state, self.view = state, view
        scans = {id(scan): scan for ask in asks for scan in ask.scans}
        pools = {
            s: np.flatnonzero(state.pool(s, view, np.ones(len(state.slice_case), bool), []))
            for s in {q.sequence for q in scans.values()}
        }
        self.rows: dict[int, NDArray[np.float32]] | None = {}
        if max((len(pool) for pool in pools.values()), default=0) > EXACT_BELOW:
            self.rows = None
            return
        for sequence, pool in pools.items():
            self.rows |= self._exact([s for s in scans.values() if s.sequence == sequence], pool)

    def _exact(self, scans: list[QueryScan], pool: NDArray[np.int64]) -> dict[int, NDArray[np.float32]]:
        """Scores (see :mod:`retrieval.ranking`) of many scans with all cases at once."""
        cases = self.state.slice_case[pool]
        order = np.argsort(cases, kind="stable")
        stored = self.state.vectors.gather(self.state.contents.slice_ids[pool[order]])
        items, starts = np.unique(cases[order], return_index=True)
        filed = Stacks(stored, self.state.contents.slice_weight[pool[order]], starts)
        asking = Stacks(
            np.concatenate([scan.embeddings for scan in scans]),
            np.concatenate([scan.weights for scan in scans]),
            np.cumsum([0, *(len(scan.positions) for scan in scans)])[:-1],
        )
        rows: dict[int, NDArray[np.float32]] = {}
        for scan, scores in zip(scans, asking.scores(filed), strict=True):
            row = rows[id(scan)] = np.full(len(self.state.contents.case_ids), np.nan, np.float32)
            row[items] = scores
        return rows

    def __call__(self, asks: Sequence[_Ask]) -> NDArray[np.float32]:
        """Shape (asks, cases): the mean over the sequences that a case shares with the question."""
        everyone = np.ones(len(self.state.contents.case_ids), bool)  # a search without a filter is quicker
        table = np.full((len(asks), len(everyone)), -np.inf, np.float32)
        for scores, ask in zip(table, asks, strict=True):
            if self.rows is None:
                cases, found, _ = self.state.rank(ask.scans, self.view, everyone, SHORTLIST, [])
                scores[cases] = found
            else:
                rows = np.array([self.rows[id(scan)] for scan in ask.scans])
                found = fused(rows, [scan.sequence for scan in ask.scans])
                scores[:] = np.where(np.isnan(found), -np.inf, found)
        return table


def chosen(contents: Contents, rng: np.random.Generator) -> list[int]:
    """A case of each patient who may ask; of too many, some of each value of each column first."""
    cases: dict[str, list[int]] = {}
    for case in np.flatnonzero(~contents.in_sample).tolist():
        cases.setdefault(contents.patient_ids[case], []).append(case)
    names = list(cases)
    one = {name: cases[name][rng.integers(len(cases[name]))] for name in names}
    if len(names) > ASKING:
        names = [names[i] for i in rng.permutation(len(names))]
        groups = [
            [n for n in names if contents.labels[one[n]].get(column) == value]
            for column, counts in _counts(contents).items()
            for value in counts
        ]
        in_turn = chain.from_iterable(zip_longest(*groups))
        first = list(dict.fromkeys(n for n in in_turn if n is not None))[: ASKING // 4]
        names = list(dict.fromkeys([*first, *names]))[:ASKING]
    return [one[name] for name in names]


def _usual(values: NDArray[np.floating[Any]], asked: Asked) -> dict[str, float]:
    """The :func:`lowest_usual` value of each sequence; for a scan without one, that of all together."""
    names, known = np.array(asked.sequences), ~np.isnan(values)
    found = {}
    for name in ("", *sorted(set(asked.sequences) - {""})):
        rows = known if name == "" else known & (names == name)
        if len(np.unique(asked.patients[rows])) >= ENOUGH:
            found[name] = lowest_usual(values[rows].astype(np.float64), shares(asked.patients[rows]))
    return found


def _counts(contents: Contents) -> dict[str, dict[str, int]]:
    """Patients by value of each column that votes."""
    table = list(dict(zip(contents.patient_ids, contents.labels, strict=True)).values())
    return {c: dict(Counter(row[c] for row in table if c in row)) for c in class_columns(table)}
