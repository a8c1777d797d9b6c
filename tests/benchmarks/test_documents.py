from __future__ import annotations

import re

import pytest

from benchmarks import documents
from benchmarks.results import ROOT


def test_tables_and_help_in_the_documents_are_what_was_measured():
    assert documents.stale() == [], "run `make docs`"


@pytest.mark.slow
def test_a_stale_block_is_noticed(monkeypatch):
    monkeypatch.setitem(documents.BLOCKS, "canary", lambda: "something else")
    assert "docs/evaluation.md" in documents.stale()


@pytest.mark.parametrize("name", [*documents.DOCUMENTS, "CONTRIBUTING.md", "pacs/README.md"])
def test_links_in_the_documents_lead_somewhere(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_a_new_verb_is_described(monkeypatch):
    def added():
        """What nobody wrote a document for."""

    monkeypatch.setattr(documents.app, "registered_commands", [*documents.app.registered_commands])
    documents.app.command()(added)
    assert documents.verbs()[-1] == "added"


def test_commands_in_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for verb in re.findall(r"^\$? ?cbir ([a-z]+)", text, re.MULTILINE):
        assert verb in documents.verbs(), verb
