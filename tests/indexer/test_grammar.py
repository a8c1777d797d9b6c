"""Random trees of the grammar that cohorts have: persons × visits × sequences × preparations × masks.

Each tree is planted and its paths given to the layout, which must find every person, visit, sequence and
outline, and take nothing else for an image.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.discovery.layout import Decision, Item, layout

SEQUENCES = {
    "t1": ("T1", "t1", "t1n", "T1w", "t1_pre"),
    "t1ce": ("T1GD", "t1ce", "t1c", "CT1", "T1_post"),
    "t2": ("T2", "t2", "t2w", "T2w"),
    "flair": ("FLAIR", "flair", "t2f", "T2_FLAIR"),
}

PERSONS: tuple[Callable[[int], str], ...] = (
    lambda n: f"P{n:03}",
    lambda n: f"UPENN-GBM-{n:05}",
    lambda n: f"BraTS-GLI-{n:05}",
    lambda n: f"sub-{n:02}",
    lambda n: f"Patient-{n:03}",
    lambda n: f"TCGA-{10 + n}-{5000 + 7 * n}",
    lambda n: f"IXI{n:03}-Guys-{800 + n:04}",
    lambda n: f"case_{n:02}",
    lambda n: f"{100100 + n}",
)
NAMED: Callable[[int], str] = lambda n: ("Smith", "Miller", "Garcia", "Chen", "Okafor")[n % 5]  # noqa: E731

WORDS: tuple[Callable[[int], str], ...] = (
    lambda n: f"week-{n * 11:03}",
    lambda n: f"Timepoint_{n + 1}",
    lambda n: f"ses-{n + 1}",
    lambda n: ("baseline", "followup1", "followup2")[n],
    lambda n: f"20{10 + n}0417",
    lambda n: f"20{10 + n}-04-17",
    lambda n: f"time{n + 1}",
    lambda n: f"FU{n * 30:03}d",
)
NUMBERS: tuple[Callable[[int], str], ...] = (
    lambda n: f"{n}",
    lambda n: f"{11 + 10 * n}",
    lambda n: f"{n:03}",
)
LONG = (1, 2, 5, 8)
"""Persons whose numbers are so long that a short number behind them can only be a visit's."""

WRAPS = ("", "imaging/", "PKG - Some-Cohort/Some-Cohort/", "NIfTI-files/")
REGIONS = ("seg", "segmentation", "tumorMask", "mask", "label-tumor_mask")


@dataclass(frozen=True)
class Planted:
    person: str
    visit: str
    sequence: str | None = None
    what: str = "image"


@st.composite
def trees(draw: st.DrawFn) -> dict[tuple[str, ...], Planted]:
    style = draw(st.integers(0, len(PERSONS)))
    called = PERSONS[style] if style < len(PERSONS) else NAMED
    nesting = draw(st.sampled_from(["flat", "exam", "visits", "deep", "xnat", "roles", "parallel"]))
    if style == len(PERSONS) and nesting in ("flat", "parallel", "roles", "exam"):
        nesting = "visits"
    persons = [
        called(n)
        for n in draw(
            st.lists(st.integers(1, 99 if style < len(PERSONS) else 4), min_size=2, max_size=4, unique=True)
        )
    ]
    persons = list(dict.fromkeys(persons))
    numbered = style in LONG and draw(st.booleans())
    when = draw(st.sampled_from(NUMBERS if numbered else WORDS))
    most = draw(st.integers(1, 3))
    names = {s: draw(st.sampled_from(options)) for s, options in SEQUENCES.items()}
    used = draw(st.lists(st.sampled_from(list(SEQUENCES)), min_size=2, max_size=4, unique=True))
    copies = draw(st.sampled_from([None, "bias", "unstripped", "reg"]))
    region = draw(st.sampled_from([None, *REGIONS]))
    maps = draw(st.booleans())
    wrap = draw(st.sampled_from(WRAPS))
    classes = draw(st.booleans())
    planted: dict[tuple[str, ...], Planted] = {}
    for i, person in enumerate(persons):
        count = 0 if most == 1 else draw(st.integers(1, most))
        for v in range(max(count, 1)):
            visit = when(v) if count else ""
            top = wrap + (("HGG/", "LGG/")[i % 2] if classes else "")
            exam = f"{person}_{visit}" if visit else person
            inner = f"{person}/{visit}/" if visit else f"{person}/"

            def place(
                role: str,
                name: str,
                *,
                outline: bool = False,
                top: str = top,
                exam: str = exam,
                inner: str = inner,
            ) -> str:
                tail = f"_{name}" if name else ""
                return {
                    "flat": f"{top}{exam}{tail}",
                    "exam": f"{top}{exam}/{exam}{tail}",
                    "visits": f"{top}{inner}{name}",
                    "deep": f"{top}{inner}{exam}{tail}",
                    "xnat": f"{top}{inner}{role}/NIFTI/{name}",
                    "roles": f"{top}images_{'segm' if outline else 'structural'}/{exam}/{exam}{tail}",
                    "parallel": f"{top}labelsTr/{exam}" if outline else f"{top}imagesTr/{exam}{tail}",
                }[nesting]

            for n, sequence in enumerate(used, 1):
                name = names[sequence]
                planted[path(place(f"{n}_{name}", name))] = Planted(person, visit, sequence)
                if copies and nesting != "xnat":
                    planted[path(place("", f"{name}_{copies}"))] = Planted(person, visit, sequence, "ignored")
            if maps:
                planted[path(place("8_ADC", "ADC"))] = Planted(person, visit, None, "ignored")
            if region:
                planted[path(place("9_MASK", region, outline=True))] = Planted(person, visit, None, "region")
    return planted


