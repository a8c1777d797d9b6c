"""Faults tried on commands, thousands at a time: see ``python -m tests.support.faults --help``."""
