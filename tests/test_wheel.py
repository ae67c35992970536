"""The package as it is installed: what the wheel contains, and that it runs where nothing else is installed."""

import importlib.metadata
import json
import os
import shlex
import shutil
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
from cerebrum_cli.library.catalogue_file import load_catalogue
from cerebrum_cli.library.library import CATALOGUE

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
    """The wheel as a clone builds it, which requires llama-cpp-python."""
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
    assert {"cerebrum_cli/data/nano.gguf", "cerebrum_cli/recipes/cerebrum-12b.yaml"} <= set(names)


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


def test_released_wheel_is_made_of_the_archive(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "cerebrum_cli-0.0.9.tar.gz").touch()  # of an earlier version
    run([sys.executable, "scripts/dist.py", str(tmp_path)], ROOT, {**os.environ, "GITHUB_REPOSITORY": "owner/name"})
    name = f"cerebrum_cli-{__version__}"
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.tar.gz", f"{name}-py3-none-any.whl"}
    with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl") as released, zipfile.ZipFile(wheel) as own:
        assert {*released.namelist()} - {*own.namelist()} == {f"{name}.data/data/share/man/man1/cerebrum.1"}
        assert b".SH CEREBRUM CHAT" in released.read(f"{name}.data/data/share/man/man1/cerebrum.1")
        metadata = released.read(f"{name}.dist-info/METADATA").decode()
    assert "Requires-Dist: cerebrum-llama<" in metadata
    assert f"(https://github.com/owner/name/blob/v{__version__}/docs/getting-started.md)" in metadata


RECORDER = """#!/bin/sh
echo "${CC:-default} python $*" >> "$LOG"
case "$*" in
*"pip wheel "*) echo "$CMAKE_ARGS" > "$LOG.built"; while [ "$1" != --wheel-dir ]; do shift; done; mkdir -p "$2" ;;
*cerebrum/wheels*) test -e "$LOG.built" ;;
esac
"""


def set_up(checkout: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run setup.sh in a checkout where Python and `cerebrum` only record how they are called; return their calls."""
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    for name in ("python", "cerebrum"):
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)
    (checkout / "scripts").mkdir(exist_ok=True)
    for name in ("pyproject.toml", "scripts/setup.sh", "scripts/build.sh"):
        shutil.copy(ROOT / name, checkout / name)
    log = checkout / "log"
    log.unlink(missing_ok=True)
    home = {"PATH": os.environ["PATH"], "HOME": str(checkout), "TMPDIR": str(checkout), "LOG": str(log)}
    done = subprocess.run(
        ["sh", "scripts/setup.sh"], cwd=checkout, env=home | environment, capture_output=True, text=True
    )
    return done, log.read_text().splitlines() if log.exists() else []


def test_setup_builds_llama_cpp_once(tmp_path: Path) -> None:
    checkout = tmp_path / "user's checkout"
    done, calls = set_up(checkout, CXX="true")  # a compiler that exists
    assert done.returncode == 0, done.stderr
    [build] = [call for call in calls if " pip wheel " in call]
    assert build.startswith("default ")
    options = shlex.split((checkout / "log.built").read_text())
    assert f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={checkout}/scripts/llama.cmake" in options
    assert sum("--group compiler" in call for call in calls) == 0
    again, calls = set_up(checkout, CXX="true")
    assert again.returncode == 0
    assert [call for call in calls if " pip wheel " in call] == []


def test_setup_needs_no_home(tmp_path: Path) -> None:
    for _ in range(2):
        done, calls = set_up(tmp_path, CXX="true", HOME="/proc/no-home")
        assert done.returncode == 0, done.stderr
        assert any("--find-links .venv/wheels/cpu-" in call for call in calls)
    assert [call for call in calls if " pip wheel " in call] == []


def test_setup_downloads_a_compiler_where_there_is_none(tmp_path: Path) -> None:
    done, calls = set_up(tmp_path, CXX="no-compiler-of-this-name")
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler found" in done.stdout
    assert sum("--group compiler" in call for call in calls) == 1
    [build] = [call for call in calls if " pip wheel " in call]
    assert build.split()[0].endswith("/ziglang/zig")
    assert list(tmp_path.glob("tmp.*")) == []  # removed afterwards


def test_setup_takes_llama_cpp_from_wheels_and_builds_nothing(tmp_path: Path) -> None:
    for wheels, options in ((str(tmp_path), "--no-index --find-links"), ("https://example.org/cpu", "--index-url")):
        done, calls = set_up(tmp_path, WHEELS=wheels)
        assert done.returncode == 0, done.stderr
        [call] = [call for call in calls if "--only-binary llama-cpp-python" in call]
        assert f" {options} {wheels} llama-cpp-python>=" in call
        assert [call for call in calls if " pip wheel " in call] == []


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"WHEELS": "https://example.org/cpu", "ACCEL": "cuda"}, "ACCEL builds llama.cpp and WHEELS installs a wheel"),
        ({"ACCEL": "opencl"}, 'ACCEL is "opencl"'),
    ],
)
def test_setup_refuses_what_it_cannot_build(tmp_path: Path, environment: dict[str, str], problem: str) -> None:
    done, calls = set_up(tmp_path, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {problem}")
    assert calls == []


def test_source_tree_has_the_catalogue_at_its_root() -> None:
    assert CATALOGUE == ROOT / "models.toml"
    assert "starter" in [spec.name for spec in load_catalogue([CATALOGUE])]
