"""Read and embed on a Ray cluster: the same index as without, whatever happens to its workers."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import sys
from dataclasses import dataclass

import numpy as np
import psutil
import pytest

from indexer import sandbox
from indexer.case_index import CaseIndex
from indexer.cluster import LOCAL, STARTS, cluster
from indexer.errors import ClusterError
from indexer.ingest import filing, ingest
from indexer.readers import Source
from retrieval.cli import main
from tests.support.encoders import TinyEncoder
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workers():
    """A cluster on loopback; its workers import the encoder of the tests."""
    if importlib.util.find_spec("ray") is None:  # not imported: `cluster` does that, set to stay on loopback
        pytest.skip("Ray is not installed: pip install 'cbir[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with cluster(LOCAL, TinyEncoder()) as workers:
            yield workers


@pytest.fixture
def root(cohort, monkeypatch):
    monkeypatch.setattr(filing, "GROUP", 24)  # many groups
    root = cohort(16)
    # the same images in the first group, and in the last one
    for copy in ("P-01", "P-15"):
        shutil.copy(root / "P-00" / "P-00_t1ce.nii.gz", root / copy / f"{copy}_t1ce.nii.gz")
    return root


def filed(folder, root, **how):
    """What an index says of a cohort, and the report of the run."""
    encoder = TinyEncoder()
    with CaseIndex.create(folder, encoder, keep_ids=True) as index:
        report = ingest(index, [root], encoder, **how)
        assert index.verify() == []
        contents = index.catalog.contents()
        told = [contents.case_ids, contents.labels, contents.scan_source, contents.scan_sequence]
        arrays = [contents.slice_ids, contents.slice_scan, contents.slice_position, contents.slice_weight]
        return told, [*arrays, index.catalog.embeddings(contents.slice_ids)], report


def assert_same(found, expected):
    assert found[0] == expected[0]
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_array_equal(one, other)


def listening(process):
    return [c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]


def test_nothing_listens_beyond_this_machine(workers):
    addresses = {ip for child in psutil.Process().children(recursive=True) for ip in listening(child)}
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_the_index_is_the_same_as_without_ray(workers, root, tmp_path):
    plain = filed(tmp_path / "plain", root)
    found = filed(tmp_path / "ray", root, workers=workers)
    assert_same(found, plain)
    # two of the 16 are copies: they are embedded once, by either
    assert found[2].embedded == plain[2].embedded == 14 * plain[2].slices // 16
    assert found[2].indexed == 16


def test_a_worker_killed_in_the_middle_changes_nothing(workers, root, tmp_path):
    killed = []

    def kill(done, total, slices):
        if not killed:
            for child in psutil.Process().children(recursive=True):
                if child.name() in ("ray::_read", "ray::_embed", "ray::IDLE"):  # not Ray's own agents
                    child.kill()
                    killed.append(child.pid)

    found = filed(tmp_path / "ray", root, workers=workers, progress=kill)
    assert killed
    assert found[2].failed == []
    assert_same(found, filed(tmp_path / "plain", root))


@dataclass(frozen=True)
class Deadly(Source):
    """Kills whoever receives it."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGKILL,)


def test_a_source_that_kills_its_workers_is_named_and_the_rest_goes_on(workers, root, tmp_path, monkeypatch):
    discover = sandbox.discover

    def poisoned(*args, **kwargs):
        found = discover(*args, **kwargs)
        found.sources[5] = Deadly(**vars(found.sources[5]))
        return found

    monkeypatch.setattr(sandbox, "discover", poisoned)
    _, _, report = filed(tmp_path / "ray", root, workers=workers)
    assert report.indexed == 15
    (failure,) = report.failed
    assert "P-05" in failure["source"]
    assert "4 workers that read it died" in failure["reason"]


def test_an_unreadable_file_is_told_as_without_ray(workers, root, tmp_path):
    (root / "P-03" / "P-03_t1ce.nii.gz").write_text("this is no image")
    plain = filed(tmp_path / "plain", root)
    found = filed(tmp_path / "ray", root, workers=workers)
    assert found[2].failed == plain[2].failed != []
    assert_same(found, plain)


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"pip install 'cbir\[ray\]'"), cluster("auto", TinyEncoder()):
        pass


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'cbir[ray]'")

    def init(**_):
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify one")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(ClusterError, match="any running Ray instance") as error,
        cluster("auto", TinyEncoder()),
    ):
        pass
    assert "\n" not in str(error.value)


def test_a_cluster_that_is_not_there_leaves_no_new_index(cohort, tmp_path, monkeypatch, capsys):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'cbir[ray]'")

    def init(**_):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    index = tmp_path / "index"
    monkeypatch.setattr(
        sys, "argv", ["cbir", "index", str(cohort(2)), "--index", str(index), "--ray", "auto"]
    )
    with pytest.raises(SystemExit) as code:
        main()
    assert code.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be reached" in line
    assert not index.exists()


def test_a_local_cluster_that_is_slow_to_start_is_started_again(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'cbir[ray]'")
    tried = []

    def init(**_):
        tried.append(1)
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    with pytest.raises(ClusterError, match="less busy"), cluster(LOCAL, TinyEncoder()):
        pass
    assert len(tried) == STARTS


def test_a_cluster_that_would_listen_beyond_this_machine_is_refused(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'cbir[ray]'")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("it was started"))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "192.0.2.1")
    with pytest.raises(ClusterError, match="beyond this machine"), cluster(LOCAL, TinyEncoder()):
        pass
