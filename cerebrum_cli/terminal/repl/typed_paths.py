"""Paths in what is typed in a chat: arguments of slash commands, and files that a question names as `@PATH`."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from itertools import islice
from pathlib import Path

from cerebrum_cli.core.declaration import is_address
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import as_path, exists

MAX_WORDS = 16  # of a path with spaces that are not escaped
SEPARATOR = re.compile(r"[\s,]+|\Z")  # of paths
LIKE_A_PATH = re.compile(  # where there is no such file
    r"""(["'])[^"']*\.[a-z]\w*\1"""  # a name with a suffix, in quotes
    r"""|(?:~|(?:\\.|[^\s,"'])*[/*])(?:\\.|[^\s,])*"""  # a directory or a pattern
    r"""|(?:\\.|[^\s,"'])+\.[a-z]\w*(?=[\s,]|\Z)""",  # a name with a suffix
    re.IGNORECASE,
)
NAMED_FILE = re.compile(r"""(?<![^\s(,])@(?!\s|""|'')""")  # begins a word that may be a path
BEHIND = re.compile(r"(?:['’]s|:\d+)?[.,;:!?)\]}…。，、！？）]*\Z")  # a path: a genitive, a line number, punctuation


def named_files(question: str) -> list[Path]:
    """The files that a question names as `@PATH`; a directory has a slash in its path, as words such as `@media` exist.

    A word that names no file is text, and so are `@.`, `@/` and the like.
    """
    paths = []
    for part in NAMED_FILE.split(question)[1:]:
        word = existing_path(part)
        if re.search(r"\w", word) and ("/" in word or not parse_path(word).is_dir()):
            paths.append(parse_path(word))
    return paths


def split_paths(text: str) -> tuple[list[Path | str], str]:
    """The paths and web addresses at the beginning of a text, separated by spaces or commas, and the question behind.

    A text that begins with none is one path. Raises UsageError for an empty path.
    """
    paths = []
    while text and (path := first_path(text)):
        paths.append(path if is_address(path) else parse_path(path))
        text = text[len(path) :].lstrip(", \t\n")
    if not paths:
        return [parse_path(text)], ""
    return paths, text


def first_path(text: str) -> str:
    """The longest beginning of a text that is the path of a file, or else its first word if that looks like a path."""
    if is_address(text):
        return text.split()[0]
    path = LIKE_A_PATH.match(text)
    return existing_path(text) or (path[0] if path else "")


def existing_path(text: str) -> str:
    """The longest beginning of a text that is the path of a file, without what is behind it; empty without one."""
    found = ""
    for separator in islice(SEPARATOR.finditer(text), MAX_WORDS):
        word = text[: separator.start()]
        for beginning in (BEHIND.sub("", word, count=1), word):
            if beginning and exists(parse_path(beginning)):
                found = beginning
    return found


def parse_path(argument: str) -> Path:
    """Path in an argument, which may be quoted or have escaped spaces, as terminals paste dropped files.

    Raises UsageError for an empty path, which Path takes for the working directory.
    """
    if not exists(as_path(argument)):
        with suppress(ValueError):
            [argument] = shlex.split(argument)
    if not argument:
        raise UsageError("the path is empty", "name a file; `.` is the working directory")
    return as_path(argument)
