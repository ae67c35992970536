"""Slash commands as values, the parser of their lines, and the keys and settings of a chat."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal, NamedTuple

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import KEYS as SETTINGS
from cerebrum_cli.core.settings import LOCAL_KEYS, OPTIONS
from cerebrum_cli.replies.format_choice import FORMAT_NAMES

DEFAULT_SYSTEM = "default"  # argument of /system for the format's own prompt

OWN_COMMANDS = {"model": "/model", "system": "/system"}  # settings that have their own command
SETTABLE = tuple(key for key in SETTINGS if key not in (*OWN_COMMANDS, "no_log", "vi"))  # which apply to the next chat
SETTABLE_ON_SERVERS = tuple(key for key in SETTABLE if key not in (*LOCAL_KEYS, "lora"))  # "none" is its only value
SETTING_VALUES = {"format": FORMAT_NAMES} | {key: option.choices for key, option in OPTIONS.items() if option.choices}
SHOWN = {"show": "on", "hide": "off"}  # arguments of /think for reasoning as it is generated
PARTS = ("question", "answer")  # of a turn; both can be edited

ArgumentKind = Literal["", "path", "model", "session", "setting", "part", "prompt", "think"]


class SlashCommand(NamedTuple):
    """A slash command: its function, its argument, its help, and what completes the argument.

    `required` is what the argument must be, with a hint; without it, the function gets "" for no argument.
    """

    name: str
    run: Callable[[Any, str], None]
    argument: str
    help: str
    argument_kind: ArgumentKind = ""
    aliases: tuple[str, ...] = ()
    required: tuple[str, str] | None = None


KEYS = (
    ("Enter", "send"),
    ("Alt-Enter, Ctrl-J", "new line"),
    ('"""', "start or end multi-line input"),
    ("Tab", "complete a command, file, model, session, setting or saved prompt"),
    ("Up, Down", "previous questions"),
    ("Ctrl-R", "search previous questions"),
    ("Ctrl-X Ctrl-E", "edit in $VISUAL or $EDITOR"),
    ("Ctrl-L", "clear the screen"),
    ("Ctrl-C", "end the reasoning, or stop a reply and keep its text; twice at an empty prompt: exit"),
    ("Ctrl-D", "exit"),
    ("Ctrl-Z", "suspend (resume with fg)"),
)


BARE_EXITS = ("exit", "quit", ":q")  # what users of other programs type to leave
OTHER_NAMES = {  # of commands in other programs, and the one that does the same here
    "?": "help",
    "h": "help",
    "history": "sessions",
    "new": "clear",
    "read": "file",
    "regen": "retry",
    "regenerate": "retry",
    "rename": "save",
    "reset": "clear",
    "show": "params",
}


def parse_path(argument: str) -> Path:
    """Path in an argument, which may be quoted or have escaped spaces, as terminals paste dropped files.

    Raises UsageError for an empty path, which Path takes for the working directory.
    """
    if not Path(argument).expanduser().exists():
        with contextlib.suppress(ValueError):
            [argument] = shlex.split(argument)
    if not argument:
        raise UsageError("the path is empty", "name a file; `.` is the working directory")
    return Path(argument).expanduser()


def parse_slash(line: str, commands: Iterable[SlashCommand]) -> tuple[SlashCommand, str] | None:
    """The slash command of a line, and its argument; None for a question. Raises UsageError."""
    if not line.startswith("/"):
        return None
    name, _, argument = re.sub(r"\s", " ", line[1:], count=1).partition(" ")
    slash = find_slash(name, commands)
    argument = argument.strip()
    if slash.required and not argument:
        what, hint = slash.required
        raise UsageError(f"/{slash.name} needs {what}", hint)
    return slash, argument


def find_slash(name: str, commands: Iterable[SlashCommand]) -> SlashCommand:
    """The command of a name. Raises UsageError if there is none."""
    names = []
    for slash in commands:
        if name == slash.name or name in slash.aliases:
            return slash
        names += [slash.name, *slash.aliases]
    hint = "list commands with /help; to send the text itself, put a space before the slash"
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    if name in OTHER_NAMES:
        near = [OTHER_NAMES[name]]
    if near:
        hint = f"did you mean /{near[0]}? {hint}"
    raise UsageError(f"unknown command /{name}", hint)


def setting_key(text: str) -> str:
    return text.removeprefix("--").replace("-", "_")


def help_text(commands: Iterable[SlashCommand], width: int) -> str:
    """Commands and keys, wrapped to a width in columns; in a narrow one, each explanation is below what it is about."""
    calls = [(f"/{slash.name} {slash.argument}".rstrip(), slash.help) for slash in commands]
    indent = max(len(call) for call, _ in (*calls, *KEYS)) + 2
    lines: list[str] = []
    for call, summary in (*calls, ("", ""), *KEYS):
        if width >= 2 * indent:
            lines += wrap(f"{call:<{indent}}{summary}", width, subsequent_indent=" " * indent) or [""]
        else:
            lines += [call, *wrap(summary, max(width, indent), initial_indent="  ", subsequent_indent="  ")]
    return "\n".join(lines) + "\n"
