"""The files below a directory that a prompt may be made of: not hidden, not a symbolic link, not ignored by Git."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cerebrum_cli.core.files import exists, is_directory, read_small

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

MAX_PATTERN = 4096  # characters of a line in .gitignore: no path is longer
ANY_DIRECTORIES = "**"  # a part of a pattern; at its end, everything in these directories
SPECIAL = re.compile(r"[*?[]")  # characters that make a path a pattern
STAR, ANY_BELOW = "[^/]*", "(?:/.+)?"  # what pathspec makes of `*` and of `**` between slashes
ITEM = r"\\.|\[\^/\](?!\*)|\[(?!\^/\])\^?(?:\\.|[^\]\\])+\]|[^\\/()\[]"  # one character of a name
INNER_STAR = re.compile(rf"{re.escape(STAR)}((?:{ITEM})*+)(?={re.escape(STAR)})")

Skipped = tuple[Path, str]
"""A file or directory that is left out of a prompt, and why."""

Rules = tuple[tuple[Path, "GitIgnoreSpec"], ...]
"""The rules that hold in a directory, each with the directory of its file, the innermost first."""


class FileSearch(NamedTuple):
    """A directory, and the parts of a pattern of paths in it; without parts, all its files are meant."""

    base: Path
    parts: tuple[str, ...]

    def find(self, skipped: list[Skipped]) -> list[Path]:
        """Find the files, sorted. Adds unreadable directories to `skipped`; raises OSError if the base is one."""

        def leave_out(error: OSError) -> None:
            if Path(error.filename) == self.base:
                raise error
            skipped.append((Path(error.filename), error.strerror or "unreadable"))

        location = self.base.resolve()
        # Of each directory that is still to be read: the rules in it, and how many parts of the pattern lead to it.
        pending = {self.base: (rules_of(location), self._entered({0}))}
        found = []
        for name, directories, files in os.walk(self.base, onerror=leave_out):
            folder = Path(name)
            place = location / folder.relative_to(self.base)
            rules, states = pending.pop(folder)
            for file in files:
                path = folder / file
                if self._means(path, states) and not ignores(rules, place / file, False):
                    found.append(path)
            for directory in tuple(directories):
                after, below = self._after(states, directory), place / directory
                if not after or directory == ".git" or ignores(rules, below, True):
                    directories.remove(directory)
                else:
                    pending[folder / directory] = (*read_rules(below), *rules), self._entered(after)
        return sorted(found)

    def _means(self, path: Path, states: set[int]) -> bool:
        """Whether a path is a file at the end of the pattern, of which `states` lead to its directory."""
        return len(self.parts) in self._after(states, path.name) and path.is_file() and not path.is_symlink()

    def _after(self, states: Iterable[int], name: str) -> set[int]:
        """The numbers of parts that lead to a name in a directory; all parts lead to what is below a match, too."""
        after = set()
        for state in states:
            part = self.parts[state] if state < len(self.parts) else ANY_DIRECTORIES
            if name.startswith(".") and not part.startswith("."):
                continue
            if part == ANY_DIRECTORIES:
                after.add(state)
            elif fnmatchcase(name, part):
                after.add(state + 1)
        return after

    def _entered(self, states: set[int]) -> set[int]:
        for number, part in enumerate(self.parts):
            if part == ANY_DIRECTORIES and number in states:
                states.add(number + 1)
        return states


def search_of(path: Path) -> FileSearch | None:
    """The search that a directory or a pattern stands for; None for any other path, and for one that exists."""
    if is_directory(path):
        return FileSearch(path, ())
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
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    patterns: list[GitIgnoreSpecPattern] = []
    for line in data.decode("utf-8-sig", "surrogateescape").splitlines():
        with suppress(ValueError, re.error):
            found = GitIgnoreSpec.from_lines([line] if len(line) <= MAX_PATTERN else []).patterns
            patterns += [
                GitIgnoreSpecPattern(linear(pattern.regex.pattern), pattern.include)
                for pattern in found
                if pattern.regex
            ]
    return ((directory, GitIgnoreSpec(patterns)),)


def linear(regex: str) -> re.Pattern[str]:
    """A pattern's regular expression, without the choices that take exponential time.

    What follows `*` in a name or `**` in a path has one length, so that its first match is as good as any other.
    """
    first, *others = INNER_STAR.sub(rf"(?>{STAR}?\1)", regex).split(ANY_BELOW)
    if not others:
        return re.compile(first)
    inner = "".join(rf"(?>(?:/.+?)??{part}(?=/))" for part in others[:-1])
    return re.compile(rf"(?>{first.replace('(?:.+/)?', '(?:.+?/)??')}(?=/)){inner}{ANY_BELOW}{others[-1]}")
