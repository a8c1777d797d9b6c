"""Uploads: unpacked below one folder, within limits, or refused."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval.service import uploads
from retrieval.service.settings import Settings
from retrieval.service.uploads import TooLarge, Unreadable, unpack

LIMITS = Settings(Path("index"), max_files=50, max_unpacked=10 * 2**20)


def archive(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> io.BytesIO:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    return inner


def test_an_archive_keeps_its_folders_and_leaves_archives_in_it_alone(folder):
    nested = archive(("deep.nii", b"x")).getvalue()
    packed = archive(
        ("a/b/t1.nii", b"one"), ("a\\c\\t2.nii", b"two"), ("a/more.zip", nested), ("empty/", b"")
    )
    unpack(packed, "x.zip", folder, LIMITS)
    assert files(folder) == {"a/b/t1.nii": b"one", "a/c/t2.nii": b"two"}


@pytest.mark.parametrize(
    "name",
    [
        "/etc/x",
        "../x",
        "a/../../x",
        "..\\x",
        "\\x",
        "C:\\x",
        "c:x",
        "a/..",
        "a\x00b",
        "a\nb",
        "x" * 256,
        "/".join("a" * 40),
    ],
)
def test_names_that_lead_elsewhere_are_refused(folder, name):
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    with pytest.raises(Unreadable, match=r"leads elsewhere|damaged"):
        unpack(archive((info, b"x"), ("ok.nii", b"y")), "x.zip", folder, LIMITS)
    assert not files(folder)
    assert not files(folder.parents[1])


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(st.sampled_from("a./\\:C\x01é "), max_size=12), max_size=4))
def test_no_name_writes_outside_the_folder(tmp_path_factory, names):
    outer = tmp_path_factory.mktemp("outer")
    (inner := outer / "inner").mkdir()
    members = []
    for name in names:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        members.append((info, b"x"))
    with contextlib.suppress(Unreadable, TooLarge):
        unpack(archive(*members), "x.zip", inner, LIMITS)
    assert {path.parts[0] for path in (p.relative_to(outer) for p in outer.rglob("*"))} <= {"inner"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(folder, kind):
    info = zipfile.ZipInfo("scan.nii")
    info.external_attr = (kind | 0o777) << 16
    with pytest.raises(Unreadable, match="link or a device"):
        unpack(archive((info, b"/etc/passwd")), "x.zip", folder, LIMITS)
    assert not files(folder)


def test_two_files_of_one_name_are_refused(folder):
    with pytest.warns(UserWarning, match="Duplicate name"):
        packed = archive(("a.nii", b"1"), ("a.nii", b"2"))
    with pytest.raises(Unreadable, match="one name"):
        unpack(packed, "x.zip", folder, LIMITS)


def test_a_file_where_a_folder_is_needed_is_refused(folder):
    with pytest.raises(Unreadable, match="one name"):
        unpack(archive(("a", b"1"), ("a/b", b"2")), "x.zip", folder, LIMITS)


def test_too_many_files_are_refused(folder):
    with pytest.raises(TooLarge, match="51 files"):
        unpack(archive(*((f"{n}.nii", b"") for n in range(51))), "x.zip", folder, LIMITS)
    unpack(archive(*((f"{n}.nii", b"") for n in range(50))), "x.zip", folder, LIMITS)


def test_too_many_bytes_are_refused_before_one_is_written(folder):
    with pytest.raises(TooLarge, match="when unpacked"):
        unpack(archive(("a.nii", bytes(6 * 2**20)), ("b.nii", bytes(6 * 2**20))), "x.zip", folder, LIMITS)
    assert not files(folder)


def test_a_bomb_is_refused_by_its_ratio(folder, monkeypatch):
    monkeypatch.setattr(uploads, "SMALL", 2**20)
    with pytest.raises(TooLarge):
        unpack(archive(("a.nii", bytes(2**23))), "x.zip", folder, LIMITS)
    assert not files(folder)


def test_an_archive_that_understates_its_sizes_gets_no_further_than_they(folder):
    """The true content is 20 MiB, the headers say 1000 bytes: nothing beyond them reaches the disk."""
    data = bytes(20 * 2**20)
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packed.compress(data) + packed.flush()
    name = b"scan.nii"
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, zlib.crc32(data), len(body), 1000, len(name), 0)
    local = b"PK\x03\x04" + fields + name + body
    central = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    with pytest.raises(Unreadable, match="damaged"):
        unpack(io.BytesIO(local + central + end), "x.zip", folder, LIMITS)
    assert sum(map(len, files(folder).values())) <= 1000


def test_members_that_share_their_bytes_count_each(folder):
    """Overlapping files (Fifield's bomb): one body, declared by forty names."""
    body = zlib.compress(bytes(2**20), 9)[2:-4]
    local = b"PK\x03\x04" + struct.pack(
        "<HHHHHIIIHH", 20, 0, 8, 0, 33, zlib.crc32(bytes(2**20)), len(body), 2**20, 1, 0
    )
    local += b"a" + body
    central = b"".join(
        b"PK\x01\x02"
        + struct.pack(
            "<HHHHHHIIIHHHHHII",
            20,
            20,
            0,
            8,
            0,
            33,
            zlib.crc32(bytes(2**20)),
            len(body),
            2**20,
            1,
            0,
            0,
            0,
            0,
            0,
            0,
        )
        + b"a"
        for _ in range(40)
    )
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 40, 40, len(central), len(local), 0)
    with pytest.raises(TooLarge):
        unpack(io.BytesIO(local + central + end), "x.zip", folder, LIMITS)


