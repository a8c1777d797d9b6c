"""Labels of patients: a BIDS ``participants.tsv``, or any csv or tsv keyed by participant or by file."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from indexer.errors import LabelsError

PARTICIPANTS = "participants.tsv"

PATIENT_COLUMNS = ("participant_id", "patient_id", "subject_id", "participant", "patient", "subject")
"""Headers (in any case) of the column that names the patient; the first of them that is there."""

FILE_COLUMNS = ("file", "filename", "file_name", "filepath", "file_path", "path", "image")
"""Headers (in any case) of the column that names a file; the first of them that is there."""

UNKNOWN = frozenset({"", "n/a", "na", "nan"})
"""Values (in any case) that stand for "not known"."""

IDENTIFYING = re.compile(
    r"""names? | (patient|first|last|full|file)name | surname | forename | initials
    | ids? | uid | guid | identifier | patientid | mrn | ssn | nhs | passport | insurance | accession(number)?
    | birth | birthday | (birth|scan|study)?dates? | dateofbirth | dob | datetime | timestamp
    | address | street | city | zip(code)? | postal | postcode | (tele)?phone | mobile | fax | e?mail
    | physician | doctor | radiologist | operator | institution | hospital
    | comments? | notes? | remarks? | description | report | text""",
    re.VERBOSE,
)
"""Words (in any case) that make a column identifying, or free text: one with such a word in its header
(``patient_name``, ``AccessionNumber``, ``Date of birth``) is never kept; nor is another id or file column."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+")
_END = re.compile(r"^(\.\./)*")
_LAST_WORD = re.compile(r"[-_][^-_]*$")


class Labels:
    """A labels table, by patient.

    Participant ids are compared without the BIDS prefix: ``01`` and ``sub-01`` are one patient.

    Parameters
    ----------
    path : Path
        The table.
    header : sequence of str
        Names of its columns; columns without a name are passed over.
    rows : sequence of (int, sequence of str)
        Line numbers and cells.

    Attributes
    ----------
    path : Path
    columns : tuple of str
        Label columns, in the table's order.
    dropped : tuple of str
        Columns left out because they identify people (see `IDENTIFYING`).
    patients : tuple of str
        Patients as the table writes them, in its order. Where it names files and no participant, each
        file is a patient, called like the file without its extension.
    conflicts : dict
        Columns that hold several values for one patient, and the patients: for them it is no label.

    Raises
    ------
    LabelsError
        If a column comes twice, no column names patients or files, or a row fits neither.
    """

    def __init__(self, path: Path, header: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]]) -> None:
        self.path = path
        places = {name.lower(): i for i, name in enumerate(header) if name}
        if len(places) < sum(map(bool, header)):
            twice = Counter(name.lower() for name in header if name).most_common(1)[0][0]
            raise LabelsError(path, f"has two columns called {twice!r}", "rename or remove one")
        patient_at = next((places[name] for name in PATIENT_COLUMNS if name in places), None)
        file_at = next((places[name] for name in FILE_COLUMNS if name in places), None)
        if patient_at is None and file_at is None:
            remedy = f"call one of them {PATIENT_COLUMNS[0]} or {FILE_COLUMNS[0]}"
            raise LabelsError(path, f"no column names patients or files (it has {', '.join(header)})", remedy)
        keys = {*PATIENT_COLUMNS, *FILE_COLUMNS}
        others = [(i, name) for i, name in enumerate(header) if name and name.lower() not in keys]
        kept = [(i, name) for i, name in others if not identifies(name)]
        self.columns = tuple(name for _, name in kept)
        self.dropped = tuple(name for _, name in others if identifies(name))

        files = ["" if file_at is None else _known(row[file_at]).replace("\\", "/") for _, row in rows]
        stems = Counter(map(_stem, files))
        self._ids: dict[str, str] = {}  # plain id → as the table writes it
        self._rows: dict[str, str] = {}  # file → patient
        values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for file, (line, row) in zip(files, rows, strict=True):
            patient = "" if patient_at is None else _known(row[patient_at])
            if not patient:
                # files of one name are told apart by their folders
                name = _stem(file)
                patient = name if not name or stems[name] == 1 else str(PurePosixPath(file).parent / name)
            if not patient:
                raise LabelsError(
                    path, f"line {line} names neither a patient nor a file", "complete or remove it"
                )
            patient = self._ids.setdefault(_plain(patient), patient)
            if file and self._rows.setdefault(file, patient) != patient:
                raise LabelsError(
                    path, f"line {line} gives {file} to a second patient", "keep one of its rows"
                )
            for i, name in kept:
                if value := _known(row[i]):
                    values[patient][name].add(value)
        self.patients = tuple(self._ids.values())
        self._values = {
            patient: {name: min(found) for name, found in columns.items() if len(found) == 1}
            for patient, columns in values.items()
        }
        self.conflicts = {
            name: clashing
            for name in self.columns
            if (clashing := tuple(p for p in self.patients if len(values[p][name]) > 1))
        }
        self._by_path = {os.path.normpath(path.parent / file): file for file in self._rows}
        self._by_end = {_END.sub("", os.path.normpath(file)): file for file in self._rows}
        names = Counter(PurePosixPath(file).name for file in self._rows)
        self._by_name = {name: file for file in self._rows if names[name := PurePosixPath(file).name] == 1}

    def row_of(self, file: Path) -> str | None:
        """The file of the table, as the table writes it, that `file` is.

        A row's file is looked for relative to the table's folder. Where it is not there, the row is for
        a file whose path ends like it; at last for one of its bare name, if no other row has the same.
        """
        file = file.absolute()
        if (row := self._by_path.get(str(file))) is not None:
            return row
        ends = ("/".join(file.parts[i:]) for i in range(1, len(file.parts)))
        rows = (*map(self._by_end.get, ends), self._by_name.get(file.name))
        for row in filter(None, rows):
            there = self.path.parent / row
            if not there.exists() or (file.exists() and there.samefile(file)):
                return row
        return None

    def names_file(self, file: Path) -> bool:
        """Whether a row of the table is for this file."""
        return self.row_of(file) is not None

    def names_folder(self, folder: Path) -> bool:
        """Whether a participant is called like this folder."""
        return _plain(folder.name) in self._ids

    def patient_of(self, file: Path, hint: str) -> str | None:
        """The patient whose image a file is, as the table writes it; None where the table does not say.

        In this order: the row of the file; the nearest folder above it (and below the table's folder)
        that is called like a participant; `hint`, cut at its ``_`` and ``-`` from the end until it is one.

        Parameters
        ----------
        file : Path
        hint : str
            What else might be, or begin with, the patient's id: the file's name, a DICOM PatientID.
        """
        if (row := self.row_of(file)) is not None:
            return self._rows[row]
        for folder in file.absolute().parents:
            if folder == self.path.parent:
                break
            if self.names_folder(folder):
                return self._ids[_plain(folder.name)]
        while hint:
            if (patient := self._ids.get(_plain(hint))) is not None:
                return patient
            shorter = _LAST_WORD.sub("", hint)
            hint = shorter if shorter != hint else ""
        return None

    def of(self, patient: str) -> dict[str, str]:
        """A patient's known labels; empty where the table does not know the patient."""
        return dict(self._values.get(self._ids.get(_plain(patient), ""), {}))

    def unmatched(self, found: Iterable[tuple[Path, str]]) -> tuple[list[str], list[str]]:
        """What in the table has no data, and which data have no row.

        Parameters
        ----------
        found : iterable of (Path, str)
            For each source its first file and its patient.

        Returns
        -------
        without_data : list of str
            Files of the table, or patients where it names no files.
        without_row : list of str
            Paths of the given files.
        """
        rows, patients, without_row = set(), set(), []
        for file, patient in found:
            row = self.row_of(file)
            known = self._ids.get(_plain(patient))
            rows.add(row)
            patients.add(known)
            if row is None and known is None:
                without_row.append(str(file))
        if self._rows:
            return [file for file in self._rows if file not in rows], without_row
        return [patient for patient in self.patients if patient not in patients], without_row


