"""What strangers sent is read in processes that may end, with limits, and costs nothing more."""

from __future__ import annotations

import os
import pickle
import signal
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pydicom.encaps import encapsulate

from indexer import discovery, reading, sandbox
from indexer.case_index import CaseIndex
from indexer.errors import CbirError, PoisonError, ReadError
from indexer.ingest import ingest
from indexer.preprocess import Preprocessing
from indexer.readers import read_mask
from indexer.sandbox import pool, wire
from indexer.sandbox.pool import Limits, Sandbox
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_dicom, write_nifti

TOY = """
import os, signal, time
import numpy as np
from indexer.readers.formats import Format
from indexer.scan import Scan

held = []

def read(source):
    what = source.files[0].read_text()
    if what == "abort":
        os.abort()
    if what == "memory":
        held.append(np.ones(2**31))
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while what == "spin":
        pass
    while what == "sleep":
        time.sleep(1)
    if what == "odd":
        raise RuntimeError("PatientName is Jane Doe")
    voxels = np.arange(8 * 9 * 10, dtype=np.float32).reshape(8, 9, 10)
    return [Scan(voxels, source.path, (1, 1, 1), np.eye(4))]

toy = Format("toy", {"toy": "toys"}, lambda file: file.suffix == ".toy", read)
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox with short limits, in which files ending in .toy do as they say."""
    site = tmp_path / "site"
    (site / "toy-1.0.dist-info").mkdir(parents=True)
    (site / "toy_format.py").write_text(TOY)
    (site / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (site / "toy-1.0.dist-info" / "entry_points.txt").write_text("[cbir.formats]\ntoy = toy_format:toy\n")
    monkeypatch.syspath_prepend(site)
    with pool.using(Sandbox(Limits(memory=2**30, seconds=2, patience=50))) as made:
        yield made


def toy(folder: Path, what: str, name: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name or what}.toy"
    path.write_text(what)
    return path


# -- it is as without it -------------------------------------------------------------------------------


def test_scans_are_the_same(tmp_path: Path) -> None:
    write_nifti(tmp_path / "P-01" / "P-01_t1.nii.gz", phantom(1))
    write_dicom(tmp_path / "D-01", phantom(2))
    Image.fromarray((phantom(3)[:, :, 5] % 256).astype(np.uint8)).save(tmp_path / "P-03.png")
    found, expected = sandbox.discover(tmp_path), discovery.discover(tmp_path)
    assert found.sources == expected.sources
    assert found.taken == expected.taken
    assert len(found.sources) == 3
    how = Preprocessing(32)
    for source in found.sources:
        for one, other in zip(sandbox.read(source), discovery.read(source), strict=True):
            np.testing.assert_array_equal(one.voxels, other.voxels)
            assert one.voxels.dtype == other.voxels.dtype
            assert one.voxels.flags.writeable
            assert np.array_equal(np.nan_to_num(one.affine), np.nan_to_num(other.affine))
            plain = (replace(scan, voxels=None, affine=None, region=None) for scan in (one, other))
            assert next(plain) == next(plain)
        ready, known = sandbox.prepare(source, how), reading.read(source, how)
        assert [scan.digest for scan in ready.scans] == [scan.digest for scan in known.scans]
        assert [scan.scan.voxels.shape for scan in ready.scans] == [s.scan.voxels.shape for s in known.scans]
        np.testing.assert_array_equal(ready.images[0].pixels, known.images[0].pixels)
    (scan,) = sandbox.read(tmp_path / "P-01")
    mask = write_nifti(tmp_path / "a_mask.nii.gz", (phantom(1) > 150).astype(np.float32))
    np.testing.assert_array_equal(sandbox.read_mask(mask, scan), read_mask(mask, scan))


def test_errors_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("torn.nii").write_bytes(b"torn")
    for path in (Path("torn.nii"), Path("absent")):
        told = []
        for read in (sandbox.read, discovery.read):
            with pytest.raises(ReadError) as caught:
                read(path)
            told.append((type(caught.value), str(caught.value)))
        assert told[0] == told[1]


def test_many_threads_may_ask(tmp_path: Path) -> None:
    sources = [write_nifti(tmp_path / f"P-{i}.nii", phantom(i)) for i in range(12)]
    found: dict[int, Any] = {}

    def ask(i: int) -> None:
        found[i] = sandbox.read(sources[i])[0].voxels

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(12):
        np.testing.assert_array_equal(found[i], discovery.read(sources[i])[0].voxels)


@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.float32, np.int64, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    st.data(),
)
def test_arrays_come_back_as_they_were(array: Any, data: st.DataObject) -> None:
    view = array.transpose(data.draw(st.permutations(range(array.ndim))))
    view = view[tuple(slice(None, None, data.draw(st.sampled_from([1, -1, 2, -2]))) for _ in view.shape)]
    for given_ in (view, np.broadcast_to(view, (3, *view.shape))):
        (found,) = wire.unpacked(wire.packed([given_]), 2**20)
        np.testing.assert_array_equal(found, given_)
        assert (found.dtype, found.shape) == (given_.dtype, given_.shape)


