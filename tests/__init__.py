"""Tests run in a process of their own, as the command line does."""

from contextlib import suppress

from indexer.runtime import prepare

prepare()
# some write images by SimpleITK, which breaks FAISS where it comes later (see indexer/registration.py)
with suppress(ModuleNotFoundError):
    import SimpleITK  # noqa: F401
