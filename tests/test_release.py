"""What a release is made of: workflows, the wheel and its requirements, where it runs, and the setup of a checkout."""

import importlib.metadata
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import ROOT, CommandLine
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cerebrum_cli import __version__
from cerebrum_cli.library.catalogue_file import load_catalogue
from cerebrum_cli.library.library import CATALOGUE

DIST: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "dist.py"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(PYPROJECT)["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(workflow: str) -> dict[str, Any]:
    text = (ROOT / ".github" / "workflows" / workflow).read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)["jobs"]
    return found


@pytest.mark.parametrize("workflow", [path.name for path in WORKFLOWS])
def test_workflows_call_what_exists(workflow: str) -> None:
    steps = [step for job in jobs(workflow).values() for step in job.get("steps", ())]
    commands = "\n".join(step.get("run", "") for step in steps)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) <= targets
    assert [path for path in re.findall(r"\bscripts/[\w.]+", commands) if not (ROOT / path).is_file()] == []
    for name, job in jobs(workflow).items():
        needed = job.get("needs", [])
        assert {needed} if isinstance(needed, str) else set(needed) <= set(jobs(workflow)), name


def test_release_tests_every_supported_python() -> None:
    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    release = jobs("release.yml")
    images = [image.partition("-")[0] for image in release["test"]["strategy"]["matrix"]["image"]]
    assert images == release["test-macos"]["strategy"]["matrix"]["python"] == supported
    assert jobs("ci.yml")["test"]["strategy"]["matrix"]["python"] == supported


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("linux", "x86_64", "cerebrum-llama"),
        ("linux", "aarch64", "cerebrum-llama"),
        ("darwin", "arm64", "cerebrum-llama"),
        ("darwin", "x86_64", "llama-cpp-python"),
        ("linux", "riscv64", "llama-cpp-python"),
        ("win32", "AMD64", "llama-cpp-python"),
    ],
)
def test_wheel_requires_a_prebuilt_llama_cpp_where_there_is_one(system: str, machine: str, expected: str) -> None:
    project = tomllib.loads(DIST["prebuilt"](PYPROJECT))["project"]
    requirements = [Requirement(text) for text in project["dependencies"] if "llama" in text]
    environment = {"sys_platform": system, "platform_machine": machine}
    [chosen] = [each for each in requirements if each.marker and each.marker.evaluate(environment)]
    assert chosen.name == expected
    assert len({str(each.specifier) for each in requirements}) == 1


def test_links_of_a_published_page_lead_to_its_tag() -> None:
    page = "![Picture](docs/vote.svg) [Install](docs/install.md#use-a-gpu) [Ours](https://a.org) [Below](#use)"
    assert DIST["absolute_links"](page, "owner/name", "v1.2") == (
        "![Picture](https://github.com/owner/name/raw/v1.2/docs/vote.svg) "
        "[Install](https://github.com/owner/name/blob/v1.2/docs/install.md#use-a-gpu) "
        "[Ours](https://a.org) [Below](#use)"
    )


def requirements() -> set[str]:
    """Names of the installed packages that this project needs, directly or not, without extras."""
    needed: set[str] = set()
    waiting: list[str] = [*PROJECT["dependencies"]]
    while waiting:
        each = Requirement(waiting.pop())
        name = canonicalize_name(each.name)
        if name not in needed and (not each.marker or each.marker.evaluate({"extra": ""})):
            needed.add(name)
            waiting.extend(distribution(name).requires or ())
    return needed


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


@pytest.mark.slow
def test_wheel_contains_package_and_catalogue_only(wheel: Path) -> None:
    assert wheel.name == f"cerebrum_cli-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "cerebrum_cli/models.toml" in names
    assert {name.partition("/")[0] for name in names} == {"cerebrum_cli", f"cerebrum_cli-{__version__}.dist-info"}
    suffixes = {Path(name).suffix for name in names if name.startswith("cerebrum_cli/")}
    assert suffixes <= {".py", ".yaml", ".toml", ".typed", ".gguf", ".txt", ".jsonl"}
    assert {"cerebrum_cli/data/nano.gguf", "cerebrum_cli/recipes/cerebrum-12b.yaml"} <= set(names)


@pytest.mark.slow
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


@pytest.mark.slow
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


def set_up(
    checkout: Path, environment: Mapping[str, str], code: int = 0
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
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
    command = ["sh", "scripts/setup.sh"]
    done = subprocess.run(command, cwd=checkout, env={**home, **environment}, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done, log.read_text().splitlines() if log.exists() else []


def builds(calls: list[str]) -> list[str]:
    return [call for call in calls if " pip wheel " in call]


@pytest.mark.slow
@pytest.mark.parametrize(("home", "kept"), [("", ".cache/cerebrum/wheels/"), ("/proc/no-home", " .venv/wheels/cpu-")])
def test_setup_builds_llama_cpp_once(tmp_path: Path, home: str, kept: str) -> None:
    checkout = tmp_path / "user's checkout"
    environment = {"CXX": "true", **({"HOME": home} if home else {})}  # a compiler that exists
    _, calls = set_up(checkout, environment)
    [build] = builds(calls)
    assert build.startswith("default ") and not any("--group compiler" in call for call in calls)
    options = shlex.split((checkout / "log.built").read_text())
    assert f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={checkout}/scripts/llama.cmake" in options
    _, calls = set_up(checkout, environment)
    assert builds(calls) == [] and any("--find-links" in call and kept in call for call in calls)


@pytest.mark.slow
def test_setup_downloads_a_compiler_where_there_is_none(tmp_path: Path) -> None:
    done, calls = set_up(tmp_path, {"CXX": "no-compiler-of-this-name"})
    assert "no C++ compiler found" in done.stdout
    assert sum("--group compiler" in call for call in calls) == 1
    [build] = builds(calls)
    assert build.split()[0].endswith("/ziglang/zig")
    assert list(tmp_path.glob("tmp.*")) == []  # removed afterwards


@pytest.mark.slow
def test_setup_takes_llama_cpp_from_wheels_and_builds_nothing(tmp_path: Path) -> None:
    for wheels, options in ((str(tmp_path), "--no-index --find-links"), ("https://example.org/cpu", "--index-url")):
        _, calls = set_up(tmp_path, {"WHEELS": wheels})
        [call] = [call for call in calls if "--only-binary llama-cpp-python" in call]
        assert f" {options} {wheels} llama-cpp-python>=" in call
        assert builds(calls) == []


@pytest.mark.slow
def test_setup_refuses_what_it_cannot_build(tmp_path: Path) -> None:
    for environment, problem in (
        ({"WHEELS": "https://example.org/cpu", "ACCEL": "cuda"}, "ACCEL builds llama.cpp and WHEELS installs a wheel"),
        ({"ACCEL": "opencl"}, 'ACCEL is "opencl"'),
    ):
        done, calls = set_up(tmp_path, environment, code=1)
        assert done.stderr.startswith(f"error: {problem}") and calls == []


def test_source_tree_has_the_catalogue_at_its_root() -> None:
    assert CATALOGUE == ROOT / "models.toml"
    assert "starter" in [spec.name for spec in load_catalogue([CATALOGUE])]
