"""What a release is made of agrees: workflows, Makefile, supported Pythons, and the requirements of the wheel."""

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DIST: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "dist.py"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(workflow: str) -> dict[str, Any]:
    text = (ROOT / ".github" / "workflows" / workflow).read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)["jobs"]
    return found


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_what_exists(workflow: Path) -> None:
    steps = [step for job in jobs(workflow.name).values() for step in job.get("steps", ())]
    commands = "\n".join(step.get("run", "") for step in steps)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) <= targets
    assert [path for path in re.findall(r"\bscripts/[\w.]+", commands) if not (ROOT / path).is_file()] == []
    for name, job in jobs(workflow.name).items():
        needed = job.get("needs", [])
        assert {needed} if isinstance(needed, str) else set(needed) <= set(jobs(workflow.name)), name


def test_release_tests_every_supported_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
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
    project = tomllib.loads(DIST["prebuilt"]((ROOT / "pyproject.toml").read_text(encoding="utf-8")))["project"]
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
