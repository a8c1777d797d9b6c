from __future__ import annotations

import json
import os
import shutil
import sys

import numpy as np
import pytest

from cbir import open_index, reference_index
from indexer import encoder as encoders
from indexer import reference
from indexer.case_index import CaseIndex
from indexer.catalog import EmbeddedScan
from indexer.discovery import discover, read
from indexer.errors import EncoderError, ReadError
from indexer.ingest import ingest, ingest_sources
from indexer.preprocess import Preprocessing, prepared
from indexer.reading import input_hash
from indexer.sequences import COMPOSITE
from retrieval.cli import main
from retrieval.report import report_page
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_dicom, write_nifti

TERMS = "PUBLIC (a journal, CC BY 4.0)"
IDS = [f"PUB-{n}" for n in range(4)]


def filed(tmp_path, tiny, version="1", ids=IDS):
    """A reference of four cases, written as the recipe does."""
    entries, labels = [], {}
    for n, patient in enumerate(ids):
        path = write_nifti(tmp_path / "public" / f"{patient}_t1ce.nii.gz", phantom(1000 + n, 2 + n % 3))
        (scan,) = read(path)
        ready = prepared(scan, Preprocessing.of(tiny))
        some = np.flatnonzero(np.isin(ready.positions, ready.positions[::2]))
        labels[patient] = {"who_grade": str(2 + n % 3), "collection": TERMS}
        embedded = EmbeddedScan(
            case_id=patient,
            patient_id=patient,
            series_id=f"PUBLIC/{patient}",
            sequence="t1ce",
            modality="MR",
            shape=scan.voxels.shape,
            spacing=scan.spacing,
            input_hash=input_hash(ready),
            positions=ready.positions[some],
            views=ready.views[some],
            weights=ready.weights[some],
            embeddings=tiny.encode(ready.pixels[some]),
            in_sample=True,
        )
        entries.append(reference.entry(f"reference:PUBLIC/{patient}", tiny, [embedded], labels[patient]))
    reference.write(reference.FOLDER, tiny, entries, labels)


@pytest.fixture
def packaged(tmp_path, tiny, monkeypatch):
    """Reference cases in a package that is installed read-only, made by the default encoder."""
    monkeypatch.setattr(reference, "FOLDER", tmp_path / "package" / "reference_index")
    monkeypatch.setattr(encoders, "load_encoder", lambda name="tiny": tiny)
    monkeypatch.setattr("indexer.case_index.load_encoder", lambda name="tiny": tiny)
    filed(tmp_path, tiny)
    return reference.FOLDER


@pytest.fixture
def joined(packaged, tmp_path, tiny, cohort):
    root = cohort(6)
    with CaseIndex.create(tmp_path / "cbir-index", tiny) as index:
        yield index, root, ingest(index, [root], tiny, with_reference=True)


@pytest.fixture
def cbir(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CBIR_INDEX", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cbir", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


def held(index):
    return sorted(p for p in index.catalog.fingerprints() if reference.is_reference(p))


def test_equal_cases_give_equal_files(packaged, tmp_path, tiny, monkeypatch):
    first = {path.name: path.read_bytes() for path in packaged.iterdir()}
    assert first.keys() == {"manifest.json", "catalog.sqlite"}
    monkeypatch.setattr(reference, "FOLDER", tmp_path / "again")
    filed(tmp_path, tiny)
    assert {path.name: path.read_bytes() for path in reference.FOLDER.iterdir()} == first
    assert str(tmp_path).encode() not in b"".join(first.values())


def test_the_package_is_read_where_it_lies_and_never_written(packaged):
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in packaged.iterdir()}
    for mode in (0o755, 0o555):
        packaged.chmod(mode)
        with reference_index() as index:
            assert index.contents.case_ids == IDS
            assert index.contents.in_sample.all()
            assert not index.case_index.verify()[1:]  # it needs no key
        names = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in packaged.iterdir()}
        assert names == before
    packaged.chmod(0o755)


