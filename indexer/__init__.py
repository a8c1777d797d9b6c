"""Build a case index: read scans, embed their slices, file the vectors, keep the catalog."""

from indexer.runtime import prepare

# before any module of the package imports torch or faiss, each of which brings an OpenMP of its own
prepare()
