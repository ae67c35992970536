"""Slash commands as values, the parser of their lines, and the keys of a chat."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

from cerebrum_cli.core.declaration import is_address
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import as_path, exists
from cerebrum_cli.core.text import Texts, did_you_mean


class SlashCommand(NamedTuple):
    """A slash command: its function, its argument and its help.

    The function returns a message on its result, if there is one. `values` finds the values of an argument that is
    typed in part, when Tab is pressed; one that `is_path` is completed as a path. `required` is what the argument must
    be, with a hint; without it, the function gets "" for no argument.
    """

    name: str
    run: Callable[[Any, str], str | None]
    argument: str
    help: str
    values: Callable[[Any, str], Iterable[str]] | None = None
    is_path: bool = False
    aliases: Texts = ()
    required: tuple[str, str] | None = None

    @property
    def usage(self) -> str:
        return f"/{self.name} {self.argument}".rstrip()


HelpRow = tuple[str, str]  # what is typed, and what it does

KEYS: tuple[HelpRow, ...] = (
    ("Enter", "send"),
    ("Alt-Enter, Ctrl-J", "new line; Shift-Enter too, if your terminal sends it"),
    ('"""', "start or end multi-line input"),
    ("Tab", "complete a command, or its argument"),
    ("Up, Down, Ctrl-R", "previous questions; search them"),
    ("Ctrl-X Ctrl-E", "edit in $VISUAL or $EDITOR, and send"),
    ("Ctrl-L", "clear the screen"),
    ("Ctrl-C", "end the reasoning, stop a reply, clear the line; twice: exit"),
    ("Ctrl-D", "exit"),
    ("Ctrl-Z", "suspend (resume with fg)"),
)


MAX_WORDS = 16  # of a path with spaces that are not escaped
SEPARATOR = re.compile(r"[\s,]+|\Z")  # of paths
LIKE_A_PATH = re.compile(  # where there is no such file
    r"""(["'])[^"']*\.[a-z]\w*\1"""  # a name with a suffix, in quotes
    r"""|(?:~|(?:\\.|[^\s,"'])*[/*])(?:\\.|[^\s,])*"""  # a directory or a pattern
    r"""|(?:\\.|[^\s,"'])+\.[a-z]\w*(?=[\s,]|\Z)""",  # a name with a suffix
    re.IGNORECASE,
)

LIKE_A_COMMAND = re.compile(r"""/|['"][/~]|~/""")  # and the path of a file that was dropped, which may be quoted
SEND_TEXT = "start with a space to send the text"
BARE_EXITS = ("exit", "quit", ":q")  # what users of other programs type to leave
HERE = {  # what the commands of other programs are here
    "glob": "/file",
    "h": "/help",
    "info": "/stats",
    "multiline": 'Ctrl-J or """',
    "new": "/clear",
    "read": "/file",
    "regen": "/retry",
    "regenerate": "/retry",
    "rename": "/save",
    "reset": "/clear",
    "shortcuts": "/help",
    "show": "/model, /set, /system or /prompt",
}


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
    """The longest beginning of a text that is the path of a file; empty without one."""
    found = ""
    for separator in islice(SEPARATOR.finditer(text), MAX_WORDS):
        beginning = text[: separator.start()]
        if exists(parse_path(beginning)):
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


def parse_slash(line: str, commands: Sequence[SlashCommand]) -> tuple[SlashCommand, str] | None:
    """The slash command of a line, and its argument; None for a question.

    Raises UsageError for an unknown or misused command, and for a path where a command could be, or alone.
    """
    if not LIKE_A_COMMAND.match(line):
        return None
    name, _, argument = re.sub(r"\s", " ", line[1:], count=1).partition(" ")
    argument = argument.strip()
    slash = find_slash(name, commands) if line.startswith("/") else None
    if slash is None:
        require_no_path(line)
        if line.startswith("/"):
            raise unknown_command(name, commands)
        return None
    if argument and not slash.argument:
        raise UsageError(f"/{name} has no argument", SEND_TEXT)
    if slash.required and not argument:
        what, hint = slash.required
        raise UsageError(f"/{slash.name} needs {what}", hint)
    return slash, argument


def require_no_path(line: str) -> None:
    path = existing_path(line.rstrip())
    if path.strip("/") and (line.startswith("/") or path == line.rstrip()):
        raise UsageError(f"{path} is a path, not a command", f"attach it with /file {path}, or {SEND_TEXT}")


def find_slash(name: str, commands: Iterable[SlashCommand]) -> SlashCommand | None:
    for slash in commands:
        if name == slash.name or name in slash.aliases:
            return slash
    return None


def unknown_command(name: str, commands: Iterable[SlashCommand]) -> UsageError:
    """An error with the commands most like a name, or with what a command of another program is here."""
    if here := HERE.get(name.lower()):
        return UsageError(f"/{name} is {here} here")
    known = [f"/{slash.name}" for slash in commands]
    near = did_you_mean(f"/{name.lower()}", known, cutoff=0.7)
    return UsageError(f"unknown command /{name}", f"{near}list commands with /help, or {SEND_TEXT}")


def help_text(rows: Sequence[HelpRow], width: int) -> str:
    """Rows of help, wrapped to a width in columns; in a narrow one, each explanation is below what it is about."""
    indent = max(len(typed) for typed, _ in rows) + 2
    lines = []
    for typed, summary in rows:
        if width >= 2 * indent:
            lines += wrap(f"{typed:<{indent}}{summary}", width, subsequent_indent=" " * indent) or [""]
        else:
            lines += [typed, *wrap(summary, max(width, indent), initial_indent="  ", subsequent_indent="  ")]
    return "\n".join(lines) + "\n"
