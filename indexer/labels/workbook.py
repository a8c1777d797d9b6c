"""Tables in Excel's ``.xlsx``, read by openpyxl (the extra ``cbir[excel]``)."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

from indexer.errors import LabelsError
from indexer.labels.delimited import Row
from indexer.labels.limits import MOST_CELLS, MOST_COLUMNS, MOST_UNPACKED

_PADDED = re.compile("0{2,}")


def sheets(path: Path, content: bytes) -> list[tuple[str, list[Row]]]:
    """Sheets of a workbook with their rows; formulas count as what they last gave.

    Raises
    ------
    LabelsError
        If openpyxl is missing, it is no workbook, or it unpacks to too much.
    """
    try:
        import openpyxl
    except ImportError:
        remedy = "install what reads it: pip install 'cbir[excel]', or save it as csv"
        raise LabelsError(path, "is an Excel workbook", remedy) from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # no more than the declared size is ever unpacked
            unpacked = sum(part.file_size for part in archive.infolist())
        if unpacked > MOST_UNPACKED:
            what = f"unpacks to {unpacked / 2**20:.0f} MiB, of which it may have {MOST_UNPACKED // 2**20}"
            raise LabelsError(path, what, "keep the columns and rows that are needed")
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        return [(sheet.title, list(_rows(path, sheet))) for sheet in book.worksheets]
    except LabelsError:
        raise
    except Exception as error:  # a damaged workbook raises whatever its parts raise
        what = f"cannot be read as a workbook ({type(error).__name__})"
        raise LabelsError(path, what, "save it again, or as csv") from error


def _rows(path: Path, sheet: Any) -> Iterator[Row]:
    sheet.reset_dimensions()  # the declared ones may be anything
    cells = 0
    for number, row in enumerate(sheet.iter_rows(), 1):
        cells += 1 + len(row)
        if len(row) > MOST_COLUMNS or cells > MOST_CELLS:
            what = f"has more than {MOST_COLUMNS} columns or {MOST_CELLS:,} cells"
            raise LabelsError(path, what, "keep the columns and rows that are needed")
        yield number, [_text(cell.value, getattr(cell, "number_format", None) or "") for cell in row]


def _text(value: object, shown: str) -> str:
    """A cell as Excel shows it, as far as that matters: whole numbers whole, and with their zeros."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, int | float):
        text = f"{value:.12g}" if isinstance(value, float) else str(value)
        return text.zfill(len(shown)) if _PADDED.fullmatch(shown) else text
    return str(value)
