"""The public interface: what importing it costs, a question as one value, an index filled and asked by it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import cbir
from cbir import CbirError, Index, Question
from indexer import discovery
from indexer.errors import CaseIndexError, QueryError
from retrieval.cli.app import run
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_nifti

Cohort = Callable[..., Path]


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "faiss", "pydicom", "scipy", "sqlalchemy", "indexer", "retrieval")
    code = f"import sys, cbir; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_all_that_is_promised_is_there() -> None:
    for name in cbir.__all__:
        assert getattr(cbir, name) is not None
        assert name in dir(cbir)
    assert cbir.__version__ == version("cbir")
    with pytest.raises(AttributeError, match="no attribute 'Indices'"):
        _ = cbir.Indices  # type: ignore[attr-defined]


# ---- a question --------------------------------------------------------------------------------------


def test_a_question_is_frozen_and_knows_what_it_asks_with() -> None:
    asked = Question("scan.nii", exclude_patient=["a", "b", "a"], where={"who_grade": "4"})
    assert asked.excluded == ("a", "b")
    assert asked.cases == ()
    assert (asked.name, asked.marked) == ("scan.nii", False)
    assert Question(like="c-1").cases == ("c-1",)
    assert Question(like=["c-1", "c-2", "c-1"]).name == "case c-1, c-2"
    assert Question("scan.nii", mask="m.nii").marked
    with pytest.raises(FrozenInstanceError):
        asked.k = 3  # type: ignore[misc]
    assert replace(asked, k=3) != asked


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "give one of them"),
        ({"source": "a.nii", "like": "c-1"}, "give one of them"),
        ({"source": "a.nii", "k": 0}, "k: 0 hits cannot be shown; ask for at least 1"),
        ({"source": "a.nii", "region": (0, 0, 4, 4), "mask": "m.nii"}, "cannot both be the region"),
        ({"source": "a.nii", "region_slice": 4}, "without a box"),
        ({"like": "c-1", "region": (0, 0, 4, 4)}, "not with cases"),
        ({"like": "c-1", "visit": "2"}, "not with cases"),
        ({"source": "a.nii", "recall": 1.5}, "from 0 to 1"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_remedy(fields: dict[str, object], told: str) -> None:
    with pytest.raises(QueryError, match=told):
        Question(**fields)  # type: ignore[arg-type]


# ---- an index ----------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path, cohort: Cohort, tiny: TinyEncoder) -> Iterator[Index]:
    with cbir.create_index(tmp_path / "index", encoder=tiny, keep_ids=True) as made:
        made.add(cohort(12, ("t1ce", "flair")))
        yield made


def test_an_index_is_filled_and_calibrated_from_python(index: Index, tmp_path: Path) -> None:
    assert index.info()["cases"] == 12
    assert not index.calibration_due
    assert index.calibration is not None
    assert index.calibration.patients == 12
    answer = index.query(write_nifti(tmp_path / "new" / "n_t1ce.nii.gz", phantom(500, 4)), k=3)
    assert len(answer.hits) == 3
    assert answer.familiar is not None
    assert answer.evidence["who_grade"].values == ["2", "3", "4"]


def test_what_is_added_later_is_found_at_once(index: Index, tmp_path: Path) -> None:
    late = write_nifti(tmp_path / "late" / "L-01_t1ce.nii.gz", phantom(500, 4))
    report = index.add(late, calibrate=False)
    assert (report.indexed, report.failed) == (1, [])
    assert index.query(late).hits[0].patient_id == "L-01"
    assert index.has_patient("L-01")


@pytest.mark.parametrize("by_source", [False, True])
def test_labels_come_with_what_is_added(index: Index, tmp_path: Path, by_source: bool) -> None:
    late = write_nifti(tmp_path / "late" / "L-01_t1ce.nii.gz", phantom(500, 4))
    if by_source:
        index.add(discovery.discover(late).sources, labels={"L-01": {"who_grade": "4"}})
    else:
        table = tmp_path / "grades.csv"
        table.write_text("participant_id,who_grade\nL-01,4\n")
        index.add([late], labels=table)
    assert index.like("L-01", k=1, where={"who_grade": "4"}).hits
    (row,) = [row for row in index.info(cases=True)["cases_list"] if row["case_id"] == "L-01"]
    assert row["labels"] == {"who_grade": "4"}


def test_removing_is_whole_or_not_at_all(index: Index) -> None:
    with pytest.raises(QueryError, match="no such case"):
        index.remove(["P-01", "P-99"])
    with pytest.raises(QueryError, match="no such patient"):
        index.remove("P-01", patients="P-99")
    assert index.info()["cases"] == 12
    assert index.remove("P-01", patients=["P-02"]) == 2
    assert not {"P-01", "P-02"} & set(index.contents.case_ids)


def test_all_doors_lead_to_the_same_answer(index: Index, tmp_path: Path) -> None:
    file = write_nifti(tmp_path / "new" / "n_t1ce.nii.gz", phantom(500, 4))
    told = {"k": 4, "where": {"who_grade": "4"}, "exclude_patient": "P-02"}
    first = index.query(file, **told)  # type: ignore[arg-type]
    assert index.query(Question(file, **told)) == first  # type: ignore[arg-type]
    assert index.query(Question(file), 4, where={"who_grade": "4"}, exclude_patient=["P-02"]) == first
    in_memory = Question(str(file), scans=discovery.read(file), **told)  # type: ignore[arg-type]
    assert index.query(in_memory) == first
    assert index.query(Question(like="P-03", k=4)) == index.like(["P-03"], 4)


def test_threads_share_an_index(index: Index) -> None:
    names = index.contents.case_ids
    alone = [index.like(name) for name in names]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(index.like, names)) == alone


def test_one_visit_of_several_asks(index: Index, tmp_path: Path) -> None:
    for visit in ("01", "02"):
        name = f"sub-9/ses-{visit}/anat/sub-9_ses-{visit}_T1w.nii.gz"
        write_nifti(tmp_path / "bids" / name, phantom(int(visit), 4))
    scans = discovery.read(tmp_path / "bids")
    visits = sorted({scan.study_id for scan in scans})
    assert len(visits) == 2
    answer = index.query(tmp_path / "bids", visit=visits[1])
    assert [Path(ref.source).name for ref in answer.query.scans] == ["sub-9_ses-02_T1w.nii.gz"]
    with pytest.raises(QueryError, match="holds no visit 7"):
        index.query(tmp_path / "bids", visit="7")


def test_a_plan_says_what_would_be_taken_as_what(index: Index, tmp_path: Path) -> None:
    write_nifti(tmp_path / "more" / "N-01_t2.nii.gz", phantom(1))
    planned = index.plan(tmp_path / "more")
    assert [(entry.patient, entry.sequence, entry.role) for entry in planned.entries] == [
        ("N-01", "t2", "image")
    ]
    assert planned.to_dict()["sources"][0]["patient"] == "N-01"
    assert index.info()["cases"] == 12
    with pytest.raises(CbirError, match="is in a store"):
        cbir.plan("s3://bucket/mri")


def test_evaluation_says_what_it_is_worth(index: Index) -> None:
    found = index.evaluate("who_grade", ks=(1, 3), bootstrap=0)
    told = found.to_dict()
    assert (told["by"], told["in_sample_patients"]) == ("case", 0)
    assert set(told["rank_by_predicted_class"]) == set(found.ranking.figures)
    assert len(found.ranking.queries) == 12


def test_an_index_is_looked_after(index: Index, tmp_path: Path) -> None:
    assert index.verify() == []
    before, after = index.compact()
    assert before > 0
    assert after > 0
    about = index.copy(tmp_path / "copy")
    assert about["cases"] == 12
    with cbir.open_index(tmp_path / "copy", index.encoder) as copy:
        names = [[hit.case_id for hit in each.like("P-00").hits] for each in (copy, index)]
    assert names[0] == names[1]


def test_there_is_one_index_in_a_folder(index: Index, tmp_path: Path, tiny: TinyEncoder) -> None:
    with pytest.raises(CaseIndexError, match="there is an index already; open it"):
        cbir.create_index(tmp_path / "index", encoder=tiny)
    with pytest.raises(CaseIndexError, match="there is no index here"):
        cbir.open_index(tmp_path / "other")


def test_where_none_is_named_the_environment_names_it(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: TinyEncoder
) -> None:
    monkeypatch.setenv("CBIR_INDEX", str(tmp_path / "index"))
    with cbir.open_index(encoder=tiny) as opened:
        assert len(opened.contents.case_ids) == 12


def test_a_lazy_index_is_read_when_it_is_asked(index: Index, tmp_path: Path, tiny: TinyEncoder) -> None:
    (vectors,) = (tmp_path / "index").glob("vectors-*.faiss")
    vectors.write_bytes(b"damaged")
    with pytest.raises(CaseIndexError, match="checksum"):
        cbir.open_index(tmp_path / "index", tiny)
    with cbir.open_index(tmp_path / "index", tiny, lazy=True) as opened:
        with pytest.raises(CaseIndexError, match="checksum"):
            opened.like("P-00")
        assert [problem.mended for problem in opened.verify(repair=True)] == [True]
        assert opened.like("P-00").hits


def test_the_reference_cases_are_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    with cbir.reference_index() as index:
        values = {value for row in index.contents.labels for value in row.values()}
        assert {"2", "3"} <= values
        assert index.calibration is not None
        assert np.isfinite(index.contents.scan_strangeness).any()


# ---- names that somebody gave ------------------------------------------------------------------------


@pytest.mark.parametrize("keep_ids", [False, True])
def test_an_id_is_repeated_only_where_the_index_keeps_ids(
    tmp_path: Path, cohort: Cohort, tiny: TinyEncoder, capsys: pytest.CaptureFixture[str], keep_ids: bool
) -> None:
    folder, planted, own = tmp_path / "index", "Planted-Jane-4711", "c-0123456789abcdef"
    with cbir.create_index(folder, encoder=tiny, keep_ids=keep_ids) as made:
        made.add(cohort(3), calibrate=False)
        case = made.contents.case_ids[0]
        told = []
        for work in (
            lambda: made.remove(planted),
            lambda: made.remove([planted, own]),
            lambda: made.remove(patients=planted),
            lambda: made.like(planted),
            lambda: made.query(Question(like=[case, planted])),
        ):
            with pytest.raises(QueryError, match="no such") as refused:
                work()
            told.append(str(refused.value))
        with pytest.raises(QueryError, match=own):
            made.remove(own)  # an id of the index's own tells nothing
    run(["query", "--like", case, "--exclude-patient", planted, "--index", str(folder), "--json"])
    said = capsys.readouterr()
    assert "nobody is left out for it" in said.err
    for text in (*told, said.err):
        assert (planted in text) == keep_ids, text
    assert planted not in said.out
