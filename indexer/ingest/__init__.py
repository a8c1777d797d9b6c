"""Fill a case index: discover, read, preprocess, embed, file. What ``cbir index`` runs.

Reading and preprocessing go on in threads while the network works; sources are committed in groups,
each whole, so that an interrupted run loses at most one group and a second run resumes.
"""

from indexer.ingest.report import IngestReport
from indexer.ingest.run import Options, ingest, ingest_sources, remove_sources
from indexer.ingest.survey import remembered_tables
from indexer.ingest.workers import Embedding, Pick, Threads, Workers, embed

__all__ = [
    "Embedding",
    "IngestReport",
    "Options",
    "Pick",
    "Threads",
    "Workers",
    "embed",
    "ingest",
    "ingest_sources",
    "remembered_tables",
    "remove_sources",
]
