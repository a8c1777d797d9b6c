"""Tables as JSON: a list of objects, an object that holds one, or an object of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from indexer.errors import LabelsError
from indexer.labels.delimited import Row, decoded
from indexer.labels.limits import MOST_CELLS, MOST_COLUMNS

KEY = "id"
"""What the column is called that the names of an object of objects become."""


def json_rows(path: Path, content: bytes) -> Iterator[Row]:
    """A header and the records below it, numbered from 1.

    Raises
    ------
    LabelsError
        If it is not JSON, or holds no records.
    """
    try:
        found = _records(json.loads(decoded(content)))
    except (ValueError, RecursionError) as error:
        raise LabelsError(path, f"cannot be read as JSON ({error})", "save the table as csv") from error
    if not found:
        remedy = 'write records: [{"participant_id": "P-1", "who_grade": "4"}, …]'
        raise LabelsError(path, "holds no list of records", remedy)
    header = list(dict.fromkeys(name for record in found for name in record))
    if len(header) > MOST_COLUMNS or len(header) * len(found) > MOST_CELLS:
        what = f"has more than {MOST_COLUMNS} columns or {MOST_CELLS:,} cells"
        raise LabelsError(path, what, "keep the columns and rows that are needed")
    yield 0, header
    for number, record in enumerate(found, 1):
        yield number, [_text(record.get(name)) for name in header]


def _records(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return value if all(isinstance(record, dict) for record in value) else []
    if not isinstance(value, dict):
        return []
    lists = [found for each in value.values() if isinstance(each, list) and (found := _records(each))]
    if len(lists) == 1:
        return lists[0]
    if value and all(isinstance(record, dict) for record in value.values()):
        key = KEY if not any(KEY in record for record in value.values()) else f"{KEY} of the record"
        return [{key: name, **record} for name, record in value.items()]
    return []


def _text(value: Any) -> str:
    if value is None or isinstance(value, list | dict):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
