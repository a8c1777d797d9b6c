"""Tables as text: csv, tsv, and whatever else parts cells by a character."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from indexer.errors import LabelsError
from indexer.labels.limits import MOST_CELLS, MOST_COLUMNS

Row = tuple[int, list[str]]
"""A line number and cells."""

DELIMITERS = ",;\t|"
_SAMPLE = 200


def text_rows(path: Path, content: bytes) -> Iterator[Row]:
    """The rows of a text.

    Raises
    ------
    LabelsError
        If it is not text, its quotes are damaged, or it has too many columns or cells.
    """
    text = decoded(content)
    if "\0" in text:
        raise LabelsError(path, "is not a text file", "save the table as csv or tsv")
    delimiter = _delimiter(text, "\t" if path.suffix.lower() == ".tsv" else None)
    if delimiter is None:
        for number, line in enumerate(text.splitlines(), 1):
            yield number, line.split()
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    cells = 0
    try:
        for row in reader:
            cells += len(row)
            if len(row) > MOST_COLUMNS or cells > MOST_CELLS:
                what = f"has more than {MOST_COLUMNS} columns or {MOST_CELLS:,} cells"
                raise LabelsError(path, what, "keep the columns and rows that are needed")
            yield reader.line_num, row
    except csv.Error as error:
        raise LabelsError(path, f"line {reader.line_num} is damaged ({error})", "check its quotes") from error


def decoded(content: bytes) -> str:
    """Bytes as text: by their byte order mark, else UTF-8, else what Windows calls Latin-1."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _delimiter(text: str, usual: str | None) -> str | None:
    """The character that makes most rows equally wide and of several cells; None for runs of spaces."""
    candidates = (usual + DELIMITERS.replace(usual, "")) if usual else DELIMITERS
    best, most = candidates[0], 0.0
    for delimiter in candidates:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            widths = [len(row) for row in islice(lines, _SAMPLE) if row]
        except csv.Error:
            continue
        if (score := _regularity(widths)) > most:
            best, most = delimiter, score
    if most == 0:
        widths = [len(line.split()) for line in text.splitlines()[:_SAMPLE] if line.strip()]
        if len(set(widths)) == 1 and _regularity(widths):
            return None
    return best


def _regularity(widths: list[int]) -> float:
    """Share of the rows that have the usual width, and a little for the width; 0 for one column."""
    usual, count = Counter(widths).most_common(1)[0] if widths else (0, 0)
    return count / len(widths) + 1e-4 * min(usual, 1000) if usual > 1 else 0.0
