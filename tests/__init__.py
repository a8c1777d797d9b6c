"""Tests run in a process of their own, as the command line does."""

from indexer.runtime import prepare

prepare()
