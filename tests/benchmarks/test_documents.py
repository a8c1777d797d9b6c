from __future__ import annotations

import re

import pytest

from benchmarks import documents
from benchmarks.results import ROOT


def test_tables_and_help_in_the_documents_are_what_was_measured():
    assert documents.stale() == [], "run `make docs`"


def test_a_stale_block_is_noticed(monkeypatch):
    monkeypatch.setitem(documents.BLOCKS, "canary", lambda: "something else")
    assert "docs/evaluation.md" in documents.stale()


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/evaluation.md", "docs/scale.md"]
)
def test_links_in_the_documents_lead_somewhere(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_commands_in_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for verb in re.findall(r"^\$? ?cbir ([a-z]+)", text, re.MULTILINE):
        assert verb in documents.verbs(), verb
