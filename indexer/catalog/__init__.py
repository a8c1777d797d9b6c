"""The catalog: cases, scans, slices with their embeddings, labels, failures and history, in SQL.

The catalog is the truth of an index; the vectors are a cache made from it. Each public method
that writes is one transaction, so a crash leaves the last whole one. It is an SQLite file in the
index folder, or a schema of its own in a PostgreSQL database.

What one change costs does not depend on how much there is: what can be counted is kept, and a reader who
holds an earlier state reads only what has come and gone since (:meth:`Catalog.contents`).
"""

from indexer.catalog.catalog import Catalog
from indexer.catalog.contents import Contents
from indexer.catalog.records import EmbeddedScan, Entry, FiledCase, FiledScan

__all__ = ["Catalog", "Contents", "EmbeddedScan", "Entry", "FiledCase", "FiledScan"]
