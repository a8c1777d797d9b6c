"""Options that several verbs share, and what is checked about them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from indexer.errors import CbirError, QueryError

IndexOption = Annotated[
    Path,
    typer.Option("--index", envvar="CBIR_INDEX", metavar="DIR", help="The index folder.", show_default=True),
]
EngineOption = Annotated[
    str | None,
    typer.Option(metavar="faiss|milvus", help="What holds the vectors of a new index.", show_default="faiss"),
]
UriOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The Milvus server; its token is read from CBIR_MILVUS_TOKEN."),
]
CatalogOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="A PostgreSQL database for the catalog of a new index, without password.",
        show_default="a file in the folder",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="LABEL=VALUE", help="Only cases with this label; repeatable."),
]
MOST = 2**31 - 1
"""Of anything that is counted."""
DEFAULT_INDEX = Path("cbir-index")


def engines(engine: str | None, uri: str | None, catalog: str | None) -> dict[str, str | None]:
    """What was said about where an index lies: in which store, and in which catalog."""
    from indexer.stores import address

    return {"store": address(engine, uri), "catalog": catalog}


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Packages that only some need."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("indexer", "retrieval"):
            raise
        # with this very Python: where cbir is not installed, pip would look for somebody else's
        remedy = f"install what this needs: {sys.executable} -m pip install 'cbir[{name}]'"
        raise CbirError(error.name, "is not installed", remedy) from None


@contextmanager
def usage(option: str) -> Iterator[None]:
    """A value that cannot be understood is wrong usage."""
    try:
        yield
    except QueryError as error:
        raise typer.BadParameter(error.explanation, param_hint=option) from None
