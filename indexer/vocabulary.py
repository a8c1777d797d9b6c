"""The field's words for MR sequences: one table, with a column for each place where they stand.

A word need not mean the same everywhere. ``cbv`` in a file's name is a map, in a description it says that
perfusion was imaged; ``t2s`` is short for T2* in a file's name and a T2 in a description; ``epi`` in a file's
name is functional imaging, in a description only how anything was acquired; ``vibe`` says T1 in a
description, and nothing in a file's name. So no place borrows another's words.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Words for a sequence, or for what is done to one.

    Attributes
    ----------
    meaning : str
    names : str
        Of files and folders: whole tokens, in lower case, separated by spaces.
    techniques : str
        Tokens of names that stand for it only where no other sequence is named.
    descriptions : str
        Of series and protocols in headers: a pattern of whole words, in lower case. The first row that
        fits counts.
    weightings : str
        In the same place, where no row's `descriptions` fit: a pattern with bounds of its own. It counts
        where no other row's fits, too.
    types : str
        A pattern of a whole value of ImageType (PS3.3 C.8.13.3.1 and the vendors' conformance statements).
        The first row that fits counts.
    contrast : str
        The value of AcquisitionContrast.
    """

    meaning: str
    names: str = ""
    techniques: str = ""
    descriptions: str = ""
    weightings: str = ""
    types: str = ""
    contrast: str = ""


ROWS = (
    Row(
        "adc",
        names="adc eadc dadc",
        descriptions=r"(?:avg |average |exp )?[de]?adc(?: ?map)?|"
        r"(?:exp\w* )?app\w*\.? diff\w*(?: coeff?\w*)?|(?:average|avg) ?dc|diff\w* coeff?\w*",
        types=r"[DE]?ADC",
    ),
    Row(
        "map",
        names="""fa md rcbv rcbf ncbv cbv cbf mtt ttp tmax psr ktrans kep iauc prob probability
        probabilities probseg probmap phasediff phase phase1 phase2 phasemap fieldmap mip minip t1map t2map
        pdmap t1rho r1map r2map qsm colfa tensor dtitensor evecs evals warp warpfield xfm displacement
        jacobian biasfield uncertainty entropy heatmap saliency distance curvature thickness snr asl apt mtr
        mtsat mwf icvf isovf odi
        pve inversewarp 0warp 1warp genericaffine subtraction difference histogram
        rcbvmap adcmap famap mdmap heatmaps pcasl""",
        descriptions=r"fract\w*\.? ?aniso\w*|(?:col(?:ou?r)?|gray|grey)? ?fa ?(?:map|colou?r)\w*|colou?r ?fa|"
        r"colfa|(?:dti|diff\w*|tensor)\b.*?(?<![a-z])(?:fa|md|tensor)(?! ?=? ?\d)|"
        r"(?:q?t[12](?:\*|star)?|r[12](?:\*|star)?|pd|proton density) ?-?(?:map|mapping|maps)(?:it)?|"
        r"map ?it(?: \w+)?|molli|(?:t[12](?:\*|star)?) ?molli",
        types=r"(?:COL)?FA|ANISO\w*|TENSOR\w*",
    ),
    Row("swi", names="swi swan swiw", descriptions=r"swip?|swan|venobold|ven bold|(?:mip )?images ?\(?sw\)?"),
    Row(
        "perf",
        names="dsc dce perf perfusion pwi cest dsce",
        descriptions=r"perf\w*|dsc|dce|(?:[23]d ?)?[pc]{0,2}asl\d*|(?:rel|corr|r)?cb[fv]|"
        r"(?:rel)?mtt|ttp|tmax",
        types=r"(?:REL|CORR|R)?CB[FV]|(?:REL)?MTT|TTP|TMAX|PBP|GBP|PERFUSION|[PC]*ASL|DSC|DCE",
    ),
    Row(
        "dwi",
        names="dwi dti dmri diffusion hardi noddi dki trace tracew",
        descriptions=r"dwi\w*|dti[a-z]*\d*|diff\w*|trace\w*|isotropic image\w*|b ?=? ?\d{3,4}",
        types=r"DIFFUSION|TRACEW?|DWI|DTI",
    ),
    Row("swi", types=r"SWI|SUSC\w*"),
    Row(
        "bold",
        names="bold func fmri rest rsfmri epi sbref",
        descriptions=r"bold|(?:rs|t)?-?fmri|resting ?-?state",
        types=r"FMRI|BOLD",
    ),
    Row("m0", names="m0 m0scan magnitude magnitude1 magnitude2 mag"),
    Row("angio", names="mra tof angio angiography", descriptions=r"(?:[23]d)?tof|angio\w*|mr[av]|venogra\w*"),
    Row(
        "localizer",
        names="localizer localiser loc scout survey 3plane threeplane aahscout aascout localizers planscan",
        descriptions=r"(?<!ext )(?<!func )(?<!functional )loc(?! ref)|locali[sz]ers?|scout\w*|"
        r"survey\w*|(?:3|three) ?-?(?:plane|pl)\w*",
        types=r"LOCALIZER|SCOUT",
    ),
    Row("map", types=r"Q?MAPS?|R[12]\*?"),
    Row("angio", types=r"TOF|ANGIO|TIME_OF_FLIGHT"),
    Row(
        "t1",
        names="t1 t1w t1n t1wi t1pre pret1 t1native t1precontrast",
        techniques="mprage mpr mp2rage spgr fspgr bravo tfl mpnrage unit1 mprageised",
        weightings=r"(?<![a-z0-9])(?:e|[23]d|ax|sag|cor|tra)*t1(?!\d)|mp2?rage|f?spgr|bravo|vibe|(?<![a-z])tfl",
        contrast="T1",
    ),
    Row(
        "t1ce",
        names="t1ce t1c t1gd t1ca t1wce t1wc t1cw t1post t1postgd t1km t1wgd t1gad t1contrast t1ceweighted "
        "ct1 cet1 cet1w gdt1 t1enhanced posttt1 postt1 t1wpost t1cpost t1wks t1ks",
    ),
    Row(
        "t2",
        names="t2 t2w t2wi t2tse t2fse t2n",
        weightings=r"(?<![a-z0-9])(?:e|[23]d|ax|sag|cor|tra)*t2(?!\d)",
        contrast="T2",
    ),
    Row(
        "t2star",
        names="t2star t2starw t2s",
        descriptions=r"t2 ?(?:\*|star)\w*|hemo\w*",
        contrast="T2_STAR",
    ),
    Row("pd", names="pd pdw pdwi dp", weightings=r"(?<![a-z])(?:pd|proton)", contrast="PROTON_DENSITY"),
    Row(
        "flair",
        names="flair t2f t2flair t2wflair flairt2 t2flairw fla fl darkfluid",
        weightings=r"flair|dark ?-?fluid",
        contrast="FLUID_ATTENUATED",
    ),
    Row("stir", names="stir", descriptions=r"stir|tirm(?!.*dark)", contrast="STIR"),
    Row("pet", names="pet fdg fet"),
)
"""Sequences. One has two rows where it goes before another in one column and behind it in the next: a type
that says diffusion goes before one that says susceptibility."""