# -- a child may be anybody's ----------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/evil",)


def held(content: bytes) -> int:
    memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(memory, content)
    return memory


def test_nothing_but_records_is_made_of_an_answer() -> None:
    for value in (Evil(), os.getcwd, CaseIndex, open, np.load, Sandbox):
        content = pickle.dumps(value, 5)
        head = struct.pack("<QQ", 1, len(content)).ljust(64, b"\0")
        with pytest.raises(wire.Malformed):
            wire.unpacked(held(head + content), 2**20)


@given(st.binary(max_size=300))
def test_whatever_a_child_answers_is_no_harm(content: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.unpacked(held(content), 2**20)
    whole = bytearray(os.pread(memory := wire.packed(("value", [1, "a", b"b"])), 2**16, 0))
    os.close(memory)
    whole[: len(content)] = bytes(a ^ b for a, b in zip(whole, content, strict=False))
    with suppress(wire.Malformed):
        wire.unpacked(held(bytes(whole)), 2**20)


# -- limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("abort", "SIGABRT"),
        ("killed", "too little memory"),
        pytest.param("spin", "2 s of the processor", marks=pytest.mark.slow),
        ("memory", "more memory than it may take"),
        ("odd", r"cannot be read \(RuntimeError\)"),
    ],
)
def test_the_end_of_a_process_is_an_error(toys: Sandbox, tmp_path: Path, what: str, reason: str) -> None:
    with pytest.raises(ReadError, match=reason) as caught:
        sandbox.read(toy(tmp_path, what))
    assert f"{what}.toy" in caught.value.where
    assert isinstance(caught.value, PoisonError) == (what not in ("memory", "odd"))
    (scan,) = sandbox.read(toy(tmp_path, "good"))  # and all goes on
    assert scan.voxels[7, 8, 9] == 8 * 9 * 10 - 1


def test_a_time_out_ends_the_work(toys: Sandbox, tmp_path: Path) -> None:
    sandbox.read(toy(tmp_path, "good"))
    (worker,) = toys._idle
    start = time.monotonic()
    with pytest.raises(PoisonError, match="longer"), sandbox.within(0.2):
        sandbox.read(toy(tmp_path, "sleep"))
    assert time.monotonic() - start < 5
    with pytest.raises(ProcessLookupError):
        os.kill(worker.number, 0)


def wait_for_the_end(process: int) -> None:
    """Of a worker, too, which is nobody's child here and goes a moment later."""
    for _ in range(600):
        if not Path(f"/proc/{process}").exists():
            return
        time.sleep(0.05)
    pytest.fail(f"process {process} is still there")


