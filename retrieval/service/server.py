"""The server that runs the service."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
import socket
import sys
from contextlib import suppress
from typing import cast

import uvicorn

from indexer import sandbox
from indexer.encoder import Encoder
from indexer.errors import CbirError
from retrieval.answer import NOTICE
from retrieval.service.app import create_app
from retrieval.service.connections import Connection, Connections
from retrieval.service.core import Service
from retrieval.service.settings import Settings
from retrieval.service.tokens import Tokens


def serve(settings: Settings, encoder: Encoder | None = None) -> None:
    """Run the service until it is told to stop (SIGINT, SIGTERM).

    Raises
    ------
    CbirError
        If it cannot start.
    """
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise CbirError(where, f"cannot listen there ({error.strerror})", "choose another --port") from error
    # it logs addresses, which hold the ids of the PACS's resources
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with listener:
        if settings.tokens is not None:
            Tokens.load(settings.tokens)  # before an index is made
        sandbox.begin()
        service = Service(settings, encoder)  # here, because uvicorn would tell a traceback
        refusals = service.audit.refusals
        connections = Connections(
            settings.trusted, lambda status, at: refusals.record("", status, address=at)
        )
        served = functools.partial(Connection, connections=connections)
        config = uvicorn.Config(
            create_app(settings, service=service),
            log_config=None,
            access_log=False,  # addresses hold case ids
            server_header=False,
            ws="none",
            proxy_headers=False,  # the guard reads them, if the proxy is named
            http=cast(type[asyncio.Protocol], served),
            timeout_graceful_shutdown=30,
        )
        # uvicorn raises the signal again when it has shut down; being stopped is no failure
        signal.signal(signal.SIGTERM, lambda *_: None)
        with suppress(KeyboardInterrupt):
            _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"cbir: serving on http://{shown}:{port} ({NOTICE})", file=sys.stderr, flush=True)