GIVEN = Row(
    "after contrast",
    names="ce gd gad gado gadolinium contrast postcontrast postgd postgad enhanced km c contrasted cm",
    descriptions=r"(?:(?<![a-z])|(?<=t1)|(?<=t1w))(?:gd|gad\w*|ce|km|mdc|contrast\w*|kontrast\w*|enhanced|"
    r"post(?! ?-?op)|post ?-?(?:contrast|gad|gd)\w*)(?![a-z])|"
    r"t1w?c(?![a-z])|t1w? c$|\+ ?(?:c|gd|km)(?![a-z])|(?<![a-z])c ?\+",
)
"""A contrast agent was given."""

PLAIN = Row(
    "before or without contrast",
    names="pre precontrast noncontrast unenhanced native nativ nogd noce",
    descriptions=r"(?<![a-z])(?:pre(?![a-z])|pre ?-?(?:contrast|gad|gd)|w ?/ ?o(?![a-z])|wo(?![a-z])|without|"
    r"ohne|non? ?-?(?:contrast|enhanced|gad)|unenhanced|nati[fv])",
)
"""None was given yet."""


def named(*meanings: str) -> dict[str, str]:
    """Tokens of names for some sequences, each with its sequence.

    Examples
    --------
    >>> named("t2star", "stir")
    {'t2star': 't2star', 't2starw': 't2star', 't2s': 't2star', 'stir': 'stir'}
    """
    return {word: row.meaning for row in ROWS if row.meaning in meanings for word in row.names.split()}


def techniques() -> dict[str, str]:
    """Tokens of names for techniques, each with the sequence it stands for."""
    return {word: row.meaning for row in ROWS for word in row.techniques.split()}


def column(which: str) -> list[tuple[str, str]]:
    """Sequences and their patterns or values in a column, where there are any, in the order of the table."""
    return [(row.meaning, getattr(row, which)) for row in ROWS if getattr(row, which)]
