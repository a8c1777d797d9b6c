"""Images in a store behind fsspec: the same index as from a folder, read through copies that do not stay."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import tempfile

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFile

from cbir import Index
from indexer import remote
from indexer.case_index import CaseIndex
from indexer.cluster import LOCAL, cluster
from indexer.errors import CbirError, DiskFullError
from indexer.ingest import ingest
from retrieval.cli import main
from retrieval.report import report_page
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_dicom, write_nifti
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where copies are made; nothing may stay there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def store():
    """A store in memory; what :func:`put` puts there is at ``memory://bucket``."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


@pytest.fixture
def mixed(cohort):
    """NIfTI with labels, a region, and two DICOM series that share a folder."""
    root = cohort(4)
    write_nifti(root / "P-01" / "P-01_seg.nii.gz", (phantom(10, 3) > 180).astype(np.float32))
    write_dicom(root / "dicom", phantom(50))
    for file in write_dicom(root / "more", phantom(51)).iterdir():
        file.rename(root / "dicom" / f"b{file.name}")
    (root / "more").rmdir()
    (root / "notes.txt").write_text("not an image")
    return root


def put(store, folder, bucket="/bucket"):
    for file in folder.rglob("*"):
        if file.is_file():
            store.pipe(f"{bucket}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def told(index, root):
    """What an index says, with names relative to where the images are."""
    contents = index.catalog.contents()
    names = [name.removeprefix(f"{root}/") for name in contents.scan_source]
    rows = [contents.case_ids, contents.labels, names, contents.scan_sequence]
    return rows, index.catalog.embeddings(contents.slice_ids)


def assert_same(found, expected):
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_store_is_indexed_as_a_folder_is(store, mixed, tmp_path, tiny):
    put(store, mixed)
    with CaseIndex.create(tmp_path / "here", tiny, keep_ids=True) as here:
        near = ingest(here, [mixed], tiny)
        expected = told(here, mixed)
    with CaseIndex.create(tmp_path / "there", tiny, keep_ids=True) as there:
        far = ingest(there, ["memory://bucket/"], tiny)
        assert_same(told(there, "memory://bucket"), expected)
        notes = [note.replace("memory://bucket", str(mixed)) for note in far.notes]
        assert (far.taken, far.indexed, far.failed, notes) == (near.taken, 6, [], near.notes)
        assert there.verify() == []
        again = ingest(there, ["memory://bucket"], tiny)
        assert (again.indexed, again.unchanged, again.embedded, again.pruned) == (0, 6, 0, 0)


def test_s3_is_read_as_a_folder_is(mixed, tmp_path, monkeypatch, tiny):
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'cbir[remote]'")
    servers = pytest.importorskip(
        "moto.server", reason="a store to try is not installed: pip install 'moto[server]'"
    )
    with CaseIndex.create(tmp_path / "here", tiny, keep_ids=True) as here:
        ingest(here, [mixed], tiny)
        expected = told(here, mixed)
    server = servers.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        store = fsspec.filesystem("s3")
        store.mkdir("bucket")
        put(store, mixed, "bucket/mri")
        with CaseIndex.create(tmp_path / "there", tiny, keep_ids=True) as there:
            assert ingest(there, ["s3://bucket/mri"], tiny).failed == []
            assert_same(told(there, "s3://bucket/mri"), expected)
            assert ingest(there, ["s3://bucket/mri"], tiny).unchanged == 6
            with pytest.raises(CbirError, match="there is nothing|cannot be read"):
                ingest(there, ["s3://elsewhere/mri"], tiny, prune=True)
    finally:
        server.stop()


def test_what_changes_in_the_store_is_read_again_and_what_goes_is_pruned(store, mixed, tmp_path, tiny):
    put(store, mixed)
    with CaseIndex.create(tmp_path / "index", tiny, keep_ids=True) as index:
        ingest(index, ["memory://bucket"], tiny)
        changed = write_nifti(tmp_path / "new.nii.gz", phantom(99))
        store.pipe("/bucket/P-02/P-02_t1ce.nii.gz", changed.read_bytes())
        store.rm("/bucket/P-03/P-03_t1ce.nii.gz")
        report = ingest(index, ["memory://bucket"], tiny)
        assert (report.indexed, report.unchanged) == (1, 4)
        assert "memory://bucket/P-03/P-03_t1ce.nii.gz; --prune" in " ".join(report.notes)
        assert ingest(index, ["memory://bucket"], tiny, prune=True).pruned == 1
        store.rm("/bucket", recursive=True)  # all of it, or an address that is wrong
        with pytest.raises(CbirError, match="there is nothing"):
            ingest(index, ["memory://bucket"], tiny, prune=True)
        assert index.catalog.count()["cases"] == 5


def test_labels_above_the_root_in_the_store_are_found_and_those_of_this_machine_are_not(
    store, cohort, tmp_path, tiny, scratch
):
    put(store, cohort(3))
    (scratch / "participants.tsv").write_text("participant_id\twho_grade\nP-00\t9\n")
    with CaseIndex.create(tmp_path / "index", tiny, keep_ids=True) as index:
        ingest(index, ["memory://bucket/P-01"], tiny)
        assert index.catalog.contents().labels == [{"who_grade": "3"}]
        store.rm("/bucket/participants.tsv")
        ingest(index, ["memory://bucket/P-00"], tiny)
        assert index.catalog.contents().labels == [{"who_grade": "3"}, {}]
    (scratch / "participants.tsv").unlink()


def test_a_file_that_cannot_be_read_is_told_by_its_address_and_read_the_next_time(
    store, mixed, tmp_path, tiny, monkeypatch
):
    put(store, mixed)
    store.pipe("/bucket/P-02/P-02_t1ce.nii.gz", b"this is no image")
    get = type(store).get_file

    def lost(self, path, *args, **kwargs):
        if "P-01" in path:
            raise ConnectionError("the connection\nwas lost")
        return get(self, path, *args, **kwargs)

    with CaseIndex.create(tmp_path / "index", tiny, keep_ids=True) as index:
        with monkeypatch.context() as patch:
            patch.setattr(type(store), "get_file", lost)
            report = ingest(index, ["memory://bucket"], tiny)
        assert report.indexed == 4
        reasons = {failure["source"]: failure["reason"] for failure in report.failed}
        assert reasons.keys() == {f"memory://bucket/P-0{i}/P-0{i}_t1ce.nii.gz" for i in (1, 2)}
        assert "the connection was lost" in reasons["memory://bucket/P-01/P-01_t1ce.nii.gz"]
        assert {failure["source"]: failure["reason"] for failure in index.catalog.failed()} == reasons
        report = ingest(index, ["memory://bucket"], tiny)
        assert (report.indexed, len(report.failed)) == (1, 1)


def test_no_room_for_a_copy_ends_the_run(store, mixed, tmp_path, tiny, monkeypatch):
    put(store, mixed)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(store), "get_file", full)
    with (
        CaseIndex.create(tmp_path / "index", tiny) as index,
        pytest.raises(DiskFullError, match="make room"),
    ):
        ingest(index, ["memory://bucket"], tiny)


