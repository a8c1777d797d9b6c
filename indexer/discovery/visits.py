"""Which of a person's visits came last."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date

from indexer.readers.source import Source

_DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)[-._]?(\d\d)[-._]?(\d\d)(?!\d)")
_DAY_LAST = re.compile(r"(?<!\d)(\d\d)[-._](\d\d)[-._]((?:19|20)\d\d)(?!\d)")
_STAGES = (
    ("diagnosis", "baseline", "initial", "screening", "pre", "bl"),
    ("intra",),
    ("post", "follow", "fu", "recurrence", "relapse", "progression", "late"),
)


def in_time(sources: Iterable[Source]) -> list[str]:
    """The visits of sources of one person, the oldest first.

    By the dates of DICOM headers or in the visits' names; else by their words (baseline, postop) and
    numbers. A visit without a name comes before those that have one.
    """
    first: dict[str, Source] = {}
    for source in sources:
        first.setdefault(source.study_id, source)
    days = {visit: _day_of(source) for visit, source in first.items()}
    return sorted(first, key=lambda visit: _order(visit, days))


def day(text: str) -> date | None:
    """The day that a text names: ``20190611``, ``2019-06-11``, ``11-06-2019``; ``06-23-2019`` in America."""
    for pattern, order in ((_DAY, (0, 1, 2)), (_DAY_LAST, (2, 1, 0)), (_DAY_LAST, (2, 0, 1))):
        if match := pattern.search(text):
            year, month, number = (int(match.groups()[i]) for i in order)
            try:
                return date(year, month, number)
            except ValueError:
                continue
    return None


def _day_of(source: Source) -> date | None:
    if source.kind != "dicom":
        return day(source.study_id)
    try:
        import pydicom  # late: who asks only for the days in names needs none

        header = pydicom.dcmread(
            source.files[0], stop_before_pixels=True, specific_tags=["StudyDate"], force=True
        )
        return day(str(header.get("StudyDate") or ""))
    except Exception:  # whatever damaged bytes lead to: no date
        return None


def _order(visit: str, days: Mapping[str, date | None]) -> tuple[object, ...]:
    when = days[visit]
    named = visit.lower()
    stage = next((n for n, words in enumerate(_STAGES) if any(word in named for word in words)), 1)
    numbers = tuple(int(number) for number in re.findall(r"\d+", visit))
    return visit != "", when is not None, when or date.min, stage, numbers, visit
