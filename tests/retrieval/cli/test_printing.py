"""What strangers wrote into labels, ids and names of files cannot steer a terminal."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.case_index import CaseIndex
from indexer.ingest import ingest
from indexer.labels import load_tables
from retrieval.cli import main
from retrieval.cli.app import app
from retrieval.cli.printing import printable, say, show, show_json, show_table
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_nifti
from tests.support.paths import ROOT

ESCAPE = "\x1b]0;owned\x07\x1b[2J"
HOSTILE = f"4{ESCAPE}\u202e\x9b31m"
TEXT = st.text(st.characters(codec=None))


def shows_only_text(printed: str) -> bool:
    """Whether it holds visible characters, and tabs and line ends as structure, alone."""
    steering = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return all(char in "\n\t" or unicodedata.category(char) not in steering for char in printed)


@given(TEXT)
def test_nothing_printable_is_changed_and_nothing_else_stays(text: str) -> None:
    shown = printable(text)
    assert shows_only_text(shown)
    assert not set("\n\t\r") & set(shown)
    if text.isprintable():
        assert shown == text


@given(st.dictionaries(TEXT, TEXT | st.lists(TEXT)))
def test_json_says_the_same_and_is_one_line(data: dict[str, object]) -> None:
    shown = printable(json.dumps(data, ensure_ascii=False))
    assert json.loads(shown) == json.loads(json.dumps(data))
    assert shows_only_text(shown)


def test_cells_cannot_make_columns_or_rows(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(["case", "grade"], [["a\tb", "4\n9\tc"]])
    assert capsys.readouterr().out == "case\tgrade\na\\u0009b\t4\\u000a9\\u0009c\n"


def test_a_table_on_a_terminal_obeys_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    show_table(["[red]"], [["[bold]x[/bold] :boom:\x1b[2J"]])
    assert "[bold]x[/bold] :boom:\\u001b[2J" in terminal.getvalue()
    assert "[red]" in terminal.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "utf-8"])
def test_a_terminal_that_knows_few_characters(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, write_through=True))
    show("4 – 𝄞 \udcff")
    show_json({"4 – 𝄞": "\udcff"})
    text, data = raw.getvalue().splitlines()
    assert text == "4 – 𝄞 \\udcff".encode(encoding, "backslashreplace")
    assert json.loads(data.decode(encoding)) == {"4 – 𝄞": "\udcff"}


def test_a_long_line_keeps_both_its_ends(capsys: pytest.CaptureFixture[str]) -> None:
    say("a" + "9" * 100_000 + "z")
    line = capsys.readouterr().err.strip()
    assert len(line) < 3000
    assert (line[0], line[-1]) == ("a", "z")


def test_nothing_is_printed_in_another_way() -> None:
    for path in (ROOT / "retrieval" / "cli").glob("*.py"):
        if path.name != "printing.py":
            called = {
                ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)
            }
            assert not called & {
                "print",
                "typer.echo",
                "typer.secho",
                "sys.stdout.write",
                "sys.stderr.write",
            }, path


# ---- every verb ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a broken one, tables and an index, with steering characters in all texts."""
    folder = tmp_path_factory.mktemp("hostile")
    root = folder / "mri"
    lines = ["participant_id,who_grade,site\n"]
    for i in range(4):
        name = f"P{i}"
        write_nifti(root / name / f"{name}_t1.nii.gz", phantom(i, 2 + i % 3))
        lines.append(f'{name},"{2 + i % 2}{HOSTILE}\nrow\tcell",site{HOSTILE}\n')
    (root / f"broken{ESCAPE}\n.nii.gz").write_bytes(b"no image")
    (folder / "labels.csv").write_text("".join(lines))
    with CaseIndex.create(folder / "index", TinyEncoder(), keep_ids=True) as index:
        report = ingest(index, [root], TinyEncoder(), labels=load_tables(folder / "labels.csv"))
    assert (report.cases, len(report.failed)) == (4, 1)
    return folder