def test_without_an_index_the_reference_answers_and_says_so(packaged, cbir, tmp_path):
    scan = write_nifti(tmp_path / "scan_t1ce.nii.gz", phantom(500, 4))
    code, out, err = cbir("query", scan, "--json", "-k", 3, "--report", "hits.html")
    assert code == 0, err
    note = "no index in ./cbir-index: answered from the 4 reference cases that come with cbir"
    assert note in err
    answer = json.loads(out)
    assert answer["notes"][0].startswith(f"{note} (who_grade: 2, 3, 4; no others); ")
    for hit in answer["hits"]:
        assert hit["case_id"] in IDS
        assert hit["source"] == f"reference:PUBLIC/{hit['case_id']}"
        assert hit["labels"]["collection"] == TERMS
    assert answer["evidence"].keys() == {"who_grade"}
    page = (tmp_path / "hits.html").read_text()
    assert page.count("no picture: a reference case comes without pictures") == 3
    assert TERMS in page
    assert "the reference cases of cbir" in page
    assert not (tmp_path / "cbir-index").exists()
    header, first, *_ = cbir("query", scan, "-k", 3)[1].splitlines()
    assert header.split("\t")[3:5] == ["who_grade", "collection"]
    assert first.split("\t")[4] == TERMS
    assert cbir("query", "--like", "PUB-0", "--exclude-patient", "PUB-1")[0] == 0


def test_an_index_that_came_out_empty_does_not_stand_in_the_way(packaged, cbir, tmp_path):
    (tmp_path / "nothing").mkdir()
    assert cbir("index", tmp_path / "nothing")[0] == 1
    assert (tmp_path / "cbir-index").is_dir()
    scan = write_nifti(tmp_path / "scan_t1ce.nii.gz", phantom(500, 4))
    code, out, err = cbir("query", scan, "-k", 3)
    assert code == 0, err
    assert "no cases in ./cbir-index: answered from the 4 reference cases" in err
    code, out, err = cbir("query", scan, "--index", "cbir-index")
    assert (code, out) == (1, "")
    assert "the index is empty" in err


def test_an_index_that_was_named_must_be_there(packaged, cbir, tmp_path, monkeypatch):
    scan = write_nifti(tmp_path / "scan_t1ce.nii.gz", phantom(500, 4))
    for named in ("cbir-index", "elsewhere"):
        code, out, err = cbir("query", scan, "--index", named)
        assert (code, out) == (1, "")
        assert "there is no index here" in err
    monkeypatch.setenv("CBIR_INDEX", "cbir-index")
    assert cbir("query", scan)[0] == 1
    monkeypatch.delenv("CBIR_INDEX")
    shutil.rmtree(packaged)
    code, _, err = cbir("query", scan)
    assert code == 1
    assert "there is no index here" in err


def test_a_query_that_is_a_reference_case_has_no_vote(packaged, tmp_path):
    with reference_index() as index:
        answer = index.query(tmp_path / "public" / "PUB-2_t1ce.nii.gz")
    assert answer.hits[0].case_id == "PUB-2"
    assert "the query itself is in the index (case PUB-2)" in answer.notes[0]
    assert answer.evidence["who_grade"].prior.keys() == {"2", "3"}  # PUB-2 alone was of grade 4


@pytest.mark.parametrize("part", ["version", "name"])
def test_another_encoder_than_made_them_is_refused_in_one_line(packaged, cbir, tmp_path, cohort, part):
    other = TinyEncoder()
    setattr(other, part, "other")
    with pytest.raises(EncoderError, match="the reference cases: were made by encoder tiny 1, not by"):
        reference_index(other)
    with (
        CaseIndex.create(tmp_path / "other", other) as index,
        pytest.raises(EncoderError, match="or do without the reference cases"),
    ):
        ingest(index, [cohort(2)], other, with_reference=True)
    assert not held(CaseIndex.open(tmp_path / "other"))


def test_an_encoder_that_does_not_fit_leaves_no_folder_behind(packaged, cbir, cohort, monkeypatch):
    other = TinyEncoder()
    other.version = "2"
    monkeypatch.setattr(encoders, "load_encoder", lambda name="tiny": other)
    code, out, err = cbir("index", cohort(2), "--with-reference", "--index", "new")
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "the reference cases" in err
    assert not os.path.exists("new")  # noqa: PTH110


@pytest.mark.both
def test_they_join_an_index_once(joined, tiny, tmp_path):
    index, root, report = joined
    assert (report.reference, report.indexed, report.cases) == (4, 6, 10)
    contents = index.catalog.contents()
    assert set(IDS) < set(contents.case_ids)
    seen = dict(zip(contents.case_ids, contents.in_sample, strict=True))
    assert sorted(case for case in seen if seen[case]) == IDS
    assert index.verify() == []
    with reference_index() as package, open_index(index.folder, tiny) as mine:
        scan = write_nifti(tmp_path / "scan_t1ce.nii.gz", phantom(500, 4))
        alone = {h.case_id: h.score for h in package.query(scan).hits}
        among = {h.case_id: h.score for h in mine.query(scan).hits}
        assert {case: among[case] for case in IDS} == alone
    revision = index.catalog.revision
    again = ingest(index, [root], tiny, with_reference=True)
    assert (again.reference, again.cases, index.catalog.revision) == (4, 10, revision)


