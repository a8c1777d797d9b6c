"""The files and commands of docs/deployment.md, taken out of it and tried."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from indexer.case_index import CaseIndex
from indexer.ingest import ingest
from tests.support.encoders import TinyEncoder
from tests.support.images import phantom, write_nifti
from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs" / "deployment.md"
BLOCKS = re.findall(r"^ *```(\w+)\n(.*?)^ *```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def block(language: str, containing: str) -> str:
    """The one block of a language that holds some words."""
    (found,) = (text for kind, text in BLOCKS if kind == language and containing in text)
    return found


def proxy(folder: Path, port: int, orthanc: int) -> Path:
    """The documented TLS proxy, with a certificate and a user (``reader``, ``secret``), for other ports."""
    subject = ["-subj", "/CN=pacs.example.org", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run(
        [*made, "-keyout", "pacs.key", "-out", "pacs.pem"], cwd=folder, check=True, capture_output=True
    )
    hashed = subprocess.run(
        ["openssl", "passwd", "-apr1", "secret"], capture_output=True, text=True, check=True
    )
    (folder / "pacs.users").write_text(f"reader:{hashed.stdout}")
    server = block("nginx", "listen 443")
    for documented, here in (
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("127.0.0.1:8042", f"127.0.0.1:{orthanc}"),
        ("/etc/ssl/certs", str(folder)),
        ("/etc/ssl/private", str(folder)),
        ("/etc/nginx", str(folder)),
    ):
        assert documented in server
        server = server.replace(documented, here)
    config = folder / "nginx.conf"
    user = "" if os.geteuid() else "user root;\n"  # in a namespace there is nobody else
    places = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"{user}pid {folder}/pid; error_log stderr; daemon off; master_process off;\n"
        f"events {{}}\nhttp {{ access_log off; {places}\n{server}}}\n"
    )
    return config


def test_the_table_of_settings_says_what_the_configuration_has():
    configuration = json.loads((ROOT / "pacs" / "orthanc" / "orthanc.json").read_text())
    told = re.findall(r'`"(\w+)": (false|true|\d+)`', DOCUMENT.read_text())
    assert len(told) >= 6
    for name, value in told:
        assert configuration[name] == json.loads(value), name
    for library in configuration["Plugins"]:
        assert library.startswith("/usr/share/orthanc/plugins/")


def test_the_json_of_other_viewers_is_json():
    found = [json.loads(text) for kind, text in BLOCKS if kind == "json"]
    assert "{UUID}" in json.dumps(found)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", DOCUMENT.read_text()):
        assert (DOCUMENT.parent / target).exists(), target


def test_the_plugin_needs_nothing_but_python_and_says_its_licence():
    plugin = (ROOT / "pacs" / "orthanc" / "cbir_plugin.py").read_text()
    imported = set(re.findall(r"^import (\w+)", plugin, re.MULTILINE))
    assert imported - {"orthanc"} <= set(sys.stdlib_module_names)
    assert not re.search(r"^from ", plugin, re.MULTILINE)
    assert "GNU\n# Affero General Public License" in plugin
    assert (ROOT / "pacs" / "orthanc" / "LICENSE").read_text().startswith("GNU AFFERO GENERAL PUBLIC LICENSE")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_units(tmp_path):
    service = block("ini", "cbir serve")
    assert "/opt/cbir/bin/cbir" in service
    unit = tmp_path / "cbir.service"
    unit.write_text(service.replace("/opt/cbir/bin/cbir", shutil.which("true") or ""))
    orthanc = tmp_path / "orthanc.service"
    orthanc.write_text("[Service]\nUser=orthanc\nExecStart=/bin/true\n")
    (tmp_path / "orthanc.service.d").mkdir()
    drop_in = block("ini", "TCP_NODELAY").replace("/usr/sbin/Orthanc", shutil.which("true") or "")
    (tmp_path / "orthanc.service.d" / "cbir.conf").write_text(drop_in)
    for file in (unit, orthanc):
        verified = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True
        )
        ours = [line for line in verified.stderr.splitlines() if str(tmp_path) in line or file.name in line]
        assert not ours, verified.stderr


@pytest.mark.skipif(
    shutil.which("nginx") is None, reason="nginx is not installed: apt-get install nginx-light"
)
def test_nginx_understands_the_proxy(tmp_path):
    checked = subprocess.run(
        ["nginx", "-t", "-c", proxy(tmp_path, 8443, 8042)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert "warn" not in checked.stderr


@pytest.mark.slow
def test_backup_and_restore_bring_the_same_index_back(tmp_path):
    home = tmp_path / "lib"
    for i in range(3):
        write_nifti(tmp_path / "mri" / f"P-{i}_t1.nii.gz", phantom(i))
    home.mkdir()
    with CaseIndex.create(home / "index", TinyEncoder()) as index:
        ingest(index, [tmp_path / "mri"], TinyEncoder())
        before = index.catalog.contents().case_ids
        patient = index.patient("P-1")
    _run(block("sh", "-czf"), tmp_path, home)
    shutil.rmtree(home / "index")
    (home / "index").mkdir()
    printed = _run(block("sh", "-xzpf"), tmp_path, home)
    assert "3 cases" in printed or "sound" in printed, printed
    with CaseIndex.open(home / "index") as index:
        assert index.catalog.contents().case_ids == before
        assert index.patient("P-1") == patient, "the key came back"
        assert (home / "index" / "key").stat().st_mode & 0o777 == 0o600


def _run(commands: str, folder: Path, home: Path) -> str:
    """Documented commands, for places and services of the test's own."""
    for documented, here in (
        ("/var/lib/cbir", str(home)),
        ("/var/backups", str(folder)),
        ("sudo -u cbir /opt/cbir/bin/cbir", f"{sys.executable} -m retrieval.cli"),
    ):
        commands = commands.replace(documented, here)
    done = subprocess.run(
        ["sh", "-euc", f"systemctl() {{ :; }}\n{commands}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
