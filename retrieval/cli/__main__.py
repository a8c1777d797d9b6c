"""``python -m retrieval.cli``."""

from retrieval.cli.app import main

main()
