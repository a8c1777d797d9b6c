"""Which MR sequence an image is of: what its type says, then words, then timing; nothing is guessed.

What an image is called and what it is may differ ("FLAIR" at an echo time of 23 ms is T1-weighted, a map of
diffusion coefficients is not diffusion-weighted). So types and b-values decide before words, and timing
contradicts them where the physics leaves no doubt.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from dataclasses import dataclass

from indexer import vocabulary

__all__ = ["Facts", "Words", "name", "named", "words_of"]


@dataclass(frozen=True)
class Words:
    """What descriptions say, without what they say it with (they may name the patient).

    Attributes
    ----------
    series, protocol : str, optional
        Sequence that the description of the series, and that of the protocol, name.
    contrast : bool
        Whether the series is described as after contrast.
    plain : bool
        Whether it is described as before or without contrast.
    agent : bool
        Whether the header names a contrast agent.
    """

    series: str | None = None
    protocol: str | None = None
    contrast: bool = False
    plain: bool = False
    agent: bool = False


@dataclass(frozen=True)
class Facts:
    """What is known of an image beside its pixels.

    Attributes
    ----------
    words : Words
    kind : collection of str
        Values of the image type beyond original or derived, primary or secondary; those of
        AcquisitionContrast among them.
    technique : str
        ScanningSequence or EchoPulseSequence: ``SE``, ``GR``, ``EP``, ``IR``, …
    b_value : float, optional
        Diffusion weighting, s/mm².
    repetition, echo, inversion : float, optional
        Times in ms.
    """

    words: Words = Words()
    kind: Collection[str] = ()
    technique: str = ""
    b_value: float | None = None
    repetition: float | None = None
    echo: float | None = None
    inversion: float | None = None


_NO_WEIGHTING = {"PHASE", "VELOCITY", "FIELD", "FIELDMAP"}
_TYPES = vocabulary.column("types")
_CONTRASTS = {value: sequence for sequence, value in vocabulary.column("contrast")}
_PATTERNS = [
    (sequence, re.compile(f"(?<![a-z0-9])(?:{words})(?![a-z0-9])"))
    for sequence, words in vocabulary.column("descriptions")
]
_WEIGHTINGS = vocabulary.column("weightings")
_NO_AGENT = r"none|no|nil|n|n/?a|0|without.*|unknown|not .*"


@functools.lru_cache(maxsize=4096)
def words_of(series: str, protocol: str, pulse: str = "", agent: str = "", given: bool = False) -> Words:
    """What descriptions say.

    Parameters
    ----------
    series, protocol, pulse, agent : str
        SeriesDescription, ProtocolName, SequenceName and ContrastBolusAgent.
    given : bool
        Whether the header has a ContrastBolusAgentSequence.
    """
    series, protocol, pulse = (text.lower().replace("_", " ") for text in (series, protocol, pulse))
    agent = agent.strip().lower()
    return Words(
        named(series),
        # the protocol often names the whole examination ("w/o and w contrast"), but diffusion only as such
        named(protocol) or ("dwi" if re.search(r"(?<![a-z])b[1-9]\d{1,3}(?!\d)", pulse) else None),
        bool(re.search(vocabulary.GIVEN.descriptions, series)),
        bool(re.search(vocabulary.PLAIN.descriptions, series)),
        given or bool(agent and not re.fullmatch(_NO_AGENT, agent)),
    )


def named(text: str) -> str | None:
    """The one sequence that a text names, in any case; None if it names none, or several.

    Examples
    --------
    >>> named("Apparent Diffusion Coefficient (mm2/s)"), named("t2_tirm_tra_dark-fluid"), named("brain")
    ('adc', 'flair', None)
    """
    text = text.lower().replace("_", " ")
    for sequence, pattern in _PATTERNS:
        if pattern.search(text):
            return sequence
    weights = [sequence for sequence, words in _WEIGHTINGS if re.search(words, text)]
    if "flair" in weights:
        return "t1" if "t1" in weights else "flair"  # T1-FLAIR is T1-weighted, T2-FLAIR is what FLAIR means
    return weights[0] if len(weights) == 1 else None


def name(facts: Facts) -> str | None:
    """Sequence of an MR image: ``t1``, ``t1ce``, ``t2``, ``flair``, ``dwi``, …; None where nothing says.

    T1-weighted and after contrast is ``t1ce``: by the words of the series, else by the agent.
    """
    words = facts.words
    said = words.series or words.protocol
    values = [value.upper() for value in facts.kind]
    kinds = {*values, *(part for value in values for part in re.split(r"[^A-Z0-9*]+", value))}
    if "P" in values or kinds & _NO_WEIGHTING:
        return None
    kind = next((s for s, pattern in _TYPES if any(re.fullmatch(pattern, k) for k in kinds)), None)
    if kind is None and (facts.b_value or 0) > 0:
        kind = "dwi"
    if kind is not None:
        # what was computed of diffusion is said by words where the type only says what it was computed of
        return said if said in ("adc", "map") and kind in ("dwi", "map") else kind
    if said == "localizer" and "EP" in facts.technique:
        said = None  # one of a task, in functional imaging
    timed = _timed(facts)
    if said is None:
        said = next((s for c, s in _CONTRASTS.items() if c in kinds), None)
    sequence = timed if said is None or (said, timed) in _CONTRADICTIONS else said
    if said == "flair" and _short(facts):
        sequence = "t1"
    if sequence != "t1" or words.plain:
        return sequence
    return "t1ce" if words.agent or words.contrast else "t1"


_CONTRADICTIONS = {
    *(("t1", "t2"), ("t1", "flair"), ("t2", "t1"), ("t2", "pd"), ("t2", "flair"), ("pd", "t2")),
    *(("pd", "t1"), ("pd", "flair"), ("flair", "t1")),
}
"""Words, and the timing that proves them wrong. A FLAIR without inversion time has the timing of a T2."""


def _short(facts: Facts) -> bool:
    """Whether echoes come too early for the weighting of a FLAIR, and inversion too early for water."""
    te, ti, tr = facts.echo, facts.inversion, facts.repetition
    if te is None or not 0 < te < 40:
        return False
    return ti < 1400 if ti else tr is not None and 0 < tr < 3500


def _timed(facts: Facts) -> str | None:
    """The weighting that repetition, echo and inversion time leave no doubt about: textbook ranges."""
    tr, te, ti = facts.repetition, facts.echo, facts.inversion
    if tr is None or te is None or "EP" in facts.technique:
        return None
    if ti:
        if 1500 <= ti <= 3000 and tr > 4000 and te > 60:
            return "flair"
        return "t1" if 400 <= ti <= 1300 and te < 30 else None
    if "SE" not in facts.technique and "SPIN" not in facts.technique:
        return None
    if tr <= 1000 and te <= 30:
        return "t1"
    if tr >= 2000:
        return "t2" if te >= 70 else "pd" if te <= 35 else None
    return None
