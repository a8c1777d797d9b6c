"""Naming sequences: what the type says, then words, then timing, which may contradict them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import series
from indexer import vocabulary
from indexer.readers import dicom
from indexer.readers.sequences import Facts, Words, name, named, words_of

TYPES = [
    (["ADC", "ND"], "DWI b1000", "adc"),
    (["DIFFUSION", "ADC"], "", "adc"),
    (["ADC_UNSPECIFIED"], "brain", "adc"),
    (["DIFFUSION", "FA", "ND", "NORM"], "ep2d_diff_mddw_FA", "map"),
    (["DIFFUSION", "COLFA"], "", "map"),
    (["DIFFUSION", "TENSOR_B0"], "", "map"),
    (["DIFFUSION_ANISO"], "", "map"),
    (["DIFFUSION", "TRACEW"], "T2 brain", "dwi"),
    (["DIFFUSION", "NONE"], "brain", "dwi"),
    (["DIFFUSION", "NONE"], "ADC", "adc"),
    (["PERFUSION", "NONE"], "T2 dynamic", "perf"),
    (["M", "ASL", "NONE"], "PD source", "perf"),
    (["RELCBF"], "T1", "perf"),
    (["MTT"], "", "perf"),
    (["M", "SWI", "NORM"], "T2 thick", "swi"),
    (["M", "T1 MAP"], "T1_Images", "map"),
    (["M", "T2 MAP"], "T2_Images", "map"),
    (["M", "T2_STAR MAP"], "", "map"),
    (["FMRI", "NONE"], "T2 stuff", "bold"),
    (["M", "TIME_OF_FLIGHT"], "", "angio"),
    (["LOCALIZER"], "T1", "localizer"),
    (["PHASE MAP", "P"], "T1", None),
    (["FIELD MAP"], "T1 map", None),
    (["M_SE", "M", "SE"], "T2 TSE", "t2"),
]


@pytest.mark.parametrize(("kind", "description", "sequence"), TYPES)
def test_types_decide_before_words(kind: list[str], description: str, sequence: str | None) -> None:
    assert name(Facts(words_of(description, ""), kind)) == sequence


WORDS = [
    ("Apparent Diffusion Coefficient (mm2/s)", "adc"),
    ("Apparent Diffusion Coeff.", "adc"),
    ("Average DC", "adc"),
    ("ADC (10^-6 mm²/s)", "adc"),
    ("eADC map", "adc"),
    ("ep2d_diff_4scan_trace_p2_ADC", "adc"),
    ("Fractional Aniso.", "map"),
    ("FA map", "map"),
    ("DTI_FA", "map"),
    ("ep2d_diff_mddw_20_FA", "map"),
    ("ep2d_diff_mddw_20_ColFA", "map"),
    ("T1 Map", "map"),
    ("t2_map_sag", "map"),
    ("R2* map", "map"),
    ("T1_MOLLI_native", "map"),
    ("MapIt T1", "map"),
    ("t1_fl3d_FA15", "t1"),
    ("source_3DpCASL", "perf"),
    ("3D pCASL (non-contrast)", "perf"),
    ("tgse_pcasl_we_mm", "perf"),
    ("pasl 2d", "perf"),
    ("CBF (Transit corrected)", "perf"),
    ("relCBV", "perf"),
    ("TTP", "perf"),
    ("DTIphase_S2MB2", "dwi"),
    ("DTI_64dir", "dwi"),
    ("dwi_b0", "dwi"),
    ("b=1000", "dwi"),
    ("isotropic image", "dwi"),
    ("mIP_Images(SW)", "swi"),
    ("ext loc ref", None),
    ("func loc faces", None),
    ("loc", "localizer"),
    ("3-pl T2* FGRE S", "localizer"),
    ("rs-fMRI", "bold"),
    ("brain", None),
    ("aslan", None),
    ("local", None),
]


@pytest.mark.parametrize(("text", "sequence"), WORDS)
def test_words(text: str, sequence: str | None) -> None:
    assert named(text) == sequence
    assert name(Facts(words_of(text, ""))) == sequence
    assert name(Facts(words_of("", text.upper()))) == sequence


TIMED = [
    # FLAIR of words that is none of timing, and the other way round
    ("FLAIR sag", "SEIR", 2000, 23, 785, "t1"),
    ("T1 FLAIR", "SEIR", 2500, 24, 860, "t1"),
    ("FLAIR", "SEIR", 2200, 10, 900, "t1"),
    ("FLAIR", "SE", 2000, 12, None, "t1"),
    ("FLAIR", "SEIR", 9000, 120, 2500, "flair"),
    ("3D FLAIR", "SEIR", 4800, 340, 1650, "flair"),
    ("FLAIR", "SE", 9000, 120, None, "flair"),
    ("T2 axial", "SEIR", 9000, 120, 2500, "flair"),
    # weightings
    ("T1 axial", "SE", 4500, 95, None, "t2"),
    ("T2 axial", "SE", 500, 12, None, "t1"),
    ("PD axial", "SE", 3000, 95, None, "t2"),
    ("T2 axial", "SE", 3000, 20, None, "pd"),
    ("T1 axial", "SE", 2500, 24, None, "t1"),
    ("T2 axial", "SE", 4500, 50, None, "t2"),
    ("T1 MPRAGE", "GRIR", 2000, 3, 900, "t1"),
    ("MP2RAGE T1", "GRIR", 5000, 3, 2700, "t1"),
    ("T2 HASTE", "SE", 1000, 90, None, "t2"),
    # echo planar
    ("loc", "EPGR", 2000, 30, None, None),
    ("T2 EPI", "EPSE", 2000, 90, None, "t2"),
]


@pytest.mark.parametrize(("description", "technique", "tr", "te", "ti", "sequence"), TIMED)
def test_timing_contradicts_words(
    description: str, technique: str, tr: float, te: float, ti: float | None, sequence: str | None
) -> None:
    facts = Facts(words_of(description, ""), technique=technique, repetition=tr, echo=te, inversion=ti)
    assert name(facts) == sequence


@given(st.sampled_from(["T1", "T2 TSE", "FLAIR", "", "brain", "loc"]), st.floats(1, 5000))
def test_diffusion_weighted_is_dwi_whatever_the_words(description: str, b_value: float) -> None:
    timing = {"technique": "SE", "repetition": 6000, "echo": 80}
    assert name(Facts(words_of(description, ""), b_value=b_value, **timing)) == "dwi"
    assert name(Facts(words_of(description, ""), b_value=0, **timing)) != "dwi"


@pytest.mark.parametrize("description", ["ADC", "Apparent Diffusion Coefficient", "DTI FA"])
def test_what_is_computed_of_diffusion_keeps_its_b_value(description: str) -> None:
    assert name(Facts(words_of(description, ""), b_value=1000)) in ("adc", "map")


def test_contrast_is_of_t1_alone() -> None:
    given = words_of("AX T1", "", agent="Gadavist")
    assert name(Facts(given)) == "t1ce"
    assert name(Facts(words_of("AX T1 FLAIR", "", agent="Gadavist"))) == "t1ce"
    short = {"technique": "SEIR", "echo": 23.0, "inversion": 785.0}
    assert name(Facts(words_of("FLAIR", "", agent="Gadavist"), **short)) == "t1ce"
    assert name(Facts(given, ["M", "T1 MAP"])) == "map"
    assert name(Facts(given, technique="SE", repetition=4500, echo=95)) == "t2"


def test_words_hold_nothing_of_the_texts() -> None:
    assert words_of("t1 of Jane", "protocol of Jane", "pulse", "agent of Jane") == Words("t1", agent=True)


PRIVATE: list[tuple[str, int, int, str, Any]] = [
    ("SIEMENS MR HEADER", 0x19, 0x0C, "IS", 1000),
    ("GEMS_PARM_01", 0x43, 0x39, "IS", [1000001000, 8, 0, 0]),
    ("Philips Imaging DD 001", 0x2001, 0x03, "FL", 1000.0),
]


@pytest.mark.parametrize(("creator", "group", "element", "vr", "value"), PRIVATE)
def test_b_values_of_vendors(
    tmp_path: Path, creator: str, group: int, element: int, vr: str, value: object
) -> None:
    datasets = series.stack(3, SeriesDescription="T2", EchoTime=90)
    series.save(tmp_path / "plain", datasets)
    for dataset in datasets:
        dataset.private_block(group, creator, create=True).add_new(element, vr, value)
    series.save(tmp_path / "b", datasets)
    for dataset in datasets:
        dataset[group, 0x10].value = "SOMEONE ELSE"
    series.save(tmp_path / "other", datasets)
    found = {}
    for folder in tmp_path.iterdir():
        ((source,), _) = dicom.series(list(folder.iterdir()), folder)
        found[folder.name] = source.sequence, dicom.read(source)[0].sequence
    assert found == {"plain": ("t2", "t2"), "b": ("dwi", "dwi"), "other": ("t2", "t2")}


# ---- one vocabulary ------------------------------------------------------------------------------

OTHERWISE = {
    ("map", "perf"): "rcbv rcbf cbv cbf mtt ttp tmax asl pcasl",
    ("map", "dwi"): "dtitensor difference",
    ("map", "adc"): "adcmap",
    ("map", "t1"): "t1rho",
    ("t2star", "t2"): "t2s",
    ("flair", "t2"): "t2f",
}
"""Tokens that mean something in a file's name and something else in a description."""


def test_what_is_judged_by_where_it_stands_is_known() -> None:
    """In descriptions contrast is asked for apart: there T1 after contrast is T1."""
    tokens = vocabulary.named(*(row.meaning for row in vocabulary.ROWS)) | vocabulary.techniques()
    apart: dict[tuple[str, str], list[str]] = {}
    for token, meaning in tokens.items():
        said = named(token)
        if said not in (None, meaning) and (meaning, said) != ("t1ce", "t1"):
            apart.setdefault((meaning, str(said)), []).append(token)
    assert {pair: " ".join(words) for pair, words in apart.items()} == OTHERWISE


def test_no_token_of_a_name_is_in_two_rows() -> None:
    words = [word for row in vocabulary.ROWS for word in (*row.names.split(), *row.techniques.split())]
    assert len(words) == len(set(words))


def test_every_row_says_something() -> None:
    for row in vocabulary.ROWS:
        assert any((row.names, row.techniques, row.descriptions, row.weightings, row.types, row.contrast))
        assert row.contrast == "" or row.contrast.upper() == row.contrast
