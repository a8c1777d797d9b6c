"""``cbir serve`` and ``cbir token``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retrieval.cli.options import DEFAULT_INDEX, MOST, IndexOption, JsonOption, extra
from retrieval.cli.printing import say, show, show_json


def serve(
    index: IndexOption = DEFAULT_INDEX,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0 takes a free one.")] = 8043,
    tokens: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Tokens made by `cbir token`; needed beyond this machine."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Name by which a proxy in front is called; repeatable."),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="A proxy that says where requests come from; repeatable."),
    ] = None,
    pacs: Annotated[
        str | None, typer.Option(metavar="URL", help="An Orthanc to follow, such as http://127.0.0.1:8042.")
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Series to take from the PACS; repeatable.", show_default="MR"),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the audit trail; else `audit` in the index folder."),
    ] = None,
    max_upload: Annotated[int, typer.Option(metavar="MIB", min=1, max=MOST, help="Largest request.")] = 512,
    max_unpacked: Annotated[
        int, typer.Option(metavar="MIB", min=1, max=MOST, help="Largest archive, unpacked.")
    ] = 4096,
    workers: Annotated[int, typer.Option(min=1, max=MOST, help="Queries that run at a time.")] = 2,
    queue: Annotated[int, typer.Option(min=0, max=MOST, help="Queries that wait at most.")] = 32,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, max=MOST, help="For an upload, a query.")
    ] = 120,
) -> None:
    """Answer over HTTP, with a viewer in the browser.

    Example: `cbir serve --port 8043`
    """
    with extra("serve"):
        from retrieval.service.server import serve as run
    from retrieval.service.settings import Settings

    run(
        Settings(
            index=index.absolute(),
            host=host,
            port=port,
            tokens=tokens,
            pacs=pacs,
            modalities=tuple(modality or ("MR",)),
            audit=audit,
            names=tuple(name or ()),
            proxies=tuple(proxy or ()),
            max_upload=max_upload * 2**20,
            max_unpacked=max_unpacked * 2**20,
            workers=workers,
            queue=queue,
            timeout=timeout,
        )
    )


def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will hold it.")],
    tokens: Annotated[Path, typer.Option(metavar="FILE", help="The token file; made if it is missing.")],
    role: Annotated[str, typer.Option(metavar="read|write|admin", help="What it allows.")] = "read",
    as_json: JsonOption = False,
) -> None:
    """Make a token for `cbir serve`: it is printed once, the file keeps its hash.

    Example: `cbir token reading-room --role read --tokens tokens.jsonl`
    """
    from retrieval.service.tokens import add_token

    secret = add_token(tokens, name, role)
    if as_json:
        show_json({"schema": 1, "name": name, "role": role, "token": secret})
    else:
        show(secret)
        say(f"the token of {name} ({role}); it cannot be shown again")
