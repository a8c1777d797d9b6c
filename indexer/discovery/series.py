"""What a series is not searched for, by what its headers call it."""

from __future__ import annotations

from indexer.readers.source import Source

_SCREENSHOTS = {"SCREEN SAVE", "SCREENSAVE", "SCREENSHOT", "SCANNED IMAGE"}
_MAPS = {"adc", "map"}
_COMPUTED = {
    "ADC", "EADC", "ADC_UNSPECIFIED", "FA", "TRACEW", "TENSOR", "TENSOR_B0", "MTT", "TTP", "CBF", "CBV",
    "RELCBF", "RELCBV", "RELMTT", "RCBF", "RCBV", "GBP", "PBP", "TTP_T0", "MIN IP", "MINIP", "MNIP", "MIP",
    "MAX IP", "MAXIP", "MIP_SAG", "MIP_COR", "MIP_TRA", "PROJECTION IMAGE", "SUBTRACTION", "SUB", "T1 MAP",
    "T2 MAP", "T1_MAP", "T2_MAP", "T2_STAR MAP", "R2_MAP", "R2_STAR MAP", "PHASE", "PHASE MAP", "P",
    "VELOCITY MAP", "B0 MAP", "COLFA",
}  # fmt: skip
"""Values of ImageType (PS3.3, C.8.3.1.1.1 and C.8.13.2.1.1.4, and
vendors') of what was computed of images."""
_REFORMATS = {"MPR", "RESAMPLED", "REFORMATTED", "CSA MPR", "CSAPARALLEL", "CURVED", "CPR", "MPR_THICK"}


def left_out(source: Source) -> tuple[str | None, bool]:
    """Why a series is no image to be searched, and whether that is because it was computed of others.

    Returns
    -------
    reason : str or None
        None of an image.
    derived : bool
    """
    kind = {value.strip().upper() for value in source.image_type}
    if source.sequence == "localizer" or "LOCALIZER" in kind or "SCOUT" in kind:
        return "a localizer", False
    if kind & _SCREENSHOTS:
        return "a screenshot", False
    if source.sequence in _MAPS or kind & _COMPUTED:
        return "a map or projection computed of images", True
    if kind & _REFORMATS and "DERIVED" in kind:
        return "a reformatted copy", True
    return None, False
