"""The catalog's tables."""

from __future__ import annotations

import sqlalchemy as sa

FORMAT = 4
"""Of the tables below; earlier ones are migrated (:mod:`indexer.catalog.migrations`)."""

metadata = sa.MetaData()
Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite counts up in INTEGER only

# `revision` counts the committed changes, and `format` is that of the tables. What follows from the rest
# is kept so that nobody has to count: `cases`, `scans`, `slices`, `sources` and `patients` as they were at
# the revision `counted`; a state from before the revision `whole` cannot be brought up to date in parts.
meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)
sources = sa.Table(
    "sources",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("path", sa.String, nullable=False, unique=True),
    sa.Column("fingerprint", sa.String, nullable=False),
    sa.Column("record", sa.JSON, nullable=False),  # how to read it again
    sqlite_autoincrement=True,
)
# PostgreSQL's order of text is a language's: of what begins alike it says nothing
sa.Index("ix_sources_path_c", sources.c.path.collate("C")).ddl_if(dialect="postgresql")
cases = sa.Table(
    "cases",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("case_id", sa.String, nullable=False, unique=True),
    sa.Column("patient_id", sa.String, nullable=False, index=True),
    sa.Column("visit", sa.String),  # what it is called; null for a patient's only one, without a name
    sqlite_autoincrement=True,
)
scans = sa.Table(
    "scans",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("source", sa.ForeignKey("sources.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("case", sa.ForeignKey("cases.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("channel", sa.Integer, nullable=False),  # its number among the scans of its source
    sa.Column("sequence", sa.String, index=True),
    sa.Column("modality", sa.String),
    sa.Column("series_id", sa.String, nullable=False, index=True),
    sa.Column("shape", sa.JSON, nullable=False),
    sa.Column("spacing", sa.JSON),
    sa.Column("input_hash", sa.String, nullable=False, index=True),
    sa.Column("embedding_hash", sa.String, nullable=False),
    sqlite_autoincrement=True,
)
slices = sa.Table(
    "slices",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("scan", sa.ForeignKey("scans.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("view", sa.Integer, nullable=False),  # 0 the whole slice, 1 its outlined region
    sa.Column("weight", sa.Float, nullable=False),
    sa.Column("embedding", sa.LargeBinary, nullable=False),  # float32, little-endian
    # an id that was removed must never name another vector in a FAISS file
    sqlite_autoincrement=True,
)
labels = sa.Table(
    "labels",
    metadata,
    sa.Column("patient_id", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True, index=True),
    sa.Column("value", sa.String, nullable=False),
)
visit_labels = sa.Table(
    "visit_labels",
    metadata,
    sa.Column("case", sa.ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("name", sa.String, primary_key=True, index=True),
    sa.Column("value", sa.String, nullable=False),
)
# how far a scan is from what the encoder was trained on, where the encoder says
strangeness = sa.Table(
    "strangeness",
    metadata,
    sa.Column("scan", sa.ForeignKey("scans.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("value", sa.Float, nullable=False),
)
# what the lesion that a scan shows looks like (indexer/measures.py), where it was measured
measures = sa.Table(
    "measures",
    metadata,
    sa.Column("scan", sa.ForeignKey("scans.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("vector", sa.LargeBinary, nullable=False),  # float32, little-endian, the version first
)
# patients that the encoder's weights have seen: a figure on them would be in-sample
trained_on = sa.Table("trained_on", metadata, sa.Column("patient_id", sa.String, primary_key=True))
# what a reader has to look at again: scans that went, and patients of whom anything but a scan changed
removed = sa.Table(
    "removed",
    metadata,
    sa.Column("scan", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.Integer, nullable=False, index=True),
)
changed = sa.Table(
    "changed",
    metadata,
    sa.Column("patient_id", sa.String, primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False, index=True),
)
roots = sa.Table(
    "roots",
    metadata,
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("labels", sa.String, nullable=False),  # how it was indexed (JSON), by which tables at first
)
failures = sa.Table(
    "failures",
    metadata,
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("reason", sa.String, nullable=False),
)
history = sa.Table(
    "history",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("time", sa.String, nullable=False),
    sa.Column("command", sa.String, nullable=False),
    sa.Column("outcome", sa.JSON, nullable=False),
)
# checksums of what is in the others (indexer/catalog/digests.py)
digests = sa.Table(
    "digests",
    metadata,
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
)
