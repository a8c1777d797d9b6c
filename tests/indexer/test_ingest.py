from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from indexer import discovery, readers
from indexer.case_index import CaseIndex
from indexer.errors import CaseIndexError, EncoderError, LabelsError, ReadError
from indexer.ingest import ingest, ingest_sources
from indexer.labels import load_tables
from indexer.preprocess import Preprocessing, prepared
from tests.support.images import phantom, write_nifti


@pytest.fixture
def index(tmp_path, tiny):
    with CaseIndex.create(tmp_path / "index", tiny, keep_ids=True) as index:
        yield index


@pytest.mark.both
def test_a_cohort_is_filed_with_its_labels(index, tiny, cohort):
    root = cohort(6, ("t1ce", "flair"))
    report = ingest(index, [root], tiny)
    assert (report.indexed, report.unchanged, report.failed) == (12, 0, [])
    contents = index.catalog.contents()
    assert contents.case_ids == [f"P-{i:02}" for i in range(6)]
    assert contents.labels == [{"who_grade": str(2 + i % 3)} for i in range(6)]
    assert sorted(set(contents.scan_sequence)) == ["flair", "t1ce"]
    assert report.cases == 6
    assert report.slices == len(contents.slice_ids) == report.embedded
    assert index.verify() == []


@pytest.mark.both
def test_a_second_run_embeds_nothing(index, tiny, cohort):
    root = cohort(4)
    first = ingest(index, [root], tiny)
    revision = index.catalog.revision
    second = ingest(index, [root], tiny)
    assert (second.indexed, second.unchanged, second.embedded) == (0, 4, 0)
    assert second.slices == first.slices
    assert index.catalog.revision == revision


@pytest.mark.both
def test_a_changed_file_replaces_its_slices(index, tiny, cohort):
    root = cohort(4)
    ingest(index, [root], tiny)
    write_nifti(root / "P-01" / "P-01_t1ce.nii.gz", phantom(99, 4))
    report = ingest(index, [root], tiny)
    assert (report.indexed, report.unchanged) == (1, 3)
    assert report.embedded > 0
    assert report.cases == 4
    assert index.verify() == []


def test_equal_content_is_embedded_once_whatever_it_is_called(index, tiny, cohort):
    root = cohort(3)
    first = ingest(index, [root], tiny)
    os.utime(root / "P-00" / "P-00_t1ce.nii.gz", (1, 1))
    (root / "P-07").mkdir()
    shutil.copy(root / "P-01" / "P-01_t1ce.nii.gz", root / "P-07" / "P-07_t1ce.nii.gz")
    report = ingest(index, [root], tiny)
    assert (report.indexed, report.embedded) == (2, 0)
    assert report.slices > first.slices
    contents = index.catalog.contents()
    of = {
        case: np.flatnonzero(contents.scan_case[contents.slice_scan] == i)
        for i, case in enumerate(contents.case_ids)
    }
    np.testing.assert_array_equal(
        index.catalog.embeddings(contents.slice_ids[of["P-01"]]),
        index.catalog.embeddings(contents.slice_ids[of["P-07"]]),
    )


def test_two_equal_files_in_one_run_are_embedded_once(index, tiny, tmp_path):
    for name in "AB":
        write_nifti(tmp_path / "mri" / f"{name}_t1.nii.gz", phantom(1))
    report = ingest(index, [tmp_path / "mri"], tiny)
    assert report.cases == 2
    assert report.slices == 2 * report.embedded


@pytest.mark.both
def test_labels_that_change_reach_unchanged_files(index, tiny, cohort):
    root = cohort(3)
    ingest(index, [root], tiny)
    table = root / "participants.tsv"
    table.write_text(table.read_text().replace("P-00\t2", "P-00\t4"))
    report = ingest(index, [root], tiny)
    assert report.embedded == 0
    assert index.catalog.contents().labels[0] == {"who_grade": "4"}


def test_labels_and_data_that_do_not_meet_are_told(index, tiny, cohort):
    root = cohort(3)
    with (root / "participants.tsv").open("a") as table:
        table.write("P-77\t2\tn/a\n")
    write_nifti(root / "Q-01" / "Q-01_t1.nii.gz", phantom(5))
    notes = " ".join(ingest(index, [root], tiny).notes)
    assert "1 rows without data: line 5" in notes
    assert "1 patients without a row: Q-01" in notes


