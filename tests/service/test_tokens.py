"""Tokens: made once, kept as hashes, checked at every request."""

from __future__ import annotations

import hashlib
import json

import pytest

from indexer.errors import CbirError
from retrieval.service.tokens import Tokens, add_token


def test_a_token_is_found_by_its_secret_and_the_file_holds_only_its_hash(tmp_path):
    file = tmp_path / "tokens.jsonl"
    secret = add_token(file, "reading-room", "read")
    other = add_token(file, "pacs", "write")
    assert len(secret) >= 43  # 256 bits in base64
    assert secret not in file.read_text()
    assert other not in file.read_text()
    first = json.loads(file.read_text().splitlines()[0])
    assert first["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert file.stat().st_mode & 0o777 == 0o600
    tokens = Tokens.load(file)
    assert (tokens.find(secret).name, tokens.find(secret).role) == ("reading-room", "read")
    assert tokens.find(other).role == "write"
    for wrong in ("", secret[:-1], secret + "x", first["sha256"], "\udcff", secret.upper()):
        assert tokens.find(wrong) is None


def test_a_line_that_is_deleted_or_added_counts_at_once(tmp_path):
    file = tmp_path / "tokens.jsonl"
    first = add_token(file, "one", "read")
    tokens = Tokens.load(file)
    second = add_token(file, "two", "admin")
    assert tokens.find(second).role == "admin"
    file.write_text(file.read_text().splitlines()[1] + "\n")
    assert tokens.find(first) is None
    assert tokens.find(second) is not None


def test_without_its_file_nobody_is_let_in(tmp_path):
    file = tmp_path / "tokens.jsonl"
    secret = add_token(file, "one", "read")
    tokens = Tokens.load(file)
    file.unlink()
    with pytest.raises(CbirError, match="cbir token"):
        tokens.find(secret)
    with pytest.raises(CbirError, match="cbir token"):
        Tokens.load(file)


@pytest.mark.parametrize("name", ["", "a b", "Jörg", "x\ny", "-x", "a" * 65, "<b>"])
def test_names_are_plain(tmp_path, name):
    with pytest.raises(CbirError, match="no name"):
        add_token(tmp_path / "tokens.jsonl", name, "read")


def test_a_name_is_given_once_and_roles_are_three(tmp_path):
    file = tmp_path / "tokens.jsonl"
    add_token(file, "one", "read")
    with pytest.raises(CbirError, match="has a token for one"):
        add_token(file, "one", "write")
    with pytest.raises(CbirError, match="read, write or admin"):
        add_token(file, "two", "root")
    assert len(file.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    ["nonsense", "[]", '{"name": "x"}', '{"name":"x","role":"god","sha256":"%s","created":""}' % ("0" * 64)],
)
def test_a_damaged_file_is_refused_without_being_quoted(tmp_path, line):
    file = tmp_path / "tokens.jsonl"
    add_token(file, "one", "read")
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(CbirError, match="line 2 is no token") as caught:
        Tokens.load(file)
    assert "nonsense" not in str(caught.value)


def test_a_file_that_others_may_write_is_refused(tmp_path):
    file = tmp_path / "tokens.jsonl"
    add_token(file, "one", "read")
    file.chmod(0o666)
    with pytest.raises(CbirError, match="others may write"):
        Tokens.load(file)


def test_a_line_that_a_killed_process_has_torn_stops_nobody(tmp_path):
    file = tmp_path / "tokens.jsonl"
    first = add_token(file, "first", "read")
    whole = file.read_bytes()
    add_token(file, "second", "read")
    for cut in range(len(whole) + 1, file.stat().st_size - 1, 17):
        file.write_bytes(file.read_bytes()[:cut] if cut < file.stat().st_size else whole)
        assert Tokens.load(file).find(first).name == "first"
        third = add_token(file, "third", "write")
        assert Tokens.load(file).find(third).name == "third"
        assert len(file.read_text().splitlines()) == 2
        file.write_bytes(whole + b'{"name": "second", "role": "read", "sha256": "' + b"0" * 64 + b'"')
    file.write_bytes(whole.rstrip(b"\n"))  # by an editor
    add_token(file, "fourth", "read")
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == ["first", "fourth"]
