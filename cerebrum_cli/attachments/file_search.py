"""The files below a directory that a prompt may be made of: not hidden, not a symbolic link, not ignored by Git."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cerebrum_cli.core.files import exists, is_directory, read_small
from cerebrum_cli.core.text import Texts

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

ANY_DIRECTORIES = "**"  # a part of a pattern; at its end, everything in these directories
SPECIAL = re.compile(r"[*?[]")  # characters that make a path a pattern

Rules = tuple[tuple[Path, "GitIgnoreSpec"], ...]
"""The rules that hold in a directory, each with the directory of its file, the innermost first."""


class Skipped(NamedTuple):
    """A file or directory that is left out of a prompt, and why."""

    path: Path
    reason: str


class FileSearch(NamedTuple):
    """A directory, and the parts of a pattern of paths in it."""

    base: Path
    parts: Texts

    def find(self, skipped: list[Skipped]) -> list[Path]:
        """Find the files, sorted. Adds unreadable directories to `skipped`; raises OSError if the base is one."""
        from pathspec import GitIgnoreSpec

        def leave_out(error: OSError) -> None:
            path = Path(error.filename)
            if path == self.base:
                raise error
            skipped.append(Skipped(path, error.strerror or "unreadable"))

        pattern = "/".join(self.parts)
        meant = GitIgnoreSpec.from_lines([f"/{pattern}"])
        location = self.base.resolve()
        rules = {self.base: rules_of(location)}  # of each directory that is still to be read
        found = []
        for name, directories, files in os.walk(self.base, onerror=leave_out):
            folder = Path(name)
            below = folder.relative_to(self.base)
            here = rules.pop(folder)
            for file in files:
                path = folder / file
                is_meant = meant.match_file((below / file).as_posix()) and self._reads(location, below / file, here)
                if is_meant and path.is_file() and not path.is_symlink():
                    found.append(path)
            for directory in list(directories):
                if self._reads(location, below / directory, here, True):
                    rules[folder / directory] = (*read_rules(location / below / directory), *here)
                else:
                    directories.remove(directory)
        return sorted(found)

    def _reads(self, location: Path, path: Path, rules: Rules, is_directory: bool = False) -> bool:
        """Whether the pattern may match a file, or something below a directory, by its path relative to `location`.

        Hidden ones are left out unless a part of the pattern begins so, and those that rules ignore.
        """
        is_hidden = path.name.startswith(".") and not any(part.startswith(".") for part in self.parts)
        if is_hidden or (is_directory and path.name == ".git"):
            return False
        fixed = takewhile(lambda part: part != ANY_DIRECTORIES, self.parts)
        return all(map(fnmatchcase, path.parts, fixed)) and not ignores(rules, location / path, is_directory)


def search_of(path: Path) -> FileSearch | None:
    """The search that a directory or a pattern stands for; None for any other path, and for one that exists."""
    if is_directory(path):
        return FileSearch(path, (ANY_DIRECTORIES,))
    start = next((number for number, part in enumerate(path.parts) if SPECIAL.search(part)), None)
    if start is None or exists(path):
        return None
    return FileSearch(Path(*path.parts[:start]), path.parts[start:])


def ignores(rules: Rules, path: Path, is_directory: bool) -> bool:
    """Whether rules exclude a file or directory: the innermost that mention it decide."""
    for directory, spec in rules:
        relative = path.relative_to(directory).as_posix() + ("/" if is_directory else "")
        excludes = spec.check_file(relative).include
        if excludes is not None:
            return excludes
    return False


def rules_of(location: Path) -> Rules:
    """The rules in a directory and above it, up to the repository or the working directory.

    Rules that exclude the directory itself do not hold: it was named.
    """
    top = next((folder for folder in (location, *location.parents) if exists(folder / ".git")), None)
    if top is None:
        top = Path.cwd() if location.is_relative_to(Path.cwd()) else location
    rules = read_rules(top)
    for name in location.relative_to(top).parts:
        top /= name
        rules = (*read_rules(top), *(() if ignores(rules, top, True) else rules))
    return rules


def read_rules(directory: Path) -> Rules:
    """Read the `.gitignore` of a directory; empty if it has none. Lines that Git would not understand do nothing."""
    try:
        data = read_small(directory / ".gitignore")
    except OSError:
        return ()
    from pathspec import GitIgnoreSpec

    valid = []
    for line in data.decode("utf-8-sig", "surrogateescape").splitlines():
        with suppress(ValueError, re.error):
            GitIgnoreSpec.from_lines([line])
            valid.append(line)
    return ((directory, GitIgnoreSpec.from_lines(valid)),)