@pytest.mark.both
def test_prune_takes_out_what_is_gone_below_the_given_paths(index, tiny, cohort):
    root, other = cohort(3), cohort(2, folder="other")
    ingest(index, [root, other], tiny)
    shutil.rmtree(root / "P-02")
    shutil.rmtree(other / "P-01")
    assert ingest(index, [root], tiny).pruned == 0
    assert ingest(index, [root], tiny, prune=True).pruned == 1
    assert len(index.catalog.fingerprints()) == 4
    assert index.verify() == []


def test_a_file_that_cannot_be_read_is_listed_and_the_rest_goes_on(index, tiny, cohort):
    root = cohort(3)
    bad = root / "P-01" / "P-01_t1ce.nii.gz"
    bad.write_text("this is no image")
    report = ingest(index, [root], tiny)
    assert report.indexed == 2
    ((source, reason),) = [(f["source"], f["reason"]) for f in report.failed]
    assert source == str(bad)
    assert reason
    assert "\n" not in reason
    assert index.catalog.failed() == report.failed
    write_nifti(bad, phantom(10, 3))
    assert ingest(index, [root], tiny).failed == []
    assert index.catalog.failed() == []


def test_a_file_that_became_unreadable_keeps_its_last_good_state(index, tiny, cohort):
    root = cohort(3)
    before = ingest(index, [root], tiny)
    (root / "P-01" / "P-01_t1ce.nii.gz").write_text("damaged since")
    after = ingest(index, [root], tiny)
    assert len(after.failed) == 1
    assert after.cases == before.cases


@pytest.mark.usefixtures("in_process")
def test_an_odd_error_of_a_library_ends_one_source_and_tells_no_content(index, tiny, cohort, monkeypatch):

    root, read = cohort(3), readers.read

    def odd(source):
        if "P-01" in str(source.path):
            raise RuntimeError("PatientName is Jane Doe")
        return read(source)

    monkeypatch.setattr(readers, "read", odd)
    report = ingest(index, [root], tiny)
    assert report.indexed == 2
    (failure,) = report.failed
    assert "RuntimeError" in failure["reason"]
    assert "Jane" not in failure["reason"]


def test_nothing_to_read_is_an_error(index, tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError, match="empty"):
        ingest(index, [tmp_path / "empty"], tiny)


def test_an_empty_folder_beside_others_is_a_failure_among_them(index, tiny, cohort, tmp_path):
    (tmp_path / "empty").mkdir()
    report = ingest(index, [tmp_path / "empty", cohort(2)], tiny)
    assert report.indexed == 2
    assert report.failed == [{"source": str(tmp_path / "empty"), "reason": report.failed[0]["reason"]}]
    assert "is empty" in report.failed[0]["reason"]


def test_each_data_set_below_a_root_has_the_table_of_its_own(index, tiny, cohort, tmp_path):
    cohort(2, folder="all/one")
    other = cohort(2, folder="all/two")
    table = (other / "participants.tsv").read_text().replace("who_grade", "tumour").replace("P-", "R-")
    (other / "participants.tsv").write_text(table.replace("\t2\t", "\tglioma\t"))
    for i in range(2):
        (other / f"P-{i:02}").rename(other / f"R-{i:02}")
        (other / f"R-{i:02}" / f"P-{i:02}_t1ce.nii.gz").rename(other / f"R-{i:02}" / f"R-{i:02}_t1ce.nii.gz")
    write_nifti(tmp_path / "all" / "U-01_t1.nii.gz", phantom(70))
    report = ingest(index, [tmp_path / "all"], tiny)
    contents = index.catalog.contents()
    labels = dict(zip(contents.case_ids, contents.labels, strict=True))
    assert labels["P-00"] == {"who_grade": "2"}
    assert labels["R-00"] == {"tumour": "glioma"}
    assert labels["U-01"] == {}
    assert report.taken["NIfTI volumes"] == 5


def test_prune_takes_out_the_last_image_of_a_folder_too(index, tiny, cohort):
    root, other = cohort(1), cohort(1, folder="other")
    ingest(index, [root, other], tiny)
    shutil.rmtree(root / "P-00")
    assert ingest(index, [root], tiny, prune=True).pruned == 1


