"""The package as it is installed: the catalogue is in the wheel, and found from a source tree too."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cerebrum_cli import __version__
from cerebrum_cli.catalogue.rows import load_catalogue, packaged_catalogue

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
READ_CATALOGUE = """
from cerebrum_cli.catalogue.rows import load_catalogue, packaged_catalogue
print(packaged_catalogue())
print(*(spec.name for spec in load_catalogue([packaged_catalogue()])))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel built from this tree."""
    directory = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)], ROOT)
    [path] = directory.glob("*.whl")
    return path


def run(argv: list[str], directory: Path) -> str:
    """Return what a program that succeeds prints."""
    done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_contains_package_and_catalogue_only(wheel: Path) -> None:
    assert wheel.name == f"cerebrum_cli-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "cerebrum_cli/models.toml" in names
    assert {name.partition("/")[0] for name in names} == {"cerebrum_cli", f"cerebrum_cli-{__version__}.dist-info"}
    suffixes = {Path(name).suffix for name in names if name.startswith("cerebrum_cli/")}
    assert suffixes <= {".py", ".yaml", ".toml", ".typed", ".gguf", ".txt"}
    assert {"cerebrum_cli/probe.txt", "cerebrum_cli/recipes/cerebrum-12b.yaml"} <= set(names)


def test_wheel_finds_the_starter_without_dependencies(wheel: Path, tmp_path: Path) -> None:
    run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], tmp_path)
    python = str(tmp_path / "venv" / "bin" / "python")
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    run([sys.executable, "-m", "pip", "--python", python, "install", *options, str(wheel)], tmp_path)
    path, names = run([python, "-I", "-c", READ_CATALOGUE], tmp_path).splitlines()
    assert Path(path).is_relative_to(tmp_path / "venv")
    assert "starter" in names.split()
    assert (tmp_path / "venv" / "bin" / "cerebrum").exists()


def test_source_tree_has_the_catalogue_at_its_root() -> None:
    assert packaged_catalogue() == ROOT / "models.toml"
    assert "starter" in [spec.name for spec in load_catalogue([packaged_catalogue()])]