def load_labels(path: Path) -> Labels:
    """Read a labels table.

    The file is UTF-8 (with or without byte order mark), UTF-16 with one, or else taken for Latin-1;
    line ends are those of any system. Cells are parted by tabs in a ``.tsv``, else by whichever of
    comma, semicolon and tab the header has most of, and may be quoted.

    Raises
    ------
    LabelsError
        If it cannot be read, is no table, or does not say what it labels (see `Labels`).
    """
    path = path.parent.resolve() / path.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LabelsError(path, f"cannot be read ({error.strerror})", "check the path") from error
    text = _decoded(content)
    if "\0" in text:
        raise LabelsError(path, "is not a text file", "save the table as csv or tsv")
    first = text.lstrip().partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        cells = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise LabelsError(path, f"line {reader.line_num} is damaged ({error})", "check its quotes") from error
    cells = [(line, row) for line, row in cells if any(row)]
    if len(cells) < 2:
        raise LabelsError(path, "has no rows below its header", "fill it, or move it away")
    header, width = cells[0][1], len(cells[0][1])
    for line, row in cells[1:]:
        if any(row[width:]):
            raise LabelsError(
                path, f"line {line} has {len(row)} cells, its header {width}", "quote or complete it"
            )
    return Labels(path, header, [(line, row + [""] * (width - len(row))) for line, row in cells[1:]])


def find_labels(start: Path, top: Path | None = None) -> Labels | None:
    """The ``participants.tsv`` beside a file or in a folder, or the nearest above; None if there is none.

    Parameters
    ----------
    start : Path
    top : Path, optional
        Folder above which nothing is looked for.

    Raises
    ------
    LabelsError
        If the nearest one cannot be understood.
    """
    folder = start.resolve() if start.is_dir() else start.parent.resolve()
    folders = [f for f in (folder, *folder.parents) if top is None or f.is_relative_to(top)]
    path = next((table for folder in folders if (table := folder / PARTICIPANTS).is_file()), None)
    return None if path is None else load_labels(path)


def tables_below(root: Path) -> list[Path]:
    """Folders below a root, not the root itself, that hold a ``participants.tsv``; sorted."""
    root = root.resolve()
    found = [Path(folder) for folder, _, files in os.walk(root) if PARTICIPANTS in files]
    return sorted(folder for folder in found if folder != root)


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _known(value: str) -> str:
    return "" if value.lower() in UNKNOWN else value


def _plain(patient: str) -> str:
    return patient.removeprefix("sub-")


def _stem(file: str) -> str:
    name = PurePosixPath(file).name
    return name[:-7] if name.lower().endswith(".nii.gz") else PurePosixPath(name).stem


def identifies(column: str) -> bool:
    """Whether a column's header says that it holds what identifies people, or free text."""
    words = [word.lower() for word in _WORDS.findall(column)]
    return any(IDENTIFYING.fullmatch(word) for word in (*words, "".join(words)))