def test_a_table_that_does_not_know_a_patient_leaves_the_labels(index, tiny, cohort, tmp_path):
    ingest(index, [cohort(2)], tiny)
    write_nifti(tmp_path / "later" / "P-01" / "P-01_t2.nii.gz", phantom(77))
    (tmp_path / "later" / "participants.tsv").write_text("participant_id\twho_grade\nQ-99\t4\n")
    ingest(index, [tmp_path / "later"], tiny)
    assert index.catalog.contents().labels[1] == {"who_grade": "3"}


@pytest.mark.both
def test_single_sources_are_filed_into_a_living_index(index, tiny, cohort, tmp_path):
    from indexer.discovery import discover

    ingest(index, [cohort(30)], tiny)
    filed = index.manifest.vectors
    write_nifti(tmp_path / "new" / "N-01_t1ce.nii.gz", phantom(500))
    (source,) = discover(tmp_path / "new").sources
    report = ingest_sources(index, [source], tiny, labels={"N-01": {"who_grade": "4"}})
    assert (report.indexed, report.cases) == (1, 31)
    assert index.manifest.vectors == filed
    snapshot = index.snapshot()
    assert snapshot.contents.labels[-1] == {"who_grade": "4"}
    assert set(snapshot.vectors.ids()) == set(snapshot.contents.slice_ids)
    assert ingest_sources(index, [source], tiny).unchanged == 1


def test_another_encoder_is_refused(index, tiny, cohort):
    tiny.version = "2"
    with pytest.raises(EncoderError, match="tiny 1"):
        ingest(index, [cohort(1)], tiny)


def test_one_writer_at_a_time(index, tiny, cohort):
    root = cohort(1)
    with (
        CaseIndex.open(index.folder) as second,
        index.writing("index"),
        pytest.raises(CaseIndexError, match=f"process {os.getpid()}"),
    ):
        ingest(second, [root], tiny)
    assert ingest(index, [root], tiny).indexed == 1


@pytest.mark.both
def test_ids_are_pseudonymous_by_default_and_stable(tmp_path, tiny, cohort):
    root = cohort(2, ("t1", "t2"))
    with CaseIndex.create(tmp_path / "private", tiny) as index:
        ingest(index, [root], tiny)
        contents = index.catalog.contents()
        assert len(contents.case_ids) == 2
        assert not any("P-0" in text for text in contents.case_ids + contents.patient_ids)
        assert contents.patient_ids[0] == index.patient("P-00")
        assert (index.folder / "key").stat().st_mode & 0o777 == 0o600
    with CaseIndex.create(tmp_path / "another", tiny) as other:
        assert other.patient("P-00") != contents.patient_ids[0]


def test_memory_does_not_grow_with_the_number_of_files(tmp_path, tiny):
    """Images in flight are bounded: peak traced memory of 60 files is that of 20, but for their vectors."""
    import tracemalloc

    peaks = []
    for n in (20, 60):
        root = tmp_path / f"mri{n}"
        for i in range(n):
            write_nifti(root / f"P-{i:02}_t1.nii", phantom(i, shape=(64, 64, 12)))
        with CaseIndex.create(tmp_path / f"index{n}", tiny) as index:
            tracemalloc.start()
            ingest(index, [Path(root)], tiny)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    # 40 more volumes hold 7.9 MB of voxels
    assert peaks[1] - peaks[0] < 2e6


def test_labels_named_once_are_used_again_and_missed_when_gone(index, tiny, cohort, tmp_path):
    root = cohort(3)
    table = (root / "participants.tsv").rename(tmp_path / "grades.tsv")
    ingest(index, [root], tiny, labels=load_tables(table))
    before = index.catalog.contents().labels
    assert before[0] == {"who_grade": "2"}
    report = ingest(index, [root], tiny)
    assert (report.indexed, report.unchanged) == (0, 3)
    assert index.catalog.contents().labels == before
    table.unlink()
    with pytest.raises(LabelsError, match=r"is gone; give the table with --labels"):
        ingest(index, [root], tiny)


def test_a_table_that_fits_nothing_is_refused(index, tiny, cohort, tmp_path):
    (tmp_path / "other.csv").write_text("participant_id,who_grade\nX-1,2\nX-2,3\n")
    with pytest.raises(LabelsError, match="none of its rows fits"):
        ingest(index, [cohort(2)], tiny, labels=load_tables(tmp_path / "other.csv"))


