"""The files below a directory that a prompt may be made of: not hidden, not a symbolic link, not ignored by Git."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cerebrum_cli.core.files import exists, is_directory, read_small

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

MAX_PATTERN = 4096  # characters of a line in .gitignore: no path is longer
ANY_DIRECTORIES = "**"  # a part of a pattern; at its end, everything in these directories
STAR, ANY_BELOW = "[^/]*", "(?:/.+)?"  # what pathspec makes of `*` and of `**` between slashes
ITEM = r"\\.|\[\^/\](?!\*)|\[(?!\^/\])\^?(?:\\.|[^\]\\])+\]|[^\\/()\[]"  # one character of a name
INNER_STAR = re.compile(rf"{re.escape(STAR)}((?:{ITEM})*+)(?={re.escape(STAR)})")
Skipped = tuple[Path, str]
"""A file or directory that is left out of a prompt, and why."""

SPECIAL = re.compile(r"[*?[]")  # characters that make a path a pattern


class FileSearch(NamedTuple):
    """A directory, and the parts of a pattern of paths in it; without parts, all its files are meant."""

    base: Path
    parts: tuple[str, ...]

    def find(self, skipped: list[Skipped]) -> list[Path]:
        """Find the files, sorted. Adds unreadable directories to `skipped`; raises OSError if the base is one."""
        pending, found = [(open_directory(self.base), self.parts)], set[Path]()
        visited = set[tuple[Path, tuple[str, ...]]]()  # parts with several `**` lead to a directory in several ways
        while pending:
            directory, parts = pending.pop()
            if (directory.path, parts) in visited:
                continue
            visited.add((directory.path, parts))
            head, *rest = parts or (ANY_DIRECTORIES,)
            if head == ANY_DIRECTORIES and rest:
                pending.append((directory, tuple(rest)))
            try:
                entries = list(directory.entries(hidden=head.startswith(".")))
            except OSError as error:
                if directory.path == self.base:
                    raise
                skipped.append((directory.path, error.strerror or "unreadable"))
                continue
            for name, is_dir in entries:
                if head != ANY_DIRECTORIES and not fnmatchcase(name, head):
                    continue
                if directory.ignores(name, is_dir):
                    continue
                if is_dir:
                    pending.append((directory.below(name), parts if head == ANY_DIRECTORIES else tuple(rest)))
                elif not rest:
                    found.add(directory.path / name)
        return sorted(found)


class Rules(NamedTuple):
    directory: Path
    spec: GitIgnoreSpec


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory as it was named and where it is, with the rules that hold in it, the innermost first."""

    path: Path
    location: Path
    rules: tuple[Rules, ...]

    def entries(self, hidden: bool) -> Iterator[tuple[str, bool]]:
        """Yield the names of files and directories, and whether each is a directory."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name == ".git" or (entry.name.startswith(".") and not hidden):
                    continue
                is_dir = entry.is_dir(follow_symlinks=False)
                if is_dir or entry.is_file(follow_symlinks=False):
                    yield entry.name, is_dir

    def ignores(self, name: str, is_dir: bool) -> bool:
        """Whether the rules exclude a file or directory: the innermost that mention it decide."""
        path = self.location / name
        for rules in self.rules:
            relative = path.relative_to(rules.directory).as_posix() + "/" * is_dir
            excludes = rules.spec.check_file(relative).include
            if excludes is not None:
                return excludes
        return False

    def below(self, name: str) -> Directory:
        location = self.location / name
        return Directory(self.path / name, location, (*read_rules(location), *self.rules))


def search_of(path: Path) -> FileSearch | None:
    """The search that a directory or a pattern stands for; None for any other path, and for one that exists."""
    if is_directory(path):
        return FileSearch(path, ())
    start = next((number for number, part in enumerate(path.parts) if SPECIAL.search(part)), None)
    if start is None or exists(path):
        return None
    return FileSearch(Path(*path.parts[:start]), path.parts[start:])


def open_directory(path: Path) -> Directory:
    """Open a directory with the rules of the directories above it, up to the repository or the working directory.

    Rules that exclude the directory itself do not hold: it was named.
    """
    location = path.resolve()
    top = next((folder for folder in (location, *location.parents) if exists(folder / ".git")), None)
    if top is None:
        top = Path.cwd() if location.is_relative_to(Path.cwd()) else location
    directory = Directory(top, top, read_rules(top))
    for name in location.relative_to(top).parts:
        if directory.ignores(name, is_dir=True):
            directory = replace(directory, rules=())
        directory = directory.below(name)
    return replace(directory, path=path)


def read_rules(directory: Path) -> tuple[Rules, ...]:
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
    return (Rules(directory, GitIgnoreSpec(patterns)),)


def linear(regex: str) -> re.Pattern[str]:
    """A pattern's regular expression, without the choices that take exponential time.

    What follows `*` in a name or `**` in a path has one length, so that its first match is as good as any other.
    """
    first, *others = INNER_STAR.sub(rf"(?>{STAR}?\1)", regex).split(ANY_BELOW)
    if not others:
        return re.compile(first)
    inner = "".join(rf"(?>(?:/.+?)??{part}(?=/))" for part in others[:-1])
    return re.compile(rf"(?>{first.replace('(?:.+/)?', '(?:.+?/)??')}(?=/)){inner}{ANY_BELOW}{others[-1]}")