@pytest.mark.both
def test_newer_ones_replace_them(joined, tiny, tmp_path):
    index, root, _ = joined
    before = index.catalog.fingerprints()
    shutil.copytree(reference.FOLDER, tmp_path / "old")
    filed(tmp_path, tiny, ids=["PUB-9", *IDS[1:3]])  # one has other pictures now, one has another id
    report = ingest(index, [root], tiny, with_reference=True)
    after = index.catalog.fingerprints()
    assert report.reference == 3
    assert held(index) == [f"reference:PUBLIC/{name}" for name in ("PUB-1", "PUB-2", "PUB-9")]
    assert {p: m for p, m in after.items() if p in before} == {p: before[p] for p in before if p in after}
    assert index.verify() == []


def test_a_plain_run_leaves_them_and_finds_nothing_gone(joined, tiny, tmp_path):
    index, root, _ = joined
    (root / "P-05" / "P-05_t1ce.nii.gz").unlink()
    report = ingest(index, [root], tiny)
    assert next(n for n in report.notes if "gone" in n).startswith("1 that are in the index are gone")
    assert ingest(index, [root, root.parent / "gone"], tiny, prune=True).pruned == 1
    assert len(held(index)) == 4


def test_they_survive_care_and_moving(joined, cbir, tmp_path):
    index, _, _ = joined
    with index.writing("verify --repair"):
        assert index.verify(repair=True) == []
    with index.writing("compact"):
        index.compact()
    index.close()
    index.folder.rename(tmp_path / "moved")
    with CaseIndex.open(tmp_path / "moved") as moved:
        assert moved.verify() == []
        assert len(held(moved)) == 4
        assert len(moved.snapshot().vectors.ids()) == moved.catalog.count()["slices"]


@pytest.mark.both
def test_they_can_be_taken_out_one_by_one_and_all(joined, cbir):
    index, _, _ = joined
    assert json.loads(cbir("remove", "PUB-0", "--json")[1])["removed"] == 1
    assert json.loads(cbir("remove", "--patient", "PUB-1", "--json")[1])["removed"] == 1
    assert json.loads(cbir("remove", "--reference", "--json")[1])["removed"] == 2
    assert held(index) == []
    contents = index.catalog.contents()
    assert len(contents.case_ids) == 6
    assert not contents.in_sample.any()
    assert {name for row in contents.labels for name in row} == {"who_grade"}
    assert cbir("verify")[:2] == (0, "sound\n")


@pytest.mark.parametrize("keep_ids", [True, False])
def test_nobody_is_there_twice(packaged, tmp_path, tiny, keep_ids):
    own = write_nifti(tmp_path / "own" / "PUB-1" / "PUB-1_flair.nii.gz", phantom(77))
    with CaseIndex.create(tmp_path / "i", tiny, keep_ids=keep_ids) as index:
        report = ingest(index, [tmp_path / "own"], tiny, with_reference=True)
        assert (report.reference, report.cases) == (3, 4)
        assert ingest(index, [tmp_path / "own"], tiny, with_reference=True).cases == 4
        later = write_nifti(tmp_path / "later" / "PUB-2" / "PUB-2_t1.nii.gz", phantom(78))
        (table := later.parents[1] / "participants.tsv").write_text("participant_id\tsite\nPUB-2\tX\n")
        assert ingest(index, [table.parent], tiny).cases == 4
        assert held(index) == ["reference:PUBLIC/PUB-0", "reference:PUBLIC/PUB-3"]
        contents = index.catalog.contents()
        labels = dict(zip(contents.patient_ids, contents.labels, strict=True))
        assert labels[index.patient("PUB-2")] == {"site": "X"}
        assert index.verify() == []
    assert own.exists()


@pytest.mark.both
def test_a_series_that_arrives_takes_the_place_of_a_reference_case(joined, tiny, tmp_path):
    index, _, _ = joined
    folder = write_dicom(tmp_path / "dicom", phantom(79), PatientID="PUB-3")
    ingest_sources(index, discover(folder).sources, tiny)
    assert held(index) == [f"reference:PUBLIC/{name}" for name in IDS[:3]]


