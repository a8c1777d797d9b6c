from __future__ import annotations

import json
import sys
import zipfile
from datetime import date
from pathlib import Path

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.errors import LabelsError
from indexer.labels import load_tables


def read(
    path: Path, content: str | bytes, encoding: str = "utf-8"
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    (found,) = load_tables(path)
    return found.header, [cells for _, cells in found.rows]


@pytest.mark.parametrize(
    ("text", "name", "encoding"),
    [
        ("participant_id\ttumour\nP1\tGlioma, größer\n", "a.tsv", "utf-8-sig"),
        ("participant_id\ttumour\r\nP1\tGlioma, größer\r\n", "a.tsv", "latin-1"),
        ('"participant_id","tumour"\n"P1","Glioma, größer"\n\n', "a.csv", "utf-8"),
        ("participant_id;tumour\nP1;Glioma, größer\n", "a.csv", "cp1252"),
        ("participant_id\ttumour\r\nP1\tGlioma, größer", "a.txt", "utf-16"),
        ("participant_id|tumour\nP1|Glioma, größer\n", "a.csv", "utf-8"),
        ("participant_id,tumour\nP1,Glioma\\, größer\n".replace("\\", ""), "b.tsv", "utf-8"),
    ],
)
def test_spellings_of_a_text(tmp_path: Path, text: str, name: str, encoding: str) -> None:
    if name == "b.tsv":  # commas in a .tsv: the only character that parts anything
        text = text.replace("Glioma, größer", '"Glioma, größer"')
    header, rows = read(tmp_path / name, text, encoding)
    assert header == ("participant_id", "tumour")
    assert rows == [("P1", "Glioma, größer")]


def test_cells_parted_by_spaces(tmp_path: Path) -> None:
    header, rows = read(tmp_path / "a.txt", "id   grade  age\nP1   2      50\nP22  3      61\n")
    assert header == ("id", "grade", "age")
    assert rows == [("P1", "2", "50"), ("P22", "3", "61")]


def test_a_column_of_its_own_is_a_table(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "participant_id\nA\nB\n") == (("participant_id",), [("A",), ("B",)])


def test_rows_above_the_header_are_passed_over(tmp_path: Path) -> None:
    text = "Study export 2024;;\n;;\nas of May;;\nid;grade;age\nP1;2;50\nP2;;\nP3;4;61\n"
    header, rows = read(tmp_path / "a.csv", text)
    assert header == ("id", "grade", "age")
    assert rows == [("P1", "2", "50"), ("P2", "", ""), ("P3", "4", "61")]


def test_a_decimal_comma_is_no_delimiter(tmp_path: Path) -> None:
    header, rows = read(tmp_path / "a.csv", "id;volume;age\nP1;6,2;50\nP2;7,25;61\n")
    assert header == ("id", "volume", "age")
    assert rows[1] == ("P2", "7,25", "61")


@pytest.mark.parametrize(
    "records",
    [
        [{"id": "P1", "grade": 2}, {"id": "P2", "grade": None, "age": 61.5}],
        {"data": [{"id": "P1", "grade": 2}, {"id": "P2", "age": 61.5}], "version": 3},
        {"P1": {"grade": 2}, "P2": {"age": 61.5}},
    ],
)
def test_records_in_json(tmp_path: Path, records: object) -> None:
    header, rows = read(tmp_path / "a.json", json.dumps(records))
    assert header == ("id", "grade", "age")
    assert rows == [("P1", "2", ""), ("P2", "", "61.5")]


def workbook(path: Path, **sheets: list[list[object]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_a_workbook(tmp_path: Path) -> None:
    rows: list[list[object]] = [["Export", None], [None, None], ["id", "grade", "day"]]
    path = workbook(tmp_path / "a.xlsx", one=[*rows, ["P1", 2.0, date(2020, 5, 1)], ["P2", 2.5, None]])
    (found,) = load_tables(path)
    assert found.name == str(path)
    assert found.header == ("id", "grade", "day")
    assert [cells for _, cells in found.rows] == [("P1", "2", "2020-05-01T00:00:00"), ("P2", "2.5", "")]


def test_zeros_that_excel_shows_survive(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["id", "grade"])
    book.active.append([7, 2])
    book.active["A2"].number_format = "00000"
    book.save(tmp_path / "a.xlsx")
    (found,) = load_tables(tmp_path / "a.xlsx")
    assert found.rows[0][1] == ("00007", "2")


def test_sheets_are_tables_of_their_own(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", legend=[["a", "b"], ["x", "y"]], empty=[], data=[["id"], ["P1"]])
    found = load_tables(path)
    assert [(table.sheet, table.header) for table in found] == [("legend", ("a", "b")), ("data", ("id",))]
    assert "(sheet data)" in found[1].name


def test_without_openpyxl_a_workbook_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = workbook(tmp_path / "a.xlsx", one=[["id"], ["P1"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(LabelsError, match=r"a\.xlsx: is an Excel workbook; .*cbir\[excel\]"):
        load_tables(path)


def test_the_key_column_may_be_stated(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,Other ID\n1,2\n")
    (found,) = load_tables(tmp_path / "a.csv:other id")
    assert (found.path, found.key, found.named) == (
        tmp_path / "a.csv",
        "other id",
        f"{tmp_path}/a.csv:other id",
    )
    with pytest.raises(LabelsError, match="no column called 'x'; choose of: id, Other ID"):
        load_tables(tmp_path / "a.csv:x")


def test_text_is_printable_where_it_enters(tmp_path: Path) -> None:
    header, rows = read(tmp_path / "a.csv", 'id,"gra\nde"\nP1,"\x1b[2J II\u202e"\n"P\x07","a\tb"\n')
    assert header == ("id", "gra de")
    assert rows == [("P1", "\\x1b[2J II\\u202e"), ("P\\x07", "a b")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no rows"),
        ("participant_id\tgrade\n", "no rows"),
        ("participant_id\tgrade\tGrade\nx\t4\t4\n", "two columns called 'grade'"),
        ("participant_id\tgrade\nx\t4\t5\n", "line 2 has 3 cells"),
        ("participant_id\tgrade\n\0\t4\n", "not a text file"),
        ('participant_id\tgrade\n"x\t4\n', "is damaged"),
    ],
)
def test_refused_texts(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(LabelsError, match=reason) as refused:
        read(tmp_path / "participants.tsv", text)
    assert "participants.tsv" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", ['{"a": 1}', "[1, 2]", "nonsense", "[" * 100_000, '{"a": {"b": 1}, "c": 2}']
)
def test_refused_json(tmp_path: Path, content: str) -> None:
    with pytest.raises(LabelsError, match=r"a\.json: (holds no list of records|cannot be read as JSON)"):
        read(tmp_path / "a.json", content)


def test_a_missing_table_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"nowhere\.tsv: cannot be read"):
        load_tables(tmp_path / "nowhere.tsv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(LabelsError, match=r"folder\.csv: is not a file"):
        load_tables(tmp_path / "folder.csv")


def test_a_table_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.write(b"id,grade\nP1,2\n")
        file.truncate(158 * 10**6)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read"))
    with pytest.raises(
        LabelsError, match=r"a\.csv: has 151 MiB, of which a table may have 32; keep"
    ) as refused:
        load_tables(path)
    assert "\n" not in str(refused.value)


def test_absurd_widths_are_refused(tmp_path: Path) -> None:
    for name, content in (
        ("a.csv", "," * 20_000),
        ("a.json", json.dumps([{str(i): 1 for i in range(20_000)}])),
    ):
        with pytest.raises(LabelsError, match="has more than 16384 columns"):
            read(tmp_path / name, content)


def test_a_packed_bomb_is_refused_without_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "a.xlsx", one=[["id"], ["P1"]])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet9.xml", b" " * (300 * 2**20))
    assert path.stat().st_size < 2**20
    monkeypatch.setattr(openpyxl, "load_workbook", lambda *_, **__: pytest.fail("it was unpacked"))
    with pytest.raises(LabelsError, match=r"unpacks to 300 MiB, of which it may have 256"):
        load_tables(path)


def test_a_sheet_of_absurd_places_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.labels.workbook.MOST_CELLS", 100_000)
    book = openpyxl.Workbook()
    for row in range(1, 20):
        book.active.cell(row, 16_000, "x")
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(LabelsError, match="has more than"):
        load_tables(tmp_path / "a.xlsx")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    for name in ("any.csv", "any.tsv", "any.xlsx", "any.json"):
        path = tmp_path_factory.getbasetemp() / name
        for start in (b"", b"file,participant_id,grade\n"):
            path.write_bytes(start + content)
            try:
                (found,) = load_tables(path)
            except LabelsError:
                continue
            assert all(len(cells) == len(found.header) for _, cells in found.rows)
            assert all(cell.isprintable() for _, cells in found.rows for cell in cells)