@pytest.fixture
def cbir(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process, with ``{root}``, ``{scan}`` and the like filled in."""
    monkeypatch.setattr("indexer.case_index.load_encoder", lambda name: TinyEncoder())
    monkeypatch.setattr("indexer.encoder.load_encoder", lambda name: TinyEncoder())
    monkeypatch.setattr("retrieval.service.server.serve", lambda settings: None)
    monkeypatch.chdir(tmp_path)
    root = hostile / "mri"
    names = {"root": root, "scan": sorted(root.glob("P0*/*"))[0], "tmp": tmp_path, "h": HOSTILE}
    names |= {"index": hostile / "index", "labels": hostile / "labels.csv"}

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cbir", *(a.format(**names) for a in arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return (left.value.code, *capsys.readouterr())  # type: ignore[return-value]

    return run


ASKED = {
    "index": [
        ["{root}", "--index", "{tmp}/new", "--labels", "{labels}", "--keep-ids"],
        ["{root}", "--index", "{tmp}/new", "--labels", "{labels}", "--keep-ids", "--json"],
        ["{tmp}/none{h}"],
    ],
    "query": [
        ["{scan}", "--index", "{index}"],
        ["{scan}", "--index", "{index}", "--json", "--report", "{tmp}/out{h}.html"],
        ["{scan}", "--index", "{index}", "--where", "who_grade={h}"],
        ["{scan}", "--index", "{index}", "--exclude-patient", "{h}"],
        ["{scan}", "--index", "{index}", "--region", "{h}"],
        ["--index", "{index}", "--like", "{h}"],
    ],
    "eval": [
        ["--index", "{index}", "--bootstrap", "0"],
        ["--index", "{index}", "--label", "{h}"],
        ["-k", "{h}"],
    ],
    "info": [["--index", "{index}", "--cases", "--failures", *more] for more in ([], ["--json"], ["-v"])],
    "verify": [["--index", "{index}"], ["--index", "{tmp}/{h}"]],
    "remove": [["--index", "{index}", "--patient", "{h}"], ["--index", "{index}", "{h}"]],
    "compact": [["--index", "{index}"], ["--index", "{h}"]],
    "copy": [["{index}", "{tmp}/{h}"], ["{h}", "{tmp}/{h}"], ["{index}", "{tmp}", "--engine", "{h}"]],
    "train": [["{root}", "--label", "{h}", "--out", "{tmp}/w.safetensors", "--labels", "{labels}"]],
    "demo": [["{tmp}/{h}", "--patients", "3"], ["{tmp}/{h}", "--patients", "{h}"]],
    "serve": [["--index", "{h}", "--port", "{h}"], ["--index", "{h}", "--{h}"]],
    "token": [["{h}", "--tokens", "{tmp}/{h}"], ["{h}", "--tokens", "{tmp}/t", "--role", "{h}"]],
}


def verbs() -> set[str]:
    return {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]


def test_every_verb_is_asked() -> None:
    assert ASKED.keys() == verbs()


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [(verb, arguments) for verb, asked in ASKED.items() for arguments in asked],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_verb_lets_them_steer(
    cbir: Callable[..., tuple[int, str, str]], verb: str, arguments: list[str]
) -> None:
    code, out, err = cbir(verb, *arguments)
    assert shows_only_text(out + err)
    assert "Traceback" not in err
    if "--json" in arguments and out:
        assert len(out.splitlines()) == 1
        json.loads(out)
    if code:
        assert out == "" or code == 1
        assert len([line for line in err.splitlines() if not re.match(r"not indexed|note|\d{4}-", line)]) <= 1


def test_a_label_makes_no_row_of_its_own(cbir: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = cbir("query", "{scan}", "--index", "{index}", "-k", "3")
    assert code == 0, err
    header, *rows = out.splitlines()
    assert [row.split("\t")[0] for row in rows[:3]] == ["1", "2", "3"]
    assert {len(row.split("\t")) for row in rows[:3]} == {len(header.split("\t"))}


LONG = "x" * 300
DIGITS = "9" * 5000
UNBEARABLE = {
    "index": [[LONG], ["{root}", "--index", LONG], ["{root}", "--index", "{tmp}/i", "--labels", LONG]],
    "query": [
        [LONG],
        ["{scan}", "--index", LONG],
        ["{scan}", "--index", "{index}", "-k", DIGITS],
        ["{scan}", "--index", "{index}", "-k", DIGITS[:4000]],
        ["{scan}", "--index", "{index}", "--region", f"0,0,{DIGITS},{DIGITS}"],
        ["{scan}", "--index", "{index}", "--region", f"0,0,9,9@{DIGITS[:4000]}"],
        ["{scan}", "--index", "{index}", "--mask", LONG],
        ["{scan}", "--index", "{index}", "--report", LONG],
    ],
    "eval": [
        ["--index", LONG],
        ["--index", "{index}", "-k", DIGITS],
        ["--index", "{index}", "-k", DIGITS[:4000]],
        ["--index", "{index}", "--bootstrap", DIGITS[:4000]],
        ["--index", "{index}", "--plot", f"{LONG}.png"],
    ],
    "info": [["--index", LONG]],
    "verify": [["--index", LONG]],
    "remove": [["--index", LONG, "c"]],
    "compact": [["--index", LONG]],
    "copy": [[LONG, "{tmp}/to"], ["{index}", LONG]],
    "train": [
        [LONG, "--label", "who_grade", "--out", "w"],
        ["{root}", "--labels", LONG, "--label", "who_grade", "--out", "w"],
        ["{root}", "--labels", "{labels}", "--label", "who_grade", "--out", f"{LONG}.safetensors"],
        ["{root}", "--labels", "{labels}", "--label", "who_grade", "--out", "w", "--seed", DIGITS[:4000]],
        ["{root}", "--labels", "{labels}", "--label", "who_grade", "--out", "w", "--epochs", DIGITS[:4000]],
    ],
    "demo": [[LONG], ["d", "--patients", DIGITS[:4000]], ["d", "--seed", DIGITS[:4000]]],
    "serve": [["--port", DIGITS], ["--workers", DIGITS[:4000]]],
    "token": [[LONG, "--tokens", LONG], ["name", "--tokens", LONG]],
}


def test_every_verb_is_asked_what_nobody_can_do() -> None:
    assert UNBEARABLE.keys() == verbs()


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [(verb, arguments) for verb, asked in UNBEARABLE.items() for arguments in asked],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_nobody_can_do_ends_in_one_line(
    cbir: Callable[..., tuple[int, str, str]], verb: str, arguments: list[str]
) -> None:
    code, out, err = cbir(verb, *arguments)
    assert code in (1, 2), err
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("cbir")


INTERRUPTED = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name.startswith({when!r}):
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = {argv}
from retrieval.cli import main
sys.meta_path.insert(0, Interrupting())
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["typer", "retrieval.cli.app", "numpy"])
@pytest.mark.parametrize("verb", sorted(ASKED))
def test_ctrl_c_ends_every_verb_in_one_line(verb: str, when: str, hostile: Path, tmp_path: Path) -> None:
    """While it starts, and when it begins its work."""
    root = hostile / "mri"
    arguments = {
        "index": [root, "--index", tmp_path / "new"],
        "query": [next(root.glob("P0*/*"))],
        "remove": ["c"],
        "copy": [hostile / "index", tmp_path / "to"],
        "train": [root, "--labels", hostile / "labels.csv", "--label", "who_grade", "--out", tmp_path / "w"],
        "demo": [tmp_path / "demo"],
        "token": ["name", "--tokens", tmp_path / "tokens"],
    }.get(verb, [])
    if verb == "token" and when == "numpy":
        when = "retrieval.service"  # it needs little
    code = INTERRUPTED.format(when=when, argv=["cbir", verb, *map(str, arguments)])
    environment = os.environ | {"CBIR_INDEX": str(hostile / "index")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 130
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("cbir: stopped")