def test_names_that_are_no_paths_stay_out(store, cohort, tmp_path, tiny):
    image = write_nifti(tmp_path / "x.nii.gz", phantom(1)).read_bytes()
    names = ("../../../escaped.nii.gz", "a//b.nii.gz", ".hidden/h.nii.gz", "P-01/good.nii.gz")
    for name in names:
        path = f"/bucket/{name}"
        store.store[path] = MemoryFile(store, path, image)
    with CaseIndex.create(tmp_path / "index", tiny) as index:
        report = ingest(index, ["memory://bucket"], tiny)
    assert report.indexed == 1
    assert sorted(failure["source"] for failure in report.failed) == [
        "memory://bucket/../../../escaped.nii.gz",
        "memory://bucket/a//b.nii.gz",
    ]
    assert not list(tmp_path.rglob("escaped*"))


def test_a_report_shows_pictures_from_the_store(store, mixed, tmp_path, tiny):
    put(store, mixed)
    with CaseIndex.create(tmp_path / "index", tiny) as index:
        ingest(index, ["memory://bucket"], tiny)
        opened = Index(index, tiny)
        answer = opened.query(mixed / "P-00" / "P-00_t1ce.nii.gz", 3)
        (scan,) = opened.scans(answer.hits[0].source)
        assert scan.voxels.shape == (24, 28, 10)
        page = report_page(answer, load=opened.scans, index="index")
        assert page.count("data:image/jpeg") >= 4
        store.rm("/bucket/P-01", recursive=True)
        with pytest.raises(CbirError, match="memory://bucket/P-01/P-01_t1ce.nii.gz"):
            opened.scans("memory://bucket/P-01/P-01_t1ce.nii.gz")


@pytest.mark.slow
def test_ray_workers_read_from_a_store(mixed, tmp_path, monkeypatch, scratch):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'cbir[ray]'")
    address = f"file://{mixed}"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    encoder = TinyEncoder()
    with CaseIndex.create(tmp_path / "plain", encoder, keep_ids=True) as plain:
        ingest(plain, [mixed], encoder)
        expected = told(plain, mixed)
    monkeypatch.setattr(tempfile, "tempdir", None)  # Ray's sockets need short names
    with (
        cluster(LOCAL, encoder) as workers,
        CaseIndex.create(tmp_path / "index", encoder, keep_ids=True) as index,
    ):
        assert ingest(index, [address], encoder, workers=workers).failed == []
        assert_same(told(index, address), expected)


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("s3://bucket/mri", "s3fs.*pip install 'cbir.remote.'"),
        ("nowhere://bucket", "Protocol not known.*cbir.remote"),
        ("http://user:planted@127.0.0.1:9/mri", "holds a password"),
        ("memory://empty", "there is nothing"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(
    monkeypatch, capsys, tmp_path, tiny, store, address, what
):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr("indexer.encoder.load_encoder", lambda name: tiny)
    monkeypatch.setattr(sys, "argv", ["cbir", "index", address, "--index", str(tmp_path / "index")])
    with pytest.raises(SystemExit) as code:
        main()
    assert code.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "planted" not in line
    assert re.search(what, line)


def test_what_is_an_address():
    assert remote.is_address("s3://bucket/mri")
    assert remote.is_address("memory:///x")
    assert not any(
        map(remote.is_address, ("mri", "/mnt/mri", "C:/mri", "c://mri", "./s3:/x", "reference:a/b"))
    )


def test_a_cohort_behind_file_is_the_same_index(mixed, tmp_path, tiny):
    shutil.copy(mixed / "P-00" / "P-00_t1ce.nii.gz", mixed / "alone.nii.gz")
    with CaseIndex.create(tmp_path / "index", tiny) as index:
        report = ingest(index, [f"file://{mixed}/alone.nii.gz", mixed / "P-01"], tiny)
        assert report.indexed == 2
        assert sorted(index.catalog.fingerprints()) == sorted(
            [f"file://{mixed}/alone.nii.gz", str(mixed / "P-01" / "P-01_t1ce.nii.gz")]
        )
