"""Stores by the scheme of their address.

An address is ``faiss`` for files in the folder of the index, or a scheme and what its engine makes of the
rest: ``milvus+http://host:19530``. Another engine is an entry point of the group ``cbir.stores``, called
like its scheme: a callable that takes an address and a :class:`~indexer.stores.protocol.Site` and returns a
:class:`~indexer.stores.protocol.Store`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

from indexer.errors import CaseIndexError
from indexer.stores.protocol import Site, Store

GROUP = "cbir.stores"
LOCAL = "faiss"
"""Address of a store that needs no server."""
STORES = {
    "faiss": "indexer.stores.faiss.store:FaissStore",
    "milvus": "indexer.stores.milvus.store:MilvusStore",
}
"""Those that come with cbir; one is loaded when it is asked for."""


def address(engine: str | None, uri: str | None) -> str | None:
    """The address of an engine by its name, and where it is.

    Raises
    ------
    CaseIndexError
        If the place is given without an engine.

    Examples
    --------
    >>> address("milvus", "http://host:19530")
    'milvus+http://host:19530'
    >>> address(None, "milvus+http://host:19530")
    'milvus+http://host:19530'
    """
    if not uri:
        return engine
    named = scheme(uri)
    if engine is None and named in ("http", "https"):  # as it was before there were others
        engine = "milvus"
    return uri if engine in (None, named) else f"{engine}+{uri}"


def scheme(address: str) -> str:
    """The name of the engine in an address."""
    found = re.match(r"[a-z][a-z0-9]*(?=\+|:|$)", address)
    return found[0] if found else ""


def store(address: str, site: Site) -> Store:
    """The store at an address.

    Raises
    ------
    CaseIndexError
        If no engine has this scheme, or the address is none.
    """
    name = scheme(address)
    if name in STORES:
        module, _, attribute = STORES[name].partition(":")
        make = cast(Callable[[str, Site], Store], getattr(import_module(module), attribute))
        return make(address, site)
    found = entry_points(group=GROUP)
    for point in found:
        if point.name == name:
            return cast(Callable[[str, Site], Store], point.load())(address, site)
    known = ", ".join(sorted({*STORES, *found.names}))
    raise CaseIndexError(address, "is the address of no engine that is installed", f"there are: {known}")
