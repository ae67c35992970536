"""Slash commands as values, the parser of their lines, and the keys of a chat."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from textwrap import wrap
from typing import Any, NamedTuple

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.text import Texts, did_you_mean
from cerebrum_cli.terminal.repl.typed_paths import existing_path


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
    ("@PATH", "attach a file, or a directory with a slash behind it"),
    ("Tab", "complete a command, its argument, or a path behind @"),
    ("Up, Down, Ctrl-R", "previous questions; search them"),
    ("Ctrl-X Ctrl-E", "edit in $VISUAL or $EDITOR, and send"),
    ("Ctrl-L", "clear the screen"),
    ("Ctrl-C", "end the reasoning, stop a reply, clear the line; twice: exit"),
    ("Ctrl-D", "exit"),
    ("Ctrl-Z", "suspend (resume with fg)"),
)


LIKE_A_COMMAND = re.compile(r"""/|['"][/~]|~/""")  # and the path of a file that was dropped, which may be quoted
SEND_TEXT = "begin with a space to send it as text"
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
    known = [spelled for slash in commands for spelled in (slash.name, *slash.aliases)]
    near = did_you_mean(f"/{name.lower()}", [f"/{spelled}" for spelled in (*known, *HERE)], cutoff=0.7)
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