def test_a_name_that_is_no_text_fails_alone(index, tiny, cohort):
    root = cohort(2)
    odd = os.fsdecode(b"\xff.nii")
    write_nifti(root / "new\nline.nii", phantom(8))
    (root / "plain.nii").write_bytes((root / "new\nline.nii").read_bytes())
    os.rename(root / "plain.nii", root / odd)  # noqa: PTH104
    report = ingest(index, [root], tiny)
    assert report.indexed == 2
    assert len(report.failed) == 2
    for failure in report.failed:
        assert failure["source"].isprintable()
        assert "rename it" in failure["reason"]
    assert index.catalog.failed() == sorted(report.failed, key=lambda f: f["source"])


def test_ids_and_labels_that_steer_a_terminal_do_not_enter(index, tiny, cohort, tmp_path):
    from tests.support.images import write_dicom

    root = cohort(2)
    write_dicom(root / "series", phantom(5), PatientID="P\x1b[2J-09")
    (root / "odd.csv").write_text('patient,tu\x1bmour,site\nP-00,"a\x1b[31m\nfalse row",\u202eb\n')
    report = ingest(index, [root], tiny)
    (failure,) = report.failed
    assert "id holds control characters" in failure["reason"]
    contents = index.catalog.contents()
    assert contents.patient_ids == ["P-00", "P-01"]
    assert contents.labels[0] == {"who_grade": "2", "tu\\x1bmour": "a\\x1b[31m false row", "site": "\\u202eb"}
    texts = [*report.notes, *(text for row in contents.labels for pair in row.items() for text in pair)]
    assert all(text.isprintable() for text in texts)


def test_what_is_gone_from_the_disk_is_told(index, tiny, cohort):
    root = cohort(3)
    ingest(index, [root], tiny)
    shutil.rmtree(root / "P-02")
    assert any("P-02" in note and "--prune" in note for note in ingest(index, [root], tiny).notes)
    shutil.rmtree(root)
    report = ingest(index, [root], tiny, prune=True)
    assert (report.pruned, report.failed) == (3, [])


def test_an_encoder_that_looks_is_told_the_regions_and_weighs_the_slices(tmp_path, looking):
    volume = phantom(1, 4)
    lesion = np.zeros(volume.shape, np.uint8)
    lesion[3:9, 12:20, 4:6] = 1
    write_nifti(tmp_path / "mri" / "P-01_t1ce.nii.gz", volume)
    write_nifti(tmp_path / "mri" / "P-01_seg.nii.gz", lesion)
    write_nifti(tmp_path / "mri" / "P-02_t1ce.nii.gz", phantom(2, 4))
    with CaseIndex.create(tmp_path / "index", looking, keep_ids=True) as index:
        ingest(index, [tmp_path / "mri"], looking)
        contents = index.catalog.contents()
        stored = index.catalog.embeddings(contents.slice_ids)
        assert contents.in_sample.tolist() == [True, False]
        (scan,) = discovery.read(tmp_path / "mri" / "P-01_t1ce.nii.gz")
        ready = prepared(scan, Preprocessing.of(looking))
        mine = contents.scan_case[contents.slice_scan] == 0
        found = looking.analyse(ready.pixels, ready.boxes)
        np.testing.assert_array_equal(contents.slice_view[mine], ready.views)
        np.testing.assert_array_equal(stored[mine], found.embeddings)
        regions = ready.views == 1
        assert regions.sum() == 2
        whole = np.isin(ready.positions, ready.positions[regions]) & ~regions
        np.testing.assert_array_equal(ready.pixels[regions], ready.pixels[whole])  # no crop, but a box
        weights = np.where(regions, ready.weights, ready.weights * found.weights)
        np.testing.assert_allclose(contents.slice_weight[mine], weights, rtol=1e-6)

        # the same pixels under another name are not looked at again, and keep their weights
        shutil.copy(tmp_path / "mri" / "P-02_t1ce.nii.gz", tmp_path / "mri" / "P-03_t1ce.nii.gz")
        assert ingest(index, [tmp_path / "mri"], looking).embedded == 0
        contents = index.catalog.contents()
        case = contents.scan_case[contents.slice_scan]
        np.testing.assert_array_equal(contents.slice_weight[case == 1], contents.slice_weight[case == 2])


def test_another_way_of_preparing_is_another_index(tmp_path, tiny, looking, cohort):
    with CaseIndex.create(tmp_path / "index", looking) as index:
        assert index.manifest.preprocessing != Preprocessing.of(tiny).version


def labels_of(index):
    contents = index.catalog.contents()
    return dict(zip(contents.case_ids, contents.labels, strict=True))


