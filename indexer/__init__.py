"""Build a case index: read scans, embed their slices, file the vectors, keep the catalog."""
