"""Wheels for tests that install without a network: this tree's, and installed packages packed again."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def build_wheel(directory: Path) -> Path:
    """Build the wheel of this tree."""
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(argv, cwd=ROOT, capture_output=True, timeout=60, check=True)
    [path] = directory.glob("cerebrum_cli-*.whl")
    return path


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


def pack_again(name: str, directory: Path) -> Path:
    """Pack an installed package into a wheel, without compressing it."""
    package = distribution(name)
    tags = re.findall(r"^Tag: (\S+)$", package.read_text("WHEEL") or "", re.MULTILINE)
    stem = f"{re.sub('[^a-z0-9]+', '_', package.name.lower())}-{package.version}"
    path = directory / f"{stem}-{compressed(tags)}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in wheel_files(package):
            archive.write(str(package.locate_file(file)), file)
    return path


def wheel_files(package: Distribution) -> Iterator[str]:
    """Paths of a package's files that were in its wheel, without what the installer wrote."""
    for file in package.files or ():
        if ".." not in file.parts and file.suffix != ".pyc" and file.name not in ("INSTALLER", "REQUESTED"):
            yield file.as_posix()


def compressed(tags: list[str]) -> str:
    """Several tags, as a file name has them: each part once, like `py2.py3-none-any`."""
    return "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*(tag.split("-") for tag in tags), strict=True))
