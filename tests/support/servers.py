"""A real Milvus and a real PostgreSQL on loopback, in folders of their own, to be killed and restarted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

PATIENCE = 120.0
"""Seconds after which a server that is waited for will not come."""


SESSION = 6
"""Seconds until a Milvus that was lost is known to be; 30 by default."""
PROGRAMS = ROOT / ".cache" / "milvus-2.3.5"
"""Where the programs of Milvus are unpacked, once: it takes ten seconds."""


def missing() -> list[str]:
    """What has to be installed before these can be started."""
    absent = []
    try:
        import milvus  # noqa: F401
        import pymilvus  # noqa: F401
    except ImportError:
        absent.append("milvus and pymilvus (PyPI)")
    try:
        import psycopg  # noqa: F401
    except ImportError:
        absent.append("psycopg (PyPI)")
    if _programs() is None:
        absent.append("postgresql (Debian)")
    return absent


def _programs() -> Path | None:
    """The folder of PostgreSQL's programs; Debian keeps them off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if found:
        return found[-1].parent
    program = shutil.which("postgres")
    return Path(program).resolve().parent if program else None


def _bound(port: int) -> socket.socket | None:
    """A socket that listens on a port, if it is free."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started() -> Iterator[tuple[Milvus, Postgres]]:
    """Both, in a temporary folder that PostgreSQL's user may enter; they are stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="cbir-servers-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("milvus", "postgres"):
            (folder / part).mkdir(mode=0o700)
        milvus, postgres = Milvus(folder / "milvus"), Postgres(folder / "postgres")
        try:
            postgres.start()
            milvus.start()
            yield milvus, postgres
        finally:
            milvus.stop()
            postgres.stop()


class Milvus:
    """A standalone Milvus, from the package ``milvus``, which holds the real server."""

    def __init__(self, folder: Path) -> None:
        PROGRAMS.mkdir(parents=True, exist_ok=True)
        (folder / "bin").symlink_to(PROGRAMS)
        from milvus import MilvusServer, MilvusServerConfig, _initialize_data_files

        with (PROGRAMS.parent / "milvus.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two at a time would write over a running program
            _initialize_data_files(str(folder))

        self._server = MilvusServer(MilvusServerConfig(proxy_port=_free_port()))
        self._server.config.try_bind_port = _bound  # its own takes a port that was just used for taken
        self._server.set_base_dir(str(folder))
        self.uri = f"http://127.0.0.1:{self._server.config.configs['proxy_port']}"

    @property
    def running(self) -> bool:
        return self._server.server_proc is not None

    def start(self) -> None:
        os.environ["COMMON_SESSION_TTL"] = str(SESSION)  # where the server looks before its settings
        self._server.start()

    def lose(self) -> None:
        """As a crash does. The next server waits until the sessions of the last run out."""
        process = self._server.server_proc
        assert process is not None
        process.kill()
        process.wait()
        self._server.stop()

    def stop(self) -> None:
        """An orderly end; its own patience of one second would end in a kill."""
        process = self._server.server_proc
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        self._server.stop()


class Postgres:
    """A PostgreSQL that trusts who can reach its port on loopback; root runs it as ``postgres``."""

    def __init__(self, folder: Path) -> None:
        programs = _programs()
        assert programs is not None
        self._programs, self._data, self._port = programs, folder / "data", _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:  # it refuses to run as root
            user = pwd.getpwnam("postgres")
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(folder, user.pw_uid, user.pw_gid)
        self.user = "cbir"
        self.url = f"postgresql+psycopg://{self.user}@127.0.0.1:{self._port}/postgres"
        self._run("initdb", "-D", self._data, "-U", self.user, "-A", "trust", "-E", "UTF8", "--no-sync")

    def _run(self, program: str, *arguments: object) -> None:
        subprocess.run(
            [self._programs / program, *map(str, arguments)],
            check=True,
            capture_output=True,
            cwd=self._data.parent,
            **self._as,
        )

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        settings = {"listen_addresses": "127.0.0.1", "port": self._port, "unix_socket_directories": ""}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._data.parent / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *options],
                stdout=log,
                stderr=log,
                cwd=self._data.parent,
                **self._as,
            )
        end = time.monotonic() + PATIENCE
        while not self._answers():
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError((self._data.parent / "log").read_text())
            time.sleep(0.05)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(host="127.0.0.1", port=self._port, user=self.user, dbname="postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Ends the sessions that are open (PostgreSQL's "fast" shutdown)."""
        self._end(signal.SIGINT)

    def lose(self) -> None:
        """As a crash does: no shutdown, its log is replayed at the next start."""
        self._end(signal.SIGQUIT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE)
            self._process = None
