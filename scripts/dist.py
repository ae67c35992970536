"""Build the source archive and the wheel of `cerebrum-cli`: dist.py DIRECTORY

The wheel is built from the archive. It requires `cerebrum-llama` where there are wheels of that, so that nobody needs a
compiler, and llama-cpp-python elsewhere. If GITHUB_REPOSITORY is set, as in GitHub's workflows, links in its
description lead to the files of this version there. The wheel has the manual page, which docs/reference.py makes.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENT = re.compile(r'^( *")llama-cpp-python([^"]*)",', re.M)
PREBUILT = (  # what `make wheels` builds on Linux and macOS
    "(sys_platform == 'linux' and (platform_machine == 'x86_64' or platform_machine == 'aarch64'))"
    " or (sys_platform == 'darwin' and platform_machine == 'arm64')"
)
SOURCE = (  # markers have no `not`
    "(sys_platform != 'linux' or (platform_machine != 'x86_64' and platform_machine != 'aarch64'))"
    " and (sys_platform != 'darwin' or platform_machine != 'arm64')"
)
MANUAL = """
[tool.hatch.build.targets.wheel.shared-data]
"cerebrum.1" = "share/man/man1/cerebrum.1"
"""
LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!https?:|#)([^)]+)\)")


def prebuilt(project: str) -> str:
    """Text of a pyproject.toml that requires our wheels of llama.cpp where there are any."""
    project, count = REQUIREMENT.subn(rf'\1cerebrum-llama\2; {PREBUILT}",\n\1llama-cpp-python\2; {SOURCE}",', project)
    if count != 1:
        sys.exit("pyproject.toml does not require llama-cpp-python once: see scripts/dist.py")
    return project


def absolute_links(page: str, repository: str, tag: str) -> str:
    """Text of a page whose links to files lead to a tag of a repository on GitHub."""

    def absolute(link: re.Match[str]) -> str:
        picture, text, path = link.groups()
        return f"{picture}{text}(https://github.com/{repository}/{'raw' if picture else 'blob'}/{tag}/{path})"

    return LINK.sub(absolute, page)


def build(kind: str, project: Path, directory: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(directory)]
    subprocess.run(command, cwd=project, check=True)


def main(name: str) -> None:
    """Replace what a directory has of `cerebrum-cli`."""
    directory = Path(name).resolve()
    for old in directory.glob("cerebrum_cli-*"):
        old.unlink()
    build("sdist", ROOT, directory)
    [archive] = directory.glob("cerebrum_cli-*.tar.gz")
    with tempfile.TemporaryDirectory() as temporary:
        with tarfile.open(archive) as files:
            files.extractall(temporary, filter="data")
        [project] = Path(temporary).iterdir()
        file, readme = project / "pyproject.toml", project / "README.md"
        file.write_text(prebuilt(file.read_text(encoding="utf-8")) + MANUAL, encoding="utf-8")
        man_page = runpy.run_path(str(ROOT / "docs" / "reference.py"))["man_page"]()
        (project / "cerebrum.1").write_text(man_page, encoding="utf-8")
        if repository := os.environ.get("GITHUB_REPOSITORY"):
            tag = f"v{project.name.rpartition('-')[2]}"
            readme.write_text(absolute_links(readme.read_text(encoding="utf-8"), repository, tag), encoding="utf-8")
        build("wheel", project, directory)


if __name__ == "__main__":
    main(*sys.argv[1:])