def test_a_directory_of_millions_is_not_read(folder):
    limits = replace(LIMITS, max_files=50)
    central = (b"PK\x01\x02" + bytes(42)) * 100_000
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, len(central), 0, 0)
    with pytest.raises(TooLarge, match="directory"):
        unpack(io.BytesIO(b"PK\x03\x04" + bytes(26) + central + end), "x.zip", folder, limits)


def test_encrypted_and_unusually_packed_archives_are_refused(folder):
    with pytest.raises(Unreadable, match="unusual method"):
        unpack(archive(("a.nii", b"x" * 99), method=zipfile.ZIP_BZIP2), "x.zip", folder, LIMITS)
    packed = archive(("a.nii", b"x")).getvalue()
    at = packed.index(b"PK\x01\x02") + 8
    locked = packed[:at] + bytes([packed[at] | 1]) + packed[at + 1 :]
    with pytest.raises(Unreadable, match="encrypted"):
        unpack(io.BytesIO(locked), "x.zip", folder, LIMITS)


@pytest.mark.parametrize("cut", [5, 30, 60, 100])
def test_a_damaged_archive_is_refused(folder, cut):
    packed = archive(("scan.nii", b"0123456789" * 50)).getvalue()
    with pytest.raises(Unreadable, match="damaged"):
        unpack(io.BytesIO(packed[:-cut]), "x.zip", folder, LIMITS)


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("scan_t1.nii.gz", b"\x1f\x8b", "scan_t1.nii.gz"),
        ("blob", b"\x1f\x8b", "blob.nii.gz"),
        ("blob", b"\x5c\x01\0\0", "blob.nii"),
        ("blob", b"\x89PNG\r\n\x1a\n", "blob.png"),
        ("", b"\xff\xd8\xff", "scan.jpg"),
        ("../../etc/passwd", b"x", "passwd"),
        ("C:\\Users\\x\\t1.nii", b"x", "t1.nii"),
        ("..", b"x", "scan"),
        (".hidden", b"x", "hidden"),
        ("a\x00b/c\nd.nii", b"x", "c_d.nii"),
        ("n" * 300 + ".nii", b"x", "n" * 124 + ".nii"),
    ],
)
def test_a_single_file_keeps_its_name_as_far_as_it_is_one(folder, name, head, expected):
    unpack(io.BytesIO(head + b"rest"), name, folder, LIMITS)
    assert files(folder) == {expected: head + b"rest"}


@pytest.mark.parametrize(
    "name", ["\u00e4" * 300 + "_t1.nii", "\U0001f9e0" * 128 + ".nii.gz", "x" * 5000, "\udcff.nii"]
)
def test_a_name_longer_than_a_file_may_have_is_cut(folder, name):
    unpack(io.BytesIO(b"content"), name, folder, LIMITS)
    ((kept, content),) = files(folder).items()
    assert (content, len(os.fsencode(kept)) <= 255) == (b"content", True)
    assert kept.endswith((".nii", ".nii.gz")) == (".nii" in name)
    assert "_t1" not in name or "_t1" in kept, "the end says what it is"


def test_an_archive_of_many_deep_folders_is_refused(folder):
    deep = archive(*((f"{n}/" + "/".join("abcdefgh") + "/x.nii", b"") for n in range(20)))
    with pytest.raises(TooLarge, match="too many folders"):
        unpack(deep, "x.zip", folder, LIMITS)
    assert list(folder.iterdir()) == []
