"""The command line."""

from retrieval.cli.app import main

__all__ = ["main"]