def test_a_second_table_adds_to_the_first_and_given_again_replaces_itself(index, tiny, cohort, tmp_path):
    root = cohort(3)
    (root / "participants.tsv").unlink()
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("id,grade,age\nP-00,2,50\nP-01,3,60\n")
    two.write_text("id,sex\nP-00,F\nP-02,M\n")
    ingest(index, [root], tiny, labels=load_tables(one))
    ingest(index, [root], tiny, labels=load_tables(two))
    both = {"P-00": {"grade": "2", "age": "50", "sex": "F"}, "P-01": {"grade": "3", "age": "60"}}
    assert labels_of(index) == {**both, "P-02": {"sex": "M"}}
    # a row and a column less, a value changed; the table need not be named again
    one.write_text("id,grade\nP-00,4\n")
    for labels in (load_tables(one), ()):
        assert ingest(index, [root], tiny, labels=labels).embedded == 0
        assert labels_of(index) == {"P-00": {"grade": "4", "sex": "F"}, "P-01": {}, "P-02": {"sex": "M"}}


def test_a_part_of_a_folder_keeps_the_labels_of_the_whole(index, tiny, cohort, tmp_path):
    root = cohort(2)
    (root / "participants.tsv").rename(tmp_path / "t.csv")
    ingest(index, [root], tiny, labels=load_tables(tmp_path / "t.csv"))
    before = labels_of(index)
    ingest(index, [root / "P-01"], tiny)
    assert labels_of(index) == before == {"P-00": {"who_grade": "2"}, "P-01": {"who_grade": "3"}}


def test_tables_of_two_folders_with_one_patient_add_up(index, tiny, cohort, tmp_path):
    root = cohort(2)
    write_nifti(tmp_path / "later" / "P-01" / "P-01_t2.nii.gz", phantom(77))
    (tmp_path / "later" / "sexes.csv").write_text("patient,sex\nP-01,F\n")
    ingest(index, [root], tiny)
    ingest(index, [tmp_path / "later"], tiny)
    assert labels_of(index)["P-01"] == {"who_grade": "3", "sex": "F"}
    ingest(index, [root, tmp_path / "later"], tiny)
    assert labels_of(index)["P-01"] == {"who_grade": "3", "sex": "F"}


def test_visits_have_labels_of_their_own(index, tiny, tmp_path):
    root = tmp_path / "mri"
    for visit, seed in (("ses-1", 1), ("ses-2", 2)):
        write_nifti(root / "sub-01" / visit / "anat" / f"sub-01_{visit}_T1w.nii.gz", phantom(seed))
    (root / "participants.tsv").write_text("participant_id\tsex\tgrade\nsub-01\tF\t2\n")
    (root / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\tgrade\nses-2\t4\n")
    report = ingest(index, [root], tiny)
    contents = index.catalog.contents()
    found = dict(zip(contents.visits, contents.labels, strict=True))
    assert found == {"ses-1": {"sex": "F", "grade": "2"}, "ses-2": {"sex": "F", "grade": "4"}}
    assert any("by column participant_id joined 1 of 1 rows to 1 of 1 patients" in n for n in report.notes)
    (root / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\tgrade\nses-2\tn/a\n")
    assert ingest(index, [root], tiny).embedded == 0
    assert index.catalog.contents().labels == [{"sex": "F", "grade": "2"}] * 2


def test_a_table_that_fits_nothing_is_named_unless_it_was_given(index, tiny, cohort):
    root = cohort(2)
    (root / "other.csv").write_text("id,grade\nX-1,2\nX-2,3\n")
    (root / "broken.csv").write_text("id,grade\nP-00,2,9\n")
    notes = ingest(index, [root], tiny).notes
    assert f"1 tables fit no image: {root}/other.csv" in notes
    assert any(note.startswith(f"{root}/broken.csv: no labels are taken from it: line 2") for note in notes)
    assert labels_of(index)["P-00"] == {"who_grade": "2"}


def test_a_labels_table_is_needed_by_one_of_the_folders_only(index, tiny, cohort, tmp_path):
    roots = [cohort(2), tmp_path / "other"]
    write_nifti(roots[1] / "Q-1_t1.nii.gz", phantom(3))
    (tmp_path / "t.csv").write_text("id,sex\nQ-1,F\n")
    ingest(index, roots, tiny, labels=load_tables(tmp_path / "t.csv"))
    assert labels_of(index)["Q-1"] == {"sex": "F"}