def test_a_copy_under_another_name_is_filed_whole(joined, tiny, tmp_path):
    """The reference holds half of its slices: they must not be taken for all of them."""
    index, _, _ = joined
    whole = len(
        prepared(read(tmp_path / "public" / "PUB-0_t1ce.nii.gz")[0], Preprocessing.of(tiny)).positions
    )
    copy = tmp_path / "copies" / "X-1_t1ce.nii.gz"
    copy.parent.mkdir()
    shutil.copy(tmp_path / "public" / "PUB-0_t1ce.nii.gz", copy)
    report = ingest(index, [copy.parent], tiny)
    assert (report.failed, report.embedded) == ([], whole)
    assert index.verify() == []


def test_evaluation_does_not_ask_with_them(joined, cbir, tmp_path):
    code, out, err = cbir("eval", "--label", "who_grade", "--bootstrap", 0)
    assert code == 0, err
    assert out.splitlines()[0].startswith("who_grade: 6 cases of 6 patients ask")
    assert "4 cases of patients whom the encoder was trained on answer, and do not ask" in out


def test_without_a_picture_the_report_says_why(joined, tiny, tmp_path):
    index, _, _ = joined
    with open_index(index.folder, tiny) as mine:
        answer = mine.query(write_nifti(tmp_path / "scan_t1ce.nii.gz", phantom(500, 4)))
        with pytest.raises(ReadError, match="a reference case comes without pictures"):
            mine.scans("reference:PUBLIC/PUB-0")
        page = report_page(answer, load=mine.scans)
    assert page.count("no picture") == sum(hit.case_id in IDS for hit in answer.hits) > 0


# ---- what the package brings -----------------------------------------------------------------------


@pytest.fixture
def shipped():
    if not reference.available():
        pytest.skip("the package has no reference cases: make them with `make reference`")
    with reference.opened() as index:
        yield index


def test_the_shipped_cases_are_small_and_hold_no_path_and_no_pixels(shipped):
    files = sorted(path.name for path in reference.FOLDER.iterdir())
    assert set(files) <= {"calibration.json", "catalog.sqlite", "manifest.json"}
    assert sum((reference.FOLDER / name).stat().st_size for name in files) < 12_000_000
    for entry in shipped.catalog.entries():
        assert reference.is_reference(entry.path)
        assert entry.record == {}
    for name in files:
        content = (reference.FOLDER / name).read_bytes()
        for word in (b"shared/", b".jpg", b".png", b".nii", b"/tmp", b"JFIF"):
            assert word not in content, (name, word)


def test_every_shipped_case_says_where_it_comes_from(shipped):
    contents = shipped.catalog.contents()
    named = {part.split()[0] for row in contents.labels for part in row["collection"].split("; ")}
    assert named == {"TCGA-LGG", "TCGA-GBM", "BraTS-TCGA-GBM/LGG", "UCSF-PDGM", "figshare"}
    assert all("CC BY" in row["collection"] and "tumour" in row for row in contents.labels)
    persons = [reference.person(source) for source in dict.fromkeys(contents.scan_source)]
    assert contents.patient_ids == persons
    assert [case.partition("/")[0] for case in contents.case_ids] == persons


def test_the_shipped_cases_are_of_every_grade(shipped):
    contents = shipped.catalog.contents()
    for grade in ("2", "3", "4"):
        of_grade = [row for row in contents.labels if row.get("who_grade") == grade]
        assert len(of_grade) >= 25, grade
    together = {contents.scan_case[i] for i, s in enumerate(contents.scan_sequence) if s == COMPOSITE}
    for grade in ("2", "3", "4"):
        assert sum(contents.labels[case].get("who_grade") == grade for case in together) >= 20, grade
    assert None not in contents.scan_sequence  # a scan is compared with its like
    groups = {row["who_grade"]: row["grade_group"] for row in contents.labels if "who_grade" in row}
    assert groups == {"2": "LGG", "3": "LGG", "4": "HGG"}
    assert contents.in_sample.all()
    assert shipped.manifest.keep_ids
    assert shipped.catalog.failed() == []


def test_the_shipped_cases_were_made_by_the_shipped_encoder(shipped):
    with reference_index() as index:
        assert index.encoder.version == shipped.manifest.encoder_version
        assert len(index.contents.case_ids) > 300


@pytest.mark.real
def test_a_shipped_case_is_known_when_it_asks(shipped, real):
    with reference_index() as index:
        answer = index.query(real / "tcga-lgg" / "TCGA-CS-4941")
    assert answer.hits[0].case_id == "TCGA-CS-4941"
    assert "the query itself is in the index (case TCGA-CS-4941)" in answer.notes[0]
