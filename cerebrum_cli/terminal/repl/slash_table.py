"""Tables of slash commands and keys, read by /help, completion, suggestions and the documentation."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from textwrap import wrap
from typing import Literal, NamedTuple

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import KEYS as SETTINGS
from cerebrum_cli.core.settings import LOCAL_KEYS, OPTIONS
from cerebrum_cli.inference.format_choice import FORMAT_NAMES

DEFAULT_SYSTEM = "default"  # argument of /system for the format's own prompt

OWN_COMMANDS = {"model": "/model", "system": "/system"}  # settings that have their own command
SETTABLE = tuple(key for key in SETTINGS if key not in (*OWN_COMMANDS, "vi"))  # which applies to the next chat
SETTABLE_ON_SERVERS = tuple(key for key in SETTABLE if key not in (*LOCAL_KEYS, "lora"))  # "none" is its only value
SETTING_VALUES = {"format": FORMAT_NAMES} | {key: option.choices for key, option in OPTIONS.items() if option.choices}
PARTS = ("question", "answer")  # of a turn; both can be edited

ArgumentKind = Literal["", "path", "model", "session", "setting", "part", "prompt", "think"]


class SlashCommand(NamedTuple):
    name: str
    argument: str
    help: str
    argument_kind: ArgumentKind = ""
    aliases: tuple[str, ...] = ()


class SlashLine(NamedTuple):
    name: str
    argument: str


SLASH_COMMANDS = (
    SlashCommand("help", "", "show commands and keys"),
    SlashCommand("exit", "", "exit; so do /quit, /bye, /q and Ctrl-D", aliases=("quit", "bye", "q")),
    SlashCommand("clear", "", "start a new conversation; this one stays saved"),
    SlashCommand(
        "system",
        f"[TEXT|{DEFAULT_SYSTEM}]",
        "show or set the system prompt; `default` restores the format's own",
    ),
    SlashCommand("model", "[MODEL]", "show the model, or switch to another", "model"),
    SlashCommand("set", "KEY [VALUE]", "change a setting; no value resets it", "setting"),
    SlashCommand("params", "", "show the settings"),
    SlashCommand("use", "[NAME]", "list saved prompts, or use one for the next question, with its settings", "prompt"),
    SlashCommand("undo", "", "undo the last turn"),
    SlashCommand("retry", "[TEMP|SEED]", "answer again, with a temperature such as 0.7 or a seed (above 2)"),
    SlashCommand("votes", "K [QUESTION]", "vote with K samples on a question (default: the last one)"),
    SlashCommand("edit", "[answer]", "edit the last question, or its reply, in your editor", "part"),
    SlashCommand("continue", "", "continue an interrupted or truncated reply"),
    SlashCommand("fork", "[NAME]", "continue in a copy of this session"),
    SlashCommand("sessions", "", "list saved sessions"),
    SlashCommand("load", "NAME", "switch to another session", "session"),
    SlashCommand("save", "NAME", "rename this session (sessions are always saved)"),
    SlashCommand("export", "FILE", "write the session as .md, .json (OpenAI messages) or .txt (exact prompt)", "path"),
    SlashCommand("file", "PATH", "prepend a file, directory or glob to the next question", "path"),
    SlashCommand("tokens", "", "show context usage"),
    SlashCommand("stats", "", "show speed and token counts of the last reply"),
    SlashCommand("why", "[N]", "show the last reply's least certain tokens, each with N alternatives (default: 3)"),
    SlashCommand("copy", "[N]", "copy the last reply, or its N-th code block"),
    SlashCommand("final", "", "show the last reply's final answer"),
    SlashCommand("prompt", "", "show the exact prompt"),
    SlashCommand("think", "[on|off|N]", "show the last reply's reasoning, or control thinking", "think"),
)

KEYS = (
    ("Enter", "send"),
    ("Alt-Enter, Ctrl-J", "new line"),
    ('"""', "start or end multi-line input"),
    ("Tab", "complete a command, file, model, session, setting or saved prompt"),
    ("Up, Down", "previous questions"),
    ("Ctrl-R", "search previous questions"),
    ("Ctrl-X Ctrl-E", "edit in $VISUAL or $EDITOR"),
    ("Ctrl-L", "clear the screen"),
    ("Ctrl-C", "stop a reply and keep its text; twice at an empty prompt: exit"),
    ("Ctrl-T", "while the model thinks: stop and answer"),
    ("Ctrl-D", "exit"),
)


BARE_EXITS = ("exit", "quit", ":q")  # what users of other programs type to leave


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


def parse_slash(line: str) -> SlashLine | None:
    """Parse a line; None if it is not a command. Raises UsageError for an unknown command."""
    if not line.startswith("/"):
        return None
    name, *rest = line[1:].split(maxsplit=1) if line[1:2].strip() else ("",)
    names = {name: slash.name for slash in SLASH_COMMANDS for name in (slash.name, *slash.aliases)}
    if name in names:
        return SlashLine(names[name], rest[0].strip() if rest else "")
    matches = get_close_matches(name, names, n=1, cutoff=0.5)
    suggestion = f"did you mean /{matches[0]}? " if matches else ""
    raise UsageError(
        f"unknown command /{name}",
        f"{suggestion}/help lists commands; to send the text itself, put a space before the slash",
    )


def setting_key(text: str) -> str:
    return text.removeprefix("--").replace("-", "_")


def closest_setting(key: str) -> str | None:
    """Closest setting: the only one with this prefix, or else one with a similar name."""
    if not key:
        return None
    matches = [each for each in SETTABLE if each.startswith(key)]
    return matches[0] if len(matches) == 1 else next(iter(get_close_matches(key, SETTABLE, n=1, cutoff=0.5)), None)


def help_text(width: int) -> str:
    """Commands and keys, wrapped to a width in columns; in a narrow one, each explanation is below what it is about."""
    commands = [(f"/{slash.name} {slash.argument}".rstrip(), slash.help) for slash in SLASH_COMMANDS]
    indent = max(len(call) for call, _ in (*commands, *KEYS)) + 2
    return f"{_format_rows(commands, indent, width)}\n{_format_rows(KEYS, indent, width)}"


def _format_rows(rows: Iterable[tuple[str, str]], indent: int, width: int) -> str:
    lines: list[str] = []
    for call, summary in rows:
        if width < 2 * indent:
            lines += [call, *wrap(summary, max(width, indent), initial_indent="  ", subsequent_indent="  ")]
        else:
            lines += wrap(f"{call:<{indent}}{summary}", width, subsequent_indent=" " * indent)
    return "".join(f"{line}\n" for line in lines)
