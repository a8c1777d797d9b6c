"""Vectors in a collection on a Milvus server."""
