"""Vectors in files in the folder of the index, searched by FAISS."""