def path(text: str) -> tuple[str, ...]:
    return tuple(text.split("/"))


@settings(max_examples=400, deadline=None)
@given(trees())
def test_what_was_planted_is_found(planted: dict[tuple[str, ...], Planted]) -> None:
    found = dict(zip(planted, layout([Item(p) for p in planted], ["data"]).decisions, strict=True))
    persons: dict[str, set[str]] = defaultdict(set)
    cases: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for where, truth in planted.items():
        decision: Decision = found[where]
        assert decision.role == truth.what, ("/".join(where), decision)
        if truth.what == "ignored":
            continue
        assert decision.person is not None
        if truth.what == "image":
            assert decision.sequence == truth.sequence, ("/".join(where), decision)
        persons[truth.person].add(decision.person.patient)
        cases[truth.person, truth.visit].add((decision.person.patient, decision.person.visit))
    assert all(len(names) == 1 for names in persons.values()), dict(persons)
    assert len(set.union(*persons.values())) == len(persons), dict(persons)
    assert all(len(names) == 1 for names in cases.values()), dict(cases)
    assert len(set.union(*cases.values())) == len(cases), dict(cases)


@settings(max_examples=200, deadline=None)
@given(trees(), st.randoms(use_true_random=False))
def test_the_order_of_files_decides_nothing(planted: dict[tuple[str, ...], Planted], random) -> None:  # type: ignore[no-untyped-def]
    paths = list(planted)
    one = dict(zip(paths, layout([Item(p) for p in paths], ["data"]).decisions, strict=True))
    random.shuffle(paths)
    other = dict(zip(paths, layout([Item(p) for p in paths], ["data"]).decisions, strict=True))
    assert one == other


@settings(max_examples=200, deadline=None)
@given(trees(), trees())
def test_two_trees_of_two_sites_merge_nobody_silently(
    one: dict[tuple[str, ...], Planted], other: dict[tuple[str, ...], Planted]
) -> None:
    both = {
        (site, *where): (site, truth)
        for site, tree in (("siteA", one), ("siteB", other))
        for where, truth in tree.items()
    }
    laid = layout([Item(p) for p in both], ["data"])
    found = dict(zip(both, laid.decisions, strict=True))
    owners: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for where, (site, truth) in both.items():
        decision = found[where]
        if decision.role == "image" and decision.person is not None:
            owners[decision.person.patient].add((site, truth.person))
    merged = {patient: who for patient, who in owners.items() if len(who) > 1}
    # only who has so long a number, and other images here than there, and then that is said
    assert not merged or (
        all(len(re.findall(r"\d", p)) >= 5 for p in merged) and "one person each" in str(laid.doubts)
    )