@pytest.mark.slow
def test_nothing_is_left_of_a_sandbox(toys: Sandbox, tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(PoisonError):
            sandbox.read(toy(tmp_path, "abort"))
        sandbox.read(toy(tmp_path, "good"))
        assert toys._nursery is not None
        nursery, worker = toys._nursery._process.pid, toys._idle[0].number
        toys.close()
        wait_for_the_end(nursery)
        wait_for_the_end(worker)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_nursery_that_was_killed_is_made_anew(toys: Sandbox, tmp_path: Path) -> None:
    sandbox.read(toy(tmp_path, "good"))
    assert toys._nursery is not None
    os.kill(toys._nursery._process.pid, signal.SIGKILL)
    toys._nursery._process.wait()
    wait_for_the_end(toys._idle[0].number)
    assert sandbox.read(toy(tmp_path, "good"))


def test_a_process_may_be_made_before_it_is_needed(toys: Sandbox, tmp_path: Path) -> None:
    sandbox.begin()
    nursery = toys._nursery
    assert nursery is not None
    sandbox.begin()
    assert sandbox.read(toy(tmp_path, "good"))
    assert toys._nursery is nursery, "one is enough"
    toys.close()
    sandbox.begin()  # nobody reads
    assert toys._nursery is not None
    began = toys._nursery._process
    toys.close()
    assert began.poll() is not None


def test_the_setting_does_without_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(pool.IN_PROCESS, "1")
    monkeypatch.setattr(pool, "_shared", None)
    monkeypatch.setattr(pool, "_Nursery", None)
    write_nifti(tmp_path / "a.nii", phantom(0))
    assert len(sandbox.read(tmp_path)) == 1


# -- a run goes on -----------------------------------------------------------------------------------------


def test_poison_is_tried_once_named_and_passed_over_until_it_changes(
    toys: Sandbox, tmp_path: Path, tiny: TinyEncoder
) -> None:
    root = tmp_path / "mri"
    for i in range(6):
        write_nifti(root / f"P-0{i}" / f"P-0{i}_t1.nii", phantom(i))
    poison = toy(root / "P-07", "abort", "P-07_t1")
    with CaseIndex.create(tmp_path / "index", tiny) as index:
        report = ingest(index, [root], tiny)
        assert (report.indexed, report.cases) == (6, 6)
        (failure,) = report.failed
        assert failure["source"] == str(poison)
        assert "SIGABRT" in failure["reason"]
        before = toys._nursery
        again = ingest(index, [root], tiny)
        assert (again.unchanged, toys._nursery) == (6, before)
        (failure,) = again.failed
        assert "SIGABRT" in failure["reason"]
        assert "passed over until it changes" in failure["reason"]
        poison.write_text("good")
        mended = ingest(index, [root], tiny)
        assert (mended.indexed, mended.failed) == (1, [])
        assert not (index.folder / "reading.jsonl").exists()


def bomb_frames() -> bytes:
    """692 bytes and so, which declare 2^28 frames."""
    return dicom(NumberOfFrames=2**28, Rows=2, Columns=1, PixelData=b"\0" * 64)


def bomb_jpeg_2000() -> bytes:
    """A codestream of 22,000 × 22,000 pixels in a few bytes."""
    side = 22_000
    size = struct.pack(">HHIIIIIIIIH", 0, side, side, 0, 0, side, side, 0, 0, 1, 0)[2:]
    siz = (
        b"\xff\x4f\xff\x51"
        + struct.pack(">HH", 41, 0)
        + struct.pack(">8IH", side, side, 0, 0, side, side, 0, 0, 1)
    )
    codestream = siz + bytes([15, 1, 1]) + size + b"\0" * 24_000 + b"\xff\xd9"
    return dicom(
        "1.2.840.10008.1.2.4.90",
        Rows=side,
        Columns=side,
        PixelData=encapsulate([codestream]),
        NumberOfFrames=1,
    )


def bomb_vr() -> bytes:
    """PatientID of a value representation that there is none."""
    return dicom().replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00\xff\x01")


def dicom(syntax: str = "1.2.840.10008.1.2.1", **tags: object) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = write_dicom(Path(name) / "s", phantom(0, shape=(24, 28, 1)))
        dataset = pydicom.dcmread(folder / "000")
    dataset.file_meta.TransferSyntaxUID = syntax
    for key, value in tags.items():
        setattr(dataset, key, value)
    stream = BytesIO()
    dataset["PixelData"].is_undefined_length = syntax != "1.2.840.10008.1.2.1"
    pydicom.dcmwrite(stream, dataset)
    return stream.getvalue()


def bomb_tiff() -> bytes:
    """100,000 pages of a few pixels."""
    n, content = 100_000, bytearray(b"II*\0" + struct.pack("<I", 8))
    tags = ((256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, 0), (278, 4), (279, 16))
    size = 2 + 12 * len(tags) + 4
    for i in range(n):
        after = 8 + (i + 1) * size if i + 1 < n else 0
        content += struct.pack("<H", len(tags))
        content += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        content += struct.pack("<I", after)
    return bytes(content)


def bomb_png() -> bytes:
    """13,000 × 13,000 pixels, and nothing in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 13_000, 13_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def bomb_nifti() -> bytes:
    """2 GiB of voxels, declared in a header."""
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_shape((800, 800, 800))
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return bytes(header.binaryblock) + b"\0" * 100


CRASHES = {
    "JPEG-LS": (
        "1.2.840.10008.1.2.4.80",
        "ffd8fff7000b140008000801011100fff8000d01ffff0012004301140040ffda0008010100000000ff7fc0ffd900",
    ),
    "JPEG lossless": (
        "1.2.840.10008.1.2.4.57",
        "ffd8ffc3000b100008000801011100ff00001500010100000000000000000000000000000010ffda0008010100010000"
        "80000000000000007fffd900",
    ),
}
"""Codestreams of 8 × 8 pixels, found by mutation, that end the process in which they are decoded."""


@pytest.mark.parametrize("kind", CRASHES)
def test_a_stream_that_crashes_its_decoder_is_one_failure(
    kind: str, tmp_path: Path, tiny: TinyEncoder
) -> None:
    syntax, codestream = CRASHES[kind]
    root = tmp_path / "mri"
    root.mkdir()
    content = dicom(syntax, Rows=8, Columns=8, PixelData=encapsulate([bytes.fromhex(codestream)]))
    (root / "C-1.dcm").write_bytes(content)
    write_nifti(root / "P-01" / "P-01_t1.nii", phantom(1))
    with pytest.raises(ReadError):
        sandbox.read(root / "C-1.dcm")
    with CaseIndex.create(tmp_path / "index", tiny) as index:
        report = ingest(index, [root], tiny)
    assert report.indexed == 1
    (failure,) = report.failed
    assert "C-1.dcm" in failure["source"]


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "frames": ("F-1.dcm", bomb_frames),
    "jpeg 2000": ("J-1.dcm", bomb_jpeg_2000),
    "pages": ("T-1.tif", bomb_tiff),
    "png": ("G-1.png", bomb_png),
    "nifti": ("N-1.nii", bomb_nifti),
    "representation": ("V-1.dcm", bomb_vr),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_one_failure_among_good_files(kind: str, tmp_path: Path, tiny: TinyEncoder) -> None:
    """And is refused by what it declares: in a tenth of the memory that would be allowed."""
    root, (name, build) = tmp_path / "mri", BOMBS[kind]
    for i in range(3):
        write_nifti(root / f"P-0{i}" / f"P-0{i}_t1.nii", phantom(i))
    (root / "bomb").mkdir()
    (root / "bomb" / name).write_bytes(build())
    limits = Limits(memory=600 * 2**20, seconds=60)
    with CaseIndex.create(tmp_path / "index", tiny) as index, pool.using(Sandbox(limits)):
        report = ingest(index, [root], tiny)
    assert report.indexed == 3
    if kind == "representation":
        assert len(report.failed) <= 1  # nothing of it is needed but who it is
    else:
        (failure,) = report.failed
        assert name in failure["source"]
        assert not any(word in failure["reason"] for word in ("memory", "processor", "process"))


# -- a run that ended ----------------------------------------------------------------------------------------


def test_what_a_dead_run_was_reading_is_read_alone_and_then_no_more(
    tmp_path: Path, tiny: TinyEncoder, cohort: Callable[..., Path]
) -> None:
    from indexer.journal import NAME

    root = cohort(8)
    asked: list[tuple[str, int]] = []

    class Killed(BaseException):
        pass

    class Deadly:
        """Dies, with its process, of one patient; as far as this process can tell."""

        ahead, groups = 4, 1

        def __init__(self) -> None:
            from indexer.ingest import Threads

            self.within = Threads(tiny)
            self.flying = 0

        def read(self, source: Any, preprocessing: Any) -> Any:
            asked.append((source.path.name, 0))
            if "P-05" in source.path.name:
                raise Killed
            return self.within.read(source, preprocessing)

        def embed(self, picks: Any) -> Any:
            return self.within.embed(picks)

    with CaseIndex.create(tmp_path / "index", tiny) as index:
        path = index.folder / NAME

        def run() -> Any:
            """A run that ends as if by SIGKILL: nobody tidies the journal."""
            saved: list[bytes] = []
            from indexer import journal

            close = journal.Journal.close

            def dead(self: Any) -> None:
                saved.append(path.read_bytes())
                close(self)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(journal.Journal, "close", dead)
                try:
                    return ingest(index, [root], tiny, workers=Deadly())
                except Killed:
                    path.write_bytes(saved[-1] + b'["beg')  # and the last line is torn
                    return None

        assert run() is None
        first = [name for name, _ in asked]
        assert first[-1] == "P-05_t1ce.nii.gz"
        asked.clear()
        assert run() is None  # those beside it are read, each alone; it ends this run, too
        assert "P-05_t1ce.nii.gz" in [name for name, _ in asked]
        asked.clear()
        report = run()
        assert report is not None
        assert "P-05_t1ce.nii.gz" not in [name for name, _ in asked]
        assert report.cases == 7
        (failure,) = report.failed
        assert "P-05" in failure["source"]
        assert "ended the run that read it; it is passed over until it changes" in failure["reason"]
        os.utime(root / "P-05" / "P-05_t1ce.nii.gz")
        whole = ingest(index, [root], tiny)
        assert (whole.indexed, whole.cases, whole.failed) == (1, 8, [])
        assert not path.exists()


def test_whoever_gives_up_in_order_leaves_no_suspects(
    tmp_path: Path, tiny: TinyEncoder, cohort: Callable[..., Path]
) -> None:
    class Stopped(BaseException):
        pass

    def stop(done: int, total: int, slices: int) -> None:
        raise Stopped

    root = cohort(40)
    with CaseIndex.create(tmp_path / "index", tiny) as index:
        with pytest.raises(Stopped):
            ingest(index, [root], tiny, progress=stop)
        assert not (index.folder / "reading.jsonl").exists()
        assert ingest(index, [root], tiny).cases == 40


def test_errors_cross_processes_with_their_kind() -> None:
    for error in (ReadError("a", "b", "c"), PoisonError("a", "b"), CbirError("a", "b")):
        kind, found = wire.unpacked(wire.packed(("error", error)), 2**20)
        assert (kind, type(found), str(found)) == ("error", type(error), str(error))
