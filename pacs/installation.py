"""A real Orthanc with the plugin, and the service that follows it, as processes on loopback."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from cbir import CbirError

HERE = Path(__file__).parent / "orthanc"
PLUGINS = Path("/usr/share/orthanc/plugins")
CBIR = (sys.executable, "-m", "retrieval.cli")
"""The command line of this very installation."""
SCANNER, ORTHANC = "SCANNER", "ORTHANC"
PATIENCE = 90.0
"""Seconds after which what is waited for will not come."""


def missing() -> list[str]:
    """Debian packages that are needed and not installed."""
    programs = {"orthanc": "Orthanc", "dcmtk": "storescu"}
    libraries = {"orthanc-python": "libOrthancPython.so", "orthanc-dicomweb": "libOrthancDicomWeb.so"}
    absent = [package for package, program in programs.items() if _program(program) is None]
    return absent + [package for package, library in libraries.items() if not (PLUGINS / library).exists()]


def until(what: str, happened: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Ask again and again until there is an answer that is true.

    Raises
    ------
    CbirError
        If there is none in `patience` seconds.
    """
    end = time.monotonic() + patience
    while not (answer := happened()):
        if time.monotonic() > end:
            raise CbirError(what, f"did not come about in {patience:.0f} s")
        time.sleep(0.05)
    return answer


class Installation:
    """Both servers, their ports and their data below one folder. A context manager: leaving it stops them.

    Parameters
    ----------
    folder : Path
        For Orthanc's data, logs and configuration, the tokens, and the index where `index` names no other.
    index : Path, optional
    logs : Path, optional
        Folder for what the servers print, where it is to outlive the others.
    stable_age : int
        Seconds without a new image after which Orthanc calls a series stable.
    http, dicom, service : int
        Ports that are taken if they are free.

    Raises
    ------
    CbirError
        If Debian packages are missing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        index: Path | None = None,
        logs: Path | None = None,
        stable_age: int = 1,
        http: int = 0,
        dicom: int = 0,
        service: int = 0,
    ) -> None:
        if absent := missing():
            raise CbirError("Orthanc", "is not installed", f"apt-get install {' '.join(absent)}")
        self.folder, self.index, self._logs = folder, index or folder / "index", logs or folder
        self.http_port, self.dicom_port, self.service_port = (
            free_port(http),
            free_port(dicom),
            free_port(service),
        )
        self.orthanc_url = f"http://127.0.0.1:{self.http_port}"
        self.service_url = f"http://127.0.0.1:{self.service_port}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "orthanc").mkdir(parents=True, exist_ok=True)
        self.tokens = folder / "tokens"
        self.tokens.unlink(missing_ok=True)
        self.token = self._new_token("orthanc", "write")
        self.config = folder / "orthanc.json"
        self.configure(stable_age)

    def _new_token(self, name: str, role: str) -> str:
        made = subprocess.run(
            [*CBIR, "token", name, "--role", role, "--tokens", str(self.tokens)],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            raise CbirError(self.tokens, f"no token can be made ({made.stderr.strip()})")
        return made.stdout.strip()

    def configure(self, stable_age: int) -> None:
        """Write the configuration of the documents with the places and ports of this installation.

        Orthanc reads it when it starts.
        """
        data = str(self.folder / "orthanc")
        configuration: dict[str, Any] = json.loads((HERE / "orthanc.json").read_text())
        configuration |= {
            "StorageDirectory": data,
            "IndexDirectory": data,
            "PythonScript": str(HERE / "cbir_plugin.py"),
            "Cbir": {"Url": self.service_url},
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "StableAge": stable_age,
        }
        self.config.write_text(json.dumps(configuration, indent=2))

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.terminate()  # all of them before any is waited for
        for name in list(self._processes):
            self.stop(name)

    # ---- the servers ---------------------------------------------------------------------------

    def start_orthanc(self) -> None:
        """Start Orthanc and wait until it answers."""
        program = _program("Orthanc")
        assert program is not None
        # without TCP_NODELAY, each image waits for the network's delayed acknowledgement
        environment = {**os.environ, "TCP_NODELAY": "1", "CBIR_TOKEN": self.token}
        self._start("orthanc", [program, str(self.config)], environment)
        self._wait("orthanc", f"{self.orthanc_url}/system")

    def start_service(self) -> None:
        """Start the service and wait until it answers."""
        command = [*CBIR, "serve", "--index", str(self.index), "--proxy", "127.0.0.1"]
        command += [
            "--port",
            str(self.service_port),
            "--tokens",
            str(self.tokens),
            "--pacs",
            self.orthanc_url,
        ]
        self._start("service", command, dict(os.environ))
        self._wait("service", f"{self.service_url}/health")

    def stop(self, name: str) -> None:
        """Stop ``orthanc`` or ``service`` and wait until it has ended."""
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self, name: str) -> None:
        """End ``orthanc`` or ``service`` without a warning."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def log_file(self, name: str) -> Path:
        """Where what ``orthanc`` or ``service`` prints is written to."""
        return self._logs / f"{name}.log"

    def log(self, name: str) -> str:
        """What ``orthanc`` or ``service`` has printed."""
        return self.log_file(name).read_text("utf-8", "replace")

    def ended(self) -> str | None:
        """Name of a server that has ended by itself."""
        return next((name for name, p in self._processes.items() if p.poll() is not None), None)

    def _start(self, name: str, command: Sequence[str], environment: dict[str, str]) -> None:
        with self.log_file(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours alone
                preexec_fn=_end_with_parent,
            )

    def _wait(self, name: str, url: str) -> None:
        def answers() -> bool:
            if self._processes[name].poll() is not None:
                raise CbirError(name, "ended at once", f"see {self.log_file(name)}")
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(url, trust_env=False).is_success
            return False

        until(f"{name} answering", answers)

    # ---- what one does with them ---------------------------------------------------------------

    def send(self, files: Sequence[Path]) -> None:
        """Send images as a scanner does, by C-STORE.

        Raises
        ------
        CbirError
            If one is refused.
        """
        program = _program("storescu")
        assert program is not None
        command = [program, "-aet", SCANNER, "-aec", ORTHANC, "127.0.0.1", str(self.dicom_port)]
        sent = subprocess.run(
            [*command, *map(str, files)],
            env={**os.environ, "TCP_NODELAY": "1"},
            capture_output=True,
            text=True,
        )
        if sent.returncode:
            raise CbirError("C-STORE", f"was refused ({sent.stderr.strip().splitlines()[-1:]})")

    @contextmanager
    def asking_orthanc(self) -> Iterator[httpx.Client]:
        """A client of Orthanc."""
        with httpx.Client(base_url=self.orthanc_url, trust_env=False, timeout=60) as client:
            yield client

    @contextmanager
    def asking_service(self) -> Iterator[httpx.Client]:
        """A client of the service, with a token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        with httpx.Client(base_url=self.service_url, trust_env=False, timeout=60, headers=headers) as client:
            yield client

    def followed(self) -> dict[str, int] | None:
        """What the follower has made of the PACS's series; None while it has not caught up."""
        with self.asking_service() as service:
            status = service.get("/pacs").json()
        counts: dict[str, int] = status["series"]
        return counts if status["answers"] else None


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def free_port(wanted: int = 0) -> int:
    """A free port on loopback, the wanted one if it is free."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise CbirError("loopback", "has no free port")


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that started it dies, however it dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
