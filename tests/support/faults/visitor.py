"""Somebody who comes to a service as soon as it listens: asks, files a scan, and has it stop."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import ClassVar

import httpx

from retrieval.service.server import _Server


class Visited(_Server):
    """A server with one visitor, who prints what was promised: ``answered``, and how the job of which name
    ended."""

    scan: ClassVar[Path]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            port = sockets[0].getsockname()[1]
            threading.Thread(target=self._visit, args=(port,), daemon=True).start()

    def _visit(self, port: int) -> None:
        sent = {"file": (self.scan.name, self.scan.read_bytes())}
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
                if client.post("/query", files=sent).is_success:
                    print("answered", flush=True)
                accepted = client.post("/index", files=sent)
                while accepted.is_success:
                    job = client.get(f"/jobs/{accepted.json()['job']}").raise_for_status().json()
                    if job["ended"]:
                        print(job["state"], job["job"], flush=True)
                        break
                    time.sleep(0.02)
        except httpx.HTTPError:  # it was stopped
            pass
        finally:
            self.should_exit = True
