"""What is built can be installed, and works there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.smoke import smoke

pytestmark = pytest.mark.slow


def tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and the wheel that is built from it, of a clean copy."""
    folder = tmp_path_factory.mktemp("built")
    for name in tracked():
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "copy" / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), "copy"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel in it alone."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    (wheel,) = built.glob("*.whl")
    subprocess.run([*pip, "--no-index", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def test_an_installed_wheel_works_without_the_checkout(installed: Path) -> None:
    """In a process that sees the installation and the dependencies, but no link to the checkout.

    Without the module ``site``, links in ``.pth`` files, as editable installations are, do not count.
    """
    paths = [str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CBIR"))}
    environment = outside | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    assert "report" in smoke(installed, [sys.executable, "-S"], environment)


def test_the_wheel_names_its_licences_and_no_place_on_the_net(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (found,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(found))
    licences = {"Apache-2.0", "BSD-2-Clause", "CC-BY-3.0", "CC-BY-4.0", "AGPL-3.0-or-later"}
    assert set(metadata["License-Expression"].split(" AND ")) == licences
    files = metadata.get_all("License-File")
    assert files
    assert all(any(name.endswith(f".dist-info/licenses/{file}") for name in names) for file in files)
    for licence in licences:
        assert licence.replace("CC-BY-", "CC BY ") in (ROOT / "NOTICE").read_text() or licence == "Apache-2.0"
    assert metadata.get_all("Project-URL") is None
    assert "test" not in metadata.get_all("Provides-Extra", [])
    assert not {name.partition("/")[0] for name in names} & {"tests", "benchmarks", "pacs"}


def test_the_sdist_holds_what_git_does(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names - {"PKG-INFO"} <= set(tracked())
    assert {"pacs/orthanc/cbir_plugin.py", "docs/architecture.md", "tests/conftest.py"} <= names


def test_the_version_is_written_once() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name in tracked():
        if name.endswith((".py", ".toml", ".cff", ".cfg")) and name != "pyproject.toml":
            written = re.findall(
                r"^ *_*version_*\s*[=:]\s*[\"']?(\d+\.\d+\.\d+)", (ROOT / name).read_text(), re.M
            )
            assert version not in written, name
