"""The package as it is installed: what the wheel contains, and that it runs where nothing else is installed."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path

import pytest
from command_line import CommandLine
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cerebrum_cli import __version__
from cerebrum_cli.models.catalogue import load_catalogue
from cerebrum_cli.models.library import CATALOGUE

ROOT = Path(__file__).parents[1]


def requirements() -> set[str]:
    """Names of the installed packages that this project needs, directly or not, without extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed: set[str] = set()
    waiting: list[str] = project["dependencies"]
    while waiting:
        each = Requirement(waiting.pop())
        name = canonicalize_name(each.name)
        if name not in needed and (not each.marker or each.marker.evaluate({"extra": ""})):
            needed.add(name)
            waiting.extend(distribution(name).requires or ())
    return needed


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)], ROOT)
    [path] = directory.glob("cerebrum_cli-*.whl")
    return path


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """A new user, and an environment with nothing but the wheel and links to what it needs, as uv and pipx make it."""
    if not any(importlib.metadata.distributions(name="llama-cpp-python")):
        pytest.skip("llama-cpp-python was not installed as a package")
    home = tmp_path_factory.mktemp("bare")
    run([sys.executable, "-m", "venv", "--without-pip", str(home / ".venv")], home)
    [packages] = home.glob(".venv/lib/python*/site-packages")
    for name in requirements():
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            (packages / top).symlink_to(str(package.locate_file(top)))
    options = ["--no-index", "--no-compile", "--disable-pip-version-check", "--quiet"]
    run([sys.executable, "-m", "pip", "--python", python_in(home), "install", *options, str(wheel)], home)
    return CommandLine(home)


def python_in(home: Path) -> str:
    return str(home / ".venv" / "bin" / "python")


def run(argv: list[str], directory: Path, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(argv, cwd=directory, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_contains_package_and_catalogue_only(wheel: Path) -> None:
    assert wheel.name == f"cerebrum_cli-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "cerebrum_cli/models.toml" in names
    assert {name.partition("/")[0] for name in names} == {"cerebrum_cli", f"cerebrum_cli-{__version__}.dist-info"}
    suffixes = {Path(name).suffix for name in names if name.startswith("cerebrum_cli/")}
    assert suffixes <= {".py", ".yaml", ".toml", ".typed", ".gguf", ".txt", ".jsonl"}
    assert {"cerebrum_cli/data/probe.txt", "cerebrum_cli/recipes/cerebrum-12b.yaml"} <= set(names)


def test_wheel_runs_in_a_bare_environment(bare: CommandLine) -> None:
    environment = bare.environment({"PYTHONDONTWRITEBYTECODE": "1"})
    cerebrum = str(bare.home / ".venv" / "bin" / "cerebrum")
    assert run([cerebrum, "--version"], bare.home, environment) == f"cerebrum {__version__}\n"
    checks = json.loads(run([cerebrum, "doctor", "--offline", "--json"], bare.home, environment))
    statuses = {check["name"]: check["status"] for check in checks}
    assert statuses["self_test"] == "ok"
    assert "failure" not in statuses.values()
    catalogue = json.loads(run([cerebrum, "list", "--available", "--json"], bare.home, environment))
    assert "starter" in [row["name"] for row in catalogue]
    [nano] = bare.home.glob(".venv/lib/python*/site-packages/cerebrum_cli/data/nano.gguf")
    prompt = run([cerebrum, "ask", "--dry-run", "-m", str(nano), "What is 17 plus 25?"], bare.home, environment)
    assert "What is 17 plus 25?" in prompt
    version = run([python_in(bare.home), "-m", "pip", "--version"], bare.home, environment)  # for `pull`
    assert version.startswith("pip ")


def make_setup(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `make setup` would run in a directory."""
    (directory / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    argv = ["make", "--dry-run", "--directory", str(directory), "-f", str(ROOT / "Makefile"), "setup", *arguments]
    return subprocess.run(argv, capture_output=True, text=True)


def test_make_setup_takes_llama_cpp_from_wheels_and_builds_nothing(tmp_path: Path) -> None:
    for wheels, options in ((str(tmp_path), "--find-links"), ("https://example.org/whl/cpu", "--index-url")):
        lines = make_setup(tmp_path, f"WHEELS={wheels}").stdout.splitlines()
        [command] = [line for line in lines if "--only-binary" in line]
        assert f' {options} "{wheels}" ' in command
    refused = make_setup(tmp_path, "WHEELS=https://example.org/whl/cpu", "ACCEL=cuda")
    assert refused.returncode != 0
    assert "use one of them" in refused.stderr


def test_source_tree_has_the_catalogue_at_its_root() -> None:
    assert CATALOGUE == ROOT / "models.toml"
    assert "starter" in [spec.name for spec in load_catalogue([CATALOGUE])]
