"""``python -m retrieval.cli``."""

from retrieval.cli import command

command()
